"""How a packed set is built: sample by sample, so that it may be cut off anywhere. `pack` is the way in.

Binary files and table are only ever appended to, the table row last. A row carries a digest of itself and of its
sample's bytes: going on keeps the rows that still agree with theirs, cuts away whatever follows them, and so ends with
the same bytes as if nothing had happened. The manifest is written last: where it is, all is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import CheckpointError
from ..types import Segments
from .base import Concat, Dataset, Subset
from .packfile import (
    ALPHA,
    FORMAT,
    ID_DTYPES,
    IDS,
    IMAGE_DTYPES,
    IMAGES,
    MANIFEST,
    PROGRESS,
    SCHEMA,
    TABLE,
    Pixels,
    Row,
    encode,
    file_sha256,
    lock,
    read_sealed,
    require_space,
    smallest_ids,
    write_sealed,
    writing,
)

# --- what is packed, and whether a folder is free for it --------------------------------------------------------------


def origins(dataset: Dataset) -> list[Dataset]:
    """The reader that each sample comes from, through all `Concat` and `Subset`."""
    if isinstance(dataset, Concat):
        return [origin for part in dataset.parts for origin in origins(part)]
    if isinstance(dataset, Subset):
        base = origins(dataset.base)
        return [base[index] for index in dataset.indices]
    return [dataset] * len(dataset)


def make_plan(dataset: Dataset, side: int, dtype: str) -> dict[str, Any]:
    """What a packed set is of: equal plans, equal bytes."""
    _source_sha256.cache_clear()  # A new call trusts nothing but the files.
    found = origins(dataset)
    counts = Counter(map(id, found))
    sources = [
        {
            "reader": type(o).__module__.split(".")[-1],
            "root": o.root.resolve().name,
            "split": o.split,
            "count": counts[k],
        }
        for k, o in {id(o): o for o in found}.items()
    ]
    plan = {
        "format": FORMAT,
        "schema": SCHEMA,
        # Not imported: no module here may import the root package, which by now is loaded all the same.
        "everymask": sys.modules[__name__.partition(".")[0]].__version__,
        "split": dataset.split,
        "side": side,
        "dtype": dtype,
        "count": len(dataset),
        "classes": dataset.labels.to_json(),
        "sources": sources,
        "order": hashlib.sha256("\n".join(dataset.names).encode(errors="surrogateescape")).hexdigest(),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(plan))
    return as_read


def claim(folder: Path, plan: Mapping[str, Any], dataset: Dataset) -> bool:
    """Make `folder` the place of `plan`; whether the set there is complete.

    Raises:
        CheckpointError: it holds another set, the difference being said, or other files.
    """
    for name in (MANIFEST, PROGRESS):
        if (folder / name).exists():
            _refuse_other(read_sealed(folder / name), plan, folder, dataset.names)
            return name == MANIFEST
    held = sorted(path.name for path in folder.glob("*") if path.name != f"{PROGRESS}.partial")
    if held:
        why = f"it holds {', '.join(held[:5])}"
        raise CheckpointError("the folder is in use", where=folder, why=why, fix="Choose an empty or a new one.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / PROGRESS, {**plan, "ids": "int8"})
    return False


def _refuse_other(held: Mapping[str, Any], plan: Mapping[str, Any], folder: Path, names: Sequence[str]) -> None:
    # Another version may resize otherwise: a set that is complete may stay, one that is not must not be mixed.
    keys = [key for key in plan if key != "everymask" or "files" not in held]
    differing = [
        f"{key}: {_shown(held.get(key))} there, {_shown(plan[key])} here" for key in keys if held.get(key) != plan[key]
    ]
    if differing:
        why = "; ".join(differing) + _other_name(folder, names)
        fix = "Choose another folder, or delete this one."
        raise CheckpointError("the folder holds another packed set", where=folder, why=why, fix=fix)


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "labels" in value:
        value = value["labels"]
    if not isinstance(value, list):
        return str(value)[:16] or "none"
    rows = [row.get("name") or f"{row['reader']} {row['root']} {row['split']} ({row['count']})" for row in value[:20]]
    return ", ".join(" ".join(text.split()) for text in rows) + (", ..." if len(value) > 20 else "")


def _other_name(folder: Path, names: Sequence[str]) -> str:
    """The first sample that is another one, as far as the table goes and can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        for index, (line, name) in enumerate(zip((folder / TABLE).read_text().splitlines(), names, strict=False)):
            if (held := json.loads(line)["name"]) != name:
                return f"; sample {index} is {held} there, {name} here"
    return ""


def check_reading(dataset: Dataset, found: Sequence[Dataset], rows: Sequence[Row], side: int, dtype: str) -> None:
    """Raise `CheckpointError` unless packed samples still come out of the data set as they did.

    Every source file of every row is compared, and the first sample of each source is read again: a reader with other
    options (what a pet's border is) has the same files.
    """
    seen: set[int] = set()
    for index, row in enumerate(rows):
        _check_files(dataset, found[index], index, row)
        if id(found[index]) not in seen and encode(dataset[index], side, dtype, row.files)[0] != row:
            why = f"sample {row.name} has other pixels or segments than when it was packed, from the same files"
            fix = "Use the reader, its options and the versions that it was packed with, or pack into a new folder."
            raise CheckpointError("the data set is read otherwise now", where=dataset.root, why=why, fix=fix)
        seen.add(id(found[index]))


def _check_files(dataset: Dataset, origin: Dataset, index: int, row: Row) -> None:
    now = source_files(dataset, origin, index)
    for path, (name, packed), (_, here) in zip(dataset.files(index), row.files, now, strict=False):
        if packed != here:
            why = f"sample {row.name}: {name} was packed with SHA-256 {packed[:12]}, now it is {here[:12]}"
            fix = "Pack into a new folder, or put the old file back."
            raise CheckpointError("a source file has changed since it was packed", where=path, why=why, fix=fix)


def source_files(dataset: Dataset, origin: Dataset, index: int) -> list[list[str]]:
    """(path below the root of its data set, SHA-256) of each file of a sample."""
    root = origin.root
    paths = dataset.files(index)
    names = [path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name for path in paths]
    return [[name, _source_sha256(path)] for name, path in zip(names, paths, strict=True)]


@lru_cache(maxsize=8)
def _source_sha256(path: Path) -> str:
    """Remembered for one call, because samples may share a file: an annotation JSON is not read for each of them."""
    return file_sha256(path)


def clean_up(folder: Path) -> None:
    """Remove what only building needs, from a folder that has its manifest."""
    for name in (PROGRESS, f"{PROGRESS}.partial", f"{MANIFEST}.partial"):
        (folder / name).unlink(missing_ok=True)


# --- the build --------------------------------------------------------------------------------------------------------


class Build:
    """A packed set in the making; a context manager that closes its files."""

    def __init__(self, dataset: Dataset, folder: Path, plan: Mapping[str, Any]) -> None:
        self.dataset, self.folder, self.plan = dataset, folder, plan
        self.side: int = plan["side"]
        self.image_dtype = np.dtype(IMAGE_DTYPES[plan["dtype"]])
        self.origins = origins(dataset)
        self.ids = "int8"
        self.rows: list[Row] = []
        self.files: dict[str, IO[bytes]] = {}

    def __enter__(self) -> Build:
        try:
            with writing(self.folder):
                self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _prepare(self) -> None:
        self._open(TABLE)
        lock(self.files[TABLE], self.folder)
        self.ids = read_sealed(self.folder / PROGRESS)["ids"]
        self._settle_widening()
        for name in (IMAGES, IDS, ALPHA):
            self._open(name)

    def _open(self, name: str) -> None:
        self.files[name] = open(self.folder / name, "a+b")  # noqa: SIM115 (closed by __exit__)

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            with suppress(OSError):  # Of the error that led here: what could not be written is written again.
                file.close()

    def run(self, progress: Callable[[int, int], None]) -> None:
        """All that is still to do."""
        self.resume()
        require_space(self.folder, self.bytes_to_come())
        total = len(self.dataset)
        progress(len(self.rows), total)
        for index in range(len(self.rows), total):
            files = source_files(self.dataset, self.origins[index], index)
            row, pixels = encode(self.dataset[index], self.side, self.plan["dtype"], files)
            with writing(self.folder):
                self.add(row, pixels)
            progress(index + 1, total)
        with writing(self.folder):
            self.finish()

    def resume(self) -> None:
        """Keep the rows that agree with the data, refuse if their sources have changed, cut away the rest."""
        for file in self.files.values():
            file.seek(0)
        table = 0
        for line in self.files[TABLE]:
            row = self._verified(line)
            if row is None:
                break
            self.rows.append(row)
            table += len(line)
        check_reading(self.dataset, self.origins, self.rows, self.side, self.plan["dtype"])
        with writing(self.folder):
            for name, size in {TABLE: table, **self.sizes()}.items():
                self.files[name].truncate(size)

    def _verified(self, line: bytes) -> Row | None:
        area = self.side**2
        try:
            row = Row(**json.loads(line))
            pixels = Pixels(
                np.frombuffer(self.files[IMAGES].read(3 * area * self.image_dtype.itemsize), self.image_dtype),
                np.frombuffer(self.files[IDS].read(row.maps * area * self._ids_dtype.itemsize), self._ids_dtype),
                np.frombuffer(self.files[ALPHA].read(row.matte * area), np.uint8),
            )
            sound = line.endswith(b"\n") and pixels.digest(row) == row.digest
        except (ValueError, TypeError, MemoryError, OverflowError):  # A torn or damaged row may hold anything.
            return None
        return row if sound else None

    @property
    def _ids_dtype(self) -> np.dtype:
        return np.dtype(ID_DTYPES[self.ids])

    def sizes(self) -> dict[str, int]:
        """Bytes of each binary file for the rows so far."""
        area, maps, mattes = self.side**2, sum(row.maps for row in self.rows), sum(row.matte for row in self.rows)
        images = len(self.rows) * 3 * area * self.image_dtype.itemsize
        return {IMAGES: images, IDS: maps * area * self._ids_dtype.itemsize, ALPHA: mattes * area}

    def bytes_to_come(self) -> int:
        """An estimate that takes the first sample of each source for typical."""
        left = Counter(map(id, self.origins[len(self.rows) :]))
        first = {id(origin): index for index, origin in reversed(list(enumerate(self.origins)))}
        return sum(count * self._sample_bytes(self.dataset[first[key]].segments) for key, count in left.items())

    def _sample_bytes(self, segments: Segments) -> int:
        maps = len(segments.id_map) if segments.id_map.ndim == 3 else 1
        return self.side**2 * (
            3 * self.image_dtype.itemsize + maps * self._ids_dtype.itemsize + (segments.alpha is not None)
        )

    def add(self, row: Row, pixels: Pixels) -> None:
        """Append one sample: its row comes last, because it vouches for the rest."""
        if len(row.classes) > np.iinfo(self.ids).max:
            self._widen(smallest_ids(len(row.classes)))
        self._append(IMAGES, pixels.image.tobytes())
        self._append(IDS, pixels.ids.astype(self._ids_dtype).tobytes())
        self._append(ALPHA, pixels.alpha.tobytes())
        self._append(TABLE, json.dumps(asdict(row)).encode() + b"\n")
        self.rows.append(row)

    def _append(self, name: str, data: bytes) -> None:
        self.files[name].write(data)
        self.files[name].flush()

    def _widen(self, wider: str) -> None:
        """Rewrite the ids with more bytes each. The new file is in force once `PROGRESS` says so."""
        require_space(self.folder, self.sizes()[IDS] // self._ids_dtype.itemsize * np.dtype(wider).itemsize)
        with open(self.folder / f"{IDS}.{wider}", "wb") as target:
            self.files[IDS].seek(0)
            while block := self.files[IDS].read(self.side**2 * self._ids_dtype.itemsize):
                target.write(np.frombuffer(block, self._ids_dtype).astype(ID_DTYPES[wider]).tobytes())
        self.files[IDS].close()
        self.ids = wider
        write_sealed(self.folder / PROGRESS, {**self.plan, "ids": wider})
        self._settle_widening()
        self._open(IDS)

    def _settle_widening(self) -> None:
        """Put the wider file into its place if it is in force; one that is not will be written anew."""
        if (self.folder / f"{IDS}.{self.ids}").exists():
            os.replace(self.folder / f"{IDS}.{self.ids}", self.folder / IDS)

    def finish(self) -> None:
        """Everything to the disk, then the manifest."""
        for file in self.files.values():
            os.fsync(file.fileno())
            file.close()
        names = [IMAGES, IDS, TABLE, *([ALPHA] if any(row.matte for row in self.rows) else [])]
        if ALPHA not in names:
            (self.folder / ALPHA).unlink()
        paths = {name: self.folder / name for name in names}
        manifest = {
            **self.plan,
            "ids": self.ids,
            "maps": sum(row.maps for row in self.rows),
            "mattes": sum(row.matte for row in self.rows),
            "dropped_segments": sum(row.dropped for row in self.rows),
            "files": {name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for name, p in paths.items()},
        }
        write_sealed(self.folder / MANIFEST, manifest)
