"""The training criteria of set prediction: match at every layer, then class, mask and, for detectors, box losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from . import losses, matcher
from .boxes import segment_boxes
from .types import Batch, Letterbox, MaskDecoder, Prediction, Segments

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
        points = self._points(batch)  # One object for all layers: what is sampled there, is sampled once.
        targets = [losses.point_targets(s, p) for s, p in zip(batch.truth(), points, strict=True)]
        targets = [(t[~s.is_crowd], known) for (t, known), s in zip(targets, batch.truth(), strict=True)]
        layers = [
            self._layer(layer, self._mask_logits(layer, points, batch), truth, targets)
            for layer in (*prediction.aux, prediction)
        ]
        return {name: torch.stack([terms[name] for terms in layers]).sum() for name in layers[0]}

    def _points(self, batch: Batch) -> Tensor | list[Tensor]:
        """[P, 2] of each image: candidates in random order, stacked, or every pixel."""
        if self.points:
            return losses.random_points(batch, self.points * self.oversample)
        return [losses.every_point(box, batch.images.device) for box in batch.letterboxes]

    def _mask_logits(self, prediction: Prediction, points: Tensor | list[Tensor], batch: Batch) -> Sequence[Tensor]:
        """[Q, P] of each image."""
        if isinstance(points, Tensor):
            # Unbound once: indexing each image would make its gradient as large as the whole batch's.
            return prediction.masks.sample(points).unbind()
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
        count = mean_over_processes(sum(len(queries) for queries, _ in pairs), prediction.class_logits.device)
        target_classes = assigned_classes(prediction.class_logits, pairs, classes)
        return {
            "class": self.class_weight * class_loss(prediction.class_logits, target_classes, self.no_object_weight),
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
        return mask_and_dice(mask_logits[queries], targets[rows], known, self.points, self.focal)


@dataclass(frozen=True)
class BoxCriterion:
    """Set prediction loss of a detector, with or without masks (DETR, Carion et al. 2020, sections 3.1, 5 and A.2).

    Queries are matched by class and box. Only those matched at the last layer have mask terms, so only their masks are
    decoded.

    Attributes:
        class_weight, box_weight, giou_weight: of class, L1 and generalised IoU, in matching and loss alike.
        mask_weight, dice_weight: of the two mask terms.
        no_object_weight: of the class "no object" in the class loss.
        masks: whether there are mask terms.
        points, oversample: as for `MaskCriterion`.
    """

    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1
    masks: bool = True
    points: int = 12544
    oversample: int = 2

    def __call__(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms `class`, `box`, `giou`, summed over the decoder's layers, and `mask`, `dice`."""
        truth = [BoxTruth.of(s, box) for s, box in zip(batch.truth(), batch.letterboxes, strict=True)]
        count = mean_over_processes(sum(len(own.classes) for own in truth), prediction.class_logits.device)
        layers = (*prediction.aux, prediction)
        pairs = [self.match_layer(layer, truth) for layer in layers]
        terms = [self._layer(layer, own, truth, count) for layer, own in zip(layers, pairs, strict=True)]
        total = {name: torch.stack([layer[name] for layer in terms]).sum() for name in terms[0]}
        return total | (self._mask_terms(prediction, pairs[-1], truth, batch, count) if self.masks else {})

    def match_layer(self, prediction: Prediction, truth: Sequence[BoxTruth]) -> list[matcher.Assignment]:
        """Hungarian assignment of each image: queries to rows of its `BoxTruth`."""
        logits, boxes = prediction.class_logits.float(), _boxes(prediction)
        return [self.match(logits[b], boxes[b], own) for b, own in enumerate(truth)]

    @torch.no_grad()
    def match(self, class_logits: Tensor, boxes: Tensor, truth: BoxTruth) -> matcher.Assignment:
        """Hungarian assignment of one image: [Q, K+1], [Q, 4]."""
        cost = self.class_weight * matcher.class_cost(class_logits, truth.classes)
        cost = cost + self.box_weight * matcher.box_cost(boxes, truth.boxes)
        return matcher.hungarian(cost + self.giou_weight * matcher.giou_cost(boxes, truth.boxes))

    def _layer(
        self, prediction: Prediction, pairs: list[matcher.Assignment], truth: Sequence[BoxTruth], count: float
    ) -> dict[str, Tensor]:
        target_classes = assigned_classes(prediction.class_logits, pairs, [own.classes for own in truth])
        boxes = torch.cat([own[queries] for own, (queries, _) in zip(_boxes(prediction), pairs, strict=True)])
        targets = torch.cat([own.boxes[rows] for own, (_, rows) in zip(truth, pairs, strict=True)])
        return {
            "class": self.class_weight * class_loss(prediction.class_logits, target_classes, self.no_object_weight),
            "box": self.box_weight * losses.box_l1(boxes, targets).sum() / count,
            "giou": self.giou_weight * losses.box_giou(boxes, targets).sum() / count,
        }

    def _mask_terms(
        self,
        prediction: Prediction,
        pairs: list[matcher.Assignment],
        truth: Sequence[BoxTruth],
        batch: Batch,
        count: float,
    ) -> dict[str, Tensor]:
        """Of all images. Where none has a segment, zero through one mask: gradients still reach all parameters."""
        points = losses.random_points(batch, self.points * self.oversample)
        found = [
            self._image_masks(prediction.masks, b, queries, own.rows[rows], batch, points[b])
            for b, ((queries, rows), own) in enumerate(zip(pairs, truth, strict=True))
            if len(queries)
        ]
        if not found:
            nothing = 0 * prediction.masks.decode(0, torch.zeros(1, dtype=torch.int64)).sum()
            found = [(nothing, nothing)]
        mask, dice = (torch.stack(terms).sum() / count for terms in zip(*found, strict=True))
        return {"mask": self.mask_weight * mask, "dice": self.dice_weight * dice}

    def _image_masks(
        self, masks: MaskDecoder, b: int, queries: Tensor, rows: Tensor, batch: Batch, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        box, segments = batch.letterboxes[b], batch.truth()[b]
        if self.points:
            logits = logits_at(masks, b, queries, points, box)
        else:
            points = losses.every_point(box, batch.images.device)
            logits = masks.decode(b, queries, box.content).flatten(1)
        targets, known = losses.point_targets(segments, points)
        return mask_and_dice(logits, targets[rows], known, self.points, focal=True)


@dataclass(frozen=True, eq=False)
class BoxTruth:
    """What a detector learns from one image: its segments that are no crowds and have a pixel in view.

    Attributes:
        rows: int64 [n], which of the `Segments`.
        classes: int64 [n].
        boxes: [n, 4] (cx, cy, w, h) relative to the content.
    """

    rows: Tensor
    classes: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, segments: Segments, letterbox: Letterbox) -> BoxTruth:
        """From the id map on the canvas."""
        boxes, present = segment_boxes(segments, letterbox.content)
        rows = torch.nonzero(present & ~segments.is_crowd).flatten()
        return cls(rows, segments.classes[rows], boxes[rows])


def _boxes(prediction: Prediction) -> Tensor:
    """[B, Q, 4] in full precision."""
    assert prediction.boxes is not None
    return prediction.boxes.float()


def mask_and_dice(logits: Tensor, targets: Tensor, known: Tensor, points: int, focal: bool) -> tuple[Tensor, Tensor]:
    """Mask term and dice term of matched pairs, each summed over them.

    Args:
        logits, targets: [n, P] at candidate points in random order.
        known: bool [P].
        points: of the candidates, those that count; 0 for all.
    """
    logits = logits.float()
    if points:
        chosen = losses.uncertain_points(logits, points, known=known)
        logits, targets, known = logits[:, chosen], targets[:, chosen], known[chosen]
    mask_loss = losses.mask_focal if focal else losses.mask_bce
    return mask_loss(logits, targets, known).sum(), losses.mask_dice(logits, targets, known).sum()


def logits_at(masks: MaskDecoder, b: int, queries: Tensor, points: Tensor, letterbox: Letterbox) -> Tensor:
    """Mask logits [q, P] of some queries of image `b` at pixel centres [P, 2] of its content.

    What `MaskDecoder.sample` gives, but for these queries alone.
    """
    maps = masks.decode(b, queries)
    rows, columns = masks.positions(b, letterbox.content)
    x, y = points.long().unbind(-1)
    cells = torch.stack([columns[x], rows[y]], dim=-1)
    grid = (2 * cells + 1) / cells.new_tensor([maps.shape[2], maps.shape[1]]) - 1
    grid = grid[None, None].to(maps.dtype)
    return F.grid_sample(maps[None], grid, padding_mode="border", align_corners=False)[0, :, 0]


def class_loss(class_logits: Tensor, target_classes: Tensor, no_object_weight: float) -> Tensor:
    """Weighted mean cross entropy over all queries [B, Q] of all processes."""
    total, weight = losses.class_cross_entropy(class_logits, target_classes, no_object_weight)
    return total / mean_over_processes(weight, class_logits.device, least=0.0)


def mean_over_processes(count: float, device: torch.device, least: float = 1.0) -> float:
    """What a process has on average of something, of segments for instance, but at least `least`.

    What a loss must be divided by so that gradients averaged over processes are those of one process that has all
    images (DETR, section 3.1).
    """
    if not (dist.is_available() and dist.is_initialized()):
        return max(least, count)
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return max(least, float(total) / dist.get_world_size())


def _without_crowds(segments: Segments) -> Tensor:
    return segments.classes[~segments.is_crowd]


def assigned_classes(class_logits: Tensor, pairs: list[matcher.Assignment], classes: list[Tensor]) -> Tensor:
    """int64 [B, Q]: each query's class to learn, K ("no object") for queries without a segment."""
    no_object = class_logits.shape[-1] - 1
    target = torch.full(class_logits.shape[:2], no_object, dtype=torch.int64, device=class_logits.device)
    for b, (queries, rows) in enumerate(pairs):
        target[b, queries] = classes[b][rows]
    return target
