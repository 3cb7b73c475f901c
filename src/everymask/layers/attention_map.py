"""Where a query looks, as maps of their own: attention without values (DETR, Carion et al. 2020, section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AttentionMap(nn.Module):
    """Multi-head attention of queries over an image, of which only the weights are of interest.

    The softmax runs over heads and places together, unlike that of `Attention`: all maps of a query sum to 1.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries [q, D] of one image and its encoded map [D, h, w], without padding -> [q, heads, h, w]."""
        q = self.q_proj(queries).unflatten(-1, (self.heads, -1))
        k = self.k_proj(memory.flatten(1).T).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("qmd,nmd->qmn", q / math.sqrt(q.shape[-1]), k)
        return scores.flatten(1).softmax(-1).unflatten(-1, (self.heads, *memory.shape[-2:]))
