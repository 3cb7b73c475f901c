"""Broken files of weights, read by `everymask.load`: a model or an error of ours, whatever is in them."""

from __future__ import annotations

import json
import resource
import signal
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from everymask.checkpoint import load
from everymask.errors import EverymaskError
from everymask.model import SegmentationModel
from tests.faults.specimens import Specimen, specimens

MEMORY = 3 << 30
"""Bytes that a file may ask for, besides what the process has."""
SECONDS = 30


class Hung(BaseException):
    """No `Exception`, so that nothing takes it for a damaged file."""


def read_broken(place: Path, count: int, seed: int) -> None:
    """Read `count` broken files of each kind of three; what came of it is in ``result.json`` in `place`."""
    dead, found = place / "dead", Counter[str]()
    complaints: list[str] = []
    chosen = specimens(place / "files", dead)
    limit_memory()
    signal.signal(signal.SIGALRM, hang)
    for kind in ("safetensors", "JSON", "pickle"):
        mine = [specimen for specimen in chosen if specimen.kind == kind]
        for number, specimen in enumerate(mine):
            share = len(range(number, count, len(mine)))
            complaints += read_each(specimen, share, seed, dead, found)
    result = {"found": found, "complaints": complaints, "ran": dead.exists()}
    (place / "result.json").write_text(json.dumps(result))


def read_each(specimen: Specimen, count: int, seed: int, dead: Path, found: Counter[str]) -> list[str]:
    whole, complaints = specimen.path.read_bytes(), []
    for number, content in enumerate(specimen.broken(seed, count)):
        print(specimen.path.name, number, flush=True)  # The last line of the log, should the process crash.
        specimen.path.write_bytes(content)
        outcome = read(specimen)
        found[f"{specimen.kind}: {outcome.partition(':')[0]}"] += 1
        if not outcome.startswith(("loaded", "refused")) or dead.exists():
            complaints.append(f"{specimen.path.name} {number}: {outcome}")
    specimen.path.write_bytes(whole)
    return complaints


def read(specimen: Specimen) -> str:
    """ "loaded", "refused", or what else happened."""
    signal.alarm(SECONDS)
    try:
        model = load(specimen.source)
    except EverymaskError:
        return "refused"
    except Hung:
        return f"hung: {traceback.format_exc(limit=-4)}"
    except Exception as error:
        return f"{type(error).__name__}: {error} {traceback.format_exc(limit=-4)}"
    finally:
        signal.alarm(0)
    return "loaded" if isinstance(model, SegmentationModel) else f"{type(model).__name__}: no model"


def hang(*_: Any) -> None:
    raise Hung


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
