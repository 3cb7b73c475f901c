"""The nouns of the library, and the one shape legend that every docstring uses.

==========  ==========================================  ==========  ======================================
``B``       images in a batch                           ``H W``     image or canvas height and width
``Q``       queries                                     ``h w``     feature map height and width
``K``       classes                                     ``D``       embedding width
``N``       segments of one image                       ``P``       sampled points
``T``       text classes, or frames                     ``O``       prompted objects
``L``       layers of an id map with overlaps
==========  ==========================================  ==========  ======================================

Points are ``(x, y)`` in pixels; pixel centres are at integers, so the left edge of an image is at x = -0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .labels import LabelMap

VOID = -1
"""`id_map` value of pixels whose truth is unknown: matcher, losses and metrics ignore them."""

BACKGROUND = 0
"""`id_map` value of pixels known to belong to no segment: a negative for every mask."""

SMALL_IDS = torch.int8, torch.int16
"""Types of an `id_map` besides int32, of samples as they lie in memory."""


def id_type(segments: int) -> np.dtype[Any]:
    """The smallest of int8, int16, int32 that holds the ids of so many segments, and one more."""
    return next(np.dtype(name) for name in (np.int8, np.int16, np.int32) if segments < np.iinfo(name).max)


@dataclass(frozen=True)
class Letterbox:
    """How one photo lies on its canvas: resized to `content`, at the top left, padded right and bottom.

    Attributes:
        source: photo (H, W).
        content: the photo's size on the canvas.
        canvas: content plus padding.
    """

    source: tuple[int, int]
    content: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def fit(cls, source: tuple[int, int], side: int, multiple: int = 32) -> Letterbox:
        """Longest side to `side`, aspect ratio kept, canvas rounded up to `multiple`."""
        scale = side / max(source)
        content = max(1, round(source[0] * scale)), max(1, round(source[1] * scale))
        return cls(source, content, (round_up(content[0], multiple), round_up(content[1], multiple)))

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per photo pixel, (x, y)."""
        return self.content[1] / self.source[1], self.content[0] / self.source[0]

    def to_canvas(self, points: Tensor) -> Tensor:
        """Photo points [..., 2] to canvas points."""
        edges = points + 0.5  # Also makes whole numbers floats, before `new_tensor` takes over their type.
        return edges * edges.new_tensor(self.scale) - 0.5

    def to_source(self, points: Tensor) -> Tensor:
        """Canvas points [..., 2] to photo points: the inverse of `to_canvas`."""
        edges = points + 0.5
        return edges / edges.new_tensor(self.scale) - 0.5


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return math.ceil(length / multiple) * multiple


@dataclass(frozen=True, eq=False)
class Segment:
    """View of one segment of a `Segments`: cheap to make, its mask is computed when asked for."""

    parent: Segments
    index: int

    @property
    def id(self) -> int:
        """Value in the id map."""
        return self.index + 1

    @property
    def class_index(self) -> int:
        """Row of the class table."""
        return int(self.parent.classes[self.index])

    @property
    def label(self) -> str:
        """Class name, or the index as text where no class table is known."""
        labels = self.parent.labels
        return labels[self.class_index].name if labels else str(self.class_index)

    @property
    def score(self) -> float:
        """Confidence 0..1; 1 for truth."""
        return 1.0 if self.parent.scores is None else float(self.parent.scores[self.index])

    @property
    def is_thing(self) -> bool:
        """Countable object rather than stuff."""
        return bool(self.parent.is_thing[self.index])

    @property
    def is_crowd(self) -> bool:
        """A region of many objects that were not told apart: ignored in training and scoring."""
        return bool(self.parent.is_crowd[self.index])

    @property
    def mask(self) -> Tensor:
        """bool [H, W]."""
        hit = self.parent.id_map == self.id
        return hit if hit.ndim == 2 else hit.any(0)

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Tight box (x0, y0, x1, y1), corners inclusive, or None where no pixel is left."""
        ys, xs = torch.nonzero(self.mask, as_tuple=True)
        return (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())) if len(xs) else None


@dataclass(frozen=True, eq=False)
class Segments:
    """Truth or prediction of one image as an id map and a table: never N x H x W.

    Attributes:
        id_map: [H, W], or [L, H, W] where instances overlap: -1 void, 0 background, n = row n-1 of the table. int32 in
            batches and predictions; of a sample it may be the smallest of int8, int16, int32 that holds the ids, so
            widen it before arithmetic.
        classes: int64 [N], class index of each segment.
        is_thing: bool [N].
        is_crowd: bool [N].
        scores: float32 [N], None for truth.
        alpha: uint8 [H, W] matte of the foreground, None where there is none.
        labels: the class table.
    """

    id_map: Tensor
    classes: Tensor
    is_thing: Tensor
    is_crowd: Tensor
    scores: Tensor | None = None
    alpha: Tensor | None = None
    labels: LabelMap | None = None

    @classmethod
    def build(
        cls,
        id_map: Tensor | np.ndarray,
        classes: Sequence[int] | Tensor,
        *,
        labels: LabelMap | None = None,
        crowd: Sequence[bool] | Tensor | None = None,
        scores: Tensor | None = None,
        alpha: Tensor | np.ndarray | None = None,
    ) -> Segments:
        """A checked `Segments`; thing or stuff comes from `labels` (all things without a table).

        Raises:
            DataError: ids beyond the table, classes beyond `labels`, or shapes that do not agree.
        """
        ids = _tensor(id_map)
        ids = ids if ids.dtype in SMALL_IDS else ids.to(torch.int32)
        rows = torch.as_tensor(classes, dtype=torch.int64).reshape(-1)
        _check_table(ids, rows, labels)
        things = [labels[int(k)].is_thing if labels else True for k in rows]
        is_crowd = torch.zeros(len(rows), dtype=torch.bool) if crowd is None else torch.as_tensor(crowd).bool()
        matte = _tensor(alpha)
        _check_shape("crowd", is_crowd, rows.shape)
        _check_shape("scores", scores, rows.shape)
        _check_shape("alpha", matte, ids.shape[-2:])
        return cls(ids, rows, torch.tensor(things, dtype=torch.bool), is_crowd, scores, matte, labels)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[Segment]:
        return (Segment(self, n) for n in range(len(self)))

    def __getitem__(self, index: int) -> Segment:
        return Segment(self, range(len(self))[index])

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.id_map.shape[-2], self.id_map.shape[-1]

    @property
    def void(self) -> Tensor:
        """bool [H, W]: unknown pixels, crowd regions included."""
        hit = self.id_map == VOID
        for n in torch.nonzero(self.is_crowd).flatten().tolist():
            hit |= self.id_map == n + 1
        return hit if hit.ndim == 2 else hit.any(0)

    @property
    def foreground(self) -> Tensor:
        """bool [H, W]: pixels of any segment, the merged view."""
        hit = self.id_map > BACKGROUND
        return hit if hit.ndim == 2 else hit.any(0)

    def class_map(self, num_classes: int) -> Tensor:
        """int64 [H, W], the semantic view: class index, `num_classes` for background, -1 for void.

        Where layers overlap, the first layer that has a segment wins.
        """
        lookup = torch.cat([self.classes, torch.tensor([VOID, num_classes])])
        layers = self.id_map if self.id_map.ndim == 3 else self.id_map[None]
        flat = layers[0].clone()
        for layer in layers[1:]:
            flat = torch.where(flat == BACKGROUND, layer, flat)
        # Index -1 of `lookup` is background and -2 is void: ids shifted down by one land there by themselves.
        classes = lookup[flat.long() - 1]
        return classes.masked_fill(self.void, VOID)

    def merged_by_class(self) -> Segments:
        """One segment a class: the semantic targets of an instance-labelled image. Crowds join their class."""
        kept, rows = torch.unique(self.classes, return_inverse=True)
        lookup = torch.cat([rows.to(torch.int32) + 1, torch.tensor([VOID, BACKGROUND], dtype=torch.int32)])
        merged = lookup[self.id_map.long() - 1]
        if merged.ndim == 3:
            merged = Segments.flatten_layers(merged)
        return Segments.build(merged, kept, labels=self.labels, alpha=self.alpha)

    @staticmethod
    def flatten_layers(id_map: Tensor) -> Tensor:
        """[L, H, W] to [H, W]: the first layer with a segment wins, then void, then background."""
        flat = id_map[0].clone()
        for layer in id_map[1:]:
            flat = torch.where((flat <= BACKGROUND) & (layer != BACKGROUND), layer, flat)
        return flat

    def to(self, device: torch.device | str) -> Segments:
        """The same segments with all tensors on `device`."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@overload
def _tensor(values: Tensor | np.ndarray) -> Tensor: ...
@overload
def _tensor(values: None) -> None: ...
def _tensor(values: Tensor | np.ndarray | None) -> Tensor | None:
    """Arrays that may not be written to are copied: a tensor would share them and could not promise that."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    return None if values is None else torch.as_tensor(values)


def _check_table(ids: Tensor, rows: Tensor, labels: LabelMap | None) -> None:
    if ids.ndim not in (2, 3):
        raise DataError("an id map is [H, W] or [L, H, W]", where="Segments", why=f"got shape {tuple(ids.shape)}")
    lowest, highest = map(int, ids.aminmax()) if ids.numel() else (0, 0)
    if highest > len(rows) or lowest < VOID:
        why = f"ids go from {lowest} to {highest}, the table has {len(rows)} rows"
        raise DataError("the id map and its table do not agree", where="Segments", why=why)
    if labels and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(labels):
        why = f"classes go from {int(rows.min())} to {int(rows.max())}, the class table has {len(labels)}"
        raise DataError("a segment's class is not in the class table", where="Segments", why=why)


def _check_shape(name: str, values: Tensor | None, shape: Sequence[int]) -> None:
    if values is not None and tuple(values.shape) != tuple(shape):
        why = f"{name} has shape {tuple(values.shape)}, expected {tuple(shape)}"
        raise DataError("the parts of a segmentation do not agree", where=f"Segments.{name}", why=why)


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image as a reader gives it.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        segments: truth at the same size.
        name: unique in its data set; the file stem where that is unique.
    """

    image: np.ndarray
    segments: Segments
    name: str


@dataclass(frozen=True, eq=False)
class Prompts:
    """Explicit prompts for the objects of one image: clicks, and boxes as two corners.

    Attributes:
        points: float32 [P, 2].
        labels: int32 [P]: 1 on its object, 0 beside it, 2 and 3 the top left and bottom right pixel of its box, -1
            padding.
        objects: int64 [P], row of the `Segments` whose object it is for.
        classes: int64 [O], class index of each object; None where nobody said.
        masks: float32 [O, h, w], mask logits over the canvas that an earlier answer gave, to be improved on; None as a
            rule.
    """

    points: Tensor
    labels: Tensor
    objects: Tensor
    classes: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.points)

    @property
    def count(self) -> int:
        """O: the objects prompted for, also those without a point."""
        known = [len(rows) for rows in (self.classes, self.masks) if rows is not None]
        return max([*known, int(self.objects.max()) + 1 if len(self.objects) else 0])

    def padded(self, count: int) -> tuple[Tensor, Tensor]:
        """By object, as models take them: points float32 [O, P, 2] and labels int32 [O, P], filled up with -1.

        Args:
            count: O. An object without prompts is all padding.
        """
        order = torch.argsort(self.objects, stable=True)
        rows, counts = self.objects[order], torch.bincount(self.objects, minlength=count)
        columns = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        width = int(counts.max()) if len(rows) else 0
        points, labels = self.points.new_zeros(count, width, 2), self.labels.new_full((count, width), -1)
        points[rows, columns], labels[rows, columns] = self.points[order], self.labels[order]
        return points, labels

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts with all tensors on `device`."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model takes.

    Attributes:
        images: [B, 3, H, W] RGB, uint8 or float 0..255; the model normalises from its own buffers.
        letterboxes: how each photo lies on its canvas; beyond its content an image is padding.
        segments: truth on the canvas, void beyond the content; None at inference.
        names: one a sample, for messages.
        prompts: one a sample, on the canvas, for systems that take them; None where nobody prompts.
        seeds: one a sample, what its random draws in training begin from; empty leaves them to PyTorch's generator.
    """

    images: Tensor
    letterboxes: tuple[Letterbox, ...]
    segments: tuple[Segments, ...] | None = None
    names: tuple[str, ...] = ()
    prompts: tuple[Prompts, ...] | None = None
    seeds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Canvas (H, W)."""
        return self.images.shape[-2], self.images.shape[-1]

    def split(self, count: int) -> list[Batch]:
        """The same images in up to `count` batches of nearly the same size, in order."""
        if count == 1:
            return [self]
        edges = [n * len(self) // count for n in range(count + 1)]
        return [self._part(slice(*ends)) for ends in pairwise(edges) if ends[0] < ends[1]]

    def _part(self, part: slice) -> Batch:
        return replace(
            self,
            images=self.images[part],
            letterboxes=self.letterboxes[part],
            segments=self.segments and self.segments[part],
            names=self.names[part],
            prompts=self.prompts and self.prompts[part],
            seeds=self.seeds[part],
        )

    def truth(self) -> tuple[Segments, ...]:
        """`segments`, or a clear error where the batch has none."""
        if self.segments is None:
            raise DataError("this batch has no truth", where="Batch.segments", fix="Use a labelled data set.")
        return self.segments

    def valid(self, multiple: int = 32) -> Tensor | None:
        """bool [B, 1, H, W] of the pixels that belong to each image's own canvas, None where all do.

        An image's own canvas is its content rounded up to `multiple`: what the model would see if the image were
        alone. All beyond it exists only because of the image's neighbours in the batch and must not change a thing.
        """
        own = [(round_up(box.content[0], multiple), round_up(box.content[1], multiple)) for box in self.letterboxes]
        if all(size == self.size for size in own):
            return None
        valid = torch.zeros(len(self), 1, *self.size, dtype=torch.bool, device=self.images.device)
        for mask, (height, width) in zip(valid, own, strict=True):
            mask[:, :height, :width] = True
        return valid

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with all tensors on `device`."""
        segments = None if self.segments is None else tuple(s.to(device) for s in self.segments)
        prompts = None if self.prompts is None else tuple(p.to(device) for p in self.prompts)
        return replace(self, images=self.images.to(device), segments=segments, prompts=prompts)


class MaskDecoder(Protocol):
    """Predicted masks that exist only where somebody asks: at points for training, for chosen queries at inference."""

    def sample(self, points: Tensor) -> Tensor:
        """Mask logits [B, Q, P] at canvas points [B, P, 2]."""
        ...

    def decode(self, b: int, queries: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mask logits [q, H, W] of image `b`: its content, without padding, resampled to `size`.

        Args:
            queries: int64 [q].
            size: (H, W) of the answer; None gives the decoder's own resolution, content only.
        """
        ...

    def positions(self, b: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Where the pixel rows [H] and columns [W] of `size` lie among the cells that `decode` gives without a size.

        Floats from -0.5 to h - 0.5 and w - 0.5, border cells reaching out: bilinear interpolation there is what
        `decode` does with a size.
        """
        ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """What every model returns, before post-processing.

    Attributes:
        class_logits: [B, Q, K+1]; the last is "no object". None where classes come from elsewhere (prompts).
        masks: the late mask decoder.
        scores: [B, Q] quality logits of models that have them.
        boxes: [B, Q, 4] (cx, cy, w, h) relative to the image's content, of models that have them.
        aux: predictions of earlier decoder layers, for deep supervision.
        by_class: query k is class k for certain, and its mask all the evidence there is.
    """

    class_logits: Tensor
    masks: MaskDecoder
    scores: Tensor | None = None
    boxes: Tensor | None = None
    aux: tuple[Prediction, ...] = ()
    by_class: bool = False
