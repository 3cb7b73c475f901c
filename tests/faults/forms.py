"""Short and long form of a case, and the table of what they found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Recorder = Callable[..., None]
"""``record(case, trials, result)``: one row of the table at the end of the tests."""


def forms(short: int, long: int) -> pytest.MarkDecorator:
    """Parametrises `trials`: `short` with every test run, `long` with ``make faults``.

    The time limits are for what hangs: a busy machine may flush files a hundred times slower than an idle one.
    """
    forms = (
        pytest.param(short, id="short", marks=pytest.mark.timeout(1200)),
        pytest.param(long, id="long", marks=(pytest.mark.faults, pytest.mark.timeout(14400))),
    )
    return pytest.mark.parametrize("trials", forms)


def table(rows: list[tuple[str, str, str]]) -> str:
    """Markdown, as docs/reliability.md keeps it."""
    lines = [("case", "trials", "result"), ("---", "---:", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
