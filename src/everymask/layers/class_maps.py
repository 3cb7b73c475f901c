"""The mask decoder of models whose query t is class t: one map of logits a class, of any size for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Letterbox
from .masks import cell_positions

Size = tuple[int, int]


class ClassMaps:
    """Mask logits that are there already, at the model's own resolution.

    Args:
        maps: [T, h, w] of each image; their cells cover its content exactly, whatever its size.
        letterboxes: one an image.
    """

    def __init__(self, maps: Sequence[Tensor], letterboxes: Sequence[Letterbox]) -> None:
        self.maps, self.letterboxes = maps, letterboxes

    def sample(self, points: Tensor) -> Tensor:
        """[B, T, P] at canvas points [B, P, 2]."""
        return torch.stack([self._sampled(b, own) for b, own in enumerate(points)])

    def _sampled(self, b: int, points: Tensor) -> Tensor:
        height, width = self.letterboxes[b].content
        grid = (points + 0.5) * (2 / points.new_tensor([width, height])) - 1
        maps = self.maps[b][None]
        found = F.grid_sample(maps, grid[None, None].to(maps.dtype), padding_mode="border", align_corners=False)
        return found[0, :, 0]

    def decode(self, b: int, queries: Tensor, size: Size | None = None) -> Tensor:
        """[q, H, W]: the content of image `b` at `size`."""
        logits = self.maps[b][queries]
        if size is None or len(queries) == 0:
            return logits if size is None else logits.new_zeros((0, *size))
        return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]

    def positions(self, b: int, size: Size) -> tuple[Tensor, Tensor]:
        """Rows [H] and columns [W] of `size` in cells of the content."""
        height, width = self.maps[b].shape[-2:]
        device = self.maps[b].device
        return cell_positions(size[0], height, 1, device), cell_positions(size[1], width, 1, device)
