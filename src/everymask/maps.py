"""The id map as arrays: layers, areas, boxes, colours, and the pixel values of mask files."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from .errors import DataError
from .labels import distinct_color
from .types import BACKGROUND, Segments

Array = np.ndarray[Any, np.dtype[Any]]
Box = tuple[int, int, int, int]

GROUND_COLOR, VOID_COLOR = (0, 0, 0), (224, 224, 192)


def class_colors(segments: Segments) -> Array:
    """uint8 [K, 3] of the class table, or as many as the classes in use where there is no table.

    Black means "no colour given" (it is the default of `Label`) and would be invisible: such classes get one.
    """
    used = int(segments.classes.max()) + 1 if len(segments) else 0
    given = [label.color for label in segments.labels] if segments.labels else [(0, 0, 0)] * used
    colors = [color if any(color) else distinct_color(k) for k, color in enumerate(given)]
    return np.array(colors, np.uint8).reshape(-1, 3)


def segment_colors(segments: Segments) -> Array:
    """uint8 [N, 3]: the class colour for the first instance of a class, lighter and darker shades for the others."""
    base = class_colors(segments)[segments.classes.cpu().numpy()].astype(np.float32)
    # Steps of the golden ratio: consecutive instances, which are often neighbours, get shades far apart.
    tone = (0.5 + _rank_in_class(segments) * 0.618034) % 1 * 2 - 1
    light = np.clip(tone, 0, 1)[:, None] * 0.6
    dark = 1 + np.clip(tone, -1, 0)[:, None] * 0.6
    return np.round((base + (255 - base) * light) * dark).astype(np.uint8)


def id_layers(segments: Segments) -> Array:
    """int32 [L, H, W] in main memory, one layer where nothing overlaps."""
    ids: Array = segments.id_map.cpu().numpy().astype(np.int32, copy=False)
    return ids if ids.ndim == 3 else ids[None]


def segment_areas(segments: Segments) -> Array:
    """int64 [N]: pixels of each segment, in one pass over the id map."""
    counts = sum(np.bincount(layer.ravel() + 1, minlength=len(segments) + 2) for layer in id_layers(segments))
    return np.asarray(counts)[2:]


def segment_boxes(segments: Segments) -> list[Box | None]:
    """Tight boxes (x0, y0, x1, y1) of the N segments, corners inclusive, None where no pixel is left."""
    boxes: list[Box | None] = [None] * len(segments)
    for layer in id_layers(segments):
        for n, found in enumerate(ndimage.find_objects(layer, len(segments)) if boxes else []):
            if found:
                rows, columns = found
                box = columns.start, rows.start, columns.stop - 1, rows.stop - 1
                boxes[n] = _union(boxes[n] or box, box)
    return boxes


def id_map_image(segments: Segments) -> tuple[Array, Array | None]:
    """The id map as pixel values for a PNG, and its palette.

    Returns:
        uint8 [H, W] with void 255 and a palette uint8 [256, 3]; beyond 254 segments uint16 with void 65535 and None.
        0 is background and 1..N are the segments.

    Raises:
        DataError: two segments share a pixel, or more than 65534 segments.
    """
    layers = id_layers(segments)
    if len(layers) > 1 and ((layers > BACKGROUND).sum(0) > 1).any():
        why = f"the id map has {len(layers)} layers and some pixels belong to several segments"
        raise DataError("one image cannot hold overlapping segments", why=why, fix="Write one image a layer.")
    ids = segments.flatten_layers(segments.id_map) if len(layers) > 1 else segments.id_map
    colors = np.concatenate([[GROUND_COLOR], segment_colors(segments)])
    return _indexed(ids.reshape(segments.size).cpu().numpy(), len(segments), colors)


def class_map_image(segments: Segments) -> tuple[Array, Array | None]:
    """The semantic view as pixel values for a PNG, and its palette.

    Void and background never share a value: a pixel is the class index 0..K-1, K for background, 255 for void. Where
    layers overlap, the first wins.

    Returns:
        uint8 [H, W] and a palette uint8 [256, 3]; beyond 254 classes uint16 with void 65535 and None.
    """
    colors = class_colors(segments)
    count = len(colors)
    return _indexed(segments.class_map(count).cpu().numpy(), count, np.concatenate([colors, [GROUND_COLOR]]))


def void_value(pixels: Array) -> int:
    """What stands for void in an image of `id_map_image` or `class_map_image`: 255 or 65535."""
    return int(np.iinfo(pixels.dtype).max)


def _rank_in_class(segments: Segments) -> Array:
    """How many earlier segments have the same class, for each of the N."""
    classes = segments.classes.cpu().numpy()
    order = np.argsort(classes, kind="stable")
    ranks = np.empty(len(classes), np.int64)
    ranks[order] = np.arange(len(classes)) - np.searchsorted(classes[order], classes[order])
    return ranks


def _union(one: Box, other: Box) -> Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _indexed(values: Array, highest: int, colors: Array) -> tuple[Array, Array | None]:
    """Values -1..highest as uint8 with a palette or as uint16, -1 as the largest value of the type."""
    if highest > 65534:
        raise DataError("a 16-bit PNG cannot hold so many values", why=f"{highest} besides void, the limit is 65534")
    pixels = values.astype(np.uint8 if highest <= 254 else np.uint16)  # -1 wraps to 255 or 65535.
    if pixels.dtype == np.uint16:
        return pixels, None
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)], palette[255] = colors, VOID_COLOR
    return pixels, palette
