"""One byte of a checkpoint changed, anywhere in its files: always noticed, and the checkpoint before it taken."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from everymask.manifest import faults_of
from everymask.run_folder import RunFolder
from tests.faults.forms import Recorder, forms


@forms(200, 1000)
def test_every_changed_byte_is_noticed(whole: Path, tmp_path: Path, trials: int, record: Recorder) -> None:
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    run, chance, unnoticed = RunFolder(tmp_path / "run"), random.Random(0), 0
    newest, before = run.found()
    files = sorted(newest.iterdir())
    for _ in range(trials):
        path = chance.choice(files)
        at, other = chance.randrange(path.stat().st_size), chance.randrange(1, 256)
        flip(path, at, other)
        unnoticed += not faults_of(newest)
        flip(path, at, other)
    assert faults_of(newest) == []
    flip(files[0], 0, 1)
    assert run.newest()[0] == before
    record("one byte of a checkpoint changed", trials, f"{trials - unnoticed:,} of {trials:,} noticed")
    assert not unnoticed


def flip(path: Path, at: int, other: int) -> None:
    """Change a byte; the same call again changes it back."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ other]))
