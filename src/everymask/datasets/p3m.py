"""P3M-10k (Li et al. 2021, "Privacy-Preserving Portrait Matting"): portraits with mattes, class "person".

Layout and splits::

    train/{blurred_image,mask}                            "train"     9,421 photos, faces blurred
    validation/P3M-500-P/{blurred_image,mask,trimap}      "val"         500 photos, faces blurred
    validation/P3M-500-NP/{original_image,mask,trimap}    "val-np"      500 photos of public figures, faces as they are

"test" is another name of "val-np": a model trained on blurred faces is meant to be judged on those. Photos (jpg) and
mattes (png) pair by file stem. Trimaps mark where a matting network may have to look closely; the matte is true
there as well, so they make nothing void and are not read. The optional face masks are not read either.
"""

from __future__ import annotations

from pathlib import Path

from ..image import list_images
from .base import Sides, by_stem, pair
from .matte import PERSON, MatteDataset

PHOTOS = {
    "train": "train/blurred_image",
    "val": "validation/P3M-500-P/blurred_image",
    "val-np": "validation/P3M-500-NP/original_image",
}
ALIASES = {"test": "val-np"}


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    return next((f"it has {folder}/" for folder in PHOTOS.values() if (root / folder).is_dir()), None)


def splits(root: Path) -> tuple[str, ...]:
    """The splits whose photos are there."""
    return tuple(name for name in ("train", "val", "val-np", "test") if photo_folder(root, name).is_dir())


def photo_folder(root: Path, split: str) -> Path:
    """Where the photos of a split are; its mattes are in ``mask`` beside it."""
    name = ALIASES.get(split, split)
    return root / PHOTOS.get(name, name)


def first_split(root: Path) -> str:
    """What "" stands for: "train", or the first split there is."""
    return next(iter(splits(root)), "train")


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    photos = photo_folder(root, split or first_split(root))
    return by_stem(list_images(photos)), by_stem(list_images(photos.parent / "mask"))


class P3M(MatteDataset):
    """Portraits of one split; "" takes "train", or the first split there is."""

    def __init__(self, root: Path, split: str = "") -> None:
        name = split or first_split(root)
        super().__init__(root, name, PERSON, pair(*sides(root, name)))


def open_split(root: Path, split: str) -> P3M:
    """The reader of this format."""
    return P3M(root, split)
