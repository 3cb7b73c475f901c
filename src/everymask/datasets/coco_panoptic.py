"""COCO panoptic: ``panoptic_val2017.json`` + a folder of that name with a PNG of segment ids for each image.

Layouts: annotation files and their folders in ``annotations/`` (as published), in ``panoptic/`` or at the root; the
folders of PNG files also at the root while the JSON is in ``annotations/``. Images are in ``val2017/``,
``images/val2017/``, ``images/`` or ``input_images/``.

A pixel of a PNG is R + 256 G + 65536 B: 0 is void, any other number is the id of a segment in the JSON. Both must know
the same segments. They become rows in the order of the JSON, with their class and whether they are a crowd.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..image import list_images, read_image
from ..types import Sample, Segments
from .base import Dataset, Sides, by_stem, check_same_size
from .coco_index import CocoIndex
from .coco_json import Entry
from .coco_layout import by_split, find_images, image_folder, image_folders, is_inside, sample_names, split_names
from .layout import chosen
from .segment_ids import LARGEST_ID, Rows, read_rows

FOLDERS = ("annotations", "panoptic", ".")
VERSIONS = "JSON and PNG files are of different versions, or the PNG was resized or edited."

# --- layout -----------------------------------------------------------------------------------------------------------


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    path = next(iter(annotation_files(root).values()), None)
    return f"it has {path.relative_to(root)} and {png_folder(root, path).relative_to(root)}/" if path else None


def splits(root: Path) -> tuple[str, ...]:
    """Splits by the names of the annotation files; none of a single file of another name."""
    return split_names(annotation_files(root))


def annotation_files(root: Path) -> dict[str, Path]:
    """The annotation files that have their folder of PNG files, by split."""
    found = [path for folder in FOLDERS for path in sorted((root / folder).glob("panoptic_*.json"))]
    having = [path for path in found if png_folder(root, path).is_dir()]
    return by_split(having, [image_folder(path) for path in having])


def png_folder(root: Path, path: Path) -> Path:
    """The folder of PNG files of an annotation file: beside it, or at the root."""
    return beside if (beside := path.with_suffix("")).is_dir() else root / path.stem


def sides(root: Path, split: str) -> Sides:
    """Image files and PNG files by stem."""
    path = chosen(annotation_files(root), split, root)
    folders = image_folders(root, image_folder(path), path)
    return by_stem(list_images(folders[0])), by_stem(list_images(png_folder(root, path)))


# --- the reader -------------------------------------------------------------------------------------------------------


class CocoPanoptic(Dataset):
    """Things and stuff of one annotation file.

    Raises:
        DataError: JSON and files do not fit together; the message names file and entry.
    """

    def __init__(self, root: Path, split: str = "") -> None:
        path = chosen(annotation_files(root), split, root)
        self.root, self.split = root, split
        self.index = CocoIndex(path, ("image_id",), unique="image_id", text="file_name")
        self.labels = self.index.labels
        self.images = find_images(self.index, image_folders(root, image_folder(path), path))
        self.pngs = find_pngs(self.index, png_folder(root, path))
        self.names = sample_names(image.file_name for image in self.index.images)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.images[index], self.pngs[index], self.index.path

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        (annotation,) = self.index.annotations(index)
        photo, png = self.files(index)[:2]
        image, rows = read_image(photo), read_rows(png, _segment_ids(annotation.inner("segments_info")))
        self.index.check_size(index, image, photo)
        check_same_size(image, rows.id_map, photo, png)
        return Sample(image, self._segments(rows, annotation, png), self.names[index])

    def _segments(self, rows: Rows, annotation: Entry, png: Path) -> Segments:
        (id_map, unknown, absent), entries = rows, annotation.inner("segments_info")
        if unknown:
            why = f"found {_listed(unknown)}; {annotation.path.name}, {annotation.place} has no such segment"
            raise DataError("a segment id is in the PNG alone", where=png, why=why, fix=VERSIONS)
        if absent:
            raise entries[absent[0]].error("a segment has no pixel", f"in {png}; {len(absent)} in all", VERSIONS)
        classes = [self.index.class_index(entry) for entry in entries]
        crowd = [entry.flag("iscrowd", False) for entry in entries]
        return Segments.build(id_map, classes, labels=self.labels, crowd=crowd)


def find_pngs(index: CocoIndex, folder: Path) -> list[Path]:
    """The PNG of each image of an annotation file.

    Raises:
        DataError: an image has no annotation, a file is missing, or its name leads out of the folder.
    """
    found = []
    for n in range(len(index.images)):
        rows = index.rows(n)
        if not rows:
            fix = "Add its annotation, or remove its entry."
            raise index.image_error(n, "an image has no annotation", fix=fix)
        name = index.texts[rows[0]]
        if not is_inside(name):
            raise index.entries(rows)[0].error("the name of a PNG leads out of its folder", f'"file_name" is {name!r}')
        if not os.path.isfile(folder / name):
            why, fix = f"{name!r} is not in {folder}", "Add the file, or remove its entries."
            raise index.entries(rows)[0].error("no such PNG file", why, fix)
        found.append(folder / name)
    return found


def _segment_ids(entries: Sequence[Entry]) -> np.ndarray:
    """The ids of segments [N], each checked to be a colour and there once."""
    ids = [entry.whole("id", 1, LARGEST_ID) for entry in entries]
    if len({*ids}) < len(ids):
        second = next(n for n, number in enumerate(ids) if number in ids[:n])
        raise entries[second].error("two segments have one id", f"{entries[ids.index(ids[second])].place} has it too")
    return np.array(ids, np.int64)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def open_split(root: Path, split: str) -> CocoPanoptic:
    """The reader of this format."""
    return CocoPanoptic(root, split)
