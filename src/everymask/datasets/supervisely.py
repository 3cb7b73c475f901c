"""Supervisely Person Clean (2,667 photos): ``images/`` + ``masks/``, mattes 0..255 with soft edges, class "person".

The layout is that of `folder`, whose masks are 0 and 255 and nothing between, so a folder is taken for this one if it
has no ``classes.json`` and

- its name contains "supervisely" (any case), or that of the one folder inside it does: the archive unpacks into two
  folders of one name; or
- one of three masks (first, middle, last) is evidently a matte: grey, not a palette, most pixels 0 or 255, and at
  least `SOFT_VALUES` different values between, on both sides of the middle. Fewer could be class numbers that lack
  their ``classes.json``; as a matte they would be read as an empty picture, while `folder` names the fault.

So soft masks of anything else, in this layout, come out as "person" too: pass ``format="folder"`` where that is wrong.
There are no splits.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import ImageError
from ..image import list_images, read_mask, read_palette
from .base import Sides, by_stem, pair
from .matte import OPAQUE, PERSON, MatteDataset

SOFT_VALUES = 32
"""Different values between 0 and 255 in a mask that is evidently a matte."""


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    folder = _pair_folder(root)
    if folder is None or (folder / "classes.json").is_file():
        return None
    if "supervisely" in folder.resolve().name.lower():
        return f"{folder.name}/ has images/ and masks/ and is called so"
    soft = _soft_mask(folder) if folder == root else None
    return f"masks/{soft.name} is a matte, and there is no classes.json" if soft else None


def splits(root: Path) -> tuple[str, ...]:
    """None: all of it is for training."""
    return ()


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    folder = _pair_folder(root) or root
    return by_stem(list_images(folder / "images")), by_stem(list_images(folder / "masks"))


class Supervisely(MatteDataset):
    """Persons with soft edges."""

    def __init__(self, root: Path, split: str = "") -> None:
        super().__init__(root, split, PERSON, pair(*sides(root, split)))


def _pair_folder(root: Path) -> Path | None:
    """The folder with images/ and masks/: `root`, or the one of Supervisely's name inside it."""
    inside = [path for path in sorted(root.glob("*")) if "supervisely" in path.name.lower()]
    both = [path for path in (root, *inside) if (path / "images").is_dir() and (path / "masks").is_dir()]
    return both[0] if both else None


def _soft_mask(folder: Path) -> Path | None:
    """The first of three masks that is evidently a matte."""
    with suppress(ImageError):  # A file that cannot be read is named by whoever reads the data set in earnest.
        masks = list_images(folder / "masks")
        chosen = dict.fromkeys((masks[0], masks[len(masks) // 2], masks[-1]))
        return next((path for path in chosen if read_palette(path) is None and _is_soft(read_mask(path))), None)
    return None


def _is_soft(mask: np.ndarray) -> bool:
    if mask.ndim != 2 or mask.dtype != np.uint8:
        return False
    values, counts = np.unique(mask, return_counts=True)
    between = (values > 0) & (values < 255)
    soft = values[between]
    both_sides = len(soft) >= SOFT_VALUES and soft[0] < OPAQUE <= soft[-1]
    return bool(both_sides and counts[between].sum() * 2 < mask.size)


def open_split(root: Path, split: str) -> Supervisely:
    """The reader of this format."""
    return Supervisely(root, split)
