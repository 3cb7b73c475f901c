"""Training batches a second from a packed set, as `everymask train` draws them: decode-free, augmented, collated.

    python -m benchmarks.loader [--data ../shared/data] [--name oxford_pet_700] [--side 512] [--stored 640 512]
                                [--batches 40] [--workers 1 2] [--set key=value ...]

Besides images a second on the clock it prints the processor time that an image takes in all processes together: that
hardly depends on what else the machine does, and cores over it is the rate that the machine could reach.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import torch

from everymask.datasets import Dataset, Subset, open_dataset
from everymask.datasets.loader import training_batches
from everymask.datasets.pack import pack
from everymask.recipe import TrainConfig

from .measure import Row

BAR = 150
"""Images a second at 512 x 512 on two cores."""

NAME = "oxford_pet_700"
"""The data set that is packed if no other is named."""


def measure(dataset: Dataset, config: TrainConfig) -> tuple[float, float]:
    """Images a second from the first batch on, and processor seconds an image without the start of the processes."""
    batches = training_batches(dataset, config, dataset.labels, config.image_side, 0)
    count, spent = config.batch_size, processor_seconds()
    next(batches)
    start = time.perf_counter()
    for batch in batches:
        count += len(batch)
    rate = (count - config.batch_size) / (time.perf_counter() - start)
    return rate, (processor_seconds() - spent) / count


def processor_seconds() -> float:
    """User and system time of this process and of those that it has waited for."""
    used = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def results(
    folder: Dataset, stored: Sequence[int], config: TrainConfig, workers: Sequence[int]
) -> Iterator[tuple[str, float, float]]:
    """What was measured, images a second and processor seconds an image, for each stored side and number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for side in stored:
        with tempfile.TemporaryDirectory() as scratch:
            packed = pack(folder, scratch, side=side)
            for count in workers:
                name = f"{config.image_side} from {side}, {count} worker{'s' * (count > 1)}"
                yield name, *measure(packed, config.with_settings([f"workers={count}"]))
    torch.set_num_threads(before)


def some(data: Path, name: str, count: int) -> Dataset:
    """The first images of a data set."""
    whole = open_dataset(data / name)
    return Subset(whole, range(min(count, len(whole))))


def rows(data: Path, side: int = 512, stored: Sequence[int] = (640, 512), batches: int = 20) -> list[Row]:
    """For the table of all benchmarks; none where the data set is not there."""
    if not (data / NAME).is_dir():
        return []
    config = TrainConfig(steps=batches, image_side=side)
    return [
        row
        for name, rate, seconds in results(some(data, NAME, 64), stored, config, [2])
        for row in (
            Row(f"load {name}", rate, "images/s", least=BAR),
            Row("  processor an image", seconds, "s", most=2 / BAR),
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack some images into a temporary folder and print a line for each way of reading them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of data sets")
    parser.add_argument("--name", default=NAME, help="data set in it")
    parser.add_argument("--side", type=int, default=512, help="canvas")
    parser.add_argument("--stored", type=int, nargs="+", default=[640, 512], help="sides that the set is packed at")
    parser.add_argument("--count", type=int, default=64, help="images")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="loader processes")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="training settings")
    options = parser.parse_args(arguments)
    config = TrainConfig(steps=options.batches, image_side=options.side).with_settings(options.set)
    folder, cores = some(options.data, options.name, options.count), os.cpu_count() or 1
    print(f"{options.name}: {len(folder)} images in batches of {config.batch_size}; bar {BAR} images/s on 2 cores")
    for name, rate, seconds in results(folder, options.stored, config, options.workers):
        possible = f"{cores / seconds:6.1f} images/s on {cores} cores"
        print(f"{name}: {rate:6.1f} images/s; {1000 * seconds:5.2f} ms of processor an image, {possible}", flush=True)


if __name__ == "__main__":
    main()
