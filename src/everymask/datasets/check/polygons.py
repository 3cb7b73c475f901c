"""Polygons as annotation files hold them: COCO instances, YOLO text, LabelMe shapes. Frames, points and categories.

Independent of the readers: one may clip what leaves the frame, another stop at the first line that is wrong.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...labels import LabelMap
from ..coco_json import Entry, walk
from . import kinds
from .annotations import Sign, whole
from .panoptic import LISTS

TOLERANCE = 0.01
"""How far a point may lie beyond the frame, as a share of its side: annotation tools let outlines reach over it."""

MIN_NUMBERS = 6
"""Of three points."""


def polygon_sign(numbers: np.ndarray, width: float, height: float) -> Sign | None:
    """What is wrong with a polygon of coordinates [2 n] (x0, y0, x1, y1, ...) in a frame, None if nothing."""
    if len(numbers) % 2 or len(numbers) < MIN_NUMBERS:
        return kinds.POLYGON_DEGENERATE, f"{len(numbers)} coordinates"
    points = numbers.reshape(-1, 2)
    if len(np.unique(points, axis=0)) < MIN_NUMBERS // 2:
        return kinds.POLYGON_DEGENERATE, f"{len(np.unique(points, axis=0))} different points"
    low, high = points.min(0), points.max(0)
    slack = TOLERANCE * np.array([width, height])
    if (low < -slack).any() or (high > np.array([width, height]) + slack).any():
        corners = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
        return kinds.POLYGON_OUTSIDE, f"{corners} in {width:g} x {height:g}"
    return None


# --- COCO instances --------------------------------------------------------------------------------------------------


Images = dict[int | None, tuple[str, Any, Any]]
"""File name, width and height of images by id."""


class CocoShapes:
    """The polygons of a COCO instances file; only what is wrong is kept.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        images: Images = {}
        categories: set[int | None] = set()
        used, boxes = array("q"), array("d")  # Images and categories may come after the annotations.
        found: list[tuple[int | None, Sign]] = []
        for key, entry, _ in walk(path, LISTS):
            row = entry.value
            if key == "images":
                images[whole(row.get("id"))] = str(row.get("file_name")), row.get("width"), row.get("height")
            elif key == "categories":
                categories.add(whole(row.get("id")))
            else:
                found += [(whole(row.get("image_id")), sign) for sign in _shape_signs(entry)]
                _note(row, used, boxes)
        self._signs: dict[str, list[Sign]] = {}
        for image, sign in [*found, *_late_signs(used, boxes, images, categories)]:
            self._signs.setdefault(Path(images.get(image, ("", 0, 0))[0]).name, []).append(sign)

    def signs(self, files: tuple[Path, ...], size: tuple[int, int]) -> list[Sign]:
        """What is wrong with the polygons of an image."""
        return self._signs.get(files[0].name, [])

    def everything(self) -> Iterator[tuple[str, Sign]]:
        """What is wrong with the polygons of each image."""
        return ((name, sign) for name, signs in self._signs.items() for sign in signs)


def _polygons(row: dict[str, Any]) -> Iterator[np.ndarray | None]:
    """The polygons of an annotation, None for what is none; masks as run lengths have none."""
    shape = row.get("segmentation")
    for polygon in shape if isinstance(shape, list) else ():
        try:
            yield np.array(polygon, np.float64).reshape(-1)
        except (TypeError, ValueError):
            yield None


def _shape_signs(entry: Entry) -> Iterator[Sign]:
    for polygon in _polygons(entry.value):
        sign: Sign | None = (kinds.POLYGON_DEGENERATE, "no numbers")
        if polygon is not None:
            sign = polygon_sign(polygon, np.inf, np.inf)  # The frame comes later.
        if sign and sign[0] is kinds.POLYGON_DEGENERATE:
            yield sign[0], f"annotation {entry.value.get('id')}: {sign[1]}"


def _note(row: dict[str, Any], used: array[int], boxes: array[float]) -> None:
    """Keep six numbers of an annotation: its id, image and category, and the box around its points."""
    ids = [whole(row.get(key)) for key in ("id", "image_id", "category_id")]
    known = [id for id in ids if id is not None and abs(id) < 1 << 62]
    if len(known) == len(ids):
        points = [p.reshape(-1, 2) for p in _polygons(row) if p is not None and len(p) and len(p) % 2 == 0]
        all_points = np.concatenate(points) if points else np.zeros((1, 2))
        used.extend(known)
        boxes.extend([*all_points.min(0), *all_points.max(0)])


def _late_signs(
    used: array[int], boxes: array[float], images: Images, categories: set[int | None]
) -> Iterator[tuple[int, Sign]]:
    rows = np.array(used, np.int64).reshape(-1, 3)
    for (id, image, category), box in zip(rows.tolist(), np.array(boxes).reshape(-1, 4).tolist(), strict=True):
        if category not in categories:
            yield image, (kinds.UNKNOWN_CATEGORY, f"annotation {id}: category {category}")
        _, width, height = images.get(image, ("", None, None))
        if isinstance(width, int) and isinstance(height, int):
            x0, y0, x1, y1 = box
            sign = polygon_sign(np.array([x0, y0, x1, y0, x1, y1, x0, y1]), width, height)
            if sign and sign[0] is kinds.POLYGON_OUTSIDE:
                yield image, (sign[0], f"annotation {id}: {sign[1]}")


# --- a file for each image -------------------------------------------------------------------------------------------


class TextFiles:
    """The polygons of YOLO and LabelMe files, of which each photo has one.

    Args:
        labels: the classes that there are.
    """

    def __init__(self, labels: LabelMap) -> None:
        self.known = {str(label.source_id) for label in labels}

    def signs(self, files: tuple[Path, ...], size: tuple[int, int]) -> list[Sign]:
        """What is wrong with the polygons of a photo."""
        path = files[-1]
        if path.suffix == ".txt":
            return yolo_signs(path, self.known)
        return labelme_signs(path, size) if path.suffix == ".json" else []

    def everything(self) -> Iterator[tuple[str, Sign]]:
        """Nothing: without the reader, nobody knows which files there are."""
        return iter(())


def yolo_signs(path: Path, known: Collection[str]) -> list[Sign]:
    """What is wrong with the lines of a YOLO label file; coordinates are shares of the frame."""
    signs: list[Sign] = []
    for number, line in enumerate(_lines(path), 1):
        name, *texts = line.split() or [""]
        if name and name not in known:
            signs.append((kinds.UNKNOWN_CATEGORY, f"line {number}: class {name[:40]}"))
        sign = _yolo_sign(texts) if name else None
        if sign:
            signs.append((sign[0], f"line {number}: {sign[1]}"))
    return signs


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError):
        return []  # The reader says why.


def _yolo_sign(texts: list[str]) -> Sign | None:
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return polygon_sign(numbers, 1, 1) if np.isfinite(numbers).all() else None


def labelme_signs(path: Path, size: tuple[int, int]) -> list[Sign]:
    """What is wrong with the polygons of a LabelMe file.

    Args:
        size: of the photo (H, W), (0, 0) if its reader refused the sample: then the file's own word is taken.
    """
    try:
        data = json.loads(path.read_bytes())
        height, width = size if any(size) else (float(data["imageHeight"]), float(data["imageWidth"]))
        shapes = data["shapes"]
        polygons = [(n, s["points"]) for n, s in enumerate(shapes) if s.get("shape_type", "polygon") == "polygon"]
        arrays = [(n, np.array(points, np.float64).reshape(-1)) for n, points in polygons]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []  # The reader says why.
    signs = [(n, polygon_sign(numbers, width, height)) for n, numbers in arrays]
    return [(sign[0], f"shape {n}: {sign[1]}") for n, sign in signs if sign]
