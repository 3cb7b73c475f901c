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


def decide_pixels(maps: Tensor, rows: Tensor, columns: Tensor, decide: Callable[[Tensor], Tensor]) -> Tensor:
    """`decide` of the bilinearly interpolated maps, at every pixel.

    Args:
        maps: [n, h, w].
        rows: float [H], ascending: where each pixel row lies among the cells, 0..h-1.
        columns: float [W], likewise.
        decide: maps [n, ...] -> whole numbers [...]; the values that give one number form a convex set.

    Returns:
        [H, W], of the type that `decide` gives.
    """
    lines = interpolate(maps, columns, axis=2)
    at_cells = decide(lines)
    upper = rows.floor().long()
    pixels = at_cells.index_select(0, upper)
    starts = torch.searchsorted(upper, torch.arange(maps.shape[1] + 1, device=maps.device))
    counts = starts.diff()
    between = (at_cells[:-1] != at_cells[1:]) & (counts[:-1, None] > 0)
    cells, xs = torch.nonzero(between, as_tuple=True)
    most = int(counts[cells].amax()) if len(cells) else 0
    for part in _chunks(len(cells), most * len(maps)):
        _fill_between(pixels, lines, rows, starts, most, cells[part], xs[part], decide)
    return pixels


def _fill_between(
    pixels: Tensor,
    lines: Tensor,
    rows: Tensor,
    starts: Tensor,
    most: int,
    cells: Tensor,
    xs: Tensor,
    decide: Callable[[Tensor], Tensor],
) -> None:
    """Decide the pixels between row `cells` [U] of `lines` [n, h, W] and the next, in columns `xs` [U]."""
    # Intervals differ by a row or so; the shorter ones visit their last row more than once.
    ys = (starts[cells, None] + torch.arange(most, device=rows.device)).minimum(starts[cells + 1, None] - 1)
    share = (rows[ys] - cells[:, None]).to(lines.dtype)
    values = torch.lerp(lines[:, cells, xs, None], lines[:, cells + 1, xs, None], share)
    pixels[ys, xs[:, None]] = decide(values)


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
