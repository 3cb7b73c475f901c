"""What the verbs `predict` and `evaluate` do with prompts: reading them from texts, scoring them, one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import load
from .datasets import Dataset
from .errors import UsageError
from .files import write_json
from .image import write_png
from .model import SegmentationModel
from .prompted_evaluation import Protocol, evaluate_prompts, score_picture, score_rows, worse
from .tables import print_table, progress_bar


def prompt_options(points: Sequence[str], boxes: Sequence[str]) -> dict[str, Any]:
    """Arguments of `everymask.predict` from texts: ``x,y`` or ``x,y,label``, all on one object; ``x0,y0,x1,y1`` each.

    Raises:
        UsageError: a text is something else.
    """
    clicks = [_numbers(text, "--point", (2, 3)) for text in points]
    options: dict[str, Any] = {}
    if clicks:
        options["points"] = [click[:2] for click in clicks]
        options["labels"] = [int(click[2]) if len(click) == 3 else 1 for click in clicks]
    if boxes:
        options["boxes"] = [_numbers(text, "--box", (4,)) for text in boxes]
    return options


def _numbers(text: str, where: str, counts: tuple[int, ...]) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        form = "x,y or x,y,label" if 2 in counts else "x0,y0,x1,y1"
        raise UsageError("a prompt is made of numbers", where=f"{where} {text}", why=f"expected {form}")
    return values


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def protocol_of(prompts: str, settings: Sequence[str]) -> Protocol:
    """A `Protocol` from ``box,point,click5`` and ``key=value`` texts.

    Raises:
        UsageError: there is no such kind of prompt or setting.
    """
    kinds: dict[str, Callable[[str], Any]] = dict.fromkeys(("seed", "least_area", "shift"), int)
    kinds |= {"by": str, "only": _names}
    values: dict[str, Any] = {}
    for text in settings:
        key, _, value = text.partition("=")
        if key not in kinds or (kinds[key] is int and not value.isdecimal()):
            raise UsageError("unknown setting", where=f"--ask {text}", fix=f"There are: {', '.join(kinds)}.")
        values[key] = kinds[key](value)
    return Protocol(tuple(prompts.split(",")), **values)


def score_prompts(
    model: SegmentationModel,
    dataset: Dataset,
    protocol: Protocol,
    *,
    against: str | None = None,
    side: int | None = None,
    json: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Print the scores of a model, beside those of the weights `against` where given, and warn where it is worse."""
    models = {"before": load(against)} if against else {}
    models["after" if against else "model"] = model
    runs = {}
    for name, one in models.items():
        with progress_bar(name, len(dataset)) as advance:
            runs[name] = evaluate_prompts(one, dataset, protocol, side=side, progress=advance)
    # The files first: whoever reads the table may stop reading.
    if json:
        write_json(json, runs)
    if picture:
        write_png(picture, np.asarray(score_picture(runs)))
    print_table(*score_rows(runs))
    if against:
        for sentence in worse(runs["before"], runs["after"]):
            print(f"warning: {sentence}")
