"""Memory-mapped training sets: any data set, decoded and resized once, as flat binary files in one folder.

=================  ====================================================================================================
``images.bin``     uint8 [N, S, S, 3], or float16 0..1 [N, 3, S, S] as the original hybrid had it; 0 beyond the photo
``ids.bin``        the smallest of int8, int16, int32 that holds all ids: [M, S, S]; void beyond the photo. M is N, or
                   more where instances overlap: then a sample has as many consecutive maps as its id map has layers
``alpha.bin``      uint8 [A, S, S]: the mattes of the A samples that have one; absent if none has
``table.jsonl``    a `Row` for each sample: its name, its source files with their SHA-256, its sizes and segments
``manifest.json``  what the folder holds, and bytes and SHA-256 of every other file; it carries its own SHA-256 too
=================  ====================================================================================================

A packed folder carries one split. A folder that holds several of them (``train/``, ``val/``) opens by split. How a set
is built, and goes on after being cut off, is in `packing`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, DataError, UsageError
from ..labels import LabelMap
from ..types import Sample, Segments
from .base import Dataset
from .headerless import MappedArray, to_bytes
from .packfile import (
    ALPHA,
    ID_DTYPES,
    IDS,
    IMAGE_DTYPES,
    IMAGES,
    MANIFEST,
    PACK_AGAIN,
    PROGRESS,
    TABLE,
    Pixels,
    Row,
    file_sha256,
    is_ours,
    read_sealed,
)
from .packing import Build, check_reading, claim, clean_up, make_plan, origins


def pack(
    dataset: Dataset,
    out: str | Path,
    *,
    side: int = 640,
    dtype: str = "uint8",
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write `dataset` into folder `out` and open it. The same call again goes on where it was cut off.

    On a set that is complete it checks that the sources are still the same, and opens it.

    Args:
        dataset: any; several join by `Concat`.
        side: canvas of each image, whose longest side is resized to this.
        dtype: of the images: "uint8", or "fp16" for the original hybrid's form (twice the bytes, the same values).
        progress: called with (samples done, samples in all), first with what an earlier call has left.

    Raises:
        CheckpointError: the folder holds something else, a source file has changed since, or the disk is too small.
        ImageError, DataError: a sample cannot be read; what is done stays.
    """
    if dtype not in IMAGE_DTYPES or side < 1:
        fix = f"dtype is one of {', '.join(IMAGE_DTYPES)}; side is at least 1."
        raise UsageError("cannot pack like this", where="pack", why=f"side {side}, dtype {dtype!r}", fix=fix)
    if len(dataset) == 0:
        raise DataError("a data set is empty", where=dataset.root)
    folder, plan = Path(out), make_plan(dataset, side, dtype)
    if claim(folder, plan, dataset):
        check_reading(dataset, origins(dataset), Packed(folder).rows, side, dtype)
    else:
        with Build(dataset, folder, plan) as build:
            build.run(progress or (lambda done, total: None))
    clean_up(folder)
    return Packed(folder)


class Packed(Dataset):
    """A packed set, opened. Its samples are cropped to the photo, so geometry treats them like any others.

    Files are mapped when the first sample is read, in each process anew; the image of a uint8 set is a read-only view
    of the file's pages.

    Attributes:
        manifest: what `manifest.json` says.
        rows: the table.

    Raises:
        CheckpointError: not a packed set, not complete, or a file is missing, shorter or longer than it should be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(folder)
        self.manifest = _read_manifest(self.root)
        for name, entry in self.manifest["files"].items():
            _check_size(self.root / name, entry["bytes"])
        self.rows = _read_table(self.root / TABLE, self.manifest["files"][TABLE]["sha256"])
        self.split: str = self.manifest["split"]
        self.labels = LabelMap.from_json(self.manifest["classes"])
        self.names = [row.name for row in self.rows]
        self._maps = [0, *accumulate(row.maps for row in self.rows)]
        self._mattes = [0, *accumulate(row.matte for row in self.rows)]
        self._images, self._ids, self._alpha = self._arrays()

    def _arrays(self) -> tuple[MappedArray, MappedArray, MappedArray]:
        side, dtype = self.manifest["side"], self.manifest["dtype"]
        shape = (3, side, side) if dtype == "fp16" else (side, side, 3)
        return (
            MappedArray(self.root / IMAGES, IMAGE_DTYPES[dtype], (len(self.rows), *shape)),
            MappedArray(self.root / IDS, ID_DTYPES[self.manifest["ids"]], (self._maps[-1], side, side)),
            MappedArray(self.root / ALPHA, "<u1", (self._mattes[-1], side, side)),
        )

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        row, pixels = self.rows[index], self.pixels(index)
        height, width = row.content
        image = pixels.image
        if image.dtype != np.uint8:
            image = to_bytes(image, self._images.path, index).transpose(1, 2, 0)
        ids = pixels.ids[:, :height, :width]
        segments = Segments.build(
            ids if row.layers else ids[0],
            row.classes,
            labels=self.labels,
            crowd=row.crowd,
            scores=None if row.scores is None else torch.tensor(row.scores),
            alpha=pixels.alpha[0, :height, :width].copy() if row.matte else None,
        )
        # Of the sample, not of the class table: joined data sets may differ in what they call a thing.
        segments = replace(segments, is_thing=torch.tensor(row.things, dtype=torch.bool))
        return Sample(image[:height, :width], segments, row.name)

    def pixels(self, index: int) -> Pixels:
        """What the files hold of a sample, padding included."""
        maps, mattes = slice(*self._maps[index : index + 2]), slice(*self._mattes[index : index + 2])
        side = self.manifest["side"]
        alpha = self._alpha[mattes] if self.rows[index].matte else np.zeros((0, side, side), np.uint8)
        return Pixels(self._images[index], self._ids[maps], alpha)

    def files(self, index: int) -> tuple[Path, ...]:
        # Small, and by its hashes it stands for all the others.
        return (self.root / MANIFEST,)

    def verify(self) -> None:
        """Hold every byte against the manifest, and every sample against its row.

        Raises:
            CheckpointError: something has changed; the message names the file and the first sample that is damaged.
        """
        for name, entry in self.manifest["files"].items():
            _check_size(self.root / name, entry["bytes"])
            if file_sha256(self.root / name) != entry["sha256"]:
                raise _changed(self.root / name, self._first_damaged())
        if damaged := self._first_damaged():  # It was written wrongly, and the manifest made from that.
            raise _changed(self.root, damaged)

    def _first_damaged(self) -> str:
        damaged = (k for k, row in enumerate(self.rows) if self.pixels(k).digest(row) != row.digest)
        index = next(damaged, None)
        return "" if index is None else f"; first in sample {index}, {self.names[index]}"


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).exists():
        unfinished = is_ours(folder / PROGRESS)
        why = "it was cut off while being packed" if unfinished else f"there is no {MANIFEST}"
        fix = "Give the same pack command again: it goes on where it stopped." if unfinished else "Check the path."
        raise CheckpointError("no complete packed set", where=folder, why=why, fix=fix)
    return read_sealed(folder / MANIFEST)


def _check_size(path: Path, expected: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        why = f"expected {expected:,} bytes, " + ("there is no such file" if found is None else f"found {found:,}")
        raise CheckpointError("a packed file has another size", where=path, why=why, fix=PACK_AGAIN)


def _read_table(path: Path, expected: str) -> list[Row]:
    # Small beside the images, so it is always checked: a changed digit would be another class.
    if file_sha256(path) != expected:
        raise _changed(path)
    return [Row(**json.loads(line)) for line in path.read_bytes().splitlines()]


def _changed(path: Path, detail: str = "") -> CheckpointError:
    why = f"its SHA-256 is not the one that was written down{detail}"
    return CheckpointError("a packed file has changed", where=path, why=why, fix=PACK_AGAIN)


def detect(root: Path) -> str | None:
    """Why `root` is in this layout, None if it is not. One that is not complete counts: opening it says what to do."""
    own, inside = _own_files(root), _packed_folders(root)
    if own:
        return f"it has a {own[0]} of a packed set"
    return f"it holds packed sets: {', '.join(inside)}" if inside else None


def _own_files(root: Path) -> list[str]:
    return [name for name in (MANIFEST, PROGRESS) if is_ours(root / name)]


def _packed_folders(root: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{MANIFEST}")) if is_ours(path)}


def splits(root: Path) -> tuple[str, ...]:
    """The split that was packed, or the names of the packed folders inside; none where it was packed without."""
    own = _own_files(root)
    if own:
        split = read_sealed(root / own[0])["split"]
        return (split,) if split else ()
    return tuple(_packed_folders(root))


def open_split(root: Path, split: str) -> Packed:
    """The packed set in `root` itself, or in the folder of that name; "" takes "train" or the first.

    Raises:
        DataError: what was packed is another split.
    """
    inside = {} if _own_files(root) else _packed_folders(root)
    name = split or ("train" if "train" in inside else next(iter(inside), ""))
    packed = Packed(inside.get(name, root))
    if name and packed.split not in ("", name):
        why = f"asked for {name}, this was packed from {packed.split}"
        raise DataError("no such split", where=packed.root, why=why, fix="Pack that split too.")
    return packed
