"""Trainings on disks that are full, read-only or broken: real file systems, mounted where only this process sees them.

For each the training must end with an error that says what cannot be written, and go on when the disk is well again.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.stopped import exit_code, fork, in_fork
from tests.faults.tiny import STEPS, newest_step, train_tiny, unreadable, weights

CLONE_NEWNS = 0x00020000
EXT4_SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2
"""The file system fails every call from now on, and what is in memory is lost."""


def disturb_disks(data: Path, place: Path, expected: dict[str, str], count: int) -> None:
    """Each of three faults `count` times; what came of it is in ``result.json`` in `place`.

    Args:
        expected: SHA-256 of the weights that an undisturbed training ends in.
    """
    own_mounts()
    chance = random.Random(count)
    result: dict[str, list[str]] = {}
    for fault in (full, read_only, broken):
        result[fault.__name__] = []
        for trial in range(count):
            out = place / f"{fault.__name__}{trial}" / "disk"
            out.mkdir(parents=True)
            complaints = fault(data, out, chance)
            result[fault.__name__] += [f"{trial}: {complaint}" for complaint in complaints]
            if weights(place / "end") != expected:
                result[fault.__name__].append(f"{trial}: it ends in other weights")
    (place / "result.json").write_text(json.dumps(result))


def full(data: Path, disk: Path, chance: random.Random) -> list[str]:
    """Room for between none and three checkpoints; then more room."""
    mount("-t", "tmpfs", "-o", f"size={chance.randrange(16, 5000)}k", "none", str(disk))
    complaints = refused(data, disk)
    mount("-o", "remount,size=64m", str(disk))
    return complaints + finished(data, disk)


def read_only(data: Path, disk: Path, chance: random.Random) -> list[str]:
    """A training that was killed is started again where nothing can be written; then where it can."""
    mount("-t", "tmpfs", "-o", "size=64m", "none", str(disk))
    with training(data, disk, chance) as process:
        os.kill(process, signal.SIGKILL)
        exit_code(process)
    mount("-o", "remount,ro", str(disk))
    complaints = refused(data, disk)
    mount("-o", "remount,rw", str(disk))
    return complaints + finished(data, disk)


def broken(data: Path, disk: Path, chance: random.Random) -> list[str]:
    """The file system dies under the training as in a power cut; then it is mounted again."""
    image = disk.with_name("image")
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mount("-o", "loop", str(image), str(disk))
    with training(data, disk, chance) as process:
        shut_down(disk)
        code = exit_code(process)
    complaints = [] if code in (0, 1) else [f"it ended with {code}"]
    subprocess.run(["umount", str(disk)], check=True)
    mount("-o", "loop", str(image), str(disk))
    return complaints + finished(data, disk)


def refused(data: Path, disk: Path) -> list[str]:
    """What is wrong with the way in which a training refuses the disk."""
    code = in_fork(lambda: train_tiny(data, disk / "run"))
    return unreadable(disk / "run") + ([] if code == 1 else [f"it ended with {code}"])


def finished(data: Path, disk: Path) -> list[str]:
    """What is wrong with the checkpoints and with the training from there to its end; ``end`` points to it."""
    complaints = unreadable(disk / "run")
    code = in_fork(lambda: train_tiny(data, disk / "run"))
    end = disk.parents[1] / "end"
    end.unlink(missing_ok=True)
    end.symlink_to(disk / "run")
    return complaints + ([] if code == 0 else [f"afterwards it ended with {code}"])


@contextmanager
def training(data: Path, disk: Path, chance: random.Random) -> Iterator[int]:
    """The number of a process that trains and has come to a random step."""
    process = fork(lambda: train_tiny(data, disk / "run"))
    step = chance.randrange(STEPS - 1)
    while newest_step(disk / "run") <= step:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    yield process


def shut_down(disk: Path) -> None:
    handle = os.open(disk, os.O_RDONLY)
    fcntl.ioctl(handle, EXT4_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
    os.close(handle)


def own_mounts() -> None:
    """Mounts of this process are seen by it and its children alone, and go with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise PermissionError(ctypes.get_errno(), "mounting is not permitted")
    mount("--make-rprivate", "/")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
