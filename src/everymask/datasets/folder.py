"""A folder of images and a folder of masks: ``images/`` + ``masks/``, paired by file stem.

Splits are folders (``train/images``, ``train/masks`` ...), or there are none. Without ``classes.json`` masks are
binary, 0 and 255 (or 0 and 1), and the class is "foreground". With it, values are classes::

    {"classes": [{"name": "road", "value": 3, "color": [128, 64, 128], "stuff": true}, ...],
     "void": [255], "background": [0]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..image import list_images
from ..labels import Label, LabelMap, distinct_color
from ..types import Segments
from .base import PairDataset, Sides, by_stem, pair, semantic_segments


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    for folder in (root, root / "train", root / "test", root / "val"):
        if (folder / "images").is_dir() and (folder / "masks").is_dir():
            return f"{folder.name}/ has images/ and masks/"
    return None


def splits(root: Path) -> tuple[str, ...]:
    """Names of the folders that hold ``images/``; none where `root` itself does."""
    return () if (root / "images").is_dir() else tuple(sorted(p.parent.name for p in root.glob("*/images")))


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    folder = split_folder(root, split)
    return by_stem(list_images(folder / "images")), by_stem(list_images(folder / "masks"))


BINARY = (
    LabelMap((Label("foreground", distinct_color(0), raw_pixel=1),), background=(0,)),
    LabelMap((Label("foreground", distinct_color(0), raw_pixel=255),), background=(0,)),
)
"""Tables of a mask without 255, and of one with it: never both, that would be three classes."""


class Folder(PairDataset):
    """Semantic masks: one value, or one colour, a class.

    Args:
        labels: the class table; None reads ``root/classes.json``, and takes masks as binary where there is none.
    """

    def __init__(
        self, root: Path, split: str, pairs: Sequence[tuple[Path, Path]], labels: LabelMap | None = None
    ) -> None:
        if labels is None and (root / "classes.json").is_file():
            labels = labels_from_json(root / "classes.json")
        self.binary = labels is None
        super().__init__(root, split, labels or BINARY[1], pairs)

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        table = BINARY[int(mask.max(initial=0)) > 1] if self.binary else self.labels
        return semantic_segments(table.classes_of(check_channels(mask, table, path), path), self.labels)


def check_channels(mask: np.ndarray, labels: LabelMap, path: Path) -> np.ndarray:
    """The mask, if it is of numbers [H, W], or of colours [H, W, 3] and so are the table's pixel values."""
    if mask.ndim == 3 and max(labels.pixel_classes(), default=0) <= 255:
        fix = "Save labels as a one-channel or palette PNG of class values."
        raise DataError("expected one label value a pixel", where=path, why="the mask is RGB", fix=fix)
    return mask


def split_folder(root: Path, split: str) -> Path:
    """``root/split`` where splits are folders ("" takes train, else the first), `root` where there are none."""
    known = splits(root)
    return root / (split or ("train" if "train" in known else known[0])) if known else root


def labels_from_json(path: Path) -> LabelMap:
    """The class table of a ``classes.json``.

    Raises:
        DataError: it is not JSON, or an entry lacks its name or is of another type; the message says which.
    """
    try:
        data: Any = json.loads(path.read_text())
    except ValueError as error:
        raise DataError("cannot read the class table", where=path, why=str(error)) from error
    rows = data.get("classes", []) if isinstance(data, dict) else data
    if not isinstance(rows, list) or not rows:
        raise DataError("expected a list of classes", where=path, why=f"found {rows!r}")
    labels = tuple(_label(row, k, path) for k, row in enumerate(rows))
    options = data if isinstance(data, dict) else {}
    background = _values(options.get("background", []), "background", path)
    # 255 is void where nothing is said and nothing else has this value.
    usual = [v for v in (255,) if v not in background and v not in {label.raw_pixel for label in labels}]
    void = _values(options.get("void", usual), "void", path)
    _check_distinct([int(label.raw_pixel or 0) for label in labels], void, background, path)
    return LabelMap(labels, void, background)


def _label(row: Any, index: int, path: Path) -> Label:
    if isinstance(row, str):
        row = {"name": row}
    if not isinstance(row, dict) or "name" not in row:
        raise DataError("a class needs a name", where=path, why=f"entry {index} is {row!r}")
    _values([row.get("value", index)], "value", path)
    if "color" in row and len(_values(row["color"], "color", path)) != 3:
        raise DataError("a colour has three numbers", where=path, why=f"entry {index} is {row!r}")
    label = Label(row["name"], distinct_color(index), not row.get("stuff", False), raw_pixel=row.get("value", index))
    return replace(label, color=tuple(row["color"])) if "color" in row else label


def _values(values: Any, name: str, path: Path) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise DataError("expected whole numbers", where=path, why=f'"{name}" is {values!r}', fix="As in [0, 255].")
    return tuple(values)


def _check_distinct(classes: Sequence[int], void: Sequence[int], background: Sequence[int], path: Path) -> None:
    every = [*classes, *set(void), *set(background)]
    repeated = sorted({value for value in every if every.count(value) > 1})
    if repeated:
        why = f"{', '.join(map(str, repeated))} among classes, void and background"
        raise DataError("a pixel value has two meanings", where=path, why=why, fix="Give each value once.")


def open_split(root: Path, split: str) -> Folder:
    """The reader of this format."""
    return Folder(root, split, pair(*sides(root, split)))
