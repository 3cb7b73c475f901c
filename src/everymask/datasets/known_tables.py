"""Class tables from names alone: checkpoints say what their classes are called, data sets which of them are stuff."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ..labels import Label, LabelMap, distinct_color
from .coco_classes import PANOPTIC, STUFF, THINGS

NO_CLASS = re.compile(r"N/A|LABEL_\d+")
"""What checkpoints call ids that their data set leaves out."""

ADE20K_BEGINS = ("wall", "building", "sky", "floor", "tree", "ceiling")
ADE20K_CLASSES = 150
ADE20K_STUFF = frozenset(
    {0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59}
    | {60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106}
    | {109, 113, 114, 117, 122, 128, 131, 140, 141, 145}
)
"""Positions of the 50 classes of stuff among the 150 of ADE20K's panoptic task; the others are its 100 things."""


def table_of_names(names: Sequence[str]) -> LabelMap:
    """A table of these classes in this order.

    Where all names are COCO's (things, panoptic, or COCO-Stuff), or the table is that of ADE20K, things and stuff are
    those of the data set, with COCO also colours, ids and synonyms. Of other tables, all classes are things. Names that
    repeat are numbered: "N/A", "N/A (2)".
    """
    unique = _numbered(names)
    if len(names) == ADE20K_CLASSES and tuple(map(_first_synonym, names[:6])) == ADE20K_BEGINS:
        return LabelMap(tuple(Label(name, distinct_color(k), k not in ADE20K_STUFF) for k, name in enumerate(unique)))
    real = {name for name in names if not NO_CLASS.fullmatch(name)}
    found = next((table for table in (THINGS, PANOPTIC, STUFF) if real <= set(table.names)), None)
    known = {label.name: replace(label, raw_pixel=None) for label in found or ()}
    return LabelMap(tuple(known.get(name) or Label(name, distinct_color(k)) for k, name in enumerate(unique)))


def table_of_coco_ids(count: int) -> LabelMap:
    """Classes whose index is the COCO category id, as DETR numbers them: 91 of detection, 250 with stuff."""
    known = {label.source_id: label.name for label in PANOPTIC}
    return table_of_names([known.get(k, "N/A") for k in range(count)])


def _first_synonym(name: str) -> str:
    """ADE20K has names such as "road, route"."""
    return name.split(",")[0].strip()


def _numbered(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique
