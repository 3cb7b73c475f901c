"""COCO instances: one JSON file with images, annotations and categories, and the images beside it.

Layouts: ``annotations/instances_{train,val}2017.json`` as published, with ``{train,val}2017/`` or
``images/{train,val}2017/``; any other JSON of this kind at the root, in ``annotations/`` or in a folder a split
(``train/_annotations.coco.json``), with images in ``images/``, at the root or beside it.

Masks are polygons (several are one object), run lengths, or compressed run lengths. Where they overlap the id map has
as few layers as it takes. Pixels of no annotation are background. An image without annotations is a sample without
segments; files that the JSON does not name are none.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from ..image import read_image
from ..types import Sample, Segments
from .base import Dataset
from .coco_index import CocoIndex
from .coco_json import Entry
from .coco_layout import by_split, find_images, image_folder, image_folders, sample_names, split_names
from .layout import chosen
from .rle import Size, decode_mask, layered

ROBOFLOW = "_annotations.coco.json"
MOST_FILES = 32
"""A folder with more JSON files than this has one for each image, and is of another format."""

NEEDED, FOREIGN = (b'"images"', b'"annotations"', b'"categories"'), b'"segments_info"'


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    path = next(iter(annotation_files(root).values()), None)
    return f"{path.relative_to(root)} has images, annotations and categories" if path else None


def splits(root: Path) -> tuple[str, ...]:
    """Splits by the names of annotation files or of their folders; none of a single file of another name."""
    return split_names(annotation_files(root))


def annotation_files(root: Path) -> dict[str, Path]:
    """The annotation files by split: those that are called so, else all JSON files that look like it."""
    near = [*_json_files(root / "annotations"), *_json_files(root)]
    found = [path for path in near if path.name.startswith("instances_")]
    if not found:
        found = [path for path in (*near, *sorted(root.glob(f"*/{ROBOFLOW}"))) if _is_annotation(path)]
    return by_split(found, [_image_folder(path) for path in found])


def _image_folder(path: Path) -> str:
    return path.parent.name if path.name == ROBOFLOW else image_folder(path)


def _json_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.json"))
    return found if len(found) <= MOST_FILES else []


def _is_annotation(path: Path) -> bool:
    """Whether a file has the lists of this format, without reading it as JSON: it may be large."""
    with ExitStack() as stack, suppress(OSError, ValueError):  # An empty file is a ValueError.
        file = stack.enter_context(path.open("rb"))
        data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return all(data.find(key) >= 0 for key in NEEDED) and data.find(FOREIGN) < 0
    return False


class CocoInstances(Dataset):
    """Instances of one annotation file.

    Raises:
        DataError: the file contradicts itself or an image is missing; the message names file and entry.
    """

    def __init__(self, root: Path, split: str = "") -> None:
        path = chosen(annotation_files(root), split, root)
        self.root, self.split = root, split
        self.index = CocoIndex(path, ("id", "image_id", "category_id"), unique="id")
        self.labels = self.index.labels
        self.images = find_images(self.index, image_folders(root, _image_folder(path), path))
        self.names = sample_names(image.file_name for image in self.index.images)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.images[index], self.index.path

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        image = read_image(self.images[index])
        self.index.check_size(index, image, self.images[index])
        size = image.shape[0], image.shape[1]
        return Sample(image, self._segments(self.index.annotations(index), size), self.names[index])

    def _segments(self, annotations: list[Entry], size: Size) -> Segments:
        id_map = layered(masks_of(annotations, size), size)
        classes = [self.index.class_index(entry) for entry in annotations]
        crowd = [entry.flag("iscrowd", False) for entry in annotations]
        return Segments.build(id_map, classes, labels=self.labels, crowd=crowd)


def masks_of(annotations: Iterable[Entry], size: Size) -> Iterator[np.ndarray]:
    """The mask bool [H, W] of each annotation.

    Raises:
        DataError: it cannot be drawn; the message names the annotation.
    """
    for entry in annotations:
        try:
            yield decode_mask(entry.value.get("segmentation"), size)
        except ValueError as error:
            fix = "Draw or export it again, or remove the annotation."
            raise entry.error("an annotation has no sound mask", str(error), fix) from None


def open_split(root: Path, split: str) -> CocoInstances:
    """The reader of this format."""
    return CocoInstances(root, split)
