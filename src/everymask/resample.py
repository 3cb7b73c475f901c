"""Pixels onto a canvas: the fast way of straight maps, and the look-up of all other affine maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .affine import TINY, Affine, Box, box_corners


class Placement(NamedTuple):
    """Where the pixels of a crop land when its rows and columns stay straight and its edges fall between pixels.

    Attributes:
        size: (h, w) that the crop is resized to, before it is turned.
        corner: (row, column) of the top left pixel on the canvas; it may lie outside.
        transposed: rows become columns.
        mirrored: (upside down, left to right), after that.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    transposed: bool
    mirrored: tuple[bool, bool]

    @classmethod
    def of(cls, crop: Box, matrix: Affine) -> Placement | None:
        """The placement that `matrix` makes of `crop`; None where it makes none."""
        a, b, _, d, e, _ = matrix
        longest = max(crop[2] - crop[0], crop[3] - crop[1])
        straight, transposed = (max(abs(p), abs(q)) * longest < TINY for p, q in ((b, d), (a, e)))
        xs, ys = zip(*box_corners(crop, matrix), strict=True)
        exact = min(ys) + 0.5, min(xs) + 0.5, max(ys) + 0.5, max(xs) + 0.5
        top, left, bottom, right = whole = [round(edge) for edge in exact]
        off = max(abs(edge - pixel) for edge, pixel in zip(exact, whole, strict=True))
        if not (straight or transposed) or off > TINY or top == bottom or left == right:
            return None
        if transposed:
            return cls((right - left, bottom - top), (top, left), True, (d < 0, b < 0))
        return cls((bottom - top, right - left), (top, left), False, (e < 0, a < 0))

    @property
    def box(self) -> Box:
        """What it covers, canvas or not."""
        (top, left), (height, width) = self.corner, self.size[::-1] if self.transposed else self.size
        return left, top, left + width, top + height

    def paste(self, pixels: Tensor, canvas: Tensor) -> None:
        """Put pixels [..., h, w] of this `size` on [..., canvas]; what falls outside is left out."""
        shown = pixels.transpose(-1, -2) if self.transposed else pixels
        axes = [axis for axis, mirrored in zip((-2, -1), self.mirrored, strict=True) if mirrored]
        shown = shown.flip(axes) if axes else shown
        rows, columns = self._covered(canvas)
        canvas[..., rows, columns] = shown[..., _from(rows, self.corner[0]), _from(columns, self.corner[1])]

    def paste_labels(self, values: Tensor, crop: Box, canvas: Tensor) -> None:
        """Put the crop of maps [..., H, W] on [..., canvas] by nearest pixel; what falls outside is left out."""
        (x0, y0, x1, y1), (height, width) = crop, self.size
        rows, columns = self._covered(canvas)
        shown, mirrored = [_from(rows, self.corner[0]), _from(columns, self.corner[1])], [*self.mirrored]
        if self.transposed:  # In the photo's order of axes, because memory is in it.
            shown.reverse()
            mirrored.reverse()
        photo_rows = _nearest(y0, y1, height, mirrored[0])[shown[0]].numpy()
        photo_columns = _nearest(x0, x1, width, mirrored[1])[shown[1]].numpy()
        # One axis after the other, by NumPy: a third of the time of PyTorch's own, a quarter of a gather in two axes.
        taken = torch.from_numpy(values.numpy().take(photo_rows, axis=-2).take(photo_columns, axis=-1))
        canvas[..., rows, columns] = taken.transpose(-1, -2) if self.transposed else taken

    def _covered(self, canvas: Tensor) -> tuple[slice, slice]:
        """Rows and columns of the canvas."""
        (x0, y0, x1, y1), (height, width) = self.box, canvas.shape[-2:]
        return slice(max(0, y0), max(0, min(y1, height))), slice(max(0, x0), max(0, min(x1, width)))


def _from(covered: slice, start: int) -> slice:
    """The same pixels, counted from `start`."""
    return slice(covered.start - start, max(covered.start, covered.stop) - start)


def _nearest(start: int, stop: int, count: int, mirrored: bool) -> Tensor:
    """Photo index under the centre of each of `count` pixels that cover [start, stop), or the same backwards."""
    index = (start + (torch.arange(count) + 0.5) * ((stop - start) / count)).floor().long()
    return index.flip(0) if mirrored else index


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels [C, H, W], uint8 or float, to [C, *size]: antialiased bilinear."""
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]


def look_up(pixels: Tensor, x: Tensor, y: Tensor, scale: tuple[float, float]) -> Tensor:
    """Pixels [C, H, W] at the points (x, y) [h, w], one bilinear look-up each; beyond the border its colour goes on.

    Where the map shrinks, look-ups alone would skip pixels. So these are first averaged by the same antialiased resize
    that straight maps use, to the scale that the map has along each of the photo's axes. That filter takes out what
    the canvas cannot hold; the look-up then steps by about one pixel and loses no more. Exact for a map that scales and
    then turns; under a small shear the scale of the filter is a few percent off.

    Args:
        scale: of the map, along the photo's x and y.

    Returns:
        the type of `pixels`.
    """
    height, width = pixels.shape[-2:]
    size = max(1, round(height * min(1, scale[1]))), max(1, round(width * min(1, scale[0])))
    # Relative to the outer edges, where the resize leaves every point in its place.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).float()
    small = resize(pixels, size).float()[None]
    found = F.grid_sample(small, grid[None], padding_mode="border", align_corners=False)[0]
    return found if pixels.is_floating_point() else found.round().to(pixels.dtype)
