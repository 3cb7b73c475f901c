"""An `Explanation` as pictures: a grid of five columns, and a page that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .drawing import contact_sheet
from .explain import AttentionView, Explanation, QueryView
from .files import write_text
from .gallery import STYLE
from .image import write_png

COLUMNS, CELL = 5, 320
MARK, OUTLINE = (255, 40, 40), (255, 255, 255)

HEAT = np.array(
    [(0, 32, 77), (35, 62, 108), (87, 93, 109), (124, 123, 120), (166, 157, 117), (211, 193, 100), (255, 234, 70)],
    np.float32,
)
"""From no attention to the most: cividis, which people with any colour vision read alike."""

Panel = tuple[str, Image.Image]
"""Title and picture."""


def grid(explanation: Explanation) -> Image.Image:
    """All panels in one picture: the photo and the encoder first, then a few rows for each query."""
    panels = [panel for row in sections(explanation) for panel in row]
    return contact_sheet([picture for _, picture in panels], [title for title, _ in panels], COLUMNS, CELL)


def save_explanation(explanation: Explanation, folder: Path, name: str) -> list[Path]:
    """Write ``<name>_explained.png`` and ``.html`` into `folder`; returns both.

    Raises:
        WriteError: a file cannot be written.
    """
    picture, page = (folder / f"{name}_explained{suffix}" for suffix in (".png", ".html"))
    write_png(picture, np.asarray(grid(explanation)))
    write_text(page, explanation_html(explanation, name))
    return [picture, page]


def sections(explanation: Explanation) -> Iterator[list[Panel]]:
    """The photo and the encoder's panels, then those of each query; each fills whole rows of the grid."""
    photo = thumbnail(explanation.photo)
    x, y = explanation.point
    if explanation.encoder:
        panels = [("photo, and where the encoder looks from", marked(photo, explanation))]
        panels += [
            (f"{attention.title} from {x:.0f}, {y:.0f}", marked(heated(photo, attention), explanation))
            for attention in explanation.encoder
        ]
        yield filled(panels)
    else:
        yield filled([("photo", photo)])
    for query in explanation.queries:
        title = f"{query.label} {query.score:.2f}"
        panels = [(title, masked(photo, query))]
        panels += [(f"{title}: {attention.title}", heated(photo, attention)) for attention in query.attention]
        yield filled(panels)


def filled(panels: list[Panel]) -> list[Panel]:
    """Empty panels at the end, so that the next section begins with a row."""
    empty = Image.new("RGBA", panels[0][1].size, (255, 255, 255, 255))
    return panels + [("", empty)] * (-len(panels) % COLUMNS)


def thumbnail(photo: np.ndarray) -> Image.Image:
    """The photo at the width of a panel."""
    height = max(1, round(photo.shape[0] * CELL / photo.shape[1]))
    return Image.fromarray(photo).resize((CELL, min(height, 4 * CELL)), Image.Resampling.LANCZOS)


def heated(photo: Image.Image, attention: AttentionView) -> Image.Image:
    """Attention in colours over the photo in grey, each map by its own maximum."""
    weights = attention.resampled(photo.size[::-1])
    shares = (weights / weights.max().clamp(min=1e-12)).clamp(0, 1).numpy() * (len(HEAT) - 1)
    low = np.minimum(shares.astype(int), len(HEAT) - 2)
    colors = HEAT[low] + (shares - low)[..., None] * (HEAT[low + 1] - HEAT[low])
    grey = np.asarray(photo.convert("L"), np.float32)[..., None]
    return Image.fromarray(np.round(0.75 * colors + 0.25 * grey).astype(np.uint8))


def masked(photo: Image.Image, query: QueryView) -> Image.Image:
    """The photo, dark where the mask is not, with the box."""
    mask = resized(query.mask, photo.size[::-1])[..., None]
    pixels = np.asarray(photo, np.float32) * (0.2 + 0.8 * mask)
    picture = Image.fromarray(np.round(pixels).astype(np.uint8))
    if query.box:
        x0, x1 = sorted(float(np.clip(x * picture.width, 1, picture.width - 2)) for x in query.box[::2])
        y0, y1 = sorted(float(np.clip(y * picture.height, 1, picture.height - 2)) for y in query.box[1::2])
        ImageDraw.Draw(picture).rectangle((x0, y0, x1, y1), outline=OUTLINE, width=2)
    return picture


def resized(mask: Tensor, size: tuple[int, int]) -> Any:
    """[h, w] as an array [H, W]."""
    return torch.nn.functional.interpolate(mask[None, None], size=size, mode="bilinear", antialias=True)[0, 0].numpy()


def marked(picture: Image.Image, explanation: Explanation) -> Image.Image:
    """A cross at the point that the encoder looks from."""
    height, width = explanation.photo.shape[:2]
    x = (explanation.point[0] + 0.5) * picture.width / width
    y = (explanation.point[1] + 0.5) * picture.height / height
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for thick, color in ((5, OUTLINE), (2, MARK)):
        draw.line((x - 8, y, x + 8, y), color, thick)
        draw.line((x, y - 8, x, y + 8), color, thick)
    return picture


def explanation_html(explanation: Explanation, name: str) -> str:
    """A page with every panel in it, readable without another file, a server or a script."""
    articles = "\n".join(_article(panels) for panels in sections(explanation))
    title = escape(f"Where the model looked: {name}".encode("utf-8", "replace").decode())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}
.grid {{ display: grid; grid-template-columns: repeat({COLUMNS}, 1fr); gap: 10px; align-items: start; }}
@media (max-width: 700px) {{ .grid {{ grid-template-columns: repeat(2, 1fr); }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Attention runs from blue (none) to yellow (the most of that picture).</p>
{articles}
</body>
</html>
"""


def _article(panels: list[Panel]) -> str:
    figures = "\n".join(_figure(title, picture) for title, picture in panels if title)
    return f'<article>\n<h2>{escape(panels[0][0])}</h2>\n<div class="grid">\n{figures}\n</div>\n</article>'


def _figure(title: str, picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    text = escape(title)
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
