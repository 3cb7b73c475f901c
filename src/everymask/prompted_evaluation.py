"""How well a promptable model does what it is told: Dice and IoU of every object, by class and kind of prompt.

Prompts are drawn from (seed, sample name, object) alone, so that two models answer the very same ones. "point" is the
pixel deepest inside an object, "box" its box, "negatives" the box and three clicks beside it. "click5" goes on from
"point": four more clicks, each where the answer before was most wrong, and gives a score after every one of them.

A score is the mean over objects, at the photo's own size; void pixels count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .charts import curves
from .clicks import correction_clicks
from .datasets import Dataset
from .errors import UsageError
from .labels import LabelMap
from .maps import segment_areas
from .model import SegmentationModel
from .models import model_name
from .predict import device_of, fit, run
from .prompt_criterion import at_pixels
from .prompted import PromptedMasks, prompted, window
from .prompts import PromptSettings, draw_prompts, objects_of
from .transforms import Geometry
from .types import Batch, Prompts, Sample, Segments

KINDS = {"point": ("center",), "box": ("box",), "negatives": ("box", "negative")}
"""What is drawn for each kind of prompt, in the words of `PromptSettings`."""

MOST_CLICKS = 8
AT_ONCE = 32
"""Objects asked for together."""

Scores = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What is asked for, and which objects.

    Attributes:
        kinds: of `KINDS`, or "click1" to "click8".
        seed: of the draws.
        by: what an object is, see `PromptSettings`.
        least_area: objects of fewer pixels are left out.
        only: names of the classes whose objects are asked for; all if empty.
        shift: pixels by which the first prompts are moved right and down, within the photo: a model that listens to its
            prompts must do worse, and one that does not has learnt to ignore them.
    """

    kinds: tuple[str, ...] = ("point", "box")
    seed: int = 0
    by: str = "segment"
    least_area: int = 1
    only: tuple[str, ...] = ()
    shift: int = 0

    def __post_init__(self) -> None:
        PromptSettings(by=self.by, least_area=self.least_area)
        if self.shift < 0:
            raise UsageError("a setting is out of range", where="shift", why=f"{self.shift} is below 0")
        for kind in self.kinds or ("",):
            if kind not in KINDS and not re.fullmatch(f"click[1-{MOST_CLICKS}]", kind):
                known = f"{', '.join(KINDS)}, click1 to click{MOST_CLICKS}"
                raise UsageError("unknown kind of prompt", where="prompts", why=kind, fix=f"There are: {known}.")

    @property
    def columns(self) -> list[str]:
        """Names of the scores: one a kind, and one a click."""
        clicks = max([int(kind[5:]) for kind in self.kinds if kind not in KINDS], default=0)
        return [kind for kind in self.kinds if kind in KINDS] + [f"click{n + 1}" for n in range(clicks)]


def evaluate_prompts(
    model: SegmentationModel,
    dataset: Dataset,
    protocol: Protocol | None = None,
    *,
    side: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Scores:
    """Scores of every kind of prompt.

    Returns:
        ``kinds``: name -> `dice`, `iou`, `objects` and `per_class`; ``images``; ``per_image``: a row each.

    Raises:
        UsageError: the system takes no prompts, or the data have nothing to ask for.
    """
    protocol = protocol or Protocol()
    score = PromptScores(dataset.labels, protocol)
    for index, sample in enumerate(dataset):
        score.add(model, sample, sample.segments, side)
        progress(index + 1)
    return score.by_kind()


class PromptScores:
    """Dice and IoU of every object that was asked for, so far."""

    leading = "dice"
    """The score of an image by which reports rank them."""

    def __init__(self, labels: LabelMap, protocol: Protocol | None = None) -> None:
        self.labels, self.protocol = labels, protocol or Protocol(("box",))
        self.found: list[tuple[str, int, float, float]] = []  # Kind, class, Dice and IoU of each object.
        self.rows: list[dict[str, Any]] = []

    def add(self, model: SegmentationModel, sample: Sample, truth: Segments, side: int | None) -> None:
        """Ask for the objects of one image and score the answers."""
        check_promptable(model)
        start = len(self.found)
        objects = objects_of(truth, self.protocol.by)
        for rows in batched(self._rows(objects), AT_ONCE):
            for name, masks in replies(model, sample, objects, rows, self.protocol, side):
                for row, (dice, iou) in zip(rows, overlaps(masks, objects, rows), strict=True):
                    self.found.append((name, int(objects.classes[row]), dice, iou))
        self.rows.append({"name": sample.name} | _means(self.found[start:], self.protocol.columns[:1]))

    def merge(self, other: PromptScores) -> None:
        """Add all that `other` has seen."""
        self.found += other.found
        self.rows += other.rows

    def _rows(self, objects: Segments) -> list[int]:
        large = torch.from_numpy(segment_areas(objects) >= self.protocol.least_area) & ~objects.is_crowd
        if self.protocol.only:
            wanted = torch.tensor([self.labels.index(name) for name in self.protocol.only])
            large &= torch.isin(objects.classes, wanted)
        chosen: list[int] = torch.nonzero(large).flatten().tolist()
        return chosen

    def compute(self) -> Scores:
        """`dice` and `iou` of the first kind, and its rows by class."""
        first = self.protocol.columns[:1]
        return _means(self.found, first) | {"per_class": self._by_class(first[0])}

    def by_kind(self) -> Scores:
        """What `evaluate_prompts` gives.

        Raises:
            UsageError: nothing was asked for.
        """
        if not self.found:
            least = self.protocol.least_area
            why = f"{len(self.rows)} images; by {self.protocol.by}, at least {least} pixels each"
            raise UsageError("there is no object to ask for", where="prompts", why=why)
        kinds = {
            name: _means(self.found, [name])
            | {"objects": sum(kind == name for kind, *_ in self.found), "per_class": self._by_class(name)}
            for name in self.protocol.columns
        }
        return {"kinds": kinds, "images": len(self.rows), "per_image": self.rows}

    def _by_class(self, name: str) -> dict[str, Scores]:
        """Means over the objects of each class that occurs."""
        own = [entry for entry in self.found if entry[0] == name]
        return {
            self.labels[k].name: _means([entry for entry in own if entry[1] == k], [name])
            for k in sorted({entry[1] for entry in own})
        }


def _means(found: Sequence[tuple[str, int, float, float]], names: Sequence[str]) -> Scores:
    """Mean Dice and IoU of the entries of these kinds; NaN where there is none."""
    own = [(dice, iou) for name, _, dice, iou in found if name in names]
    means = np.mean(own, axis=0).tolist() if own else [float("nan")] * 2
    return {"dice": means[0], "iou": means[1]}


def batched(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Rows in parts of `size` at most."""
    return (list(rows[start : start + size]) for start in range(0, len(rows), size))


def check_promptable(model: SegmentationModel) -> None:
    """Raise `UsageError` if a system takes no prompts."""
    if not model.takes_prompts:
        fix = "Take a system that is told by clicks (sam2), or another task."
        raise UsageError("this system takes no prompts", where=model_name(model), fix=fix)


# ---- asking ----------------------------------------------------------------------------------------------------------


def prompted_segments(
    model: SegmentationModel, sample: Sample, truth: Segments, side: int | None = None, kind: str = "box"
) -> Segments:
    """Prediction of one image whose objects are told by prompts from the truth, with the classes that they have."""
    check_promptable(model)
    objects = objects_of(truth)
    rows = [n for n in range(len(objects)) if not objects.is_crowd[n]]
    if not rows:
        empty = torch.zeros(truth.size, dtype=torch.int32)
        return Segments.build(empty, [], labels=model.labels, scores=torch.zeros(0))
    batch = asking(model, sample, objects, rows, KINDS[kind], side=side)
    assert batch.prompts is not None
    named = replace(batch.prompts[0], classes=objects.classes[rows].to(batch.images.device))
    batch = replace(batch, prompts=(named,))
    with torch.no_grad():
        return prompted(run(model, batch), batch.letterboxes[0], model.labels)


def asking(
    model: SegmentationModel,
    sample: Sample,
    objects: Segments,
    rows: Sequence[int],
    kinds: tuple[str, ...],
    *,
    seed: int = 0,
    shift: int = 0,
    side: int | None = None,
) -> Batch:
    """A batch of one photo with prompts for some rows, which are numbered 0, 1, ... in it."""
    drawn = draw_prompts(objects, PromptSettings(kinds), seed, sample.name, rows)
    numbers = torch.full((len(objects),), -1)
    numbers[list(rows)] = torch.arange(len(rows))
    height, width = truth_size(sample)
    points = (drawn.points + shift).minimum(torch.tensor([width - 1.0, height - 1.0])) if shift else drawn.points
    told = replace(drawn, points=points, objects=numbers[drawn.objects])
    return fit(sample.image, model.letterbox((height, width), side), told, device=device_of(model))


def truth_size(sample: Sample) -> tuple[int, int]:
    """(H, W) of the photo."""
    return sample.image.shape[0], sample.image.shape[1]


def replies(
    model: SegmentationModel,
    sample: Sample,
    objects: Segments,
    rows: Sequence[int],
    protocol: Protocol,
    side: int | None,
) -> Iterator[tuple[str, PromptedMasks]]:
    """Score name and masks for every kind of prompt and every click. The photo is encoded once."""
    ask = partial(asking, model, sample, objects, rows, seed=protocol.seed, shift=protocol.shift, side=side)
    clicks = sum(name not in KINDS for name in protocol.columns)
    for name in protocol.columns:
        if name in KINDS:
            yield name, told_masks(model, ask(KINDS[name]))
    if clicks:
        batch = ask(KINDS["point"])
        truth, known = on_canvas(objects, rows, batch)
        for n in range(clicks):
            masks = told_masks(model, batch)
            yield f"click{n + 1}", masks
            batch = corrected(batch, masks, truth, known)


def told_masks(model: SegmentationModel, batch: Batch) -> PromptedMasks:
    """The masks that the model answers with."""
    masks = run(model, batch).masks
    assert isinstance(masks, PromptedMasks)
    return masks


def on_canvas(objects: Segments, rows: Sequence[int], batch: Batch) -> tuple[Tensor, Tensor]:
    """Masks bool [O, H, W] of some rows on the canvas of a batch of one, and bool [H, W] of what is known there."""
    box, (height, width) = batch.letterboxes[0], objects.size
    ids = Geometry((0, 0, width, height), box).labels(objects.id_map, fill=-1)
    ids = (ids if ids.ndim == 3 else ids[None]).to(batch.images.device)
    wanted = torch.tensor(rows, device=ids.device) + 1
    return (ids == wanted[:, None, None, None]).any(1), ~(ids == -1).any(0)


def corrected(batch: Batch, masks: PromptedMasks, truth: Tensor, known: Tensor) -> Batch:
    """The batch with one more click an object, where the answer is most wrong, and with that answer."""
    assert batch.prompts is not None
    logits, before = masks.logits(0), batch.prompts[0]
    predicted = at_pixels(logits[:, None], truth.shape[1:])[:, 0] > 0
    points, labels = correction_clicks(predicted, truth, known, deepest=True)
    order = torch.arange(len(points), device=points.device)
    more = Prompts(
        torch.cat([before.points, points]),
        torch.cat([before.labels, labels]),
        torch.cat([before.objects, order]),
        before.classes,
        logits,
    )
    return replace(batch, prompts=(more,))


def overlaps(masks: PromptedMasks, objects: Segments, rows: Sequence[int]) -> list[tuple[float, float]]:
    """Dice and IoU of each object at the size of the truth; 0 where nothing was found."""
    ids = objects.id_map if objects.id_map.ndim == 3 else objects.id_map[None]
    known, areas = ~objects.void, segment_areas(objects)
    at_rows, at_columns = masks.positions(0, objects.size)
    content = masks.decode(0, torch.arange(len(rows), device=at_rows.device))
    found = []
    for row, logits in zip(rows, content, strict=True):
        area, mask = window(logits, at_rows, at_columns)
        inside = mask & known[area] if mask is not None else torch.zeros(0, dtype=torch.bool)
        both = int((inside & (ids[(slice(None), *area)] == row + 1).any(0)).sum()) if mask is not None else 0
        total = int(inside.sum()) + int(areas[row])
        found.append((2 * both / total, both / (total - both)))
    return found


# ---- comparing -------------------------------------------------------------------------------------------------------


def worse(before: Scores, after: Scores, margin: float = 0.001) -> list[str]:
    """A sentence for each kind of prompt, and each of its classes, whose Dice fell by more than `margin`."""
    sentences = []
    for name, own in after["kinds"].items():
        pairs = {"": (before["kinds"][name], own)}
        pairs |= {f", {k}": (before["kinds"][name]["per_class"][k], row) for k, row in own["per_class"].items()}
        for what, (old, new) in pairs.items():
            if new["dice"] < old["dice"] - margin:
                sentences.append(f"training made {name}{what} worse: Dice {old['dice']:.3f} -> {new['dice']:.3f}")
    return sentences


def score_rows(runs: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one table: for each kind of prompt all objects, then each class; Dice and IoU of each run."""
    head = ["prompt", "class", "objects", *(f"{run} {score}" for run in runs for score in ("Dice", "IoU"))]
    rows = []
    for kind, own in next(iter(runs.values()))["kinds"].items():
        lines = {"all": [run["kinds"][kind] for run in runs.values()]}
        lines |= {k: [run["kinds"][kind]["per_class"][k] for run in runs.values()] for k in own["per_class"]}
        for name, scores in lines.items():
            numbers = [f"{score[key]:.3f}" for score in scores for key in ("dice", "iou")]
            rows.append([kind, name, str(own["objects"]) if name == "all" else "", *numbers])
    return head, rows


def score_picture(runs: Mapping[str, Scores]) -> Any:
    """A PIL image: Dice by number of clicks, and level lines for all other kinds of prompts."""
    series = {}
    for run_name, scores in runs.items():
        kinds = scores["kinds"]
        clicks = [(float(name[5:]), own["dice"]) for name, own in kinds.items() if name not in KINDS]
        last = max([2.0, *(x for x, _ in clicks)])
        for name in [name for name in kinds if name in KINDS]:
            series[f"{run_name} {name}"] = [(1.0, kinds[name]["dice"]), (last, kinds[name]["dice"])]
        series |= {f"{run_name} clicks": clicks} if clicks else {}
    return curves(series, "Dice by prompt; across: clicks", y_range=(0.0, 1.0))
