"""BCSS (Amgad et al. 2019, breast cancer tissue): ``images/`` or ``rgbs*/`` + ``masks/`` + ``meta/gtruth_codes.tsv``.

Masks are grey or palette PNG of codes; the file of codes names them (22 of them, in columns ``label`` and ``GT_code``).
Code 0, "outside_roi", is where nobody has annotated: void, not background. There are no splits, or they are folders
that each hold images and masks; ``meta/`` lies at the root. Of several folders ``rgbs*/`` the first by name counts.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from ..errors import DataError
from ..image import list_images
from ..labels import Label, LabelMap, distinct_color
from .base import Sides, by_stem, pair
from .classes import ClassTable
from .folder import Folder
from .layout import by_split, chosen

CODES = "meta/gtruth_codes.tsv"
OUTSIDE = "outside_roi"


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    return f"it has {CODES}" if (root / CODES).is_file() and split_folders(root) else None


def split_folders(root: Path) -> dict[str, Path]:
    """The folders that hold images and masks, by split; ``{"": root}`` where `root` itself does."""
    if _image_folder(root):
        return {"": root}
    return by_split([path for path in root.glob("*") if _image_folder(path)])


def _image_folder(folder: Path) -> Path | None:
    """The folder of the photos beside ``masks/``."""
    if not (folder / "masks").is_dir():
        return None
    return next((path for path in (folder / "images", *sorted(folder.glob("rgbs*"))) if path.is_dir()), None)


def splits(root: Path) -> tuple[str, ...]:
    """Names of the folders that hold images and masks; none where `root` itself does."""
    return tuple(filter(None, split_folders(root)))


def sides(root: Path, split: str) -> Sides:
    """Image files and mask files by stem."""
    folder = chosen(split_folders(root), split, root)
    return by_stem(list_images(_image_folder(folder) or folder)), by_stem(list_images(folder / "masks"))


def read_codes(path: Path) -> LabelMap:
    """The class table of ``gtruth_codes.tsv``; `raw_pixel` is the code.

    Raises:
        DataError: it cannot be read, lacks its columns, or a code is no number from 0 to 255; the message says which.
    """
    try:
        rows = list(csv.DictReader(path.read_text("utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError("cannot read the class codes", where=path, why=str(error)) from error
    codes = {_text(row, "label", n, path): _code(row, n, path) for n, row in enumerate(rows, 2)}
    if len(codes) < len(rows):
        raise DataError("a class has two codes", where=path, fix="Keep one line for each.")
    void = tuple(code for name, code in codes.items() if name == OUTSIDE)
    classes = sorted((code, name) for name, code in codes.items() if name != OUTSIDE)
    labels = [Label(name, distinct_color(k), False, code, code) for k, (code, name) in enumerate(classes)]
    try:
        return LabelMap(tuple(labels), void)
    except DataError as error:
        raise DataError(error.what, where=path, why=error.why) from error


def _text(row: dict[str, str | None], column: str, line: int, path: Path) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip().isprintable() or not text.strip():
        raise DataError("a line of the class codes is not complete", where=path, why=f'line {line}, column "{column}"')
    return text.strip()


def _code(row: dict[str, str | None], line: int, path: Path) -> int:
    text = _text(row, "GT_code", line, path)
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 255:
        raise DataError("a class code is no number from 0 to 255", where=path, why=f"line {line}: {text[:20]}")
    return int(text)


def open_split(root: Path, split: str) -> Folder:
    """The reader of this format."""
    return Folder(root, split, pair(*sides(root, split)), ClassTable(read_codes(root / CODES)))
