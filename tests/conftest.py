"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch, and inherited by commands that tests start: workers would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"

# Tests never reach for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Times on a shared machine say nothing about the code.
settings.register_profile("everymask", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("everymask")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real labelled images, which are not part of the repository."""
    folder = Path(os.environ.get("EVERYMASK_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real data: set EVERYMASK_DATA to its folder, or put it into ../shared/data")
    return folder


@pytest.fixture(scope="session")
def data(shared_data: Path) -> Callable[[str], Path]:
    """`data("camvid")`: the folder of one data set; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        path = shared_data / name
        if not path.is_dir():
            pytest.skip(f"no data set {name!r} in the folder of real data")
        return path

    return folder
