"""The processes that train one model together: one as a rule, more under ``torchrun``.

All of them take the same steps. The first one writes and speaks; what only one may do, or all must agree on, goes
through here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .errors import EverymaskError, TrainingError

T = TypeVar("T")

DEFAULTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
"""What ``torchrun`` sets, and what holds without it."""

LOST = ("gloo", "nccl", "connection closed", "connection reset", "process group", "socket", "store")
"""Words in what PyTorch says when another process is gone."""


class Processes:
    """This process among all that train together.

    Attributes:
        rank: of this process, 0 for the first.
        count: of processes, on all machines.
        local: processes on this machine.
        device: on which numbers are exchanged.
    """

    def __init__(self, rank: int = 0, count: int = 1, local: int = 1) -> None:
        self.rank, self.count, self.local = rank, count, local
        self.device = torch.device("cpu")

    @classmethod
    def of_environment(cls) -> Processes:
        """As ``torchrun`` tells; one process without it."""
        given = (int(os.environ.get(name, default)) for name, default in DEFAULTS.items())
        return cls(*given)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.count // self.local

    def by_first(self, action: Callable[[], T]) -> T:
        """What `action` gives, or the error of ours that it raises, in all processes; only the first runs it."""
        if self.count == 1:
            return action()
        told: list[Any] = [_tried(action) if self.is_first else None]
        dist.broadcast_object_list(told)
        if isinstance(told[0], EverymaskError):
            raise told[0]
        result: T = told[0]
        return result

    def agree(self, flag: bool) -> bool:
        """Whether `flag` is set in any of them."""
        return self.averaged({"flag": float(flag)})["flag"] > 0

    def averaged(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all of them, which have the same keys."""
        if self.count == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.count).tolist(), strict=True))

    def gathered(self, value: T) -> list[T]:
        """The value of each process, in the order of ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turns what PyTorch raises when another process is gone into an error of ours."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not any(word in str(error).lower() for word in LOST):
                raise
            why = str(error).splitlines()[0][:200]
            fix = "Look at its messages; started again, the run goes on from the last checkpoint."
            where = f"rank {self.rank}"
            raise TrainingError("another process of this run has ended", where=where, why=why, fix=fix) from error


def _tried(action: Callable[[], T]) -> T | EverymaskError:
    try:
        return action()
    except EverymaskError as error:
        return error
