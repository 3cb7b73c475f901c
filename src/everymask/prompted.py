"""Objects that somebody pointed at: their candidate masks, and the segments they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .errors import UsageError
from .labels import LabelMap
from .layers.masks import cell_positions, resample_content, sample_features
from .layers.prompt_decoder import Candidates
from .types import BACKGROUND, Letterbox, Prediction, Prompts, Segments
from .upsample import decide_pixels

OBJECT = LabelMap.from_names(["object"])
"""The class table of results where nobody said what the objects are."""

ABSENT = -100.0
"""Mask logit of objects that an image does not have, but its neighbours in the batch do."""


class PromptedMasks:
    """Mask logits at stride 4 of a square canvas, as a `MaskDecoder`: query n is object n, by its best candidate.

    Args:
        candidates: of each image.
        letterboxes: one an image.
        classes: of each image's objects, None where nobody said.
        chosen: int64 [O] of each image instead of the trusted candidate.
    """

    def __init__(
        self,
        candidates: Sequence[Candidates],
        letterboxes: Sequence[Letterbox],
        classes: Sequence[Tensor | None],
        chosen: Sequence[Tensor] | None = None,
    ) -> None:
        self.candidates, self.letterboxes, self.classes = candidates, letterboxes, classes
        self.chosen = [own.trusted() for own in candidates] if chosen is None else chosen
        self.count = max(len(own) for own in candidates)

    def logits(self, b: int) -> Tensor:
        """[O, h, w] of image `b` over the whole square."""
        return self.candidates[b].pick(self.chosen[b])[0]

    def ious(self, b: int) -> Tensor:
        """[O], 0..1: the IoU that each mask of image `b` is thought to have."""
        return self.candidates[b].pick(self.chosen[b])[1]

    def sample(self, points: Tensor) -> Tensor:
        """[B, Q, P] at canvas points [B, P, 2]."""
        sampled = points.new_full((len(points), self.count, points.shape[1]), ABSENT)
        for b, own in enumerate(points):
            maps = self.logits(b)[None]
            found = sample_features(maps, own[None], [self.letterboxes[b]], square(maps))[0]
            sampled[b, : len(found)] = found
        return sampled

    def decode(self, b: int, queries: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """[q, H, W]: the content of image `b` at `size`."""
        maps, content = self.logits(b), self.letterboxes[b].content
        padding = maps.new_full((self.count - len(maps), *maps.shape[1:]), ABSENT)
        height, width = (-(-length // 4) for length in content)
        maps = torch.cat([maps, padding])[queries, :height, :width]
        return maps if size is None else resample_content(maps, content, (4, 4), size)

    def positions(self, b: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Rows [H] and columns [W] of `size` in cells of the content."""
        content, device = self.letterboxes[b].content, self.candidates[b].logits.device
        return cell_positions(size[0], content[0], 4, device), cell_positions(size[1], content[1], 4, device)


def square(maps: Tensor) -> tuple[int, int]:
    """The canvas that maps [..., h, w] at stride 4 cover."""
    return maps.shape[-2] * 4, maps.shape[-1] * 4


class Unprompted:
    """The masks of photos that nobody has pointed into yet: `automatic` asks for them, all else is refused.

    Args:
        ask: from the number of an image and prompts for it, on the canvas, to their candidates.
    """

    def __init__(self, ask: Callable[[int, Prompts], Candidates]) -> None:
        self.ask = ask

    def sample(self, points: Tensor) -> Tensor:
        raise no_prompt()

    def decode(self, b: int, queries: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        raise no_prompt()

    def positions(self, b: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        raise no_prompt()


def no_prompt() -> UsageError:
    """The error of a system that is told by clicks and was told nothing."""
    fix = "Give points or boxes, or take the task automatic."
    return UsageError("there is no prompt at all", where="prompts", fix=fix)


def prompted(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    overlap: Literal["score", "layers"] = "score",
    candidate: int | None = None,
) -> Segments:
    """One segment for each object that was prompted for, in their order; those without a pixel are left out.

    Args:
        labels: of the classes that the prompts name; where they name none, the class is "object".
        overlap: a pixel of several masks belongs to the one of highest predicted IoU ("score"), or to all of them
            ("layers": the id map has as many layers as it takes).
        candidate: of a single click, 0 to 2 takes that one of the three masks instead of the best.

    Raises:
        UsageError: there is no prompt, or an option is unknown.
    """
    masks = prediction.masks
    if not isinstance(masks, PromptedMasks):
        raise no_prompt()
    if overlap not in ("score", "layers"):
        raise UsageError("an option is unknown", where="overlap", why=str(overlap), fix="score or layers.")
    if candidate is not None:
        masks = with_candidate(masks, candidate)
    logits = masks.decode(b, torch.arange(len(masks.logits(b)), device=masks.logits(b).device))
    scores = masks.ious(b).float()
    rows, columns = masks.positions(b, letterbox.source)
    layers = stacked(logits, scores, rows, columns, separate=overlap == "layers")
    return numbered(layers, masks.classes[b], scores.cpu(), labels)


def with_candidate(masks: PromptedMasks, candidate: int) -> PromptedMasks:
    """The same masks with one of the three for all objects of a single click."""
    if candidate not in (0, 1, 2):
        raise UsageError("there are three candidates", where="candidate", why=f"{candidate} is not 0, 1 or 2")
    chosen = [
        torch.where(own.ambiguous, candidate + 1, before)
        for own, before in zip(masks.candidates, masks.chosen, strict=True)
    ]
    return PromptedMasks(masks.candidates, masks.letterboxes, masks.classes, chosen)


def numbered(layers: Tensor, classes: Tensor | None, scores: Tensor, labels: LabelMap) -> Segments:
    """Segments of id layers [L, H, W] with ids 1 + object; objects without a pixel are dropped."""
    counts = torch.bincount(layers.flatten(), minlength=len(scores) + 1)[1:]
    present = counts > 0
    ids = torch.cat([torch.zeros(1, dtype=torch.int32), present.cumsum(0).to(torch.int32)])
    layers = ids[layers] if not bool(present.all()) else layers.to(torch.int32)
    kept = torch.zeros(int(present.sum()), dtype=torch.int64) if classes is None else classes.cpu()[present]
    id_map = layers[0] if len(layers) == 1 else layers
    table = OBJECT if classes is None else labels
    return Segments.build(id_map, kept, labels=table, scores=scores[present].clamp(0, 1))


def stacked(logits: Tensor, scores: Tensor, rows: Tensor, columns: Tensor, separate: bool = False) -> Tensor:
    """Masks painted at full size, the highest score last: int32 [L, H, W] of ids 1 + position.

    One mask at a time and only where it is, so that memory and time go by what the masks cover, not by their number.

    Args:
        logits: [n, h, w]; what is interpolated to more than 0 is in the mask.
        rows, columns: where the pixel rows [H] and columns [W] lie among the cells.
        separate: masks that meet get layers of their own instead.
    """
    layers = [torch.zeros(len(rows), len(columns), dtype=torch.int32)]
    for n in scores.argsort(descending=separate, stable=True).tolist():
        area, mask = window(logits[n], rows, columns)
        if mask is None:
            continue
        home = next((layer for layer in layers if not separate or not (layer[area] > BACKGROUND)[mask].any()), None)
        if home is None:
            home = torch.zeros_like(layers[0])
            layers.append(home)
        home[area].masked_fill_(mask, n + 1)
    return torch.stack(layers)


def window(logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[tuple[slice, slice], Tensor | None]:
    """Where a mask [h, w] may have pixels, and bool of these; None where it has no positive cell."""
    positive = logits > 0
    spans = []
    for axis, positions in ((1, rows), (0, columns)):
        cells = torch.nonzero(positive.any(axis)).flatten()
        if not len(cells):
            return (slice(0, 0), slice(0, 0)), None
        # A cell reaches as far as its neighbours' middles.
        ends = torch.stack([cells[0] - 1, cells[-1] + 1]).to(positions.dtype)
        first, last = torch.searchsorted(positions, ends).tolist()
        low, high = max(0, int(cells[0]) - 1), min(logits.shape[1 - axis], int(cells[-1]) + 2)
        spans.append((slice(first, last), slice(low, high)))
    (down, some_rows), (right, some_columns) = spans
    part = logits[None, some_rows, some_columns]
    own_rows, own_columns = rows[down] - some_rows.start, columns[right] - some_columns.start
    if not len(own_rows) or not len(own_columns):
        return (slice(0, 0), slice(0, 0)), None
    mask = decide_pixels(part, own_rows, own_columns, lambda values, _: (values[0] > 0).to(torch.uint8))
    return (down, right), mask.bool().cpu()
