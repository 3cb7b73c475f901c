"""Flat binary files as arrays, and the original hybrid's training sets, which are nothing but such files.

Its two ``.mmap`` files have no header: images [N, 3, S, S] and mattes [N, 1, S, S], both float16 0..1. How many
there are has to be said, so the size of each file is held against it exactly, and every sample is checked when it is
read: the original would have shown a shifted or half-empty picture without a word.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, DataError, UsageError
from ..labels import LabelMap
from ..types import Sample
from .base import Dataset
from .matte import matte_segments

DTYPES = ("float16", "float32")


class MappedArray:
    """A flat binary file as a read-only array that is mapped when it is first read, in every process anew.

    Args:
        path: the file; its size must be that of the array.
        dtype: of the numbers.
        shape: of the array.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._array: np.ndarray | None = None

    def __getitem__(self, index: Any) -> np.ndarray:
        """A view of the file's pages, not a copy."""
        if self._array is None:
            self._array = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        return np.asarray(self._array[index])

    def __getstate__(self) -> dict[str, Any]:
        # Pickled with its map, the whole file would travel to every loader process.
        return {**self.__dict__, "_array": None}

    @property
    def bytes(self) -> int:
        """The size that the file must have."""
        return math.prod(self.shape) * self.dtype.itemsize


class Headerless(Dataset):
    """Images and mattes of a pair of headerless files; see `open_headerless`."""

    def __init__(self, images: MappedArray, masks: MappedArray, labels: LabelMap) -> None:
        self.images, self.masks = images, masks
        self.root, self.split, self.labels = images.path.parent, "", labels
        self.names = [f"{index:06d}" for index in range(images.shape[0])]

    def __getitem__(self, index: int) -> Sample:
        image = to_bytes(self.images[index], self.images.path, index).transpose(1, 2, 0)
        alpha = to_bytes(self.masks[index], self.masks.path, index)[0]
        return Sample(np.ascontiguousarray(image), matte_segments(alpha, self.labels), self.names[index])

    def files(self, index: int) -> tuple[Path, ...]:
        return self.images.path, self.masks.path


def open_headerless(
    images_path: str | Path,
    masks_path: str | Path,
    count: int,
    side: int,
    dtype: str = "float16",
    *,
    class_name: str = "person",
) -> Headerless:
    """The data set in two files without a header: images [count, 3, side, side], mattes [count, 1, side, side].

    Args:
        dtype: of both files: "float16", as the original wrote them, or "float32"; values 0..1.
        class_name: of what the mattes show.

    Raises:
        CheckpointError: a file is missing or has not the size that `count` and `side` ask for; the message says which
            count would fit.
        DataError: (when a sample is read) a number is NaN, infinite or beyond 0..1.
    """
    if dtype not in DTYPES or count < 1 or side < 1:
        why = f"count {count}, side {side}, dtype {dtype!r}"
        fix = f"count and side are at least 1, dtype is one of {', '.join(DTYPES)}."
        raise UsageError("these are no headerless files", where="open_headerless", why=why, fix=fix)
    images = MappedArray(Path(images_path), dtype, (count, 3, side, side))
    masks = MappedArray(Path(masks_path), dtype, (count, 1, side, side))
    for array in (images, masks):
        _check_size(array)
    return Headerless(images, masks, LabelMap.from_names([class_name]))


def _check_size(array: MappedArray) -> None:
    if not array.path.is_file():
        raise CheckpointError("no such file", where=array.path, fix="Check the path.")
    found, shape = array.path.stat().st_size, " x ".join(map(str, array.shape))
    if found != array.bytes:
        fitting, rest = divmod(found, array.bytes // array.shape[0])
        fix = f"count={fitting} would fit." if fitting and not rest else "No count fits: see to side and dtype."
        why = f"{shape} {array.dtype} are {array.bytes:,} bytes, the file has {found:,}"
        raise CheckpointError("a headerless file has another size", where=array.path, why=why, fix=fix)


def to_bytes(values: np.ndarray, path: Path, index: int) -> np.ndarray:
    """Numbers 0..1 as uint8 0..255: exact for what was written from uint8, also in half precision.

    Raises:
        DataError: NaN, infinite or beyond 0..1.
    """
    numbers = values.astype(np.float32)
    low, high = float(numbers.min()), float(numbers.max())  # NaN comes through both.
    if not 0 <= low <= high <= 1:
        why = f"sample {index} has values {low:g} to {high:g}"
        fix = "Write the files again, as finite numbers 0..1; or count, side or dtype are others."
        raise DataError("expected numbers from 0 to 1", where=path, why=why, fix=fix)
    scaled: np.ndarray = np.rint(numbers * 255).astype(np.uint8)
    return scaled
