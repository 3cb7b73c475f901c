"""A photo as its encoder sees it: one view, or overlapping windows and a view of the whole; and their answers as one.

Everything is counted in patches: a photo covers a whole number of them (it is stretched by less than half a patch), and
so do windows and their offsets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Blend = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class View:
    """One part of one image.

    Attributes:
        image: its number in the batch.
        offset: first patch (row, column).
        grid: patches (h, w) that the encoder sees.
        whole: the view is of the whole image, however many patches that covers.
    """

    image: int
    offset: Size
    grid: Size
    whole: bool = False


def patches(content: Size, patch: int) -> Size:
    """Patches (h, w) that content of this size in pixels covers, one at least."""
    return max(1, round(content[0] / patch)), max(1, round(content[1] / patch))


def plan(image: int, grid: Size, window: int, stride: int) -> list[View]:
    """The views of an image of `grid` patches: itself if one window holds it, else windows and, last, the whole.

    Args:
        window: patches a side of the largest view.
        stride: patches from a window to the next at the most.
    """
    if max(grid) <= window:
        return [View(image, (0, 0), grid, whole=True)]
    size = min(grid[0], window), min(grid[1], window)
    rows, columns = (offsets(length, window, stride) for length in grid)
    windows = [View(image, (y, x), size) for y in rows for x in columns]
    scale = window / max(grid)
    fitted = max(1, round(grid[0] * scale)), max(1, round(grid[1] * scale))
    return [*windows, View(image, (0, 0), fitted, whole=True)]


def offsets(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: evenly, at most `stride` apart, the last one at the end."""
    rest = length - window
    if rest <= 0:
        return [0]
    steps = math.ceil(rest / stride)
    return [round(rest * n / steps) for n in range(steps + 1)]


def pixels(image: Tensor, view: View, patch: int, antialias: bool = True) -> Tensor:
    """[3, h, w] of the view, from an image [3, H, W] of whole patches.

    Args:
        antialias: where the whole is made smaller.
    """
    if view.whole:
        return stretched(image, (view.grid[0] * patch, view.grid[1] * patch), antialias)
    (y, x), (height, width) = view.offset, view.grid
    return image[:, y * patch : (y + height) * patch, x * patch : (x + width) * patch]


def stretched(maps: Tensor, size: Size, antialias: bool = True) -> Tensor:
    """[n, H, W] resized to `size`."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def by_grid(views: Sequence[View], most: int) -> Iterator[list[View]]:
    """Views of equal grid together, at most so many."""
    groups: dict[Size, list[View]] = {}
    for view in views:
        groups.setdefault(view.grid, []).append(view)
    for group in groups.values():
        yield from (group[start : start + most] for start in range(0, len(group), most))


class Mosaic:
    """The maps of one image, put together from those of its views.

    Where windows overlap their mean is taken; of that and the view of the whole, the mean again.

    Args:
        count: maps.
        grid: the image's patches.
        views: all of the image, windows as `plan` gives them.
        cells: a side of each patch in the result.
        blend: what the mean is of. "logits" gives a window less weight towards its border, which leaves no seam;
            "probabilities" is the published way.
    """

    def __init__(self, count: int, grid: Size, views: Sequence[View], cells: int, blend: Blend, like: Tensor) -> None:
        self.cells, self.blend = cells, blend
        self.size = grid[0] * cells, grid[1] * cells
        self.total = like.new_zeros(count, *self.size)
        windows = [view for view in views if not view.whole]
        self.kinds = (len(windows) > 0) + (len(windows) < len(views))
        self.weight = like.new_zeros(self.size)
        for view in windows:
            self.weight[self._place(view)] += self._taper(view)

    def add(self, part: slice, logits: Tensor, view: View) -> None:
        """Logits [t, h, w] that the view gives for some of the maps."""
        maps = self._resized(logits, view) / self.kinds
        if view.whole:
            self.total[part] += maps
        else:
            place = self._place(view)
            self.total[(part, *place)] += maps * (self._taper(view) / self.weight[place])

    def finish(self) -> Tensor:
        """Logits [count, H, W]."""
        return torch.logit(self.total, eps=1e-6) if self.blend == "probabilities" else self.total

    def _place(self, view: View) -> tuple[slice, slice]:
        rows, columns = (
            slice(start * self.cells, (start + length) * self.cells)
            for start, length in zip(view.offset, view.grid, strict=True)
        )
        return rows, columns

    def _resized(self, logits: Tensor, view: View) -> Tensor:
        """What is added up, at the size of the view's place in the result."""
        own = view.grid[0] * self.cells, view.grid[1] * self.cells
        size = self.size if view.whole else own
        if self.blend == "logits":
            return stretched(logits, size, antialias=False)
        return stretched(stretched(logits, own, antialias=False).sigmoid(), size, antialias=False)

    def _taper(self, view: View) -> Tensor:
        """[h, w]: weights of a window, less towards its border, or all one."""
        size = view.grid[0] * self.cells, view.grid[1] * self.cells
        if self.blend == "probabilities":
            return self.weight.new_ones(size)
        rows, columns = (self._ramp(length) for length in size)
        return rows[:, None] * columns

    def _ramp(self, length: int) -> Tensor:
        place = torch.arange(1, length + 1, device=self.weight.device, dtype=self.weight.dtype)
        return torch.minimum(place, length + 1 - place)
