"""ResNet-50 and its kin (He et al. 2016, table 1), stride in the 3x3 convolution ("v1.5"), optionally dilated.

Our own rather than the one of `transformers`: DETR needs frozen batch norm and a dilated last stage (DC5), which that
one does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.conv import keep_valid

Norm = Literal["batch", "frozen"]


class FrozenBatchNorm(nn.Module):
    """Batch norm that never learns: fixed statistics, scale and shift (DETR, section A.4). [B, D, h, w] -> the same."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    @property
    def scale(self) -> Tensor:
        """[channels]: what the norm multiplies with."""
        return self.weight * (self.running_var + self.eps).rsqrt()

    @property
    def shift(self) -> Tensor:
        """[channels]: what it adds then."""
        return self.bias - self.running_mean * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + self.shift[:, None, None]


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm. [B, in, h, w] -> [B, out, h/stride, w/stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, norm: Norm, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = (kernel - 1) // 2 * dilation
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False),
            FrozenBatchNorm(out_channels) if norm == "frozen" else nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        if not (isinstance(norm, FrozenBatchNorm) and isinstance(conv, nn.Conv2d)):
            return super().forward(x)
        # A frozen norm is part of the convolution's weights: one pass over the maps instead of three.
        kernel = conv.weight * norm.scale[:, None, None, None]
        return F.conv2d(x, kernel, norm.shift, conv.stride, conv.padding, conv.dilation)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut. [B, in, h, w] -> [B, out, h/stride, w/stride]."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, stride: int, dilation: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.reduce = ConvNorm(in_channels, width, 1, norm)
        self.spatial = ConvNorm(width, width, 3, norm, stride, dilation)
        self.expand = ConvNorm(width, out_channels, 1, norm)
        changes = in_channels != out_channels or stride > 1
        self.shortcut = ConvNorm(in_channels, out_channels, 1, norm, stride) if changes else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid`: bool [B, 1, h, w], False on padding, which the 3x3 convolution must see as zeros."""
        y = keep_valid(F.relu(self.reduce(x)), valid)
        y = F.relu(self.spatial(y))
        return F.relu(self.expand(y) + self.shortcut(x))


class Stage(nn.Sequential):
    """Blocks, of which the first may halve the resolution. [B, in, h, w] -> [B, out, h/stride, w/stride]."""

    def forward(self, x: Tensor, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
        """`before`, `after`: what is no padding, at the resolution of input and output."""
        for n, block in enumerate(self):
            x = block(x, after if n else before)
        return x


def at_stride(valid: Tensor | None, stride: int) -> Tensor | None:
    """A mask of pixels [B, 1, H, W] at the cells of a map [B, 1, H/stride, W/stride], rounded up."""
    return None if valid is None else valid[..., ::stride, ::stride]


class ResNet(nn.Module):
    """Four feature maps at strides 4, 8, 16, 32 (c2..c5); 16 instead of 32 with `dilate_last`.

    Args:
        depths: blocks a stage. ResNet-50: 3, 4, 6, 3; ResNet-101: 3, 4, 23, 3.
        width: channels of the stem; c2 has four times as many.
        norm: "frozen" for fine-tuning published weights, "batch" for training from random ones.
    """

    def __init__(
        self, depths: Sequence[int] = (3, 4, 6, 3), width: int = 64, norm: Norm = "batch", dilate_last: bool = False
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width, 7, norm, stride=2)
        self.channels = tuple(4 * width * 2**stage for stage in range(len(depths)))
        self.strides = (4, 8, 16, 16 if dilate_last else 32)
        inputs = (width, *self.channels)
        self.stages = nn.ModuleList(
            _stage(inputs[n], inputs[n + 1], depth, norm, first=n == 0, dilate=dilate_last and n == len(depths) - 1)
            for n, depth in enumerate(depths)
        )

    def forward(self, images: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> [B, channels[i], H/strides[i], W/strides[i]], rounded up.

        Args:
            valid: bool [B, 1, H, W], False on padding, where images are zero; None where there is none. It leaves the
                rest of the features alone; features of padding mean nothing.
        """
        x = keep_valid(F.relu(self.stem(images)), at_stride(valid, 2))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage, before, after in zip(self.stages, (4, *self.strides), self.strides, strict=False):
            x = stage(x, at_stride(valid, before), at_stride(valid, after))
            features.append(x)
        return features


def _stage(in_channels: int, out_channels: int, depth: int, norm: Norm, *, first: bool, dilate: bool) -> Stage:
    """One stage; dilated, it keeps the resolution, and its blocks after the first look twice as far (DC5)."""
    stride = 1 if first or dilate else 2
    blocks = [Bottleneck(in_channels, out_channels, norm, stride, dilation=1)]
    blocks += [Bottleneck(out_channels, out_channels, norm, 1, 2 if dilate else 1) for _ in range(depth - 1)]
    return Stage(*blocks)


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the ResNet in `transformers` under our names."""
    return {_own_name(name): value for name, value in state.items()}


def _own_name(name: str) -> str:
    parts = {
        "embedder.embedder.": "stem.",
        "encoder.stages.": "stages.",
        ".layers.": ".",
        ".shortcut.": ".shortcut.",
        ".layer.0.": ".reduce.",
        ".layer.1.": ".spatial.",
        ".layer.2.": ".expand.",
        "convolution.": "0.",
        "normalization.": "1.",
    }
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the ResNet of torchvision, which timm names alike, under our names; the classifier is left out."""
    return {_name_of_torchvision(name): value for name, value in state.items() if not name.startswith("fc.")}


def _name_of_torchvision(name: str) -> str:
    """``layer1.0.conv2.weight`` is ``stages.0.0.spatial.0.weight``; the norm of a convolution is its second part."""
    layer, _, rest = name.partition(".")
    if not layer.startswith("layer"):
        return {"conv1": "stem.0.", "bn1": "stem.1."}[layer] + rest
    block, part, tensor = rest.split(".", 2)
    if part != "downsample":
        convolution = ("reduce", "spatial", "expand")[int(part[-1]) - 1]
        tensor = f"{convolution}.{int(part.startswith('bn'))}.{tensor}"
    else:
        tensor = f"shortcut.{tensor}"
    return f"stages.{int(layer[5:]) - 1}.{block}.{tensor}"
