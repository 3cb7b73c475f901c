"""Drawing that knows nothing of segmentation: lines of text, legends, hatches, checkerboards, contact sheets.

Text is set in Pillow's own font, so that pictures look alike on every machine.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

from .errors import UsageError

Array = np.ndarray[Any, np.dtype[Any]]
Color = tuple[int, int, int]

PAPER, INK = (255, 255, 255), (32, 33, 36)
HATCH_LIGHT, HATCH_DARK = (235, 235, 235), (70, 70, 70)
BUILTIN_GLYPHS = frozenset(string.printable + "…·—")

Row = tuple[Color, bool, str]
"""Swatch colour, whether it is hatched, text."""


def with_legend(picture: Image.Image, rows: Sequence[Row]) -> Image.Image:
    """The picture with a strip below it, at least 200 pixels wide so that text fits under the smallest image.

    What does not fit into the height of 6 lines or 40 % of the picture is counted in a last entry.
    """
    width = max(picture.width, 200)
    size = max(12, min(round(20 * image_scale(picture.size)), width // 14))
    line, texts = round(size * 1.6), [text for _, _, text in rows]
    column = min(width - size, max((text_width(text, size) for text in texts), default=0) + 3 * size)
    columns = max(1, (width - size) // column)
    room = columns * max(6, int(0.4 * picture.height / line))
    if len(rows) > room:
        rows = [*rows[: room - 1], (PAPER, False, f"and {len(rows) - room + 1} more")]
    height = -(-len(rows) // columns) * line + size
    sheet = Image.new("RGB", (width, picture.height + height), PAPER)
    sheet.paste(picture, (0, 0))
    for n, (color, hatched, text) in enumerate(rows):
        left, top = size // 2 + n % columns * column, picture.height + size // 2 + n // columns * line
        sheet.paste(_swatch(color, hatched, size), (left, top + (line - size) // 2))
        write_text(sheet, (left + round(size * 1.5), top + line // 2), text, size, width=column - 2 * size, anchor="lm")
    return sheet


def _swatch(color: Color, hatched: bool, size: int) -> Image.Image:
    tile = np.full((size, size, 3), PAPER if hatched else color, np.uint8)
    if hatched:
        stripe = stripes((size, size), max(6, size // 2))
        tile[stripe == 1], tile[stripe == 2] = color, HATCH_DARK
    return Image.fromarray(tile)


def write_text(
    picture: Image.Image,
    at: tuple[float, float],
    text: str,
    size: int,
    *,
    width: float = math.inf,
    anchor: str = "la",
    fill: Color = INK,
) -> None:
    """Write one line at a point; what is wider than `width` is cut with an ellipsis. Anchors are those of Pillow."""
    text = " ".join(text.split())
    if text_width(text, size) > width:
        cut = next((n for n in range(len(text) - 1, 0, -1) if text_width(text[:n] + "…", size) <= width), 0)
        text = text[:cut].rstrip() + "…" * (cut > 0)
    ImageDraw.Draw(picture).text(at, text, fill, _font(text, size), anchor)


def text_width(text: str, size: int) -> int:
    """Pixels that `write_text` takes for one line."""
    return math.ceil(_font(text, size).getlength(text))


def percent(share: float) -> str:
    """A share of 0..1 for people: what is there is never written as 0.0%."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return _builtin_font(size) if BUILTIN_GLYPHS.issuperset(text) else _system_font(size)


@lru_cache(32)
def _builtin_font(size: int) -> Any:
    return ImageFont.load_default(size)


@lru_cache(32)
def _system_font(size: int) -> Any:
    """For letters that Pillow's own font lacks: a common font with many scripts, if the machine has one."""
    for name in ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "DejaVuSans.ttf", "arial.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return _builtin_font(size)


def stripes(size: tuple[int, int], period: int) -> Array:
    """uint8 [H, W] diagonal stripes: 1 a light line, 2 the dark line beside it (one shows on any ground), 0 between."""
    (height, width), thick = size, max(1, period // 6)
    line = np.zeros(width + 2 * period, np.uint8)
    for start in range(0, len(line), period):
        line[start : start + thick], line[start + thick : start + 2 * thick] = 1, 2
    return sliding_window_view(line, width)[np.arange(height) % period]


def image_scale(size: tuple[int, int]) -> float:
    """1 for an image of a megapixel: what line widths and text grow with. The side alone would mislead on panoramas."""
    return math.sqrt(size[0] * size[1]) / 1000


def contact_sheet(
    images: Sequence[Image.Image | Array], captions: Sequence[str], columns: int = 4, cell: int = 320
) -> Image.Image:
    """Pictures in a grid, each shrunk to `cell` pixels of width, with its caption above. Transparency shows as checks.

    Raises:
        UsageError: no pictures, or not one caption for each.
    """
    if not images or len(images) != len(captions) or columns < 1:
        why = f"{len(images)} pictures, {len(captions)} captions, {columns} columns"
        raise UsageError("cannot make a contact sheet", why=why, fix="Pass one caption a picture, and at least one.")
    gap, text = max(6, cell // 32), max(12, cell // 22)
    thumbs = [_thumbnail(image, cell) for image in images]
    rows = [range(start, min(start + columns, len(thumbs))) for start in range(0, len(thumbs), columns)]
    heights = [max(thumbs[n].height for n in row) + 2 * text for row in rows]
    used = min(columns, len(thumbs))
    sheet = Image.new("RGB", (used * cell + (used + 1) * gap, sum(heights) + gap * (len(rows) + 1)), PAPER)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, n in enumerate(row):
            left = gap + column * (cell + gap)
            write_text(sheet, (left, top + text // 3), captions[n], text, width=cell)
            sheet.paste(thumbs[n], (left, top + 2 * text))
        top += height + gap
    return sheet


def _thumbnail(image: Image.Image | Array, width: int) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return on_checkerboard(picture) if picture.mode == "RGBA" else picture.convert("RGB")


def on_checkerboard(picture: Image.Image, square: int = 10) -> Image.Image:
    """RGB: a picture with transparency over grey checks."""
    rows, columns = (np.arange(length) // square for length in picture.size[::-1])
    checks = np.where(np.add.outer(rows, columns) % 2, 214, 245).astype(np.uint8)
    ground = Image.fromarray(checks).convert("RGB")
    ground.paste(picture, mask=picture)
    return ground
