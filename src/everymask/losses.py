"""Losses on sampled points, all blind to void. Truth is read from id maps by one integer gather.

Shapes follow the legend of `everymask.types`; masks are logits, targets are 0 or 1, `known` is False on void points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import generalized_iou, to_corners
from .chance import POINTS, generators
from .types import VOID, Batch, Letterbox, Segments


def random_points(batch: Batch, count: int) -> Tensor:
    """[B, P, 2] pixel centres (x, y), uniform over each image's content (never in padding), by its own seed."""
    sizes = torch.tensor([[box.content[1], box.content[0]] for box in batch.letterboxes])
    drawn = [torch.rand(count, 2, generator=own) for own in generators(batch.seeds, len(batch), POINTS)]
    return (torch.stack(drawn) * sizes[:, None]).floor().to(batch.images.device)


def every_point(letterbox: Letterbox, device: torch.device | str = "cpu") -> Tensor:
    """[h * w, 2] all pixel centres (x, y) of an image's content, row by row."""
    height, width = letterbox.content
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1).float().to(device)


def point_targets(segments: Segments, points: Tensor) -> tuple[Tensor, Tensor]:
    """Truth of all segments at once.

    Args:
        points: [P, 2] pixel centres on the id map.

    Returns:
        targets: float [N, P], 1 where the point lies on the segment.
        known: bool [P], False where the point is void or in a crowd region.
    """
    x, y = points.long().unbind(-1)
    ids = segments.id_map[..., y, x].reshape(-1, len(points))
    rows = torch.arange(1, len(segments) + 1, device=ids.device, dtype=ids.dtype)
    targets = (ids[:, None] == rows[:, None]).any(0)
    unknown = (ids == VOID).any(0) | targets[segments.is_crowd].any(0)
    return targets.float(), ~unknown


def uncertain_points(mask_logits: Tensor, count: int, important: float = 0.75, known: Tensor | None = None) -> Tensor:
    """Indices [count] of the points to train on: most where the masks are undecided, the rest uniform.

    Importance sampling of PointRend (Kirillov et al. 2020, section 4.1), shared by all masks of one image so that the
    features are sampled once.

    Args:
        mask_logits: [n, P] at candidate points in random order.
        known: bool [P]; void points are never among the important ones, whatever is predicted there.
    """
    by_chance = count - round(count * important)
    if mask_logits.shape[0] == 0:
        return torch.arange(count, device=mask_logits.device)
    certainty = mask_logits.detach()[:, by_chance:].abs().amin(0)
    if known is not None:
        certainty = certainty.masked_fill(~known[by_chance:], torch.inf)
    chosen = certainty.topk(count - by_chance, largest=False, sorted=False).indices + by_chance
    return torch.cat([torch.arange(by_chance, device=chosen.device), chosen])


def mask_bce(mask_logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy [n], mean over known points. All [n, P]; `known` [P]."""
    loss = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none")
    return (loss * known).sum(-1) / known.sum().clamp(min=1)


def mask_focal(mask_logits: Tensor, targets: Tensor, known: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss [n], mean over known points (Lin et al. 2017, equation 5)."""
    p = mask_logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none")
    p_true = p * targets + (1 - p) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return (balance * (1 - p_true) ** gamma * bce * known).sum(-1) / known.sum().clamp(min=1)


def mask_dice(mask_logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Dice loss [n] with +1 smoothing (V-Net, Milletari et al. 2016, as DETR and MaskFormer use it)."""
    p = mask_logits.sigmoid() * known
    targets = targets * known
    return 1 - (2 * (p * targets).sum(-1) + 1) / (p.sum(-1) + targets.sum(-1) + 1)


def box_l1(boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum of the absolute differences [n] of boxes (cx, cy, w, h) [n, 4] (DETR, section 3.1)."""
    return (boxes - targets).abs().sum(-1)


def box_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalised IoU [n] of boxes (cx, cy, w, h) [n, 4] (DETR, section 3.1)."""
    return 1 - generalized_iou(to_corners(boxes), to_corners(targets))


def class_cross_entropy(class_logits: Tensor, target_classes: Tensor, no_object_weight: float) -> tuple[Tensor, float]:
    """Cross entropy over [B, Q, K+1] with the last class, "no object", weighted down (DETR, section 3.1).

    Args:
        target_classes: int64 [B, Q].

    Returns:
        the weighted sum, and the sum of the weights that it is to be divided by.
    """
    weight = class_logits.new_ones(class_logits.shape[-1])
    weight[-1] = no_object_weight
    total = F.cross_entropy(class_logits.flatten(0, 1), target_classes.flatten(), weight, reduction="sum")
    return total, float(weight[target_classes].sum())
