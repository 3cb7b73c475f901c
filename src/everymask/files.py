"""Writing files whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import WriteError

PARTIAL_FILE = re.compile(r"\.[0-9a-f]{32}\.partial")


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; an older file there stays until then. Parent folders are made.

    Raises:
        WriteError: the system refuses (folder, permissions, space); nothing is left behind.
    """
    # Next to the target, because a rename is atomic only within one file system; by chance, for parallel writers.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system come out as a `WriteError` that names the file."""
    try:
        yield
    except OSError as error:
        why, fix = error.strerror or str(error), "Check the folder, its permissions and the free space."
        raise WriteError("cannot write a file", where=path, why=why, fix=fix) from error


def sweep_partial_files(folder: Path) -> None:
    """Delete what processes that were killed within `write_bytes` left in a folder that nobody else writes to now."""
    for path in folder.iterdir():
        if PARTIAL_FILE.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a file that was renamed could else be back after a crash."""
    if os.name == "nt":  # Windows opens no folders.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8; file names that are no valid text are escaped rather than refused."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, data: Any) -> None:
    """`write_text` of readable, strict JSON: numbers that are not finite become null."""
    write_text(path, json.dumps(_strict(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _strict(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
