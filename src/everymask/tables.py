"""Tables and progress bars for the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SCORES = (
    "foreground_iou", "miou", "dice", "boundary_f", "pixel_accuracy", "sad", "mse", "mad", "grad", "conn",
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "pq", "sq", "rq", "pq_things", "pq_stuff",
)  # fmt: skip


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table that fits the terminal."""
    table = Table(*head, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_scores(scores: dict[str, Any]) -> None:
    """Overall scores, then a row a class."""
    overall = [[name, f"{scores[name]:.4f}"] for name in SCORES if name in scores]
    print_table(["score", f"{scores['images']} images"], overall)
    columns = list(next(iter(scores["per_class"].values()), {}))
    rows = [[name, *(_figure(row[c]) for c in columns)] for name, row in scores["per_class"].items()]
    print_table(["class", *columns], rows)


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; call the yielded function with the number done."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def system_rows() -> list[list[str]]:
    """One row for each system and preset."""
    from .models import list_models, model_module

    return [
        [name, preset, f"{parameters(name, preset) / 1e6:.1f} M", str(config.image_side), ", ".join(module.TASKS)]
        for name in list_models()
        for module in [model_module(name)]
        for preset, config in module.PRESETS.items()
    ]


def parameters(name: str, preset: str) -> int:
    """Parameters of a preset with one class, counted without allocating them."""
    import torch

    from .models import create_model

    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, preset, classes=["object"]).parameters())


def bundled_rows() -> list[list[str]]:
    """One row for each model that comes with the package."""
    from .checkpoint import bundled_models, find_model, read_card

    return [_bundled_row(name, read_card(find_model(name))) for name in bundled_models()]


def _bundled_row(name: str, card: dict[str, Any]) -> list[str]:
    scores = "\n".join(
        f"{data}: foreground IoU {s['foreground_iou']:.3f}" for data, s in card.get("scores", {}).items()
    )
    from .labels import LabelMap

    classes = ", ".join(LabelMap.from_json(card["classes"]).names)
    return [name, f"{card['model']} {card['preset']}", classes, scores, card.get("licence", "unknown")]
