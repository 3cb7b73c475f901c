"""The folder of a training run: checkpoints that are whole or not there, and one training at a time.

    run/
        lock                      held by the process that trains
        checkpoints/00000400/     model, optimizer, progress, and a manifest of all of them
        last -> checkpoints/...   exchanged in one step, after its target is on the disk
        best -> checkpoints/...

A process may be killed, and the power may fail, at any moment: a checkpoint is begun under another name, every file is
flushed to the disk before the manifest, the manifest before the renaming, and the renaming before `last` points to it.
What is read back is checked against the manifest; where it is damaged, the checkpoint before it is taken, and said so.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from .errors import CheckpointError, TrainingError, WriteError
from .files import sweep_partial_files, sync_folder
from .manifest import faults_of, write_manifest

PARTIAL = ".partial-"

_held: set[BinaryIO] = set()
"""Lock files of this process."""


class RunFolder:
    """Checkpoints of one run.

    Args:
        out: the run's folder; made when something is written.
        keep: newest checkpoints that stay, besides the best one.
    """

    def __init__(self, out: Path, keep: int = 2) -> None:
        self.out, self.keep = out, keep
        self.checkpoints = out / "checkpoints"
        self._damaged: list[Path] = []  # As `newest` found them.

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else trains here meanwhile; what a killed process left half-written is cleared away.

        Raises:
            TrainingError: another process does.
            WriteError: the folder cannot be written to.
        """
        with self._lock_file() as file:
            _lock(file, self.out)
            _held.add(file)
            try:
                self._sign(file)
                self._sweep()
                yield
            finally:
                _held.discard(file)

    def _lock_file(self) -> BinaryIO:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            sync_folder(self.out.parent)
            # Without a buffer: what cannot be written is refused now, not when the file is closed.
            return (self.out / "lock").open("a+b", buffering=0)
        except OSError as error:
            raise _refused(self.out, error) from error

    def _sign(self, file: BinaryIO) -> None:
        """Who holds it, for the message to others."""
        try:
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        except OSError as error:
            raise _refused(self.out, error) from error

    def _sweep(self) -> None:
        for partial in self.checkpoints.glob(f"{PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)
        sweep_partial_files(self.out)

    def write(self, step: int, fill: Callable[[Path], None], facts: dict[str, Any]) -> Path:
        """A new checkpoint, on the disk when this returns.

        Args:
            fill: writes the files into the folder that it is given.
            facts: for the manifest.

        Raises:
            WriteError: the system refuses; all older checkpoints are as they were.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self.checkpoints, ignore_cleanup_errors=True) as place:
                fresh = Path(place) / "new"
                fresh.mkdir()
                fill(fresh)
                write_manifest(fresh, {"step": step, **facts})
                sync_folder(fresh)
                final = self._free_name(step)
                os.rename(fresh, final)
            sync_folder(self.checkpoints)
        except (OSError, SafetensorError) as error:
            raise _refused(self.checkpoints, error) from error
        return final

    def _free_name(self, step: int) -> Path:
        """Where a run came past this step before, that checkpoint stays whole until nothing points to it."""
        names = (f"{step:08d}", *(f"{step:08d}-{n}" for n in range(2, 1000)))
        return next(path for name in names if not (path := self.checkpoints / name).exists())

    def point(self, name: str, checkpoint: Path) -> None:
        """Let `name` ("last", "best") be this checkpoint, in one step.

        Raises:
            WriteError: the system refuses, or something else has that name.
        """
        link, target = self.out / name, os.path.relpath(checkpoint, self.out)
        try:
            if link.exists() and not link.is_symlink():
                raise OSError("something that is no checkpoint of this run has its name")
            with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self.checkpoints) as place:
                os.symlink(target, Path(place) / name)
                os.replace(Path(place) / name, link)
            sync_folder(self.out)
        except OSError as error:
            raise _refused(link, error) from error

    def prune(self) -> None:
        """Delete all but the newest checkpoints and those that `last` and `best` are; damaged ones do not count."""
        found = self.found()
        kept = {path.resolve() for path in (self.out / "last", self.out / "best")}
        kept |= {path.resolve() for path in [path for path in found if path not in self._damaged][: self.keep]}
        for checkpoint in found:
            if checkpoint.resolve() not in kept:
                self._delete(checkpoint)

    def _delete(self, checkpoint: Path) -> None:
        """Its name goes first, in one step: what has the name of a checkpoint is whole at any moment."""
        gone = self.checkpoints / f"{PARTIAL}{checkpoint.name}"
        with suppress(OSError):  # One too many does no harm.
            os.rename(checkpoint, gone)
            sync_folder(self.checkpoints)
            shutil.rmtree(gone)

    def found(self) -> list[Path]:
        """All checkpoints, the newest first, whether whole or not."""
        folders = [path for path in self.checkpoints.glob("[0-9]*") if path.is_dir()]
        return sorted(folders, key=_order, reverse=True)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, None for a new run, and what is wrong with newer ones.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole.
        """
        complaints: list[str] = []
        self._damaged = []
        for checkpoint in self.found():
            faults = faults_of(checkpoint)
            if not faults:
                return checkpoint, complaints
            self._damaged.append(checkpoint)
            complaints.append(f"{checkpoint.name}: {'; '.join(faults[:3])}")
        if complaints:
            fix = "Move this folder away to begin anew."
            raise CheckpointError("no checkpoint of this run is whole", where=self.out, why=complaints[0], fix=fix)
        return None, []


def _order(checkpoint: Path) -> tuple[int, int]:
    step, _, repeat = checkpoint.name.partition("-")
    return (int(step) if step.isdigit() else -1), (int(repeat) if repeat.isdigit() else 1)


def _lock(file: BinaryIO, out: Path) -> None:
    """Hold `file` until it is closed, or this process ends in whatever way."""
    try:
        import fcntl
    except ImportError:  # Windows: two trainings in one folder are not prevented there.
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        why = f"process {file.read().decode(errors='replace').strip() or 'unknown'} holds {out / 'lock'}"
        fix = "Wait for it, stop it, or give another --out."
        raise TrainingError("another training runs in this folder", where=out, why=why, fix=fix) from error
    except OSError as error:  # Some network file systems have no locks.
        fix = "Give an --out on a file system that has locks."
        raise WriteError("cannot lock the folder", where=out, why=error.strerror or str(error), fix=fix) from error


def _leave_locks() -> None:
    """A forked process holds every lock of its parent too: loader processes would, until they notice that it died."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def _refused(place: Path, error: Exception) -> WriteError:
    fix = "Check the folder, its permissions and the free space. Older checkpoints are as they were."
    return WriteError("cannot write a checkpoint", where=place, why=str(error), fix=fix)
