"""Everything in a photo without a prompt: a click at every point of a grid, and what of the answers can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .clicks import tight_boxes
from .errors import UsageError
from .labels import LabelMap
from .layers.masks import cell_positions
from .layers.prompt_decoder import Candidates
from .postprocess import check_probability
from .prompted import Unprompted, numbered, stacked
from .prompts import POSITIVE
from .types import Letterbox, Prediction, Prompts, Segments

AT_ONCE = 64
"""Points asked for together: what bounds the memory."""

OFFSET = 1.0
"""A mask is stable if its areas at logits of + and - this are nearly the same."""


@dataclass(frozen=True, eq=False)
class Found:
    """Masks that are kept: logits float16 [n, h, w], predicted IoUs [n], boxes [n, 4] and areas [n] in cells."""

    logits: Tensor
    ious: Tensor
    boxes: Tensor
    areas: Tensor

    def take(self, rows: Tensor) -> Found:
        """Some of them."""
        return Found(*(value[rows] for value in vars(self).values()))

    def plus(self, other: Found) -> Found:
        """Both together."""
        return Found(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


def automatic(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    grid: int = 32,
    iou: float = 0.8,
    stability: float = 0.95,
    duplicate: float = 0.7,
    least_area: int = 0,
) -> Segments:
    """Segments of the class "object", best first; where they meet, the smaller one is on top.

    Thresholds are those of SAM 2's own mask generator; stability and boxes are measured at the decoder's cells.

    Args:
        grid: clicks along each side of the photo.
        iou: least predicted IoU of a mask.
        stability: least share that the area at a higher threshold has of that at a lower one.
        duplicate: of masks whose boxes have a higher IoU than this, the better one stays.
        least_area: segments of fewer pixels of the photo are left out.

    Raises:
        UsageError: the photo was prompted for, or an option is out of range.
    """
    for name, value in (("iou", iou), ("stability", stability), ("duplicate", duplicate)):
        check_probability(name, value)
    if grid < 1:
        raise UsageError("an option is out of range", where="grid", why=f"{grid} is below 1")
    if not isinstance(prediction.masks, Unprompted):
        fix = "Leave points and boxes out, or take the task prompted."
        raise UsageError("the task automatic takes no prompts", where="prompts", fix=fix)
    found: Found | None = None
    for some in grid_points(letterbox.content, grid).split(AT_ONCE):
        fresh = trusted(prediction.masks.ask(b, clicks_on(some)), letterbox, iou, stability)
        found = fresh if found is None else found.plus(fresh)
        found = found.take(best_of_duplicates(found.boxes, found.ious, duplicate))
    assert found is not None
    ids = painted(found, letterbox, least_area)
    return numbered(ids, None, found.ious.float().cpu(), labels)


def painted(found: Found, letterbox: Letterbox, least_area: int) -> Tensor:
    """int32 [1, H, W] at the photo's size, ids 1 + position; the smallest mask lies on top."""
    rows, columns = (
        cell_positions(out, length, 4, found.logits.device)
        for out, length in zip(letterbox.source, letterbox.content, strict=True)
    )
    ids = stacked(found.logits.float(), -found.areas, rows, columns)
    if least_area:
        areas = torch.bincount(ids.flatten(), minlength=len(found.ious) + 1)
        ids = ids.masked_fill((areas < least_area)[ids.long()], 0)
    return ids


def grid_points(content: tuple[int, int], count: int) -> Tensor:
    """Canvas points [count * count, 2] in the middle of equal parts of the content."""
    height, width = content
    steps = (torch.arange(count) + 0.5) / count
    y, x = torch.meshgrid(steps * height - 0.5, steps * width - 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def clicks_on(points: Tensor) -> Prompts:
    """One object for each point [P, 2]."""
    order = torch.arange(len(points))
    return Prompts(points, torch.full((len(points),), POSITIVE, dtype=torch.int32), order)


def trusted(candidates: Candidates, letterbox: Letterbox, iou: float, stability: float) -> Found:
    """The masks of three for each click that are good by their own account and stable, best first."""
    height, width = (-(-length // 4) for length in letterbox.content)
    logits = candidates.logits[:, 1:, :height, :width].flatten(0, 1)
    ious = candidates.ious[:, 1:].flatten()
    good = torch.nonzero(ious > iou).flatten()
    logits, ious = logits[good], ious[good]
    inner, outer = (logits > OFFSET).flatten(1).sum(1), (logits > -OFFSET).flatten(1).sum(1)
    areas = (logits > 0).flatten(1).sum(1)
    stable = torch.nonzero((areas > 0) & (inner > stability * outer)).flatten()
    stable = stable[ious[stable].argsort(descending=True, stable=True)]
    # From outer edge to outer edge of the corner cells.
    boxes = tight_boxes(logits[stable] > 0)[0] + logits.new_tensor([0, 0, 1, 1])
    return Found(logits[stable].half(), ious[stable], boxes, areas[stable])


def best_of_duplicates(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Rows int64, best first, without those whose box has an IoU above `limit` with a better one that stays."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    meets = (both > limit * (areas[:, None] + areas - both)).cpu()
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for n in range(len(boxes)):
        if stays[n]:
            stays[n + 1 :] &= ~meets[n, n + 1 :]
    return order[stays.to(order.device)]
