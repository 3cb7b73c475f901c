"""Geometry that moves image, id map, alpha, points and boxes together, in one resampling; batching.

`Geometry` is any affine map of a photo onto a canvas. Chains of its methods (`resized`, `cropped`, `flipped`, `turned`,
`padded`, `warped`, ...) only multiply matrices: however long the chain, pixels are resampled once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .affine import TINY, Affine, Box, Edge, box_corners, box_edges, common
from .errors import UsageError
from .resample import Placement, look_up, resize
from .types import VOID, Batch, Letterbox, Sample, Segments


@dataclass(frozen=True)
class Geometry:
    """Crop, resize to the letterbox's content, flip within it, pad to its canvas; or any affine map of the photo.

    Attributes:
        crop: what is read of the photo; all beyond is void.
        letterbox: from the crop's size to the canvas. With a `matrix` its content is how far right and down the canvas
            shows anything.
        flip: mirrored left to right.
        matrix: photo points to canvas points, for what crop, letterbox and flip cannot say; they then describe it.
        edges: lines in the photo beyond which nothing is shown: where a chain has cropped in between.
    """

    crop: Box
    letterbox: Letterbox
    flip: bool = False
    matrix: Affine | None = None
    edges: tuple[Edge, ...] = ()

    # ---- ways to make one ----

    @classmethod
    def fit(cls, source: tuple[int, int], side: int, multiple: int = 32) -> Geometry:
        """The whole photo on the smallest canvas: what inference uses."""
        return cls((0, 0, source[1], source[0]), Letterbox.fit(source, side, multiple))

    @classmethod
    def whole(cls, source: tuple[int, int]) -> Geometry:
        """The photo (H, W) as it is: where a chain begins."""
        return cls((0, 0, source[1], source[0]), Letterbox(source, source, source))

    @classmethod
    def _of(cls, crop: Box, matrix: Affine, canvas: tuple[int, int], edges: Sequence[Edge]) -> Geometry:
        read, shown = box_corners(crop), box_corners((0, 0, canvas[1], canvas[0]), matrix.inverse())
        cutting = tuple(edge for edge in edges if not (edge.holds_all(read) or edge.holds_all(shown)))
        box = Letterbox((crop[3] - crop[1], crop[2] - crop[0]), _reach(box_corners(crop, matrix), canvas), canvas)
        return cls(crop, box, False, matrix, cutting)

    def moved(self, matrix: Affine, canvas: tuple[int, int]) -> Geometry:
        """This geometry, then an affine map of its canvas onto a canvas of size (H, W). What was cut stays cut."""
        first = self._narrowed()
        edges = [*first.edges, *first._frame]
        whole = Geometry._of(first.crop, first.to_canvas.then(matrix), canvas, edges)
        # What was cut does not reach far either.
        (height, width), content = first.letterbox.content, whole.letterbox.content
        cut = _reach(box_corners((0, 0, width, height), matrix), canvas)
        content = min(content[0], cut[0]), min(content[1], cut[1])
        return replace(whole, letterbox=replace(whole.letterbox, content=content))

    def _narrowed(self) -> Geometry:
        """The same, with no more in its crop than is shown, where that is a box of whole pixels."""
        x0, y0, x1, y1 = self.crop
        if self.placement is None or self.placement.size != (y1 - y0, x1 - x0):
            return self
        xs, ys = zip(*box_corners(self._canvas_box, self.to_canvas.inverse()), strict=True)
        low, high = (round(min(xs) + 0.5), round(min(ys) + 0.5)), (round(max(xs) + 0.5), round(max(ys) + 0.5))
        shown = common(self.crop, (*low, *high))
        if shown in (None, self.crop):
            return self
        return Geometry._of(shown, self.to_canvas, self.letterbox.canvas, self.edges)

    @property
    def _canvas_box(self) -> Box:
        return 0, 0, self.letterbox.canvas[1], self.letterbox.canvas[0]

    @property
    def _frame(self) -> list[Edge]:
        """The edges of the canvas, in the photo."""
        return [edge.before(self.to_canvas) for edge in box_edges(self._canvas_box)]

    def resized(self, size: tuple[int, int]) -> Geometry:
        """The canvas resized to (H, W)."""
        height, width = self.letterbox.canvas
        if min(size) < 1:
            raise _refused("resize to", size)
        return self.moved(Affine.resize(size[1] / width, size[0] / height), size)

    def resized_shortest(self, shortest: int, longest: int) -> Geometry:
        """The canvas resized so that its shorter side is `shortest`, less where the longer would exceed `longest`."""
        size = self.letterbox.canvas
        scale = min(shortest / min(size), longest / max(size))
        return self.resized((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))

    def letterboxed(self, side: int, multiple: int = 32) -> Geometry:
        """The canvas resized to `side` as its longest side, padded right and bottom to a `multiple`."""
        box = Letterbox.fit(self.letterbox.canvas, side, multiple)
        (height, width), canvas = box.content, box.canvas
        return self.resized(box.content).padded(right=canvas[1] - width, bottom=canvas[0] - height)

    def cropped(self, box: Box) -> Geometry:
        """A window of the canvas."""
        x0, y0, x1, y1 = box
        height, width = self.letterbox.canvas
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise _refused(f"crop a canvas of {width} x {height} to", box)
        return self.moved(Affine.shift(-x0, -y0), (y1 - y0, x1 - x0))

    def padded(self, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> Geometry:
        """The canvas with void around it."""
        if min(left, top, right, bottom) < 0:
            raise _refused("pad by", (left, top, right, bottom))
        height, width = self.letterbox.canvas
        canvas = height + top + bottom, width + left + right
        if self.matrix is None and not (left or top):
            return replace(self, letterbox=replace(self.letterbox, canvas=canvas))
        return self.moved(Affine.shift(left, top), canvas)

    def flipped(self, *, vertical: bool = False) -> Geometry:
        """The canvas mirrored left to right, or upside down."""
        height, width = self.letterbox.canvas
        mirror = Affine(e=-1.0, f=height - 1.0) if vertical else Affine(a=-1.0, c=width - 1.0)
        return self.moved(mirror, (height, width))

    def turned(self, quarters: int) -> Geometry:
        """The canvas turned counter-clockwise by 90 degrees so many times."""
        size = self.letterbox.canvas
        return self.moved(Affine.quarter_turns(quarters, size), size[::-1] if quarters % 2 else size)

    def warped(
        self,
        angle: float = 0.0,
        *,
        shear: float = 0.0,
        scale: float = 1.0,
        shift: tuple[float, float] = (0.0, 0.0),
        center: tuple[float, float] | None = None,
    ) -> Geometry:
        """The canvas scaled, sheared, turned by any angle and shifted; its size stays, and what leaves it is cut.

        Args:
            angle: degrees counter-clockwise.
            shear: degrees, along x.
            shift: pixels.
            center: the point that only `shift` moves; the canvas's own if not given.
        """
        height, width = self.letterbox.canvas
        if scale <= 0 or abs(shear) >= 90:
            raise _refused("warp by", f"scale {scale}, shear {shear}")
        pivot = ((width - 1) / 2, (height - 1) / 2) if center is None else center
        matrix = Affine.about(pivot, angle, shear, scale).then(Affine.shift(*shift))
        return self.moved(matrix, (height, width))

    def inverse(self, source: tuple[int, int]) -> Geometry:
        """The way back: canvas maps onto the photo of size (H, W), void (or black) where the canvas did not show it.

        Result maps return by its `labels`, soft ones by its `alpha`, points by its `points`.
        """
        back, (height, width) = self.to_canvas.inverse(), self.letterbox.content
        content = (0, 0, width, height)
        read = common(self.placement.box, content) if self.placement else content
        edges = [edge.before(back) for edge in (*box_edges(self.crop), *self.edges)]
        return Geometry._of(read or content, back, source, edges)

    # ---- where things go ----

    @cached_property
    def to_canvas(self) -> Affine:
        """Photo points to canvas points."""
        if self.matrix is not None:
            return self.matrix
        shifted = Affine.shift(-self.crop[0], -self.crop[1]).then(Affine.resize(*self.letterbox.scale))
        mirror = Affine(a=-1.0, c=self.letterbox.content[1] - 1.0)
        return shifted.then(mirror) if self.flip else shifted

    @cached_property
    def placement(self) -> Placement | None:
        """How the crop's pixels land where rows and columns stay straight and edges fall between pixels, else None."""
        if self.matrix is None:
            return Placement(self.letterbox.content, (0, 0), False, (False, self.flip))
        return Placement.of(self.crop, self.matrix)

    def points(self, points: Tensor) -> Tensor:
        """Photo points [..., 2] -> canvas points."""
        if self.matrix is not None:
            return self.matrix.points(points)
        moved = self.letterbox.to_canvas(points - points.new_tensor(self.crop[:2]))
        if self.flip:
            moved = torch.stack([self.letterbox.content[1] - 1 - moved[..., 0], moved[..., 1]], dim=-1)
        return moved

    def to_source(self, points: Tensor) -> Tensor:
        """Canvas points [..., 2] -> photo points: the inverse of `points`."""
        return self.to_canvas.inverse().points(points)

    def shows(self, points: Tensor) -> Tensor:
        """bool [...]: whether photo points [..., 2] are on the canvas and not cut away."""
        edges = [*box_edges(self.crop), *self.edges, *self._frame]
        return torch.stack([edge.holds(points[..., 0], points[..., 1]) for edge in edges]).all(0)

    def boxes(self, boxes: Tensor) -> Tensor:
        """Photo boxes [..., 4] (x0, y0, x1, y1), corners inclusive -> canvas boxes, corners in order.

        Exact where edges stay upright. A box that is turned or sheared comes out as the box around it, which is larger
        than the box around the segment inside: for that, take `Segment.box` of the moved segments.
        """
        # Edges move, not the centres of corner pixels: these have other edges at another scale.
        edges = boxes + boxes.new_tensor([-1, -1, 1, 1]) / 2
        corners = self.points(edges[..., [[0, 1], [2, 1], [0, 3], [2, 3]]])
        low, high = corners.amin(-2), corners.amax(-2)
        half_pixel = ((high - low) / 2).clamp(max=0.5)
        return torch.cat([low + half_pixel, high - half_pixel], dim=-1)

    # ---- pixels ----

    def image(self, image: np.ndarray, out: Tensor | None = None) -> Tensor:
        """uint8 [H, W, 3] -> uint8 [3, canvas], antialiased bilinear, zeros beyond the content.

        Args:
            out: memory for the result.
        """
        x0, y0, x1, y1 = self._window
        # A view in the photo's own memory order: PyTorch resizes uint8 pixels eight times as fast as Pillow this way.
        return self._resampled(torch.from_numpy(_writable(image[y0:y1, x0:x1])).permute(2, 0, 1), out)

    def alpha(self, alpha: Tensor) -> Tensor:
        """Matte [H, W], uint8 or float -> [canvas], resampled like the image that it belongs to."""
        x0, y0, x1, y1 = self._window
        return self._resampled(alpha[None, y0:y1, x0:x1])[0]

    def labels(self, values: Tensor, fill: int, out: Tensor | None = None) -> Tensor:
        """Integer maps [..., H, W] -> [..., canvas] by nearest pixel, `fill` beyond the content.

        Args:
            out: memory for the result.
        """
        canvas = values.new_empty(*values.shape[:-2], *self.letterbox.canvas) if out is None else out
        canvas.fill_(fill)
        if self.placement:
            self.placement.paste_labels(values, self.crop, canvas)
        else:
            (rows, columns), (height, width) = self._nearest, values.shape[-2:]
            # Where nothing is shown any pixel will do.
            index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
            canvas.copy_(values.flatten(-2).index_select(-1, index.flatten()).view(canvas.shape))
        return canvas if self._hidden is None else canvas.masked_fill_(self._hidden, fill)

    def segments(self, segments: Segments, out: Tensor | None = None) -> Segments:
        """Truth on the canvas: void beyond the content; segments that fell outside are dropped and ids renumbered.

        Args:
            out: memory for the id map.
        """
        ids = self.labels(segments.id_map, fill=VOID, out=out)
        alpha = None if segments.alpha is None else self.alpha(segments.alpha)
        return drop_absent(replace(segments, id_map=ids, alpha=alpha))

    def _resampled(self, cut: Tensor, out: Tensor | None = None) -> Tensor:
        """The window's pixels [C, h, w] on the canvas."""
        canvas = cut.new_empty(len(cut), *self.letterbox.canvas) if out is None else out
        canvas.zero_()
        if self.placement:
            self.placement.paste(resize(cut, self.placement.size), canvas)
        elif cut.numel():
            (x, y), (x0, y0, _, _) = self._positions, self._window
            canvas.copy_(look_up(cut, x - x0, y - y0, self.to_canvas.scale))
        return canvas if self._hidden is None else canvas.masked_fill_(self._hidden, 0)

    @property
    def _window(self) -> Box:
        """What must be read of the crop for the canvas, filters included."""
        if self.placement:
            return self.crop
        xs, ys = zip(*box_corners(self._canvas_box, self.to_canvas.inverse()), strict=True)
        reach = 2 + 2 / min(1.0, *self.to_canvas.scale)
        low, high = (min(xs) - reach, min(ys) - reach), (max(xs) + reach, max(ys) + reach)
        return common(self.crop, (*map(math.floor, low), *map(math.ceil, high))) or (0, 0, 0, 0)

    @cached_property
    def _positions(self) -> tuple[Tensor, Tensor]:
        """The photo points x and y, float64 [canvas], under the centres of the canvas's pixels."""
        height, width = self.letterbox.canvas
        columns, rows = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)[:, None]
        return self.to_canvas.inverse().at(columns, rows)

    @cached_property
    def _nearest(self) -> tuple[Tensor, Tensor]:
        """Rows and columns, int64 [canvas], of the photo's pixels nearest to `_positions`."""
        x, y = self._positions
        return (y + 0.5).floor().long(), (x + 0.5).floor().long()

    @cached_property
    def _hidden(self) -> Tensor | None:
        """bool [canvas] of the pixels to blot out; None where pasting leaves none."""
        if self.placement and not self.edges:
            return None
        (rows, columns), (x, y), (x0, y0, x1, y1) = self._nearest, self._positions, self.crop
        shown = (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
        for edge in self.edges:
            shown &= edge.holds(x, y)
        return ~shown


def _reach(corners: Sequence[tuple[float, float]], canvas: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the canvas that a shape with these corners reaches into, one at least."""
    right, bottom = (math.ceil(max(values) + 0.5 - TINY) for values in zip(*corners, strict=True))
    return min(max(1, bottom), canvas[0]), min(max(1, right), canvas[1])


def _refused(what: str, why: object) -> UsageError:
    return UsageError(f"cannot {what}", where="Geometry", why=str(why))


def _writable(image: np.ndarray) -> np.ndarray:
    """The same array, or a copy of one that is read-only (a memory map): a tensor cannot promise not to write."""
    return image if image.flags.writeable else image.copy()


def drop_absent(segments: Segments) -> Segments:
    """Without the rows that no pixel belongs to; ids renumbered in order."""
    # One pixel in sixteen tells as a rule that all are there.
    for ids in (segments.id_map[..., ::4, ::4], segments.id_map):
        counts = torch.bincount(ids.flatten().clamp(min=0), minlength=len(segments) + 1)[1:]
        present = counts > 0
        if bool(present.all()):
            return segments
    new_ids = torch.cumsum(present, 0).to(torch.int32)
    # Ids -1 and 0 read the two last entries: void and background stay what they are.
    lookup = torch.cat([new_ids, torch.tensor([VOID, 0], dtype=torch.int32)])
    return replace(
        segments,
        id_map=lookup[segments.id_map.long() - 1],
        classes=segments.classes[present],
        is_thing=segments.is_thing[present],
        is_crowd=segments.is_crowd[present],
        scores=None if segments.scores is None else segments.scores[present],
    )


def collate(
    samples: Sequence[Sample], geometries: Sequence[Geometry], empty: Callable[..., Tensor] = torch.empty
) -> Batch:
    """Samples on one canvas, each padded right and bottom to the largest.

    Args:
        empty: makes the memory of images and id maps, from (size, dtype=): each sample is written right into it.
    """
    height = max(g.letterbox.canvas[0] for g in geometries)
    width = max(g.letterbox.canvas[1] for g in geometries)
    images = empty((len(samples), 3, height, width), dtype=torch.uint8)
    ids = empty((len(samples), height, width), dtype=torch.int32)
    letterboxes, truth = [], []
    for b, (sample, geometry) in enumerate(zip(samples, geometries, strict=True)):
        own_height, own_width = geometry.letterbox.canvas
        grown = geometry.padded(right=width - own_width, bottom=height - own_height)
        grown.image(sample.image, out=images[b])
        truth.append(grown.segments(sample.segments, out=ids[b] if sample.segments.id_map.ndim == 2 else None))
        letterboxes.append(grown.letterbox)
    return Batch(images, tuple(letterboxes), tuple(truth), tuple(s.name for s in samples))
