"""A disk that is full, read-only or broken: a named error, the last good checkpoint stays, and later it goes on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from everymask.errors import WriteError
from everymask.recipe import TrainConfig
from everymask.report import Report
from tests.faults import forks
from tests.faults.bad_disks import disturb_disks
from tests.faults.forms import Recorder, forms
from tests.faults.tiny import weights

NAMES = {"full": "full (tmpfs)", "read_only": "read-only (tmpfs)", "broken": "dead as in a power cut, EIO (ext4)"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems")
@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="there is no mkfs.ext4")
@forms(1, 12)
def test_disks_that_fail(data: Path, whole: Path, tmp_path: Path, trials: int, record: Recorder) -> None:
    log = tmp_path / "log"
    code = forks.run(disturb_disks, data, tmp_path, weights(whole), trials, log=log)
    if "mounting is not permitted" in log.read_text():
        pytest.skip("mounting is not permitted here")
    assert code == 0, log.read_text()
    result = json.loads((tmp_path / "result.json").read_text())
    for fault, complaints in result.items():
        survived = trials - len({complaint.partition(":")[0] for complaint in complaints})
        record(f"training on a disk that is {NAMES[fault]}, then well", trials, f"{survived} of {trials} survived")
    assert not any(result.values()), log.read_text()[-5000:]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with Report(tmp_path, TrainConfig()) as report:
        report._file.close()
        report._file = Path("/dev/full").open("a", buffering=1)  # noqa: SIM115 (the report closes it)
        with pytest.raises(WriteError, match=r"cannot write a file: .*log\.jsonl \(No space left on device\)\. Check"):
            report.changes(0, ["lr: 1 -> 2"])
