"""The class tables of COCO: 80 things, 133 panoptic classes, 171 of COCO-Stuff.

Names and ids are those of the published files (COCO 2017, its panoptic task of 2018, and COCO-Stuff by Caesar et al.
2018, whose list has 182 ids of which 11 occur nowhere); colours are those of the panoptic task. `Label.source_id` is
the COCO category id. COCO-Stuff comes in two kinds of pixel maps, for which there are two tables::

    class    category id    pixel of a published map    pixel of a training map = position in the table
    cat      17             16                          15
    dog      18             17                          16
    horse    19             18                          17

Both kinds have 255 where nothing is labelled, which is void.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..labels import Label, LabelMap, distinct_color

UNLABELLED = 255
"""Pixel value of void in the maps of COCO-Stuff, of both kinds."""

Row = Mapping[str, Any]


def _label(row: Row, is_thing: bool, color: Iterable[int]) -> Label:
    red, green, blue = color
    return Label(
        row["name"], (red, green, blue), is_thing, source_id=row["id"], synonyms=tuple(row.get("synonyms", ()))
    )


def _stuff_label(row: Row, position: int, panoptic: Mapping[str, Label]) -> Label:
    """A class of COCO-Stuff in the colour that it, or the class it was merged into, has in the panoptic task."""
    known = panoptic.get(row["name"]) or panoptic.get(f"{row['name']}-merged")
    return _label(row, False, known.color if known else distinct_color(position))


def _published(labels: Iterable[Label]) -> tuple[Label, ...]:
    return tuple(replace(label, raw_pixel=(label.source_id or 0) - 1) for label in labels)


_ROWS = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
_THINGS = tuple(_label(row, True, row["color"]) for row in _ROWS["things"])
_MERGED = tuple(_label(row, False, row["color"]) for row in _ROWS["panoptic_stuff"])
_STUFF = tuple(
    _stuff_label(row, position, {label.name: label for label in _MERGED})
    for position, row in enumerate(_ROWS["stuff"], start=len(_THINGS))
)

THINGS = LabelMap(_THINGS)
"""The 80 classes of instances, category ids 1 to 90."""

PANOPTIC = LabelMap(_THINGS + _MERGED)
"""The 133 classes of the panoptic task: the things and 53 of stuff, category ids 92 to 200."""

STUFF = LabelMap(_published(_THINGS + _STUFF), void=(UNLABELLED,))
"""The 171 classes of COCO-Stuff: the things and 91 of stuff, category ids 92 to 182. Its pixels are published ones."""

STUFF_TRAINING = replace(STUFF, labels=tuple(replace(label, raw_pixel=k) for k, label in enumerate(STUFF)))
"""The same classes for training maps, where a pixel is the position in the table."""
