"""Small clean data sets for the data doctor, of real photos where these are at hand, in many ways to keep labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from everymask.datasets.camvid import COLORS, UNLABELLED
from everymask.datasets.pets import PET
from everymask.image import read_image, read_mask, write_jpeg, write_png
from tests.conftest import REPOSITORY

Array = np.ndarray[Any, np.dtype[Any]]
Pairs = list[tuple[Array, Array]]

SIZE = (180, 240)
SPLITS = {"train": range(6), "val": range(6, 9)}
FRAMES = ("0001TP_006690", "0001TP_007890", "0006R0_f01470", "0006R0_f03870", "0016E5_01500", "0016E5_05820",
          "0016E5_07959", "0016E5_08059", "0016E5_08159")  # fmt: skip
CLASSES = [{"name": name, "value": k, "color": list(color)} for k, (name, color) in enumerate(COLORS.items())]
TABLE = {"classes": CLASSES, "void": [UNLABELLED]}
PALETTE = np.array([*COLORS.values(), (0, 0, 0)], np.uint8)
"""Colours of the values 0 to 11."""


def shared_folder() -> Path | None:
    """The folder of real data, as in `conftest.py`; None where it is absent."""
    folder = Path(os.environ.get("EVERYMASK_DATA") or REPOSITORY.parent / "shared" / "data")
    return folder if folder.is_dir() else None


# --- photos and their truth ------------------------------------------------------------------------------------------


def street_pairs(data: Path | None) -> Pairs:
    """Nine photos uint8 [H, W, 3] and their values uint8 [H, W], 0 to 10 and 11 for void."""
    root = data and data / "camvid"
    if root is None or not root.is_dir():
        return [_synthetic(seed, 11) for seed in range(9)]
    found = {path.stem: path for folder in ("train", "val") for path in (root / folder).glob("*.jpg")}
    masks = {path.stem: path for folder in ("trainannot", "valannot") for path in (root / folder).glob("*.png")}
    return [_reduced(read_image(found[stem]), read_mask(masks[stem])) for stem in FRAMES]


def pet_pairs(data: Path | None) -> Pairs:
    """Nine photos of one animal each, and masks of 0 and 255."""
    root = data and data / "oxford_pet_700"
    if root is None or not root.is_dir():
        return [_synthetic_pet(seed) for seed in range(9)]
    stems = sorted(path.stem for path in (root / "images").glob("american_bulldog_1*.jpg"))[:9]
    pairs = [(read_image(root / "images" / f"{s}.jpg"), read_mask(root / "trimaps" / f"{s}.png")) for s in stems]
    return [_reduced(photo, np.where(mask == PET, 255, 0).astype(np.uint8)) for photo, mask in pairs]


def _reduced(photo: Array, mask: Array) -> tuple[Array, Array]:
    picture = Image.fromarray(photo).resize(SIZE[::-1], Image.Resampling.BOX)
    return np.asarray(picture), np.asarray(Image.fromarray(mask).resize(SIZE[::-1], Image.Resampling.NEAREST))


def _synthetic(seed: int, classes: int) -> tuple[Array, Array]:
    """Regions of smooth outline, each in its own shade."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(classes, *SIZE)), (0, 9, 9))
    mask = fields.argmax(0).astype(np.uint8)
    shades = rng.integers(0, 255, (classes, 3))
    photo = np.clip(shades[mask] + rng.normal(0, 8, (*SIZE, 3)), 0, 255).astype(np.uint8)
    mask[:3] = UNLABELLED
    return photo, mask


def _synthetic_pet(seed: int) -> tuple[Array, Array]:
    photo, _ = _synthetic(seed, 4)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    inside = np.hypot((y - 90 + rng.uniform(-9, 9)) / 60, (x - 120 + rng.uniform(-9, 9)) / 50) < 1
    return photo, np.where(inside, 255, 0).astype(np.uint8)


# --- folders ---------------------------------------------------------------------------------------------------------


def write_street(root: Path, pairs: Pairs) -> None:
    """Class numbers as palette PNG, and a table that has the same colours."""
    _write_photos(root, pairs)
    for split, name, _, mask in _named(pairs):
        write_png(root / split / "masks" / f"{name}.png", mask, PALETTE)
    write_table(root, TABLE)


def write_pets(root: Path, pairs: Pairs) -> None:
    """Masks of 0 and 255."""
    _write_photos(root, pairs)
    for split, name, _, mask in _named(pairs):
        write_png(root / split / "masks" / f"{name}.png", mask)
    write_table(root, {"classes": [{"name": "pet", "value": 255}], "background": [0]})


def write_colors(root: Path, pairs: Pairs) -> None:
    """Masks whose colours are the classes."""
    _write_photos(root, pairs)
    for split, name, _, mask in _named(pairs):
        write_png(root / split / "masks" / f"{name}.png", PALETTE[mask])
    rows = [{"name": row["name"], "color": row["color"]} for row in CLASSES]
    write_table(root, {"classes": rows, "void": [[0, 0, 0]]})


def write_panoptic(root: Path, pairs: Pairs) -> None:
    """COCO panoptic: every class of a photo is a segment, void is 0."""
    for split in SPLITS:
        rows: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        rows["categories"] = [{"id": 10 + k, "name": name, "isthing": 0, "color": list(color)}
                              for k, (name, color) in enumerate(COLORS.items())]  # fmt: skip
        for number, (name, photo, mask) in enumerate(_of_split(pairs, split)):
            write_jpeg(root / f"{split}2017" / f"{name}.jpg", photo)
            ids = np.where(mask == UNLABELLED, 0, 300 + 7 * mask.astype(np.int64))
            colors = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
            write_png(root / "annotations" / f"panoptic_{split}2017" / f"{name}.png", colors)
            rows["images"].append({"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
            segments = [_segment(mask, int(value)) for value in np.unique(mask) if value != UNLABELLED]
            rows["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(rows))


def _segment(mask: Array, value: int) -> dict[str, Any]:
    ys, xs = np.nonzero(mask == value)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    return {"id": 300 + 7 * value, "category_id": 10 + value, "area": len(xs), "bbox": box, "iscrowd": 0}


POLYGON = [30.0, 40.0, 150.0, 50.0, 120.0, 140.0, 40.0, 120.0]


def write_coco(root: Path, pairs: Pairs) -> None:
    """COCO instances: one polygon a photo."""
    images, annotations = [], []
    for number, (name, photo, _) in enumerate(_of_split(pairs, "train")):
        write_jpeg(root / "images" / f"{name}.jpg", photo)
        images.append({"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        annotations.append({"id": number + 1, "image_id": number, "category_id": 3, "segmentation": [POLYGON],
                            "bbox": [30, 40, 120, 100], "area": 8000.0, "iscrowd": 0})  # fmt: skip
    table = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "car"}]}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(table))


def write_yolo(root: Path, pairs: Pairs) -> None:
    """YOLO outlines: one polygon a photo."""
    shares = (np.array(POLYGON).reshape(-1, 2) / SIZE[::-1]).ravel()
    (root / "labels").mkdir(parents=True)
    for name, photo, _ in _of_split(pairs, "train"):
        write_jpeg(root / "images" / f"{name}.jpg", photo)
        (root / "labels" / f"{name}.txt").write_text("0 " + " ".join(f"{share:.6f}" for share in shares) + "\n")
    (root / "data.yaml").write_text("names: [car]\n")


def write_labelme(root: Path, pairs: Pairs) -> None:
    """LabelMe: one polygon a photo."""
    for name, photo, _ in _of_split(pairs, "train"):
        write_jpeg(root / f"{name}.jpg", photo)
        points = np.array(POLYGON).reshape(-1, 2).tolist()
        shape = {"label": "car", "points": points, "shape_type": "polygon", "group_id": None}
        file = {"shapes": [shape], "imagePath": f"{name}.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        (root / f"{name}.json").write_text(json.dumps(file))


def write_table(root: Path, table: dict[str, Any]) -> None:
    """``classes.json``."""
    (root / "classes.json").write_text(json.dumps(table))


def _write_photos(root: Path, pairs: Pairs) -> None:
    for split, name, photo, _ in _named(pairs):
        write_jpeg(root / split / "images" / f"{name}.jpg", photo)


def _named(pairs: Pairs) -> list[tuple[str, str, Array, Array]]:
    return [(split, name, photo, mask) for split in SPLITS for name, photo, mask in _of_split(pairs, split)]


def _of_split(pairs: Pairs, split: str) -> Sequence[tuple[str, Array, Array]]:
    return [(f"photo{n}", *pairs[n]) for n in SPLITS[split]]
