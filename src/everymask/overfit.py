"""One-image self-test: can this model learn this image at all? A minute that finds most faults of data or model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .charts import curves
from .compare import comparison
from .datasets.folder import Folder
from .datasets.pets import Pets
from .evaluate import segments_for
from .image import write_png
from .metrics import SemanticIoU
from .model import SegmentationModel
from .models import create_model
from .transforms import Geometry, collate
from .types import Batch, Sample

GOAL = 0.95
EVERY = 10
SAMPLE = Path(__file__).parent / "samples" / "overfit"


@dataclass(frozen=True)
class Point:
    """State of the test at one moment: `iou` is the mean class IoU at the photo's own size."""

    step: int
    loss: float
    iou: float
    seconds: float


def overfit(
    name: str,
    preset: str = "small",
    files: tuple[Path, Path] | None = None,
    *,
    steps: int = 120,
    side: int | None = None,
    lr: float = 1e-3,
    out: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Point]:
    """Train a fresh model on one image until its mask is learnt (`GOAL`) or `steps` are over.

    Args:
        files: image and mask (0 background, all other values classes, 255 foreground if it is the only other one);
            None takes the bundled photo.
        out: folder for ``curve.png`` and ``overfit.png`` (truth, prediction, errors).

    Returns:
        the curve, one point every tenth step.
    """
    sample = bundled_sample() if files is None else file_sample(*files)
    labels = sample.segments.labels
    assert labels is not None
    torch.manual_seed(0)
    model = create_model(name, preset, classes=labels)
    history = []
    for point in _learn(model, sample, steps, side or model.config.image_side, lr):
        history.append(point)
        if progress:
            progress(describe(point))
    if out:
        _draw(model, sample, history, out)
    return history


def describe(point: Point) -> str:
    """One line of the curve as text."""
    curve = bar(point.iou)
    return f"step {point.step:4d}  loss {point.loss:7.3f}  IoU {point.iou:.3f}  {curve}  {point.seconds:.0f} s"


def _learn(model: SegmentationModel, sample: Sample, steps: int, side: int, lr: float) -> Iterator[Point]:
    """Train and yield a `Point` every `EVERY` steps, until the goal is reached."""
    height, width = sample.segments.size
    batch = collate([sample], [Geometry((0, 0, width, height), model.letterbox((height, width), side))])
    optimizer = torch.optim.AdamW(model.param_groups(lr), weight_decay=0.0)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        loss = learn_step(model, batch, optimizer)
        if step % EVERY == 0 or step == steps:
            iou = _iou(model, sample, side)
            yield Point(step, loss, iou, time.perf_counter() - start)
            if iou >= GOAL:
                return


def learn_step(model: SegmentationModel, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """One optimizer step on one batch; returns the loss."""
    model.train()
    loss = torch.stack(list(model.loss(batch).values())).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _iou(model: SegmentationModel, sample: Sample, side: int) -> float:
    model.eval()
    count = len(model.labels)
    found = segments_for(model, sample, sample.segments, _task(model), side)
    return SemanticIoU(count).update(found.class_map(count), sample.segments.class_map(count))["miou"]


def _task(model: SegmentationModel) -> str:
    return "prompted" if model.takes_prompts else "semantic"


def bar(share: float, width: int = 24) -> str:
    """A text bar for 0..1."""
    full = round(share * width)
    return "█" * full + "·" * (width - full)


def bundled_sample() -> Sample:
    """The pet photo that comes with the package, its border void."""
    return Pets(SAMPLE)[0]


def file_sample(image: Path, mask: Path) -> Sample:
    """One image and its mask; ``classes.json`` beside the mask names its values."""
    return Folder(mask.parent, "", [(image, mask)])[0]


def _draw(model: SegmentationModel, sample: Sample, history: list[Point], out: Path) -> None:
    found = segments_for(model, sample, sample.segments, _task(model))
    write_png(out / "overfit.png", np.asarray(comparison([(sample.name, sample.image, sample.segments, found)])))
    series = {"IoU": [(float(p.step), p.iou) for p in history]}
    write_png(out / "curve.png", np.asarray(curves(series, "One-image overfit", y_range=(0, 1))))
