"""COCO's two ways to write a mask down, polygons and run lengths, to pixels; and masks that overlap to an id map.

Polygons are drawn by `hotcoco`, which gives pixel for pixel what pycocotools does. Run lengths go down the columns:
so many pixels off, so many on, and so forth. Nothing here knows of files: what is wrong with a mask comes out as a
`ValueError` that says it in words, to which the reader adds where.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask

Size = tuple[int, int]
"""(H, W)."""

MAX_GROUPS = 7
"""Most characters of one number in compressed run lengths: 35 bits, more than any image has pixels."""


def decode_mask(segmentation: Any, size: Size) -> np.ndarray:
    """The ``segmentation`` of a COCO annotation, whichever form it has, as bool [H, W].

    Raises:
        ValueError: it is none, or not one of an image of this size.
    """
    if isinstance(segmentation, dict):
        return rle_mask(segmentation, size)
    if isinstance(segmentation, list):
        return polygons_mask(segmentation, size)
    raise ValueError(f"expected polygons or run lengths, found {brief(segmentation)}")


# --- polygons ---------------------------------------------------------------------------------------------------------


def polygons_mask(polygons: list[Any], size: Size) -> np.ndarray:
    """The union of polygons ``[x0, y0, x1, y1, ...]`` as bool [H, W], drawn as COCO does.

    Coordinates are pixel edges: 0 is the left edge of the image, W its right edge. What reaches over the frame is cut.

    Raises:
        ValueError: no polygon, or one with other than numbers, with less than three points, or out of the frame.
    """
    if not polygons:
        raise ValueError("there is no polygon")
    outlines = [_outline(polygon, size, k).ravel().tolist() for k, polygon in enumerate(polygons)]
    merged = coco_mask.merge(coco_mask.frPyObjects(outlines, *size))
    return np.ascontiguousarray(coco_mask.decode(merged)).astype(bool)


def _outline(polygon: Any, size: Size, number: int) -> np.ndarray:
    """Points float64 [P, 2] (x, y) of a polygon that can be drawn."""
    try:
        points = _numbers(polygon).reshape(-1, 2)
        _check_extent(points, size)
    except ValueError as error:
        raise ValueError(f"polygon {number}: {error}") from None
    return points


def _numbers(polygon: Any) -> np.ndarray:
    if not isinstance(polygon, list) or not {*map(type, polygon)} <= {int, float}:
        raise ValueError(f"expected numbers [x0, y0, x1, y1, ...], found {brief(polygon)}")
    if len(polygon) % 2 or len(polygon) < 6:
        raise ValueError(f"three points or more have 6, 8, 10, ... numbers, this has {len(polygon)}")
    try:
        numbers = np.array(polygon, np.float64)
    except OverflowError:
        raise ValueError("a coordinate is too large") from None
    if not np.isfinite(numbers).all():
        raise ValueError("a coordinate is NaN or infinite")
    return numbers


def _check_extent(points: np.ndarray, size: Size) -> None:
    """Refuse what lies beside the frame, and outlines so long that nobody would live to see them drawn."""
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    extent, (height, width) = f"x {x0:g} to {x1:g}, y {y0:g} to {y1:g} in an image of {size[1]}x{size[0]}", size
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        raise ValueError(f"it lies outside the image ({extent})")
    if x0 < -width or y0 < -height or x1 > 2 * width or y1 > 2 * height:
        raise ValueError(f"it reaches further beyond the image than the image is wide or high ({extent})")
    length = np.abs(points - np.roll(points, 1, axis=0)).max(1).sum()
    if length > 10 * (height * width + height + width):
        raise ValueError(f"its outline of {length:,.0f} pixels is longer than any in {height * width:,} pixels")


# --- run lengths ------------------------------------------------------------------------------------------------------


def rle_mask(rle: dict[str, Any], size: Size) -> np.ndarray:
    """Run lengths ``{"size": [H, W], "counts": ...}``, a list of numbers or COCO's compressed text, as bool [H, W].

    Raises:
        ValueError: another size, or counts that are not of so many pixels.
    """
    claimed = rle.get("size")
    if claimed != [*size] or {*map(type, claimed)} != {int}:
        why = f'"size" is {brief(claimed)}, [height, width] of the image is {[*size]}'
        raise ValueError(f"run lengths of another size: {why}")
    counts = _counts(rle.get("counts"))
    total = int(counts.sum()) if len(counts) and counts.max() <= size[0] * size[1] else None
    if total != size[0] * size[1] or counts.min() < 0:
        raise ValueError(f"run lengths do not add up to the {size[0] * size[1]:,} pixels of {size[1]}x{size[0]}")
    return np.ascontiguousarray(np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T)


def _counts(counts: Any) -> np.ndarray:
    """int64 run lengths of either form; those that no image has are left to be found by their sum."""
    if isinstance(counts, str):
        return uncompressed(counts)
    if not isinstance(counts, list) or not {*map(type, counts)} <= {int}:
        raise ValueError(f'"counts" are whole numbers or compressed text, found {brief(counts)}')
    if min(counts, default=0) < 0:
        raise ValueError(f"a run length is negative: {brief(min(counts))}")
    # Larger ones would not fit; as the largest they make the sum wrong all the same.
    largest = np.iinfo(np.int64).max
    return np.array([min(count, largest) for count in counts], np.int64)


def uncompressed(text: str) -> np.ndarray:
    """int64 run lengths from COCO's compressed text.

    A character holds six bits above "0": five of a number, lowest first, and whether more follow. From the fourth
    number on, each is the difference to the one before last.

    Raises:
        ValueError: a character that does not occur in such text, an end inside a number, or a number beyond 35 bits.
    """
    characters = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - ord("0")
    if characters.size == 0 or characters.min() < 0 or characters.max() > 63 or characters[-1] & 32:
        raise ValueError(f"compressed run lengths are damaged or cut off: {brief(text)}")
    ends = np.flatnonzero(characters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - starts + 1
    if groups.max() > MAX_GROUPS:
        raise ValueError(f"a compressed run length has more than {MAX_GROUPS} characters")
    place = np.arange(len(characters)) - np.repeat(starts, groups)
    numbers = np.add.reduceat((characters & 31) << 5 * place, starts)
    numbers -= np.where(characters[ends] & 16, 1 << 5 * groups, 0)  # The highest bit is the sign.
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


# --- masks to one id map ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Crop:
    """A mask without the empty rows and columns around it: what is kept of it until all are known.

    Attributes:
        place: rows and columns of the image that `mask` covers.
        mask: bool [h, w].
        area: pixels that are on.
    """

    place: tuple[slice, slice]
    mask: np.ndarray
    area: int

    @classmethod
    def of(cls, mask: np.ndarray) -> Crop:
        """The crop of a mask bool [H, W]; an empty one of an empty mask."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        place = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else np.s_[:0, :0]
        inside = mask[place].copy()  # A view would keep the whole mask alive.
        return cls(place, inside, int(inside.sum()))


def layered(masks: Iterable[np.ndarray], size: Size) -> np.ndarray:
    """Masks bool [H, W] as an id map, int32 [H, W], or [L, H, W] with as many layers as overlaps ask for.

    The n-th mask is n. Greedy: the smallest mask first, each into the first layer where all its pixels are free. So
    small things come before what they lie on, also in views that take the first layer that has something.
    """
    crops = [Crop.of(mask) for mask in masks]
    layers = [np.zeros(size, np.int32)]
    for n in sorted(range(len(crops)), key=lambda n: crops[n].area):
        crop = crops[n]
        free = (layer for layer in layers if not layer[crop.place][crop.mask].any())
        layer = next(free, None)
        if layer is None:
            layer = np.zeros(size, np.int32)
            layers.append(layer)
        layer[crop.place][crop.mask] = n + 1
    return layers[0] if len(layers) == 1 else np.stack(layers)
