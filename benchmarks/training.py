"""What training costs besides the model: the trainer against a bare loop, checkpoints, a second process.

    python -m benchmarks training

- **against a bare loop**: the same model, batches and optimizer in ten lines without a trainer. Ours also clips, keeps
  the averaged weights, checks every number and writes a log.
- **checkpoints**: what one takes, flushed to the disk and with its manifest, as a share of a minute.
- **two processes**: images a second of two processes with one thread each, as a share of twice what one has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from everymask.datasets import Dataset, open_dataset
from everymask.datasets.loader import training_batches
from everymask.image import write_png
from everymask.model import SegmentationModel
from everymask.models import create_model
from everymask.recipe import TrainConfig
from everymask.report import read_log
from everymask.train import train
from everymask.training_run import Run

from .measure import Row

CONFIG = TrainConfig(
    steps=40, batch_size=8, image_side=256, warmup=1, validate_every=10**6, log_every=10, workers=1, color=0.0
)
MINUTE = 60.0


def write_data(folder: Path, side: int, count: int = 16) -> Path:
    """Photos of noise with a disc each."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for n in range(count):
        disc = np.hypot(y - side * chance.uniform(0.3, 0.7), x - side * chance.uniform(0.3, 0.7)) < side / 4
        photo = chance.integers(0, 120, (side, side, 3)) + 100 * disc[..., None]
        write_png(folder / "images" / f"{n}.png", photo.astype(np.uint8))
        write_png(folder / "masks" / f"{n}.png", disc.astype(np.uint8) * 255)
    return folder


def model_for(data: Dataset, system: str = "hybrid", preset: str = "small") -> SegmentationModel:
    """A fresh model."""
    torch.manual_seed(0)
    return create_model(system, preset, classes=data.labels)


# --- a bare loop -----------------------------------------------------------------------------------------------------


def bare(data: Dataset, config: TrainConfig) -> float:
    """Seconds a step of the loop that everybody writes first."""
    model = model_for(data).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.param_groups(config.lr, config.weight_decay))
    ends = [time.perf_counter()]
    for batch in training_batches(data, config, data.labels, config.image_side, 0):
        loss = torch.stack(list(model.loss(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    every = config.log_every
    # The first window has the start of the loader in it.
    return median((b - a) / every for a, b in zip(ends[every::every], ends[2 * every :: every], strict=False))


def trainer(data: Dataset, config: TrainConfig) -> float:
    """Seconds a step of ours, from its log."""
    with tempfile.TemporaryDirectory() as out:
        train(model_for(data), data, config, out=out)
        return config.batch_size / images_per_second(Path(out))


def images_per_second(out: Path) -> float:
    """Of a run, without its first log line."""
    return float(median(row["images_per_second"] for row in read_log(out)[1:] if row["kind"] == "train"))


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each gives."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(sides[name]())
    return {name: median(values) for name, values in found.items()}


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint_seconds(data: Dataset, system: str, preset: str, times: int = 5) -> float:
    """What writing one takes."""
    with tempfile.TemporaryDirectory() as out:
        run = Run(model_for(data, system, preset), replace(CONFIG, workers=0), Path(out))
        run.train_step([next(training_batches(data, replace(run.config, batch_size=1), data.labels, 64, 0))])
        spent = []
        for _ in range(times):
            start = time.perf_counter()
            run.save()
            spent.append(time.perf_counter() - start)
            run.step += 1
        return median(spent)


# --- several processes -----------------------------------------------------------------------------------------------


def together(folder: Path, processes: int, config: TrainConfig) -> float:
    """Images a second of so many processes with one thread each."""
    with tempfile.TemporaryDirectory() as out:
        options = ["--standalone", "--nproc-per-node", str(processes), "-m", "benchmarks.training"]
        settings = [str(folder), out, str(config.steps), str(config.batch_size), str(config.image_side)]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return images_per_second(Path(out))


def main(folder: str, out: str, *sizes: str) -> None:
    """What each of the processes does."""
    steps, batch_size, side = map(int, sizes)
    data = open_dataset(folder)
    config = replace(CONFIG, steps=steps, batch_size=batch_size, image_side=side, workers=0, threads=1)
    train(model_for(data), data, config, out=out)


# --- rows ------------------------------------------------------------------------------------------------------------


def rows(
    config: TrainConfig = CONFIG, rounds: int = 2, large: tuple[str, str] = ("maskformer", "r50-ade")
) -> list[Row]:
    """All of it.

    Args:
        large: system and preset of a second, larger checkpoint.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = write_data(Path(place), config.image_side)
        data = open_dataset(folder)
        loops = in_turn({"ours": lambda: trainer(data, config), "bare": lambda: bare(data, config)}, rounds)
        small, big = checkpoint_seconds(data, "hybrid", "small"), checkpoint_seconds(data, *large)
        counts = {"one": 1, "two": 2}
        speed = in_turn({name: lambda n=n: together(folder, n, config) for name, n in counts.items()}, rounds)  # type: ignore[misc]
    return [
        Row("a step, against a bare loop", loops["ours"], "s", loops["bare"], ratio_least=0.95),
        Row("a checkpoint a minute, hybrid small", 100 * small / MINUTE, "%", most=2),
        Row(f"  {' '.join(large)}", 100 * big / MINUTE, "%", most=2),
        Row("two processes of twice one", 100 * speed["two"] / (2 * speed["one"]), "%", least=80),
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
