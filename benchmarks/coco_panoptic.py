"""A panoptic PNG to the truth of its image, against the usual way: ids from colours, then a mask for each segment.

    python -m benchmarks coco_panoptic

Ours is one id map, int32 [H, W], checked: JSON and PNG must know the same segments. The peer is what code for this
format does everywhere: `rgb2id` of panopticapi (R + 256 G + 65536 B in int32), one comparison a segment, one stack of
booleans [N, H, W], unchecked. "As floats" goes on to float32 [N, H, W], which image processors hand over and mask
losses take; the bar on memory is on that. (An id map takes four bytes a pixel, so against the booleans of 30 segments
and their stack no reader could be 20 times smaller.)

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

from everymask.datasets.segment_ids import read_colors, rows_of

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
    """Ours: int32 [H, W]."""
    found = rows_of(colors, ids)
    assert not found.unknown
    assert not found.absent
    return found.id_map


def masks(colors: Array, ids: Array) -> Array:
    """The peer: bool [N, H, W]."""
    wide = colors.astype(np.int32)
    values = wide[:, :, 0] + 256 * wide[:, :, 1] + 256 * 256 * wide[:, :, 2]
    return np.stack([values == number for number in ids])


def float_masks(colors: Array, ids: Array) -> Array:
    """The peer, up to what a loss takes: float32 [N, H, W]."""
    return masks(colors, ids).astype(np.float32)


def pillow(path: Path) -> Array:
    """How the peer decodes."""
    return np.asarray(Image.open(path))


def from_file(read: Callable[[Path], Array], truth: Callable[[Array, Array], Array], maps: list[Map]) -> Step:
    """A step that goes from files to truth."""
    return lambda: [truth(read(one.path), np.array(one.ids)).shape for one in maps]


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
        "ours": partial(from_file, read_colors, id_map),
        "peer": partial(from_file, pillow, masks),
        "floats": partial(from_file, pillow, float_masks),
        "ours, decoded": partial(from_colors, id_map),
        "peer, decoded": partial(from_colors, masks),
    }
    total = alternate({side: prepare(maps) for side, prepare in sides.items()}, rounds)
    seconds = {side: value / len(maps) for side, value in total.items()}
    memory = {side: peak_memory(prepare, small, maps) for side, prepare in sides.items()}
    return [
        Row(f"{name}: time", seconds["ours"], "s", seconds["peer"], ratio_least=3),
        Row("  decoded before: time", seconds["ours, decoded"], "s", seconds["peer, decoded"]),
        Row(f"{name}: memory", memory["ours"], "MiB", memory["peer"]),
        Row("  as floats: memory", memory["ours"], "MiB", memory["floats"], ratio_least=20),
        Row("  decoded before: memory", memory["ours, decoded"], "MiB", memory["peer, decoded"]),
    ]
