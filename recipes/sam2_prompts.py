"""Train a small SAM 2 from random weights with explicit box prompts, and show that it learns and that prompts matter.

    python recipes/sam2_prompts.py ../shared/data/dsb2018_he --out RUN --tile 64
    python recipes/sam2_prompts.py ../shared/data/oxford_pet_700 --out RUN

Every fifth image is held out. Held-out objects are told by box, by a centre point and by clicks, before and after, and
then by boxes that were moved by 20 px: a model that listens to its prompts must do worse. With ``--misaligned`` the
prompts of the training are moved too, as happens where flips and crops forget them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
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
from everymask.maps import segment_areas
from everymask.models import model_module
from everymask.predict import fit
from everymask.prompt_files import save_prompts
from everymask.prompted_evaluation import Protocol, evaluate_prompts, score_picture, score_rows, worse
from everymask.prompts import PromptSettings
from everymask.tables import print_table
from everymask.train import spread
from everymask.transforms import drop_absent
from everymask.types import Sample

SHIFT = 20.0
SETTINGS = [
    *("batch_size=6", "lr=0.002", "weight_decay=0.02", "warmup=50", "final_lr=0.05", "clip=1", "ema=0.99"),
    *("flip_vertical=0.5", "scale=0.8,1.25", "stretch=0.1", "color=0.2", "validate_every=500", "log_every=50"),
    *("workers=0", "threads=1", "max_val=64"),
]


class Tiles(Dataset):
    """Square tiles of the photos, side by side, that have an object."""

    def __init__(self, base: Dataset, side: int, least_area: int) -> None:
        self.base, self.side = base, side
        self.root, self.split, self.labels = base.root, base.split, base.labels
        self.samples = [tile for sample in base for tile in tiles_of(sample, side, least_area)]
        self.names = [sample.name for sample in self.samples]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def tiles_of(sample: Sample, side: int, least_area: int) -> Iterator[Sample]:
    """The tiles of one photo that have an object of `least_area` pixels."""
    height, width = sample.segments.size
    for y, x in product(range(0, height - side + 1, side), range(0, width - side + 1, side)):
        ids = sample.segments.id_map[y : y + side, x : x + side].clone()
        truth = drop_absent(replace(sample.segments, id_map=ids))
        if (segment_areas(truth) >= least_area).any():
            yield Sample(sample.image[y : y + side, x : x + side].copy(), truth, f"{sample.name}-{x}-{y}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--tile", type=int, default=0, help="side of the tiles that photos are cut into; 0 for none")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], help="training setting, key=value")
    parser.add_argument("--most", type=int, default=100, help="held-out images or tiles to score")
    parser.add_argument("--least-area", type=int, default=30, help="smallest object, in pixels of the photo")
    parser.add_argument("--misaligned", action="store_true")
    options = parser.parse_args()
    train, held = split(em.open_dataset(options.data), options)
    settings = [*SETTINGS, f"steps={options.steps}", *options.set]
    prompts = prompt_file(train, options.out / "prompts", options.least_area, SHIFT * options.misaligned)
    config = model_module("sam2").RECIPE.with_settings([*settings, f"prompts={prompts}"])
    torch.manual_seed(config.seed)
    model = em.create_model(
        "sam2", options.preset, classes=train.labels, explicit=0.75, compare="cells", clicks=0, least_area=16
    )
    protocol = Protocol(("box", "point", "click3"), least_area=options.least_area)
    runs = {"before": evaluate_prompts(model.eval(), held, protocol)}
    em.train(model, train, config, out=options.out / "run", val=held)
    runs["after"] = evaluate_prompts(model, held, protocol)
    with patch.object(prompted_evaluation, "fit", moved_fit):
        runs["moved 20 px"] = evaluate_prompts(model, held, replace(protocol, kinds=("box",)))
    report(runs, options.out)


def split(whole: Dataset, options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """For training and held out, in tiles if asked for."""
    parts: list[Dataset] = [
        Subset(whole, [n for n in range(len(whole)) if n % 5]),
        Subset(whole, list(range(0, len(whole), 5))),
    ]
    if options.tile:
        parts = [Tiles(part, options.tile, options.least_area) for part in parts]
    return parts[0], spread(parts[1], options.most)


def prompt_file(dataset: Dataset, place: Path, least_area: int, shift: float) -> Path:
    """The explicit boxes of the training images; with a `shift` all points moved right and down, within the photo."""
    out = place.with_suffix(".json")
    save_prompts(dataset, len(dataset), out, PromptSettings(("box",), least_area=least_area))
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
