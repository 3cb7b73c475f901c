"""The late mask decoder of all query x pixel models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import Letterbox

Size = tuple[int, int]


class PixelMap:
    """Pixel embeddings [B, D, h, w], shared by all decoder layers.

    Training asks all layers about the same points. Sampling takes most of the time of a loss on points, so the last
    samples are kept.
    """

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self._points: Tensor | None = None
        self._samples: Tensor | None = None

    @property
    def pixels(self) -> Tensor:
        """[B, D, h, w] over the whole canvas."""
        return self._pixels

    @property
    def size(self) -> Size:
        """(h, w)."""
        return self._pixels.shape[-2], self._pixels.shape[-1]

    def at(self, points: Tensor, letterboxes: Sequence[Letterbox], canvas: Size) -> Tensor:
        """[B, D, P] at canvas points [B, P, 2]."""
        if self._samples is None or self._points is not points:
            self._points, self._samples = points, sample_features(self.pixels, points, letterboxes, canvas)
        return self._samples


class QueryPixelMasks:
    """Mask logits as inner products of query and pixel embeddings, computed only where asked for.

    Sampling commutes with the product: the pixel embeddings are sampled once and multiplied by all queries, so
    training never builds [B, Q, H, W] (MaskFormer, Cheng et al. 2021, section 3.3; point sampling: PointRend).

    Args:
        queries: [B, Q, D].
        pixels: [B, D, h, w] over the whole canvas; a `PixelMap` where several decoder layers share it.
        letterboxes: one an image; they say how much of the canvas is content.
    """

    def __init__(
        self, queries: Tensor, pixels: Tensor | PixelMap, letterboxes: Sequence[Letterbox], canvas: Size
    ) -> None:
        self.queries = queries
        self.map = pixels if isinstance(pixels, PixelMap) else PixelMap(pixels)
        self.letterboxes, self.canvas = letterboxes, canvas

    @property
    def pixels(self) -> Tensor:
        """[B, D, h, w]."""
        return self.map.pixels

    def sample(self, points: Tensor) -> Tensor:
        """[B, Q, P] at canvas points [B, P, 2]."""
        return self.queries @ self.map.at(points, self.letterboxes, self.canvas)

    def decode(self, b: int, queries: Tensor, size: Size | None = None) -> Tensor:
        """[q, H, W]: the content of image `b` at `size`."""
        height, width = _cells(self.letterboxes[b].content, self._stride)
        logits = self._product(b, queries)[:, :height, :width]
        return logits if size is None else resample_content(logits, self.letterboxes[b].content, self._stride, size)

    def _product(self, b: int, queries: Tensor) -> Tensor:
        """[q, h, w] over the whole canvas."""
        return torch.einsum("qd,dhw->qhw", self.queries[b, queries], self.pixels[b])

    def positions(self, b: int, size: Size) -> tuple[Tensor, Tensor]:
        """Rows [H] and columns [W] of `size` in cells of the content."""
        rows, columns = (
            cell_positions(out, length, step, self.queries.device)
            for out, length, step in zip(size, self.letterboxes[b].content, self._stride, strict=True)
        )
        return rows, columns

    @property
    def _stride(self) -> tuple[float, float]:
        height, width = self.map.size
        return self.canvas[0] / height, self.canvas[1] / width


class ProjectedPixels(PixelMap):
    """Pixel embeddings that a last convolution makes from features: as a map for training, or not at all.

    An inner product with what a convolution makes is itself a convolution, with one kernel a query. For the few
    queries that post-processing keeps, this is a small part of the work.

    Args:
        features: [B, C, h, w].
        projection: from C to D channels, keeping the size.
    """

    def __init__(self, features: Tensor, projection: nn.Conv2d) -> None:
        super().__init__(features)  # Of the same size as what the projection makes of them.
        self.features, self.projection = features, projection

    @cached_property
    def pixels(self) -> Tensor:
        """[B, D, h, w]; made once, for all decoder layers of a training step."""
        embeddings: Tensor = self.projection(self.features)
        return embeddings

    def product(self, b: int, queries: Tensor) -> Tensor:
        """[q, h, w] of query embeddings [q, D]."""
        weight, bias = self.projection.weight, self.projection.bias
        kernels = torch.einsum("qd,dcyx->qcyx", queries, weight)
        shift = None if bias is None else queries @ bias
        # A map to convolve with must not be empty.
        if len(queries) == 0:
            return self.features.new_zeros(0, *self.features.shape[-2:])
        return F.conv2d(self.features[b : b + 1], kernels, shift, padding=self.projection.padding)[0]


class ProjectedMasks(QueryPixelMasks):
    """`QueryPixelMasks` whose pixel embeddings need not exist.

    Args:
        queries: [B, Q, D].
        source: shared by all decoder layers.
    """

    def __init__(
        self, queries: Tensor, source: ProjectedPixels, letterboxes: Sequence[Letterbox], canvas: Size
    ) -> None:
        super().__init__(queries, source, letterboxes, canvas)
        self.source = source

    def _product(self, b: int, queries: Tensor) -> Tensor:
        if len(queries) < self.queries.shape[-1]:
            return self.source.product(b, self.queries[b, queries])
        return super()._product(b, queries)


def sample_features(features: Tensor, points: Tensor, letterboxes: Sequence[Letterbox], canvas: Size) -> Tensor:
    """Bilinear [B, D, P] of features [B, D, h, w] at canvas points [B, P, 2].

    Beyond the last cell of an image's content its border value is repeated, so that no padding enters.
    """
    stride = canvas[1] / features.shape[-1], canvas[0] / features.shape[-2]
    cells = points.new_tensor([_cells(box.content, stride[::-1])[::-1] for box in letterboxes])
    last = cells[:, None] * points.new_tensor(stride) - points.new_tensor(stride) / 2
    grid = torch.minimum(points + 0.5, last) * (2 / points.new_tensor([canvas[1], canvas[0]])) - 1
    sampled = F.grid_sample(features, grid[:, None].to(features.dtype), padding_mode="border", align_corners=False)
    return sampled[:, :, 0]


def cell_positions(count: int, length: int, stride: float, device: torch.device | None = None) -> Tensor:
    """Where `count` pixels that cover `length` canvas pixels lie, in cells of `stride`."""
    return (torch.arange(count, device=device) + 0.5) * (length / (count * stride)) - 0.5


def resample_content(maps: Tensor, content: Size, stride: tuple[float, float], size: Size) -> Tensor:
    """Resample maps [n, h, w], whose cells cover `content` pixels of the canvas, to `size`, in one interpolation.

    The last cell may reach beyond the content. Resampling by the exact scale and cutting the few pixels too many
    gives each output pixel its true position; stretching whole cells over `size` would shift it.
    """
    if len(maps) == 0:
        return maps.new_zeros((0, *size))
    scale = [out * step / length for out, step, length in zip(size, stride, content, strict=True)]
    return _cover(F.interpolate(maps[None], scale_factor=scale, mode="bilinear", align_corners=False)[0], size)


def _cells(content: Size, stride: tuple[float, float]) -> tuple[int, int]:
    return math.ceil(content[0] / stride[0]), math.ceil(content[1] / stride[1])


def _cover(maps: Tensor, size: Size) -> Tensor:
    """Cut [q, H, W] to `size`; repeat the last row or column where flooring left one too few."""
    missing = size[0] - maps.shape[-2], size[1] - maps.shape[-1]
    if max(missing) > 0:
        maps = F.pad(maps, (0, max(missing[1], 0), 0, max(missing[0], 0)), mode="replicate")
    return maps[:, : size[0], : size[1]]
