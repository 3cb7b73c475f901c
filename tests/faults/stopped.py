"""One piece of work on files, stopped wherever it can be: killed, cut off in a file, refused, or by a power cut."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everymask.errors import WriteError
from tests.faults.file_events import DELETIONS, Event, Unsynced, before_each

BLOCK = 4096
REFUSALS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO}
REFUSED, FAILED = 3, 70
"""Exit codes of a process: a `WriteError`, and any other error."""


@dataclass(frozen=True)
class Stop:
    """Where and how: before event number `event`, or `size` bytes into the file that it opens."""

    how: str  # "kill", "power cut", a key of REFUSALS; with a size "cut" or "write refused".
    event: int
    size: int = -1


@dataclass
class Work:
    """What is stopped.

    Attributes:
        before: a folder as it is beforehand; it is copied for every stop.
        act: the work, in a copy.
        faults: what is wrong with a copy afterwards.
    """

    before: Path
    act: Callable[[Path], Any]
    faults: Callable[[Path], list[str]]
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def stop_everywhere(self, every: int = 1) -> None:
        """At every event and every block of every file, or at each `every`-th of these points."""
        copy = self.before.with_name("copy")
        for stop in list(self._stops(copy))[::every]:
            self._reset(copy)
            code = in_fork(lambda stop=stop: self._stopped(copy, stop))
            expected = (0, REFUSED) if stop.how in (*REFUSALS, "write refused") else (-signal.SIGKILL, -signal.SIGXFSZ)
            found = self.faults(copy) + ([] if code in expected else [f"it ended with {code}"])
            self.counts[stop.how] += 1
            self.complaints += [f"{stop}: {fault}" for fault in found]
        shutil.rmtree(copy)

    def _reset(self, copy: Path) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.before, copy, symlinks=True, copy_function=os.link)  # Nothing is written in place.

    def _stops(self, copy: Path) -> Iterator[Stop]:
        sizes = self._undisturbed(copy)
        for number, size in enumerate(sizes):
            yield from (Stop(how, number) for how in ("kill", "power cut", *REFUSALS))
            for at in range(0, size, BLOCK):
                yield from (Stop(how, number, at) for how in ("cut", "write refused"))

    def _undisturbed(self, copy: Path) -> list[int]:
        """For each event the bytes that are written into the file that it opens; 0 for other events."""
        self._reset(copy)
        log = copy.with_name("events")
        assert in_fork(lambda: self._logged(copy, log)) == 0
        return [int(line) for line in log.read_text().splitlines()]

    def _logged(self, copy: Path, log: Path) -> None:
        opened: list[Path | None] = []
        sizes: list[int] = []

        def act(number: int, event: Event) -> None:
            measure()
            opened.append(event.path if event.kind == "open" else None)
            sizes.append(0)

        def measure() -> None:
            """Before the next event a file may have been written that has its first name still."""
            for index, path in enumerate(opened):
                if path is not None and path.is_file():
                    sizes[index] = path.stat().st_size

        before_each(copy, act)
        self.act(copy)
        log.write_text("".join(f"{size}\n" for size in sizes))

    def _stopped(self, copy: Path, stop: Stop) -> None:
        before_each(copy, stopper(copy, stop))
        self.act(copy)


def stopper(root: Path, stop: Stop) -> Callable[[int, Event], None]:
    """What is to happen before each event."""
    unsynced = Unsynced()

    def refuse(number: int, event: Event) -> None:
        if number >= stop.event and not (stop.how == "full" and event.kind in DELETIONS):
            raise OSError(REFUSALS[stop.how], os.strerror(REFUSALS[stop.how]))

    def end(number: int, event: Event) -> None:
        if number == stop.event:
            os.kill(os.getpid(), signal.SIGKILL)

    def lose_power(number: int, event: Event) -> None:
        if number == stop.event:
            unsynced.lose(root)
            os.kill(os.getpid(), signal.SIGKILL)
        unsynced.see(event)

    def limit(number: int, event: Event) -> None:
        if number == stop.event:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if stop.how == "cut" else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (stop.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return {"kill": end, "power cut": lose_power, "cut": limit, "write refused": limit}.get(stop.how, refuse)


def in_fork(work: Callable[[], None]) -> int:
    """Exit code of a forked process that does this: `REFUSED` for a `WriteError`; a negative number is a signal's."""
    return exit_code(fork(work))


def fork(work: Callable[[], None]) -> int:
    """The number of a process that does this."""
    process = os.fork()
    if not process:
        try:
            work()
        except WriteError:
            os._exit(REFUSED)
        except SystemExit as stopped:
            os._exit(int(stopped.code or 0))
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    return process


def exit_code(process: int) -> int:
    """Wait for its end."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
