"""Open this first. A photograph's way from disk to mask in five calls: read, fit, model, post-process, `Result`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import UsageError
from .heatmaps import HeatMaps
from .image import read_image
from .model import EncodeOnce, SegmentationModel
from .models import model_module, model_name
from .result import Result
from .transforms import Geometry
from .types import Batch, Letterbox, Prediction, Prompts, Segments
from .user_prompts import check_inside, given_prompts


def predict(
    model: SegmentationModel,
    image: str | Path | bytes | np.ndarray,
    *,
    task: str | None = None,
    side: int | None = None,
    name: str | None = None,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    heatmaps: bool = False,
    **options: Any,
) -> Result:
    """Segments of one photo at its own size.

    Args:
        image: path, file content, PIL image, or uint8 [H, W, 3].
        task: a key of the system's ``TASKS``; None takes its first.
        side: canvas side in pixels (32 to 8192) instead of the model's own.
        name: of the result; the file stem if not given.
        points, labels, boxes: for systems that take prompts, in pixels of the photo, see `given_prompts`.
        heatmaps: also say how probable each class is at each pixel (`Result.heatmaps`).
        options: of the task's post-processing (`threshold`, `classes`, ...). An open-vocabulary system takes `classes`
            as the words to look for.

    Raises:
        ImageError: the photo cannot be read.
        UsageError: the system does not have this task or option, a prompt is wrong, or `side` is out of range.
    """
    if side is not None and not 32 <= side <= 8192:
        raise UsageError("the canvas side is out of range", where="side", why=f"{side} is not in 32..8192")
    prompts = given_prompts(points, labels, boxes)
    check_prompts(model, prompts)
    if model.open_vocabulary and options.get("classes") is not None:
        model = told(model, options.pop("classes"))
    decide = find_task(model, task, options)
    options = model.task_options(task or first_task(model)) | options
    clock = _Clock()
    photo = read_image(image)
    clock.mark("read")
    batch = fit(photo, model.letterbox((photo.shape[0], photo.shape[1]), side), prompts, device=device_of(model))
    clock.mark("fit")
    prediction = run(model, batch)
    clock.mark("model")
    with torch.no_grad():  # Masks are decoded here, by the model's own weights.
        segments = decide(prediction, batch.letterboxes[0], model.labels, **options)
    clock.mark("postprocess")
    heat = HeatMaps.of(prediction, batch.letterboxes[0], model.labels) if heatmaps else None
    return Result(photo, segments, name or _name(image), clock.seconds, heat)


def answers(
    model: SegmentationModel, photo: np.ndarray, tasks: Sequence[tuple[str, dict[str, Any]]], *, side: int | None = None
) -> list[Segments]:
    """Segments of several tasks, each with options of its own, from one forward pass.

    Raises:
        UsageError: the system does not have a task or option.
    """
    decisions = [(find_task(model, task, options), model.task_options(task) | options) for task, options in tasks]
    batch = fit(photo, model.letterbox((photo.shape[0], photo.shape[1]), side), device=device_of(model))
    prediction = run(model, batch)
    with torch.no_grad():
        return [decide(prediction, batch.letterboxes[0], model.labels, **options) for decide, options in decisions]


def told(model: SegmentationModel, classes: Any) -> SegmentationModel:
    """A model of open vocabulary, told what to look for; any other model as it is."""
    return model.with_classes(classes) if isinstance(model, EncodeOnce) and model.open_vocabulary else model


def find_task(model: SegmentationModel, task: str | None, options: dict[str, Any]) -> Any:
    """The post-processing function of a task.

    Raises:
        UsageError: unknown task, or an option that it does not take.
    """
    tasks = model_module(model_name(model)).TASKS
    name = task or first_task(model)
    if name not in tasks:
        raise UsageError(f"{model_name(model)} has no such task", where=name, why=f"it has: {', '.join(tasks)}")
    known = option_names(tasks[name])
    unknown = [key for key in options if key not in known]
    if unknown:
        why = f"it takes: {', '.join(known) or 'none'}"
        raise UsageError(f"the task {name} has no such option", where=", ".join(unknown), why=why)
    return tasks[name]


def first_task(model: SegmentationModel) -> str:
    """The task that a system does where none is named."""
    return str(next(iter(model_module(model_name(model)).TASKS)))


def option_names(function: Any) -> list[str]:
    """Keyword-only parameters of a post-processing function or of a `partial` of one."""
    target = getattr(function, "func", function)
    return list(target.__kwdefaults__ or {})


def check_prompts(model: SegmentationModel, prompts: Prompts | None) -> None:
    """Raise `UsageError` if there are prompts for a system that takes none."""
    if prompts is not None and not model.takes_prompts:
        fix = "Take a system that is told by clicks (sam2), or leave points and boxes out."
        raise UsageError("this system takes no prompts", where=model_name(model), fix=fix)


def fit(
    photo: np.ndarray, letterbox: Letterbox, prompts: Prompts | None = None, device: torch.device | str = "cpu"
) -> Batch:
    """uint8 [H, W, 3] -> a batch of one, resized to the letterbox, with the prompts of the photo moved along.

    Raises:
        UsageError: a point is outside the photo.
    """
    geometry = Geometry((0, 0, photo.shape[1], photo.shape[0]), letterbox)
    images = geometry.image(photo)[None].to(device)
    if prompts is None:
        return Batch(images, (letterbox,))
    check_inside(prompts, letterbox.source)
    moved = replace(prompts, points=letterbox.to_canvas(prompts.points))
    return Batch(images, (letterbox,), prompts=(moved.to(device),))


def run(model: SegmentationModel, batch: Batch) -> Prediction:
    """The forward pass, without gradients."""
    with torch.no_grad():  # Not `inference_mode`: results are plain tensors, with which anything may be done.
        prediction: Prediction = model.recall(batch) if isinstance(model, EncodeOnce) else model(batch)
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    return prediction


def device_of(model: SegmentationModel) -> torch.device:
    """Where the weights are."""
    return next(model.parameters()).device


def _name(image: Any) -> str:
    return Path(image).stem if isinstance(image, (str, Path)) else "image"


class _Clock:
    """Seconds between marks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now
