"""Sine position encoding: works for any image size."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position(height: int, width: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """[dim, h, w]: first half encodes y, second half x, by sines and cosines of growing wavelength.

    Unlike DETR's, positions are not divided by the image size: a feature one cell to the right has the same offset
    whatever the padding, so a padded image encodes as it would alone (Vaswani et al. 2017, section 3.5, in two axes).

    Args:
        dim: embedding width, a multiple of 4.
    """
    wavelengths = 10000 ** (torch.arange(dim // 4, device=device) / (dim // 4))
    rows = torch.arange(height, device=device)[:, None] / wavelengths
    columns = torch.arange(width, device=device)[:, None] / wavelengths
    y = torch.cat([rows.sin(), rows.cos()], dim=1).T[:, :, None].expand(-1, -1, width)
    x = torch.cat([columns.sin(), columns.cos()], dim=1).T[:, None, :].expand(-1, height, -1)
    return torch.cat([y, x])


def normalized_sine_position(
    height: int, width: int, dim: int, *, device: torch.device | None = None, eps: float = 1e-6
) -> Tensor:
    """[dim, h, w] as in DETR and MaskFormer: both axes scaled to 2 pi, sine and cosine by turns, y before x.

    Args:
        dim: embedding width, a multiple of 4.
    """
    wavelengths = 10000 ** (torch.arange(dim // 4, device=device) / (dim // 4))
    y, x = (_turns(length, wavelengths, eps) for length in (height, width))
    return torch.cat([y.T[:, :, None].expand(-1, -1, width), x.T[:, None, :].expand(-1, height, -1)])


def _turns(length: int, wavelengths: Tensor, eps: float) -> Tensor:
    """[length, 2 x wavelengths]: sine and cosine of each wavelength, next to each other."""
    place = torch.arange(1, length + 1, device=wavelengths.device) / (length + eps) * (2 * math.pi)
    angles = place[:, None] / wavelengths
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
