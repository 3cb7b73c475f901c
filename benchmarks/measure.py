"""What all benchmarks share: the row of the table, alternating runs, and the peak memory of a function."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

Step = Callable[[], Any]
"""One run of what is measured."""

Sizes = TypeVar("Sizes")

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table. A row without a bar is there to be read.

    Attributes:
        ours, peer: the less the better, except where `least` is given.
        unit: of both: ``"s"``, ``"MiB"`` or ``"%"``.
        ratio_least: bar on how many times the peer takes what ours takes.
        least, most: bars on `ours`.
    """

    name: str
    ours: float
    unit: str
    peer: float | None = None
    ratio_least: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def ratio(self) -> float | None:
        """The peer's figure over ours."""
        return None if self.peer is None else self.peer / self.ours

    @property
    def bar(self) -> str:
        """The bar as people read it; empty where there is none."""
        if self.ratio_least is not None:
            return f">= {self.ratio_least:g} x"
        if self.least is not None:
            return f">= {self.least:g} {self.unit}"
        return "" if self.most is None else f"< {self.most:g} {self.unit}"

    @property
    def passed(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.ratio_least is not None:
            return self.ratio is not None and self.ratio >= self.ratio_least
        if self.least is not None:
            return self.ours >= self.least
        return None if self.most is None else self.ours < self.most

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        return asdict(self) | {"ratio": self.ratio, "bar": self.bar, "passed": self.passed}


def alternate(steps: Mapping[str, Step], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each step.

    The steps take turns, so that whatever else the machine does falls on all of them. Every other round goes backwards:
    no step always runs right after the same other one.
    """
    for _ in range(warmup):
        for step in steps.values():
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps)[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def peak_memory(prepare: Callable[[Sizes], Step], small: Sizes, full: Sizes) -> float:
    """MiB that one run of the step ``prepare(full)`` takes beyond what was there before it, in a fresh process.

    Imports and inputs are in place before, and a step of ``prepare(small)`` has loaded the libraries' code: what
    remains is what the run itself allocates.

    Args:
        prepare: a module's function (another process imports it by name) that makes the inputs.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_growth, prepare, small, full).result()


def _growth(prepare: Callable[[Sizes], Step], small: Sizes, full: Sizes) -> float:
    prepare(small)()
    step = prepare(full)
    # Making the inputs may have taken more than they hold: let the peak begin here. Where the system refuses, the
    # growth is counted from the earlier peak, for both sides alike.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    step()
    return (peak() - before) / MIB


def peak() -> int:
    """Most bytes that this process ever had in memory.

    Linux hands the peak of `getrusage` down from the process that started this one, where it hides all that is smaller.
    The figure in /proc is of this process alone.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    # Bytes on macOS, KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """Versions, processor and threads: what the figures depend on."""
    from importlib.metadata import version
    from platform import platform, python_version

    import torch

    packages = ("everymask", "torch", "transformers", "numpy", "scipy")
    return {
        "python": python_version(),
        "packages": {name: version(name) for name in packages},
        "system": platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    from platform import machine, processor

    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return processor() or machine()
