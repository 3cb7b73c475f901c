"""The training criterion of mask classification: match at every layer, then class, mask and dice losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import losses, matcher
from .types import Batch, Prediction, Segments

PairCost = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MaskCriterion:
    """Set prediction loss over sampled points (MaskFormer, Cheng et al. 2021, equation 2; Mask2Former, section 3.3).

    Attributes:
        class_weight, mask_weight, dice_weight: of the three terms, in matching and loss alike.
        no_object_weight: of the class "no object" in the class loss.
        focal: mask term is sigmoid focal instead of binary cross entropy.
        points: points an image that the mask losses see; 0 takes every pixel of the content, as the paper does, which
            costs masks at full size.
        oversample: candidates per such point, drawn uniformly; the first `points` of them serve the matching.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    focal: bool = False
    points: int = 4096
    oversample: int = 2

    def __call__(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms `class`, `mask`, `dice`, each summed over the decoder's layers."""
        truth = [_without_crowds(segments) for segments in batch.truth()]
        points = self._points(batch)
        targets = [losses.point_targets(s, p) for s, p in zip(batch.truth(), points, strict=True)]
        targets = [(t[~s.is_crowd], known) for (t, known), s in zip(targets, batch.truth(), strict=True)]
        layers = [
            self._layer(layer, self._mask_logits(layer, points, batch), truth, targets)
            for layer in (*prediction.aux, prediction)
        ]
        return {name: torch.stack([terms[name] for terms in layers]).sum() for name in layers[0]}

    def _points(self, batch: Batch) -> Sequence[Tensor]:
        """[P, 2] of each image: candidates in random order, or every pixel."""
        if self.points:
            return losses.random_points(batch.letterboxes, self.points * self.oversample, batch.images.device).unbind()
        return [losses.every_point(box, batch.images.device) for box in batch.letterboxes]

    def _mask_logits(self, prediction: Prediction, points: Sequence[Tensor], batch: Batch) -> Sequence[Tensor]:
        """[Q, P] of each image."""
        if self.points:
            # Unbound once: indexing each image would make its gradient as large as the whole batch's.
            return prediction.masks.sample(torch.stack(list(points))).unbind()
        queries = torch.arange(prediction.class_logits.shape[1], device=batch.images.device)
        decode = prediction.masks.decode
        return [decode(b, queries, box.content).flatten(1) for b, box in enumerate(batch.letterboxes)]

    def _layer(
        self,
        prediction: Prediction,
        mask_logits: Sequence[Tensor],
        classes: list[Tensor],
        targets: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        pairs, mask_terms, dice_terms = [], [], []
        for b, (logits, (masks, known)) in enumerate(zip(mask_logits, targets, strict=True)):
            # Candidates are in random order: the first `points` of them are a fair sample, and enough to match on.
            seen = slice(self.points or None)
            pair = self.match(prediction.class_logits[b], logits[:, seen], classes[b], masks[:, seen], known[seen])
            pairs.append(pair)
            mask, dice = self._mask_terms(logits, pairs[-1], masks, known)
            mask_terms.append(mask)
            dice_terms.append(dice)
        count = max(1, sum(len(queries) for queries, _ in pairs))
        target_classes = assigned_classes(prediction.class_logits, pairs, classes)
        class_loss = losses.class_cross_entropy(prediction.class_logits, target_classes, self.no_object_weight)
        return {
            "class": self.class_weight * class_loss,
            "mask": self.mask_weight * torch.stack(mask_terms).sum() / count,
            "dice": self.dice_weight * torch.stack(dice_terms).sum() / count,
        }

    def match(
        self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, targets: Tensor, known: Tensor
    ) -> matcher.Assignment:
        """Hungarian assignment of one image: [Q, K+1], [Q, P], [N], [N, P], [P]."""
        with torch.no_grad():
            pair_cost = matcher.focal_cost if self.focal else matcher.bce_cost
            logits = mask_logits.float()
            cost = self.class_weight * matcher.class_cost(class_logits.float(), classes)
            cost = cost + self.mask_weight * pair_cost(logits, targets, known)
            cost = cost + self.dice_weight * matcher.dice_cost(logits, targets, known)
        return matcher.hungarian(cost)

    def _mask_terms(
        self, mask_logits: Tensor, pair: matcher.Assignment, targets: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        queries, rows = pair
        if len(queries) == 0:
            # Zero, but through the logits: gradients reach all parameters even where no image has a segment.
            return 0 * mask_logits.sum(), 0 * mask_logits.sum()
        logits, targets = mask_logits[queries].float(), targets[rows]
        if self.points:
            chosen = losses.uncertain_points(logits, self.points, known=known)
            logits, targets, known = logits[:, chosen], targets[:, chosen], known[chosen]
        mask_loss = losses.mask_focal if self.focal else losses.mask_bce
        return mask_loss(logits, targets, known).sum(), losses.mask_dice(logits, targets, known).sum()


def _without_crowds(segments: Segments) -> Tensor:
    return segments.classes[~segments.is_crowd]


def assigned_classes(class_logits: Tensor, pairs: list[matcher.Assignment], classes: list[Tensor]) -> Tensor:
    """int64 [B, Q]: each query's class to learn, K ("no object") for queries without a segment."""
    no_object = class_logits.shape[-1] - 1
    target = torch.full(class_logits.shape[:2], no_object, dtype=torch.int64, device=class_logits.device)
    for b, (queries, rows) in enumerate(pairs):
        target[b, queries] = classes[b][rows]
    return target
