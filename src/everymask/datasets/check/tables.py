"""The tables of a report: what each pixel value means, and how much there is of each class."""

from __future__ import annotations

from collections import Counter

from ...labels import LabelMap
from ..semantic import hex_color
from .examine import BACKGROUND_ROW
from .report import ClassRow, ValueRow
from .survey import Survey
from .tally import Tally

VOID_ROW = -1
MOST_VALUES = 300
"""Rows of the table of values; masks with more hold no class numbers."""


def value_rows(tally: Tally, labels: LabelMap | None) -> list[ValueRow]:
    """One row a raw mask value: those that occur, and classes that do not; by value, colours by their pixels."""
    rows = {
        value: (" or ".join(sorted(filter(None, seen.meanings))) or "unknown", seen.pixels, seen.images)
        for value, seen in tally.values.items()
    }
    if labels and tally.values:
        rows = {value: (labels.meaning(value), 0, 0) for value in labels.pixel_classes()} | rows
    order = sorted(rows, key=lambda value: -rows[value][1]) if tally.by_color else sorted(rows)
    text = hex_color if tally.by_color else str
    return [ValueRow(text(value), *rows[value]) for value in order[:MOST_VALUES]]


def class_rows(tally: Tally, labels: LabelMap | None) -> list[ClassRow]:
    """One row a class, then background and void where there are any."""
    if labels is None or not tally.class_pixels:
        return []
    total = max(1, tally.class_pixels.total())
    names = [(k, label.name) for k, label in enumerate(labels)]
    names += [(k, name) for k, name in ((BACKGROUND_ROW, "background"), (VOID_ROW, "void")) if tally.class_pixels[k]]
    return [_class_row(tally, k, name, total) for k, name in names]


def _class_row(tally: Tally, k: int, name: str, total: int) -> ClassRow:
    pixels, sizes = tally.class_pixels[k], tally.sizes.get(k, Counter())
    powers = sorted(sizes.elements())
    median, smallest = (1 << powers[len(powers) // 2], 1 << powers[0]) if powers else (0, 0)
    return ClassRow(name, pixels, pixels / total, tally.class_images[k], len(powers), median, smallest)


def mask_note(tally: Tally, survey: Survey) -> str:
    """What the masks hold, where that is no table of values."""
    if tally.values:
        return ""
    sample = "each sample's segments come from its annotation"
    return sample if any(part.pairs is None for part in survey.parts) else "object numbers or mattes: not class values"
