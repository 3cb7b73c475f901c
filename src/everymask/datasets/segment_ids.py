"""PNG files whose colours are numbers of segments, as in COCO panoptic, to an id map.

No mask is made for any segment, and most files are decoded by a reader that takes a fifth of the time that Pillow does.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kornia_rs.io import decode_image_png_u8

from ..errors import DataError
from ..image import MAX_PIXELS, read_mask
from ..types import VOID, id_type

LARGEST_ID = (1 << 24) - 1
BLOCK = 1 << 15
"""Pixels that are looked up at a time: as many as stay in a processor's cache."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EIGHT_BIT_RGB = b"\x08\x02\0\0\0"
"""The end of a header: 8 bits, RGB, the usual compression and filters, not interlaced."""


def read_colors(path: Path) -> np.ndarray:
    """The colours of a PNG of segment ids, uint8 [H, W, 3].

    Raises:
        ImageError: the file cannot be read.
        DataError: it is not in colour.
    """
    colors = _plain_colors(path)
    if colors is None:  # Whatever is out of the ordinary, faults included.
        colors = read_mask(path)
    if colors.ndim != 3:
        fix = "Give PNG files of the panoptic task, in which R + 256 G + 65536 B is the id of a segment."
        raise DataError("expected segment ids as colours", where=path, why="its pixels are grey", fix=fix)
    return colors


def _plain_colors(path: Path) -> np.ndarray | None:
    """The pixels of a PNG of 8-bit RGB and nothing else, None of any other file."""
    with suppress(Exception):  # The decoder raises nothing more particular; `read_mask` will say what is wrong.
        data = path.read_bytes()
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        if data[24:29] == EIGHT_BIT_RGB and width * height <= MAX_PIXELS and _has_pixels_alone(data):
            return np.asarray(decode_image_png_u8(data, (height, width), "rgb"))
    return None


def _has_pixels_alone(data: bytes) -> bool:
    """Whether a PNG consists of header, pixels and end, without transparency, orientation or anything after it."""
    kinds, at = [], len(SIGNATURE)
    while at < len(data):
        kinds.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big") + 12
    plain = kinds[:1] == [b"IHDR"] and kinds[-1:] == [b"IEND"] and set(kinds[1:-1]) == {b"IDAT"}
    return plain and at == len(data) and data.startswith(SIGNATURE)


class Rows(NamedTuple):
    """What `rows_of` finds.

    Attributes:
        id_map: [H, W] of the smallest type that holds the ids, -1 where the colour is 0, n + 1 where it is the id of
            segment n.
        unknown: colours that are neither, as ids in ascending order.
        absent: segments n that have no pixel, in ascending order.
    """

    id_map: np.ndarray
    unknown: list[int]
    absent: list[int]


def read_rows(path: Path, ids: np.ndarray) -> Rows:
    """`rows_of` the colours in a file, with no more memory than the colours take.

    Raises:
        ImageError: the file cannot be read.
        DataError: it is not in colour.
    """
    colors = read_colors(path)
    dtype = id_type(len(ids))
    if dtype.itemsize > 2 or not (colors.flags.owndata and colors.flags.writeable):
        return rows_of(colors, ids)
    # An id takes less than a colour does, so it may be written where colours were that have been looked up.
    (height, width), memory = colors.shape[:2], colors.reshape(-1).view(dtype)
    unknown, absent = _fill(memory[: height * width], colors.reshape(-1, 3), ids)
    del memory
    colors.resize((height, width * dtype.itemsize), refcheck=False)  # Gives the rest back; no other view is left.
    return Rows(colors.view(dtype), unknown, absent)


def rows_of(colors: np.ndarray, ids: np.ndarray) -> Rows:
    """Colours to rows of the table of segments.

    Args:
        colors: uint8 [H, W, 3]; R + 256 G + 65536 B is the id of a segment, 0 is void.
        ids: of the segments [N], all different and none 0.
    """
    id_map = np.empty(colors.shape[:2], id_type(len(ids)))
    return Rows(id_map, *_fill(id_map.reshape(-1), colors.reshape(-1, 3), ids))


def _fill(id_map: np.ndarray, colors: np.ndarray, ids: np.ndarray) -> tuple[list[int], list[int]]:
    """Write the ids [P] of colours [P, 3], from the first pixel to the last, and tell what is unknown and absent.

    Neighbours mostly belong to one segment, so only the first pixel of each run of equal ones is looked up.
    """
    known = np.concatenate([[0], ids]).astype(np.uint32)
    order = np.argsort(known)
    known, rows = known[order], np.where(order == 0, VOID, order).astype(id_map.dtype)
    unknown, absent = set[int](), np.arange(len(known)) > 0
    for start in range(0, len(colors), BLOCK):
        values, lengths = _runs(colors[start : start + BLOCK])
        position = np.searchsorted(known, values).clip(max=len(ids))
        unknown.update(values[known[position] != values].tolist())
        absent[position] = False
        id_map[start : start + BLOCK] = np.repeat(rows[position], lengths)
    return sorted(unknown), np.sort(order[absent] - 1).tolist()


def _runs(colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values uint32 and lengths of the runs of equal colours uint8 [P, 3]."""
    channels = colors.reshape(-1)
    # A pixel comes up once for each channel in which it differs from the one before.
    changes = np.flatnonzero(channels[3:] != channels[:-3]) // 3 + 1
    starts = np.concatenate([[0], changes[np.diff(changes, prepend=0) > 0]])
    values = colors[starts].astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    return values, np.diff(starts, append=len(colors))
