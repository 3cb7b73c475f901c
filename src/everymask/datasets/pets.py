"""Oxford-IIIT Pet (Parkhi et al. 2012): ``images/*.jpg`` + ``trimaps/*.png`` (1 pet, 2 background, 3 border).

The split rule, written so that it spreads over breeds: number the photos of each breed by file name; numbers
divisible by 6 are test, numbers that leave 1 after division by 12 are val, the rest is train.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..image import list_images
from ..labels import LabelMap
from ..types import Segments
from .base import PairDataset, check_values, pair_by_stem, segments_from_values

LABELS = LabelMap.from_names(["cat", "dog"])
PET, BACKGROUND, BORDER = 1, 2, 3


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


class Pets(PairDataset):
    """Cats and dogs; the species is in the file name (cat breeds are capitalised).

    Args:
        border: what trimap value 3 is: "void" (default) or "foreground".
    """

    def __init__(self, root: Path, split: str = "", border: str = "void") -> None:
        pairs = pair_by_stem(list_images(root / "images"), list_images(root / "trimaps"))
        chosen = [
            p for p, part in zip(pairs, assigned_splits([p[0].stem for p in pairs]), strict=True) if split in ("", part)
        ]
        super().__init__(root, split, LABELS, chosen)
        self.border = border

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        check_values(mask, (PET, BACKGROUND, BORDER), path)
        species = LABELS.index("cat" if path.stem[0].isupper() else "dog")
        classes = {PET: species, BORDER: species} if self.border == "foreground" else {PET: species}
        return segments_from_values(mask, classes, LABELS, void=(BORDER,) if self.border == "void" else ())


def assigned_splits(stems: Sequence[str]) -> list[str]:
    """The split of each photo by the rule at the head of this file."""
    breeds: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        breeds[re.sub(r"_\d+$", "", stem)].append(stem)
    part = {stem: split_of(n) for group in breeds.values() for n, stem in enumerate(sorted(group))}
    return [part[stem] for stem in stems]


def open_split(root: Path, split: str) -> Pets:
    """The reader of this format."""
    return Pets(root, split)
