"""Runs on the same data side by side: a table by class, curves, and what they predict.

    python recipes/compare_runs.py DATA mask=runs/camvid-mask per-pixel=runs/camvid-pixel --pictures docs/images/camvid

Prints Markdown and writes PREFIX-curves.png and PREFIX-predictions.png. Predictions are drawn without their photos, as
maps of classes: pictures of data that may not be passed on can be kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import everymask as em
from everymask.charts import curves
from everymask.checkpoint import find_model
from everymask.datasets import Dataset
from everymask.drawing import contact_sheet
from everymask.report import read_log
from everymask.visualize import overlay

SHOWN = 4


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--split", default="test")
    parser.add_argument("--score", default="miou")
    parser.add_argument("--pictures", type=Path, required=True)
    given = parser.parse_args()
    runs = {name: Path(run) for name, _, run in (text.partition("=") for text in given.runs)}
    dataset = em.open_dataset(given.data, given.split)
    models = {name: em.load(find_model(run)) for name, run in runs.items()}
    scores = {name: em.evaluate(model, dataset) for name, model in models.items()}
    print(table(scores, given.score))
    picture = draw_curves({name: read_log(run) for name, run in runs.items()}, given.score)
    picture.save(given.pictures.with_name(f"{given.pictures.name}-curves.png"), optimize=True)
    sheet = draw_predictions(models, dataset)
    sheet.save(given.pictures.with_name(f"{given.pictures.name}-predictions.png"), optimize=True)


def table(scores: dict[str, dict[str, Any]], score: str) -> str:
    """IoU of each class, then the mean, a column a run."""
    lines = ["| class | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    for name in next(iter(scores.values()))["per_class"]:
        cells = [f"{run['per_class'][name]['iou']:.3f}" for run in scores.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"| **{score}** | " + " | ".join(f"**{run[score]:.3f}**" for run in scores.values()) + " |")
    return "\n".join(lines)


def draw_curves(logs: dict[str, list[dict[str, Any]]], score: str) -> Image.Image:
    """The validation score of each run by step."""
    rows = {name: [row for row in log if row["kind"] == "validation"] for name, log in logs.items()}
    return curves({name: [(r["step"], r[score]) for r in log] for name, log in rows.items()}, f"validation {score}")


def draw_predictions(models: dict[str, Any], dataset: Dataset) -> Image.Image:
    """A row for each of some samples at equal distances: a map of classes for each model, on grey."""
    pictures, captions = [], []
    for index in range(0, len(dataset), max(1, len(dataset) // SHOWN))[:SHOWN]:
        sample = dataset[index]
        for name, model in models.items():
            found = em.predict(model, sample.image, task="semantic").segments
            grey = np.full_like(sample.image, 128)
            pictures.append(overlay(grey, found, opacity=1.0, outline=False))
            captions.append(f"{sample.name}  {name}")
    return contact_sheet(pictures, captions, columns=max(2, len(models)))


if __name__ == "__main__":
    main()
