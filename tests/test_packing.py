"""Building a packed set: killed, damaged, out of space, mixed up with another one. It goes on or says why not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from test_matting_readers import made_pair, made_pairs, write_p3m
from test_pack import SIDE, Made, build_until, contents, flipped, mixed

from everymask.datasets import Subset, open_dataset, packfile
from everymask.datasets.pack import pack
from everymask.datasets.packing import Build, make_plan
from everymask.datasets.pets import Pets
from everymask.errors import CheckpointError, DataError, EverymaskError, UsageError
from everymask.image import write_png
from everymask.labels import Label, LabelMap
from everymask.types import Sample

# --- killed, damaged, resumed ----------------------------------------------------------------------------------------

KILLER = """
import os, shutil, signal, sys, warnings
from pathlib import Path
import torch
from everymask.datasets.pack import pack
from test_pack import SIDE, contents, mixed

torch.set_num_threads(1)
warnings.simplefilter("ignore", DeprecationWarning)  # Of forks.
work = Path(sys.argv[1])
TOUCHING = {"write", "flush", "truncate", "replace", "unlink", "fsync", "mkdir"}

def build(out, progress=None):
    return pack(mixed(work / "data"), out, side=SIDE, progress=progress)

def killed(out, at):
    '''Whether a child that dies just before it touches a file for the `at`-th time died.'''
    child = os.fork()
    if child == 0:
        touched = 0
        def watch(frame, event, function):
            nonlocal touched
            ours = "everymask" in frame.f_code.co_filename or "pathlib" in frame.f_code.co_filename
            if event == "c_call" and ours and function.__name__ in TOUCHING:
                touched += 1
                if touched == at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(watch)
        build(out)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def stopped(out, at):
    '''The same with os._exit in the progress callback, after `at` samples.'''
    child = os.fork()
    if child == 0:
        build(out, lambda done, total: os._exit(9) if done == at else None)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

build(work / "whole")
whole = contents(work / "whole")
assert set(whole) == {"images.bin", "ids.bin", "alpha.bin", "table.jsonl", "manifest.json"}, set(whole)

# Each point once, in a folder of its own.
at = 1
while killed(work / "out", at):
    build(work / "out")
    assert contents(work / "out") == whole, f"killed at {at}"
    shutil.rmtree(work / "out")
    at += 1
shutil.rmtree(work / "out")
assert at > 50, f"only {at} points"

# One folder: every call gets a little further before it dies.
at = 15
while killed(work / "out", at):
    at += 1
assert contents(work / "out") == whole, "killed again and again"
shutil.rmtree(work / "out")

for at in range(len(mixed(work / "data")) + 1):
    assert stopped(work / "out", at), f"stopped at {at}"
build(work / "out")
assert contents(work / "out") == whole, "stopped again and again"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_build_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["images.bin", "ids.bin", "alpha.bin", "table.jsonl"])
@pytest.mark.parametrize("damage", ["torn", "cut", "empty", "longer", "flipped", "end flipped", "absent"])
def test_progress_is_trusted_as_far_as_it_verifies(tmp_path: Path, name: str, damage: str) -> None:
    dataset, out = mixed(tmp_path / "data"), tmp_path / "out"
    pack(dataset, tmp_path / "whole", side=SIDE)
    build_until(dataset, out, 4)
    path = out / name
    data = path.read_bytes()
    damaged = {
        "torn": data[:-1],
        "cut": data[: len(data) // 3],
        "empty": b"",
        "longer": data + b'{"name": "x"}\n',
        "flipped": flipped(data, len(data) // 2),
        "end flipped": flipped(data, len(data) - 1),
    }
    path.unlink()
    if damage != "absent":
        path.write_bytes(damaged[damage])
    done: list[int] = []
    pack(dataset, out, side=SIDE, progress=lambda count, total: done.append(count))
    assert contents(out) == contents(tmp_path / "whole")
    assert done[0] < 4 or damage == "longer"
    assert done == list(range(done[0], len(dataset) + 1))


def test_finished_samples_are_not_read_again(tmp_path: Path) -> None:
    dataset, out = open_dataset(write_p3m(tmp_path / "p3m", made_pairs(4))), tmp_path / "out"
    build_until(dataset, out, 3)
    read: list[int] = []

    class Watched(Subset):
        def __getitem__(self, index: int) -> Sample:
            read.append(index)
            return super().__getitem__(index)

    pack(Watched(dataset, range(4)), out, side=SIDE)
    assert sorted(set(read)) == [0, 3]  # The first of each source, to see that it is still read alike.
    read.clear()
    pack(Watched(dataset, range(4)), out, side=SIDE)
    assert read == [0]


def test_full_disk_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, out = mixed(tmp_path / "data"), tmp_path / "out"
    append = Build._append

    def full(self: Build, name: str, data: bytes) -> None:
        if len(self.rows) == 2 and name == "ids.bin":
            append(self, name, data[:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Build, "_append", full)
        with pytest.raises(CheckpointError) as caught:
            pack(dataset, out, side=SIDE)
    assert str(caught.value) == (
        f"cannot write the packed set: {out} (No space left on device). "
        "Mend that and run the same command again: it goes on where it stopped."
    )
    assert contents(pack(dataset, out, side=SIDE).root) == contents(pack(dataset, tmp_path / "whole", side=SIDE).root)


def test_small_disk_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 13_000_000))
    dataset = open_dataset(write_p3m(tmp_path / "p3m", made_pairs(7)))
    with pytest.raises(CheckpointError) as caught:
        pack(dataset, tmp_path / "out")  # 7 x 640 x 640 x (3 + 1 + 1) bytes
    assert str(caught.value) == (
        f"the disk is too small: {tmp_path / 'out'} (0.01 GB are still to be written, 0.01 GB are free). "
        "Free some space, or pack with a smaller side or as uint8."
    )
    assert (tmp_path / "out/images.bin").stat().st_size == 0
    pack(dataset, tmp_path / "small", side=600)


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    dataset, out = mixed(tmp_path / "data"), tmp_path / "out"
    build_until(dataset, out, 1)
    with (
        Build(dataset, out, make_plan(dataset, SIDE, "uint8")),
        pytest.raises(CheckpointError, match="another process is packing into this folder"),
    ):
        pack(dataset, out, side=SIDE)
    pack(dataset, out, side=SIDE)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("side", "side: 32 there, 16 here"),
        ("dtype", "dtype: uint8 there, fp16 here"),
        ("root", "sources: p3m one train (3) there, p3m two train (3) here"),
        ("order", "sample 0 is p_000 there, p_002 here"),
        ("count", "count: 3 there, 2 here; sources: p3m one train (3) there, p3m one train (2) here"),
        ("classes", "classes: person there, cat here"),
    ],
)
def test_another_set_in_the_folder_is_refused(tmp_path: Path, change: str, expected: str, complete: bool) -> None:
    dataset, out = open_dataset(write_p3m(tmp_path / "one", made_pairs(3))), tmp_path / "out"
    pack(dataset, out, side=SIDE) if complete else build_until(dataset, out, 2)
    before = contents(out)
    other, side, dtype = dataset, SIDE, "uint8"
    if change == "side":
        side = 16
    elif change == "dtype":
        dtype = "fp16"
    elif change == "root":
        other = open_dataset(write_p3m(tmp_path / "two", made_pairs(3)))
    elif change == "classes":
        other = open_dataset(tmp_path / "one")
        other.labels = LabelMap((Label("cat", dataset.labels[0].color),))
    else:
        other = Subset(dataset, [2, 1, 0] if change == "order" else [0, 1])
    with pytest.raises(CheckpointError) as caught:
        pack(other, out, side=side, dtype=dtype)
    assert str(caught.value).startswith(f"the folder holds another packed set: {out} (")
    assert expected in str(caught.value)
    assert str(caught.value).endswith(". Choose another folder, or delete this one.")
    assert contents(out) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/holiday.txt").write_text("x")
    with pytest.raises(CheckpointError) as caught:
        pack(mixed(tmp_path / "data"), tmp_path / "out", side=SIDE)
    expected = f"the folder is in use: {tmp_path / 'out'} (it holds holiday.txt). Choose an empty or a new one."
    assert str(caught.value) == expected


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("file", [0, 1])
def test_changed_source_is_refused(tmp_path: Path, complete: bool, file: int) -> None:
    dataset, out = open_dataset(write_p3m(tmp_path / "p3m", made_pairs(3))), tmp_path / "out"
    pack(dataset, out, side=SIDE) if complete else build_until(dataset, out, 2)
    path, other = dataset.files(1)[file], dataset.files(2)[file]
    packed, now = packfile.file_sha256(path), packfile.file_sha256(other)
    path.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError) as caught:
        pack(dataset, out, side=SIDE)
    name = path.relative_to(tmp_path / "p3m").as_posix()
    assert str(caught.value) == (
        f"a source file has changed since it was packed: {path} (sample p_001: {name} was packed with SHA-256 "
        f"{packed[:12]}, now it is {now[:12]}). Pack into a new folder, or put the old file back."
    )


@pytest.mark.parametrize("complete", [True, False])
def test_other_reader_options_are_refused(tmp_path: Path, complete: bool) -> None:
    trimap = np.tile(np.uint8([1, 2, 3, 2]), (8, 2))
    for name in ("Bengal_1", "Bengal_2"):
        write_png(tmp_path / f"pets/images/{name}.png", made_pair(0, 8, 8)[0])
        write_png(tmp_path / f"pets/trimaps/{name}.png", trimap)
    out = tmp_path / "out"
    void, foreground = Pets(tmp_path / "pets"), Pets(tmp_path / "pets", border="foreground")
    pack(void, out, side=SIDE) if complete else build_until(void, out, 1)
    with pytest.raises(CheckpointError, match="the data set is read otherwise now"):
        pack(foreground, out, side=SIDE)
    pack(void, out, side=SIDE)


def test_unreadable_sample_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    dataset, out = open_dataset(write_p3m(tmp_path / "p3m", made_pairs(3))), tmp_path / "out"
    mask = dataset.files(2)[1]
    sound = mask.read_bytes()
    mask.write_bytes(sound[:40])
    with pytest.raises(EverymaskError, match=r"p_002\.png"):
        pack(dataset, out, side=SIDE)
    mask.write_bytes(sound)
    done: list[int] = []
    pack(dataset, out, side=SIDE, progress=lambda count, total: done.append(count))
    assert done == [2, 3]


@pytest.mark.parametrize("options", [{"side": 0}, {"dtype": "int4"}])
def test_arguments_that_make_no_sense(tmp_path: Path, options: dict) -> None:
    with pytest.raises(UsageError, match="dtype is one of uint8, fp16; side is at least 1"):
        pack(mixed(tmp_path / "data"), tmp_path / "out", **options)
    with pytest.raises(DataError, match="a data set is empty"):
        pack(Made([]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
