"""Attention windows: where the tokens of a map lie in them, in place or shifted (Swin, Liu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FAR = -100.0
"""Added to the attention between tokens that are neighbours only because the shift is cyclic."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Where the tokens of a map lie in windows.

    Attributes:
        into: int64 [windows x n]: the token at each place, h x w for padding.
        back: int64 [h x w]: the place of each token.
        far: float [windows, 1, n, n], `FAR` between tokens that must not see each other; None without a shift.
    """

    into: Tensor
    back: Tensor
    far: Tensor | None

    @classmethod
    def of(cls, height: int, width: int, side: int, shift: int, device: torch.device) -> Windows:
        """Windows of `side` x `side` over a map that is padded at its right and bottom to a multiple."""
        padded = -height % side + height, -width % side + width
        tokens = torch.full(padded, height * width, device=device)
        tokens[:height, :width] = torch.arange(height * width, device=device).view(height, width)
        into = _windows(tokens.roll((-shift, -shift), (0, 1)), side).flatten()
        back = torch.empty(height * width + 1, dtype=torch.int64, device=device)
        back[into] = torch.arange(len(into), device=device)
        if not shift:
            return cls(into, back[:-1], None)
        rows, columns = (_regions(length, side, shift, device) for length in padded)
        region = _windows(3 * rows[:, None] + columns, side)
        apart = region[:, :, None] != region[:, None]
        return cls(into, back[:-1], FAR * apart[:, None].float())


def _windows(values: Tensor, side: int) -> Tensor:
    """[H, W] -> [windows, side x side]."""
    height, width = values.shape
    cells = values.view(height // side, side, width // side, side)
    return cells.transpose(1, 2).reshape(-1, side * side)


def _regions(length: int, side: int, shift: int, device: torch.device) -> Tensor:
    """0, 1 or 2 [length]: what was one piece before the cyclic shift."""
    place = torch.arange(length, device=device)
    return (place >= length - side).long() + (place >= length - shift).long()
