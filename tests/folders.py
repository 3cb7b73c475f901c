"""Small data folders, written by Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from everymask.types import Sample

Array = np.ndarray[Any, Any]
CROSS = np.array([[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]], np.uint8)


def write(folder: Path, masks: dict[str, Array], kind: str = "masks", images: str = "images") -> Path:
    """A photo and a mask for each stem; returns `folder`."""
    for stem, mask in masks.items():
        write_photo(folder / images / f"{stem}.jpg", mask.shape[1::-1])
        write_mask(folder / kind / f"{stem}.png", mask)
    return folder


def write_photo(path: Path, size: tuple[int, ...]) -> None:
    """One of one colour; `size` is (W, H)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[0], size[1]), "orange").save(path)


def write_mask(path: Path, mask: Array, palette: list[int] | None = None) -> None:
    """Values [H, W] or colours [H, W, 3]; with `palette` (R, G, B, R, ...) its indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    if palette:
        picture.putpalette(palette)
    picture.save(path)


def write_table(root: Path, table: Any) -> None:
    """``classes.json``, from an object or a text."""
    (root / "classes.json").write_text(table if isinstance(table, str) else json.dumps(table))


def ids_of(sample: Sample) -> list[list[int]]:
    """The id map as lists."""
    ids: list[list[int]] = sample.segments.id_map.tolist()
    return ids
