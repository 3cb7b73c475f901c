"""What the doctor keeps of one sample: some hundred bytes, whatever the size of the files; and the file of them.

The file makes a check resumable: what was found out about a sample holds as long as its files have the same size and
time of change, the reader the same class table, and the doctor the same `VERSION`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import WriteError
from .kinds import REFUSED, Kind, Severity

VERSION = 1
"""To be raised whenever facts are found in another way: older ones are forgotten."""

Counts = dict[int, int]


@dataclass
class Facts:
    """What one sample gives away.

    Attributes:
        signs: what is wrong with it: name of the kind of finding, and the particulars in words.
        size: photo (H, W), (0, 0) where it cannot be read.
        digest: 64 bits of the photo's pixels; equal for equal photos, whatever their files are called.
        look: 64 bits that change little when a photo is resized or compressed again; None where it is one plain colour.
        mask_digest: of the mask's pixels.
        holds: "numbers", "palette" or "colours"; "" where no mask file could be read.
        values: pixels of each raw mask value, the most frequent ones; colours as one number. Only of masks whose
            values are classes, or whose reader is unknown.
        by_color: those values are colours.
        other_values: how many more different values there are.
        meanings: what the mask's own table says of those values.
        palette: colour of each of those values as one number, of palette files.
        shift: 1 or -1 if the values are those of the classes moved by one.
        binary: the mask holds nothing but 0 and 255, and 255 is no class.
        classes: pixels of each class index, -1 void, -2 background.
        segments: number of segments.
        sizes: how many things there are by class index and by the power of two of their area.
        framing: `masks.Framing` of the foreground.
    """

    signs: list[tuple[str, str]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    digest: int | None = None
    look: int | None = None
    mask_digest: int = 0
    holds: str = ""
    values: Counts = field(default_factory=dict)
    by_color: bool = False
    other_values: int = 0
    meanings: dict[int, str] = field(default_factory=dict)
    palette: Counts = field(default_factory=dict)
    shift: int = 0
    binary: bool = False
    classes: Counts = field(default_factory=dict)
    segments: int = 0
    sizes: dict[int, Counts] = field(default_factory=dict)
    framing: tuple[float, float] | None = None

    def sign(self, kind: Kind, detail: str = "") -> None:
        """Note that something is wrong."""
        self.signs.append((kind.name, detail))

    def put_first(self, signs: list[tuple[Kind, str]]) -> None:
        """Note what others found; where that is a fault, a mere refusal of the reader says no more."""
        if any(kind.severity == Severity.FAULT for kind, _ in signs):
            self.signs = [(name, detail) for name, detail in self.signs if name != REFUSED.name]
        self.signs = [(kind.name, detail) for kind, detail in signs] + self.signs

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """The inverse of `to_json`: JSON turns numbers that are keys into text and tuples into lists."""
        row: dict[str, Any] = json.loads(text)
        row["signs"] = [(name, detail) for name, detail in row["signs"]]
        for name in ("values", "meanings", "palette", "classes", "sizes"):
            row[name] = _numbered(row[name])
        row["sizes"] = {k: _numbered(counts) for k, counts in row["sizes"].items()}
        row["size"] = tuple(row["size"])
        row["framing"] = row["framing"] and tuple(row["framing"])
        return cls(**row)


def _numbered(row: dict[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in row.items()}


def stamp(paths: tuple[Path, ...], *more: str) -> str:
    """What changes when one of the files does: of their sizes and times of change, and of `more`."""
    parts = [*more]
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            parts.append(f"{path}|{status.st_size}|{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


class FactsFile:
    """Facts of the samples checked so far, in an SQLite file: whole after any interruption.

    Args:
        connection: to a database that has the table; None keeps nothing.
    """

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self.connection = connection

    def get(self, key: str, stamp: str) -> Facts | None:
        """The facts of a sample, None where there are none or its files have changed."""
        if self.connection is None:
            return None
        query = "SELECT facts FROM facts WHERE key = ? AND stamp = ?"
        row = self.connection.execute(query, (_blob(key), stamp)).fetchone()
        return Facts.from_json(row[0]) if row else None

    def put(self, key: str, stamp: str, facts: Facts) -> None:
        """Keep facts; they reach the disk with the next `commit`."""
        if self.connection is not None:
            row = (_blob(key), stamp, facts.to_json())
            self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row)

    def commit(self) -> None:
        """Write what was put."""
        if self.connection is not None:
            self.connection.commit()


def _blob(key: str) -> bytes:
    """Names of files may be no valid text."""
    return key.encode("utf-8", "surrogateescape")


@contextmanager
def open_facts(path: Path | None) -> Iterator[FactsFile]:
    """The facts at `path`, made anew where there are none or they cannot be read; None keeps nothing.

    Raises:
        WriteError: the system refuses to write there.
    """
    connection = None
    try:
        connection = _connected(path) if path else None
        store = FactsFile(connection)
        try:
            yield store
        finally:  # What was found out before an interruption stays.
            store.commit()
    except (sqlite3.Error, OSError) as error:
        fix = "Check the folder, its permissions and the free space."
        raise WriteError("cannot keep the progress of a check", where=path, why=str(error), fix=fix) from error
    finally:
        if connection:
            connection.close()


def _connected(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    try:
        return _with_table(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        if "not a database" not in str(error) and "malformed" not in str(error):
            raise
    path.unlink()  # Damaged; it is ours and only there to save time.
    return _with_table(sqlite3.connect(path))


def _with_table(connection: sqlite3.Connection) -> sqlite3.Connection:
    if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        connection.execute("DROP TABLE IF EXISTS facts")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("CREATE TABLE IF NOT EXISTS facts (key BLOB PRIMARY KEY, stamp TEXT, facts TEXT)")
    return connection
