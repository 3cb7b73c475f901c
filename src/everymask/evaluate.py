"""Scores of a model on a data set: one forward pass an image, at the truth's own size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from .datasets import Dataset
from .datasets.base import with_labels
from .datasets.classes import class_in
from .errors import DataError, UsageError
from .labels import LabelMap
from .metrics import BoundaryF, MaskAP, MattingErrors, PanopticQuality, SemanticIoU
from .model import SegmentationModel
from .predict import answers, predict, told
from .processes import Processes
from .prompted_evaluation import PromptScores, prompted_segments
from .types import Sample, Segments

Progress = Callable[[int, int], None]
Task = Literal["semantic", "instance", "panoptic", "prompted"]

CANDIDATE = 0.05
"""Average precision ranks predictions by score: with instances of less than this it would change but little."""


def evaluate(
    model: SegmentationModel,
    dataset: Dataset,
    *,
    task: Task = "semantic",
    side: int | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Scores of one task.

    Classes are matched by name; a model of open vocabulary is told those of the data. Prediction and truth are compared
    at the size of the photo; void pixels of the truth count for nothing.

    Args:
        task: "semantic" gives `miou`, `foreground_iou`, `dice`, `boundary_f` and, where the truth has mattes, the
            matting errors; "instance" gives mask `ap` and the panoptic quality `pq` of the things; "panoptic" gives
            `pq` of things and stuff; "prompted" gives `dice` and `iou` of objects that the model is told the boxes of.
        side: canvas side in pixels instead of the model's own.
        processes: that share the images among them; all get the same scores, to the bit those of one process.

    Returns:
        flat scores, `per_class`, `per_image` and `images`.

    Raises:
        DataError: the data set has a class that the model does not have.
        UsageError: the system does not have this task.
    """
    model = told(model, dataset.labels)
    check_classes(model.labels, dataset.labels, "evaluation data")
    score, group = scores_of(task, model.labels), processes or Processes()
    add_share(score, model, dataset, side, group, progress)
    return merged(score, group)


def add_share(
    score: Scores,
    model: SegmentationModel,
    dataset: Dataset,
    side: int | None,
    processes: Processes,
    progress: Progress | None = None,
) -> None:
    """Predict and score the images of this process: consecutive ones, so that ranks in order are images in order."""
    first, last = (n * len(dataset) // processes.count for n in (processes.rank, processes.rank + 1))
    for index in range(first, last):
        sample = dataset[index]
        score.add(model, sample, with_labels(sample.segments, dataset.labels, model.labels), side)
        if progress:
            progress(index + 1 - first, last - first)


def merged(score: Scores, processes: Processes) -> dict[str, Any]:
    """What `evaluate` gives, from the scores of each process."""
    own, *others = processes.gathered(score)
    for other in others:
        own.merge(other)  # type: ignore[arg-type]
    return own.compute() | {"images": len(own.rows), "per_image": own.rows}


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


def check_monitor(name: str, task: str, labels: LabelMap) -> None:
    """Raise `UsageError` unless every evaluation of `task` gives a score `name`; of all these, higher is better."""
    known = [key for key, value in scores_of(task, labels).compute().items() if isinstance(value, float)]
    if name not in known:
        raise UsageError("unknown score", where=f"monitor={name}", why=f"there are: {', '.join(known)}")


class SemanticScores:
    """Classes of pixels, outlines of the foreground and, where there are mattes, soft edges."""

    leading = "foreground_iou"
    """The score of an image by which reports rank them."""

    def __init__(self, labels: LabelMap) -> None:
        self.classes = len(labels)
        self.semantic, self.boundary = SemanticIoU(self.classes, labels.names), BoundaryF()
        self.matting: MattingErrors | None = None
        self.rows: list[dict[str, Any]] = []

    def add(self, model: SegmentationModel, sample: Sample, truth: Segments, side: int | None) -> None:
        """Predict one image and score it."""
        tasks: list[tuple[str, dict[str, Any]]] = [("semantic", {})]
        tasks += [] if truth.alpha is None else [("cutout", {})]
        found, *matte = answers(model, sample.image, tasks, side=side)
        row: dict[str, Any] = {"name": sample.name}
        row |= self.semantic.update(found.class_map(self.classes), truth.class_map(self.classes))
        row |= self.boundary.update(found.foreground, truth.foreground, ~truth.void)
        if matte and truth.alpha is not None:
            self.matting = self.matting or MattingErrors()
            row |= self.matting.update(matte[0].alpha, truth.alpha)
        self.rows.append(row)

    def merge(self, other: SemanticScores) -> None:
        """Add all that `other` has seen."""
        self.semantic.merge(other.semantic)
        self.boundary.merge(other.boundary)
        if other.matting:
            self.matting = self.matting or MattingErrors()
            self.matting.merge(other.matting)
        self.rows += other.rows

    def compute(self) -> dict[str, Any]:
        """Scores of all images so far."""
        scores = self.semantic.compute() | self.boundary.compute()
        return scores | (self.matting.compute() if self.matting else {})


class PanopticScores:
    """Panoptic quality of things and stuff."""

    leading = "pq"

    def __init__(self, labels: LabelMap) -> None:
        self.quality = PanopticQuality(len(labels), [label.is_thing for label in labels], labels.names)
        self.rows: list[dict[str, Any]] = []

    def add(self, model: SegmentationModel, sample: Sample, truth: Segments, side: int | None) -> None:
        """Predict one image and score it."""
        (found,) = answers(model, sample.image, [("panoptic", {})], side=side)
        self.rows.append({"name": sample.name} | update_quality(self.quality, found, truth))

    def merge(self, other: PanopticScores) -> None:
        """Add all that `other` has seen."""
        self.quality.merge(other.quality)
        self.rows += other.rows

    def compute(self) -> dict[str, Any]:
        """Scores of all images so far."""
        return self.quality.compute()


class InstanceScores:
    """Average precision of masks over all confidences, and panoptic quality at the task's own threshold. Things alone.

    AP needs candidates of low confidence as well, PQ a decision: both come from one forward pass.
    """

    leading = "pq"

    def __init__(self, labels: LabelMap) -> None:
        self.precision = MaskAP(len(labels), labels.names)
        self.quality = PanopticQuality(len(labels), [label.is_thing for label in labels], labels.names)
        self.rows: list[dict[str, Any]] = []

    def add(self, model: SegmentationModel, sample: Sample, truth: Segments, side: int | None) -> None:
        """Predict one image and score it."""
        truth = things_of(truth)
        tasks: list[tuple[str, dict[str, Any]]] = [("instance", {}), ("instance", {"threshold": CANDIDATE})]
        found, candidates = answers(model, sample.image, tasks, side=side)
        self.rows.append({"name": sample.name} | update_quality(self.quality, found, truth))
        update_precision(self.precision, candidates, truth)

    def merge(self, other: InstanceScores) -> None:
        """Add all that `other` has seen."""
        self.precision.merge(other.precision)
        self.quality.merge(other.quality)
        self.rows += other.rows

    def compute(self) -> dict[str, Any]:
        """Scores of all images so far."""
        precision, quality = self.precision.compute(), self.quality.compute()
        per_class = {k: precision["per_class"][k] | quality["per_class"][k] for k in precision["per_class"]}
        return precision | quality | {"per_class": per_class}


Scores = SemanticScores | InstanceScores | PanopticScores | PromptScores
SCORES: dict[str, type[Scores]] = {
    "semantic": SemanticScores,
    "instance": InstanceScores,
    "panoptic": PanopticScores,
    "prompted": PromptScores,
}


def scores_of(task: str, labels: LabelMap) -> Scores:
    """Fresh scores of a task.

    Raises:
        UsageError: there are no scores for it.
    """
    if task not in SCORES:
        raise UsageError("no scores for this task", where=task, why=f"there are: {', '.join(SCORES)}")
    return SCORES[task](labels)


def segments_for(
    model: SegmentationModel, sample: Sample, truth: Segments, task: str, side: int | None = None
) -> Segments:
    """Predicted segments of a task, to look at beside the truth."""
    if task == "prompted":
        return prompted_segments(model, sample, truth, side)
    return predict(model, sample.image, task=task, side=side).segments


def update_quality(quality: PanopticQuality, found: Segments, truth: Segments) -> dict[str, Any]:
    """Add one image; where instances overlap, the first layer wins."""
    maps = [s.id_map if s.id_map.ndim == 2 else Segments.flatten_layers(s.id_map) for s in (found, truth)]
    return quality.update(maps[0], found.classes, maps[1], truth.classes, truth.is_crowd)


def update_precision(precision: MaskAP, found: Segments, truth: Segments) -> None:
    """Add one image. Void is a crowd of every class that was found: nothing found there is wrong."""
    void = truth.id_map.reshape(-1, *truth.size).eq(-1).any(0)
    excused = torch.unique(found.classes) if bool(void.any()) else found.classes[:0]
    true = torch.cat([stacked(truth), void.expand(len(excused), -1, -1)])
    crowd = torch.cat([truth.is_crowd, torch.ones(len(excused), dtype=torch.bool)])
    scores = torch.ones(len(found)) if found.scores is None else found.scores
    precision.update(stacked(found), scores, found.classes, true, torch.cat([truth.classes, excused]), crowd)


def stacked(segments: Segments) -> torch.Tensor:
    """bool [N, H, W]: one mask a segment, as the COCO metrics take them."""
    masks = [segment.mask for segment in segments]
    return torch.stack(masks) if masks else torch.zeros((0, *segments.size), dtype=torch.bool)


def things_of(segments: Segments) -> Segments:
    """Without stuff, whose pixels become background: known to belong to no thing."""
    kept = torch.nonzero(segments.is_thing).flatten()
    numbers = torch.zeros(len(segments) + 2, dtype=torch.int32)
    numbers[kept] = torch.arange(1, len(kept) + 1, dtype=torch.int32)
    numbers[-2] = -1  # Ids are shifted by one below: void is the row before the last, background the last.
    crowd = segments.is_crowd[kept]
    ids = numbers[segments.id_map.long() - 1]
    return Segments.build(ids, segments.classes[kept], labels=segments.labels, crowd=crowd)
