"""Scores of a model on a data set: one forward pass an image, at the truth's own size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .datasets import Dataset
from .datasets.base import with_labels
from .datasets.classes import class_in
from .errors import DataError, UsageError
from .labels import LabelMap
from .metrics import BoundaryF, MattingErrors, SemanticIoU
from .model import SegmentationModel
from .predict import predict
from .types import Sample, Segments

Progress = Callable[[int, int], None]


def evaluate(
    model: SegmentationModel, dataset: Dataset, *, side: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Semantic, boundary and, where the truth has mattes, matting scores.

    Classes are matched by name. Prediction and truth are compared at the size of the photo; void pixels of the truth
    count for nothing.

    Returns:
        flat scores (`foreground_iou`, `miou`, `dice`, `boundary_f`, ...), `per_class`, `per_image` and `images`.

    Raises:
        DataError: the data set has a class that the model does not have.
    """
    check_classes(model.labels, dataset.labels, "evaluation data")
    score = _Scores(model.labels)
    for index, sample in enumerate(dataset):
        truth = with_labels(sample.segments, dataset.labels, model.labels)
        score.add(sample, truth, *_predicted(model, sample, truth, side))
        if progress:
            progress(index + 1, len(dataset))
    return score.compute()


def check_classes(known: LabelMap, wanted: LabelMap, where: str) -> list[int]:
    """The model's class index of each class of the data, found by a name or synonym of either.

    Raises:
        DataError: the data set has a class that the model does not have.
    """
    found = {label.name: class_in(known, label) for label in wanted}
    missing = [name for name, index in found.items() if index is None]
    if missing:
        why = f"the model has {', '.join(known.names)}; the data also have {', '.join(missing)}"
        fix = (
            "Take a model that has them, train one on these data, give the model's names as synonyms in classes.json, "
            "or leave these classes out of it."
        )
        raise DataError("model and data have different classes", where=where, why=why, fix=fix)
    return [index for index in found.values() if index is not None]


def describe_mapping(known: LabelMap, wanted: LabelMap) -> str:
    """One line on how classes of the data become those of the model; empty where both have the same.

    Raises:
        DataError: the data set has a class that the model does not have.
    """
    own = [known[index].name for index in check_classes(known, wanted, "evaluation data")]
    if known.names == wanted.names:
        return ""
    pairs = list(zip(wanted.names, own, strict=True))
    parts = {
        "by name": [name for name, other in pairs if name == other],
        "by synonym": [f"{name} as {other}" for name, other in pairs if name != other],
        "not in the data": [name for name in known.names if name not in own],
    }
    return "classes " + "; ".join(f"{how}: {_some(names)}" for how, names in parts.items() if names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def check_monitor(name: str, labels: LabelMap) -> None:
    """Raise `UsageError` unless `name` is a score that every evaluation gives; of all these, higher is better."""
    known = [key for key, value in _Scores(labels).compute().items() if isinstance(value, float)]
    if name not in known:
        raise UsageError("unknown score", where=f"monitor={name}", why=f"there are: {', '.join(known)}")


def _predicted(
    model: SegmentationModel, sample: Sample, truth: Segments, side: int | None
) -> tuple[Segments, Tensor | None]:
    """Semantic segments and, where the truth has a matte, the soft foreground."""
    found = predict(model, sample.image, task="semantic", side=side).segments
    if truth.alpha is None:
        return found, None
    return found, predict(model, sample.image, task="cutout", side=side).segments.alpha


class _Scores:
    """All metrics of one evaluation, and each image's own row."""

    def __init__(self, labels: LabelMap) -> None:
        self.classes = len(labels)
        self.semantic, self.boundary = SemanticIoU(self.classes, labels.names), BoundaryF()
        self.matting: MattingErrors | None = None
        self.rows: list[dict[str, Any]] = []

    def add(self, sample: Sample, truth: Segments, found: Segments, alpha: Tensor | None) -> None:
        row: dict[str, Any] = {"name": sample.name}
        row |= self.semantic.update(found.class_map(self.classes), truth.class_map(self.classes))
        row |= self.boundary.update(found.foreground, truth.foreground, ~truth.void)
        if alpha is not None and truth.alpha is not None:
            self.matting = self.matting or MattingErrors()
            row |= self.matting.update(alpha, truth.alpha)
        self.rows.append(row)

    def compute(self) -> dict[str, Any]:
        scores = self.semantic.compute() | self.boundary.compute()
        scores |= self.matting.compute() if self.matting else {}
        return {**scores, "images": len(self.rows), "per_image": self.rows}
