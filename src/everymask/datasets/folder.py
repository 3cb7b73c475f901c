"""A folder of images and a folder of masks: ``images/`` + ``masks/``, paired by file stem.

Splits are folders (``train/images``, ``train/masks`` ...), or there are none. Without ``classes.json`` masks are
binary, 0 and 255 (or 0 and 1), and the class is "foreground". With it, the values of pixels are the classes, or their
colours; see `classes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..image import list_images
from ..types import Segments
from .base import PairDataset, Sides, by_stem, pair, semantic_segments
from .classes import ClassTable, find_table
from .layout import chosen, split_roots, why_split_roots
from .semantic import BINARY, binary_table, class_map


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    return why_split_roots(root, "images", "masks")


def splits(root: Path) -> tuple[str, ...]:
    """Names of the folders that hold ``images/`` and ``masks/``; none where `root` itself does."""
    return tuple(filter(None, split_roots(root, "images", "masks")))


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    folder = chosen(split_roots(root, "images", "masks"), split, root)
    return by_stem(list_images(folder / "images")), by_stem(list_images(folder / "masks"))


class Folder(PairDataset):
    """Semantic masks: one value, or one colour, a class.

    Args:
        table: the classes; None reads ``root/classes.json``, and takes masks as binary where there is none.
    """

    def __init__(
        self, root: Path, split: str, pairs: Sequence[tuple[Path, Path]], table: ClassTable | None = None
    ) -> None:
        self.table = table or find_table(root, None, "classes.json")
        super().__init__(root, split, self.table.labels if self.table else BINARY[1], pairs)

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        return semantic_segments(class_map(mask, self.table, path, path), self.labels)

    def mask_table(self, mask: np.ndarray, path: Path) -> ClassTable:
        return self.table or ClassTable(binary_table(mask))


def open_split(root: Path, split: str, *, classes: str | Path | None = None) -> Folder:
    """The reader of this format.

    Args:
        classes: file with the class table, instead of ``classes.json``.
    """
    return Folder(root, split, pair(*sides(root, split)), find_table(root, classes, "classes.json"))
