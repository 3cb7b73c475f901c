"""Run the benchmarks and print one table.

    python -m benchmarks [name ...] [--json F] [--data DIR]

Bars are for a machine on which nothing else runs. Ratios of memory do not depend on that and ratios of time little, but
on busy cores, threads that wait for one another make many short operations slower than few long ones. A bar that is
not met shows in the table and is no error: times belong to a machine, not to the code alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from everymask.files import write_json

from . import pack
from .measure import Row, machine

NAMES = (
    *("mask_loss", "predict_share", "maskformer", "detr", "catseg", "sam2"),
    *("training", "startup", "coco_panoptic", "check", "loader", "pack"),
)
PACKED = "oxford_pet_700"
"""The data set that `benchmarks.pack` reads."""
OF_DATA = ("coco_panoptic", "check", "loader")
"""Benchmarks whose `rows` take the folder of real data, and do without where it is not there."""

WIDTH = 80


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is named, else all; print the table and, with --json, write it with the machine's description."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--json", type=Path, metavar="F", help="also write rows, versions, processor and date here")
    parser.add_argument("--data", type=Path, metavar="DIR", default=Path("../shared/data"), help="real data")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    console = Console(width=WIDTH)
    names = [name for name in NAMES if name in (options.names or NAMES)]
    found = machine()  # Before `pack` sets the number of threads.
    rows = [row for name in names if name != "pack" for row in measured(name, options.data, console)]
    if rows:
        console.print(table(rows), summary(rows, found), sep="\n")
    if "pack" in names:
        print_pack(options.data, console)
    if options.json:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(options.json, {"date": now, "machine": found, "rows": [row.to_json() for row in rows]})


def measured(name: str, data: Path, console: Console) -> list[Row]:
    """The rows of one benchmark, named on the terminal while it runs."""
    with console.status(f"measuring {name} ..."):
        module = import_module(f"{__package__}.{name}")
        rows: list[Row] = module.rows(data) if name in OF_DATA else module.rows()
    return rows


def print_pack(data: Path, console: Console) -> None:
    """The lines of `benchmarks.pack`, or why there are none."""
    if (data / PACKED).is_dir():
        pack.main(["--data", str(data), "--name", PACKED])
    else:
        console.print(f"pack: skipped, there is no {PACKED} in {data}; give its folder with --data")


def table(rows: Iterable[Row]) -> Table:
    """One line a row; "ratio" is the peer's figure over ours."""
    shown = Table("name", box=box.SIMPLE)
    for column in ("ours", "peer", "ratio", "bar", "pass"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        passed = {None: "", True: "yes", False: "[bold red]no[/]"}[row.passed]
        ours, peer, ratio = figure(row.ours, row.unit), figure(row.peer, row.unit), figure(row.ratio, "x")
        shown.add_row(row.name, ours, peer, ratio, row.bar, passed)
    return shown


def figure(value: float | None, unit: str) -> str:
    """Three significant digits, whole numbers from 100 on, short times in ms; empty for None."""
    if value is None:
        return ""
    if unit == "s" and abs(value) < 0.1:
        value, unit = 1000 * value, "ms"
    return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:#.3g} {unit}"


def summary(rows: Sequence[Row], found: dict[str, Any]) -> str:
    """One line: how many bars there are and are met, and the machine."""
    bars = [row.passed for row in rows if row.passed is not None]
    where = f"{found['processor']}, {found['threads']} threads, torch {found['packages']['torch']}"
    return f"{sum(bars)} of {len(bars)} bars met; {where}, transformers {found['packages']['transformers']}"


if __name__ == "__main__":
    main()
