"""Hugging Face `datasets` (extra ``hf``): what ``save_to_disk`` wrote, with a column of images and one of masks.

Both are image features. They are found by their usual names, or given as options. Masks mean what they mean in a
`folder`; the class table is ``classes.json`` or ``id2label.json`` at the root, else the names of a feature that is a
list of class labels (or of the class label in the column that the option ``names`` gives). Without any, masks are
binary.

A saved ``DatasetDict`` has its splits as folders; "validation" is "val".
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DataError, ImageError, UsageError
from ..image import read_image, read_mask
from ..types import Sample
from .base import Dataset, check_same_size, semantic_segments
from .classes import ClassTable, find_table, table_of_names
from .layout import by_split, chosen
from .semantic import BINARY, class_map

IMAGES = ("image", "img", "photo", "pixel_values")
MASKS = ("mask", "label", "annotation", "segmentation", "segmentation_mask", "labels")
TABLES = ("classes.json", "id2label.json")


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not."""
    if (root / "dataset_dict.json").is_file():
        return "it has the dataset_dict.json of a saved DatasetDict"
    saved = (root / "dataset_info.json").is_file() and (root / "state.json").is_file()
    return "it has the dataset_info.json and state.json of a saved Dataset" if saved else None


def folders(root: Path) -> dict[str, Path]:
    """Folders of saved data sets by split; ``{"": root}`` where `root` is one itself."""
    if (root / "dataset_dict.json").is_file():
        return by_split([path.parent for path in root.glob("*/state.json")])
    return {"": root}


def splits(root: Path) -> tuple[str, ...]:
    """The splits of a saved ``DatasetDict``; none of a saved ``Dataset``."""
    return tuple(filter(None, folders(root)))


class HuggingFace(Dataset):
    """Rows of a saved data set.

    Args:
        rows: of `datasets`, its images not decoded.
        image: column of photos.
        mask: column of semantic masks.
        table: the classes; None takes masks as binary.
    """

    def __init__(self, root: Path, split: str, rows: Any, image: str, mask: str, table: ClassTable | None) -> None:
        self.root, self.split = root, split
        self.rows, self.image, self.mask, self.table = rows, image, mask, table
        self.labels = table.labels if table else BINARY[1]
        self.names = [f"{n:06d}" for n in range(len(rows))]

    def files(self, index: int) -> tuple[Path, ...]:
        return tuple(Path(file["filename"]) for file in self.rows.cache_files)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        place = self.root / f"row {index}"
        photo, drawing = self._files(index)
        try:
            image, mask = read_image(photo), read_mask(drawing)
        except ImageError as error:
            raise ImageError(error.what, where=place, why=error.why, fix=error.fix) from error
        check_same_size(image, mask, place / self.image, place / self.mask)
        classes = class_map(mask, self.table, drawing, place / self.mask)
        return Sample(image, semantic_segments(classes, self.labels), self.names[index])

    def _files(self, index: int) -> list[bytes | Path]:
        """The files of photo and mask: their bytes, or where they are."""
        try:
            row = self.rows[index]
        except Exception as error:  # Of Arrow.
            raise DataError("cannot read a row", where=self.root / f"row {index}", why=str(error)) from error
        return [_file(row[column], self.root / f"row {index}" / column) for column in (self.image, self.mask)]


def _file(cell: Any, where: Path) -> bytes | Path:
    if isinstance(cell, dict) and cell.get("bytes"):
        return bytes(cell["bytes"])
    if isinstance(cell, dict) and cell.get("path"):
        return Path(cell["path"])
    raise DataError("a cell is empty", where=where)


def open_split(
    root: Path,
    split: str,
    *,
    image: str | None = None,
    mask: str | None = None,
    names: str | None = None,
    classes: str | Path | None = None,
) -> HuggingFace:
    """The reader of this format.

    Args:
        image: column of the photos.
        mask: column of the masks.
        names: column whose class label names the values of masks.
        classes: file with the class table, instead of ``classes.json`` or ``id2label.json``.

    Raises:
        UsageError: `datasets` is not installed.
        DataError: the folder cannot be read, or a column is not there or not the only one.
    """
    datasets, folder = _package(), chosen(folders(root), split, root)
    rows = _load(datasets, folder)
    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    photo, drawing = only(columns, image, "image", IMAGES, folder), only(columns, mask, "mask", MASKS, folder)
    file = None if names and not classes else find_table(root, classes, *TABLES)
    table = file or labelled(rows.features, names, datasets.ClassLabel, folder)
    rows = rows.select_columns([photo, drawing])
    for column in (photo, drawing):  # Decoded there, masks would go through their palettes.
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return HuggingFace(root, split, rows, photo, drawing, table)


def _load(datasets: ModuleType, folder: Path) -> Any:
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # Of JSON, of files and of Arrow.
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError("cannot read a saved data set", where=folder, why=why) from error


def _package() -> ModuleType:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        fix = "pip install 'everymask[hf]'"
        raise UsageError("the package datasets is not installed", where="huggingface", fix=fix) from error


def only(columns: Sequence[str], asked: str | None, option: str, usual: Sequence[str], where: Path) -> str:
    """The column that was asked for, or the only one of a usual name.

    Args:
        columns: those of images.

    Raises:
        DataError: it is not among `columns`, or of the usual ones there are none or several.
    """
    found = [name for name in ([asked] if asked else usual) if name in columns]
    if len(found) != 1:
        why = f"columns of images: {', '.join(columns) or 'none'}"
        fix = f"Say which it is: --option {option}=COLUMN."
        raise DataError(f"cannot tell the column of the {option}", where=where, why=why, fix=fix)
    return found[0]


def labelled(features: Mapping[str, Any], names: str | None, kind: type, where: Path) -> ClassTable | None:
    """The names of the class label in column `names`, or of the only list of class labels; None where there is none.

    A label that is no list says what the whole image is, so it is not taken without being asked for.

    Args:
        kind: `datasets.ClassLabel`.

    Raises:
        DataError: column `names` has no class label, or there are several lists of them.
    """
    lists = {column: getattr(feature, "feature", None) for column, feature in features.items()}
    plain = {**features, **{column: inner for column, inner in lists.items() if inner is not None}}
    found = [c for c in ([names] if names else lists) if isinstance((plain if names else lists).get(c), kind)]
    if (names and not found) or len(found) > 1:
        why = f"class labels: {', '.join(c for c, feature in plain.items() if isinstance(feature, kind)) or 'none'}"
        raise DataError("cannot tell the class names", where=where, why=why, fix="--option names=COLUMN says it.")
    return table_of_names(plain[found[0]].names, where) if found else None
