"""Synthetic scenes with exact truth: a red disc and a blue square on dark noise; and folders of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from everymask.image import write_png
from everymask.labels import LabelMap
from everymask.types import VOID, Sample, Segments

DISC, SQUARE = 1, 2
LABELS = LabelMap.from_names(["disc", "square"])
TABLE = {"classes": [{"name": "disc", "value": DISC}, {"name": "square", "value": SQUARE}], "background": [0]}


def scene(height: int = 64, width: int = 96, seed: int = 0, shapes: Sequence[int] = (DISC, SQUARE)) -> Sample:
    """One scene, its first rows and columns void."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.int32)
    radius = 0.3 * min(height, width)
    y, x = np.mgrid[:height, :width]
    for shape in shapes:
        centre_y = rng.uniform(0.4, 0.6) * height
        centre_x = (rng.uniform(0.24, 0.27) if shape == DISC else rng.uniform(0.73, 0.76)) * width
        dy, dx = np.abs(y - centre_y), np.abs(x - centre_x)
        inside = np.hypot(dy, dx) <= radius if shape == DISC else np.maximum(dy, dx) <= radius
        mask[inside] = 1 + list(shapes).index(shape)
        image[inside] += np.array([190, 40, 20] if shape == DISC else [20, 60, 190], np.uint8)
    mask[:2], mask[:, :2] = VOID, VOID
    classes = [shape - 1 for shape in shapes]
    return Sample(image, Segments.build(mask, classes, labels=LABELS), f"scene{seed}")


def mask_values(sample: Sample) -> np.ndarray:
    """uint8 [H, W] as `TABLE` says: 0 background, 1 disc, 2 square, 255 void."""
    classes = sample.segments.class_map(len(LABELS)).numpy()
    return np.array([DISC, SQUARE, 0, 255], np.uint8)[classes]


def write_scenes(folder: Path, samples: Sequence[Sample]) -> Path:
    """``images/`` and ``masks/`` in `folder`."""
    for sample in samples:
        write_png(folder / "images" / f"{sample.name}.png", sample.image)
        write_png(folder / "masks" / f"{sample.name}.png", mask_values(sample))
    return folder


def write_dataset(root: Path, train: int = 8, val: int = 2) -> Path:
    """A data folder with splits ``train`` and, unless 0, ``val``."""
    write_scenes(root / "train", [scene(seed=n) for n in range(train)])
    write_scenes(root / "val", [scene(seed=100 + n) for n in range(val)])
    (root / "classes.json").write_text(json.dumps(TABLE))
    return root
