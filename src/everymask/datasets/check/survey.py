"""What there is to check in a data folder: its splits, the samples of each, and files that are no sample of any."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ...errors import EverymaskError
from ...labels import LabelMap
from .. import DataFolder, coco_panoptic, reader
from ..base import Dataset, PairDataset, leaving_out
from ..layout import chosen
from . import kinds
from .annotations import Annotations, Sign
from .examine import examine_pair, examine_sample
from .facts import Facts
from .panoptic import PanopticFile
from .polygons import CocoShapes, TextFiles

IN_JSON = ("coco_panoptic", "coco_instances")
"""Formats in which a JSON file says which samples there are."""

BY_PHOTO = ("yolo", "labelme")
"""Formats with a file of outlines for each photo."""


class Ref(NamedTuple):
    """A sample by what people and training call it."""

    split: str
    name: str
    files: tuple[Path, ...]

    @property
    def title(self) -> str:
        """As in ``train/cat1``."""
        return f"{self.split}/{self.name}" if self.split else self.name


@dataclass
class Part:
    """One split.

    Attributes:
        dataset: its reader; None where that refuses the split as a whole.
        pairs: photo and mask files, where samples are such pairs; else None.
        annotations: what is looked at besides, independently of the reader.
        names: one a sample.
        orphans: files without a partner, by the kind of finding.
        refusals: what holds for the split as a whole, in words.
        noted: what the annotations of a refused split show, by file.
    """

    split: str
    dataset: Dataset | None = None
    pairs: list[tuple[Path, Path]] | None = None
    annotations: Annotations | None = None
    names: list[str] = field(default_factory=list)
    orphans: dict[kinds.Kind, list[Path]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    noted: list[tuple[str, Sign]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample."""
        if self.pairs is not None:
            return self.pairs[index]
        return self.dataset.files(index) if self.dataset else ()

    def examine(self, index: int) -> Facts:
        """The facts of a sample."""
        if self.pairs is not None:
            image, mask = self.pairs[index]
            return examine_pair(image, mask, self.dataset if isinstance(self.dataset, PairDataset) else None)
        facts = examine_sample(self.dataset, index) if self.dataset else Facts()
        if self.annotations:
            facts.put_first(self.annotations.signs(self.files(index), facts.size))
        return facts


class Survey:
    """All samples of a data folder, numbered through."""

    def __init__(self, folder: DataFolder, parts: list[Part]) -> None:
        self.folder, self.parts = folder, parts
        self._ends = list(accumulate(map(len, parts)))

    @property
    def labels(self) -> LabelMap | None:
        """The class table, None where the reader refuses the data set."""
        return next((part.dataset.labels for part in self.parts if part.dataset), None)

    @cached_property
    def key(self) -> str:
        """What facts depend on besides files."""
        return repr((self.folder.format, sorted(self.folder.options.items()), self.labels))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> tuple[int, Facts]:
        """The number and the facts of a sample: what worker processes are asked for."""
        part, index = self.locate(number)
        return number, part.examine(index)

    def ref(self, number: int) -> Ref:
        """What sample `number` is called."""
        part, index = self.locate(number)
        return Ref(part.split, part.names[index], part.files(index))

    def refs(self) -> Iterator[Ref]:
        """All of them."""
        return (self.ref(number) for number in range(len(self)))

    def split_of(self, number: int) -> int:
        """The position of the sample's split among the parts."""
        return bisect_right(self._ends, number)

    def locate(self, number: int) -> tuple[Part, int]:
        """The split of a sample, and its number there."""
        k = self.split_of(number)
        return self.parts[k], number - (self._ends[k - 1] if k else 0)


def survey(folder: DataFolder) -> Survey:
    """Look at a data folder, without opening its photos."""
    splits = folder.splits or ("",)
    return Survey(folder, [_part(folder, split) for split in splits if not _says_again(folder.format, split)])


def _says_again(format: str, split: str) -> bool:
    """Whether a split holds only what others hold: another name of one, or Pascal VOC's sum of two."""
    return split == "trainval" or split in getattr(reader(format), "ALIASES", ())


def _part(folder: DataFolder, split: str) -> Part:
    part = Part(split)
    pairs = _paired(part, folder)
    part.dataset = _opened(part, folder)
    part.annotations = _annotations(folder, part)
    if part.dataset is not None:
        part.names = list(part.dataset.names)
        part.pairs = part.dataset.pairs if isinstance(part.dataset, PairDataset) else None
    elif part.annotations:
        part.noted = list(part.annotations.everything())
    elif folder.format not in BY_PHOTO:
        part.pairs, part.names = pairs, [image.stem for image, _ in pairs or ()]
    return part


def _opened(part: Part, folder: DataFolder) -> Dataset | None:
    """The reader of a split, without orphans if it refuses those; None where it refuses more."""
    try:
        dataset = folder.open(part.split)
        part.orphans = {}  # What is no trouble to the reader is none.
        return dataset
    except EverymaskError as error:
        refusal = error.message
    lonely = [path for paths in part.orphans.values() for path in paths]
    if lonely:
        with suppress(EverymaskError), leaving_out(lonely):
            return folder.open(part.split)
    part.refusals.append(refusal)
    return None


def _paired(part: Part, folder: DataFolder) -> list[tuple[Path, Path]] | None:
    """The pairs of a split, before any reader has looked at them; orphans are noted. None where there are no pairs."""
    module = reader(folder.format)
    if not hasattr(module, "sides") or folder.format in IN_JSON:
        return None
    try:
        images, masks = module.sides(folder.root, part.split)
    except EverymaskError:  # Opening the data set says the same.
        return None
    part.orphans = {
        kinds.ORPHAN_IMAGE: [path for key, path in images.items() if key not in masks],
        kinds.ORPHAN_MASK: [path for key, path in masks.items() if key not in images],
    }
    return [(path, masks[key]) for key, path in images.items() if key in masks]


def _annotations(folder: DataFolder, part: Part) -> Annotations | None:
    """What is to be looked at besides what the reader reads."""
    if folder.format in BY_PHOTO and part.dataset:
        return TextFiles(part.dataset.labels)
    if folder.format in IN_JSON:
        with suppress(EverymaskError):  # The reader has said so.
            path = chosen(reader(folder.format).annotation_files(folder.root), part.split, folder.root)
            if folder.format == "coco_panoptic":
                return PanopticFile(path, coco_panoptic.png_folder(folder.root, path))
            return CocoShapes(path)
    return None
