"""From the encoder's feature maps to one map at stride 4 (MaskFormer, section 3.3 and appendix A)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .position import normalized_sine_position
from .transformer import EncoderLayer


class ConvGroupNorm(nn.Sequential):
    """Convolution without bias, group norm, and ReLU if asked for. [B, in, h, w] -> [B, out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, relu: bool = True, groups: int = 32) -> None:
        parts: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, padding=(kernel - 1) // 2, bias=False),
            nn.GroupNorm(min(groups, out_channels // 4), out_channels),
        ]
        super().__init__(*parts, *([nn.ReLU(inplace=True)] if relu else []))


class PixelDecoder(nn.Module):
    """A feature pyramid by addition, optionally with a transformer encoder on its coarsest map.

    Args:
        channels: of the encoder's maps, fine to coarse.
        dim: width of the pyramid.
        encoder_layers: 0 for semantic segmentation, 6 for COCO panoptic in the paper.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        encoder_layers: int = 0,
        heads: int = 8,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        coarse = dim if encoder_layers else channels[-1]
        self.input_proj = nn.Conv2d(channels[-1], dim, kernel_size=1) if encoder_layers else nn.Identity()
        self.encoder = nn.ModuleList(EncoderLayer(dim, heads, hidden) for _ in range(encoder_layers))
        self.stem = ConvGroupNorm(coarse, dim, 3)
        self.lateral = nn.ModuleList(ConvGroupNorm(c, dim, 1, relu=False) for c in channels[-2::-1])
        self.output = nn.ModuleList(ConvGroupNorm(dim, dim, 3) for _ in channels[:-1])

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps [B, channels[i], h, w], fine to coarse -> [B, dim, h, w] at the finest map's size, from which pixel
        embeddings are made, and the coarsest map, for the queries to attend to."""
        coarse = self._encoded(self.input_proj(features[-1]))
        y = self.stem(coarse)
        for finer, lateral, output in zip(features[-2::-1], self.lateral, self.output, strict=True):
            y = output(lateral(finer) + F.interpolate(y, size=finer.shape[-2:], mode="nearest"))
        return y, coarse

    def _encoded(self, x: Tensor) -> Tensor:
        if not len(self.encoder):
            return x
        height, width = x.shape[-2:]
        position = normalized_sine_position(height, width, x.shape[1], device=x.device).to(x.dtype)
        tokens, token_pos = (t.flatten(-2).transpose(-2, -1) for t in (x, position))
        for layer in self.encoder:
            tokens = layer(tokens, token_pos)
        return tokens.transpose(1, 2).unflatten(-1, (height, width))
