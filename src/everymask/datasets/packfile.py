"""The files of a packed set: their names, the table's rows, a sample's bytes, JSON that notices a change."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import CheckpointError, DataError
from ..transforms import Geometry
from ..types import Letterbox, Sample

FORMAT, SCHEMA = "everymask-packed", 1
MANIFEST, PROGRESS, TABLE = "manifest.json", "progress.json", "table.jsonl"
IMAGES, IDS, ALPHA = "images.bin", "ids.bin", "alpha.bin"
# Little-endian on every machine.
IMAGE_DTYPES = {"uint8": "<u1", "fp16": "<f2"}
ID_DTYPES = {"int8": "<i1", "int16": "<i2", "int32": "<i4"}
PACK_AGAIN = "Copy it again, or delete the folder and pack it anew."


@dataclass(frozen=True)
class Row:
    """What the table says of one sample.

    Attributes:
        name: the sample's.
        files: (path below its data set's folder, SHA-256) of each file that it was read from.
        source: (H, W) of the photo.
        content: (H, W) of the photo on the canvas, at its top left.
        layers: of its id map; 0 for a plain [H, W].
        classes, things, crowd: one entry a segment.
        scores: one a segment; None for truth.
        matte: whether it has one.
        dropped: segments too small to keep a pixel at this size.
        digest: SHA-256 of all of the above and of the sample's bytes in the binary files.
    """

    name: str
    files: list[list[str]]
    source: list[int]
    content: list[int]
    layers: int
    classes: list[int]
    things: list[bool]
    crowd: list[bool]
    scores: list[float] | None
    matte: bool
    dropped: int
    digest: str = ""

    @property
    def maps(self) -> int:
        """How many maps of ``ids.bin`` are its."""
        return max(1, self.layers)


@dataclass(frozen=True, eq=False)
class Pixels:
    """A sample's part of the binary files: image [S, S, 3] or [3, S, S], ids [maps, S, S], alpha [0 or 1, S, S]."""

    image: np.ndarray
    ids: np.ndarray
    alpha: np.ndarray

    def digest(self, row: Row) -> str:
        """The row's `Row.digest`: of the ids' values, however wide the file has them."""
        head = json.dumps({**asdict(row), "digest": ""}, sort_keys=True).encode()
        parts = [self.image.tobytes(), self.ids.astype("<i4").tobytes(), self.alpha.tobytes()]
        return hashlib.sha256(b"".join([head, *parts])).hexdigest()


def smallest_ids(highest: int) -> str:
    """The name of the smallest type that holds -1 and `highest`."""
    return next(name for name in ID_DTYPES if highest <= np.iinfo(name).max)


def encode(sample: Sample, side: int, dtype: str, files: list[list[str]]) -> tuple[Row, Pixels]:
    """A sample on its canvas: resized so that its longest side is `side`, at the top left."""
    height, width = sample.image.shape[:2]
    letterbox = replace(Letterbox.fit((height, width), side, multiple=1), canvas=(side, side))
    geometry = Geometry((0, 0, width, height), letterbox)
    segments, image = geometry.segments(sample.segments), geometry.image(sample.image).numpy()
    pixels = Pixels(
        (image.astype(np.float32) / 255).astype("<f2") if dtype == "fp16" else image.transpose(1, 2, 0),
        segments.id_map.numpy().reshape(-1, side, side),
        np.zeros((0, side, side), np.uint8) if segments.alpha is None else segments.alpha.numpy()[None],
    )
    row = Row(
        name=sample.name,
        files=files,
        source=[height, width],
        content=list(letterbox.content),
        layers=len(segments.id_map) if segments.id_map.ndim == 3 else 0,
        classes=segments.classes.tolist(),
        things=segments.is_thing.tolist(),
        crowd=segments.is_crowd.tolist(),
        scores=None if segments.scores is None else segments.scores.tolist(),
        matte=segments.alpha is not None,
        dropped=len(sample.segments) - len(segments),
    )
    return replace(row, digest=pixels.digest(row)), pixels


# --- JSON files that notice a change ----------------------------------------------------------------------------------


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` with its own SHA-256, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w") as file:
        file.write(json.dumps({**data, "sha256": _seal(data)}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_sealed(path: Path) -> dict[str, Any]:
    """The data of a file by `write_sealed`.

    Raises:
        CheckpointError: it cannot be read, has changed, or a newer version wrote it.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        seal, schema = data.pop("sha256"), int(data["schema"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot read a packed set", where=path, why=why, fix=PACK_AGAIN) from error
    if schema > SCHEMA:
        why = f"schema {schema}, this version reads up to {SCHEMA}"
        raise CheckpointError("a newer version packed this set", where=path, why=why, fix="Upgrade everymask.")
    if seal != _seal(data):
        raise CheckpointError("a packed file has changed", where=path, why="its own SHA-256 differs", fix=PACK_AGAIN)
    return data


def is_ours(path: Path) -> bool:
    """Whether a JSON file begins like one by `write_sealed`; nothing else of it is looked at."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(64)


def _seal(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError("cannot read a file", where=path, why=error.strerror or str(error)) from error


# --- the disk ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors (disk full, no permission) into one that says how to go on."""
    try:
        yield
    except OSError as error:
        fix = "Mend that and run the same command again: it goes on where it stopped."
        why = error.strerror or str(error)
        raise CheckpointError("cannot write the packed set", where=folder, why=why, fix=fix) from error


def require_space(folder: Path, needed: int) -> None:
    """Raise `CheckpointError` unless `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        why = f"{needed / 1e9:.2f} GB are still to be written, {free / 1e9:.2f} GB are free"
        fix = "Free some space, or pack with a smaller side or as uint8."
        raise CheckpointError("the disk is too small", where=folder, why=why, fix=fix)


def lock(file: IO[bytes], folder: Path) -> None:
    """Keep a second process out; the system lets go when this one ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows.
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(
            "another process is packing into this folder", where=folder, fix="Wait for it."
        ) from error
    except OSError:  # A file system without locks.
        return
