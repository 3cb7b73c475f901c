"""Data and folders that the fault harness shares, and its figures, printed as a table when the tests are done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import forks
from tests.faults.forms import Recorder, table
from tests.faults.tiny import STEPS, newest_step, train_tiny
from tests.scenes import write_dataset


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Recorder:
    """Adds a row to the table."""
    return lambda case, trials, result: record_property("fault", (case, f"{trials:,}", result))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tests = [report for reports in terminalreporter.stats.values() for report in reports]
    kept = [pair for test in tests if getattr(test, "when", "") == "call" for pair in test.user_properties]
    if rows := [tuple(value) for name, value in kept if name == "fault"]:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(rows))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with four scenes."""
    return write_dataset(tmp_path_factory.mktemp("scenes"), train=4, val=0)


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny training that nothing disturbed; tests leave it as it is."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert forks.run(train_tiny, data, out, log=out.with_suffix(".log")) == 0
    assert newest_step(out) == STEPS
    return out
