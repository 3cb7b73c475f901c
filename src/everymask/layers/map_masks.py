"""Late mask decoders whose masks come as maps of the queries asked for: what they share, and filled boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..boxes import to_corners
from ..types import Letterbox, round_up
from .masks import Size, cell_positions, resample_content, sample_features


class MapMasks(ABC):
    """A `MaskDecoder` over maps [q, h, w] that cover the content of one image in cells of `stride` pixels.

    Args:
        count: queries of an image.
        letterboxes: one an image.
    """

    def __init__(self, count: int, letterboxes: Sequence[Letterbox], stride: int = 4) -> None:
        self.count, self.letterboxes, self.stride = count, letterboxes, stride

    @abstractmethod
    def maps(self, b: int, queries: Tensor) -> Tensor:
        """Mask logits [q, h, w] of queries [q] of image `b`."""

    def cells(self, b: int, stride: int | None = None) -> Size:
        """(h, w) of a map that covers the content of image `b`."""
        step = stride or self.stride
        height, width = (round_up(length, step) // step for length in self.letterboxes[b].content)
        return height, width

    def decode(self, b: int, queries: Tensor, size: Size | None = None) -> Tensor:
        """[q, H, W]: the content of image `b` at `size`."""
        maps = self.maps(b, queries)
        if size is None:
            return maps
        return resample_content(maps, self.letterboxes[b].content, (self.stride, self.stride), size)

    def sample(self, points: Tensor) -> Tensor:
        """[B, Q, P] at canvas points [B, P, 2]. All masks are decoded for it, so training asks for a few instead."""
        every = torch.arange(self.count, device=points.device)
        return torch.stack([self._sampled(b, self.maps(b, every), points[b]) for b in range(len(self.letterboxes))])

    def _sampled(self, b: int, maps: Tensor, points: Tensor) -> Tensor:
        """[q, P] of maps [q, h, w] at points [P, 2]."""
        covered = self.stride * maps.shape[-2], self.stride * maps.shape[-1]
        return sample_features(maps[None], points[None], self.letterboxes[b : b + 1], covered)[0]

    def positions(self, b: int, size: Size) -> tuple[Tensor, Tensor]:
        """Rows [H] and columns [W] of `size` in cells of the content."""
        content, device = self.letterboxes[b].content, self.device
        rows, columns = (
            cell_positions(out, length, self.stride, device) for out, length in zip(size, content, strict=True)
        )
        return rows, columns

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Of the maps."""


class BoxMasks(MapMasks):
    """Filled boxes, for detectors that have no masks: a logit is the distance in pixels to the nearest side.

    Args:
        boxes: [B, Q, 4] (cx, cy, w, h) relative to the content. What lies outside the image is not seen.
    """

    def __init__(self, boxes: Tensor, letterboxes: Sequence[Letterbox]) -> None:
        super().__init__(boxes.shape[1], letterboxes)
        self.boxes = boxes

    def maps(self, b: int, queries: Tensor) -> Tensor:
        height, width = self.letterboxes[b].content
        x0, y0, x1, y1 = (side[:, None] for side in to_corners(self.boxes[b, queries].float()).unbind(-1))
        # Places of cell centres, from the left or upper edge of the image.
        rows, columns = (self.stride * (torch.arange(n, device=self.device) + 0.5) for n in self.cells(b))
        vertical = torch.minimum(rows - y0 * height, y1 * height - rows)
        horizontal = torch.minimum(columns - x0 * width, x1 * width - columns)
        return torch.minimum(vertical[:, :, None], horizontal[:, None])

    @property
    def device(self) -> torch.device:
        return self.boxes.device
