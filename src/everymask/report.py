"""What a training run tells: JSON lines always, progress on the terminal, pictures, TensorBoard on request."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .charts import curves
from .compare import comparison
from .datasets import Dataset
from .datasets.base import with_labels
from .drawing import contact_sheet
from .errors import EverymaskError, UsageError
from .evaluate import SCORES, segments_for
from .files import write_json, write_text, writing
from .image import write_png
from .model import SegmentationModel
from .processes import Processes
from .recipe import TrainConfig
from .run_record import record_start
from .types import Batch
from .visualize import overlay

T = TypeVar("T")
SHOWN_IMAGES = 6
LOSS_TERMS = ("loss", "class", "mask", "dice", "iou", "presence", "box")
SHOWN_SCORES = ("miou", "foreground_iou", "dice", "iou", "boundary_f", "ap", "ap50", "pq", "sq", "rq")


class Report:
    """Log of one run in the folder `out`.

    Args:
        first_step: the step a resumed run goes on from; later lines of an interrupted run are dropped, since their
            steps are run again.
    """

    def __init__(self, out: Path, config: TrainConfig, first_step: int = 0) -> None:
        self.out, self.config, self.first_step = out, config, first_step
        self.screen = Screen(config.steps, first_step)
        self.events = open_events(out) if config.tensorboard else None
        self._last = first_step
        self._restart_window()

    def __enter__(self) -> Report:
        kept = [row for row in read_log(self.out) if row["step"] <= self.first_step]
        write_text(self.out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        with writing(self.out / "log.jsonl"):
            self._file = (self.out / "log.jsonl").open("a", buffering=1)
        self.screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.stop()
        with suppress(OSError):  # A line that could not be written was refused when it was.
            self._file.close()
        if self.events:
            self.events.close()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, with the time spent waiting for them counted."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waiting += time.perf_counter() - start
            yield batch

    def damaged(self, step: int, complaints: list[str]) -> None:
        """Write which checkpoints a resumed run could not use."""
        if complaints:
            self._write({"kind": "damaged", "step": step, "checkpoints": complaints})
            self.screen.say(f"step {step}  resumed from here: damaged checkpoints: {'; '.join(complaints)}")

    def changes(self, step: int, changed: list[str]) -> None:
        """Write what a resumed run changed of its configuration."""
        if changed:
            self._write({"kind": "change", "step": step, "changed": changed})
            self.screen.say(f"step {step}  changed: {'; '.join(changed)}")

    def started(
        self, step: int, model: SegmentationModel, dataset: Dataset, val: Dataset | None, group: Processes
    ) -> None:
        """Write what the run is made with."""
        data = {"train": dataset} | ({} if val is None else {"val": val})
        record_start(self.out, step, self.config, model, data, group)

    def skipped(self, name: str, error: EverymaskError) -> None:
        """Write which sample was left out, and why."""
        self._write({"kind": "skipped", "step": self._last, "sample": name, "error": str(error)})
        self.screen.say(f"left out: {error}")

    @contextmanager
    def failures(self, step: Callable[[], int], rank: int) -> Iterator[None]:
        """Keep the error that ends a run in ``failure.json``, with the names of the images that it was seen at."""
        place = self.out / ("failure.json" if rank == 0 else f"failure.{rank}.json")
        with writing(place):
            place.unlink(missing_ok=True)
        try:
            yield
        except EverymaskError as error:
            with suppress(EverymaskError):  # The error itself matters more than a note of it.
                parts = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
                write_json(place, {"step": step(), "rank": rank, "kind": type(error).__name__, **parts})
            raise

    def step(self, step: int, terms: dict[str, float], images: int) -> None:
        """Count one optimizer step; every `log_every` steps write the means since the last line, and the speed."""
        self._last = step
        self._window.append(terms)
        self._images += images
        if step % self.config.log_every and step != self.config.steps:
            return
        seconds = time.perf_counter() - self._window_start
        means = {name: sum(row[name] for row in self._window) / len(self._window) for name in terms}
        speed = {"images_per_second": self._images / seconds, "data_wait": self._waiting / seconds}
        self._write({"kind": "train", "step": step, **means, **speed})
        self.screen.step(step, means["loss"], **speed)
        self._restart_window()

    def validation(self, step: int, scores: dict[str, Any], improved: bool, seconds: float) -> None:
        """Write the scores of a validation and draw the curves."""
        flat = {k: v for k, v in scores.items() if isinstance(v, (int, float))}
        self._write({"kind": "validation", "step": step, **flat, "best": improved, "seconds": seconds})
        shown = "  ".join(f"{name} {scores[name]:.3f}" for name in SHOWN_SCORES if name in scores)
        self.screen.say(f"step {step}  validation  {shown}{'  best so far' if improved else ''}")
        for name, series in run_curves(read_log(self.out)).items():
            write_png(self.out / f"{name}.png", np.asarray(curves(series, name.replace("_", " "))))
        self._restart_window()

    def samples(self, batch: Batch) -> None:
        """``samples.png``: what the model is about to see, augmented, with its truth."""
        images = batch.images.permute(0, 2, 3, 1).byte().numpy()
        pictures = [overlay(image, truth) for image, truth in zip(images[:12], batch.truth(), strict=False)]
        write_png(self.out / "samples.png", np.asarray(contact_sheet(pictures, list(batch.names[:12]), columns=4)))

    def predictions(self, model: SegmentationModel, val: Dataset, scores: dict[str, Any], side: int) -> None:
        """``validation.png``: truth, prediction and errors, from the worst image to the best."""
        rows, task = scores["per_image"], self.config.task
        leading = SCORES[task].leading
        order = sorted(range(len(rows)), key=lambda index: np.nan_to_num(rows[index][leading], nan=1.0))
        count = min(SHOWN_IMAGES, len(order))
        chosen = [order[n * (len(order) - 1) // max(1, count - 1)] for n in range(count)]
        sheet = []
        for index in chosen:
            sample = val[index]
            truth = with_labels(sample.segments, val.labels, model.labels)
            found = segments_for(model, sample, truth, task, side)
            caption = f"{sample.name}  {leading.replace('_', ' ')} {rows[index][leading]:.2f}"
            sheet.append((caption, sample.image, truth, found))
        write_png(self.out / "validation.png", np.asarray(comparison(sheet)))

    def _restart_window(self) -> None:
        self._window: list[dict[str, float]] = []
        self._window_start, self._waiting, self._images = time.perf_counter(), 0.0, 0

    def _write(self, row: dict[str, Any]) -> None:
        with writing(self.out / "log.jsonl"):
            self._file.write(json.dumps({k: _finite(v) for k, v in row.items()}) + "\n")
        if self.events:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in ("step", "best"):
                    self.events.add_scalar(f"{row['kind']}/{name}", value, row["step"])


class Screen:
    """Progress for people: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, steps: int, first_step: int) -> None:
        self.steps, self.first_step, self.started = steps, first_step, time.perf_counter()
        console = Console(stderr=True)
        columns = ("step", MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console) if console.is_terminal else None
        self.task = self.bar.add_task("", total=steps, completed=first_step) if self.bar else None

    def start(self) -> None:
        if self.bar:
            self.bar.start()

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int, loss: float, images_per_second: float, data_wait: float) -> None:
        """Show the state after `step`."""
        numbers = f"loss {loss:.3f}  {images_per_second:.1f} images/s  data wait {data_wait:.0%}"
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step, description=numbers)
            return
        left = (self.steps - step) / max(1, step - self.first_step) * (time.perf_counter() - self.started)
        self.say(f"step {step}/{self.steps}  {numbers}  {duration(left)} left")

    def say(self, line: str) -> None:
        """One line that stays."""
        if self.bar:
            self.bar.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)


def run_curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Series for ``loss.png`` and ``scores.png`` from a run's log."""
    train = [row for row in rows if row["kind"] == "train"]
    val = [row for row in rows if row["kind"] == "validation"]
    terms = [name for name in (train[0] if train else {}) if name in LOSS_TERMS]
    found = {"loss": {name: _series(train, name) for name in terms}}
    found["scores"] = {name: series for name in SHOWN_SCORES if (series := _series(val, name))}
    return {name: series for name, series in found.items() if any(series.values())}


def _series(rows: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def open_events(out: Path) -> Any:
    """A TensorBoard writer.

    Raises:
        UsageError: the extra is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        fix = "pip install everymask[track], or leave tensorboard=false."
        raise UsageError("TensorBoard is not installed", where="tensorboard=true", fix=fix) from error
    return SummaryWriter(str(out / "tensorboard"))


class Silence(Report):
    """The report of a process that is not the first: nothing."""

    def __init__(self, out: Path) -> None:
        self.out, self._waiting = out, 0.0

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""

    def damaged(self, step: int, complaints: list[str]) -> None:
        """Nothing."""

    def changes(self, step: int, changed: list[str]) -> None:
        """Nothing."""

    def started(
        self, step: int, model: SegmentationModel, dataset: Dataset, val: Dataset | None, group: Processes
    ) -> None:
        """Nothing."""

    def skipped(self, name: str, error: EverymaskError) -> None:
        """Nothing."""

    def step(self, step: int, terms: dict[str, float], images: int) -> None:
        """Nothing."""

    def validation(self, step: int, scores: dict[str, Any], improved: bool, seconds: float) -> None:
        """Nothing."""

    def samples(self, batch: Batch) -> None:
        """Nothing."""

    def predictions(self, model: SegmentationModel, val: Dataset, scores: dict[str, Any], side: int) -> None:
        """Nothing."""


def read_log(out: Path) -> list[dict[str, Any]]:
    """Rows of a run's ``log.jsonl``; a last line cut short by a crash is left out."""
    path = out / "log.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def duration(seconds: float) -> str:
    """ "3 h 05 min", "12 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
