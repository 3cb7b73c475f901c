"""Decisions at full size: which class wins, what is covered, how opaque a pixel is, from maps at a lower resolution.

Interpolating between two points never leaves a convex set. So where a decision's sets are convex (one map is the
highest; a map is above a threshold; a value rounds to the same grey), a pixel between two cells of equal decision has
that decision too, and nothing need be interpolated there. Results are those of interpolating every map at every pixel
and deciding then; the work is that of the outlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

CHUNK_VALUES = 32_000_000
"""Most interpolated values alive at once: 128 MB in float32."""


Decide = Callable[[Tensor, Tensor], Tensor]
"""Values [m, ...] of some maps, and which maps these are [m] -> whole numbers [...]. The values that give one number
form a convex set."""

Select = Callable[[Tensor], Tensor]
"""Maps [n, h, w] -> indices [m] of those that matter between these cells."""


def decide_pixels(maps: Tensor, rows: Tensor, columns: Tensor, decide: Decide, select: Select | None = None) -> Tensor:
    """`decide` of the bilinearly interpolated maps, at every pixel.

    Args:
        maps: [n, h, w].
        rows: float [H], ascending: where each pixel row lies among the cells, 0..h-1.
        columns: float [W], likewise.
        select: leaves out maps where they cannot change the decision; None takes all.

    Returns:
        [H, W], of the type that `decide` gives.
    """
    parts = []
    for cells, pixels in _bands(rows, maps.shape[1], len(maps) * len(columns)):
        band = maps[:, cells]
        chosen = select(band) if select else torch.arange(len(maps), device=maps.device)
        parts.append(_decide_band(band[chosen], rows[pixels] - cells.start, columns, lambda v, c=chosen: decide(v, c)))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _bands(rows: Tensor, height: int, row_values: int) -> Iterator[tuple[slice, slice]]:
    """Cells and the pixel rows that lie between them, in bands of bounded size; neighbours share a row of cells."""
    step = max(1, CHUNK_VALUES // max(1, row_values))
    first = 0
    for start in range(0, max(1, height - 1), step):
        stop = min(start + step, height - 1)
        last = len(rows) if stop == height - 1 else int(torch.searchsorted(rows, float(stop)))
        if last > first:
            yield slice(start, stop + 1), slice(first, last)
        first = last


def _decide_band(maps: Tensor, rows: Tensor, columns: Tensor, decide: Callable[[Tensor], Tensor]) -> Tensor:
    lines = interpolate(maps, columns, axis=2)
    at_cells = decide(lines)
    upper = rows.floor().long()
    pixels = at_cells.index_select(0, upper)
    starts, counts = _intervals(upper, maps.shape[1])
    cells, xs = torch.nonzero((at_cells[:-1] != at_cells[1:]) & (counts[:-1, None] > 0), as_tuple=True)
    most = int(counts[cells].amax()) if len(cells) else 0
    for part in _chunks(len(cells), most * max(1, len(maps))):
        ys = _rows_between(starts, most, cells[part])
        values = _values_between(lines, rows, ys, cells[part], xs[part])
        pixels[ys, xs[part][:, None]] = decide(values)
    return pixels


def _intervals(upper: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """First pixel row below each row of cells [h + 1], and how many there are before the next [h]."""
    starts = torch.searchsorted(upper, torch.arange(height + 1, device=upper.device))
    return starts, starts.diff()


def _rows_between(starts: Tensor, most: int, cells: Tensor) -> Tensor:
    """Pixel rows [U, most] after row `cells` [U]; the shorter intervals visit their last row more than once."""
    return (starts[cells, None] + torch.arange(most, device=cells.device)).minimum(starts[cells + 1, None] - 1)


def _values_between(lines: Tensor, rows: Tensor, ys: Tensor, cells: Tensor, xs: Tensor) -> Tensor:
    """[m, U, r]: `lines` [m, h, W] between row `cells` [U] and the next, in columns `xs` [U], at pixel rows [U, r]."""
    share = (rows[ys] - cells[:, None]).to(lines.dtype)
    return torch.lerp(lines[:, cells, xs, None], lines[:, cells + 1, xs, None], share)


def count_above(maps: Tensor, rows: Tensor, columns: Tensor, threshold: float) -> Tensor:
    """int64 [n]: pixels at which each interpolated map [n, h, w] is above `threshold`."""
    counts = torch.zeros(len(maps), dtype=torch.int64, device=maps.device)
    for cells, pixels in _bands(rows, maps.shape[1], len(maps) * len(columns)):
        band = maps[:, cells]
        reaching = torch.nonzero(band.flatten(1).amax(1) > threshold).flatten()
        counts[reaching] += _count_band(band[reaching], rows[pixels] - cells.start, columns, threshold)
    return counts


def _count_band(maps: Tensor, rows: Tensor, columns: Tensor, threshold: float) -> Tensor:
    lines = interpolate(maps, columns, axis=2)
    above = lines > threshold
    starts, counts = _intervals(rows.floor().long(), maps.shape[1])
    # Where both cells are above, so are all rows between; those after the last row of cells have no other.
    sure = torch.cat([above[:, :-1] & above[:, 1:], above[:, -1:]], dim=1).sum(2)
    total = (sure * counts).sum(1)
    which, cells, xs = torch.nonzero((above[:, :-1] != above[:, 1:]) & (counts[:-1, None] > 0), as_tuple=True)
    most = int(counts[cells].amax()) if len(cells) else 0
    for part in _chunks(len(cells), most):
        ys = _rows_between(starts, most, cells[part])
        share = (rows[ys] - cells[part, None]).to(lines.dtype)
        upper, lower = (lines[which[part], cells[part] + n, xs[part], None] for n in (0, 1))
        own = torch.arange(most, device=ys.device) < counts[cells[part], None]
        hits = (torch.lerp(upper, lower, share) > threshold) & own
        total.index_add_(0, which[part], hits.sum(1))
    return total


def _chunks(count: int, size: int) -> Iterator[slice]:
    step = max(1, CHUNK_VALUES // max(1, size))
    return (slice(first, first + step) for first in range(0, count, step))


def grey_pixels(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 [H, W]: values 0..1 [h, w] interpolated as in `decide_pixels`, times 255, rounded."""
    lines = interpolate(values[None] * 255 + 0.5, columns, axis=2)[0]
    lower = torch.cat([lines[1:], lines[-1:]])
    starts = torch.searchsorted(rows.floor().long(), torch.arange(len(lines) + 1, device=rows.device)).tolist()
    share = (rows - rows.floor()).to(lines.dtype)[:, None]
    pixels = torch.empty(len(rows), len(columns), dtype=torch.uint8, device=values.device)
    # Between two cells at a time: intermediate values stay in the processor's cache.
    for cell, (first, stop) in enumerate(pairwise(starts)):
        pixels[first:stop] = torch.lerp(lines[cell], lower[cell], share[first:stop])
    return pixels


def interpolate(maps: Tensor, positions: Tensor, axis: int) -> Tensor:
    """`maps` [n, h, w] linearly interpolated at float `positions` [P] along one axis."""
    low = positions.floor().long()
    high = (low + 1).clamp(max=maps.shape[axis] - 1)
    share = (positions - low).to(maps.dtype)
    share = share[:, None] if axis == 1 else share
    return torch.lerp(maps.index_select(axis, low), maps.index_select(axis, high), share)


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
        possible &= _corners(least[None], torch.maximum) >= threshold
    return torch.nonzero(possible.flatten(1).any(1)).flatten()


def _corners(maps: Tensor, merge: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[n, h-1, w-1]: the largest or smallest of each four neighbouring cells (fewer where there is one row)."""
    for axis in (1, 2):
        if maps.shape[axis] > 1:
            length = maps.shape[axis] - 1
            maps = merge(maps.narrow(axis, 0, length), maps.narrow(axis, 1, length))
    return maps
