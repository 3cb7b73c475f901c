"""Thousands of damaged annotation files: each is read as a plain reading of it says, or refused by name.

The plain reading has none of our code: `json` for the file, hotcoco for its masks, Pillow for colours. So a reader that
takes a damaged file for something that it does not say fails here as well as one that crashes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import write_mask, write_photo
from hotcoco import mask as hotcoco_mask
from mutate import json_mutations, mutations, outcome
from PIL import Image

from everymask.datasets import open_dataset
from everymask.types import Sample

Array = np.ndarray[Any, Any]
Json = dict[str, Any]

FEW, MANY = 50, 900
"""Files of each sort in the default run, and in the full one: 5,400 in all."""

# --- sound files -----------------------------------------------------------------------------------------------------

IMAGES = [
    {"id": 1, "file_name": "a.jpg", "height": 5, "width": 6},
    {"id": 2, "file_name": "b.jpg", "height": 4, "width": 4},
]
CATEGORIES = [{"id": 8, "name": "lamp", "isthing": 1}, {"id": 3, "name": "frog", "isthing": 0}]
COUNTS = hotcoco_mask.encode((np.indices((5, 6)).sum(0) % 3 > 0).astype(np.uint8))["counts"].decode()
PLAIN_RLE = {"size": [5, 6], "counts": [12, 2, 1, 3, 12]}
PNGS = {"a": np.full((5, 6), 9), "b": np.array([[0, 300, 300, 70000], [300] * 4, [70000] * 4, [0, 300, 5, 5]])}


def instances(compressed: str = COUNTS, plain: Any = PLAIN_RLE) -> Json:
    square, triangle = [1, 1, 4, 1, 4.5, 3, 1, 3], [0, 0, 3.25, 0, 0, 3.75]
    masks: list[Any] = [[square], plain, {"size": [5, 6], "counts": compressed}, [triangle, square]]
    images, crowds = (1, 1, 1, 2), (0, 1, 0, 0)
    rows = [
        {"id": n, "image_id": images[n], "category_id": (8, 3)[n % 2], "iscrowd": crowds[n], "segmentation": mask}
        for n, mask in enumerate(masks)
    ]
    return {"info": {"year": 2017}, "images": IMAGES, "annotations": rows, "categories": CATEGORIES}


def panoptic() -> Json:
    infos = [{"id": number, "category_id": 8 if number < 1000 else 3, "iscrowd": 0} for number in (300, 70000, 5)]
    crowd = {"id": 9, "category_id": 8, "iscrowd": 1, "area": 30, "bbox": [0, 0, 6, 5]}
    rows = [
        {"image_id": 1, "file_name": "a.png", "segments_info": [crowd]},
        {"image_id": 2, "file_name": "b.png", "segments_info": infos},
    ]
    return {"images": IMAGES, "annotations": rows, "categories": CATEGORIES}


# --- damaged files ---------------------------------------------------------------------------------------------------


def damaged_text(seed: int, count: int) -> Iterator[bytes]:
    """Files that are sound but for the characters of compressed run lengths."""
    return (json.dumps(instances(text.decode("latin-1"))).encode() for text in mutations(COUNTS.encode(), seed, count))


def damaged_rle(seed: int, count: int) -> Iterator[bytes]:
    """Files that are sound but for an object of run lengths."""
    before, _, after = json.dumps(instances(plain="here")).encode().partition(b'"here"')
    return (before + rle + after for rle in json_mutations(PLAIN_RLE, seed, count))


SORTS: dict[str, Callable[[int, int], Iterator[bytes]]] = {
    "instances, bytes": lambda seed, count: mutations(json.dumps(instances()).encode(), seed, count),
    "instances, values": lambda seed, count: json_mutations(instances(), seed, count),
    "instances, compressed run lengths": damaged_text,
    "instances, run lengths": damaged_rle,
    "panoptic, bytes": lambda seed, count: mutations(json.dumps(panoptic()).encode(), seed, count),
    "panoptic, values": lambda seed, count: json_mutations(panoptic(), seed, count),
}

# --- a plain reading -------------------------------------------------------------------------------------------------


def plain_reading(value: Json, masks_of: Callable[[Json, Json], list[tuple[Json, Array]]]) -> list[Any]:
    """What each image of a file holds: its name, and class, thing, crowd and mask of each segment."""
    classes = {row["id"]: (row["name"], bool(row.get("isthing", 1))) for row in value["categories"]}
    return [
        (
            Path(image["file_name"].replace("\\", "/")).stem,
            [
                (*classes[row["category_id"]], bool(row.get("iscrowd", 0)), mask.astype(bool).tolist())
                for row, mask in masks_of(value, image)
            ],
        )
        for image in value["images"]
    ]


def instance_masks(value: Json, image: Json) -> list[tuple[Json, Array]]:
    rows = [row for row in value["annotations"] if row["image_id"] == image["id"]]
    return [(row, plain_mask(row["segmentation"], image)) for row in rows]


def plain_mask(segmentation: Any, image: Json) -> Array:
    if isinstance(segmentation, dict):
        return np.asarray(hotcoco_mask.decode(segmentation))
    parts = hotcoco_mask.frPyObjects(segmentation, image["height"], image["width"])
    return np.asarray(hotcoco_mask.decode(hotcoco_mask.merge(parts)))


def panoptic_masks(value: Json, image: Json, folder: Path) -> list[tuple[Json, Array]]:
    (row,) = (row for row in value["annotations"] if row["image_id"] == image["id"])
    ids = np.array(Image.open(folder / row["file_name"])).astype(int) @ [1, 256, 65536]
    return [(info, ids == info["id"]) for info in row["segments_info"]]


def ours(sample: Sample) -> Any:
    rows = [(s.label, s.is_thing, s.is_crowd, s.mask.tolist()) for s in sample.segments]
    return sample.name, rows


# --- the test --------------------------------------------------------------------------------------------------------


def write_files(root: Path, kind: str) -> Path:
    """Photos and PNG files; returns the annotation file, which is still to be written."""
    path = root / "annotations" / f"{kind}_val2017.json"
    for stem, ids in PNGS.items():
        write_photo(root / "val2017" / f"{stem}.jpg", ids.shape[::-1])
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
        write_mask(path.with_suffix("") / f"{stem}.png", colors.astype(np.uint8))
    return path


def taken(root: Path, sort: str, count: int, seed: int = 2017) -> int:
    """How many of `count` damaged files of a sort the reader takes: all as the plain reading does."""
    kind = sort.partition(",")[0]
    path, number = write_files(root, kind), 0
    for data in SORTS[sort](seed, count):
        path.write_bytes(data)
        samples = outcome(lambda: open_dataset(root, "val", f"coco_{kind}"), path)
        if samples is None:
            continue
        number += 1
        masks = instance_masks if kind == "instances" else lambda v, i: panoptic_masks(v, i, path.with_suffix(""))
        assert list(map(ours, samples)) == plain_reading(json.loads(data), masks), data[:2000]
    return number


@pytest.mark.parametrize("sort", SORTS)
def test_damaged_files(tmp_path: Path, sort: str) -> None:
    assert taken(tmp_path, sort, FEW) < FEW


@pytest.mark.slow
@pytest.mark.parametrize("sort", SORTS)
def test_thousands_of_damaged_files(tmp_path: Path, sort: str) -> None:
    assert 0 < taken(tmp_path, sort, MANY) < MANY / 2
