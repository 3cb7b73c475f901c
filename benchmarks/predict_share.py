"""Where the time of a prediction goes: the model's share, against reading, fitting and post-processing.

    python -m benchmarks predict_share

The photo is a bundled one, enlarged to 1920 x 1080 and written as JPEG: the decoder and the resampling have the work
that a camera's photo gives them. The model is the bundled one, because what post-processing costs depends on what is
found. The stages are those of `Result.timings`; their medians are compared, and the tasks take turns. The share also
falls when the model becomes faster: read it together with the other stages' milliseconds, which depend on the photo.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from PIL import Image, ImageOps

import everymask
from everymask.checkpoint import bundled_models, load, save
from everymask.model import SegmentationModel
from everymask.models import create_model

from .measure import Row

MODEL = "hybrid-pets"
PHOTOS = Path(everymask.__file__).parent / "samples" / "photos"
TASKS = ("semantic", "cutout")


def find_model(scratch: Path) -> SegmentationModel:
    """The bundled model; where it is not installed, its system with random weights.

    Random weights take as long in the model, but as they find nothing sensible, post-processing is not typical.
    """
    if MODEL in bundled_models():
        return load(MODEL)
    torch.manual_seed(0)
    # By way of a folder: `load` puts the weights into the memory order that prediction uses.
    return load(save(create_model("hybrid", "small", classes=["cat", "dog"]), scratch / "random"))


def write_photo(folder: Path, width: int, height: int) -> Path:
    """A bundled photo, cropped and resized to this size, as JPEG."""
    source = sorted(PHOTOS.glob("*.jpg"))[0]
    path = folder / f"{width}x{height}.jpg"
    ImageOps.fit(Image.open(source).convert("RGB"), (width, height), Image.Resampling.LANCZOS).save(path, quality=90)
    return path


def stages(
    model: SegmentationModel, photo: Path, tasks: Sequence[str], runs: int, warmup: int = 3
) -> dict[str, dict[str, float]]:
    """Median seconds of each stage, by task."""
    timings: dict[str, list[dict[str, float]]] = {task: [] for task in tasks}
    for turn in range(warmup + runs):
        for task in tasks:
            result = everymask.predict(model, photo, task=task)
            if turn >= warmup:
                timings[task].append(result.timings)
    return {task: {stage: median(t[stage] for t in many) for stage in many[0]} for task, many in timings.items()}


def rows(size: tuple[int, int] = (1920, 1080), small: tuple[int, int] = (512, 512), runs: int = 30) -> list[Row]:
    """The model's share of a large photo for each task, all its stages, and the whole time for a small photo."""
    with tempfile.TemporaryDirectory() as scratch:
        model = find_model(Path(scratch))
        large = stages(model, write_photo(Path(scratch), *size), TASKS, runs)
        quick = stages(model, write_photo(Path(scratch), *small), TASKS[:1], runs)
    weights = "" if MODEL in bundled_models() else " (random weights)"
    table = []
    for task, seconds in large.items():
        share = 100 * seconds["model"] / sum(seconds.values())
        table.append(Row(f"{task}{weights}: model's share", share, "%", least=70))
        table += [Row(f"  {stage}", value, "s") for stage, value in seconds.items()]
    whole = sum(quick[TASKS[0]].values())
    return [*table, Row("predict {}x{}{}".format(*small, weights), whole, "s", most=0.5)]
