"""The data doctor: reads every sample of a data folder and says in words what is wrong with it. Changes nothing.

The way through: `survey` lists splits and samples, `examine` finds the facts of one sample (in worker processes, kept
in a file so that a check can be interrupted), `tally` adds them up in bounded memory, `verdicts` turns the sums into
findings of the kinds in `kinds`.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ...errors import DataError
from .facts import Facts, FactsFile, open_facts, stamp
from .kinds import KINDS, Kind, Severity
from .report import Example, Finding, Report
from .survey import Survey, survey
from .tables import class_rows, mask_note, value_rows
from .tally import Tally
from .verdicts import findings

__all__ = ["KINDS", "Example", "Finding", "Kind", "Report", "Severity", "Survey", "check", "survey"]

Progress = Callable[[int], None]

FEW = 32
"""Up to so many samples are examined in this process: starting others would take longer."""

AHEAD = 8
"""Samples that each process may be ahead."""

COMMIT_EVERY = 64


def check(
    found: Survey, *, keep: Path | None = None, workers: int | None = None, progress: Progress | None = None
) -> Report:
    """Check a data folder: ``check(survey(folder))``.

    Args:
        found: what there is to check.
        keep: file in which facts are kept: the same check again goes on where it stopped, and reads only what has
            changed since. None keeps nothing.
        workers: processes that read; None takes all cores, 0 none but this one.
        progress: called with the number of samples done.

    Raises:
        WriteError: `keep` cannot be written.
    """
    start = time.perf_counter()
    tally = Tally()
    with open_facts(keep) as store:
        reused = _count(found, tally, store, workers, progress or (lambda done: None))
    return Report(
        found,
        findings(tally, found),
        value_rows(tally, found.labels),
        class_rows(tally, found.labels),
        mask_note(tally, found),
        time.perf_counter() - start,
        reused,
    )


def _count(found: Survey, tally: Tally, store: FactsFile, workers: int | None, progress: Progress) -> int:
    """Add up the facts of all samples, known ones first; returns how many were known."""
    pending = array("q")
    for number, ref in enumerate(found.refs()):
        known = store.get(ref.title, stamp(ref.files, found.key))
        if known is None:
            pending.append(number)
        else:
            tally.add(number, known)
    reused = len(found) - len(pending)
    progress(reused)
    for done, (number, facts) in enumerate(_examined(found, pending, workers), reused + 1):
        ref = found.ref(number)
        store.put(ref.title, stamp(ref.files, found.key), facts)
        tally.add(number, facts)
        if done % COMMIT_EVERY == 0:
            store.commit()
        progress(done)
    return reused


def _examined(found: Survey, numbers: Sequence[int], workers: int | None) -> Iterator[tuple[int, Facts]]:
    """Number and facts of each sample, in order, a few ahead at most.

    Raises:
        DataError: a process died over a file, for lack of memory or by a fault in a decoder.
    """
    if workers is None:
        workers = cores() if len(numbers) > FEW else 0
    loader: DataLoader[Any] = DataLoader(
        found,  # type: ignore[arg-type]  # It has the length and the indices that are asked of one.
        batch_size=None,
        sampler=numbers,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_one_thread,
        prefetch_factor=AHEAD if workers else None,
    )
    try:
        yield from loader
    except RuntimeError as error:  # PyTorch's word for it.
        fix = "The same check again goes on from here (with --out or --json); fewer processes need less memory."
        raise DataError("a process that read files died", where=found.folder.root, why=str(error), fix=fix) from error


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_it_is(item: Any) -> Any:
    return item


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
