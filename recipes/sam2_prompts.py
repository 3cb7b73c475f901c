"""Train a small SAM 2 from random weights with explicit box prompts, and show that it learns and that prompts matter.

    python recipes/sam2_prompts.py ../shared/data/dsb2018_he --out RUN --tile 40 --steps 4000
    python recipes/sam2_prompts.py ../shared/data/oxford_pet_700 --out RUN --steps 3000

About every fifth photo is held out. Its objects are told by their boxes, before and after training; then by the same
boxes moved by 20 px, which must score lower. What needs no model stands beside it: the whole box as the mask, and the
ellipse in it. With ``--misaligned`` the boxes of the training are moved after every flip and crop, as happens where a
view moves images and masks but forgets the prompts.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml

import everymask as em
from everymask.datasets import Dataset, hold_out, loader
from everymask.drawing import contact_sheet
from everymask.files import write_json
from everymask.image import write_png
from everymask.maps import segment_areas, segment_boxes
from everymask.model import SegmentationModel
from everymask.models import model_module
from everymask.prompt_files import save_prompts
from everymask.prompted_evaluation import Protocol, evaluate_prompts, prompted_segments
from everymask.prompts import PromptSettings, move_prompts
from everymask.tables import print_table
from everymask.train import spread
from everymask.transforms import drop_absent
from everymask.types import Prompts, Sample, Segments
from everymask.visualize import overlay

SHIFT = 20
CONFIG = {
    "image_side": 96,
    "dim": 64,
    "decoder_heads": 4,
    "hidden_dim": 128,
    "explicit": 1.0,
    "clicks": 0,
    "compare": "cells",
}
SETTINGS = [
    *("batch_size=8", "lr=0.002", "weight_decay=0.02", "warmup=50", "final_lr=0.02", "clip=1", "ema=0.995"),
    *("flip_vertical=0.5", "scale=0.8,1.25", "stretch=0.1", "color=0.2", "validate_every=500", "log_every=50"),
    *("workers=0", "threads=1", "max_val=64"),
]


class Tiles(Dataset):
    """Square tiles of the photos, side by side, that have an object."""

    def __init__(self, base: Dataset, side: int, least_area: int) -> None:
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
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tile", type=int, default=0, help="side of the tiles that photos are cut into; 0 for none")
    parser.add_argument("--config", action="append", default=[], help="model setting, key=value")
    parser.add_argument("--set", action="append", default=[], help="training setting, key=value")
    parser.add_argument("--most", type=int, default=400, help="held-out images or tiles to score")
    parser.add_argument("--least-area", type=int, default=30, help="smallest object, in pixels of the photo")
    parser.add_argument("--misaligned", action="store_true")
    options = parser.parse_args()
    train, held = split(em.open_dataset(options.data), options)
    model, settings = prepared(train, options)
    before = copy.deepcopy(model).eval()
    with patch.object(loader, "move_prompts", misaligned) if options.misaligned else nullcontext():
        em.train(model, train, settings, out=options.out / "run", val=held)
    protocol = Protocol(("box",), least_area=options.least_area)
    runs = {
        "before training": evaluate_prompts(before, held, protocol),
        "after training": evaluate_prompts(model, held, protocol),
        f"after training, boxes moved by {SHIFT} px": evaluate_prompts(model, held, replace(protocol, shift=SHIFT)),
    }
    scores = {name: run["kinds"]["box"] for name, run in runs.items()} | without_model(held, options.least_area)
    print_table(["held-out objects told by box", "Dice", "objects"], [[n, *figures(s)] for n, s in scores.items()])
    write_json(options.out / "scores.json", scores)
    write_png(options.out / "before-after.png", picture(before, model, held))


def split(whole: Dataset, options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """For training and held out, in tiles if asked for."""
    train, held = hold_out(whole, 5)
    if not options.tile:
        return train, spread(held, options.most)
    tiles = [Tiles(part, options.tile, options.least_area) for part in (train, held)]
    return tiles[0], spread(tiles[1], options.most)


def prepared(train: Dataset, options: argparse.Namespace) -> tuple[SegmentationModel, em.TrainConfig]:
    """A model of random weights, and its training with explicit boxes from a file."""
    prompts = options.out / "prompts.json"
    save_prompts(train, len(train), prompts, PromptSettings(("box",), least_area=options.least_area))
    settings = [*SETTINGS, f"steps={options.steps}", f"prompts={prompts}", *options.set]
    config = model_module("sam2").RECIPE.with_settings(settings)
    changes = CONFIG | {
        key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in options.config)
    }
    torch.manual_seed(config.seed)
    return em.create_model("sam2", "tiny", classes=train.labels, **changes), config


def misaligned(prompts: Prompts, geometry: Any, objects: Any) -> tuple[Prompts, Any]:
    """`move_prompts`, and then beside it on the canvas."""
    moved, objects = move_prompts(prompts, geometry, objects)
    height, width = objects.size
    return replace(moved, points=(moved.points + SHIFT).minimum(torch.tensor([width - 1.0, height - 1.0]))), objects


def without_model(held: Dataset, least_area: int) -> dict[str, dict[str, float]]:
    """Mean Dice of masks that follow from the boxes alone."""
    found = [dices for sample in held for dices in boxes_filled(sample, least_area)]
    names = ("the whole box, no model", "the ellipse in the box, no model")
    means = np.mean(found, axis=0).tolist()
    return {name: {"dice": dice, "objects": len(found)} for name, dice in zip(names, means, strict=True)}


def boxes_filled(sample: Sample, least_area: int) -> Iterator[tuple[float, float]]:
    """Dice of each object's box and of the ellipse in it; void counts for nothing."""
    truth = sample.segments
    for n, (area, box) in enumerate(zip(segment_areas(truth).tolist(), segment_boxes(truth), strict=True)):
        if box and area >= least_area:
            window = slice(box[1], box[3] + 1), slice(box[0], box[2] + 1)
            known, mask = ~truth.void[window].numpy(), (truth.id_map[window] == n + 1).numpy()
            y, x = (2 * (np.arange(length) + 0.5) / length - 1 for length in mask.shape)
            ellipse = (y[:, None] ** 2 + x**2 <= 1) & known
            yield tuple(float(2 * (m & mask).sum() / (m.sum() + area)) for m in (known, ellipse))


def figures(scores: dict[str, Any]) -> list[str]:
    """Cells of the table."""
    return [f"{scores['dice']:.3f}", str(scores["objects"])]


def picture(before: SegmentationModel, after: SegmentationModel, held: Dataset, count: int = 5) -> np.ndarray:
    """Some held-out samples, a row each: photo, truth, what the boxes gave before training and what after."""
    pictures, captions = [], []
    for sample in spread(held, count):
        answers = [prompted_segments(model, sample, sample.segments) for model in (before, after)]
        pictures += [sample.image, *(shown(sample, segments) for segments in (sample.segments, *answers))]
        captions += [sample.name, "truth", "boxes, before training", "boxes, after training"]
    return np.asarray(contact_sheet([enlarged(one) for one in pictures], captions, cell=240))


def shown(sample: Sample, segments: Segments) -> np.ndarray:
    """The photo with segments."""
    return np.asarray(overlay(sample.image, segments, legend=False))


def enlarged(image: np.ndarray) -> np.ndarray:
    """Small pictures by whole numbers, up to 240 pixels."""
    times = max(1, 240 // image.shape[1])
    return image.repeat(times, 0).repeat(times, 1)


if __name__ == "__main__":
    main()
