"""Every system: the same seed gives the same weights, and a training that was killed ends in them too."""

from __future__ import annotations

import random
import signal
from pathlib import Path

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

    killed = (data, tmp_path / "killed", *arguments[2:])
    kills, chance = 0, random.Random(system)
    while kills < 3:
        process = forks.start(train_tiny, *killed, log=log)
        wait_for_moment(process, tmp_path / "killed", chance)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), log.read_text()
        kills += 1
        assert not unreadable(tmp_path / "killed")
    assert forks.run(train_tiny, *killed, log=log) == 0, log.read_text()
    assert newest_step(tmp_path / "killed") == newest_step(tmp_path / "one")
    assert weights(tmp_path / "killed") == weights(tmp_path / "one")
    record(f"{system}: the same seed again; killed and resumed", 1 + kills, "the same SHA-256 of weights and optimizer")
