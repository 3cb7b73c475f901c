"""JSON annotation files of any size, decoded entry by entry; and entries that name themselves in every complaint.

`instances_train2017.json` is one object of 450 MB, which as Python objects takes many times that. So the lists in it
are walked, and of their entries there is never more than one in memory; each comes with its place in the file, where it
can be decoded again later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ..errors import DataError

LARGEST = 2**63 - 1
UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters and half surrogates, which are in no name that a file or a table could have."""


@dataclass(frozen=True)
class Entry:
    """One JSON object of an annotation file, which knows its place for whatever is wrong with it.

    Attributes:
        place: as in ``annotations[12]``.
    """

    value: dict[str, Any]
    path: Path
    place: str

    @classmethod
    def of(cls, value: Any, path: Path, place: str) -> Entry:
        """Raises `DataError` where the value is no object."""
        if not isinstance(value, dict):
            raise DataError("expected an object", where=f"{path}, {place}", why=f"found {brief(value)}")
        return cls(value, path, place)

    def error(self, what: str, why: str = "", fix: str = "") -> DataError:
        """The error that names file and entry: ``instances_val2017.json, annotations[12], id 34``."""
        number = self.value.get("id")
        known = f", id {brief(number)}" if isinstance(number, int | str) else ""
        return DataError(what, where=f"{self.path}, {self.place}{known}", why=why, fix=fix)

    def whole(self, key: str, lowest: int = 0, highest: int = LARGEST) -> int:
        """The whole number at `key`."""
        number = self._get(key)
        if type(number) is not int or not lowest <= number <= highest:
            bounds = f"from {lowest}" if highest == LARGEST else f"from {lowest} to {highest}"
            raise self.error(f"expected a whole number {bounds}", f'"{key}" is {brief(number)}')
        return number

    def text(self, key: str) -> str:
        """The text at `key`, which is not empty and can be printed and written."""
        text = self._get(key)
        if not isinstance(text, str) or not text.strip() or UNWRITABLE.search(text):
            raise self.error("expected text", f'"{key}" is {brief(text)}')
        return text

    def flag(self, key: str, default: bool) -> bool:
        """Whether 1 or true is at `key`."""
        number = self.value.get(key, default)
        if not isinstance(number, int) or number not in (0, 1):
            raise self.error("expected 0 or 1", f'"{key}" is {brief(number)}')
        return bool(number)

    def inner(self, key: str) -> list[Entry]:
        """The objects of the list at `key`."""
        values = self._get(key)
        if not isinstance(values, list):
            raise self.error("expected a list", f'"{key}" is {brief(values)}')
        return [Entry.of(value, self.path, f"{self.place}.{key}[{n}]") for n, value in enumerate(values)]

    def _get(self, key: str) -> Any:
        if key not in self.value:
            held = ", ".join(map(str, self.value))
            raise self.error(f'an entry lacks its "{key}"', f"it has {brief(held) if held else 'nothing'}")
        return self.value[key]


Span = tuple[int, int]
"""First byte and end of an entry in its file."""


def walk(path: Path, lists: Collection[str]) -> Iterator[tuple[str, Entry, Span]]:
    """(list, entry, where it is) for the entries of some lists of the one object in a file, as they come.

    Raises:
        DataError: the file cannot be read, is no JSON or lacks one of the lists; the message names the entry.
    """
    text, place, found = _Text(_read(path)), "its beginning", set[str]()
    try:
        for _ in text.items("{", "}"):
            key = place = text.key()
            if key not in lists:
                place = brief(key)
                text.value()
                continue
            if key in found:
                raise ValueError("it is there twice")
            found.add(key)
            for n in text.items("[", "]"):
                place = f"{key}[{n}]"
                value, span = text.value()
                yield key, Entry.of(value, path, place), span
        text.end()
    except (ValueError, RecursionError) as error:
        raise _damaged(path, place, error) from error
    if missing := [key for key in lists if key not in found]:
        why, fix = f"it has no {', '.join(missing)}", "Is it one of instances or of panoptic segments?"
        raise DataError("not an annotation file of COCO", where=path, why=why, fix=fix)


def read_again(path: Path, spans: dict[str, Span]) -> list[Entry]:
    """Entries at their places, by what they are called.

    Raises:
        DataError: the file is gone, or something else is there now.
    """
    place, entries = "", []
    try:
        with path.open("rb") as file:
            for place, (start, end) in spans.items():
                file.seek(start)
                entries.append(Entry.of(json.loads(file.read(end - start)), path, place))
    except OSError as error:
        raise DataError("cannot read an annotation file", where=path, why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise changed(path, place) from error
    return entries


def changed(path: Path, place: str) -> DataError:
    """The error for a file that is another one than when it was opened."""
    fix = "Open the data set again."
    return DataError("an annotation file has changed since it was opened", where=f"{path}, {place}", fix=fix)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError("cannot read an annotation file", where=path, why=error.strerror or str(error)) from error


def _damaged(path: Path, place: str, error: Exception) -> DataError:
    why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    fix = "It is damaged or cut off, or no JSON in UTF-8: get the file again."
    return DataError("cannot read an annotation file", where=f"{path}, {place}", why=why, fix=fix)


class _Text:
    """A position in JSON text, which moves on as values are read. Complaints are `ValueError` or `RecursionError`.

    The bytes are taken for Latin-1, so that positions are those of bytes: in UTF-8 what JSON is built of is ASCII.
    Strings that are not come out wrong that way, so entries that hold any are decoded once more.
    """

    SPACE = re.compile(r"[ \t\r\n]*")
    DECODER = json.JSONDecoder()

    def __init__(self, data: bytes) -> None:
        self.text, self.ascii = data.decode("latin-1"), data.isascii()
        self.at = 3 if data.startswith(b"\xef\xbb\xbf") else 0

    def value(self) -> tuple[Any, Span]:
        self._next()
        start = self.at
        value, self.at = self.DECODER.raw_decode(self.text, start)
        if not self.ascii and not (piece := self.text[start : self.at]).isascii():
            value = json.loads(piece.encode("latin-1").decode("utf-8"))
        return value, (start, self.at)

    def key(self) -> str:
        key, _ = self.value()
        if not isinstance(key, str):
            raise self._unexpected("a name in quotes")
        self._expect(":")
        return key

    def items(self, opening: str, closing: str) -> Iterator[int]:
        """Stops before each item between two brackets; whoever iterates reads it."""
        self._expect(opening)
        if self._next() != closing:
            for number in count():
                yield number
                if self._next() != ",":
                    break
                self.at += 1
        self._expect(closing)

    def end(self) -> None:
        if self._next():
            raise self._unexpected("the end")

    def _next(self) -> str:
        """The character after spaces, which stays to be read; empty at the end."""
        space = self.SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return self.text[self.at : self.at + 1]

    def _expect(self, mark: str) -> None:
        if self._next() != mark:
            raise self._unexpected(f"'{mark}'")
        self.at += 1

    def _unexpected(self, expected: str) -> ValueError:
        return ValueError(f"expected {expected} at byte {self.at}, found {brief(self.text[self.at : self.at + 20])}")
