"""Optimizer groups that cover each trained parameter exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, rates: Mapping[str, float] = {}
) -> list[dict[str, Any]]:
    """Groups by rate and by decay. Norms, biases and embeddings (at most one axis, or `Embedding`) do not decay.

    Args:
        rates: factor on `lr` for parameters whose name starts with the key; the longest key wins.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = lr * max(((len(k), r) for k, r in rates.items() if name.startswith(k)), default=(0, 1.0))[1]
            decay = 0.0 if parameter.ndim <= 1 or id(parameter) in embeddings else weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
