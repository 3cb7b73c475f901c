"""Penn-Fudan pedestrians (Wang et al. 2007): ``PNGImages/X.png`` + ``PedMasks/X_mask.png``, class "person".

Masks hold instance numbers, 0 is background. There are no splits.
"""

from __future__ import annotations

from pathlib import Path

from ..image import list_images
from ..labels import LabelMap
from .base import Sides, by_stem, pair
from .instances import Instances

LABELS = LabelMap.from_names(["person"])


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    both = (root / "PNGImages").is_dir() and (root / "PedMasks").is_dir()
    return "it has PNGImages/ and PedMasks/" if both else None


def splits(root: Path) -> tuple[str, ...]:
    """None: all of it is for training."""
    return ()


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by the image's stem."""
    return by_stem(list_images(root / "PNGImages")), by_stem(list_images(root / "PedMasks"), "_mask")


def open_split(root: Path, split: str) -> Instances:
    """The reader of this format."""
    return Instances(root, split, LABELS, pair(*sides(root, split)))
