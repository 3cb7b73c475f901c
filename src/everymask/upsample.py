"""Decisions at full size: which class wins, what is covered, how opaque a pixel is, from maps at a lower resolution.

Interpolating between points never leaves a convex set. So where a decision's sets are convex (one map is the highest; a
map is above a threshold), all pixels between four cells of equal decision have that decision too, and nothing need be
interpolated there. Results are those of interpolating every map at every pixel and deciding then; the work is that of
the outlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_VALUES = 32_000_000
"""Most interpolated values alive at once: 128 MB in float32."""

CELLS = 32
"""Cells of a row that one matrix product interpolates between."""

Decide = Callable[[Tensor, Tensor], Tensor]
"""Values [m, ...] of some maps, and which maps these are [m] -> whole numbers [...]. The values that give one number
form a convex set."""

Select = Callable[[Tensor], Tensor]
"""Maps [n, h, w] -> indices [m] of those that matter between these cells."""


def decide_pixels(maps: Tensor, rows: Tensor, columns: Tensor, decide: Decide, select: Select | None = None) -> Tensor:
    """`decide` of the bilinearly interpolated maps, at every pixel.

    Args:
        maps: [n, h, w].
        rows: float [H], ascending: where each pixel row lies among the cells, from -0.5 to h - 0.5.
        columns: float [W], likewise.
        select: leaves out maps where they cannot change the decision; None takes all.

    Returns:
        [H, W], of the type that `decide` gives.
    """
    parts = [band.decide(decide, select) for band in bands(maps, rows, columns)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def bands(maps: Tensor, rows: Tensor, columns: Tensor) -> Iterator[Band]:
    """Maps [n, h, w] in bands of bounded size that share a row of cells; every pixel row is in one of them."""
    # Counted from 1: a border cell is repeated outwards, so that pixels beyond it lie between cells like all others.
    rows, across = rows + 1, Axis.of(columns + 1, maps.shape[2] + 1)
    step = max(1, CHUNK_VALUES // max(1, maps.shape[0] * maps.shape[2]))
    height, first = maps.shape[1], 0
    for start in range(0, height + 1, step):
        stop = min(start + step, height + 1)
        last = len(rows) if stop == height + 1 else int(torch.searchsorted(rows, float(stop)))
        if last > first:
            yield Band(_padded(maps, start, stop), Axis.of(rows[first:last] - start, stop - start), across)
        first = last


def _padded(maps: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the maps [n, h, w] with border cells repeated: [n, stop - start + 1, w + 2]."""
    height = maps.shape[1]
    inner = maps[:, max(start - 1, 0) : min(stop, height)]
    return F.pad(inner, (1, 1, int(start == 0), int(stop == height + 1)), mode="replicate")


@dataclass(frozen=True, eq=False)
class Axis:
    """Pixels along one axis, among the cells of maps.

    Attributes:
        positions: float [L], ascending, in cells.
        lower: int64 [L]: the cell at or before each pixel that has a next one.
        starts: int64 [m + 1]: first pixel between each cell and the next.
    """

    positions: Tensor
    lower: Tensor
    starts: Tensor

    @classmethod
    def of(cls, positions: Tensor, intervals: int) -> Axis:
        """Among `intervals` + 1 cells."""
        lower = positions.floor().long().clamp(max=intervals - 1)
        return cls(positions, lower, torch.searchsorted(lower, torch.arange(intervals + 1, device=lower.device)))

    @cached_property
    def counts(self) -> Tensor:
        """int64 [m]: pixels between each cell and the next."""
        return self.starts.diff()

    def between(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels after `cells` [U]: indices [U, r], their share of the next cell [U, r], and which are its own [U, r].

        A shorter interval visits its last pixel more than once.
        """
        steps = torch.arange(int(self.counts[cells].amax()), device=cells.device)
        pixels = (self.starts[cells, None] + steps).minimum(self.starts[cells + 1, None] - 1)
        return pixels, self.positions[pixels] - cells[:, None], steps < self.counts[cells, None]


@dataclass(frozen=True, eq=False)
class Band:
    """Maps [n, h, w], h and w at least 2, and the pixels that lie between their cells."""

    maps: Tensor
    rows: Axis
    columns: Axis

    def decide(self, decide: Decide, select: Select | None = None) -> Tensor:
        """As `decide_pixels`: [H, W]."""
        chosen = select(self.maps) if select else torch.arange(len(self.maps), device=self.maps.device)
        maps = self.maps if len(chosen) == len(self.maps) else self.maps[chosen]
        at_cells = decide(maps, chosen)
        pixels = at_cells.index_select(1, self.columns.lower).index_select(0, self.rows.lower)
        mixed = _corners(at_cells, torch.maximum) != _corners(at_cells, torch.minimum)
        i, j = torch.nonzero(mixed & self._inhabited, as_tuple=True)
        for part in self._parts(len(i), len(maps)):
            (ys, down, _), (xs, right, _) = self.rows.between(i[part]), self.columns.between(j[part])
            corners = [maps[:, i[part] + y, j[part] + x] for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))]
            pixels[ys[:, :, None], xs[:, None]] = decide(_bilinear(corners, down, right), chosen)
        return pixels

    def count_above(self, thresholds: Tensor) -> Tensor:
        """int64 [n]: pixels at which each interpolated map is above its threshold [n]."""
        above = self.maps > thresholds[:, None, None]
        every, some = _corners(above, torch.logical_and), _corners(above, torch.logical_or)
        total = (every * self._sizes).flatten(1).sum(1)
        n, i, j = torch.nonzero(some & ~every & self._inhabited, as_tuple=True)
        for part in self._parts(len(i), 1):
            (_, down, own_rows), (_, right, own_columns) = self.rows.between(i[part]), self.columns.between(j[part])
            corners = [self.maps[n[part], i[part] + y, j[part] + x] for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))]
            hits = _bilinear(corners, down, right) > thresholds[n[part], None, None]
            hits &= own_rows[:, :, None] & own_columns[:, None]
            total.index_add_(0, n[part], hits.flatten(1).sum(1))
        return total

    @cached_property
    def _sizes(self) -> Tensor:
        """int64 [h - 1, w - 1]: pixels between each four cells."""
        return self.rows.counts[:, None] * self.columns.counts

    @cached_property
    def _inhabited(self) -> Tensor:
        return self._sizes > 0

    def _parts(self, count: int, maps: int) -> Iterator[slice]:
        """`count` blocks of pixels in parts of bounded size."""
        step = max(1, CHUNK_VALUES // max(1, int(self._sizes.amax()) * maps))
        return (slice(first, first + step) for first in range(0, count, step))


def _bilinear(corners: list[Tensor], down: Tensor, right: Tensor) -> Tensor:
    """Between four corners [..., U], at `down` [U, r] and `right` [U, s] of the way: [..., U, r, s]."""
    down, right = down.to(corners[0].dtype)[:, :, None], right.to(corners[0].dtype)
    top = torch.lerp(corners[0][..., None], corners[1][..., None], right)
    bottom = torch.lerp(corners[2][..., None], corners[3][..., None], right)
    return torch.lerp(top[..., None, :], bottom[..., None, :], down)


def _corners(maps: Tensor, merge: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[..., h, w] -> [..., h-1, w-1]: each four neighbouring cells merged (fewer where there is one row or column)."""
    for axis in (-2, -1):
        length = maps.shape[axis] - 1
        if length:
            maps = merge(maps.narrow(axis, 0, length), maps.narrow(axis, 1, length))
    return maps


def contenders(maps: Tensor, least: Tensor | None = None, threshold: float = 0.0) -> Tensor:
    """Indices int64 of the maps [n, h, w] that may be the highest at some point between cells.

    Between four cells a map stays below its highest corner. Where that is below the lowest corner of another map, it
    cannot win.

    Args:
        least: [h, w]; only points where this may reach `threshold` count.
    """
    if len(maps) == 0:
        return torch.zeros(0, dtype=torch.int64, device=maps.device)
    possible = _corners(maps, torch.maximum) >= _corners(maps, torch.minimum).amax(0)
    if least is not None:
        possible &= _corners(least, torch.maximum) >= threshold
    return torch.nonzero(possible.flatten(1).any(1)).flatten()


def grey_pixels(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 [H, W]: values 0..1 [h, w] interpolated as in `decide_pixels`, times 255, rounded."""
    rows, columns = rows.clamp(0, values.shape[0] - 1), columns.clamp(0, values.shape[1] - 1)
    lines = _across(values * 255 + 0.5, columns)
    lower = torch.cat([lines[1:], lines[-1:]])
    starts = torch.searchsorted(rows.floor().long(), torch.arange(len(lines) + 1, device=rows.device)).tolist()
    share = (rows - rows.floor()).to(lines.dtype)[:, None]
    pixels = torch.empty(len(rows), len(columns), dtype=torch.uint8, device=values.device)
    # Between two cells at a time: intermediate values stay in the processor's cache.
    for cell, (first, stop) in enumerate(pairwise(starts)):
        pixels[first:stop] = torch.lerp(lines[cell], lower[cell], share[first:stop])
    return pixels


def _across(values: Tensor, columns: Tensor) -> Tensor:
    """[h, w] interpolated at float `columns` [W]: [h, W].

    By matrix products, a few cells at a time: gathering along the last axis takes ten times as long.
    """
    last = values.shape[1] - 1
    parts, first = [], 0
    for start in range(0, max(1, last), CELLS):
        stop = min(start + CELLS, last)
        end = len(columns) if stop == last else int(torch.searchsorted(columns, float(stop)))
        cells = torch.arange(start, stop + 1, device=values.device)
        weights = (1 - (columns[first:end] - cells[:, None]).abs()).clamp(min=0).to(values.dtype)
        parts.append(values[:, start : stop + 1] @ weights)
        first = end
    return torch.cat(parts, dim=1)
