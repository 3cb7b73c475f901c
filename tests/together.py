"""One training of a small model on a folder of scenes, alone or under ``torchrun``.

    together.py SYSTEM DATA OUT [key=value ...]

Settings are those of training, and ``kill=STEP``: the last process kills itself before that step, once. Each process
writes what it ends with to ``OUT/rank<n>.json``, so that a test can compare.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from everymask.checkpoint import load
from everymask.datasets import open_dataset
from everymask.evaluate import evaluate
from everymask.models import create_model
from everymask.processes import Processes
from everymask.recipe import TrainConfig
from everymask.train import train
from everymask.training_run import Run
from everymask.types import Batch
from tests.spoil import PLACES

CHANGES = {"maskformer": {"norm": "frozen"}, "detr": {"norm": "frozen"}}
"""Layers do not mix images: the statistics of batch norms are those of one process."""

CONFIG = TrainConfig(
    steps=20, batch_size=2, image_side=64, lr=1e-3, warmup=2, validate_every=10, log_every=1, workers=0, threads=1
)
TASKS: Any = {"catseg": ("semantic",), "sam2": ("prompted",)}


def main(system: str, data: Path, out: Path, settings: list[str]) -> None:
    """Train, evaluate together and alone, and write down both."""
    group = Processes.of_environment()
    torch.manual_seed(group.rank)  # The weights are to be those of the first process.
    dataset, val = open_dataset(data, "train"), open_dataset(data, "val")
    model = create_model(system, "tiny", classes=dataset.labels, **CHANGES.get(system, {}))
    deeds = dict(text.split("=") for text in settings if text.startswith(("kill=", "spoil=")))
    if "kill" in deeds and group.rank == group.count - 1:
        kill_once(int(deeds["kill"]), out / "killed")
    if "spoil" in deeds:
        spoil_at(deeds["spoil"], out, group)
    config = CONFIG.with_settings([text for text in settings if text.partition("=")[0] not in deeds])
    best = train(model, dataset, config, out=out, val=val, allow_change=True)
    if config.strategy == "fsdp":
        model = load(out / "last")
    tasks = TASKS.get(system, ("semantic", "instance", "panoptic"))
    found = {
        "best": best,
        "together": {task: evaluate(model, val, task=task, processes=group) for task in tasks},
        "alone": {task: evaluate(model, val, task=task) for task in tasks},
    }
    (out / f"rank{group.rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def kill_once(step: int, mark: Path) -> None:
    """Let this process be killed before a step, once: `mark` tells when, and ``back`` beside it when it was back."""
    real, back = Run.train_step, mark.with_name("back")

    def train_step(self: Run, parts: list[Batch]) -> dict[str, float]:
        if self.step == step and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if mark.exists() and not back.exists():
            back.touch()
        return real(self, parts)

    Run.train_step = train_step  # type: ignore[method-assign]


def spoil_at(place: str, out: Path, group: Processes) -> None:
    """Let a number of the last process not be finite at step 5; write what the weights were before and are after."""
    real = Run.train_step

    def train_step(self: Run, parts: list[Batch]) -> dict[str, float]:
        if self.step < 5:
            return real(self, parts)
        if group.rank == group.count - 1:
            PLACES[place](self.model, pytest.MonkeyPatch())
        before = digest(self.model)
        try:
            return real(self, parts)
        finally:
            (out / f"spoilt{group.rank}.json").write_text(json.dumps([before, digest(self.model)]))

    Run.train_step = train_step  # type: ignore[method-assign]


def digest(model: torch.nn.Module) -> str:
    """SHA-256 of the parameters."""
    told = hashlib.sha256()
    for parameter in model.parameters():
        told.update(parameter.detach().numpy().tobytes())
    return told.hexdigest()


if __name__ == "__main__":
    name, folder, place, *rest = sys.argv[1:]
    main(name, Path(folder), Path(place), rest)
