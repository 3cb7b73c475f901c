"""Who learns what: pairwise costs between queries and segments, and the ways to assign them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import generalized_iou, to_corners
from .errors import TrainingError

Assignment = tuple[Tensor, Tensor]
"""(queries [n], segments [n]), int64: query `queries[i]` is responsible for segment `segments[i]`."""


def class_cost(class_logits: Tensor, classes: Tensor) -> Tensor:
    """[Q, N]: minus the probability of each segment's class (DETR, equation 1). class_logits [Q, K+1]."""
    return -class_logits.softmax(-1)[:, classes]


def bce_cost(mask_logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """[Q, N]: binary cross entropy of every pair, by two matrix products. [Q, P] x [N, P]; `known` [P]."""
    positive = F.softplus(-mask_logits) * known
    negative = F.softplus(mask_logits) * known
    # positive @ t + negative @ (1 - t), without building 1 - t.
    cost = (positive - negative) @ targets.T + negative.sum(-1, keepdim=True)
    return cost / known.sum().clamp(min=1)


def focal_cost(mask_logits: Tensor, targets: Tensor, known: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """[Q, N]: sigmoid focal loss of every pair (MaskFormer's matcher). [Q, P] x [N, P]; `known` [P]."""
    p = mask_logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * F.softplus(-mask_logits) * known
    negative = (1 - alpha) * p**gamma * F.softplus(mask_logits) * known
    cost = (positive - negative) @ targets.T + negative.sum(-1, keepdim=True)
    return cost / known.sum().clamp(min=1)


def dice_cost(mask_logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """[Q, N]: dice loss of every pair. [Q, P] x [N, P]; `known` [P]."""
    p, targets = mask_logits.sigmoid() * known, targets * known
    overlap = p @ targets.T
    return 1 - (2 * overlap + 1) / (p.sum(-1)[:, None] + targets.sum(-1)[None] + 1)


def box_cost(boxes: Tensor, targets: Tensor) -> Tensor:
    """[Q, N]: L1 distance of boxes (cx, cy, w, h) [Q, 4] x [N, 4]."""
    return torch.cdist(boxes, targets.to(boxes.dtype), p=1)


def giou_cost(boxes: Tensor, targets: Tensor) -> Tensor:
    """[Q, N]: minus the generalised IoU of boxes (cx, cy, w, h) [Q, 4] x [N, 4]."""
    return -generalized_iou(to_corners(boxes)[:, None], to_corners(targets))


def hungarian(cost: Tensor) -> Assignment:
    """The assignment of least total cost [Q, N]; with more segments than queries the dearest stay unassigned.

    Raises:
        TrainingError: a cost is not finite. SciPy would accept +inf and assign at random.
    """
    if not bool(torch.isfinite(cost).all()):
        bad = int((~torch.isfinite(cost)).any(1).sum())
        why = f"{bad} of {len(cost)} queries have NaN or infinite costs"
        raise TrainingError("matching needs finite costs", where="matcher.hungarian", why=why, fix="Lower the rate.")
    rows, columns = linear_sum_assignment(cost.detach().float().cpu().numpy())
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)


def by_class(classes: Tensor) -> Assignment:
    """Query k is class k: for models whose classes are given (text, per-class heads). classes [N]."""
    return classes, torch.arange(len(classes), device=classes.device)


def by_prompt(count: int, device: torch.device | str = "cpu") -> Assignment:
    """Query n is segment n: for prompts, whose object is known, and for the original hybrid's query 0."""
    order = torch.arange(count, device=device)
    return order, order
