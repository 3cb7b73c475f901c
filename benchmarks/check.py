"""The data doctor on CamVid: pairs a second, and the memory that four times the files take more.

    python -m benchmarks.check [--data ../shared/data] [--workers 2]

Each run has a process of its own. Four times the files are links to the same ones under other names. "By the
processor" is what the processor's time comes to on that many cores of its own: on busy cores, the figure to trust.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory

from everymask.datasets import find_folders
from everymask.datasets.camvid import COLORS, UNLABELLED
from everymask.datasets.check import check, survey

from .measure import MIB, Row, peak

DATA = Path("../shared/data")
LEAST_SPEED = 60
"""Pairs a second on two cores."""

MOST_GROWTH = 16
"""MiB that 2,100 more pairs may take; their names and paths alone take some."""


@dataclass(frozen=True)
class Run:
    """One check.

    Attributes:
        seconds, processor: by the clock, and of all processes together.
        memory: peak of the process that counts, in MiB.
        reader_memory: peak of the largest process that reads, in MiB.
    """

    pairs: int
    seconds: float
    processor: float
    memory: float
    reader_memory: float


def linked(camvid: Path, root: Path, times: int) -> Path:
    """A folder with each file of CamVid so many times."""
    for folder in ("train", "trainannot", "val", "valannot", "test", "testannot"):
        (root / folder).mkdir(parents=True)
        for path in sorted((camvid / folder).iterdir()):
            for n in range(times):
                os.symlink(path.resolve(), root / folder / f"{n}_{path.name}")
    classes = [{"name": name, "value": k, "color": list(color)} for k, (name, color) in enumerate(COLORS.items())]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "void": [UNLABELLED]}))
    return root


def run(root: Path, workers: int) -> Run:
    """Check a folder in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_run, root, workers).result()


def _run(root: Path, workers: int) -> Run:
    start, processor = time.perf_counter(), time.process_time()
    report = check(survey(find_folders([root])[0]), workers=workers)
    seconds, own = time.perf_counter() - start, time.process_time() - processor
    children = getrusage(RUSAGE_CHILDREN)
    spent = own + children.ru_utime + children.ru_stime
    return Run(sum(report.splits.values()), seconds, spent, peak() / MIB, children.ru_maxrss / 1024)


def runs(data: Path, workers: int) -> dict[int, Run]:
    """A run on the files of CamVid, and one on four times as many."""
    with TemporaryDirectory() as scratch:
        folders = {times: linked(data / "camvid", Path(scratch, str(times)), times) for times in (1, 4)}
        return {times: run(root, workers) for times, root in folders.items()}


def rows(data: Path = DATA) -> list[Row]:
    """Rows for the common table; none where CamVid is not there."""
    if not (data / "camvid").is_dir():
        return []
    once, more = runs(data, workers=2).values()
    return [
        Row("data doctor: a pair of CamVid, 2 cores", once.seconds / once.pairs, "s", most=1 / LEAST_SPEED),
        Row("data doctor: the processor's time for it", once.processor / once.pairs, "s", most=2 / LEAST_SPEED),
        Row("data doctor: memory of 4 x the files more", more.memory - once.memory, "MiB", most=MOST_GROWTH),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for CamVid and one for four times as many files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of data sets")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    options = parser.parse_args(arguments)
    for r in runs(options.data, options.workers).values():
        by_processor = options.workers * r.pairs / r.processor
        print(
            f"{r.pairs:5} pairs  {r.pairs / r.seconds:6.1f} pairs/s by the clock  {by_processor:6.1f} by the processor "
            f"({1000 * r.processor / r.pairs:.1f} ms a pair)  "
            f"peak {r.memory:.0f} MiB, {r.reader_memory:.0f} MiB of a reader"
        )


if __name__ == "__main__":
    main()
