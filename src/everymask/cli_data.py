"""Data folders from the command line: opening them, joining them, holding samples out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from .datasets import DataFolder, Dataset


def data_folders(data: list[Path], format: str | None, option: tuple[str, ...]) -> list[DataFolder]:
    """How each data folder is read."""
    from .datasets import find_folders

    options = dict(text.partition("=")[::2] for text in option)
    if odd := next((text for text in option if "=" not in text), None):
        raise UsageError("an option is key=value", where=f"--option {odd}")
    return find_folders(data, format, options)


def opened(folders: list[DataFolder], split: str) -> Dataset:
    """One data set of all folders. Says of each what it was taken for, and why."""
    from .datasets import join

    parts = [folder.open(split) for folder in folders]
    for folder, part in zip(folders, parts, strict=True):
        print(f"{folder.root}: {folder.format} ({folder.why}), {len(part)} images")
    return join(parts)


def held_out(dataset: Dataset, every: int) -> tuple[Dataset, Dataset]:
    """Samples to train on and to validate on, of data that have no splits."""
    from .datasets import hold_out

    if dataset.split:
        why = f"this is {dataset.split}"
        raise UsageError("the data have splits of their own", where=f"--hold-out {every}", why=why, fix="Leave it out.")
    return hold_out(dataset, every)
