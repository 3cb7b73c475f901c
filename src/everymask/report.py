"""What a training run tells: JSON lines always, progress on the terminal, pictures, TensorBoard on request."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from .datasets import Dataset
from .labels import LabelMap
from .recipe import TrainConfig
from .types import Batch

T = TypeVar("T")


class Report:
    """Log of one run in the folder `out`.

    Args:
        first_step: the step a resumed run goes on from; later lines of an interrupted run are dropped, since their
            steps are run again.
    """

    def __init__(self, out: Path, config: TrainConfig, first_step: int = 0) -> None:
        self.out, self.config, self.first_step = out, config, first_step
        self.started = self._window_start = time.perf_counter()
        self._waiting, self._images = 0.0, 0

    def __enter__(self) -> Report:
        self.out.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_log(self.out) if row["step"] <= self.first_step]
        self._file = (self.out / "log.jsonl").open("w", buffering=1)
        for row in kept:
            self._file.write(json.dumps(row) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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

    def step(self, step: int, terms: dict[str, float], images: int) -> None:
        """Count one optimizer step; every `log_every` steps write its numbers and speed."""
        self._images += images
        if step % self.config.log_every and step != self.config.steps:
            return
        seconds = time.perf_counter() - self._window_start
        speed = {"images_per_second": self._images / seconds, "data_wait": self._waiting / seconds}
        self._write({"kind": "train", "step": step, **terms, **speed})
        left = (self.config.steps - step) / max(1, step - self.first_step) * (time.perf_counter() - self.started)
        self._say(
            f"step {step}/{self.config.steps}  loss {terms['loss']:.3f}  {speed['images_per_second']:.1f} images/s  "
            f"data wait {speed['data_wait']:.0%}  {duration(left)} left"
        )
        self._restart_window()

    def _restart_window(self) -> None:
        self._window_start, self._waiting, self._images = time.perf_counter(), 0.0, 0

    def validation(self, step: int, scores: dict[str, Any], improved: bool, seconds: float) -> None:
        """Write the scores of a validation."""
        flat = {k: v for k, v in scores.items() if isinstance(v, (int, float))}
        self._write({"kind": "validation", "step": step, **flat, "best": improved, "seconds": seconds})
        shown = "  ".join(f"{k} {scores[k]:.3f}" for k in ("miou", "foreground_iou", "dice", "boundary_f"))
        self._say(f"step {step}  validation  {shown}{'  best so far' if improved else ''}")
        self._restart_window()

    def samples(self, batch: Batch, labels: LabelMap) -> None:
        """``samples.png``: what the model is about to see."""

    def predictions(self, model: nn.Module, val: Dataset, scores: dict[str, Any], side: int) -> None:
        """``validation.png``: truth, prediction and error of a few images; ``curves.png``."""

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps({k: _finite(v) for k, v in row.items()}) + "\n")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


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
    """"3 h 05 min", "12 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
