"""A panoptic PNG to the truth of its image, against the usual way: ids from colours, then a mask for each segment.

    python -m benchmarks coco_panoptic

Ours is one id map [H, W] of the smallest type that holds the ids, as the reader gives it, checked (JSON and PNG must
know the same segments), and the box of each segment. The peer is what DETR's data code does and `transformers` ships as
`prepare_coco_panoptic_annotation`: `rgb_to_id`, one boolean mask a segment, boxes from the masks.

The rows "masks alone" are the least that a mask for each segment can take: R + 256 G + 65536 B in int32, one comparison
a segment, one stack of booleans [N, H, W], unchecked and without boxes; ours makes no boxes either there. The bar
on memory is on that.

Decoding is part of it unless a row says otherwise. The drawn map has 30 segments at 640 x 480. Of the real set, times
are the mean of its maps and memory is that of the one that takes most.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects

from everymask.datasets.segment_ids import Rows, read_rows, rows_of

from .measure import Row, Step, alternate, peak_memory

Array = np.ndarray[Any, Any]
DATA = Path("../shared/data")
REAL = Path("coco_panoptic_mini", "panoptic", "panoptic_val2017.json")


@dataclass(frozen=True)
class Map:
    """A PNG and the ids of the segments in it."""

    path: Path
    ids: tuple[int, ...]


# --- maps ------------------------------------------------------------------------------------------------------------


def draw_map(path: Path, size: tuple[int, int], segments: int = 30) -> Map:
    """A map without gaps: each pixel belongs to the nearest of some random places."""
    chance = np.random.default_rng(0)
    ids = chance.choice(np.arange(1, 1 << 24), segments, replace=False)
    rows, columns = np.ogrid[: size[0], : size[1]]
    distances = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in chance.random((segments, 2)) * size]
    values = ids[np.argmin(distances, axis=0)]
    colors = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(path)
    return Map(path, tuple(ids.tolist()))


def real_maps(path: Path, count: int) -> list[Map]:
    """The first maps of an annotation file."""
    rows = json.loads(path.read_text())["annotations"][:count]
    return [Map(path.with_suffix("") / r["file_name"], tuple(s["id"] for s in r["segments_info"])) for r in rows]


# --- the two sides ---------------------------------------------------------------------------------------------------


def id_map(colors: Array, ids: Array) -> Array:
    """Ours from colours."""
    return complete(rows_of(colors, ids))


def id_map_of_file(path: Path, ids: Array) -> Array:
    """Ours from a file, as the reader does it."""
    return complete(read_rows(path, ids))


def complete(rows: Rows) -> Array:
    """The id map [H, W] of JSON and PNG that know the same segments."""
    assert not rows.unknown
    assert not rows.absent
    return rows.id_map


def masks(colors: Array, ids: Array) -> Array:
    """The peer: bool [N, H, W]."""
    wide = colors.astype(np.int32)
    values = wide[:, :, 0] + 256 * wide[:, :, 1] + 256 * 256 * wide[:, :, 2]
    return np.stack([values == number for number in ids])


def map_and_boxes(path: Path, ids: Array) -> Any:
    """Ours with what the library's function also makes: boxes [N] as slices."""
    found = id_map_of_file(path, ids)
    return found, find_objects(found, len(ids))


def library(path: Path, ids: Array) -> Any:
    """The function of `transformers`."""
    from transformers.models.detr.image_processing_pil_detr import prepare_coco_panoptic_annotation

    with Image.open(path) as png:
        width, height = png.size
    entries = [{"id": number, "category_id": 1, "iscrowd": 0, "area": 1} for number in ids.tolist()]
    target = {"image_id": 1, "file_name": path.name, "segments_info": entries}
    photo = np.broadcast_to(np.uint8(0), (height, width, 3))  # Only its size is looked at.
    return prepare_coco_panoptic_annotation(photo, target, path.parent, input_data_format="channels_last")


def pillow(path: Path) -> Array:
    """How the peer decodes."""
    return np.asarray(Image.open(path))


def masks_of_file(path: Path, ids: Array) -> Array:
    """The peer from a file."""
    return masks(pillow(path), ids)


def from_file(truth: Callable[[Path, Array], Array], maps: list[Map]) -> Step:
    """A step that goes from files to truth."""
    return lambda: [truth(one.path, np.array(one.ids)).shape for one in maps]


def whole(prepare: Callable[[Path, Array], Any], maps: list[Map]) -> Step:
    """A step that goes from files to masks and boxes."""
    return lambda: [len(prepare(one.path, np.array(one.ids))) for one in maps]


def from_colors(truth: Callable[[Array, Array], Array], maps: list[Map]) -> Step:
    """A step that starts with what has been decoded."""
    decoded = [(pillow(one.path), np.array(one.ids)) for one in maps]
    return lambda: [truth(colors, ids).shape for colors, ids in decoded]


# --- rows ------------------------------------------------------------------------------------------------------------


def rows(data: Path = DATA, size: tuple[int, int] = (480, 640), rounds: int = 15, count: int = 100) -> list[Row]:
    """Time in alternating runs, and peak memory of one run each in a process of its own.

    Args:
        data: folder of data sets; without the real one in it there are no rows of that.
        size: (H, W) of the drawn map.
        count: maps of the real set.
    """
    with TemporaryDirectory() as folder:
        drawn = [draw_map(Path(folder) / "drawn.png", size=size)]
        small = [draw_map(Path(folder) / "small.png", segments=2, size=(8, 8))]
        found = measured("30 segments", drawn, small, rounds)
        if (data / REAL).is_file():
            real = real_maps(data / REAL, count)
            found += measured(f"{len(real)} real maps", real, small, max(1, rounds // 5))
    return found


def measured(name: str, maps: list[Map], small: list[Map], rounds: int) -> list[Row]:
    """The rows of some maps; seconds are those of one map."""
    sides: dict[str, Callable[[list[Map]], Step]] = {
        "ours": partial(whole, map_and_boxes),
        "transformers": partial(whole, library),
        "map alone": partial(from_file, id_map_of_file),
        "masks alone": partial(from_file, masks_of_file),
        "map alone, decoded": partial(from_colors, id_map),
        "masks alone, decoded": partial(from_colors, masks),
    }
    total = alternate({side: prepare(maps) for side, prepare in sides.items()}, rounds)
    seconds = {side: value / len(maps) for side, value in total.items()}
    memory = {side: peak_memory(prepare, small, maps) for side, prepare in sides.items()}
    return [
        Row(f"{name}: time", seconds["ours"], "s", seconds["transformers"], ratio_least=3),
        Row("  masks alone: time", seconds["map alone"], "s", seconds["masks alone"], ratio_least=3),
        Row("  decoded before: time", seconds["map alone, decoded"], "s", seconds["masks alone, decoded"]),
        Row(f"{name}: memory", memory["ours"], "MiB", memory["transformers"]),
        Row("  masks alone: memory", memory["map alone"], "MiB", memory["masks alone"], ratio_least=20),
        Row("  decoded before: memory", memory["map alone, decoded"], "MiB", memory["masks alone, decoded"]),
    ]
