"""Image normalisation that travels with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(image - mean) / std per channel, from buffers that are saved with the model.

    Args:
        mean, std: RGB on the 0..255 scale; the defaults are ImageNet's.
    """

    def __init__(
        self, mean: Sequence[float] = (123.675, 116.28, 103.53), std: Sequence[float] = (58.395, 57.12, 57.375)
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 or float 0..255 -> float in the model's own type."""
        return (images.to(self.mean.dtype) - self.mean) / self.std
