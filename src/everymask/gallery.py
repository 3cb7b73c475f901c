"""A web page of results: photo, overlay, cut-out, table and files of each, readable without a server or a script."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from .drawing import percent
from .maps import segment_colors
from .result import Result
from .save import segment_rows

SHOWN_ROWS = 12
PHOTO_WIDTH = 960

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c1e21; --quiet: #5f6670; --line: #e2e5ea;
  --link: #0b57d0; --check: #d9dce1; --ground: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --page: #121417; --card: #1c1f24; --ink: #e8eaed; --quiet: #9aa3ad;
  --line: #2e333a; --link: #8ab4f8; --check: #3a3f46; --ground: #2a2e34; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 24px 16px 48px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
p { margin: 0; color: var(--quiet); white-space: pre-line; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px;
  margin-top: 20px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); gap: 12px;
  align-items: start; }
figure { margin: 0; min-width: 0; }
figcaption, .quiet { color: var(--quiet); font-size: .85rem; }
img { display: block; width: 100%; height: auto; border-radius: 8px; }
.checks { background: repeating-conic-gradient(var(--check) 0 25%, var(--ground) 0 50%) 0 0 / 20px 20px; }
table { width: 100%; border-collapse: collapse; margin: 14px 0 8px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--quiet); font-size: .85rem; font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .5em; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .85rem; margin-top: 6px; }
"""


def gallery_html(title: str, results: Sequence[tuple[Result, Sequence[Path]]], note: str = "") -> str:
    """The text of an `index.html` that shows results beside the files that `save_result` wrote for them.

    Files are linked by name, so the page belongs into their folder. The photo is part of the page, because its own file
    may be anywhere, or gone.

    Args:
        results: each result with the paths of its files.
        note: a line below the title; line breaks are kept.
    """
    cards = "\n".join(_card(result, files) for result, files in results)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<p>{_text(note)}</p>
{cards or '<article class="quiet">No results.</article>'}
</body>
</html>
"""


def _card(result: Result, files: Sequence[Path]) -> str:
    pictures = [_figure(_photo_data(result), "photo", result.name)]
    for end, caption, style in (("_overlay.jpg", "overlay", ""), ("_cutout.png", "cut-out", "checks")):
        pictures += [_figure(_link(file), caption, result.name, style) for file in files if file.name.endswith(end)]
    height, width = result.segments.size
    return f"""<article>
<h2>{_text(result.name)} <span class="quiet">{width} x {height}</span></h2>
<div class="pictures">
{"".join(pictures)}</div>
{_table(result)}
<div class="quiet">{_timings(result)}</div>
<nav>{" ".join(f'<a href="{_link(file)}">{_text(file.name)}</a>' for file in files)}</nav>
</article>"""


def _figure(source: str, caption: str, name: str, style: str = "") -> str:
    alt = _text(f"{caption} of {name}")
    return (
        f'<figure><img class="{style}" src="{source}" alt="{alt}" loading="lazy">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _photo_data(result: Result) -> str:
    photo, file = Image.fromarray(result.photo), io.BytesIO()
    photo.thumbnail((PHOTO_WIDTH, 4 * PHOTO_WIDTH))
    photo.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _link(file: Path) -> str:
    return escape(quote(os.fsencode(file.name)))


def _text(value: str) -> str:
    """Safe in HTML and in UTF-8: file names may be neither."""
    return escape(value.encode("utf-8", "replace").decode())


def _table(result: Result) -> str:
    """The largest segments; a line says how many more there are."""
    colors = segment_colors(result.segments).tolist()
    rows = sorted((row for row in segment_rows(result.segments) if row["area"]), key=lambda row: -row["area"])
    if not rows:
        return '<p class="quiet">Nothing found.</p>'
    body = "".join(_row(row, colors[row["id"] - 1]) for row in rows[:SHOWN_ROWS])
    more = f'<p class="quiet">and {len(rows) - SHOWN_ROWS} more segments</p>' if len(rows) > SHOWN_ROWS else ""
    return (
        f"<table>\n<tr><th>segment</th><th>score</th><th>pixels</th><th>of the image</th></tr>\n{body}</table>\n{more}"
    )


def _row(row: dict[str, Any], color: Sequence[int]) -> str:
    crowd = " (crowd)" if row["is_crowd"] else ""
    score = "–" if row["score"] is None else f"{row['score']:.2f}"
    return (
        f'<tr><td><i style="background:rgb{tuple(color)}"></i>{_text(row["label"])}{crowd}</td>'
        f"<td>{score}</td><td>{row['area']:,}</td><td>{_text(percent(row['share']))}</td></tr>\n"
    )


def _timings(result: Result) -> str:
    return " · ".join(f"{_text(stage)} {1000 * seconds:,.0f} ms" for stage, seconds in result.timings.items())
