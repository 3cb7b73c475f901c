"""Videos as folders of frames with palette masks, as DAVIS and YouTube-VOS have them.

``JPEGImages/480p/VIDEO/00000.jpg`` + ``Annotations/480p/VIDEO/00000.png``, with or without the folder of the
resolution. Masks hold object numbers, 0 is background and 255 void (but a number in 16-bit masks that go beyond it).
Splits are lists of videos, ``ImageSets/2017/{train,val}.txt`` or ``ImageSets/480p/...``; without any list all are
for training.

A sample is a frame, called ``VIDEO/00000``. All frames of a video have the same rows, one for each number that occurs
in any of them; where a frame does not show an object, its row has no pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..image import list_images, read_mask
from ..labels import LabelMap
from ..types import VOID, Segments
from .base import PairDataset, Sides, pair

UNKNOWN = 255
"""Pixel value of what nobody has decided."""


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    images, masks = places(root)
    if not masks.is_dir() or not any(masks.glob("*/*.png")) or not any(path.is_dir() for path in images.glob("*")):
        return None
    return f"it has videos in {images.relative_to(root)}/ and {masks.relative_to(root)}/"


def places(root: Path) -> tuple[Path, Path]:
    """The folders of the videos' frames and masks: those of 480p where there are several resolutions."""
    images, masks = root / "JPEGImages", root / "Annotations"
    sizes = [path.name for path in sorted(masks.glob("*")) if any(path.glob("*/*.png"))]
    chosen = "480p" if "480p" in sizes else next(iter(sizes), "")
    return images / chosen, masks / chosen


def splits(root: Path) -> tuple[str, ...]:
    """The lists that name a video with masks."""
    videos = {path.name for path in places(root)[1].glob("*")}
    return tuple(split for split in ("train", "val") if videos & {*listed(root, split)})


def listed(root: Path, split: str) -> list[str]:
    """The videos of a split; none where there is no list. A list of frames stands for the videos they are of."""
    path = next(iter(sorted((root / "ImageSets").glob(f"*/{split}.txt"), reverse=True)), None)
    try:
        lines = path.read_text("utf-8-sig").split("\n") if path else []
    except (OSError, ValueError) as error:
        raise DataError("cannot read a list of videos", where=path, why=str(error)) from error
    words = [line.split()[0] for line in lines if line.split()]
    return list(dict.fromkeys(Path(word).parent.name if "/" in word else word for word in words))


def sides(root: Path, split: str) -> Sides:
    """Frames and masks by ``VIDEO/stem``."""
    images, masks = places(root)
    wanted = listed(root, split) if split else None
    if wanted and (lost := [video for video in wanted if not (masks / video).is_dir()]):
        why = f"{len(lost)}, the first is {lost[0][:100]!r}"
        raise DataError("a list names videos that are not there", where=root / "ImageSets", why=why)
    return by_video(images, wanted), by_video(masks, wanted)


def by_video(folder: Path, wanted: list[str] | None) -> dict[str, Path]:
    """Files by ``VIDEO/stem``, of all videos or of those wanted."""
    videos = sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))
    chosen = [path for path in videos if wanted is None or path.name in wanted]
    return {f"{video.name}/{path.stem}": path for video in chosen for path in list_images(video)}


class Frames(PairDataset):
    """Frames of videos with numbered objects of one class."""

    videos = True

    def __init__(self, root: Path, split: str, labels: LabelMap, pairs: list[tuple[Path, Path]]) -> None:
        super().__init__(root, split, labels, pairs)
        self.names = [f"{image.parent.name}/{image.stem}" for image, _ in pairs]
        self._numbers: dict[str, np.ndarray] = {}

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        if mask.ndim != 2:
            raise DataError("expected one object number a pixel", where=path, why="the mask is RGB")
        numbers = self.numbers(path.parent.name)
        ids = np.zeros(mask.shape, np.int32)
        shown = np.isin(mask, numbers)
        ids[shown] = np.searchsorted(numbers, mask[shown]) + 1
        ids[~shown & (mask != 0)] = VOID
        return Segments.build(ids, [0] * len(numbers), labels=self.labels)

    def numbers(self, video: str) -> np.ndarray:
        """The object numbers of a video, in order; its masks are read once."""
        if video not in self._numbers:
            found = [np.unique(indices(path)) for _, path in self.pairs if path.parent.name == video]
            every = np.unique(np.concatenate(found))
            # Where numbers go on beyond it, 255 is one of them.
            self._numbers[video] = every[(every != 0) & ((every != UNKNOWN) | (every.max() > UNKNOWN))]
        return self._numbers[video]

    def mask_table(self, mask: np.ndarray, path: Path) -> None:
        return None


def indices(path: Path) -> np.ndarray:
    """Object numbers [H, W] of a mask file.

    Raises:
        DataError: the mask is of colours.
    """
    mask = read_mask(path)
    if mask.ndim != 2:
        raise DataError("expected one object number a pixel", where=path, why="the mask is RGB")
    return mask


def open_split(root: Path, split: str, *, name: str = "object") -> Frames:
    """The reader of this format.

    Args:
        name: of the one class.
    """
    return Frames(root, split, LabelMap.from_names([name]), pair(*sides(root, split)))
