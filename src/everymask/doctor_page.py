"""The data doctor's report as one web page that needs no other file: findings with pictures, values, classes, sizes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from .datasets.base import PairDataset
from .datasets.check import Example, Finding, Report, kinds
from .datasets.check.masks import ramps
from .datasets.check.survey import Survey
from .datasets.classes import ClassTable
from .drawing import percent
from .errors import EverymaskError
from .gallery import STYLE
from .image import read_image, read_mask
from .labels import distinct_color, packed
from .maps import VOID_COLOR
from .visualize import overlay

PICTURED = 3
"""Examples of each finding that are shown as pictures; the others are named."""

WIDTH = 420
ZOOMED, ZOOM = 48, 6
"""Side in pixels of the part of a mask that is enlarged, and how many times."""

OF_EDGES = (kinds.ANTIALIASED_MASK, kinds.LOSSY_MASK, kinds.RESAMPLED_LABELS, kinds.UNKNOWN_VALUE)
"""What only shows when enlarged."""

STRANGE = (255, 0, 220)
"""Pixels of values that the class table does not know."""

FINDING_STYLE = """
.fault { border-left: 6px solid #d93025; } .warning { border-left: 6px solid #f29900; }
.note { border-left: 6px solid #1a73e8; }
h2 code { font-size: 1rem; } ul { margin: 8px 0; padding-left: 20px; }
dl { margin: 8px 0; } dt { color: var(--quiet); font-size: .85rem; } dd { margin: 0 0 6px; }
.bar { display: inline-block; height: .7em; border-radius: 3px; background: var(--link); vertical-align: middle; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
img.zoom { image-rendering: pixelated; }
"""


def report_html(report: Report) -> str:
    """The text of the page; its pictures are part of it."""
    folder = report.survey.folder
    title = f"{folder.root.resolve().name}: {report.verdict}"
    about = f"{folder.root}\nformat {folder.format}: {folder.why}\n{report.counts}"
    cards = "\n".join(_finding_card(finding, report.survey) for finding in report.findings)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{STYLE}{FINDING_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<p>{_text(about)}</p>
{cards or '<article class="quiet">Nothing found.</article>'}
{_values_card(report)}
{_classes_card(report)}
</body>
</html>
"""


def _text(value: str) -> str:
    """Safe in HTML and in UTF-8: file names may be neither."""
    return escape(value.encode("utf-8", "replace").decode())


# --- findings --------------------------------------------------------------------------------------------------------


def _finding_card(finding: Finding, survey: Survey) -> str:
    kind = finding.kind
    summary = f"<dd>{_text(finding.summary)}</dd>".replace("\n", "<br>") if finding.summary else ""
    zoomed = kind in OF_EDGES
    pictured = "".join(_example_html(example, survey, zoomed) for example in finding.examples[:PICTURED])
    rest = finding.examples[PICTURED:]
    names = "".join(f"<li>{_text(_line(example))}</li>" for example in rest)
    more = finding.count - len(finding.examples)
    names += f"<li>and {more:,} more</li>" if more > 0 and finding.examples else ""
    return f"""<article class="{kind.severity.name.lower()}">
<h2>{kind.severity.name.capitalize()}: {_text(kind.title)} <span class="quiet">{finding.count:,}</span>
<code class="quiet">{kind.name}</code></h2>
<dl>{summary}<dt>Why it hurts</dt><dd>{_text(kind.hurts)}</dd><dt>What to do</dt><dd>{_text(kind.mend)}</dd></dl>
{pictured}<ul>{names}</ul>
</article>"""


def _line(example: Example) -> str:
    return f"{example.name}: {example.detail}" if example.detail else example.name


def _example_html(example: Example, survey: Survey, zoomed: bool) -> str:
    figures = "".join(_figure(*figure) for figure in _pictures(example, survey, zoomed))
    return f'<p>{_text(_line(example))}</p>\n<div class="pictures">{figures}</div>\n'


def _figure(picture: Image.Image, caption: str, style: str) -> str:
    return (
        f'<figure><img class="{style}" src="{_data(picture)}" alt="{_text(caption)}" loading="lazy">'
        f"<figcaption>{_text(caption)}</figcaption></figure>\n"
    )


def _data(picture: Image.Image) -> str:
    """The picture as a data address: PNG where it has few colours, as masks have."""
    file = io.BytesIO()
    if picture.getcolors(256):
        picture.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    picture.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# --- pictures --------------------------------------------------------------------------------------------------------

Picture = tuple[Image.Image, str, str]
"""Picture, caption, style."""


def _pictures(example: Example, survey: Survey, zoomed: bool) -> Iterator[Picture]:
    """What can be shown of an example; files that cannot be read show nothing."""
    part, index = survey.locate(example.number) if example.number is not None else (None, 0)
    if part is None:
        yield from _photos(example.files)
    elif part.pairs is None:
        yield from _sample(part.dataset, index, example.files)
    else:
        photo, mask = example.files
        yield from _photos([photo])
        yield from _mask(mask, part.dataset if isinstance(part.dataset, PairDataset) else None, zoomed)


def _photos(files: Iterable[Path]) -> Iterator[Picture]:
    for path in files:
        try:
            yield _small(Image.fromarray(read_image(path))), path.name, ""
        except EverymaskError:
            continue


def _sample(dataset: object, index: int, files: Sequence[Path]) -> Iterator[Picture]:
    try:
        sample = dataset[index]  # type: ignore[index]
        yield _small(overlay(sample.image, sample.segments)), sample.name, ""
    except EverymaskError:
        yield from _photos(files[:1])


def _mask(path: Path, dataset: PairDataset | None, zoomed: bool) -> Iterator[Picture]:
    try:
        mask = read_mask(path)
    except EverymaskError:
        yield from _photos([path])  # Lossy or transparent, it may still be looked at.
        return
    table = dataset.mask_table(mask, path) if dataset else None
    colors, strange = paint(mask, table)
    yield _small(Image.fromarray(colors), Image.Resampling.NEAREST), path.name, ""
    if zoomed and min(mask.shape[:2]) > ZOOMED and strange.any():
        yield _enlarged(colors, strange), "enlarged", "zoom"


def paint(mask: np.ndarray, table: ClassTable | None) -> tuple[np.ndarray, np.ndarray]:
    """A mask in colours uint8 [H, W, 3], and what is strange about it, bool [H, W].

    Values of the table have their classes' colours and unknown ones `STRANGE`; without a table every value has one of
    its own. Strange are unknown values, and in a table of numbers those between their neighbours.
    """
    if mask.ndim == 3:
        known = list(table.labels.pixel_classes()) if table and table.by_color else []
        return mask, ~np.isin(packed(mask), known) if known else np.zeros(mask.shape[:2], bool)
    values, where = np.unique(mask, return_inverse=True)
    colors = np.array([_color(value, table) for value in values.tolist()], np.uint8)
    if table is None:
        return colors[where.reshape(mask.shape)], np.zeros(mask.shape, bool)
    unknown = ~np.isin(mask, list(table.labels.pixel_classes()))
    return colors[where.reshape(mask.shape)], unknown if unknown.any() else ramps(mask)


def _color(value: int, table: ClassTable | None) -> tuple[int, int, int]:
    if table is None:
        return distinct_color(value) if value else (0, 0, 0)
    k = table.labels.pixel_classes().get(value)
    if k is None:
        return STRANGE
    if not 0 <= k < len(table.labels):
        return VOID_COLOR if k < 0 else (0, 0, 0)
    return table.labels[k].color if any(table.labels[k].color) else distinct_color(k)


def _enlarged(colors: np.ndarray, strange: np.ndarray) -> Image.Image:
    """The part of a mask with the most strange pixels."""
    sums = np.pad(strange.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[ZOOMED:, ZOOMED:] - sums[:-ZOOMED, ZOOMED:] - sums[ZOOMED:, :-ZOOMED] + sums[:-ZOOMED, :-ZOOMED]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    part = colors[y : y + ZOOMED, x : x + ZOOMED]
    return Image.fromarray(part.repeat(ZOOM, 0).repeat(ZOOM, 1))


def _small(picture: Image.Image, filter: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    picture = picture.convert("RGB")
    scale = WIDTH / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), filter)


# --- tables ----------------------------------------------------------------------------------------------------------


def _values_card(report: Report) -> str:
    if not report.values:
        return f'<article class="quiet">Masks: {_text(report.mask_note)}.</article>' if report.mask_note else ""
    rows = "".join(
        f"<tr><td>{_swatch(row.value, report)}{_text(row.value)}</td><td>{_text(row.meaning)}</td>"
        f"<td>{row.pixels:,}</td><td>{row.images:,}</td></tr>\n"
        for row in report.values
    )
    head = "<tr><th>value</th><th>meaning</th><th>pixels</th><th>images</th></tr>"
    return f"<article><h2>What pixel values mean</h2><table>{head}\n{rows}</table></article>"


def _swatch(value: str, report: Report) -> str:
    if value.startswith("#"):
        return f'<i style="background:{value}"></i>'
    labels = report.survey.labels
    color = _color(int(value), ClassTable(labels)) if labels and labels.pixel_classes() else (128, 128, 128)
    return f'<i style="background:rgb{color}"></i>'


def _classes_card(report: Report) -> str:
    if not report.classes:
        return ""
    most = max(row.share for row in report.classes) or 1
    rows = "".join(
        f"<tr><td>{_text(row.name)}</td>"
        f'<td><span class="bar" style="width:{160 * row.share / most:.0f}px"></span> {_text(percent(row.share))}</td>'
        f"<td>{row.pixels:,}</td><td>{row.images:,}</td><td>{_some(row.objects)}</td>"
        f"<td>{_some(row.median_area)}</td><td>{_some(row.smallest_area)}</td></tr>\n"
        for row in sorted(report.classes, key=lambda row: -row.pixels)
    )
    head = "".join(f"<th>{name}</th>" for name in (
        "class", "of all pixels", "pixels", "images", "objects", "median area", "smallest area"))  # fmt: skip
    return f"<article><h2>Classes and sizes</h2><table><tr>{head}</tr>\n{rows}</table></article>"


def _some(number: int) -> str:
    return f"{number:,}" if number else ""
