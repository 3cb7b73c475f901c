"""Every system: the same seed gives the same weights, and a training that was killed ends in them too."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from everymask.models import list_models
from tests.faults import forks
from tests.faults.forms import Recorder
from tests.faults.moments import wait_for_moment
from tests.faults.tiny import newest_step, train_tiny, unreadable, weights

NEEDS = {"sam2": ("targets=instance", "task=instance")}
"""Settings without which a system does not train."""


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", list_models())
def test_same_seed_and_killed(data: Path, tmp_path: Path, system: str, record: Recorder) -> None:
    arguments = (data, tmp_path / "one", 0, system, *NEEDS.get(system, ()))
    log = tmp_path / "log"
    assert forks.run(train_tiny, *arguments, log=log) == 0, log.read_text()
    again = (data, tmp_path / "again", *arguments[2:])
    assert forks.run(train_tiny, *again, log=log) == 0, log.read_text()
    assert weights(tmp_path / "again") == weights(tmp_path / "one")

    chance = random.Random(system)
    for workers in (0, 1, 2):
        out = tmp_path / f"killed{workers}"
        given = (data, out, workers, system, *NEEDS.get(system, ()))
        for _ in range(2):
            kill_within(given, out, chance, log)
        assert forks.run(train_tiny, *given, log=log) == 0, log.read_text()
        assert newest_step(out) == newest_step(tmp_path / "one")
        assert weights(out) == weights(tmp_path / "one")
    case = f"{system}: the same seed again; killed twice with 0, 1 and 2 loader processes, and resumed"
    record(case, 1 + 3 * 2, "the same SHA-256 of weights and optimizer")


def kill_within(given: tuple[Any, ...], out: Path, chance: random.Random, log: Path) -> None:
    """Start the training, or go on with it, and kill it at a random moment."""
    process = forks.start(train_tiny, *given, log=log)
    wait_for_moment(process, out, chance)
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0), log.read_text()
    assert not unreadable(out)
