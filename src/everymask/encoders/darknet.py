"""DarkNet53 (YOLOv3, Redmon & Farhadi 2018, table 1) at any width and depth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers.conv import ConvBlock, keep_valid


class ResidualBlock(nn.Module):
    """1x1 to half the channels, 3x3 back, added to the input. [B, D, h, w] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = ConvBlock(channels, channels // 2, kernel=1)
        self.expand = ConvBlock(channels // 2, channels)
        # Nearly the identity at first: depth disturbs neither the start of a training nor weights grown from a
        # shallower net (as LayerScale, Touvron et al. 2021, equation 4).
        nn.init.constant_(self.expand.norm.weight, 0.1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return x + keep_valid(self.expand(keep_valid(self.squeeze(x), valid)), valid)


class ResidualStage(nn.Module):
    """3x3 stride 2, then residual blocks. [B, in, h, w] -> [B, out, h/2, w/2]."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        self.downsample = ConvBlock(in_channels, out_channels, stride=2)
        self.blocks = nn.ModuleList(ResidualBlock(out_channels) for _ in range(blocks))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = keep_valid(self.downsample(x), valid)
        for block in self.blocks:
            x = block(x, valid)
        return x


class DarkNet(nn.Module):
    """Four feature maps at strides 4, 8, 16, 32 (c2..c5).

    Args:
        widths: channels of the stem and of each stage. DarkNet53: 32, 64, 128, 256, 512, 1024.
        blocks: residual blocks a stage. DarkNet53: 1, 2, 8, 8, 4.
        stem_stride: 1 as published; 2 with four stages is the light form, which skips full resolution.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], stem_stride: int = 1) -> None:
        super().__init__()
        self.stem = ConvBlock(3, widths[0], stride=stem_stride)
        self.stages = nn.ModuleList(
            ResidualStage(a, b, n) for a, b, n in zip(widths[:-1], widths[1:], blocks, strict=True)
        )
        self.channels = tuple(widths[-4:])

    def forward(self, images: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Normalised images [B, 3, H, W], H and W multiples of 32 -> [B, channels[i], H/strides[i], W/strides[i]]."""
        x = keep_valid(self.stem(images), valid)
        features = []
        for stage in self.stages:
            x = stage(x, valid)
            features.append(x)
        return features[-4:]
