"""The quarantine list: samples that the data doctor found at fault, for training to leave out until they are mended.

::

    {"folders": [{"data": "/data/pets",
                  "samples": [{"name": "cat1", "image": "images/cat1.jpg", "why": ["unreadable-mask"]}, ...],
                  "orphans": ["images/cat2.jpg"]}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import write_json
from .base import Concat, Dataset, Subset
from .classes import read_data


@dataclass(frozen=True)
class Quarantine:
    """What to leave out of one data folder.

    Attributes:
        samples: what is wrong, by name and photo (relative to the folder) of a sample: names alone may repeat.
        orphans: files without a partner.
    """

    samples: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    orphans: frozenset[Path] = frozenset()

    def without(self, dataset: Dataset) -> Dataset:
        """The data set without these samples; itself where it has none of them."""
        names = {name for name, _ in self.samples}
        kept = [
            index
            for index, name in enumerate(dataset.names)
            if name not in names or (name, photo_of(dataset.files(index), dataset.root)) not in self.samples
        ]
        return dataset if len(kept) == len(dataset) else Subset(dataset, kept)


def left_out(dataset: Dataset | None) -> int:
    """How many samples a data set lacks because of a list."""
    if isinstance(dataset, Concat):
        return sum(map(left_out, dataset.parts))
    return len(dataset.base) - len(dataset) if isinstance(dataset, Subset) else 0


def photo_of(files: Sequence[Path], root: Path) -> str:
    """The photo of a sample as the list writes it."""
    return relative(files[0], root) if files else ""


def relative(path: Path, root: Path) -> str:
    """The path as seen from the data folder."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def write_quarantine(path: Path, root: Path, quarantine: Quarantine) -> None:
    """Write the list of one data folder.

    Raises:
        WriteError: the system refuses.
    """
    rows = [{"name": name, "image": photo, "why": [*why]} for (name, photo), why in quarantine.samples.items()]
    orphans = sorted(relative(orphan, root) for orphan in quarantine.orphans)
    folder = {"data": str(root.resolve()), "samples": rows, "orphans": orphans}
    write_json(path, {"folders": [folder]})


def read_quarantine(path: Path, roots: Iterable[Path]) -> dict[Path, Quarantine]:
    """The list of each folder in `roots` that the file speaks of.

    Raises:
        DataError: the file cannot be read, is no such list, or speaks of none of the folders.
    """
    try:
        folders = {Path(row["data"]): row for row in read_data(path)["folders"]}
        found = {root: _quarantine(folders[root.resolve()], root) for root in roots if root.resolve() in folders}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        fix = "Write it by: everymask check DATA --quarantine F."
        raise DataError("not a quarantine list", where=path, why=repr(error), fix=fix) from error
    if not found:
        why = f"it is of {', '.join(map(str, folders)) or 'no folder'}"
        raise DataError("a quarantine list of other data", where=path, why=why, fix="Check this data folder first.")
    return found


def _quarantine(row: Mapping[str, Any], root: Path) -> Quarantine:
    samples = {(str(sample["name"]), str(sample["image"])): [*map(str, sample["why"])] for sample in row["samples"]}
    return Quarantine(samples, frozenset(root / name for name in row["orphans"]))
