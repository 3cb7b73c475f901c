"""Sine position encoding: works for any image size."""

from __future__ import annotations

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
