"""Images a second into a loader: decoded from a folder against read from its packed set.

    python -m benchmarks.pack [--data ../shared/data] [--name oxford_pet_700] [--side 640] [--count 64] [--rounds 5]

Both sides end as the same batch of one image on its canvas. Runs alternate and the medians are compared, so that what
else the machine does falls on both; only the ratio means anything on another machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from everymask.datasets import Dataset, Subset, open_dataset
from everymask.datasets.pack import pack
from everymask.transforms import Geometry, collate
from everymask.types import Batch, Sample


class ToBatch:
    """One sample to a batch with `side` as its longest side."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, samples: list[Sample]) -> Batch:
        height, width = samples[0].image.shape[:2]
        return collate(samples, [Geometry.fit((height, width), self.side)])


def seconds(dataset: Dataset, side: int, workers: int) -> float:
    """Time for one pass, from the first batch on: starting the processes is not what is measured."""
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]  # It has the length and the indices that are asked of one.
        num_workers=workers,
        collate_fn=ToBatch(side),
        worker_init_fn=_one_thread,
    )
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def compare(folder: Dataset, packed: Dataset, side: int, workers: int, rounds: int) -> str:
    """One line of the report."""
    times: dict[Dataset, list[float]] = {folder: [], packed: []}
    for turn in range(rounds):
        for dataset in (folder, packed) if turn % 2 == 0 else (packed, folder):
            times[dataset].append(seconds(dataset, side, workers))
    # The first batch of a pass is not timed; see `seconds`.
    slow, fast = ((len(folder) - 1) / median(times[dataset]) for dataset in (folder, packed))
    name = "1 worker" if workers == 1 else f"{workers} workers"
    return f"{name:10} folder {slow:7.1f} images/s   packed {fast:7.1f} images/s   {fast / slow:5.2f} x"


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack some images into a temporary folder and print a line for one and for two loader processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of data sets")
    parser.add_argument("--name", default="oxford_pet_700", help="data set in it")
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--count", type=int, default=64, help="images")
    parser.add_argument("--rounds", type=int, default=5, help="passes over each side")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    whole = open_dataset(options.data / options.name)
    folder = Subset(whole, range(min(options.count, len(whole))))
    with tempfile.TemporaryDirectory() as scratch:
        packed = pack(folder, scratch, side=options.side)
        print(f"{options.name}: {len(folder)} images at {options.side}, median of {options.rounds} alternating passes")
        for workers in (1, 2):
            print(compare(folder, packed, options.side, workers, options.rounds))


if __name__ == "__main__":
    main()
