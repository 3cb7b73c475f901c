"""Low-rank adaptation (Hu et al. 2021): a frozen linear layer and a trained detour of small rank."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Linear):
    """A linear layer plus ``up @ down``. `up` begins at zero, so that nothing changes before the first step.

    Weight and bias keep their names: weights of a plain layer load into it.

    Args:
        rank: of the detour.
        alpha: the detour's output is scaled by alpha / rank; None takes the rank itself.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float | None = None) -> None:
        super().__init__(in_dim, out_dim)
        self.scale = 1.0 if alpha is None else alpha / rank
        self.lora_down = nn.Parameter(torch.empty(rank, in_dim))
        self.lora_up = nn.Parameter(torch.zeros(out_dim, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)


def add_lora(module: nn.Module, names: tuple[str, ...], rank: int) -> None:
    """Exchange every linear layer inside `module` that has one of these names for a `LoRALinear` of equal weights."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if name in names and isinstance(child, nn.Linear):
                adapted = LoRALinear(child.in_features, child.out_features, rank)
                adapted.load_state_dict(child.state_dict(), strict=False)
                setattr(parent, name, adapted)
