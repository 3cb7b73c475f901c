"""``kill -9`` at random moments of a training: every checkpoint is whole, and the end is the same to the last bit."""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import forks
from tests.faults.forms import Recorder, forms
from tests.faults.moments import wait_for_moment
from tests.faults.tiny import newest_step, train_tiny, unreadable, weights

KILLS_A_RUN = 4
"""Afterwards a run may finish, so that its end can be compared."""


@dataclass
class Found:
    """What a series of kills found, over all runs."""

    after: list[int] = field(default_factory=list)  # The newest step on the disk at each kill.
    unreadable: list[str] = field(default_factory=list)
    ends: int = 0
    different: int = 0


@forms(25, 200)
def test_killed_at_random_moments(data: Path, whole: Path, tmp_path: Path, trials: int, record: Recorder) -> None:
    chance, found, out = random.Random(trials), Found(), tmp_path / "run"
    while len(found.after) < trials:
        workers = found.ends % 3
        kill_repeatedly(data, out, workers, chance, found)
        code = forks.run(train_tiny, data, out, workers, log=tmp_path / "log")
        assert code == 0, (tmp_path / "log").read_text()
        found.ends += 1
        found.different += weights(out) != weights(whole)
        shutil.rmtree(out)
    steps = ", ".join(f"{found.after.count(step)} after step {step}" for step in sorted(set(found.after)))
    record(
        "`kill -9` of a training with 0, 1 and 2 loader processes, resumed at once",
        len(found.after),
        f"{len(found.unreadable)} unreadable checkpoints; weights differ in {found.different} of {found.ends} runs "
        f"({steps})",
    )
    assert not found.unreadable
    assert not found.different
    assert len(set(found.after)) > 3, "the kills came all at the same time"


def kill_repeatedly(data: Path, out: Path, workers: int, chance: random.Random, found: Found) -> None:
    """Start the same training `KILLS_A_RUN` times; kill it every time."""
    for _ in range(KILLS_A_RUN):
        process = forks.start(train_tiny, data, out, workers, log=out.with_suffix(".log"))
        wait_for_moment(process, out, chance)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            found.after.append(newest_step(out))
            found.unreadable += unreadable(out)
        else:
            assert process.exitcode == 0, out.with_suffix(".log").read_text()
