"""LabelMe (Wada): a JSON file of shapes for each image, which lies where ``imagePath`` says, beside it, or inside it.

Splits are folders, or there are none. Shapes are polygons, rectangles, circles and masks; those without an area
(points and lines) are refused. Shapes of one label with the same ``group_id`` are one instance. Instances that overlap
are kept whole; see `rle.layered`.

Two labels are not classes, as in LabelMe's own export. Both work like paint, over what was drawn before them:
``__ignore__`` makes pixels void, ``_background_`` makes them background.

Classes are in the order of ``classes.json`` or of ``labels.txt`` (LabelMe's list, one name a line); without either, all
labels of all splits in the order of the alphabet.
"""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from reprlib import repr as brief
from typing import Any, Literal

import numpy as np

from ..errors import DataError, ImageError
from ..image import is_image_file, read_image, read_mask
from ..labels import LabelMap
from ..types import VOID, Sample, Segments
from .base import Dataset
from .classes import find_table, read_data
from .layout import SPLITS, by_split, chosen
from .rle import layered, polygons_mask

IGNORE, BACKGROUND = "__ignore__", "_background_"
TABLES = ("classes.json", "labels.txt")
OTHER_FILES = ("classes.json", "id2label.json")
CORNERS_OF_CIRCLE = 360
LOOKED_AT = 5
"""How many JSON files of a folder are looked into, to see whether they are LabelMe's."""

# --- layout -----------------------------------------------------------------------------------------------------------


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    for folder in folders(root).values():
        if any(b'"shapes"' in path.read_bytes() for path in json_files(folder)[:LOOKED_AT]):
            return f"{'it' if folder == root else f'{folder.name}/'} has JSON files of shapes"
    return None


def json_files(folder: Path) -> list[Path]:
    """The annotation files of a folder."""
    return [path for path in sorted(folder.glob("*.json")) if path.is_file() and path.name not in OTHER_FILES]


def folders(root: Path) -> dict[str, Path]:
    """The folders that hold annotation files, by split; "" where there is but one, which is no split."""
    if json_files(root):
        return {"": root}
    found = by_split([path for path in root.glob("*") if json_files(path)])
    undivided = len(found) == 1 and not {*found} & {*SPLITS.values()}
    return {"": next(iter(found.values()))} if undivided else found


def splits(root: Path) -> tuple[str, ...]:
    """The splits that are folders of annotation files; none where all of these are in one place."""
    return tuple(filter(None, folders(root)))


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """One shape, as it is written.

    Attributes:
        place: file and number, for messages.
        group: those of one label with the same number are one instance; None stands alone.
        kind: "polygon", "rectangle", ...
    """

    place: str
    label: str
    group: int | None
    kind: str
    points: Any
    mask: Any

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        """The mask, bool [H, W].

        Raises:
            DataError: it has no area, or its points are not what such a shape has.
        """
        try:
            if self.kind == "mask":
                return pasted(self.mask, point_pairs(self.points), size)
            return polygons_mask([outline(self.kind, point_pairs(self.points))], size)
        except (ValueError, OverflowError, ImageError) as error:
            raise DataError("a shape cannot be drawn", where=f"{self.place}, {self.label}", why=str(error)) from None


def point_pairs(points: Any) -> list[tuple[float, float]]:
    """Points that are two numbers each.

    Raises:
        ValueError: they are not.
    """
    pairs = points if isinstance(points, list) else [points]
    for point in pairs:
        if not isinstance(point, list) or len(point) != 2 or not {*map(type, point)} <= {int, float}:
            raise ValueError(f"expected points [x, y], found {brief(point)}")
    return [(x, y) for x, y in pairs]


def outline(kind: str, points: list[tuple[float, float]]) -> list[float]:
    """[x0, y0, x1, y1, ...] of a shape.

    Raises:
        ValueError: a shape without an area, or with another number of points than it should have.
    """
    if kind not in ("polygon", "rectangle", "circle"):
        raise ValueError(f"shapes of type {brief(kind)} have no area; there are polygon, rectangle, circle and mask")
    if kind != "polygon" and len(points) != 2:
        raise ValueError(f"a {kind} has two points, this has {len(points)}")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if kind == "circle":
        (x0, y0), (x1, y1) = points
        radius, turns = (
            math.hypot(x1 - x0, y1 - y0),
            [n * math.tau / CORNERS_OF_CIRCLE for n in range(CORNERS_OF_CIRCLE)],
        )
        points = [(x0 + radius * math.cos(turn), y0 + radius * math.sin(turn)) for turn in turns]
    return [coordinate for point in points for coordinate in point]


def pasted(encoded: Any, corners: list[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """A mask bool [H, W] from a small one (PNG in base64) and the corner pixels, inclusive, that it lies between.

    Raises:
        ValueError: no base64, or a mask that does not fit between the corners or into the image.
        ImageError: no image.
    """
    if not isinstance(encoded, str) or len(corners) != 2:
        raise ValueError('a mask has two corners and a PNG under "mask"')
    small = read_mask(base64.b64decode(encoded, validate=True))
    x0, y0, x1, y1 = (int(coordinate) for corner in corners for coordinate in corner)
    inside = min(x0, y0) >= 0 and x1 < size[1] and y1 < size[0]
    if not inside or small.shape != (y1 + 1 - y0, x1 + 1 - x0):
        why = f"pixels {x0}, {y0} to {x1}, {y1} of an image of {size[1]}x{size[0]}"
        raise ValueError(f"a mask of shape {[*small.shape]} is not of {why}")
    mask = np.zeros(size, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = small != 0
    return mask


def read_file(path: Path) -> dict[str, Any]:
    """What an annotation file holds.

    Raises:
        DataError: it cannot be read, or has no shapes.
    """
    data = read_data(path)
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        raise DataError("a file is not LabelMe's", where=path, why='it has no list "shapes"', fix="Move it away.")
    return data


def shapes_of(data: dict[str, Any], path: Path) -> list[Shape]:
    """The shapes of a file, in the order in which they were drawn.

    Raises:
        DataError: one of them is no shape; the message gives its number.
    """
    return [_shape(row, f"{path}, shapes[{n}]") for n, row in enumerate(data["shapes"])]


def _shape(row: Any, place: str) -> Shape:
    if not isinstance(row, dict) or not isinstance(row.get("label"), str):
        raise DataError("a shape needs a label", where=place, why=f"found {brief(row)}")
    label, group, kind = row["label"], row.get("group_id"), row.get("shape_type", "polygon")
    if not label.strip() or not label.isprintable():
        raise DataError("a shape needs a label", where=place, why=f"found {brief(label)}")
    if group is not None and type(group) is not int:
        raise DataError("a group has a number", where=place, why=f'"group_id" is {brief(group)}')
    return Shape(
        place, label, group, kind if isinstance(kind, str) else brief(kind), row.get("points"), row.get("mask")
    )


# --- shapes to segments -----------------------------------------------------------------------------------------------


def shape_segments(shapes: list[Shape], labels: LabelMap, size: tuple[int, int]) -> Segments:
    """Truth from the shapes of an image of this size.

    Raises:
        DataError: a shape cannot be drawn, or `labels` has no class of its label.
    """
    instances, painted = instances_of(shapes), last_paint(shapes, size)
    classes = [_class_of(shapes[members[0]], labels) for members in instances]
    ids = layered((_visible(shapes, members, painted) for members in instances), size)
    ignored = np.isin(painted, [n for n, shape in enumerate(shapes) if shape.label == IGNORE])
    ids[..., ignored & (ids.reshape(-1, *size) == 0).all(0)] = VOID
    return Segments.build(ids, classes, labels=labels)


def instances_of(shapes: list[Shape]) -> list[list[int]]:
    """The numbers of the shapes of each instance, in the order of their first ones."""
    members: dict[object, list[int]] = {}
    for n, shape in enumerate(shapes):
        if shape.label not in (IGNORE, BACKGROUND):
            members.setdefault(n if shape.group is None else (shape.label, shape.group), []).append(n)
    return list(members.values())


def last_paint(shapes: list[Shape], size: tuple[int, int]) -> np.ndarray:
    """int32 [H, W]: the number of the last shape that is paint and covers a pixel, -1 where none does."""
    painted = np.full(size, -1, np.int32)
    for n, shape in enumerate(shapes):
        if shape.label in (IGNORE, BACKGROUND):
            painted[shape.draw(size)] = n
    return painted


def _visible(shapes: list[Shape], members: list[int], painted: np.ndarray) -> np.ndarray:
    """The mask of an instance, bool [H, W]: its shapes without what was painted over each of them later."""
    mask = np.zeros(painted.shape, bool)
    for n in members:
        mask |= shapes[n].draw((painted.shape[0], painted.shape[1])) & (painted < n)
    return mask


def _class_of(shape: Shape, labels: LabelMap) -> int:
    try:
        return labels.index(shape.label)
    except DataError as error:
        raise DataError("unknown class", where=f"{shape.place}, {shape.label}", why=error.why) from None


# --- the data set -----------------------------------------------------------------------------------------------------


class LabelMe(Dataset):
    """Images with shapes.

    Args:
        pairs: annotation file, and image file or None where the image is inside.
    """

    def __init__(self, root: Path, split: str, labels: LabelMap, pairs: Iterable[tuple[Path, Path | None]]) -> None:
        self.root, self.split, self.labels = root, split, labels
        self.pairs = list(pairs)
        self.names = [path.stem for path, _ in self.pairs]

    def files(self, index: int) -> tuple[Path, ...]:
        path, image = self.pairs[index]
        return (image, path) if image else (path,)

    def __getitem__(self, index: int) -> Sample:
        path, image_path = self.pairs[index]
        data = read_file(path)
        image = read_image(image_path) if image_path else inner_image(data, path)
        size = image.shape[0], image.shape[1]
        check_size(data, size, path)
        return Sample(image, shape_segments(shapes_of(data, path), self.labels, size), self.names[index])


def inner_image(data: dict[str, Any], path: Path) -> np.ndarray:
    """The image inside an annotation file.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    try:
        return read_image(base64.b64decode(data["imageData"], validate=True))
    except (KeyError, TypeError, ValueError, ImageError) as error:
        why = f'there is no {brief(data.get("imagePath"))}, and "imageData" is no image'
        raise DataError("no image for an annotation file", where=path, why=why) from error


def check_size(data: dict[str, Any], size: tuple[int, int], path: Path) -> None:
    """Raise `DataError` if the file speaks of an image of another size."""
    said = data.get("imageHeight"), data.get("imageWidth")
    if said not in ((None, None), size):
        why = f"its shapes are for {brief(said[1])}x{brief(said[0])}, the image is {size[1]}x{size[0]}"
        raise DataError("image and annotation file differ in size", where=path, why=why)


def image_file(data: dict[str, Any], path: Path, root: Path) -> Path | None:
    """The image that an annotation file names, if it lies below `root`; else the one beside it of the same stem."""
    name = data.get("imagePath")
    if isinstance(name, str) and is_image_file(name):
        # LabelMe writes the path as the system has it that it runs on.
        named = Path(os.path.normpath(path.parent / PureWindowsPath(name).as_posix()))
        if named.is_relative_to(os.path.normpath(root)) and os.path.isfile(named):
            return named
    beside = (path.with_name(other) for other in os.listdir(path.parent) if is_image_file(other))
    return next((other for other in sorted(beside) if other.stem == path.stem), None)


def check_images(folder: Path, files: dict[Path, Path | None]) -> None:
    """Raise `DataError` for images of a folder that no annotation file speaks of, or several do.

    Args:
        files: image by annotation file.
    """
    uses = Counter(os.path.normpath(image) for image in files.values() if image)
    if twice := next((image for image, count in uses.items() if count > 1), None):
        names = ", ".join(path.name for path, image in files.items() if image and os.path.normpath(image) == twice)
        raise DataError("several annotation files speak of one image", where=twice, why=names)
    images = [image for image in sorted(folder.glob("*")) if is_image_file(image) and image.is_file()]
    alone = [image for image in images if os.path.normpath(image) not in uses]
    if alone:
        why = f"{len(alone)}: {', '.join(image.name for image in alone)}"
        fix = "Annotate them, save them without shapes if they show nothing, or leave them out: --option missing=skip."
        raise DataError("images without an annotation file", where=folder, why=why, fix=fix)


def table_of(root: Path, classes: str | Path | None) -> LabelMap:
    """The class table; without a file of one, all labels of all splits in the order of the alphabet."""
    table = find_table(root, classes, *TABLES)
    if table:
        return LabelMap(tuple(label for label in table.labels if label.name not in (IGNORE, BACKGROUND)))
    paths = [path for folder in folders(root).values() for path in json_files(folder)]
    names = {shape.label for path in paths for shape in shapes_of(read_file(path), path)} - {IGNORE, BACKGROUND}
    if not names:
        raise DataError("no shape is of a class", where=root, why=f"{len(paths)} annotation files")
    return LabelMap.from_names(sorted(names))


def open_split(
    root: Path,
    split: str,
    *,
    missing: Literal["refuse", "skip"] = "refuse",
    classes: str | Path | None = None,
) -> LabelMe:
    """The reader of this format.

    Args:
        missing: what an image without an annotation file is: an error, or left out.
        classes: file with the class table, instead of ``classes.json`` or ``labels.txt``.
    """
    folder = chosen(folders(root), split, root)
    files = {path: image_file(read_file(path), path, root) for path in json_files(folder)}
    if missing == "refuse":
        check_images(folder, files)
    return LabelMe(root, split, table_of(root, classes), files.items())
