"""What a prompted mask is trained on: focal, dice, predicted IoU and presence, of the best candidate (SAM 2, app. D.2).

The terms are sums over objects, so that rounds, images and frames add up; whoever calls divides by the objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses

Terms = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Lesson:
    """The objects of one image that are learnt together, on the part of the canvas that shows the photo.

    Attributes:
        truth: bool [O, H, W].
        known: bool [H, W], False at void.
        points: float32 [O, K, 2], the first prompts.
        labels: int32 [O, K], -1 padding.
        counts: float32 [O], 0 for objects that count for nothing: they only keep the shapes.
    """

    truth: Tensor
    known: Tensor
    points: Tensor
    labels: Tensor
    counts: Tensor


@dataclass(frozen=True)
class PromptCriterion:
    """Weighted terms of one answer to one set of prompts.

    Attributes:
        mask_weight, dice_weight, iou_weight, presence_weight: of the terms.
        cells: masks are compared at the decoder's own cells, a sixteenth of the pixels, instead of at every pixel.
    """

    mask_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    presence_weight: float = 1.0
    cells: bool = False

    def __call__(self, logits: Tensor, ious: Tensor, presence: Tensor, lesson: Lesson, rows: Tensor) -> Terms:
        """Terms `mask`, `dice`, `iou`, `presence` of some objects, summed.

        Mask and dice are those of the candidate that has the least of both together; the predicted IoUs of all
        candidates are compared with what they are. Objects that are not there only count for their presence.

        Args:
            logits: [o, M, h, w] candidates at the decoder's cells.
            ious: [o, M] predicted.
            presence: [o] logits.
            rows: int64 [o], which objects of the lesson these are.
        """
        truth, known = lesson.truth[rows], lesson.known
        present = truth.flatten(1).any(1)
        if self.cells:
            truth, known = at_cells(truth, logits), at_cells(known[None], logits)[0]
            logits = logits[..., : truth.shape[1], : truth.shape[2]]
        else:
            logits = at_pixels(logits, known.shape)
        masks = mask_terms(logits, truth, known)
        chosen = (self.mask_weight * masks["mask"] + self.dice_weight * masks["dice"]).argmin(1)
        wrong = (ious.float() - true_ious(logits, truth, known)).abs().mean(1)
        there = F.binary_cross_entropy_with_logits(presence.float(), present.float(), reduction="none")
        counts = lesson.counts[rows]
        return {
            "mask": self.mask_weight * _chosen(masks["mask"], chosen, counts * present),
            "dice": self.dice_weight * _chosen(masks["dice"], chosen, counts * present),
            "iou": self.iou_weight * (wrong * counts * present).sum(),
            "presence": self.presence_weight * (there * counts).sum(),
        }


def _chosen(values: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
    return (values.gather(1, chosen[:, None])[:, 0] * counts).sum()


def mask_terms(logits: Tensor, truth: Tensor, known: Tensor) -> Terms:
    """Focal and dice loss [o, M] of candidates [o, M, H, W], unweighted; void counts for nothing."""
    flat, targets = logits.float().flatten(2), truth.float().flatten(1)[:, None]
    targets, seen = targets.expand_as(flat), known.flatten()
    return {"mask": losses.mask_focal(flat, targets, seen), "dice": losses.mask_dice(flat, targets, seen)}


@torch.no_grad()
def true_ious(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """[o, M]: the IoU that each candidate has, over the known pixels."""
    predicted, wanted = (logits > 0) & known, (truth & known)[:, None]
    both, either = ((predicted & wanted).flatten(2).sum(2), (predicted | wanted).flatten(2).sum(2))
    return both / either.clamp(min=1)


def at_pixels(logits: Tensor, size: tuple[int, ...], stride: int = 4) -> Tensor:
    """Candidates [o, M, h, w] at the canvas's pixels, as far as the photo of `size` (H, W) reaches."""
    height, width = logits.shape[-2] * stride, logits.shape[-1] * stride
    full = F.interpolate(logits.float(), (height, width), mode="bilinear", align_corners=False)
    return full[..., : size[0], : size[1]]


def at_cells(maps: Tensor, logits: Tensor, stride: int = 4) -> Tensor:
    """Maps [o, H, W] at the pixel under the middle of each cell of the logits, as far as they reach."""
    return maps[..., stride // 2 :: stride, stride // 2 :: stride][..., : logits.shape[-2], : logits.shape[-1]]
