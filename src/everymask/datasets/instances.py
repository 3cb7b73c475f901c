"""Indexed-instance masks: ``images/`` + ``instances/*.png`` (0 background, 1..N objects) of one class.

Splits are folders (``train/images`` ...), or there are none. The class name comes from ``data.yaml`` (its ``names``)
or ``classes.json``; without either it is "object".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from ..errors import DataError
from ..image import list_images
from ..labels import LabelMap
from ..types import Segments
from .base import PairDataset, Sides, by_stem, pair
from .folder import labels_from_json, split_folder, splits

__all__ = ["Instances", "detect", "open_split", "sides", "splits"]


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    for folder in (root, root / "train", root / "test", root / "val"):
        if (folder / "images").is_dir() and (folder / "instances").is_dir():
            return f"{folder.name}/ has images/ and instances/"
    return None


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    folder = split_folder(root, split)
    return by_stem(list_images(folder / "images")), by_stem(list_images(folder / "instances"))


class Instances(PairDataset):
    """Instances of one class from indexed PNG files (8 or 16 bit)."""

    def __init__(self, root: Path, split: str = "") -> None:
        super().__init__(root, split, read_labels(root), pair(*sides(root, split)))

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        if mask.ndim != 2:
            raise DataError("expected one instance number a pixel", where=path, why="the mask is RGB")
        numbers, ids = np.unique(mask, return_inverse=True)
        # Numbers may have gaps; np.unique counts them up, and 0 stays background whether it occurs or not.
        id_map = ids.reshape(mask.shape).astype(np.int32) + (0 if numbers[0] == 0 else 1)
        return Segments.build(id_map, [0] * int(id_map.max(initial=0)), labels=self.labels)


def read_labels(root: Path) -> LabelMap:
    """The class table of the folder."""
    if (root / "classes.json").is_file():
        return labels_from_json(root / "classes.json")
    if (root / "data.yaml").is_file():
        names = _yaml_names(root / "data.yaml")
        return LabelMap.from_names(names or ["object"])
    return LabelMap.from_names(["object"])


def _yaml_names(path: Path) -> list[str]:
    """The class names of a ``data.yaml``: a list, or a dictionary by number."""
    try:
        names = (yaml.safe_load(path.read_text()) or {}).get("names", [])
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise DataError("cannot read the class names", where=path, why=str(error)) from error
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]


def open_split(root: Path, split: str) -> Instances:
    """The reader of this format."""
    return Instances(root, split)
