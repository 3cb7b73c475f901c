"""Broken and hostile files of weights: no code in them runs, and what is wrong is said by an error of ours."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

from tests.faults import forks
from tests.faults.broken_weights import read_broken
from tests.faults.forms import Recorder, forms
from tests.faults.specimens import Canary

KINDS = ("safetensors", "JSON", "pickle")


@forms(40, 400)
def test_broken_weights_are_read_or_refused(tmp_path: Path, trials: int, record: Recorder) -> None:
    log = tmp_path / "log"
    assert forks.run(read_broken, tmp_path, trials, trials, log=log) == 0, log.read_text()[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    for kind in KINDS:
        of_kind = {name.partition(": ")[2]: n for name, n in result["found"].items() if name.startswith(kind)}
        figures = ", ".join(f"{n} {outcome}" for outcome, n in sorted(of_kind.items()))
        record(f"broken files of weights: {kind}", sum(of_kind.values()), f"{figures}; no code ran")
    assert not result["ran"]
    assert result["complaints"] == []


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "dead")))
    assert (tmp_path / "dead").exists()
