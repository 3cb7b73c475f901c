"""Affine maps of the plane, boxes and the lines that bound them: the algebra under `Geometry`.

Points are those of the whole library: (x, y), pixel centres at integers, y downwards. Angles are degrees
counter-clockwise as seen on the screen, like those of `numpy.rot90` and Pillow.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Coordinate = TypeVar("Coordinate", float, Tensor)

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""

TINY = 1e-6
"""Pixels: differences that only rounding makes."""


class Affine(NamedTuple):
    """(x, y) to (a x + b y + c, d x + e y + f)."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @classmethod
    def shift(cls, x: float, y: float) -> Affine:
        """By so many pixels."""
        return cls(c=x, f=y)

    @classmethod
    def resize(cls, x: float, y: float) -> Affine:
        """Every pixel becomes x by y pixels large; the top left edge of the image, (-0.5, -0.5), stays."""
        return cls(a=x, c=(x - 1) / 2, e=y, f=(y - 1) / 2)

    @classmethod
    def about(cls, center: tuple[float, float], angle: float, shear: float = 0.0, scale: float = 1.0) -> Affine:
        """Scaled, then sheared along x, then turned; `center` stays. `angle` and `shear` in degrees."""
        cosine, sine = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
        slope = math.tan(math.radians(shear))
        turned = cls(a=cosine, b=cosine * slope + sine, d=-sine, e=-sine * slope + cosine)
        return cls.shift(-center[0], -center[1]).then(turned).then(cls.shift(*center))

    @classmethod
    def quarter_turns(cls, turns: int, size: tuple[int, int]) -> Affine:
        """An image of `size` (H, W) turned by 90 degrees so many times, exactly."""
        height, width = size
        bottom, right = height - 1.0, width - 1.0
        return (
            cls(),
            cls(a=0.0, b=1.0, d=-1.0, e=0.0, f=right),
            cls(a=-1.0, c=right, e=-1.0, f=bottom),
            cls(a=0.0, b=-1.0, c=bottom, d=1.0, e=0.0),
        )[turns % 4]

    def then(self, other: Affine) -> Affine:
        """This map followed by `other`."""
        a, b, c, d, e, f = self
        return Affine(
            other.a * a + other.b * d,
            other.a * b + other.b * e,
            other.a * c + other.b * f + other.c,
            other.d * a + other.e * d,
            other.d * b + other.e * e,
            other.d * c + other.e * f + other.f,
        )

    def inverse(self) -> Affine:
        """The map back."""
        a, b, c, d, e, f = self
        determinant = a * e - b * d
        a, b, d, e = e / determinant, -b / determinant, -d / determinant, a / determinant
        return Affine(a, b, -(a * c + b * f), d, e, -(d * c + e * f))

    def at(self, x: Coordinate, y: Coordinate) -> tuple[Coordinate, Coordinate]:
        """Where the point (x, y) goes: numbers, or tensors of any one shape."""
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def points(self, points: Tensor) -> Tensor:
        """Points [..., 2] moved; whole numbers become floats."""
        return torch.stack(self.at(points[..., 0], points[..., 1]), dim=-1)

    @property
    def scale(self) -> tuple[float, float]:
        """How long a step of one pixel along x, and one along y, becomes."""
        return math.hypot(self.a, self.d), math.hypot(self.b, self.e)


IDENTITY = Affine()


class Edge(NamedTuple):
    """The half-plane u x + v y + w >= 0 of the points (x, y)."""

    u: float
    v: float
    w: float

    def before(self, matrix: Affine) -> Edge:
        """The points that `matrix` moves into this half-plane."""
        a, b, c, d, e, f = matrix
        return Edge(self.u * a + self.v * d, self.u * b + self.v * e, self.u * c + self.v * f + self.w)

    def holds(self, x: Tensor, y: Tensor) -> Tensor:
        """bool [...]: whether the points (x, y) are in it."""
        return self.u * x + self.v * y + self.w >= -TINY

    def holds_all(self, points: list[tuple[float, float]]) -> bool:
        """Whether all points are in it, and with them whatever convex shape has these corners."""
        return all(self.u * x + self.v * y + self.w >= -TINY for x, y in points)


def box_edges(box: Box) -> list[Edge]:
    """The four half-planes whose common part is the box, outer edges of its pixels included."""
    x0, y0, x1, y1 = box
    return [Edge(1, 0, 0.5 - x0), Edge(-1, 0, x1 - 0.5), Edge(0, 1, 0.5 - y0), Edge(0, -1, y1 - 0.5)]


def box_corners(box: Box, matrix: Affine = IDENTITY) -> list[tuple[float, float]]:
    """Where `matrix` moves the outer corners of the box's corner pixels."""
    x0, y0, x1, y1 = box
    return [matrix.at(x - 0.5, y - 0.5) for x in (x0, x1) for y in (y0, y1)]


def common(one: Box, other: Box) -> Box | None:
    """The pixels of both boxes; None where there are none."""
    x0, y0, x1, y1 = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
