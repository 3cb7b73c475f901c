"""The index of a COCO annotation file: its images, its classes, and where in the file each image's annotations are.

What stays in memory is small: some numbers for each annotation. An image's annotations are decoded when it is read.
Images are looked for where people put them, and splits go by the names of the annotation files: `coco_layout`.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..labels import Label, LabelMap, distinct_color
from .coco_classes import PANOPTIC, THINGS
from .coco_json import Entry, Span, changed, read_again, walk

LISTS = ("images", "annotations", "categories")
MAX_SIDE = 1 << 20
"""Pixels; a file that claims more for the side of an image is damaged."""


class ImageEntry(NamedTuple):
    """What an annotation file says of an image."""

    id: int
    file_name: str
    height: int
    width: int


class CocoIndex:
    """One annotation file, read once and checked as far as it goes.

    Args:
        numbers: keys of annotations that hold whole numbers.
        unique: the one of `numbers` that no two annotations share.
        text: key of annotations that holds text; empty for none.

    Attributes:
        images: in the order of the file.
        labels: the class table, by category id.
        class_of: class index of each category id.
        texts: what annotations hold at `text`.

    Raises:
        DataError: the file cannot be read or contradicts itself; the message names the entry.
    """

    def __init__(self, path: Path, numbers: Sequence[str], unique: str, text: str = "") -> None:
        self.path = path
        self.images: list[ImageEntry] = []
        self.texts: list[str] = []
        self._spans = array("q")
        columns = {key: array("q") for key in numbers}
        categories: list[Entry] = []
        for key, entry, span in walk(path, LISTS):
            if key == "images":
                self.images.append(_image_entry(entry))
            elif key == "categories":
                categories.append(entry)
            else:
                self._spans.extend(span)
                for number, column in columns.items():
                    column.append(entry.whole(number))
                if text:
                    self.texts.append(entry.text(text))
        self.labels = class_table(categories, path)
        self.class_of = {label.source_id or 0: k for k, label in enumerate(self.labels)}
        self._check_images()
        self._check_annotations(columns, unique)
        self._group_by_image(columns["image_id"])

    def annotations(self, image: int) -> list[Entry]:
        """The annotations of image number `image`, in the order of the file.

        Raises:
            DataError: the file is gone or has changed.
        """
        entries = self.entries(self.rows(image))
        for entry in entries:
            if entry.value.get("image_id") != self.images[image].id:
                raise changed(self.path, entry.place)
        return entries

    def rows(self, image: int) -> list[int]:
        """Positions in the file of the annotations of image number `image`."""
        rows: list[int] = self._order[self._starts[image] : self._starts[image + 1]].tolist()
        return rows

    def entries(self, rows: Iterable[int]) -> list[Entry]:
        """Annotations by their positions in the file.

        Raises:
            DataError: the file is gone or has changed.
        """
        spans: dict[str, Span] = {f"annotations[{n}]": (self._spans[2 * n], self._spans[2 * n + 1]) for n in rows}
        return read_again(self.path, spans)

    def image_error(self, image: int, what: str, why: str = "", fix: str = "") -> DataError:
        """The error that names the entry of image number `image`."""
        where = f"{self.path}, images[{image}], id {self.images[image].id}"
        return DataError(what, where=where, why=why, fix=fix)

    def check_size(self, image: int, pixels: np.ndarray, path: Path) -> None:
        """Raise `DataError` unless the file [H, W, 3] of image number `image` has the size that its entry tells."""
        _, _, height, width = self.images[image]
        if pixels.shape[:2] != (height, width):
            why = f"{path.name} is {pixels.shape[1]}x{pixels.shape[0]}, its entry says {width}x{height}"
            fix = "Use the image that was annotated, at its size; resizing labels here could only guess."
            raise self.image_error(image, "image and annotation differ in size", why, fix)

    def class_index(self, entry: Entry) -> int:
        """Class index of an annotation or segment.

        Raises:
            DataError: no category has its id.
        """
        number = entry.whole("category_id")
        if number not in self.class_of:
            raise entry.error("unknown category", f'"category_id" is {number}, there are {brief([*self.class_of])}')
        return self.class_of[number]

    def _check_images(self) -> None:
        if not self.images:
            raise DataError("no image", where=self.path, why='"images" is empty')
        for key in ("id", "file_name"):
            if found := _repeated([getattr(image, key) for image in self.images]):
                first, second = found
                why = f'images[{first}] has the same "{key}", {brief(getattr(self.images[first], key))}'
                raise self.image_error(second, "two images are one", why, "Keep one of them.")

    def _check_annotations(self, columns: dict[str, array[int]], unique: str) -> None:
        if found := _repeated(columns[unique]):
            first, second = found
            why = f'annotations[{first}] has the same "{unique}", {columns[unique][first]}'
            raise self.entries([second])[0].error("two annotations are one", why, "Keep one of them, or number anew.")
        if "category_id" in columns and (unknown := _first_outside(columns["category_id"], self.class_of)) is not None:
            self.class_index(self.entries([unknown])[0])

    def _group_by_image(self, image_ids: array[int]) -> None:
        """Annotations by image: those of image n are ``_order[_starts[n]:_starts[n + 1]]``."""
        position = {image.id: n for n, image in enumerate(self.images)}
        if (unknown := _first_outside(image_ids, position)) is not None:
            why = f'no entry of "images" has the id {image_ids[unknown]}'
            raise self.entries([unknown])[0].error("an annotation of an unknown image", why)
        owners = np.array([position[number] for number in image_ids], np.int64)
        self._order = np.argsort(owners, kind="stable")
        self._starts = np.searchsorted(owners[self._order], np.arange(len(self.images) + 1))


def _image_entry(entry: Entry) -> ImageEntry:
    height, width = entry.whole("height", 1, MAX_SIDE), entry.whole("width", 1, MAX_SIDE)
    name = PurePosixPath(entry.text("file_name").replace("\\", "/")).as_posix()
    return ImageEntry(entry.whole("id"), name, height, width)


def _repeated(values: Iterable[Hashable]) -> tuple[int, int] | None:
    """Positions of the first value that was there before, and of where it was."""
    seen: dict[Hashable, int] = {}
    for position, value in enumerate(values):
        first = seen.setdefault(value, position)
        if first != position:
            return first, position
    return None


def _first_outside(values: Iterable[int], known: dict[int, int]) -> int | None:
    """Position of the first value that is not known."""
    return next((position for position, value in enumerate(values) if value not in known), None)


# --- classes ----------------------------------------------------------------------------------------------------------


def class_table(categories: Sequence[Entry], path: Path) -> LabelMap:
    """The classes of a file by category id: COCO's own table where it is that, else one of its names.

    Raises:
        DataError: there is none, or two of them share an id or a name.
    """
    if not categories:
        raise DataError("no class", where=path, why='"categories" is empty', fix="Name at least one.")
    found = {entry.whole("id"): entry.text("name") for entry in categories}
    for key in ("id", "name"):
        if repeated := _repeated([entry.value[key] for entry in categories]):
            first, second = repeated
            why = f'categories[{first}] has the same "{key}", {brief(categories[first].value[key])}'
            raise categories[second].error("two categories are one", why, "Keep one of them.")
    for table in (THINGS, PANOPTIC):
        if found == {label.source_id: label.name for label in table}:
            return table
    ordered = sorted(categories, key=lambda entry: entry.whole("id"))
    return LabelMap(tuple(_label(entry, k) for k, entry in enumerate(ordered)))


def _label(entry: Entry, position: int) -> Label:
    color = entry.value.get("color")
    # Some tools write colours in other ways; they mean nothing for the labels.
    known = isinstance(color, list) and len(color) == 3 and all(type(c) is int and 0 <= c <= 255 for c in color)
    red, green, blue = color if known and color else distinct_color(position)
    return Label(entry.text("name"), (red, green, blue), entry.flag("isthing", True), source_id=entry.whole("id"))
