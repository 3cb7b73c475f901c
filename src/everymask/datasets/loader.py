"""Batches for training: which samples a step sees and how each is drawn depend on the seed and the step alone.

So a run can stop and go on anywhere, with any number of loader processes, and see the same batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from ..recipe import TrainConfig
from ..transforms import Geometry, collate, random_geometry
from ..types import Batch, Sample
from .base import Dataset

Draw = tuple[int, int, int]
"""(sample index, how often the data were gone through before, canvas side)."""


class Draws(TorchDataset[tuple[Sample, Geometry]]):
    """Samples with a random view each, drawn from (seed, epoch, index)."""

    def __init__(self, dataset: Dataset, config: TrainConfig) -> None:
        self.dataset, self.config = dataset, config

    def __getitem__(self, draw: Draw) -> tuple[Sample, Geometry]:
        index, epoch, side = draw
        sample = self.dataset[index]
        rng = np.random.default_rng((self.config.seed, epoch, index))
        size = sample.image.shape[0], sample.image.shape[1]
        return sample, random_geometry(size, side, rng, scale=self.config.scale, flip=self.config.flip)


class Batches(Sampler[list[Draw]]):
    """The draws of each batch from step `first` on: a new permutation every time the data are gone through."""

    def __init__(self, count: int, config: TrainConfig, model_side: int, first: int = 0) -> None:
        self.count, self.config, self.model_side, self.first = count, config, model_side, first

    def __len__(self) -> int:
        return (self.config.steps - self.first) * self.config.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.first, self.config.steps):
            side = self.config.side_at(step, self.model_side)
            for part in range(self.config.accumulate):
                start = (step * self.config.accumulate + part) * self.config.batch_size
                yield [self._draw(start + n, side) for n in range(self.config.batch_size)]

    def _draw(self, position: int, side: int) -> Draw:
        epoch, offset = divmod(position, self.count)
        return int(self._order(epoch)[offset]), epoch, side

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng((self.config.seed, epoch)).permutation(self.count)
        return self._permutation


class Collate:
    """Sample and geometry pairs to a `Batch`. A class, so that loader processes can receive it."""

    def __init__(self, semantic: bool) -> None:
        self.semantic = semantic

    def __call__(self, pairs: list[tuple[Sample, Geometry]]) -> Batch:
        samples, geometries = zip(*pairs, strict=True)
        if self.semantic:
            samples = tuple(_merged(sample) for sample in samples)
        return collate(samples, geometries)


def _merged(sample: Sample) -> Sample:
    return Sample(sample.image, sample.segments.merged_by_class(), sample.name)


def training_loader(dataset: Dataset, config: TrainConfig, model_side: int, first_step: int) -> DataLoader[Batch]:
    """Batches of steps `first_step`, `first_step` + 1, ..., `accumulate` of them a step."""
    workers = default_workers() if config.workers < 0 else config.workers
    return DataLoader(
        Draws(dataset, config),
        batch_sampler=Batches(len(dataset), config, model_side, first_step),
        collate_fn=Collate(config.targets == "semantic"),
        num_workers=workers,
        persistent_workers=False,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )


def default_workers() -> int:
    """Loader processes that leave the compute threads their cores."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
