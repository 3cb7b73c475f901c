"""The training criterion of models whose query t is class t: binary cross entropy of every class, without matching."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .criterion import mean_over_processes
from .types import VOID, Batch, Prediction, Segments


@dataclass(frozen=True)
class ClassCriterion:
    """Each point is of one class or of none (CAT-Seg, Cho et al. 2024, section 3.5).

    Attributes:
        points: random points an image; 0 takes every pixel of the content.
        void: "ignored", or "negative" as in the published code, where points of unknown truth are trained to be none of
            the classes.
        classes: classes that a step learns at the most, see `chosen`; 0 for all.
    """

    points: int
    void: str = "ignored"
    classes: int = 0

    def chosen(self, batch: Batch, count: int) -> Tensor:
        """Which of `count` classes a step learns: those in the batch first, others by chance; in ascending order."""
        most = self.classes or count
        if most >= count:
            return torch.arange(count)
        order = torch.rand(count)
        order[torch.cat([segments.classes.cpu() for segments in batch.truth()])] += 1
        return order.topk(most).indices.sort().values

    def __call__(self, prediction: Prediction, batch: Batch, chosen: Tensor) -> dict[str, Tensor]:
        """`mask`: the mean over classes and points of all processes.

        Args:
            chosen: int64 [T], the class of each query; points of other classes are of none of these.
        """
        total, counted = prediction.class_logits.new_zeros(()), 0
        for b, (points, logits) in enumerate(self._sampled(prediction, batch)):
            x, y = points.long().unbind(-1)
            classes = _among(chosen.to(y.device), batch.truth()[b], y, x)
            known = (classes != VOID) | (self.void == "negative")
            total = total + (class_bce(logits.float(), classes) * known).sum()
            counted += int(known.sum()) * len(logits)
        return {"mask": total / mean_over_processes(counted, total.device)}

    def _sampled(self, prediction: Prediction, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Points [P, 2] of each image and the logits [T, P] there."""
        device = batch.images.device
        if self.points:
            drawn = losses.random_points(batch, self.points)
            yield from zip(drawn, prediction.masks.sample(drawn), strict=True)
            return
        every = torch.arange(prediction.class_logits.shape[1], device=device)
        for b, box in enumerate(batch.letterboxes):
            yield losses.every_point(box, device), prediction.masks.decode(b, every, box.content).flatten(1)


def _among(chosen: Tensor, truth: Segments, y: Tensor, x: Tensor) -> Tensor:
    """int64 [P]: position of each pixel's class among `chosen` [T], T for all others and none, void as it is."""
    count = 1 + max([int(chosen.max()), *truth.classes.tolist()])
    position = torch.full((count + 2,), len(chosen), device=chosen.device)
    position[chosen] = torch.arange(len(chosen), device=chosen.device)
    position[VOID] = VOID  # The last entry, which void reads.
    return position[truth.class_map(count)[y, x]]


def class_bce(logits: Tensor, classes: Tensor) -> Tensor:
    """Binary cross entropy [P] summed over classes, from one target a point.

    ``softplus(x) - x * target``: only the logit of a point's own class is taken off, so no [T, P] of targets is made.

    Args:
        logits: [T, P].
        classes: int64 [P]; T, or void, is none of the classes.
    """
    own = F.pad(logits, (0, 0, 0, 1)).gather(0, classes.where(classes != VOID, len(logits))[None])[0]
    return F.softplus(logits).sum(0) - own
