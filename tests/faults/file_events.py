"""What a process does to the files below a folder, event by event: so that it can be stopped before any of them.

Python tells of each opening, renaming, linking and deleting (audit events) before it happens; fsync is made to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = ("os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.chmod")
"""Their last argument is the folder's descriptor that a path is relative to, or -1."""

DELETIONS = ("os.remove", "os.rmdir")


@dataclass(frozen=True)
class Event:
    """A change that is about to be made."""

    kind: str
    arguments: tuple[Any, ...]

    @property
    def path(self) -> Path:
        """What is changed; what is made, of a link or a renaming."""
        paths = [argument for argument in self.arguments if isinstance(argument, str | os.PathLike)]
        return Path(paths[-1]) if self.kind in ("os.rename", "os.symlink") else Path(paths[0])


def before_each(root: Path, act: Callable[[int, Event], None]) -> None:
    """From now on call `act(number, event)` before each event below `root`. It cannot be undone: for forked processes.

    What `act` raises, the call that caused the event raises.
    """
    count = 0

    def hook(kind: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if _matters(kind, arguments, str(root)):
            count += 1
            act(count - 1, Event(kind, arguments))

    real = os.fsync

    def fsync(handle: int) -> None:
        sys.audit("os.fsync", os.readlink(f"/proc/self/fd/{handle}"), handle)
        real(handle)

    os.fsync = fsync
    sys.addaudithook(hook)


def _matters(kind: str, arguments: tuple[Any, ...], root: str) -> bool:
    if kind == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return False
    relative = kind in CHANGES and arguments[-1] != -1  # As `shutil.rmtree` does it.
    below = any(isinstance(a, str | os.PathLike) and str(a).startswith(root) for a in arguments)
    return kind in ("open", "os.fsync", *CHANGES) and (relative or below)


class Unsynced:
    """What a power cut may take back: content of files and renamings that no fsync has put on the disk yet."""

    def __init__(self) -> None:
        self.files: dict[int, Path] = {}  # By inode, as files are renamed.
        self.renamings: list[tuple[Path, Path, str | None]] = []  # (from, to, link that was there before)
        self._opened: list[Path] = []

    def see(self, event: Event) -> None:
        """Note an event that is about to happen."""
        self._note_opened()
        if event.kind == "open":
            self._opened.append(event.path)
        elif event.kind == "os.rename":
            source, target = Path(event.arguments[0]), Path(event.arguments[1])
            self.renamings.append((source, target, os.readlink(target) if target.is_symlink() else None))
        elif event.kind == "os.fsync":
            self.files.pop(os.fstat(event.arguments[1]).st_ino, None)
            self.renamings = [r for r in self.renamings if event.path not in (r[0].parent, r[1].parent)]

    def _note_opened(self) -> None:
        for path in self._opened:
            if path.is_file():
                self.files[path.stat().st_ino] = path
        self._opened = []

    def lose(self, root: Path) -> None:
        """Empty the files and undo the renamings."""
        self._note_opened()
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_ino in self.files:
                os.truncate(path, 0)
        for source, target, link in reversed(self.renamings):
            if source.parent.is_dir():
                os.rename(target, source)
                if link is not None:
                    os.symlink(link, target)
