"""Trainings in processes of their own that start at once: forked from a server that has imported everything before.

Starting Python and importing PyTorch takes longer than the tiny trainings here, which are started hundreds of times.
The server computes with one thread, as PyTorch's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PRELOADED = "tests.faults.warm"


def start(work: Callable[..., Any], *arguments: Any, log: Path) -> ForkServerProcess:
    """A process that calls `work(*arguments)`, with a process group of its own; what it prints goes to `log`.

    ``exitcode`` is 0, what `sys.exit` was called with, or minus the number of the signal that ended it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with _environment(OMP_NUM_THREADS="1", PYTHONPATH=str(REPOSITORY)):
        process = context.Process(target=_run, args=(work, arguments, log))
        process.start()
    return process


def run(work: Callable[..., Any], *arguments: Any, log: Path) -> int:
    """`start`, wait for the end, return the exit code."""
    process = start(work, *arguments, log=log)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """For the server, which inherits what the call that starts it has."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(work: Callable[..., Any], arguments: tuple[Any, ...], log: Path) -> None:
    os.setpgid(0, 0)
    # What this process starts itself, it starts as any other does; else it would be told to use the server too.
    multiprocessing.set_start_method("fork", force=True)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    try:
        work(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(70)
