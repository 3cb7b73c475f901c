"""What a run was made with, for whoever wants to make it again: one JSON line for every start, in ``started.jsonl``."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .datasets import Dataset
from .errors import WriteError
from .model import SegmentationModel
from .processes import Processes
from .recipe import TrainConfig

NAME = "started.jsonl"
PACKAGES = ("everymask", "torch", "transformers", "lightning-fabric", "numpy", "scipy", "pillow", "kornia")


def record_start(
    out: Path, step: int, config: TrainConfig, model: SegmentationModel, data: dict[str, Dataset], group: Processes
) -> None:
    """Add a line to the folder of a run.

    Raises:
        WriteError: the system refuses.
    """
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "step": step,
        "command": sys.argv,
        "configuration": config.to_json(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": {name: {"samples": len(part), "sha256": data_hash(part)} for name, part in data.items()},
        "versions": {"python": platform.python_version(), **versions()},
        "git": git_state(Path.cwd()),
        "machine": {"system": platform.platform(), "processes": group.count, "device": str(group.device)},
    }
    try:
        with (out / NAME).open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise WriteError("cannot write to the run's folder", where=out / NAME, why=str(error)) from error


def data_hash(dataset: Dataset) -> str:
    """SHA-256 of the names of all samples and the names and sizes of their files: cheap, and tells other data apart."""
    told = hashlib.sha256()
    for index, name in enumerate(dataset.names):
        told.update(name.encode())
        for path in dataset.files(index):
            told.update(f"\0{path.name}\0{path.stat().st_size if path.is_file() else -1}".encode())
    return told.hexdigest()


def versions() -> dict[str, str]:
    """Of the packages that decide results; those that are not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it, of the repository that a folder lies in; None outside of any."""
    commit, changed = (_git(folder, *words) for words in (["rev-parse", "HEAD"], ["status", "--porcelain"]))
    return None if commit is None else {"commit": commit.strip(), "changed": bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
