"""Indexed-instance masks: ``images/`` + ``instances/*.png`` (0 background, 1..N objects) of one class.

Splits are folders (``train/images`` ...), or there are none. The class name comes from ``classes.json``, from the
``names`` of ``data.yaml`` or from the option ``name``; without any it is "object".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..image import list_images
from ..labels import LabelMap
from ..types import Segments
from .base import PairDataset, Sides, by_stem, pair
from .classes import find_table
from .layout import chosen, split_roots, why_split_roots


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    return why_split_roots(root, "images", "instances")


def splits(root: Path) -> tuple[str, ...]:
    """Names of the folders that hold ``images/`` and ``instances/``; none where `root` itself does."""
    return tuple(filter(None, split_roots(root, "images", "instances")))


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    folder = chosen(split_roots(root, "images", "instances"), split, root)
    return by_stem(list_images(folder / "images")), by_stem(list_images(folder / "instances"))


class Instances(PairDataset):
    """Instances of one class from indexed PNG files (8 or 16 bit)."""

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        id_map = instance_ids(mask, path)
        return Segments.build(id_map, [0] * int(id_map.max(initial=0)), labels=self.labels)

    def mask_table(self, mask: np.ndarray, path: Path) -> None:
        return None


def instance_ids(mask: np.ndarray, path: Path) -> np.ndarray:
    """Instance numbers [H, W], which may have gaps, counted up: int32 [H, W], 0 stays background.

    Raises:
        DataError: the mask is of colours, or a number is negative.
    """
    if mask.ndim != 2:
        raise DataError("expected one instance number a pixel", where=path, why="the mask is RGB")
    numbers, ids = np.unique(mask, return_inverse=True)
    if numbers[0] < 0:
        raise DataError("an instance number is negative", where=path, why=f"found {numbers[0]}")
    # np.unique counts from 0, whether 0 occurs or not.
    return np.asarray(ids.reshape(mask.shape).astype(np.int32) + (numbers[0] != 0))


def one_class(root: Path, classes: str | Path | None, name: str | None) -> LabelMap:
    """The table of the one class there is.

    Raises:
        DataError: the folder's table has several: numbers of instances cannot tell them apart.
    """
    table = None if name else find_table(root, classes, "classes.json", "data.yaml")
    labels = table.labels if table else LabelMap.from_names([name or "object"])
    if len(labels) > 1:
        fix = "Say which it is: --option name=NAME; or use a format that stores the class of each instance."
        raise DataError("instance masks are of one class", where=root, why=f"found {', '.join(labels.names)}", fix=fix)
    return labels


def open_split(root: Path, split: str, *, name: str | None = None, classes: str | Path | None = None) -> Instances:
    """The reader of this format.

    Args:
        name: of the one class.
        classes: file with the class table, instead of ``classes.json`` or ``data.yaml``.
    """
    return Instances(root, split, one_class(root, classes, name), pair(*sides(root, split)))
