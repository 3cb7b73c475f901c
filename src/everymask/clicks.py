"""Clicks that are drawn while a model answers: a first click or box on an object, then corrections of what is wrong.

Masks here are bool [O, H, W], one map an object; points are float32 [O, 2], labels those of `Prompts`. The draws of
`sampled` and of ``deepest=False`` come from torch's generator, as all that happens within a training step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .prompts import BOTTOM_RIGHT, JITTER, LARGEST_JITTER, NEGATIVE, POSITIVE, TOP_LEFT, depth

PADDING = -1


def random_pixels(regions: Tensor) -> tuple[Tensor, Tensor]:
    """One pixel of each region, all with the same chance: points [O, 2], and bool [O] whether there was any."""
    flat = regions.flatten(1)
    running = flat.cumsum(1, dtype=torch.int32)
    counts = running[:, -1]
    rank = 1 + (torch.rand(len(flat), dtype=torch.float64, device=flat.device) * counts).floor()
    place = torch.searchsorted(running, rank.to(torch.int32)[:, None])[:, 0].clamp(max=flat.shape[1] - 1)
    return _points(place, regions.shape[-1]), counts > 0


def _points(places: Tensor, width: int) -> Tensor:
    """(x, y) of positions in maps that were flattened."""
    return torch.stack([places % width, places.div(width, rounding_mode="floor")], dim=-1).float()


def deepest_pixels(regions: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel of each region that is farthest from its outside, the first of several, and that distance [O].

    Beyond the border all is outside, as for SAM 2. The distance is 0 where a region is empty.
    """
    points, depths = torch.zeros(len(regions), 2), torch.zeros(len(regions))
    for n, region in enumerate(regions.cpu().numpy()):
        ys, xs = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        if len(ys):
            inside = depth(region[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1])
            y, x = np.unravel_index(int(inside.argmax()), inside.shape)
            points[n], depths[n] = torch.tensor([xs[0] + x, ys[0] + y]), float(inside[y, x])
    return points.to(regions.device), depths.to(regions.device)


def correction_clicks(
    predicted: Tensor, truth: Tensor, known: Tensor, *, deepest: bool = False
) -> tuple[Tensor, Tensor]:
    """One click an object where the prediction is wrong: 1 where it misses the object, 0 where it covers too much.

    A perfect prediction gets a click beside the object, or on it where all that is known is the object. Never on void.

    Args:
        known: bool [H, W], False at void.
        deepest: the pixel deepest inside the larger error, as SAM 2 is evaluated; else any wrong pixel, as it is
            trained.

    Returns:
        points [O, 2] and labels int32 [O]; the label is -1 where an object has no known pixel to click on.
    """
    missed, extra = truth & ~predicted & known, predicted & ~truth & known
    regions = missed | extra
    for spare in (~truth & known, truth & known):
        perfect = ~regions.flatten(1).any(1)
        regions = torch.where(perfect[:, None, None], spare, regions)
    if deepest:
        points, found = _deepest_error(missed, extra, regions)
    else:
        points, found = random_pixels(regions)
    x, y = points.long().unbind(-1)
    hit = truth[torch.arange(len(truth), device=truth.device), y, x]
    labels = torch.where(hit, POSITIVE, NEGATIVE)
    return points, torch.where(found, labels, PADDING).to(torch.int32)


def _deepest_error(missed: Tensor, extra: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """The deeper of the two errors, or of `regions` where there is neither."""
    (inside, inside_depth), (beside, beside_depth) = deepest_pixels(missed), deepest_pixels(extra)
    points, found = torch.where((inside_depth > beside_depth)[:, None], inside, beside), inside_depth + beside_depth > 0
    if not bool(found.all()):
        other, other_depth = deepest_pixels(regions)
        points, found = torch.where(found[:, None], points, other), found | (other_depth > 0)
    return points, found


def sampled_clicks(truth: Tensor) -> tuple[Tensor, Tensor]:
    """A first click anywhere on each object: points [O, 1, 2], labels int32 [O, 1]."""
    points, found = random_pixels(truth)
    labels = torch.where(found, POSITIVE, PADDING).to(torch.int32)
    return points[:, None], labels[:, None]


def sampled_boxes(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Each object's box with moved corners, as SAM 2 is trained: points [O, 2, 2], labels int32 [O, 2]."""
    boxes, found = tight_boxes(truth)
    sides = boxes[:, 2:] - boxes[:, :2]
    most = (JITTER * sides).clamp(max=LARGEST_JITTER).repeat(1, 2)
    moved = boxes + (2 * torch.rand_like(boxes) - 1) * most
    last = boxes.new_tensor([truth.shape[2] - 1, truth.shape[1] - 1])
    points = moved.view(-1, 2, 2).clamp(min=0).minimum(last)
    corners = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], dtype=torch.int32, device=truth.device)
    return points, torch.where(found[:, None], corners, PADDING).to(torch.int32)


def tight_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes float32 [O, 4] (x0, y0, x1, y1), corners inclusive, and bool [O] whether a mask has any pixel."""
    (x0, x1), (y0, y1) = (_ends(masks.any(axis)) for axis in (1, 2))
    return torch.stack([x0, y0, x1, y1], dim=1).float(), masks.flatten(1).any(1)


def _ends(lines: Tensor) -> tuple[Tensor, Tensor]:
    """First and last True of each line, bool [O, L]."""
    marks = lines.to(torch.int8)
    return marks.argmax(1), lines.shape[1] - 1 - marks.flip(1).argmax(1)
