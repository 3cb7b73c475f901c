"""A checkpoint of the tiny training is written over an older one: what `tests/faults/stopped.py` stops everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from everymask.checkpoint import load, load_training, save, save_model_files, save_training
from everymask.errors import EverymaskError
from everymask.run_folder import RunFolder
from tests.faults.stopped import Work
from tests.faults.tiny import newest_step, unreadable


def stop_run(source: Path, place: Path, every: int) -> None:
    """Stop the saving of a training: folder, `best`, `last`, and the deletion of the older checkpoint.

    Args:
        source: a checkpoint of a training.
        place: an empty folder; ``result.json`` is written there.
        every: 1 for all points at which it can be stopped, 2 for each second one.
    """
    fill = filler(source)
    RunFolder(place / "before").write(2, fill, {})
    for name in ("best", "last"):
        RunFolder(place / "before").point(name, place / "before" / "checkpoints" / "00000002")

    def write(out: Path) -> None:
        run = RunFolder(out, keep=1)
        fresh = run.write(4, fill, {})
        run.point("best", fresh)
        run.point("last", fresh)
        run.prune()

    stop(Work(place / "before", write, run_faults), place, every)


def filler(source: Path) -> Callable[[Path], None]:
    """Writes what a training writes."""
    model = load(source)
    tensors, progress = load_training(source)

    def fill(folder: Path) -> None:
        save_model_files(model, folder, {"step": progress["step"]})
        save_training(folder, tensors, progress)

    return fill


def run_faults(out: Path) -> list[str]:
    """Nothing that is named is broken, there is a checkpoint to go on from, and what was begun is swept away."""
    faults = unreadable(out)
    if newest_step(out) not in (2, 4):
        faults.append("no checkpoint is left")
    with RunFolder(out).locked():
        names = {path.name for path in (*out.iterdir(), *(out / "checkpoints").iterdir())}
    expected = {"lock", "best", "last", "checkpoints", "00000002", "00000004"}
    return faults + [f"{name} is left over" for name in sorted(names - expected)]


def stop_model(source: Path, place: Path, every: int) -> None:
    """Stop `everymask.save`, which puts a model into the place of another."""
    model = load(source)
    save(model, place / "before" / "model")
    stop(
        Work(place / "before", lambda out: save(model, out / "model", extra={"note": "new"}), model_faults),
        place,
        every,
    )


def model_faults(out: Path) -> list[str]:
    """The old or the new model loads; the next save clears away what was begun."""
    try:
        model = load(out / "model")
    except EverymaskError as error:
        return [str(error)]
    save(model, out / "model")
    return [f"{path.name} is left over" for path in out.iterdir() if path.name != "model"]


def stop(work: Work, place: Path, every: int) -> None:
    work.stop_everywhere(every)
    (place / "result.json").write_text(json.dumps({"counts": work.counts, "complaints": work.complaints}))
    shutil.rmtree(work.before)
