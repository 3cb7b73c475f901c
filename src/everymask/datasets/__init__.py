"""Labelled images from disk, one reader a format. `open_dataset` finds the format by looking."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from ..errors import DataError
from .base import Concat, Dataset, Subset

FORMATS = ("pack", "p3m", "pets", "instances", "supervisely", "folder")
"""Reader files in the order in which they are asked whether a folder is theirs: the most particular first."""

__all__ = ["FORMATS", "Concat", "Dataset", "Subset", "find_format", "open_dataset", "open_datasets", "open_where_split"]


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


def open_dataset(root: str | Path, split: str = "", format: str | None = None) -> Dataset:
    """The data set in folder `root`.

    Args:
        split: "train", "val", "test"; "" takes all, or "train" where splits are folders. A data set without splits
            is all train.
        format: a name of `FORMATS`; None looks.

    Raises:
        DataError: no such folder, layout or split, or no image in it.
    """
    path = Path(root)
    name = format or find_format(path)[0]
    known: tuple[str, ...] = reader(name).splits(path)
    if split == "train" and not known:
        split = ""
    if split and split not in known:
        raise DataError("no such split", where=path, why=f"asked for {split}, there are: {', '.join(known) or 'none'}")
    dataset: Dataset = reader(name).open_split(path, split)
    if len(dataset) == 0:
        raise DataError("a data set is empty", where=path, why=f"format {name}, split {split or 'all'}")
    return dataset


def open_datasets(roots: Iterable[str | Path], split: str = "", format: str | None = None) -> Dataset:
    """One data set of several folders, joined by class name."""
    return join([open_dataset(root, split, format) for root in roots])


def open_where_split(roots: Iterable[str | Path], split: str, format: str | None = None) -> Dataset | None:
    """The split of those folders that have it, joined; None where none has."""
    paths = [Path(root) for root in roots]
    having = [path for path in paths if split in reader(format or find_format(path)[0]).splits(path)]
    return join([open_dataset(path, split, format) for path in having]) if having else None


def join(parts: Sequence[Dataset]) -> Dataset:
    """One data set of one or more.

    Raises:
        DataError: there is none.
    """
    if not parts:
        raise DataError("no data folder given")
    return parts[0] if len(parts) == 1 else Concat(parts)
