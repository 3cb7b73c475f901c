"""Chains of geometry steps for tests, and what each does to points and pixels: school geometry and NumPy, not ours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from everymask.transforms import Geometry

Array = np.ndarray[Any, Any]
Size = tuple[int, int]


@dataclass(frozen=True)
class Flip:
    vertical: bool

    def link(self, geometry: Geometry) -> Geometry:
        return geometry.flipped(vertical=self.vertical)

    def back(self, x: Array, y: Array, before: Size) -> tuple[Array, Array]:
        return (x, before[0] - 1 - y) if self.vertical else (before[1] - 1 - x, y)

    def pixels(self, values: Array, fill: int) -> Array:
        return np.flip(values, -2 if self.vertical else -1)


@dataclass(frozen=True)
class Turn:
    quarters: int

    def link(self, geometry: Geometry) -> Geometry:
        return geometry.turned(self.quarters)

    def back(self, x: Array, y: Array, before: Size) -> tuple[Array, Array]:
        height, width = before
        # What is at the right, x = W - 1, is at the top, y = 0, after one turn.
        return [(x, y), (width - 1 - y, x), (width - 1 - x, height - 1 - y), (y, height - 1 - x)][self.quarters % 4]

    def pixels(self, values: Array, fill: int) -> Array:
        return np.rot90(values, self.quarters, (-2, -1))


@dataclass(frozen=True)
class Crop:
    box: tuple[int, int, int, int]

    def link(self, geometry: Geometry) -> Geometry:
        return geometry.cropped(self.box)

    def back(self, x: Array, y: Array, before: Size) -> tuple[Array, Array]:
        return x + self.box[0], y + self.box[1]

    def pixels(self, values: Array, fill: int) -> Array:
        x0, y0, x1, y1 = self.box
        return values[..., y0:y1, x0:x1]


@dataclass(frozen=True)
class Pad:
    left: int
    top: int
    right: int
    bottom: int

    def link(self, geometry: Geometry) -> Geometry:
        return geometry.padded(left=self.left, top=self.top, right=self.right, bottom=self.bottom)

    def back(self, x: Array, y: Array, before: Size) -> tuple[Array, Array]:
        return x - self.left, y - self.top

    def pixels(self, values: Array, fill: int) -> Array:
        around = [(0, 0)] * (values.ndim - 2) + [(self.top, self.bottom), (self.left, self.right)]
        return np.pad(values, around, constant_values=fill)


@dataclass(frozen=True)
class Resize:
    size: Size

    def link(self, geometry: Geometry) -> Geometry:
        return geometry.resized(self.size)

    def back(self, x: Array, y: Array, before: Size) -> tuple[Array, Array]:
        return (x + 0.5) * before[1] / self.size[1] - 0.5, (y + 0.5) * before[0] / self.size[0] - 0.5


@dataclass(frozen=True)
class Warp:
    angle: float
    shear: float
    scale: float
    shift: tuple[float, float]

    def link(self, geometry: Geometry) -> Geometry:
        return geometry.warped(self.angle, shear=self.shear, scale=self.scale, shift=self.shift)

    def back(self, x: Array, y: Array, before: Size) -> tuple[Array, Array]:
        middle = (before[1] - 1) / 2, (before[0] - 1) / 2
        # The imaginary axis points upwards, so that multiplying by e^(i angle) turns counter-clockwise.
        z = (x - self.shift[0] - middle[0]) - 1j * (y - self.shift[1] - middle[1])
        z = z * np.exp(-1j * math.radians(self.angle)) / self.scale
        return z.real + math.tan(math.radians(self.shear)) * z.imag + middle[0], middle[1] - z.imag


Step = Flip | Turn | Crop | Pad | Resize | Warp


def linked(source: Size, chain: list[Step]) -> Geometry:
    """The chain as one geometry."""
    geometry = Geometry.whole(source)
    for step in chain:
        geometry = step.link(geometry)
    return geometry


def traced(source: Size, chain: list[Step]) -> tuple[Array, Array, Array]:
    """For every canvas pixel: the photo point x and y, step by step backwards, and its distance to the next place where
    it would be cut away (positive inside all canvases on the way, negative outside one of them)."""
    sizes = [source]
    for step in chain:
        sizes.append(linked(sizes[-1], [step]).letterbox.canvas)
    y, x = np.indices(sizes[-1]).astype(float)
    inside = np.full(sizes[-1], np.inf)
    for step, before in zip(reversed(chain), sizes[-2::-1], strict=True):
        x, y = step.back(x, y, before)
        room = [x + 0.5, before[1] - 0.5 - x, y + 0.5, before[0] - 0.5 - y]
        inside = np.minimum(inside, np.min(room, axis=0))
    return x, y, inside


def _window(draw: st.DrawFn, length: int) -> tuple[int, int]:
    start = draw(st.integers(0, length - 1))
    return start, draw(st.integers(start + 1, length))


def _step(draw: st.DrawFn, size: Size, straight: bool) -> Step:
    kind = draw(st.sampled_from([Flip, Turn, Crop, Pad] if straight else [Flip, Turn, Crop, Pad, Resize, Warp]))
    if kind is Flip:
        return Flip(draw(st.booleans()))
    if kind is Turn:
        return Turn(draw(st.integers(-3, 3)))
    if kind is Crop:
        (y0, y1), (x0, x1) = _window(draw, size[0]), _window(draw, size[1])
        return Crop((x0, y0, x1, y1))
    if kind is Pad:
        return Pad(*draw(st.tuples(*[st.integers(0, 12)] * 4)))
    if kind is Resize:
        return Resize(draw(st.tuples(st.integers(1, 60), st.integers(1, 60))))
    numbers = [draw(st.floats(low, high)) for low, high in ((-45, 45), (-20, 20), (0.6, 1.6), (-9, 9), (-9, 9))]
    return Warp(*numbers[:3], shift=(numbers[3], numbers[4]))


@st.composite
def chains(
    draw: st.DrawFn, straight: bool = False, longest: int = 6, source: Size | None = None
) -> tuple[Size, list[Step]]:
    """A photo's size and a chain; `straight` ones only rearrange pixels."""
    source = source or draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    chain: list[Step] = []
    for _ in range(draw(st.integers(0, longest))):
        chain.append(_step(draw, linked(source, chain).letterbox.canvas, straight))
    return source, chain
