"""The data doctor's report for a terminal: findings in words, what pixel values mean, and how much there is of what."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .datasets.check import Finding, Report, Severity
from .drawing import percent

STYLES = {Severity.FAULT: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
SHOWN_EXAMPLES = 3
SHOWN_ROWS = 24
"""Rows of a table; the JSON and the page have all of them."""


def print_report(report: Report, console: Console | None = None) -> None:
    """Print everything; the verdict comes last, where the eye is when the command ends."""
    console = console or Console()
    folder = report.survey.folder
    console.print(plain(f"{folder.root}: {folder.format} ({folder.why})"), soft_wrap=True)
    known = f", {report.reused:,} of them known from before" if report.reused else ""
    console.print(f"{report.counts} in {report.seconds:.1f} s{known}", highlight=False)
    for finding in report.findings:
        console.print()
        console.print(headline(finding))
        for line in body(finding, console.width):
            console.print(plain(line), soft_wrap=True)
    for table in tables(report):
        console.print()
        console.print(table)
    console.print()
    console.print(verdict(report))


def plain(text: str) -> Text:
    """Text as it is, without markup, and safe in UTF-8: file names may not be."""
    return Text(text.encode("utf-8", "replace").decode())


def headline(finding: Finding) -> Text:
    """Severity, name, title and number."""
    severity = finding.kind.severity
    text = Text(severity.name, STYLES[severity])
    text.append(f"  {finding.kind.name}", "bold")
    return text.append(f"  {finding.kind.title}: {finding.count:,}", "not bold")


def body(finding: Finding, width: int) -> Iterator[str]:
    """The particulars, an indented line each."""
    yield from _wrapped(finding.summary, "  ", width)
    yield from _wrapped(finding.kind.hurts, "  Why it hurts: ", width)
    yield from _wrapped(finding.kind.mend, "  What to do:   ", width)
    for example in finding.examples[:SHOWN_EXAMPLES]:
        yield from _wrapped(example.name + (f": {example.detail}" if example.detail else ""), "  - ", width)
    if more := finding.count - min(len(finding.examples), SHOWN_EXAMPLES):
        yield f"  - and {more:,} more" if finding.examples else ""


def _wrapped(text: str, start: str, width: int) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, width, initial_indent=start, subsequent_indent=" " * len(start))
        start = " " * len(start)


def tables(report: Report) -> Iterator[Table | Text]:
    """What pixel values mean, and the classes."""
    if report.values:
        rows = [[r.value, r.meaning, f"{r.pixels:,}", f"{r.images:,}"] for r in report.values if r.pixels]
        yield _table("What pixel values mean", ("value", "meaning", "pixels", "images"), rows)
    elif report.mask_note:
        yield Text(f"Masks: {report.mask_note}.")
    if report.classes:
        most = sorted(report.classes, key=lambda row: -row.pixels)
        things = any(row.objects for row in most)
        head = ("class", "of all pixels", "images", *(("objects", "median area", "smallest") if things else ()))
        rows = [[r.name, percent(r.share), f"{r.images:,}", *(_sizes(r) if things else ())] for r in most if r.pixels]
        yield _table("Classes and sizes (areas to a factor of 2)", head, rows)


def _sizes(row: object) -> tuple[str, str, str]:
    objects, median, smallest = (getattr(row, name) for name in ("objects", "median_area", "smallest_area"))
    return (f"{objects:,}", f"{median:,}", f"{smallest:,}") if objects else ("", "", "")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="left" if name in ("value", "meaning", "class") else "right")
    for row in rows[:SHOWN_ROWS]:
        table.add_row(*map(plain, row))
    if len(rows) > SHOWN_ROWS:
        table.add_row(Text(f"and {len(rows) - SHOWN_ROWS} more", "dim"))
    return table


def verdict(report: Report) -> Text:
    """One line: whether the data are fit for training."""
    text = report.verdict.capitalize() + "."
    return Text(f"{text} Mend the faults first.", "bold red") if report.faults else Text(text, "bold green")
