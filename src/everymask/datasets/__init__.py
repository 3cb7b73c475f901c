"""Labelled images from disk, one reader a format. `open_dataset` finds the format by looking."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import DataError, UsageError
from .base import Concat, Dataset, Subset, hold_out, leaving_out
from .quarantine import Quarantine, read_quarantine

FORMATS = (
    *("pack", "coco_panoptic", "coco_stuff", "coco_instances"),
    *("huggingface", "p3m", "pets", "bcss", "penn_fudan", "frames", "voc", "camvid"),
    *("instances", "supervisely", "folder", "yolo", "labelme"),
)
"""Reader files in the order in which they are asked whether a folder is theirs: the most particular first."""

__all__ = [
    "FORMATS",
    "Concat",
    "DataFolder",
    "Dataset",
    "Subset",
    "find_folders",
    "find_format",
    "hold_out",
    "join",
    "join_split",
    "leave_out",
    "open_dataset",
    "open_datasets",
    "open_where_split",
]


def reader(format: str) -> ModuleType:
    """The file of a format.

    Raises:
        DataError: there is none of that name.
    """
    if format not in FORMATS:
        raise DataError("unknown data format", where=format, why=f"there are: {', '.join(FORMATS)}")
    return importlib.import_module(f"{__name__}.{format}")


def find_format(root: Path) -> tuple[str, str]:
    """(format, why) of a data folder.

    Raises:
        DataError: it does not exist, or no reader knows its layout.
    """
    if not root.is_dir():
        raise DataError("no such data folder", where=root, fix="Check the path.")
    for name in FORMATS:
        why = reader(name).detect(root)
        if why:
            return name, why
    held = ", ".join(sorted(p.name for p in root.iterdir())[:10]) or "nothing"
    fix = "Expected images/ and masks/ (or train/images and train/masks), or one of the layouts in docs/data.md."
    raise DataError("the layout of a data folder is not known", where=root, why=f"it holds: {held}", fix=fix)


@dataclass(frozen=True)
class DataFolder:
    """A data folder and how it is read.

    Attributes:
        format: a name of `FORMATS`.
        why: what shows that it is of this format.
        options: of its reader.
        quarantine: samples and files to leave out.
    """

    root: Path
    format: str
    why: str
    options: Mapping[str, Any]
    quarantine: Quarantine = field(default_factory=Quarantine)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are; none where it is not divided."""
        known: tuple[str, ...] = reader(self.format).splits(self.root)
        return known

    def open(self, split: str = "") -> Dataset:
        """The data set, or one split of it; see `open_dataset`."""
        if split == "train" and not self.splits:
            split = ""
        if split and split not in self.splits:
            why = f"asked for {split}, there are: {', '.join(self.splits) or 'none'}"
            raise DataError("no such split", where=self.root, why=why)
        with leaving_out(self.quarantine.orphans):
            dataset: Dataset = reader(self.format).open_split(self.root, split, **self.options)
        dataset = self.quarantine.without(dataset)
        if len(dataset) == 0:
            raise DataError("a data set is empty", where=self.root, why=f"format {self.format}, split {split or 'all'}")
        return dataset


def find_folders(
    roots: Iterable[str | Path], format: str | None = None, options: Mapping[str, Any] | None = None
) -> list[DataFolder]:
    """How each of several folders is read.

    Args:
        format: a name of `FORMATS`; None looks.
        options: for the readers; each goes to those that have it.

    Raises:
        DataError: no such folder or layout.
        UsageError: an option that none of the readers has, or another value than it takes.
    """
    found = [(Path(root), *_format_of(Path(root), format)) for root in roots]
    known = {name: reader_options(name) for _, name, _ in found}
    for option, value in (options or {}).items():
        _check_option(option, value, known)
    given = options or {}
    return [DataFolder(p, name, why, {k: v for k, v in given.items() if k in known[name]}) for p, name, why in found]


def leave_out(folders: Iterable[DataFolder], quarantine: Path) -> list[DataFolder]:
    """The same folders without the samples of a quarantine list.

    Raises:
        DataError: the file is no such list, or is of none of the folders.
    """
    given = list(folders)
    lists = read_quarantine(quarantine, [folder.root for folder in given])
    return [replace(folder, quarantine=lists.get(folder.root, folder.quarantine)) for folder in given]


def _format_of(root: Path, format: str | None) -> tuple[str, str]:
    if format is None or not root.is_dir():
        return find_format(root)
    reader(format)
    return format, "as told"


def reader_options(format: str) -> dict[str, Any]:
    """The options of a reader with their types: the keyword-only parameters of its ``open_split``."""
    open_split = reader(format).open_split
    types = get_type_hints(open_split)
    parameters = inspect.signature(open_split).parameters.values()
    return {p.name: types[p.name] for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _check_option(option: str, value: Any, known: Mapping[str, Mapping[str, Any]]) -> None:
    types = [options[option] for options in known.values() if option in options]
    if not types:
        why = "; ".join(f"format {name} has: {', '.join(options) or 'none'}" for name, options in known.items())
        raise UsageError("unknown reader option", where=f"{option}={value}", why=why)
    for kind in types:
        if get_origin(kind) is Literal and value not in get_args(kind):
            why = f"{option} is one of {', '.join(get_args(kind))}"
            raise UsageError("a reader option has an unknown value", where=f"{option}={value}", why=why)


def open_dataset(root: str | Path, split: str = "", format: str | None = None, **options: Any) -> Dataset:
    """The data set in folder `root`.

    Args:
        split: "train", "val", "test"; "" takes all, or "train" where splits are folders. A data set without splits
            is all train.
        format: a name of `FORMATS`; None looks.
        options: of the reader: the keyword-only parameters of its ``open_split``.

    Raises:
        DataError: no such folder, layout or split, or no image in it.
        UsageError: an option that the reader does not have.
    """
    return find_folders([root], format, options)[0].open(split)


def open_datasets(roots: Iterable[str | Path], split: str = "", format: str | None = None, **options: Any) -> Dataset:
    """One data set of several folders, joined by class name."""
    return join([folder.open(split) for folder in find_folders(roots, format, options)])


def open_where_split(
    roots: Iterable[str | Path], split: str, format: str | None = None, **options: Any
) -> Dataset | None:
    """The split of those folders that have it, joined; None where none has."""
    return join_split(find_folders(roots, format, options), split)


def join_split(folders: Iterable[DataFolder], split: str) -> Dataset | None:
    """The split of those folders that have it, joined; None where none has."""
    parts = [folder.open(split) for folder in folders if split in folder.splits]
    return join(parts) if parts else None


def join(parts: Sequence[Dataset]) -> Dataset:
    """One data set of one or more.

    Raises:
        DataError: there is none.
    """
    if not parts:
        raise DataError("no data folder given")
    return parts[0] if len(parts) == 1 else Concat(parts)
