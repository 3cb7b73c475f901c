"""Line charts of training runs, drawn with Pillow: axes with round numbers, grid, legend, smooth lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .drawing import INK, PAPER, Color, text_width, write_text
from .errors import UsageError
from .labels import distinct_color

GRID, QUIET = (226, 228, 232), (110, 114, 120)
SERIES_COLORS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (170, 70, 140),
    (70, 70, 70),
    (200, 140, 0),
)
SHARPNESS = 2  # Everything is drawn this many times larger and reduced: that smooths lines and text alike.

Points = list[tuple[float, float]]
Range = tuple[float, float]


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    y_range: tuple[float, float] | None = None,
    *,
    size: tuple[int, int] = (960, 540),
) -> Image.Image:
    """A line chart of named (x, y) points; the legend tells the last value of each line.

    Points that are not finite are skipped, a single point becomes a dot, a series without points keeps its place in the
    legend.

    Args:
        y_range: bottom and top of the chart; by default what the points need.
        size: width and height in pixels.

    Raises:
        UsageError: `y_range` is no range.
    """
    lines = {name: _finite_points(points) for name, points in series.items()}
    width, height = (SHARPNESS * length for length in size)
    canvas = Image.new("RGB", (width, height), PAPER)
    text = max(11 * SHARPNESS, round(0.028 * min(width, height)))
    write_text(canvas, (text, text), title, round(1.4 * text), width=width - 2 * text)
    top = _draw_legend(canvas, lines, text, round(3.4 * text))
    x_axis, y_axis = _axes(lines, y_range)
    left = max(text_width(label, text) for label in y_axis.labels) + 2 * text
    right = width - text - text_width(x_axis.labels[-1], text) // 2
    frame = (left, top, right, height - round(2.6 * text))
    _draw_chart(canvas, frame, lines, x_axis, y_axis, text)
    return canvas.reduce(SHARPNESS)


@dataclass(frozen=True)
class Axis:
    """What one axis covers, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    @classmethod
    def over(cls, low: float, high: float, count: int) -> Axis:
        """About `count` ticks at round numbers between the limits."""
        step = nice_step(low, high, count)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = tuple(n * step for n in range(first, last + 1))
        return cls(low, high, ticks, _tick_labels(ticks, step) or ("",))

    def place(self, values: np.ndarray, start: int, end: int) -> np.ndarray:
        """Pixel positions; what lies far outside stays near, for drawing code that overflows."""
        share = (values - self.low) / (self.high - self.low)
        return start + np.clip(share, -99, 100) * (end - start)


def nice_step(low: float, high: float, count: int) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that cuts the span into at most `count` parts."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _tick_labels(ticks: Sequence[float], step: float) -> tuple[str, ...]:
    """As many decimals as the step needs; powers of ten where that would be long."""
    if step < 1e-4 or max(map(abs, ticks), default=0) >= 1e7:
        return tuple(f"{tick:.1e}" if tick else "0" for tick in ticks)
    decimals = next(n for n in range(7) if math.isclose(step, round(step, n), rel_tol=1e-6))
    return tuple(f"{tick + 0.0:,.{decimals}f}" for tick in ticks)


def _finite_points(points: Sequence[tuple[float, float]]) -> Points:
    # Beyond 1e100 the differences that axes are made of would overflow. No comparison with NaN holds.
    return [(float(x), float(y)) for x, y in points if abs(x) < 1e100 and abs(y) < 1e100]


def _axes(lines: Mapping[str, Points], y_range: Range | None) -> tuple[Axis, Axis]:
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    low, high = y_range or _span(ys, margin=0.06)
    if not -1e100 < low < high < 1e100:
        why = f"{low} to {high} is not a range"
        raise UsageError("cannot draw curves", where="y_range", why=why, fix="Pass (bottom, top) or None.")
    return Axis.over(*_span(xs, margin=0.0), 8), Axis.over(low, high, 6)


def _span(values: list[float], margin: float) -> Range:
    """Limits that hold all values; where they are all the same, or none, a span around them."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= max(1e-9 * abs(low), 1e-9 * abs(high), 1e-100):
        pad = abs(low) * 0.1 or 0.5
        return low - pad, high + pad
    pad = (high - low) * margin
    # A loss never falls below zero, and neither should its axis.
    return (0.0 if 0 <= low < pad else low - pad), high + pad


def _colors(lines: Mapping[str, Points]) -> list[Color]:
    # Darker than on photos, for a white ground.
    extra = [
        (red * 3 // 4, green * 3 // 4, blue * 3 // 4) for red, green, blue in map(distinct_color, range(len(lines)))
    ]
    return [*SERIES_COLORS, *extra][: len(lines)]


def _draw_legend(canvas: Image.Image, lines: Mapping[str, Points], text: int, top: int) -> int:
    """Entries side by side, wrapped; returns where the chart may begin."""
    draw, left, line = ImageDraw.Draw(canvas), text, round(1.7 * text)
    for (name, points), color in zip(lines.items(), _colors(lines), strict=True):
        label = f"{name}: {points[-1][1]:.4g}" if points else f"{name}: no points"
        width = min(text_width(label, text), canvas.width - 5 * text)
        if left > text and left + 2 * text + width > canvas.width - text:
            left, top = text, top + line
        draw.line((left, top + text // 2, left + 1.4 * text, top + text // 2), color, max(2, text // 5))
        write_text(canvas, (left + 2 * text, top + text // 2), label, text, width=width, anchor="lm")
        left += width + 4 * text
    return top + line + text // 2


def _draw_chart(
    canvas: Image.Image,
    frame: tuple[int, int, int, int],
    lines: Mapping[str, Points],
    x_axis: Axis,
    y_axis: Axis,
    text: int,
) -> None:
    """Grid, tick labels and lines; the lines have a picture of their own, which clips them to the frame."""
    left, top, right, bottom = frame
    right, bottom = max(right, left + 10), max(bottom, top + 10)
    plot = Image.new("RGB", (right - left, bottom - top), PAPER)
    draw = ImageDraw.Draw(plot)
    for x, label in zip(x_axis.place(np.array(x_axis.ticks), 0, plot.width), x_axis.labels, strict=False):
        draw.line((x, 0, x, plot.height), GRID, SHARPNESS)
        write_text(canvas, (left + x, bottom + text // 2), label, text, anchor="ma", fill=QUIET)
    for y, label in zip(y_axis.place(np.array(y_axis.ticks), plot.height, 0), y_axis.labels, strict=False):
        draw.line((0, y, plot.width, y), GRID, SHARPNESS)
        write_text(canvas, (left - text // 2, top + y), label, text, anchor="rm", fill=QUIET)
    for points, color in zip(lines.values(), _colors(lines), strict=True):
        _draw_line(draw, points, color, x_axis, y_axis, plot.size)
    canvas.paste(plot, (left, top))
    ImageDraw.Draw(canvas).line((left, top, left, bottom, right, bottom), INK, SHARPNESS)


def _draw_line(
    draw: ImageDraw.ImageDraw, points: Points, color: Color, x_axis: Axis, y_axis: Axis, size: tuple[int, int]
) -> None:
    if not points:
        return
    values = np.array(points)
    xs, ys = x_axis.place(values[:, 0], 0, size[0]), y_axis.place(values[:, 1], size[1], 0)
    places = np.stack([xs, ys], 1)
    if np.ptp(places, 0).max() < 1:
        draw.circle(tuple(places[0]), 4 * SHARPNESS, color)
    draw.line([tuple(place) for place in places.tolist()], color, 2 * SHARPNESS, joint="curve")
