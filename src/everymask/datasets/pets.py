"""Oxford-IIIT Pet (Parkhi et al. 2012): ``images/*.jpg`` + ``trimaps/*.png`` (1 pet, 2 background, 3 border).

The split rule, written so that it spreads over breeds: number the photos of each breed by file name; numbers
divisible by 6 are test, numbers that leave 1 after division by 12 are val, the rest is train.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..image import list_images
from ..labels import LabelMap
from ..types import VOID, Segments
from .base import PairDataset, Sides, by_stem, pair, semantic_segments
from .classes import ClassTable

PET, BACKGROUND, BORDER = 1, 2, 3
Border = Literal["void", "foreground"]
LABELS = LabelMap.from_names(["cat", "dog"])


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    if (root / "images").is_dir() and (root / "trimaps").is_dir():
        return "it has images/ and trimaps/"
    return None


def splits(root: Path) -> tuple[str, ...]:
    """The splits there are: the rule makes three of any folder."""
    return ("train", "val", "test")


def split_of(position: int) -> str:
    """The split of photo number `position` of its breed."""
    if position % 6 == 0:
        return "test"
    return "val" if position % 12 == 1 else "train"


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    images, trimaps = by_stem(list_images(root / "images")), by_stem(list_images(root / "trimaps"))
    stems = sorted({*images, *trimaps})  # Of both sides, so that an orphan does not shift the split of the others.
    part = dict(zip(stems, assigned_splits(stems), strict=True))
    chosen = {stem for stem in stems if split in ("", part[stem])}
    return {s: p for s, p in images.items() if s in chosen}, {s: p for s, p in trimaps.items() if s in chosen}


class Pets(PairDataset):
    """Cats and dogs; the species is in the file name (cat breeds are capitalised).

    Args:
        border: what trimap value 3 is.
    """

    def __init__(self, root: Path, split: str = "", border: Border = "void") -> None:
        super().__init__(root, split, LABELS, pair(*sides(root, split)))
        self.border = border

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        classes = trimap_table(species_of(path)).classes_of(mask, path)
        if self.border == "foreground":
            classes[classes == VOID] = LABELS.index(species_of(path))
        return semantic_segments(classes, LABELS)

    def mask_table(self, mask: np.ndarray, path: Path) -> ClassTable:
        return ClassTable(trimap_table(species_of(path)))


def species_of(path: Path) -> str:
    """The species in a photo; names of cat breeds are capitalised."""
    return "cat" if path.stem[0].isupper() else "dog"


def trimap_table(species: str) -> LabelMap:
    """What the values of a trimap mean where the photo shows this species."""
    labels = tuple(replace(label, raw_pixel=PET if label.name == species else None) for label in LABELS)
    return LabelMap(labels, void=(BORDER,), background=(BACKGROUND,))


def assigned_splits(stems: Sequence[str]) -> list[str]:
    """The split of each photo by the rule at the head of this file."""
    breeds: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        breeds[re.sub(r"_\d+$", "", stem)].append(stem)
    part = {stem: split_of(n) for group in breeds.values() for n, stem in enumerate(sorted(group))}
    return [part[stem] for stem in stems]


def open_split(root: Path, split: str, *, border: Border = "void") -> Pets:
    """The reader of this format.

    Args:
        border: what trimap value 3 is.
    """
    return Pets(root, split, border)
