"""Imported by the fork server alone: one tiny training, so that what it imports on the way is there in every fork."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tests.faults.tiny import train_tiny
from tests.scenes import write_dataset

with (
    tempfile.TemporaryDirectory() as folder,
    open(os.devnull, "w") as nowhere,
    contextlib.redirect_stdout(nowhere),
    contextlib.redirect_stderr(nowhere),
):
    train_tiny(write_dataset(Path(folder) / "data", train=2, val=0), Path(folder) / "run")
