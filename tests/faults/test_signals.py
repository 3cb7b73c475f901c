"""SIGTERM and SIGINT at random moments: the step is finished and saved, and the exit code says what happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults import forks
from tests.faults.forms import Recorder, forms
from tests.faults.moments import wait_for_moment
from tests.faults.tiny import train_tiny, unreadable, weights

CODES = {signal.SIGTERM: (143, -signal.SIGTERM), signal.SIGINT: (130,)}
"""A shell shows a process that SIGTERM ended before it could ask for anything else as 143 too."""


TOLD = ["process", "group"]


@pytest.mark.parametrize("whom", TOLD)
@forms(4, 24)
def test_stopped_at_random_moments(
    data: Path, whole: Path, tmp_path: Path, trials: int, whom: str, record: Recorder
) -> None:
    """``group``: a terminal, Slurm and systemd tell the loader processes too."""
    chance, longest = random.Random(trials), 0.0
    for trial in range(trials):
        out, number, workers = tmp_path / f"run{trial}", list(CODES)[trial % 2], trial // 2 % 3
        log = out.with_suffix(".log")
        process = forks.start(train_tiny, data, out, workers, log=log)
        wait_for_moment(process, out, chance)
        started = time.perf_counter()
        with suppress(ProcessLookupError):  # It ended before it was told.
            (os.kill if whom == "process" else os.killpg)(process.pid, number)
        process.join(60)
        longest = max(longest, time.perf_counter() - started)
        assert process.exitcode in (*CODES[number], 0), f"{number.name}: {process.exitcode}\n{log.read_text()}"
        assert not unreadable(out)
        assert forks.run(train_tiny, data, out, workers, log=log) == 0, log.read_text()
        assert weights(out) == weights(whole)
        shutil.rmtree(out)
    record(
        f"SIGTERM or SIGINT to the {whom} at random moments, then resumed",
        trials,
        f"exit codes 143 and 130 after {longest:.1f} s at most; {trials} of {trials} end in the same weights",
    )
