"""Pascal VOC (Everingham et al. 2010): ``JPEGImages/``, ``SegmentationClass/``, ``SegmentationObject/``.

Masks are palette PNG: class 1 to 20, 0 background, 255 void (the white line around objects). Splits are lists of file
stems, ``ImageSets/Segmentation/{train,val,trainval}.txt``; photos that no list names are for other tasks. Without any
list, all photos need a mask. ``classes.json`` gives the classes of other data in this layout.

Where there is ``SegmentationObject/``, samples are instances: its numbers, each of the class that its pixels have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError
from ..image import list_images, read_mask
from ..labels import Label, LabelMap, distinct_color
from ..types import VOID, Segments
from .base import Sides, by_stem, pair
from .classes import ClassTable, find_table
from .folder import Folder
from .semantic import class_map

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
SYNONYMS = {
    "aeroplane": "airplane",
    "dining table": "diningtable",
    "motorbike": "motorcycle",
    "potted plant": "pottedplant",
    "sofa": "couch",
    "tv monitor": "tvmonitor",
}
LABELS = LabelMap(
    tuple(
        Label(name, distinct_color(k), True, k + 1, k + 1, (SYNONYMS[name],) if name in SYNONYMS else ())
        for k, name in enumerate(NAMES)
    ),
    void=(255,),
    background=(0,),
)
SPLITS = ("train", "val", "trainval", "test")
OUTLINE = 255
"""What ``SegmentationObject/`` has on the line around objects."""

DISAGREE = "Mend them, or read the classes alone: --option targets=semantic."


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    both = (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir()
    return "it has JPEGImages/ and SegmentationClass/" if both else None


def splits(root: Path) -> tuple[str, ...]:
    """The lists that name at least one photo with a mask: test photos usually have none."""
    masks = {path.stem for path in (root / "SegmentationClass").glob("*")}
    return tuple(split for split in SPLITS if masks & {*listed(root, split)})


def listed(root: Path, split: str) -> list[str]:
    """The file stems of a split; none where there is no such list."""
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        return path.read_text("utf-8-sig").split() if path.is_file() else []
    except (OSError, ValueError) as error:
        raise DataError("cannot read a list of photos", where=path, why=str(error)) from error


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem: those of the list, of all lists, or all there are if there is no list.

    Raises:
        DataError: a list names a photo of which neither file is there.
    """
    images, masks = by_stem(list_images(root / "JPEGImages")), by_stem(list_images(root / "SegmentationClass"))
    known = (split,) if split else splits(root)
    if not known:
        return images, masks
    stems = list(dict.fromkeys(stem for name in known for stem in listed(root, name)))
    if lost := [stem for stem in stems if stem not in images and stem not in masks]:
        why = f"{len(lost)}, the first is {lost[0][:100]!r}"
        raise DataError("a list names photos that are not there", where=root / "ImageSets", why=why)
    return {s: images[s] for s in stems if s in images}, {s: masks[s] for s in stems if s in masks}


class Objects(Folder):
    """Instances: numbers from ``SegmentationObject/``, their classes from ``SegmentationClass/``."""

    def files(self, index: int) -> tuple[Path, ...]:
        image, mask = self.pairs[index]
        return image, mask, object_file(mask)

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        classes, numbers = class_map(mask, self.table, path, path), read_mask(object_file(path))
        if classes.shape != numbers.shape:
            why = f"{list(classes.shape)} and {list(numbers.shape)}"
            raise DataError("the masks of classes and of objects differ in size", where=object_file(path), why=why)
        return object_segments(classes, numbers, self.labels, object_file(path))


def object_file(mask: Path) -> Path:
    """The mask of objects that belongs to a mask of classes."""
    return mask.parent.with_name("SegmentationObject") / mask.name


def object_segments(classes: np.ndarray, numbers: np.ndarray, labels: LabelMap, path: Path) -> Segments:
    """Instances from two maps [H, W]: what `LabelMap.classes_of` gives, and object numbers.

    Raises:
        DataError: the maps contradict each other: an object of two classes, or one map has something and the other not.
    """
    known = (classes != VOID) & (numbers != OUTLINE)
    something = (classes < len(labels)) & known
    if (something != (numbers != 0) & known).any():
        why = "where one has background, the other has something"
        raise DataError("the masks of classes and of objects disagree", where=path, why=why, fix=DISAGREE)
    found = np.unique(np.stack([numbers[something], classes[something]]), axis=1)
    ids, twice = np.unique(found[0], return_counts=True)
    if (twice > 1).any():
        why = f"object {ids[twice > 1][0]} has several classes"
        raise DataError("the masks of classes and of objects disagree", where=path, why=why, fix=DISAGREE)
    id_map = np.where(known, 0, VOID).astype(np.int32)
    id_map[something] = np.searchsorted(ids, numbers[something]) + 1
    return Segments.build(id_map, found[1].tolist(), labels=labels)


def open_split(
    root: Path,
    split: str,
    *,
    targets: Literal["auto", "instance", "semantic"] = "auto",
    classes: str | Path | None = None,
) -> Folder:
    """The reader of this format.

    Args:
        targets: what samples hold; "auto" takes instances where there is ``SegmentationObject/``.
        classes: file with the class table, instead of ``classes.json`` or VOC's own.
    """
    table = find_table(root, classes, "classes.json") or ClassTable(LABELS)
    instances = targets == "instance" or (targets == "auto" and (root / "SegmentationObject").is_dir())
    return (Objects if instances else Folder)(root, split, pair(*sides(root, split)), table)
