"""Multi-head attention and the query decoder (Vaswani et al. 2017; DETR's placing of positions, Carion et al. 2020)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with separate projections for queries, keys and values.

    [B, Q, D] x [B, S, D] -> [B, Q, D].
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid`: bool [B, S], False for keys that nobody may look at."""
        q, k, v = (self._split(x) for x in (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        mask = None if valid is None else valid[:, None, None, :]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, heads, Q, S]: the share of each key in each answer. `forward` never builds it: this is to look at."""
        q, k = self._split(self.q_proj(query)), self._split(self.k_proj(key))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None, :], -math.inf)
        return scores.softmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Sequential):
    """`layers` linear layers with ReLU between them: [..., in] -> [..., out]."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int) -> None:
        dims = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
        modules: list[nn.Module] = []
        for a, b in pairwise(dims):
            modules += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        super().__init__(*modules[:-1])


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the image, feed-forward; normalised after each addition."""

    def __init__(self, dim: int, heads: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads)
        self.cross_attention = Attention(dim, heads)
        self.mlp = MLP(dim, hidden_dim, dim, layers=2)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """x, query_pos [B, Q, D]; memory, memory_pos [B, S, D]; valid bool [B, S] -> [B, Q, D]."""
        q = x + query_pos
        x = self.norm1(x + self.dropout(self.self_attention(q, q, x)))
        attended = self.cross_attention(x + query_pos, memory + memory_pos, memory, valid)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self.dropout(self.mlp(x)))


class EncoderLayer(nn.Module):
    """Self-attention among tokens, feed-forward; normalised after each addition."""

    def __init__(self, dim: int, heads: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.mlp = MLP(dim, hidden_dim, dim, layers=2)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, valid: Tensor | None = None) -> Tensor:
        """x [B, S, D], position [B or 1, S, D], valid bool [B, S] -> [B, S, D]."""
        q = x + position
        x = self.norm1(x + self.dropout(self.attention(q, q, x, valid)))
        return self.norm2(x + self.dropout(self.mlp(x)))
