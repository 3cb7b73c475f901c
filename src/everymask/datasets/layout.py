"""Splits that are folders: where they lie, and by which name each is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The split by what its folder is called."""


def split_name(folder: str) -> str:
    """The split that a folder of this name holds, whatever the year (``train2017``), or the name itself."""
    return SPLITS.get(re.sub("[-_]?[0-9]{4}$", "", folder).lower(), folder)


def by_split(folders: list[Path]) -> dict[str, Path]:
    """Folders by split, in order of their names; by their own names where two would be the same split."""
    shown = sorted(folder for folder in folders if not folder.name.startswith("."))
    names = [split_name(folder.name) for folder in shown]
    return dict(zip(names if len(set(names)) == len(names) else [p.name for p in shown], shown, strict=True))


def split_roots(root: Path, *needed: str) -> dict[str, Path]:
    """The folders that hold all of `needed`, by split; ``{"": root}`` where `root` itself does."""
    if _holds(root, needed):
        return {"": root}
    return by_split([path for path in root.glob("*") if _holds(path, needed)])


def why_split_roots(root: Path, *needed: str) -> str | None:
    """In words, that `root` or the folders of a usual split hold all of `needed`; None if none does."""
    roots = split_roots(root, *needed)
    listed = " and ".join(f"{name}/" for name in needed)
    if "" in roots:
        return f"it has {listed}"
    usual = [path.name for split, path in roots.items() if split in SPLITS.values()]
    return f"{', '.join(usual)} with {listed}" if usual else None


def _holds(folder: Path, needed: tuple[str, ...]) -> bool:
    return all((folder / name).is_dir() for name in needed)


def chosen(folders: dict[str, Path], split: str, root: Path) -> Path:
    """The folder of a split; "" takes the undivided one, "train", or the first.

    Raises:
        DataError: there is none.
    """
    for name in (split, *(() if split else ("train", *folders))):
        if name in folders:
            return folders[name]
    raise DataError("no such split", where=root, why=f"asked for {split or 'any'}, there are: {', '.join(folders)}")
