"""One training a folder: a second one is refused while the first lives, and starts at once when it was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from everymask.errors import TrainingError
from everymask.run_folder import RunFolder
from tests.faults import forks
from tests.faults.forms import Recorder, forms
from tests.faults.tiny import newest_step, train_tiny


@forms(2, 10)
def test_the_lock_is_free_when_the_training_is_dead(data: Path, tmp_path: Path, trials: int, record: Recorder) -> None:
    """Although its loader processes live for some seconds more."""
    survivors = 0
    for trial in range(trials):
        out = tmp_path / f"run{trial}"
        process = forks.start(train_tiny, data, out, 2, log=tmp_path / "log")
        while not newest_step(out):
            assert process.is_alive(), (tmp_path / "log").read_text()
            time.sleep(0.005)
        with pytest.raises(TrainingError, match=f"process {process.pid} holds"), RunFolder(out).locked():
            pass
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with RunFolder(out).locked():
            survivors += group_lives(process.pid)
            assert not list(out.glob("checkpoints/.*")), "leftovers"
    record(
        "a second training in the folder of one with 2 loader processes; then `kill -9` of the first",
        trials,
        f"refused {trials} of {trials}; free at once {trials} of {trials}, {survivors} times before the loaders ended",
    )
    assert survivors


def group_lives(group: int | None) -> bool:
    """Whether a process of the group is still there."""
    try:
        os.killpg(group or 0, 0)
    except ProcessLookupError:
        return False
    return True
