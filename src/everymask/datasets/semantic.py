"""Semantic masks to class indices, whichever way a data set writes classes: values, colours, or 0 and 255."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..image import read_palette
from ..labels import Label, LabelMap, distinct_color, packed
from .classes import ClassTable

BINARY = (
    LabelMap((Label("foreground", distinct_color(0), raw_pixel=1),), background=(0,)),
    LabelMap((Label("foreground", distinct_color(0), raw_pixel=255),), background=(0,)),
)
"""Tables of a mask without 255, and of one with it: never both, that would be three classes."""


def class_map(mask: np.ndarray, table: ClassTable | None, source: Path | bytes, where: object) -> np.ndarray:
    """What `LabelMap.classes_of` gives, int64 [H, W]: class index, -1 void, the number of classes for background.

    Args:
        mask: what `read_mask` gave for `source`.
        table: None for binary masks.
        where: the file, for messages.

    Raises:
        DataError: a value or colour that the table does not know, or colours where values are due or the reverse.
    """
    if table and table.by_color:
        return color_classes(colors_of(mask, source, where), table.labels, where)
    if mask.ndim == 3:
        fix = "Save labels as a one-channel or palette PNG of class values, or give each class its colour and no value."
        raise DataError("expected one label value a pixel", where=where, why="the mask is RGB", fix=fix)
    labels = table.labels if table else binary_table(mask)
    return labels.classes_of(mask, where)


def binary_table(mask: np.ndarray) -> LabelMap:
    """The one of `BINARY` that a mask of values is of."""
    return BINARY[int(mask.max(initial=0)) > 1]


def colors_of(mask: np.ndarray, source: Path | bytes, where: object) -> np.ndarray:
    """The colours [H, W, 3] of a mask that has them, or whose values index a palette.

    Raises:
        DataError: the mask is grey, or its palette ends too early.
    """
    if mask.ndim == 3:
        return mask
    palette = read_palette(source)
    if palette is None:
        fix = 'Its class table gives colours and no values: add a "value" to each class.'
        raise DataError("expected one colour a class", where=where, why="the mask is grey", fix=fix)
    if (highest := int(mask.max(initial=0))) >= len(palette):
        why = f"value {highest}, the palette has {len(palette)} colours"
        raise DataError("a value is beyond the palette", where=where, why=why, fix="Export the mask again.")
    return np.array(palette, np.uint8)[mask]


def color_classes(colors: np.ndarray, labels: LabelMap, where: object) -> np.ndarray:
    """`LabelMap.classes_of` for colours uint8 [H, W, 3], with an error that speaks of colours.

    Raises:
        DataError: a colour that the table does not know.
    """
    try:
        return labels.classes_of(colors, where)
    except DataError as error:
        found, counts = np.unique(packed(colors), return_counts=True)
        unknown = [v for v in found[np.argsort(-counts)].tolist() if labels.meaning(v) == "unknown"]
        shown = ", ".join(map(hex_color, unknown[:8])) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        known = ", ".join(f"{hex_color(v)} {labels.meaning(v)}" for v in labels.pixel_classes())
        why, fix = f"found {shown}; the table knows {known}", "Give a table that is right: --option classes=FILE."
        raise DataError("unknown colour in a mask", where=where, why=why, fix=fix) from error


def hex_color(pixel: int) -> str:
    """``#RRGGBB`` of a colour that is one number, as `labels.packed` makes it."""
    return f"#{pixel.to_bytes(3, 'little').hex().upper()}"
