"""What loader processes are reading, so that one that dies, hangs or meets a damaged file is named with the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import get_worker_info

from ..errors import DataError, EverymaskError, TrainingError
from .base import Dataset

NOTHING = -1


class LoaderWatch:
    """Looks after the loader of one training process.

    Args:
        dataset: that is read.
        workers: loader processes; 0 reads in the process that trains.
        budget: samples that may be left out because they cannot be read.
        on_skip: told of each of them, once.
    """

    def __init__(
        self,
        dataset: Dataset,
        workers: int,
        budget: int = 0,
        on_skip: Callable[[str, EverymaskError], None] | None = None,
    ) -> None:
        self.dataset, self.budget, self.on_skip = dataset, budget, on_skip
        self.skipped: dict[str, EverymaskError] = {}
        self._reading = torch.full((max(1, workers),), NOTHING, dtype=torch.int64).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes only say what they read; whoever is told of skipped samples stays here.
        return {**self.__dict__, "on_skip": None}

    @contextmanager
    def reads(self, index: int) -> Iterator[None]:
        """In a loader process: it reads this sample meanwhile."""
        worker = get_worker_info()
        slot = worker.id if worker else 0
        self._reading[slot] = index
        yield
        self._reading[slot] = NOTHING

    def skip(self, name: str, error: EverymaskError) -> None:
        """Count a sample that cannot be read.

        Raises:
            DataError: these are too many.
        """
        if name in self.skipped:
            return
        self.skipped[name] = error
        if len(self.skipped) > self.budget:
            listed = "; ".join(str(each) for each in list(self.skipped.values())[:3])
            fix = "Mend the files, leave them out (everymask check --quarantine), or raise the setting skip."
            why = f"{len(self.skipped)} samples, skip={self.budget}: {listed}"
            raise DataError("too many samples cannot be read", where=self.dataset.root, why=why, fix=fix)
        if self.on_skip:
            self.on_skip(name, error)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turns what PyTorch raises of a loader process, at whatever moment, into an error that names files."""
        try:
            yield
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            what = "a loader process hangs" if "timed out" in str(error) else "a loader process has died"
            fix = "Look at these files; if the system kills for want of memory, lower workers or batch_size."
            where = ", ".join(self.being_read()) or self.dataset.root
            raise TrainingError(what, where=where, why=str(error).splitlines()[0][:200], fix=fix) from error

    def being_read(self) -> list[str]:
        """First file of every sample that a loader process began and did not end."""
        found = [index for index in self._reading.tolist() if index != NOTHING]
        return [str((self.dataset.files(index) or (self.dataset.names[index],))[0]) for index in found]
