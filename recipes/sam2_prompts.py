"""Train a small SAM 2 from random weights with explicit box prompts, and show that it learns and that prompts matter.

    python recipes/sam2_prompts.py DATA --out RUN [--steps N] [--set key=value ...]

Every fifth image is held out. Held-out objects are told by box, by a centre point and by clicks, before and after, and
then by boxes that were moved by 20 px: a model that listens to its prompts must do worse. With ``--misaligned`` the
prompts of the training are moved too, as happens where flips and crops forget them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import everymask as em
from everymask import prompted_evaluation
from everymask.datasets import Dataset, Subset
from everymask.files import write_json
from everymask.image import write_png
from everymask.models import model_module
from everymask.predict import fit
from everymask.prompt_files import save_prompts
from everymask.prompted_evaluation import Protocol, evaluate_prompts, score_picture, score_rows, worse
from everymask.prompts import PromptSettings
from everymask.tables import print_table

SHIFT = 20.0
SETTINGS = [
    *("batch_size=2", "lr=0.001", "weight_decay=0.02", "warmup=20", "clip=1", "ema=0.98", "flip_vertical=0.5"),
    *("scale=0.8,1.6", "stretch=0.1", "color=0.3", "validate_every=100000", "log_every=10", "workers=0"),
]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--set", action="append", default=[], help="training setting, key=value")
    parser.add_argument("--most", type=int, default=20, help="held-out images to score")
    parser.add_argument("--misaligned", action="store_true")
    options = parser.parse_args()
    whole = em.open_dataset(options.data)
    train = Subset(whole, [n for n in range(len(whole)) if n % 5])
    held = Subset(whole, list(range(0, len(whole), 5))[: options.most])
    settings = [*SETTINGS, f"steps={options.steps}", *options.set]
    settings.append(f"prompts={prompt_file(train, options.out / 'prompts', SHIFT * options.misaligned)}")
    config = model_module("sam2").RECIPE.with_settings(settings)
    torch.manual_seed(config.seed)
    model = em.create_model(
        "sam2", options.preset, classes=train.labels, explicit=0.75, compare="cells", clicks=1, least_area=9
    )
    protocol = Protocol(("box", "point", "click3"))
    runs = {"before": evaluate_prompts(model.eval(), held, protocol)}
    em.train(model, train, config, out=options.out / "run")
    runs["after"] = evaluate_prompts(model, held, protocol)
    with patch.object(prompted_evaluation, "fit", moved_fit):
        runs["moved 20 px"] = evaluate_prompts(model, held, Protocol(("box",)))
    report(runs, options.out)


def prompt_file(dataset: Dataset, place: Path, shift: float) -> Path:
    """The explicit boxes of the training images; with a `shift` all points moved right and down, within the photo."""
    out = place.with_suffix(".json")
    save_prompts(dataset, len(dataset), out, PromptSettings(("box",), least_area=9))
    if shift:
        data = json.loads(out.read_text())
        for row in data["samples"]:
            points = np.array(row["points"], float).reshape(-1, 2) + shift
            row["points"] = points.clip(0, np.array(row["size"][::-1]) - 1).tolist()
        write_json(out, data)
    return out


def moved_fit(photo: np.ndarray, letterbox: Any, prompts: Any, **options: Any) -> Any:
    """`fit` with all prompts moved."""
    last = torch.tensor([photo.shape[1] - 1.0, photo.shape[0] - 1.0])
    moved = replace(prompts, points=(prompts.points + SHIFT).minimum(last))
    return fit(photo, letterbox, moved, **options)


def report(runs: dict[str, Any], out: Path) -> None:
    """Table, picture and numbers."""
    moved = runs.pop("moved 20 px")
    print_table(*score_rows(runs))
    for name, scores in (*runs.items(), ("boxes moved by 20 px", moved)):
        print(f"{name}: box Dice {scores['kinds']['box']['dice']:.3f}, IoU {scores['kinds']['box']['iou']:.3f}")
    for sentence in worse(runs["before"], runs["after"]):
        print(f"warning: {sentence}")
    write_png(out / "prompts-before-after.png", np.asarray(score_picture(runs)))
    write_json(out / "scores.json", {**runs, "moved 20 px": moved})


if __name__ == "__main__":
    main()
