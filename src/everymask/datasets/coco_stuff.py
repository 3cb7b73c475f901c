"""COCO-Stuff: ``images/{train,val}2017`` + PNG maps of 171 classes, in one of two id spaces that look alike.

Training maps, ``annotations_detectron2/{train,val}2017``, hold positions in the class table, 0 to 170. Published maps,
``stuffthingmaps/``, ``stuffthingmaps_trainval2017/`` or ``annotations/``, hold category ids minus one, 0 to 181 with
gaps. In both 255 is void. A pixel of 17 is a horse in the former and a dog in the latter, so the folder's name decides
and the values must agree: some maps are looked at when the data set is opened, and each when it is read. Where both are
there, the training maps are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..image import list_images, read_mask
from ..labels import LabelMap
from ..types import Segments
from .base import PairDataset, Sides, by_stem, pair, semantic_segments
from .classes import ClassTable
from .coco_classes import STUFF, STUFF_TRAINING
from .semantic import class_map

TRAINING = "annotations_detectron2"
PUBLISHED = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
YEAR = "2017"
PROBES = 32
"""Maps that are looked at when a data set is opened, spread over it: other maps than claimed show in most of them."""


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, and which of the two id spaces is read; None if it is not."""
    found = map_folder(root)
    if found is None:
        return None
    folder, table = found
    if table is STUFF:
        return f"{folder.name}/ has published maps: a pixel is the category id minus one"
    others = [f"{name}/" for name in PUBLISHED if _splits(root / name)]
    beside = f"; the published maps in {', '.join(others)} are not read" if others else ""
    return f"{folder.name}/ has training maps: a pixel is the position in the table of classes{beside}"


def splits(root: Path) -> tuple[str, ...]:
    """Those of "train" and "val" that have maps."""
    found = map_folder(root)
    return _splits(found[0]) if found else ()


def map_folder(root: Path) -> tuple[Path, LabelMap] | None:
    """The folder of maps that is read, and what their pixels mean."""
    tables = {TRAINING: STUFF_TRAINING} | dict.fromkeys(PUBLISHED, STUFF)
    return next(((root / name, table) for name, table in tables.items() if _splits(root / name)), None)


def _splits(folder: Path) -> tuple[str, ...]:
    """Splits that have a PNG below a folder; other data has folders of these names too."""
    return tuple(split for split in ("train", "val") if any((folder / f"{split}{YEAR}").glob("*.png")))


def sides(root: Path, split: str) -> Sides:
    """Image files and maps by stem."""
    folder, _ = _maps(root)
    name = f"{split or _splits(folder)[0]}{YEAR}"
    images = root / "images" / name
    return by_stem(list_images(images if images.is_dir() else root / name)), by_stem(list_images(folder / name))


def _maps(root: Path) -> tuple[Path, LabelMap]:
    if found := map_folder(root):
        return found
    fix = f"Expected {TRAINING}/train{YEAR}/*.png or {PUBLISHED[0]}/train{YEAR}/*.png."
    raise DataError("no pixel maps of COCO-Stuff", where=root, fix=fix)


class CocoStuff(PairDataset):
    """Semantic truth of 171 classes; "" takes "train", or the first split there is.

    Raises:
        DataError: orphans, or maps of the other id space than their folder's name says.
    """

    def __init__(self, root: Path, split: str = "") -> None:
        super().__init__(root, split, STUFF, pair(*sides(root, split)))
        self.table = ClassTable(_maps(root)[1])
        for number in np.unique(np.linspace(0, len(self) - 1, PROBES).round().astype(int)):
            path = self.pairs[number][1]
            self._classes(read_mask(path), path)

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        return semantic_segments(self._classes(mask, path), self.labels)

    def mask_table(self, mask: np.ndarray, path: Path) -> ClassTable:
        return self.table

    def _classes(self, mask: np.ndarray, path: Path) -> np.ndarray:
        try:
            return class_map(mask, self.table, path, path)
        except DataError as error:
            raise _of_other_maps(error, self.table.labels) if mask.ndim == 2 else error from None


def _of_other_maps(error: DataError, table: LabelMap) -> DataError:
    """The error for an unknown value, with what it means here."""
    holds = "category ids minus one, 0 to 181 with gaps" if table is STUFF else "training ids, 0 to 170"
    other = "training" if table is STUFF else "published"
    why = f"{error.why.partition(';')[0]}; maps in this folder hold {holds}, and 255"
    folders = TRAINING if table is STUFF else " or ".join(PUBLISHED)
    fix = f"If it is a {other} map, move its folder to {folders}/; they must not be mixed."
    return DataError(error.what, where=error.where, why=why, fix=fix)


def open_split(root: Path, split: str) -> CocoStuff:
    """The reader of this format."""
    return CocoStuff(root, split)
