"""Checkpoints of a run: whole or not there, and what is said of those that are not."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everymask.errors import CheckpointError, TrainingError, WriteError
from everymask.interrupts import stop_requests
from everymask.manifest import faults_of, write_manifest
from everymask.run_folder import RunFolder


def fill(text: str = "weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.bin").write_text(text)
        (folder / "b.bin").write_bytes(bytes(5000))

    return write


def written(out: Path, *steps: int, keep: int = 2) -> RunFolder:
    run = RunFolder(out, keep)
    for step in steps:
        run.point("last", run.write(step, fill(str(step)), {"configuration": "abc"}))
        run.prune()
    return run


# --- manifest --------------------------------------------------------------------------------------------------------


def drop(folder: Path) -> None:
    (folder / "b.bin").unlink()


def cut(folder: Path) -> None:
    (folder / "b.bin").write_bytes(bytes(4096))


def flip(folder: Path) -> None:
    (folder / "b.bin").write_bytes(bytes(4999) + b"\1")


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def space(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")


def other_hash(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    data["files"]["b.bin"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def newer(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    write_manifest(folder, {"schema": 2})


def no_file(folder: Path) -> None:
    (folder / "b.bin").unlink()
    (folder / "b.bin").mkdir()


def no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (drop, "b.bin is missing"),
        (cut, "b.bin has 4,096 of 5,000 bytes"),
        (flip, "b.bin was changed"),
        (no_manifest, "manifest.json: No such file or directory"),
        (space, "manifest.json was changed"),
        (other_hash, "manifest.json was changed"),
        (newer, "a newer version wrote it (schema 2)"),
        (no_json, "manifest.json is damaged"),
        (no_file, "b.bin is missing"),
    ],
)
def test_faults_of_a_folder(tmp_path: Path, damage: Callable[[Path], None], fault: str) -> None:
    fill()(tmp_path)
    write_manifest(tmp_path, {"step": 3})
    assert faults_of(tmp_path) == []
    damage(tmp_path)
    assert faults_of(tmp_path) == [fault]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    run = written(tmp_path, 2, 10, 4, keep=9)
    assert [path.name for path in run.found()] == ["00000010", "00000004", "00000002"]
    flip(tmp_path / "checkpoints" / "00000010")
    found, complaints = run.newest()
    assert found == tmp_path / "checkpoints" / "00000004"
    assert complaints == ["00000010: b.bin was changed"]


def test_a_new_run_has_nothing_to_resume(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "none").newest() == (None, [])


def test_where_none_is_whole_it_is_said(tmp_path: Path) -> None:
    run = written(tmp_path, 2)
    cut(tmp_path / "checkpoints" / "00000002")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of this run is whole: .* \(00000002: b\.bin has 4,096 of"
    ):
        run.newest()


def test_a_step_that_is_written_again_is_another_checkpoint(tmp_path: Path) -> None:
    run = written(tmp_path, 2, 2)
    assert [path.name for path in run.found()] == ["00000002-2", "00000002"]
    assert (tmp_path / "last" / "a.bin").read_text() == "2"


@pytest.mark.parametrize("call", ["rename", "fsync", "mkdir"])
def test_a_disk_that_refuses_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = written(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(
            WriteError, match=r"cannot write a checkpoint: .*No space left.*Older checkpoints are as they"
        ):
            run.write(4, fill(), {})
    assert [path.name for path in run.checkpoints.iterdir()] == ["00000002"]
    assert run.newest() == (run.checkpoints / "00000002", [])


def test_a_name_that_is_taken_is_not_overwritten(tmp_path: Path) -> None:
    run = written(tmp_path, 2)
    (tmp_path / "best").mkdir()
    with pytest.raises(WriteError, match="something that is no checkpoint of this run has its name"):
        run.point("best", run.found()[0])
    assert (tmp_path / "best").is_dir()


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    written(tmp_path / "run", 2)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "last" / "a.bin").read_text() == "2"


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    """And its lock is nobody's any more."""
    code = f"""
import os, sys
from pathlib import Path
from everymask.run_folder import RunFolder
run = RunFolder(Path({str(tmp_path)!r}))
with run.locked():
    run.write(2, lambda folder: os.kill(os.getpid(), 9), {{}})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    run = RunFolder(tmp_path)
    assert len(list(run.checkpoints.iterdir())) == 1
    assert run.newest() == (None, [])
    with run.locked():
        assert list(run.checkpoints.iterdir()) == []


def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(tmp_path: Path) -> None:
    written(tmp_path, 2, 4)
    flip(tmp_path / "checkpoints" / "00000004")
    run = RunFolder(tmp_path, keep=2)
    run.newest()
    run.point("last", run.write(4, fill(), {}))
    run.prune()
    assert [path.name for path in run.found()] == ["00000004-2", "00000002"]


def test_a_checkpoint_that_is_half_deleted_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path, **_: Any) -> None:
        (folder / "a.bin").unlink()
        raise KeyboardInterrupt

    run = written(tmp_path, 2, 4, 6, keep=3)
    run.keep = 2
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            run.prune()
    assert [path.name for path in run.found()] == ["00000006", "00000004"]
    with run.locked():
        assert sorted(path.name for path in run.checkpoints.iterdir()) == ["00000004", "00000006"]


def test_files_that_a_killed_process_began_are_swept_away(tmp_path: Path) -> None:
    begun, own = tmp_path / f".{'0123456789abcdef' * 2}.partial", tmp_path / ".my.partial"
    begun.touch()
    own.touch()
    with RunFolder(tmp_path).locked():
        assert not begun.exists()
        assert own.exists()


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Loader processes live on for seconds after the training was killed."""
    code = f"""
import os, time
from pathlib import Path
from everymask.run_folder import RunFolder
with RunFolder(Path({str(tmp_path)!r})).locked():
    if not os.fork():
        print(os.getpid(), flush=True)
        os.kill(os.getppid(), 9)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.wait() == -signal.SIGKILL
        try:
            with RunFolder(tmp_path).locked():
                os.kill(child, 0)  # It lives.
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(WriteError, match=r"cannot lock the folder: .* \(No locks available\)\. Give an --out"):
        RunFolder(tmp_path).locked().__enter__()


def test_the_lock_is_held_by_one(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path).locked(),
        pytest.raises(TrainingError, match=rf"process {os.getpid()} holds"),
        RunFolder(tmp_path).locked(),
    ):
        pass
    with RunFolder(tmp_path).locked():
        pass


# --- signals ---------------------------------------------------------------------------------------------------------


def test_the_first_signal_is_a_request_and_the_second_acts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.obey()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (signal.default_int_handler, before)


def test_other_threads_are_told_nothing() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
