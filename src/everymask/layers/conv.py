"""Convolution block that keeps padding out of the features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, LeakyReLU(0.1), as in DarkNet (YOLOv3, Redmon & Farhadi 2018).

    [B, in, H, W] -> [B, out, H/stride, W/stride].
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.1, inplace=True),
        )

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch norm."""
        norm = self[1]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm


def keep_valid(features: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the features [B, D, h, w] that lie beyond each image's own canvas.

    A convolution sees zeros beyond the border of an image that is alone. Padding must look the same, or an image's
    result would depend on its neighbours in the batch. `valid` is `Batch.valid()`; None costs nothing.
    """
    if valid is None:
        return features
    stride = valid.shape[-1] // features.shape[-1]
    return features * valid[..., ::stride, ::stride]


def upsample_to(features: Tensor, like: Tensor) -> Tensor:
    """Nearest upsampling of [B, D, h, w] to the size of `like`."""
    return F.interpolate(features, size=like.shape[-2:], mode="nearest")
