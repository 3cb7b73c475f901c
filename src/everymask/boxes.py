"""Boxes: (cx, cy, w, h) as models predict them, corners (x0, y0, x1, y1), and how well two of them agree.

All are relative to an image's content: 0 is its left or upper edge, 1 its right or lower one. Edges, not pixel centres:
the box of a single pixel has an area.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .types import Segments

TINY = 1e-12
"""Smallest area that is divided by: boxes may be empty, and a quotient of nothing is nothing."""


def to_corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) [..., 4] -> (x0, y0, x1, y1) [..., 4]."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def from_corners(corners: Tensor) -> Tensor:
    """(x0, y0, x1, y1) [..., 4] -> (cx, cy, w, h) [..., 4]."""
    first, last = corners[..., :2], corners[..., 2:]
    return torch.cat([(first + last) / 2, last - first], dim=-1)


def area(corners: Tensor) -> Tensor:
    """[...] of corners [..., 4]; 0 for a box whose corners are not in order."""
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)


def generalized_iou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised intersection over union, -1 to 1 (Rezatofighi et al. 2019, algorithm 1).

    Args:
        one, other: corners [..., 4], whose leading axes broadcast: [Q, 1, 4] and [N, 4] give all pairs [Q, N].
    """
    inner = torch.cat([torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])], -1)
    outer = torch.cat([torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:])], -1)
    overlap, hull = area(inner), area(outer)
    union = area(one) + area(other) - overlap
    return overlap / union.clamp(min=TINY) - (hull - union) / hull.clamp(min=TINY)


def segment_boxes(segments: Segments, content: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tight boxes of segments on a canvas.

    Args:
        content: (H, W) that the boxes are relative to.

    Returns:
        float [N, 4] (cx, cy, w, h), and bool [N]: False for segments without a pixel, whose boxes mean nothing.
    """
    height, width = segments.size
    ids = segments.id_map.reshape(-1, height, width).long() + 1  # Void is row 0, background row 1.
    y, x = torch.arange(height, device=ids.device)[:, None], torch.arange(width, device=ids.device)
    (y0, y1, present), (x0, x1, _) = (_extent(ids, place, len(segments)) for place in (y, x))
    corners = torch.stack([x0, y0, x1, y1], dim=-1) / ids.new_tensor([content[1], content[0]] * 2)
    return from_corners(corners), present


def _extent(rows: Tensor, place: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and last edge [N] of the places (rows or columns of pixels) that each segment has, and whether any."""
    taken = torch.zeros(count + 2, int(place.max()) + 1, dtype=torch.bool, device=rows.device)
    taken[rows, place.expand_as(rows)] = True
    taken = taken[2:]
    first = taken.int().argmax(1)
    last = taken.shape[1] - taken.flip(1).int().argmax(1)
    return first, last, taken.any(1)
