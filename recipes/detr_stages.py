"""DETR's two ways to learn masks, on few images until they are known by heart: jointly, and boxes first.

    python recipes/detr_stages.py ../shared/data/coco_panoptic_mini --images 8 --out runs/detr-stages

1. joint: class, boxes and masks at once;
2. boxes: the detector alone;
3. masks: that detector, frozen, with a mask head; the rate falls to a tenth after 15 of 25 parts of the run.

Prints for each the losses at its beginning and end and, for the two with masks, panoptic and instance scores on the
images it was trained on: whether it can learn, not how well it generalises.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import everymask as em
from everymask.checkpoint import transfer
from everymask.datasets import Dataset, Subset
from everymask.recipe import TrainConfig
from everymask.report import read_log

SETTINGS = TrainConfig(
    batch_size=4,
    image_side=192,
    targets="instance",
    task="panoptic",
    monitor="pq",
    lr=5e-4,
    weight_decay=0.0,
    warmup=100,
    clip=0.1,
    ema=0.0,
    scale=(1.0, 1.0),
    color=0.0,
    workers=0,
    log_every=50,
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = Subset(em.open_dataset(given.data, "train"), list(range(given.images)))
    config = replace(SETTINGS, steps=given.steps, validate_every=given.steps)
    learn("joint", data, config, given.out)
    learn("boxes", data, config, given.out, head="boxes")
    masks = replace(config, freeze="detector", drop=15 / 25, final_lr=0.1)
    learn("masks", data, masks, given.out, weights=given.out / "boxes")


def learn(
    name: str, data: Dataset, config: TrainConfig, out: Path, weights: Path | None = None, **changes: Any
) -> None:
    """Train one model and print what became of it."""
    torch.manual_seed(0)
    model = em.create_model("detr", "small", classes=data.labels, **changes)
    if weights:
        transfer(model, weights)
    em.train(model, data, config, out=out / name)
    log = [row for row in read_log(out / name) if row["kind"] == "train"]
    terms = [term for term in ("class", "box", "giou", "mask", "dice") if term in log[0]]
    print(f"{name}: " + ", ".join(f"{term} {log[0][term]:.3f} -> {log[-1][term]:.3f}" for term in terms))
    if "mask" in terms:
        for task, scores in (("panoptic", ("pq",)), ("instance", ("ap", "pq"))):
            found = em.evaluate(model, data, task=task, side=config.image_side)
            print(f"  {task}: " + ", ".join(f"{score} {found[score]:.3f}" for score in scores))


if __name__ == "__main__":
    main()
