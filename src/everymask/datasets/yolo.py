"""YOLO outlines: a text file for each image, a line ``class x1 y1 x2 y2 ...`` for each object, coordinates 0 to 1.

Images and label files pair by stem, in one of three arrangements::

    images/X.jpg  labels/X.txt
    images/train/X.jpg  labels/train/X.txt
    train/images/X.jpg  train/labels/X.txt

Label folders may also be called as in `LABEL_FOLDERS`. The paths in ``data.yaml`` are not followed, only its ``names``:
a list, or a dictionary by number, which need not start at 0.

An empty label file is an image without objects. YOLO takes an image without a label file for one too; here that must be
said (``missing``), because it looks just like a file that got lost. Objects may overlap; see `rle.layered`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError
from ..image import list_images, read_image
from ..labels import LabelMap
from ..types import Sample, Segments
from .base import Dataset, Sides, by_stem, pair
from .classes import find_table
from .layout import by_split
from .rle import layered, polygons_mask

LABEL_FOLDERS = ("labels", "labels_yolo", "instance_yolo")
TABLES = ("data.yaml", "data.yml", "dataset.yaml", "classes.json", "classes.txt")

TOLERANCE = 0.01
"""How far beyond 0..1 a coordinate may lie: annotation tools let outlines reach over the edge a little."""

Places = dict[str, tuple[Path, Path]]
"""Folders of images and of label files by split; "" where there are no splits."""

Pair = tuple[Path, Path | None]


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    for images, labels in places(root).values():
        if any(labels.glob("*.txt")):
            return f"{images.relative_to(root)}/ has label files in {labels.relative_to(root)}/"
    return None


def places(root: Path) -> Places:
    """Where images and label files are."""
    for labels in LABEL_FOLDERS:
        if (root / "images").is_dir() and (root / labels).is_dir():
            inner = by_split([path for path in (root / "images").glob("*") if (root / labels / path.name).is_dir()])
            split = {name: (path, root / labels / path.name) for name, path in inner.items()}
            return split or {"": (root / "images", root / labels)}
        outer = by_split([path for path in root.glob("*") if (path / "images").is_dir() and (path / labels).is_dir()])
        if outer:
            return {name: (path / "images", path / labels) for name, path in outer.items()}
    return {}


def splits(root: Path) -> tuple[str, ...]:
    """The splits that have a folder of images and one of label files; none where there is but one of each."""
    return tuple(filter(None, places(root)))


def sides(root: Path, split: str) -> Sides:
    """Image files and label files by stem.

    Raises:
        DataError: the folders are not there.
    """
    found = places(root)
    name = split or next((name for name in ("", "train", *found) if name in found), "")
    if name not in found:
        fix = "Expected images/ and labels/, images/train and labels/train, or train/images and train/labels."
        raise DataError("no images with label files", where=root, fix=fix)
    images, labels = found[name]
    # Some tools put the class names among the label files.
    texts = [path for path in sorted(labels.glob("*.txt")) if path.name != "classes.txt"]
    return by_stem(list_images(images)), by_stem(texts)


class Yolo(Dataset):
    """Images with outlines.

    Args:
        pairs: image file and label file, None for an image without objects.
    """

    def __init__(self, root: Path, split: str, labels: LabelMap, pairs: Sequence[Pair]) -> None:
        self.root, self.split, self.labels = root, split, labels
        self.pairs = list(pairs)
        self.names = [image.stem for image, _ in pairs]
        self._index = {label.source_id: k for k, label in enumerate(labels)}

    def files(self, index: int) -> tuple[Path, ...]:
        image, text = self.pairs[index]
        return (image, text) if text else (image,)

    def __getitem__(self, index: int) -> Sample:
        image_path, text_path = self.pairs[index]
        image = read_image(image_path)
        size = image.shape[0], image.shape[1]
        outlines = read_outlines(text_path, self._index, size) if text_path else []
        ids = layered((outline.draw(size) for outline in outlines), size)
        segments = Segments.build(ids, [outline.class_index for outline in outlines], labels=self.labels)
        return Sample(image, segments, self.names[index])


@dataclass(frozen=True)
class Outline:
    """A line of a label file.

    Attributes:
        place: file and line, for messages.
        edges: [x0, y0, x1, y1, ...] in pixels; 0 is the left (upper) edge of the image.
    """

    place: str
    class_index: int
    edges: list[float]

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        """The mask, bool [H, W]."""
        try:
            return polygons_mask([self.edges], size)
        except ValueError as error:
            raise _no_outline(self.place, error) from None


def read_outlines(path: Path, numbers: Mapping[int | None, int], size: tuple[int, int]) -> list[Outline]:
    """The objects of a label file.

    Args:
        numbers: class index by number in the file.

    Raises:
        DataError: the file cannot be read, or a line is no outline; the message gives its number.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError("cannot read a label file", where=path, why=str(error)) from error
    return [_outline(line, f"{path}, line {n}", numbers, size) for n, line in enumerate(lines, 1) if line.strip()]


def _outline(line: str, place: str, numbers: Mapping[int | None, int], size: tuple[int, int]) -> Outline:
    number, *coordinates = line.split()
    try:
        return Outline(place, _class_of(number, numbers), _edges(coordinates, size))
    except ValueError as error:
        raise _no_outline(place, error) from None


def _no_outline(place: str, error: ValueError) -> DataError:
    return DataError("a line of a label file is no outline", where=place, why=str(error))


def _class_of(number: str, numbers: Mapping[int | None, int]) -> int:
    if not re.fullmatch("[0-9]{1,9}", number):
        raise ValueError(f"it begins with {number[:40]!r}, not with the number of a class")
    if int(number) not in numbers:
        raise ValueError(f"class {int(number)}; the table has {', '.join(map(str, numbers))}")
    return numbers[int(number)]


def _edges(texts: list[str], size: tuple[int, int]) -> list[float]:
    if strange := next((text for text in texts if not re.fullmatch("[-+.0-9eE]{1,40}", text)), None):
        raise ValueError(f"{strange[:40]!r} is no coordinate")
    values = np.array([float(text) for text in texts])
    if len(values) == 4:
        raise ValueError("four numbers are a box; outlines have three points or more")
    if len(values) % 2:
        raise ValueError(f"{len(values)} coordinates are no pairs of x and y")
    if len(values) and not -TOLERANCE <= values.min() <= values.max() <= 1 + TOLERANCE:
        raise ValueError(f"coordinates from {values.min():g} to {values.max():g} are not shares of width and height")
    edges: list[float] = (values.reshape(-1, 2) * size[::-1]).ravel().tolist()
    return edges


def open_split(
    root: Path,
    split: str,
    *,
    missing: Literal["refuse", "background", "skip"] = "refuse",
    classes: str | Path | None = None,
) -> Yolo:
    """The reader of this format.

    Args:
        missing: what an image without a label file is: an error, an image without objects ("background"), or left out.
        classes: file with the class table, instead of ``data.yaml``.

    Raises:
        DataError: there is no class table.
    """
    table = find_table(root, classes, *TABLES)
    if table is None:
        fix = "Write their names into data.yaml, or give the file by --option classes=FILE."
        raise DataError("the classes are not known", where=root, why=f"there is no {' or '.join(TABLES)}", fix=fix)
    images, texts = sides(root, split)
    alone = {} if missing == "refuse" else {stem: path for stem, path in images.items() if stem not in texts}
    pairs: list[Pair] = [*pair({stem: path for stem, path in images.items() if stem not in alone}, texts)]
    if missing == "background":
        pairs += [(path, None) for path in alone.values()]
    return Yolo(root, split, table.labels, pairs)
