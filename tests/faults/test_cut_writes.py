"""The writing of a checkpoint, ended at every 4 KiB and between all calls: the one before it, or the new one, loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import forks
from tests.faults.checkpoint_work import stop_model, stop_run
from tests.faults.forms import Recorder, forms

WORKS = {"a checkpoint of a training": stop_run, "a model that replaces another (`everymask.save`)": stop_model}


@pytest.mark.parametrize("what", WORKS)
@forms(31, 1)
def test_stopped_while_writing(whole: Path, tmp_path: Path, trials: int, what: str, record: Recorder) -> None:
    """Here `trials` is the distance of the points at which it is stopped."""
    work: Callable[[Path, Path, int], None] = WORKS[what]
    log = tmp_path / "log"
    assert forks.run(work, whole / "last", tmp_path, trials, log=log) == 0, log.read_text()
    result = json.loads((tmp_path / "result.json").read_text())
    stops = sum(result["counts"].values())
    how = ", ".join(f"{count} {how}" for how, count in result["counts"].items())
    record(f"writing {what}, stopped at every point", stops, f"{len(result['complaints'])} lost ({how})")
    assert result["complaints"] == []
