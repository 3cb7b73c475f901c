"""Batches for training: which samples a step sees and how each is drawn depend on the seed and the step alone.

So a run can stop and go on anywhere, with any number of loader processes, and see the same batches.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from ..augment import random_geometry
from ..chance import sample_seed
from ..errors import EverymaskError, UsageError
from ..frames import clip_of, collate_frames
from ..labels import LabelMap
from ..processes import Processes
from ..prompt_reader import PromptFile
from ..prompts import move_prompts
from ..recipe import TrainConfig
from ..transforms import Geometry, collate
from ..types import Batch, Prompts, Sample, Segments
from .base import Dataset, with_labels
from .loader_watch import LoaderWatch

Draw = tuple[int, int, int]
"""(sample index, how often the data were gone through before, canvas side)."""


class View(NamedTuple):
    """How a sample is seen.

    Attributes:
        prompts: explicit ones for its segments, where they come from a file.
        seed: what further draws for it begin from.
    """

    sample: Sample
    geometry: Geometry
    prompts: Prompts | None
    seed: int


Skipped = tuple[str, EverymaskError]
"""Name of a sample that cannot be read, and why."""

Drawn = tuple[View | list[View], list[Skipped]]
"""A photo or clip, and what could not be read before it."""

LAST_SECONDS = 10
"""How long a loader process goes on after SIGTERM: the training process ends it before that, unless it hangs."""

TRIES = 10
"""Other samples that are tried in place of one that cannot be read."""


class Draws(TorchDataset[Any]):
    """Samples in the classes of `labels` with a random view each, drawn from (seed, epoch, index).

    A sample that cannot be read comes out as its error (one raised in a loader process would arrive as a traceback),
    or, where the configuration lets some be left out, as another sample and the error.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, labels: LabelMap, watch: LoaderWatch) -> None:
        self.dataset, self.config, self.labels, self.watch = dataset, config, labels, watch
        self.prompts = PromptFile.read(config.prompts) if config.prompts else None

    def __getitem__(self, draw: Draw) -> Drawn | EverymaskError:
        skipped: list[Skipped] = []
        for index in self._candidates(draw):
            with self.watch.reads(index):
                try:
                    return self._seen(index, *draw[1:]), skipped
                except EverymaskError as error:
                    skipped.append((self.dataset.names[index], error))
        return skipped[0][1]

    def _candidates(self, draw: Draw) -> Iterator[int]:
        """The sample itself, and others by chance, should it not be readable."""
        index, epoch, _ = draw
        yield index
        if self.config.skip:
            others = np.random.default_rng((self.config.seed, epoch, index, 2))
            yield from others.integers(len(self.dataset), size=TRIES).tolist()

    def _seen(self, index: int, epoch: int, side: int) -> View | list[View]:
        return self._clip(index, epoch, side) if self.config.frames > 1 else self._view(index, epoch, side)

    def _clip(self, index: int, epoch: int, side: int) -> list[View]:
        """Frames of the video that a sample is of, all seen in the same way."""
        if not self.dataset.videos:
            fix = "Take videos (format frames), or frames=1."
            raise UsageError("these data are no videos", where=self.dataset.root, fix=fix)
        rng = np.random.default_rng((self.config.seed, epoch, index, 1))
        chosen = clip_of(self.dataset.names, index, self.config.frames, rng)
        views = [self._view(n, epoch, side) for n in chosen]
        return [view._replace(geometry=views[0].geometry, prompts=None) for view in views]

    def _view(self, index: int, epoch: int, side: int) -> View:
        sample, prompts = self.dataset[index], None
        if self.prompts:
            sample, prompts = self.prompts.of_objects(sample)
        sample = replace(sample, segments=with_labels(sample.segments, self.dataset.labels, self.labels))
        size, config = (sample.image.shape[0], sample.image.shape[1]), self.config
        rng = np.random.default_rng((config.seed, epoch % config.views if config.views else epoch, index))
        geometry = random_geometry(
            size,
            side,
            rng,
            scale=config.scale,
            stretch=config.stretch,
            squash=config.squash,
            flip=config.flip,
            flip_vertical=config.flip_vertical,
            rotate90=config.rotate90,
            angle=config.angle,
            shear=config.shear,
            category_limit=config.category_limit,
            segments=sample.segments,
        )
        return View(sample, geometry, prompts, sample_seed(config.seed, epoch, index))


class Batches(Sampler[list[Draw]]):
    """The draws of each batch from step `first` on: a new permutation every time the data are gone through."""

    def __init__(
        self, count: int, config: TrainConfig, model_side: int, first: int = 0, processes: Processes | None = None
    ) -> None:
        self.count, self.config, self.model_side, self.first = count, config, model_side, first
        self.processes = processes or Processes()

    def __len__(self) -> int:
        return (self.config.steps - self.first) * self.config.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.first, self.config.steps):
            side = self.config.side_at(step, self.model_side)
            for part in range(self.config.accumulate):
                before = (step * self.config.accumulate + part) * self.processes.count + self.processes.rank
                start = before * self.config.batch_size
                yield self._draws(start, side)

    def _draws(self, start: int, side: int) -> list[Draw]:
        """`batch_size` draws from position `start` of the endless sequence of permutations."""
        epochs, offsets = np.divmod(np.arange(start, start + self.config.batch_size), self.count)
        orders = {epoch: self._order(epoch) for epoch in set(epochs.tolist())}
        return [(int(orders[e][offset]), e, side) for e, offset in zip(epochs.tolist(), offsets.tolist(), strict=True)]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.config.seed, epoch)).permutation(self.count)


class Collate:
    """Views to a `Batch`. A class, so that loader processes can receive it."""

    def __init__(self, semantic: bool) -> None:
        self.semantic = semantic

    def __call__(self, drawn: list[Drawn | EverymaskError]) -> tuple[Batch, list[Skipped]] | EverymaskError:
        skipped = list[Skipped]()
        views = list[View | list[View]]()
        for one in drawn:
            if isinstance(one, EverymaskError):
                return one
            views.append(one[0])
            skipped += one[1]
        return self._batch(views), skipped

    def _batch(self, views: list[View | list[View]]) -> Batch:
        read = list[View]()
        for view in views:
            if isinstance(view, list):
                clip = collate_frames([each.sample for each in view], [each.geometry for each in view])
                return replace(clip, seeds=tuple(each.seed for each in view))
            read.append(view)
        samples, geometries, prompts, seeds = zip(*read, strict=True)
        batch = collate(samples, geometries, empty=_shared if get_worker_info() else torch.empty)
        batch = replace(batch, seeds=seeds)
        if None not in prompts:
            batch = replace(batch, prompts=tuple(map(_moved_prompts, read)))
        if self.semantic:
            batch = replace(batch, segments=tuple(map(_merged, batch.truth())))
        return batch


def _moved_prompts(view: View) -> Prompts:
    """The prompts on the canvas, for the segments that are left there."""
    assert view.prompts is not None
    return move_prompts(view.prompts, view.geometry, view.sample.segments)[0]


def _merged(segments: Segments) -> Segments:
    """One segment a class. As a rule semantic truth is that already, and its pixels need not be gone through."""
    ordered = segments.id_map.ndim == 2 and bool((segments.classes.diff() > 0).all())
    if not ordered or segments.labels is None or bool(segments.is_crowd.any()):
        return segments.merged_by_class()
    things = torch.tensor([segments.labels[k].is_thing for k in segments.classes.tolist()], dtype=torch.bool)
    return replace(segments, is_thing=things, scores=None)


def _shared(size: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
    """Memory that another process can map: a batch that is written there need not be copied on its way out."""
    count = math.prod(size)
    storage = torch.UntypedStorage._new_shared(count * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, (count,), (1,)).view(size)


def training_batches(
    dataset: Dataset,
    config: TrainConfig,
    labels: LabelMap,
    model_side: int,
    first_step: int,
    processes: Processes | None = None,
    watch: LoaderWatch | None = None,
) -> Iterator[Batch]:
    """Batches of steps `first_step`, `first_step` + 1, ..., `accumulate` of them a step; classes are those of `labels`.

    Args:
        processes: each of which gets another part of every step.
        watch: told of what is read and what cannot be.

    Raises:
        EverymaskError: a sample cannot be read.
    """
    group, workers = processes or Processes(), loader_workers(config, processes)
    watch = watch or LoaderWatch(dataset, workers, config.skip)
    loader: DataLoader[tuple[Batch, list[Skipped]] | EverymaskError] = DataLoader(
        Draws(dataset, config, labels, watch),
        batch_sampler=Batches(len(dataset), config, model_side, first_step, group),
        collate_fn=Collate(config.targets == "semantic"),
        num_workers=workers,
        persistent_workers=False,
        worker_init_fn=_start_worker,
        prefetch_factor=6 if workers else None,
        timeout=config.loader_timeout if workers else 0,
    )
    for loaded in loader:
        if isinstance(loaded, EverymaskError):
            raise loaded
        batch, skipped = loaded
        for name, error in skipped:
            watch.skip(name, error)
        yield batch


def loader_workers(config: TrainConfig, processes: Processes | None = None) -> int:
    """Loader processes of this process."""
    return default_workers(processes.local if processes else 1) if config.workers < 0 else config.workers


def default_workers(processes: int = 1) -> int:
    """Loader processes of each of so many on this machine that leave the compute threads their cores."""
    return max(1, min(8, (os.cpu_count() or 1) // 2 // processes))


def _start_worker(_: int) -> None:
    """Loader processes take what the compute threads leave: those wait for each other, so delaying one delays all.

    Ctrl-C reaches every process of a terminal, and SIGTERM of Slurm or systemd every process of a job: the step that
    they interrupt is to get its data, and whose loader dies, dies too. So the one is ignored, the other waits.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_SECONDS))
    if hasattr(os, "nice"):
        os.nice(5)
