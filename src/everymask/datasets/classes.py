"""The class table of a data folder: ``classes.json``, or a YAML or text file of names.

::

    {"classes": [{"name": "road", "value": 3, "color": "#804080", "stuff": true, "synonyms": ["street"]}, ...],
     "void": [255], "background": [0]}

An entry may also be a name alone; ``title`` says the same as ``name``, and a colour is ``[R, G, B]`` or ``"#RRGGBB"``.
A class without a value has its position in the list. But where every class has a colour and none a value, the colours
of the masks' pixels are the classes, and ``void`` and ``background`` are lists of colours.

Other files give names alone: a YAML file its ``names`` (a list, or a dictionary by number), a JSON dictionary of names
by number (``id2label.json``) the same, a text file one name a line.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import DataError
from ..labels import Label, LabelMap, distinct_color, packed

LARGEST = 2**31 - 1
"""The largest pixel value that a mask file can hold."""


@dataclass(frozen=True)
class ClassTable:
    """What a class file says.

    Attributes:
        labels: the classes; `source_id` is a class's number in the file, `raw_pixel` that number or its colour.
        by_color: the colours of pixels are the classes, not their values.
    """

    labels: LabelMap
    by_color: bool = False


def find_table(root: Path, classes: str | Path | None, *usual: str) -> ClassTable | None:
    """The table in file `classes`, else in the first of the `usual` files that `root` has, else None.

    Raises:
        DataError: the file cannot be read, or its table makes no sense; the message names the entry.
    """
    if classes is not None:
        return read_table(Path(classes))
    return next((read_table(root / name) for name in usual if (root / name).is_file()), None)


def read_table(path: Path) -> ClassTable:
    """The class table in a ``.json``, ``.yaml`` or ``.txt`` file.

    Raises:
        DataError: the file cannot be read, or its table makes no sense; the message names the entry.
    """
    if path.suffix == ".txt":
        return table_of_names(_lines(path), path)
    data = read_data(path)
    if path.suffix in (".yaml", ".yml"):
        names = data.get("names") if isinstance(data, dict) else None
        return ClassTable(_numbered(dict(enumerate(names)) if isinstance(names, list) else names, path))
    if isinstance(data, dict) and data and all(key.isdecimal() for key in data):
        return ClassTable(_numbered(data, path))
    return _listed(data, path)


def table_of_names(names: Sequence[str], path: Path) -> ClassTable:
    """The table of names whose positions are the numbers of the classes.

    Args:
        path: for messages.
    """
    return ClassTable(_numbered(dict(enumerate(names)), path))


def read_data(path: Path) -> Any:
    """What a JSON or (by its suffix) YAML file holds.

    Raises:
        DataError: it is not there, cannot be read, or is no JSON or YAML.
    """
    try:
        content = path.read_bytes()
        return yaml.safe_load(content) if path.suffix in (".yaml", ".yml") else json.loads(content)
    except OSError as error:
        raise DataError("cannot read a file", where=path, why=error.strerror or str(error)) from error
    except Exception as error:  # PyYAML raises nearly every built-in type, and both run out of stack.
        kind = "YAML" if path.suffix in (".yaml", ".yml") else "JSON"
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read a file as {kind}", where=path, why=why) from error


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError("cannot read a file", where=path, why=str(error)) from error


def class_in(labels: LabelMap, label: Label) -> int | None:
    """Where another table's class is in `labels`: the class of its name, else one that either has as a synonym."""
    if label.name in labels.names:
        return labels.names.index(label.name)
    same = (k for k, own in enumerate(labels) if label.name in own.synonyms or own.name in label.synonyms)
    return next(same, None)


# --- names by number --------------------------------------------------------------------------------------------------


def _numbered(names: Any, path: Path) -> LabelMap:
    """The table of names by their number in the data."""
    if not isinstance(names, dict) or not names:
        raise DataError("expected class names", where=path, why=f"found {_short(names)}")
    rows = sorted((_whole(number, name, path), _name(name, name, path)) for number, name in names.items())
    labels = [Label(name, distinct_color(k), source_id=n, raw_pixel=n) for k, (n, name) in enumerate(rows)]
    return _label_map(labels, [v for v in (255,) if v not in dict(rows)], [], path)


def _whole(number: Any, name: Any, path: Path) -> int:
    if isinstance(number, str) and re.fullmatch("[0-9]{1,9}", number):
        return int(number)
    if type(number) is int and 0 <= number <= LARGEST:
        return number
    raise DataError("expected class names by number", where=path, why=f"{_short(name)} has {_short(number)}")


# --- classes.json -----------------------------------------------------------------------------------------------------


def _listed(data: Any, path: Path) -> ClassTable:
    options = data if isinstance(data, dict) else {}
    rows = data if isinstance(data, list) else options.get("classes", data)
    if not isinstance(rows, list) or not rows:
        raise DataError("expected a list of classes", where=path, why=f"found {_short(rows)}")
    rows = [_entry(row, path) for row in rows]
    by_color = all("color" in row and "value" not in row for row in rows)
    labels = [_label(row, k, by_color, path) for k, row in enumerate(rows)]
    background = _pixels(options.get("background", []), "background", by_color, path)
    taken = {*background, *(label.raw_pixel for label in labels)}
    # 255 is void where nothing is said and nothing else has this value.
    usual = [] if by_color or 255 in taken else [255]
    void = _pixels(options["void"], "void", by_color, path) if "void" in options else usual
    return ClassTable(_label_map(labels, void, background, path), by_color)


def _entry(row: Any, path: Path) -> dict[str, Any]:
    if isinstance(row, str):
        row = {"name": row}
    if not isinstance(row, dict):
        raise DataError("a class needs a name", where=path, why=f"an entry is {_short(row)}")
    return row


def _label(row: dict[str, Any], index: int, by_color: bool, path: Path) -> Label:
    name = _name(row.get("name", row.get("title")), row, path)
    color = _color(row["color"], path) if "color" in row else distinct_color(index)
    value, stuff, synonyms = row.get("value", index), row.get("stuff", False), row.get("synonyms", [])
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise DataError("expected a whole number", where=path, why=f'"value" of {name} is {_short(value)}')
    if type(stuff) is not bool:
        raise DataError("expected true or false", where=path, why=f'"stuff" of {name} is {_short(stuff)}')
    if not isinstance(synonyms, list):
        raise DataError("expected a list of names", where=path, why=f'"synonyms" of {name} is {_short(synonyms)}')
    others = tuple(_name(text, row, path) for text in synonyms)
    return Label(name, color, not stuff, value, _one_number(color) if by_color else value, others)


def _name(name: Any, entry: Any, path: Path) -> str:
    # Neither control characters nor halves of a character: no file or terminal would take them.
    if not isinstance(name, str) or not name.strip() or re.search("[\x00-\x1f\x7f\ud800-\udfff]", name):
        raise DataError("a class needs a name", where=path, why=f"an entry is {_short(entry)}")
    return name


def _color(value: Any, path: Path) -> tuple[int, int, int]:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    if not isinstance(value, list) or len(value) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in value):
        raise DataError('a colour is [R, G, B] or "#RRGGBB"', where=path, why=f"found {_short(value)}")
    return value[0], value[1], value[2]


def _pixels(values: Any, name: str, by_color: bool, path: Path) -> list[int]:
    """The pixel values that are void or background, as numbers."""
    if isinstance(values, list) and by_color:
        return [_one_number(_color(value, path)) for value in values]
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v <= LARGEST for v in values):
        raise DataError(
            "expected whole numbers", where=path, why=f'"{name}" is {_short(values)}', fix="As in [0, 255]."
        )
    return values


def _one_number(color: Sequence[int]) -> int:
    return int(packed(np.array(color)))


def _label_map(labels: Sequence[Label], void: Iterable[int], background: Iterable[int], path: Path) -> LabelMap:
    """The `LabelMap`, whose own complaints name the file."""
    try:
        return LabelMap(tuple(labels), tuple(void), tuple(background))
    except DataError as error:
        raise DataError(error.what, where=path, why=error.why, fix=error.fix) from error


def _short(value: Any) -> str:
    return reprlib.repr(value)  # A YAML file of some lines can stand for millions of values.
