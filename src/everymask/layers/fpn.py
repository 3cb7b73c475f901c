"""Feature pyramid by upsampling and concatenation (the YOLOv3 neck), any number of levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .conv import ConvBlock, keep_valid, upsample_to


class ConcatFPN(nn.Module):
    """Top-down pyramid: each level is fused with the coarser one above it.

    Args:
        in_channels: of the encoder's features, fine to coarse.
        out_channels: of each level of the pyramid, fine to coarse.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int]) -> None:
        super().__init__()
        above = [*out_channels[1:], 0]
        self.reduce = nn.ModuleList(
            ConvBlock(own + up, out, kernel=1) for own, up, out in zip(in_channels, above, out_channels, strict=True)
        )
        self.smooth = nn.ModuleList(ConvBlock(out, out) for out in out_channels)

    def forward(self, features: Sequence[Tensor], valid: Tensor | None = None) -> list[Tensor]:
        """[B, C_i, h_i, w_i] fine to coarse -> the same strides with `out_channels`."""
        pyramid: list[Tensor] = []
        for level in reversed(range(len(features))):
            x = features[level]
            if pyramid:
                x = torch.cat([x, upsample_to(pyramid[0], x)], dim=1)
            x = keep_valid(self.reduce[level](x), valid)
            pyramid.insert(0, keep_valid(self.smooth[level](x), valid))
        return pyramid
