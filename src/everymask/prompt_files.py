"""Explicit prompts on disk: one JSON line a sample, to diff, and a contact sheet, to look at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .drawing import INK, Array, Color, contact_sheet
from .errors import UsageError
from .files import write_text
from .image import write_png
from .maps import segment_areas, segment_boxes, segment_colors
from .prompts import BOTTOM_RIGHT, NEGATIVE, POSITIVE, TOP_LEFT, PromptSettings, draw_prompts, objects_of
from .types import Prompts, Sample, Segments
from .visualize import overlay

SHOWN = 24
"""Samples on a contact sheet, spread over the data."""

CELL = 400
"""Pixels: width of a picture on it."""

GOOD, BAD, RIM = (0, 200, 83), (213, 0, 0), (255, 255, 255)


def save_prompts(
    samples: Iterable[Sample],
    count: int,
    out: Path,
    settings: PromptSettings,
    *,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[int, int]:
    """Write the prompts of `count` samples to `out`, and a contact sheet of some beside it, as PNG.

    The file is JSON with one line a sample, in their order: the same data, settings and seed give the same bytes.

    Args:
        progress: called with the samples done.

    Returns:
        objects that have prompts, and points (a box counts two).

    Raises:
        UsageError: `out` does not end in .json.
        ImageError, DataError: a sample cannot be read; nothing is written then.
        WriteError: the system refuses.
    """
    if out.suffix != ".json":
        raise UsageError("prompts are written as JSON", where=out, why=f"it ends in {out.suffix or 'nothing'}")
    step, lines, shown = max(1, -(-count // SHOWN)), list[str](), list[tuple[str, Image.Image]]()
    objects_seen = points_seen = 0
    for index, sample in enumerate(samples):
        objects = objects_of(sample.segments, settings.by)
        prompts = draw_prompts(objects, settings, seed, sample.name)
        lines.append(json.dumps(row(sample, objects, prompts)))
        if index % step == 0:
            shown.append((sample.name, picture(sample.image, objects, prompts)))
        objects_seen, points_seen = objects_seen + len(prompts.objects.unique()), points_seen + len(prompts)
        progress(index + 1)
    head = json.dumps({"settings": {**asdict(settings), "seed": seed}})
    write_text(out, f'{head[:-1]}, "samples": [\n' + ",\n".join(lines) + "\n]}\n")
    if shown:
        names, pictures = zip(*shown, strict=True)
        write_png(out.with_suffix(".png"), np.asarray(contact_sheet(pictures, names, cell=CELL)))
    return objects_seen, points_seen


def row(sample: Sample, objects: Segments, prompts: Prompts) -> dict[str, Any]:
    """A line of the file: the objects with class, area and tight box; the points, their labels and whose they are."""
    table = zip(objects, segment_areas(objects).tolist(), segment_boxes(objects), strict=True)
    return {
        "name": sample.name,
        "photo": photo_digest(sample.image),
        "size": list(objects.size),
        "objects": [{"class": segment.label, "area": area, "box": box} for segment, area, box in table],
        "points": [[_short(x), _short(y)] for x, y in prompts.points.tolist()],
        "labels": prompts.labels.tolist(),
        "of": prompts.objects.tolist(),
    }


def photo_digest(photo: Array) -> str:
    """Of the pixels uint8 [H, W, 3]: what tells whether prompts belong to a photo."""
    return hashlib.blake2b(np.ascontiguousarray(photo).data, digest_size=8).hexdigest()


def _short(value: float) -> float:
    """To hundredths of a pixel, whole numbers without a point."""
    return int(value) if value == int(value) else round(value, 2)


def picture(photo: Array, objects: Segments, prompts: Prompts, width: int = CELL) -> Image.Image:
    """The photo with its objects and their boxes, positives as green discs and negatives as red crosses."""
    scale = width / photo.shape[1]
    size = width, max(1, round(photo.shape[0] * scale))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    canvas = overlay(photo, objects, opacity=0.4, legend=False).resize(size, method)
    pen, colors = ImageDraw.Draw(canvas), segment_colors(objects).tolist()
    places = (prompts.points.numpy() + 0.5) * scale
    labels, rows = prompts.labels.numpy(), prompts.objects.tolist()
    starts, ends = (places[labels == label] for label in (TOP_LEFT, BOTTOM_RIGHT))
    # From outer edge to outer edge of the corner pixels.
    for (x0, y0), (x1, y1), n in zip(starts - scale / 2, ends + scale / 2, _of(rows, labels), strict=True):
        pen.rectangle((x0 - 1, y0 - 1, x1, y1), outline=INK, width=3)
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=tuple(colors[n]), width=2)
    for label, mark, color in ((NEGATIVE, _cross, BAD), (POSITIVE, _disc, GOOD)):
        for x, y in places[labels == label].tolist():
            mark(pen, x, y, color)
    return canvas


def _of(rows: list[int], labels: Array) -> list[int]:
    """The objects of the boxes."""
    return [n for n, label in zip(rows, labels, strict=True) if label == TOP_LEFT]


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, color: Color) -> None:
    pen.ellipse((x - 4, y - 4, x + 4, y + 4), color, RIM)


def _cross(pen: ImageDraw.ImageDraw, x: float, y: float, color: Color) -> None:
    for width, ink in ((5, RIM), (3, color)):
        pen.line((x - 4, y - 4, x + 4, y + 4), ink, width)
        pen.line((x - 4, y + 4, x + 4, y - 4), ink, width)
