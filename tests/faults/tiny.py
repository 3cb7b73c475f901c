"""The tiny training that is disturbed: a model of 84,000 weights, four photos, a checkpoint after every step."""

from __future__ import annotations

from pathlib import Path

import torch

from everymask.checkpoint import load
from everymask.cli import main
from everymask.errors import EverymaskError
from everymask.manifest import faults_of, file_hash
from everymask.run_folder import RunFolder

torch.set_num_threads(1)
STEPS = 6
SETTINGS = f"steps={STEPS} batch_size=2 image_side=64 lr=1e-3 warmup=2 validate_every=1 log_every=1 threads=1".split()


def train_tiny(data: Path, out: Path, workers: int = 0, system: str = "hybrid", *more: str) -> None:
    """``everymask train``, as a user starts it; `more` are further settings."""
    settings = [part for setting in (*SETTINGS, f"workers={workers}", *more) for part in ("--set", setting)]
    main(["train", system, str(data), "--preset", "tiny", "--out", str(out), *settings])


def weights(out: Path) -> dict[str, str]:
    """SHA-256 of the last checkpoint's tensors: weights, averaged weights, state of the optimizer."""
    return {path.name: file_hash(path) for path in sorted((out / "last").glob("*.safetensors"))}


def newest_step(out: Path) -> int:
    """The step of the newest checkpoint; 0 before the first."""
    return max((int(path.name[:8]) for path in RunFolder(out).found()), default=0)


def unreadable(out: Path) -> list[str]:
    """What is wrong with a run folder, at any moment: whatever has the name of a checkpoint must be whole, and `last`
    and `best` must load."""
    complaints = [f"{path.name}: {fault}" for path in RunFolder(out).found() for fault in faults_of(path)]
    for checkpoint in {link.resolve() for link in (out / "last", out / "best") if link.is_symlink()}:
        try:
            load(checkpoint)
        except EverymaskError as error:
            complaints.append(str(error))
    return complaints
