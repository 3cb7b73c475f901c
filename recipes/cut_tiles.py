"""Cut photos and their instance masks into square tiles: crowded photos become easy ones.

    python recipes/cut_tiles.py ../shared/data/dsb2018_he runs/nuclei-tiles --side 128 --hold-out 5

Tiles of about one photo in five, chosen by name, go to ``val``, all others to ``train``. Each tile is numbered anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import everymask as em
from everymask.datasets import hold_out
from everymask.image import write_png
from everymask.types import Sample


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--hold-out", type=int, default=5)
    given = parser.parse_args()
    parts = hold_out(em.open_dataset(given.data), given.hold_out)
    for split, part in zip(("train", "val"), parts, strict=True):
        count = sum(cut(sample, given.side, given.out / split) for sample in part)
        print(f"{given.out / split}: {count} tiles of {len(part)} photos")


def cut(sample: Sample, side: int, folder: Path) -> int:
    """Write the tiles of one photo; returns how many. What is left at the right and bottom overlaps its neighbour."""
    ids = sample.segments.id_map.numpy()
    places = [(y, x) for y in starts(ids.shape[0], side) for x in starts(ids.shape[1], side)]
    for y, x in places:
        name = f"{sample.name}-{y}-{x}.png"
        _, numbers = np.unique(ids[y : y + side, x : x + side], return_inverse=True)
        own = numbers.reshape(min(side, ids.shape[0]), -1) + int(ids[y : y + side, x : x + side].min() > 0)
        write_png(folder / "images" / name, sample.image[y : y + side, x : x + side])
        write_png(folder / "instances" / name, own.astype(np.uint16))
    return len(places)


def starts(length: int, side: int) -> list[int]:
    """Where tiles begin so that they cover a length."""
    count = max(1, -(-length // side))
    return [round(n * (length - side) / max(1, count - 1)) for n in range(count)] if length > side else [0]


if __name__ == "__main__":
    main()
