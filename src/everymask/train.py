"""The one training loop, for every system, on one process or many. The same call again resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .datasets import Dataset, Subset
from .datasets.loader import loader_workers, training_batches
from .datasets.loader_watch import LoaderWatch
from .errors import UsageError
from .evaluate import add_share, check_classes, check_monitor, merged, scores_of
from .interrupts import StopRequest, stop_requests
from .model import SegmentationModel
from .models import model_module, model_name
from .predict import told
from .processes import Processes
from .recipe import TrainConfig
from .report import Report, Silence
from .training_run import Run
from .types import Batch


def train(
    model: SegmentationModel,
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    val: Dataset | None = None,
    allow_change: bool = False,
) -> dict[str, Any]:
    """Train `model` in place and keep everything about it in the folder `out`.

    ``out/last`` and ``out/best`` are checkpoints of the averaged weights that `everymask.load` reads (see `RunFolder`);
    ``out/log.jsonl`` has every logged step and validation; ``out/*.png`` show samples, curves and predictions. Ctrl-C
    and SIGTERM finish the step and save.

    Under ``torchrun`` all its processes train together: each takes `batch_size` images of every step, and scores its
    part of the validation images. One process with the sum of these batch sizes would see the same images in the same
    steps. The folder `out` must be the same for all. With ``strategy="fsdp"`` the weights of `model` are left spread
    over the processes: take the trained model from `out`.

    Args:
        config: None takes the system's ``RECIPE``.
        val: scored every `validate_every` steps; without it the last checkpoint is also the best.
        allow_change: resume a run in `out` although its configuration was another; the log says what changed.

    Returns:
        the best validation scores, or the last training numbers without `val`.

    Raises:
        TrainingError: `out` holds a run with another configuration, another process trains there, or a number is not
            finite.
        CheckpointError: no checkpoint of the run in `out` is whole.
    """
    config = config or model_module(model_name(model)).RECIPE
    check_classes(model.labels, dataset.labels, "training data")
    if val is not None:
        check_classes(model.labels, val.labels, "validation data")
        check_monitor(config.monitor, config.task, model.labels)
    side = config.image_side or model.config.image_side
    if side % 32:
        raise UsageError("a setting is out of range", where="image_side", why=f"{side} is not n x 32")
    processes = Processes.of_environment()
    run = Run(model, config, Path(out), processes, len(dataset))
    with processes.watched(), run.alone(), stop_requests() as stop:
        changed = run.resume(allow_change)
        if config.views:
            model.keep_features(run.out / "features")
        with _report(run) as report, report.failures(lambda: run.step, processes.rank):
            report.damaged(run.step, run.complaints)
            report.changes(run.step, changed)
            report.started(run.step, model, dataset, val, processes)
            _loop(run, dataset, val, report, stop)
    stop.obey()
    if not run.spread:
        model.load_state_dict(run.average.model.state_dict())
    model.eval()
    return run.best


def _report(run: Run) -> Report:
    return Report(run.out, run.config, run.step) if run.processes.is_first else Silence(run.out)


def _loop(run: Run, dataset: Dataset, val: Dataset | None, report: Report, stop: StopRequest) -> None:
    """Steps and validations until the end, or until `stop`; whatever ends it, the state is saved."""
    model, config, group = run.model, run.config, run.processes
    watch = LoaderWatch(dataset, loader_workers(config, group), config.skip, report.skipped)
    batches = report.timed(
        training_batches(dataset, config, model.labels, model.config.image_side, run.step, group, watch)
    )
    with watch.watched():
        _steps(run, batches, spread(val, config.max_val) if val is not None else None, report, stop)


def _steps(run: Run, batches: Iterator[Batch], chosen: Dataset | None, report: Report, stop: StopRequest) -> None:
    while True:
        ends = run.processes.agree(bool(stop))
        if run.unvalidated and not ends:
            whole = _validate(run, chosen, report, stop)
            run.validated = run.step if whole else run.validated
            run.save()
            ends = run.processes.agree(bool(stop))
        elif ends:
            run.save()
        if ends or run.step >= run.config.steps or run.stale:
            return
        parts = [next(batches) for _ in range(run.config.accumulate)]
        if run.step == 0:
            report.samples(parts[0])
        report.step(run.step + 1, run.train_step(parts), images=sum(map(len, parts)) * run.processes.count)


class _Stopped(Exception):
    """A validation was broken off."""


def _validate(run: Run, val: Dataset | None, report: Report, stop: StopRequest) -> bool:
    """Score the averaged weights; False if it was broken off, which leaves everything as it was."""
    run.improved = val is None
    if val is None:
        run.best = {"step": run.step}
        return True

    def watch(done: int, total: int) -> None:
        if stop:
            raise _Stopped

    start = time.perf_counter()
    averaged = told(run.average.gather().eval(), val.labels)
    side = run.config.validate_side or run.config.image_side or run.model.config.image_side
    score = scores_of(run.config.task, averaged.labels)
    with suppress(_Stopped):
        add_share(score, averaged, val, side, run.processes, watch)
    if run.processes.agree(bool(stop)):
        return False
    scores = merged(score, run.processes)
    run.judge(scores)
    report.validation(run.step, scores, run.improved, time.perf_counter() - start)
    report.predictions(averaged, val, scores, side)
    return True


def spread(dataset: Dataset, count: int) -> Dataset:
    """`count` samples at equal distances, or all."""
    if not 0 < count < len(dataset):
        return dataset
    return Subset(dataset, [n * len(dataset) // count for n in range(count)])
