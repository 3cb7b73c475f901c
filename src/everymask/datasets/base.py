"""What every reader gives: a sequence of `Sample` with a class table."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError, UsageError
from ..image import read_image, read_mask
from ..labels import LabelMap
from ..types import VOID, Sample, Segments, id_type
from .classes import ClassTable, class_in


class Dataset(ABC):
    """A labelled image collection: ``len``, index to `Sample`, class table.

    Attributes:
        root: folder it was read from.
        split: "train", "val", "test" or "" where there are none.
        labels: class table.
        names: one a sample, in order.
        videos: samples are frames called ``VIDEO/frame``, and a row is the same object in all frames of a video.
    """

    videos = False
    root: Path
    split: str
    labels: LabelMap
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample from disk.

        Raises:
            ImageError: a file cannot be read.
            DataError: image and mask do not fit together, or a mask has an unknown value.
        """

    def files(self, index: int) -> tuple[Path, ...]:
        """The files that sample `index` is read from, for messages and manifests."""
        return ()


class PairDataset(Dataset):
    """Image file plus mask file. Readers that subclass it say how a mask becomes `Segments`."""

    def __init__(self, root: Path, split: str, labels: LabelMap, pairs: Sequence[tuple[Path, Path]]) -> None:
        self.root, self.split, self.labels = root, split, labels
        self.pairs = list(pairs)
        self.names = [image.stem for image, _ in pairs]

    def files(self, index: int) -> tuple[Path, ...]:
        return self.pairs[index]

    def __getitem__(self, index: int) -> Sample:
        image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path), read_mask(mask_path)
        check_same_size(image, mask, image_path, mask_path)
        return Sample(image, self.segments(mask, mask_path), self.names[index])

    @abstractmethod
    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        """Truth from raw label values [H, W] or [H, W, 3]."""

    def mask_table(self, mask: np.ndarray, path: Path) -> ClassTable | None:
        """What the raw values of a mask mean; None where they are no classes but object numbers or a matte.

        The data doctor asks. A reader whose table is not the same for all masks answers for this one.
        """
        return ClassTable(self.labels) if self.labels.pixel_classes() else None


def check_same_size(image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    """Raise `DataError` unless image and mask have the same height and width."""
    if image.shape[:2] != mask.shape[:2]:
        why = f"{image_path.name} is {image.shape[1]}x{image.shape[0]}, its mask {mask.shape[1]}x{mask.shape[0]}"
        fix = "Export the mask at the image's size; resizing labels here could only guess."
        raise DataError("image and mask differ in size", where=mask_path, why=why, fix=fix)


Sides = tuple[dict[str, Path], dict[str, Path]]
"""Image files and mask files of a data set by the key that pairs them, before pairing: what a module's
``sides(root, split)`` gives, so that the data doctor can look at orphans that a reader refuses."""


_left_out: ContextVar[frozenset[Path]] = ContextVar("left_out", default=frozenset())


@contextmanager
def leaving_out(orphans: Collection[Path]) -> Iterator[None]:
    """Readers that are opened inside pass over these files without a partner: somebody knows of them already."""
    token = _left_out.set(_left_out.get().union(orphans))
    try:
        yield
    finally:
        _left_out.reset(token)


def pair(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[tuple[Path, Path]]:
    """Pairs of equal key, in the images' order.

    Raises:
        DataError: orphans on either side; each is named.
    """
    lonely = [images[key] for key in images if key not in masks] + [masks[key] for key in masks if key not in images]
    lonely = [path for path in lonely if path not in _left_out.get()]
    if lonely:
        listed = ", ".join(f"{p.parent.name}/{p.name}" for p in lonely)
        fix = "Add the missing partner or move the orphan away."
        raise DataError(
            "files without a partner", where=lonely[0].parent.parent, why=f"{len(lonely)}: {listed}", fix=fix
        )
    return [(image, masks[key]) for key, image in images.items() if key in masks]


def by_stem(paths: Sequence[Path], suffix: str = "") -> dict[str, Path]:
    """Files by their stem, without `suffix` at its end.

    Raises:
        DataError: two files share a stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        key = path.stem.removesuffix(suffix)
        if key in found:
            why = f"{found[key].name} and {path.name}"
            raise DataError("two files share a stem", where=path.parent, why=why, fix="Keep one of them.")
        found[key] = path
    return found


def semantic_segments(classes: np.ndarray, labels: LabelMap) -> Segments:
    """Semantic truth: one segment a class that occurs.

    Args:
        classes: what `LabelMap.classes_of` gives [H, W]: class index, -1 void, ``len(labels)`` background.
    """
    counts = np.bincount(classes.ravel() + 1, minlength=len(labels) + 2)[1:-1]
    present = np.flatnonzero(counts)
    ids = np.zeros(len(labels) + 2, id_type(len(labels)))
    ids[present] = np.arange(1, len(present) + 1)
    ids[-1] = VOID  # Class -1 reads the last entry.
    return Segments.build(ids[classes], torch.from_numpy(present), labels=labels)


class Subset(Dataset):
    """Some samples of a data set, in the order of `indices`."""

    def __init__(self, base: Dataset, indices: Sequence[int]) -> None:
        self.base, self.indices = base, list(indices)
        self.root, self.split, self.labels, self.videos = base.root, base.split, base.labels, base.videos
        self.names = [base.names[i] for i in self.indices]

    def __getitem__(self, index: int) -> Sample:
        return self.base[self.indices[index]]

    def files(self, index: int) -> tuple[Path, ...]:
        return self.base.files(self.indices[index])


def hold_out(dataset: Dataset, every: int) -> tuple[Subset, Subset]:
    """Samples to train on, and about one in `every` to validate on, for data that come without splits.

    A sample's name alone decides, so adding or removing others moves none of them.

    Raises:
        UsageError: `every` is below 2.
        DataError: one side would be empty.
    """
    if every < 2:
        raise UsageError("a setting is out of range", where="hold-out", why=f"{every} is below 2")
    held = [zlib.crc32(name.encode("utf-8", "surrogateescape")) % every == 0 for name in dataset.names]
    if all(held) or not any(held):
        raise DataError("too few samples to hold some out", where=dataset.root, why=f"there are {len(held)}")
    parts = [Subset(dataset, [n for n, one in enumerate(held) if one == wanted]) for wanted in (False, True)]
    return parts[0], parts[1]


class Concat(Dataset):
    """Several data sets as one; classes are joined by name, so "cat" here and "cat" there are one class."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = list(parts)
        self.root, self.split = parts[0].root, parts[0].split
        self.labels, self.videos = join_labels([part.labels for part in parts]), all(part.videos for part in parts)
        self.names = [name for part in parts for name in part.names]
        self._starts = np.cumsum([0, *map(len, parts)])

    def __getitem__(self, index: int) -> Sample:
        part, offset = self._locate(index)
        sample = part[offset]
        return replace(sample, segments=with_labels(sample.segments, part.labels, self.labels))

    def files(self, index: int) -> tuple[Path, ...]:
        part, offset = self._locate(index)
        return part.files(offset)

    def _locate(self, index: int) -> tuple[Dataset, int]:
        position = range(len(self))[index]
        k = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self.parts[k], position - int(self._starts[k])


def join_labels(tables: Sequence[LabelMap]) -> LabelMap:
    """All classes by name, in order of first appearance.

    Tables that differ lose their raw pixel values: these are the parts' own business and may contradict each other.
    """
    if all(table == tables[0] for table in tables):
        return tables[0]
    joined = {label.name: replace(label, raw_pixel=None) for table in reversed(tables) for label in table}
    order = dict.fromkeys(name for table in tables for name in table.names)
    return LabelMap(tuple(joined[name] for name in order))


def with_labels(segments: Segments, old: LabelMap, new: LabelMap) -> Segments:
    """The same segments in another class table, mapped by name, or by a synonym that either table has."""
    if old == new:
        return segments
    found = [class_in(new, label) for label in old]
    lookup = torch.tensor([new.index(label.name) if k is None else k for k, label in zip(found, old, strict=True)])
    return replace(segments, classes=lookup[segments.classes], labels=new)
