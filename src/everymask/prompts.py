"""Explicit prompts from masks: clicks on an object, clicks beside it, its box. And prompts that move with a geometry.

What holds, always:

- A positive point is on a pixel of its object.
- A negative point is on no pixel of its object's class, not even of another object or in another layer, and not on
  void: its truth is known and it is another one.
- A box that is not jittered is its object's tight box, corners inclusive. A jittered one stays inside the image.
- Crowds and objects without pixels get no prompts. Where every other pixel is of the same class or void, there are no
  negatives. Points of one kind do not repeat: an object that has fewer pixels than are asked for gets fewer.
- The random numbers of a kind depend on seed, sample name, the object's row and the kind alone: not on other objects,
  other kinds, the process or the order.

`move_prompts` keeps all of it, except that two points may meet in one pixel. "On a pixel" means: rounding both
coordinates gives the pixel.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .errors import UsageError
from .maps import id_layers, segment_areas, segment_boxes
from .transforms import Geometry, drop_absent
from .types import VOID, Prompts, Segments

Array = np.ndarray[Any, np.dtype[Any]]
Box = tuple[int, int, int, int]

NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
"""The labels of SAM 2."""

CORNERS = [TOP_LEFT, BOTTOM_RIGHT]

KINDS = ("box", "center", "uniform", "boundary", "negative")
"""In the order in which an object's prompts are given: SAM 2 wants the box first."""

OBJECTS = ("segment", "class", "component")

BAND = 2.0
"""Pixels: how far from the outside a point of the boundary may be."""

NEAR, NEAREST = 0.25, 10.0
"""A negative is near: within this share of the object's longer side, and anyhow within so many pixels."""

JITTER, LARGEST_JITTER = 0.1, 20.0
"""Box corners move by up to this share of the side, at most so many pixels: as in the training of SAM 2."""


@dataclass(frozen=True)
class PromptSettings:
    """Which prompts are drawn for each object.

    Attributes:
        kinds: of `KINDS`: the box; the center, which is the pixel deepest inside; points uniform over the object;
            points in a band along its boundary; negatives near it.
        count: points of each of the kinds uniform, boundary and negative.
        by: what an object is: a "segment", all of a "class", or a connected "component" (8 neighbours) of a segment.
        jitter: move the corners of boxes at random.
        least_area: objects of fewer pixels get no prompts.
    """

    kinds: tuple[str, ...] = ("box", "center")
    count: int = 3
    by: str = "segment"
    jitter: bool = False
    least_area: int = 1

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise _refused("kinds", ", ".join(unknown) or "there is none", KINDS)
        if self.by not in OBJECTS:
            raise _refused("by", self.by, OBJECTS)
        for name in ("count", "least_area"):
            if getattr(self, name) < 1:
                raise UsageError("a setting is out of range", where=name, why=f"{getattr(self, name)} is below 1")


def _refused(name: str, value: str, known: Sequence[str]) -> UsageError:
    return UsageError("a setting is unknown", where=name, why=value, fix=f"There are: {', '.join(known)}.")


# ---- objects ---------------------------------------------------------------------------------------------------------


def objects_of(segments: Segments, by: str = "segment") -> Segments:
    """The objects to prompt for, one a row. Layers stay; crowds become void: a click there would mean one of many.

    Args:
        by: one of `OBJECTS`.
    """
    kept = _without_crowds(segments)
    if by == "segment":
        return kept
    return _classes(kept) if by == "class" else _components(kept)


def _without_crowds(segments: Segments) -> Segments:
    if not bool(segments.is_crowd.any()):
        return drop_absent(segments)
    ids = torch.arange(1, len(segments) + 1, dtype=torch.int32)
    # Ids -1 and 0 read the two last entries.
    lookup = torch.cat([ids.masked_fill(segments.is_crowd, VOID), torch.tensor([VOID, 0], dtype=torch.int32)])
    return drop_absent(replace(segments, id_map=lookup[segments.id_map.long() - 1]))


def _classes(segments: Segments) -> Segments:
    """One object a class. Unlike `Segments.merged_by_class` it keeps the layers, so that no class covers another."""
    found, first, rows = np.unique(segments.classes.numpy(), return_index=True, return_inverse=True)
    lookup = torch.cat([torch.from_numpy(rows.astype(np.int32)) + 1, torch.tensor([VOID, 0], dtype=torch.int32)])
    return _rows(replace(segments, id_map=lookup[segments.id_map.long() - 1]), first)


def _components(segments: Segments) -> Segments:
    """One object for each connected part of each segment."""
    layers = id_layers(segments)
    parts, owners = np.minimum(layers, 0), list[int]()
    for n, box in enumerate(segment_boxes(segments)):
        if box:
            window = (slice(None), *_slices(box))
            inside = layers[window] == n + 1
            found, count = ndimage.label(inside.any(0), np.ones((3, 3)))
            parts[window][inside] = np.broadcast_to(found + len(owners), inside.shape)[inside]
            owners += [n] * count
    return _rows(replace(segments, id_map=torch.from_numpy(parts.reshape(segments.id_map.shape))), owners)


def _rows(segments: Segments, rows: Sequence[int] | Array) -> Segments:
    """The same id map with a table of these rows of the old one."""
    index = torch.as_tensor(np.asarray(rows, np.int64))
    return replace(
        segments,
        classes=segments.classes[index],
        is_thing=segments.is_thing[index],
        is_crowd=segments.is_crowd[index],
        scores=None if segments.scores is None else segments.scores[index],
    )


def _slices(box: Box) -> tuple[slice, slice]:
    """Rows and columns of a box whose corners are inclusive."""
    return slice(box[1], box[3] + 1), slice(box[0], box[2] + 1)


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw_prompts(
    objects: Segments, settings: PromptSettings, seed: int = 0, name: str = "", rows: Sequence[int] | None = None
) -> Prompts:
    """Prompts for each row of `objects`, in order of rows and, within a row, of `KINDS`.

    Args:
        objects: what `objects_of` gives, on the photo or on a canvas.
        name: of the sample; with the seed it decides the draws.
        rows: for these alone; None takes all that are large enough.
    """
    scene, sample = _Scene(objects), zlib.crc32(name.encode("utf-8", "surrogateescape"))
    found = []
    for n in scene.prompted(settings.least_area) if rows is None else rows:
        for order, kind in enumerate(KINDS):
            if kind in settings.kinds:
                points = scene.draw(n, kind, settings, np.random.default_rng((seed, sample, n, order)))
                label = NEGATIVE if kind == "negative" else POSITIVE
                found.append((n, CORNERS if kind == "box" else [label] * len(points), points))
    return _prompts(found)


def _prompts(found: Sequence[tuple[int, Sequence[int], Array]]) -> Prompts:
    """From row, labels and points [p, 2] of each object and kind."""
    points = np.concatenate([np.zeros((0, 2)), *(points for _, _, points in found)]).astype(np.float32)
    labels = [label for _, some, _ in found for label in some]
    rows = [row for row, some, _ in found for _ in some]
    return Prompts(torch.from_numpy(points), torch.tensor(labels, dtype=torch.int32), torch.tensor(rows).long())


class _Scene:
    """Objects, and what drawing needs to know of them, computed when first asked for."""

    def __init__(self, objects: Segments) -> None:
        self.objects, self.layers = objects, id_layers(objects)
        self.boxes, self.classes = segment_boxes(objects), objects.classes.numpy()
        self._allowed: dict[int, Array] = {}

    def prompted(self, least_area: int) -> list[int]:
        """Rows that get prompts."""
        large = segment_areas(self.objects) >= least_area
        rows: list[int] = np.flatnonzero(large & ~self.objects.is_crowd.numpy()).tolist()
        return rows

    def box(self, n: int) -> Box:
        """The tight box of a row that has pixels."""
        box = self.boxes[n]
        assert box is not None
        return box

    def mask(self, n: int, box: Box) -> Array:
        """bool [h, w]: the row's pixels in a box."""
        return np.asarray((self.layers[(slice(None), *_slices(box))] == n + 1).any(0))

    def allowed(self, n: int) -> Array:
        """bool [H, W]: where negatives of a row may be."""
        k = int(self.classes[n])
        if k not in self._allowed:
            same = (self.classes == k) | self.objects.is_crowd.numpy()
            # In the order of ids: void, background, rows.
            self._allowed[k] = ~np.array([True, False, *same])[self.layers + 1].any(0)
        return self._allowed[k]

    @property
    def whole(self) -> Box:
        """The box of the image."""
        height, width = self.objects.size
        return 0, 0, width - 1, height - 1

    def draw(self, n: int, kind: str, settings: PromptSettings, rng: np.random.Generator) -> Array:
        """Points [p, 2] of one kind."""
        box = self.box(n)
        if kind == "box":
            return jittered(box, self.objects.size, rng) if settings.jitter else _corners(box)
        if kind == "center":
            return self.center(n)
        if kind == "negative":
            return _picked(*self._near(n), settings.count, rng)
        mask = self.mask(n, box)
        return _picked(mask & (depth(mask) <= BAND) if kind == "boundary" else mask, box, settings.count, rng)

    def center(self, n: int) -> Array:
        """The pixel [1, 2] farthest from all that is outside the row, the first of several."""
        box = self.box(n)
        inside = depth(self.mask(n, box))
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        return np.array([[box[0] + x, box[1] + y]])

    def _near(self, n: int) -> tuple[Array, Box]:
        """Where negatives may be and are near enough, or the nearest there are: bool of a box, and the box."""
        (x0, y0, x1, y1), (_, _, right, bottom), allowed = self.box(n), self.whole, self.allowed(n)
        reach = max(NEAREST, NEAR * (1 + max(x1 - x0, y1 - y0)))
        r = int(reach)
        window = max(0, x0 - r), max(0, y0 - r), min(right, x1 + r), min(bottom, y1 + r)
        near = allowed[_slices(window)] & (_distance(self.mask(n, window)) <= reach)
        if near.any() or not allowed.any():
            return near, window
        distance = np.where(allowed, _distance(self.mask(n, self.whole)), np.inf)
        return distance <= distance.min() + reach, self.whole


def depth(mask: Array) -> Array:
    """Distance of each pixel of bool [H, W] to the nearest pixel outside the mask; beyond the border all is outside."""
    return np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1])


def _distance(mask: Array) -> Array:
    """Distance of each pixel to the nearest one of a mask that is not empty."""
    return np.asarray(ndimage.distance_transform_edt(~mask))


def _picked(mask: Array, box: Box, count: int, rng: np.random.Generator) -> Array:
    """Points [p, 2] of up to `count` different pixels of a mask that covers `box`."""
    pixels = np.flatnonzero(mask)
    y, x = np.divmod(pixels[rng.choice(len(pixels), min(count, len(pixels)), replace=False)], mask.shape[1])
    return np.stack([box[0] + x, box[1] + y], axis=1)


def _corners(box: Box) -> Array:
    return np.array(box, float).reshape(2, 2)


def _largest_jitter(box: Box) -> Array:
    """Along x and y."""
    return np.minimum(JITTER * np.array([box[2] - box[0], box[3] - box[1]]), LARGEST_JITTER)


def jittered(box: Box, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """The two corners [2, 2] of a box, moved at random, inside the image of `size` (H, W); to hundredths of a pixel."""
    moved = _corners(box) + rng.uniform(-1, 1, (2, 2)) * _largest_jitter(box)
    return moved.clip(0, [size[1] - 1, size[0] - 1]).round(2)


# ---- moving ----------------------------------------------------------------------------------------------------------


def move_prompts(prompts: Prompts, geometry: Geometry, objects: Segments) -> tuple[Prompts, Segments]:
    """Prompts and their objects on the canvas.

    Points go where the geometry says. Nearest resampling may have given the pixel there to a neighbour: such a point
    moves on to the nearest pixel where its label is true, so that two of them may meet. Points that the canvas does not
    show are dropped. An object that is still there but has lost all its positive points gets its center. Boxes are
    those of the moved objects, their jitter scaled along, so they shrink where the canvas cuts an object.

    Args:
        objects: what the prompts were drawn for.
    """
    alpha = None if objects.alpha is None else geometry.alpha(objects.alpha)
    moved = replace(objects, id_map=geometry.labels(objects.id_map, VOID), alpha=alpha)
    scene, before = _Scene(moved), segment_boxes(objects)
    rows = np.cumsum(segment_areas(moved) > 0) - 1
    found = []
    for n in prompts.objects.unique().tolist():
        if scene.boxes[n] is not None:
            own = prompts.objects == n
            some = _moved(prompts.points[own].double(), prompts.labels[own], geometry, scene, n, before[n])
            found += [(int(rows[n]), labels, points) for labels, points in some]
    return _prompts(found), drop_absent(moved)


def _moved(
    points: Tensor, labels: Tensor, geometry: Geometry, scene: _Scene, n: int, before: Box | None
) -> Iterator[tuple[list[int], Array]]:
    """Labels and points of the prompts of one object that is still there: box, positives, negatives."""
    if before and bool((labels == TOP_LEFT).any()):
        box, tight = points[labels >= TOP_LEFT][:2].reshape(1, 4), torch.tensor([before], dtype=torch.float64)
        jitter = (geometry.boxes(box) - geometry.boxes(tight)).reshape(2, 2).numpy()
        most, now = _largest_jitter(scene.box(n)), _corners(scene.box(n))
        yield CORNERS, (now + jitter.clip(-most, most)).clip(0, scene.whole[2:]).round(2)
    if bool((labels == POSITIVE).any()):
        inside = _snapped(points[labels == POSITIVE], geometry, scene.mask(n, scene.whole))
        inside = inside if len(inside) else scene.center(n)
        yield [POSITIVE] * len(inside), inside
    beside = _snapped(points[labels == NEGATIVE], geometry, scene.allowed(n))
    yield [NEGATIVE] * len(beside), beside


def _snapped(points: Tensor, geometry: Geometry, true: Array) -> Array:
    """Points moved, each to where bool [H, W] is True; without those that are not shown."""
    moved = geometry.points(points[geometry.shows(points)]).numpy()
    pixels = np.floor(moved + 0.5).astype(int).clip(0, [true.shape[1] - 1, true.shape[0] - 1])
    # A point on the line between two pixels would round one way here and another way there.
    unsure = (np.abs(moved - pixels) > 0.49).any(1)
    wrong = ~true[pixels[:, 1], pixels[:, 0]]
    if wrong.any():
        places = np.argwhere(true)[:, ::-1]
        if not len(places):
            return np.zeros((0, 2))
        pixels[wrong] = [places[((places - point) ** 2).sum(1).argmin()] for point in moved[wrong]]
    moved[wrong | unsure] = pixels[wrong | unsure]
    return moved
