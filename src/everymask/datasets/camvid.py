"""CamVid (Brostow et al. 2008) as SegNet has it, and others in that layout: split ``X/`` has its masks in ``Xannot/``.

CamVid's own masks hold 11 classes, and 11 for what is unlabelled, which is void. Its photos are named after the four
videos; where they are not, and there is no ``classes.json``, nobody can know what the values mean.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError
from ..image import list_images
from ..labels import Label, LabelMap
from .base import Sides, by_stem, pair
from .classes import ClassTable, find_table
from .folder import Folder
from .layout import by_split, chosen

COLORS = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (0, 0, 192),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
"""The classes in the order of their values, in CamVid's own colours."""

THINGS = ("car", "pedestrian", "bicyclist")
SYNONYMS = {"pavement": ("sidewalk",), "sign": ("sign symbol", "traffic sign"), "pedestrian": ("person",)}
UNLABELLED = 11
VIDEOS = "(0001TP|0006R0|0016E5|Seq05VD)_"

LABELS = LabelMap(
    tuple(
        Label(name, color, name in THINGS, k, k, SYNONYMS.get(name, ()))
        for k, (name, color) in enumerate(COLORS.items())
    ),
    void=(UNLABELLED,),
)


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    names = [folder.name for folder in split_folders(root).values()]
    return f"it has {', '.join(f'{name}/ + {name}annot/' for name in names)}" if names else None


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of photos that have one of masks, by split."""
    return by_split([path for path in root.glob("*") if path.is_dir() and (root / f"{path.name}annot").is_dir()])


def splits(root: Path) -> tuple[str, ...]:
    """The splits whose photos and masks are there."""
    return tuple(split_folders(root))


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    folder = chosen(split_folders(root), split, root)
    return by_stem(list_images(folder)), by_stem(list_images(root / f"{folder.name}annot"))


def open_split(root: Path, split: str, *, classes: str | Path | None = None) -> Folder:
    """The reader of this format.

    Args:
        classes: file with the class table, instead of ``classes.json`` or CamVid's own.

    Raises:
        DataError: there is no table, and the photos are not CamVid's.
    """
    images, masks = sides(root, split)
    table = find_table(root, classes, "classes.json")
    if table is None and not all(re.match(VIDEOS, stem) for stem in images):
        why = "there is no classes.json, and the photos are not those of CamVid's four videos"
        fix = "Write classes.json into the folder, or give it by --option classes=FILE."
        raise DataError("the classes are not known", where=root, why=why, fix=fix)
    return Folder(root, split, pair(images, masks), table or ClassTable(LABELS))
