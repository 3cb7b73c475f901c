"""Signals at random moments of a training, spread evenly over its steps however busy the machine is."""

from __future__ import annotations

import random
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.faults.tiny import STEPS, newest_step


def wait_for_moment(process: ForkServerProcess, out: Path, chance: random.Random) -> None:
    """Return within a random step that is still to come, or when the process has ended."""
    started = time.perf_counter()
    first = newest_step(out)
    while not (out / "lock").exists() and process.is_alive():
        time.sleep(0.001)
    at = chance.randint(first, max(first, STEPS - 1))
    while newest_step(out) < at and process.is_alive():
        time.sleep(0.001)
    a_step = (time.perf_counter() - started) / (at - first + 1)
    time.sleep(chance.uniform(0, min(a_step, 2.0)))
