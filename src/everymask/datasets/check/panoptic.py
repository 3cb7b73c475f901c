"""Panoptic JSON against its PNG files: ids, areas and boxes, counted anew from the pixels.

Independent of the reader, which stops at the first thing that is wrong.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EverymaskError
from ...image import read_mask
from ...labels import packed
from ..coco_json import read_again, walk
from . import kinds
from .annotations import Sign, whole

LISTS = ("images", "annotations", "categories")

BOX_TOLERANCE = 1
"""Pixels by which a box may differ: some tools leave out the last row and column."""

NAMED = 4
"""Segments named in the particulars of one image."""


class PanopticFile:
    """The entries of a panoptic JSON by the name of their PNG; of each, only its place in the file is kept.

    Args:
        folder: of the PNG files.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.categories: set[int | None] = set()
        self.names: list[str] = []
        self._spans = array("q")
        for key, entry, span in walk(path, LISTS):
            if key == "categories":
                self.categories.add(whole(entry.value.get("id")))
            elif key == "annotations" and isinstance(entry.value.get("file_name"), str):
                self.names.append(entry.value["file_name"])
                self._spans.extend(span)
        self._position = {name: n for n, name in enumerate(self.names)}

    def signs(self, files: tuple[Path, ...], size: tuple[int, int]) -> list[Sign]:
        """What is wrong with the segments of a sample."""
        name = files[1].relative_to(self.folder).as_posix()
        if not files[1].is_file():
            return [(kinds.MISSING_FILE, f"{self.folder.name}/{name}")]
        position = self._position.get(name)
        if position is None:
            return []
        try:
            span = self._spans[2 * position], self._spans[2 * position + 1]
            (entry,) = read_again(self.path, {"annotations": span})
            rows = entry.value.get("segments_info")
            colors = read_mask(files[1])
        except EverymaskError:
            return []  # The reader says why.
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or colors.ndim != 3:
            return []
        return [*_row_signs(rows, self.categories), *_pixel_signs(rows, packed(colors))]

    def everything(self) -> Iterator[tuple[str, Sign]]:
        """What is wrong with the segments of each PNG."""
        for name in self.names:
            for sign in self.signs((Path(), self.folder / name), (0, 0)):
                yield name, sign


def _row_signs(rows: list[dict[str, Any]], categories: set[int | None]) -> list[Sign]:
    counts = Counter(whole(row.get("id")) for row in rows)
    classes = [(row.get("id"), whole(row.get("category_id"))) for row in rows]
    strange = [f"segment {id}: category {category}" for id, category in classes if category not in categories]
    return [
        *_sign(kinds.DUPLICATE_SEGMENT, [f"segment {id}" for id, count in counts.items() if count > 1]),
        *_sign(kinds.UNKNOWN_CATEGORY, strange),
    ]


def _pixel_signs(rows: list[dict[str, Any]], ids: np.ndarray) -> list[Sign]:
    """What differs between the rows of the JSON and the ids [H, W] of the PNG, 0 being void."""
    values, areas, boxes = extents(ids)
    drawn = {int(v): (int(a), tuple(b)) for v, a, b in zip(values, areas, boxes.tolist(), strict=True) if v}
    listed = {row["id"]: row for row in rows if whole(row.get("id")) is not None}
    common = [(row, *drawn[id]) for id, row in listed.items() if id in drawn]
    wrong_areas = [f"segment {row['id']}: {row['area']} in the JSON, {area} pixels"
                   for row, area, _ in common if "area" in row and row["area"] != area]  # fmt: skip
    wrong_boxes = [f"segment {row['id']}: {row['bbox']} in the JSON, {list(box)} in the PNG"
                   for row, _, box in common if "bbox" in row and not _same_box(row["bbox"], box)]  # fmt: skip
    return [
        *_sign(kinds.SEGMENT_NOT_LISTED, [f"segment {id}" for id in drawn if id not in listed]),
        *_sign(kinds.SEGMENT_WITHOUT_PIXELS, [f"segment {id}" for id in listed if id not in drawn]),
        *_sign(kinds.WRONG_AREA, wrong_areas),
        *_sign(kinds.WRONG_BOX, wrong_boxes),
    ]


def _sign(kind: kinds.Kind, particulars: list[str]) -> list[Sign]:
    more = [f"and {len(particulars) - NAMED} more"] if len(particulars) > NAMED else []
    return [(kind, "; ".join([*particulars[:NAMED], *more]))] if particulars else []


def _same_box(said: Any, box: tuple[int, ...]) -> bool:
    try:
        return bool(np.abs(np.array(said, float) - box).max() <= BOX_TOLERANCE)
    except (TypeError, ValueError):
        return False


def extents(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different values of a map int [H, W], their areas [n] and boxes [n, 4] (x, y, width, height).

    Neighbours mostly are equal, so what is sorted are runs within rows, not pixels.
    """
    height, width = ids.shape
    flat = ids.ravel()
    begins = np.ones(len(flat), bool)
    begins[1:] = flat[1:] != flat[:-1]
    begins[::width] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(flat))
    values, which = np.unique(flat[starts], return_inverse=True)
    order = np.argsort(which, kind="stable")
    groups = np.searchsorted(which[order], np.arange(len(values)))
    rows, left = np.divmod(starts[order], width)
    right = left + lengths[order]
    x, y = np.minimum.reduceat(left, groups), np.minimum.reduceat(rows, groups)
    boxes = np.stack([x, y, np.maximum.reduceat(right, groups) - x, np.maximum.reduceat(rows, groups) + 1 - y], 1)
    return values, np.add.reduceat(lengths[order], groups), boxes
