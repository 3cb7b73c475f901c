"""Masks of COCO to pixels: polygons against a plain drawing of them, run lengths against hotcoco; and layers."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hotcoco import mask as hotcoco_mask
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from everymask.datasets.rle import decode_mask, layered, polygons_mask, rle_mask, uncompressed

Array = np.ndarray[Any, Any]


def boxes(*corners: tuple[int, int, int, int]) -> list[list[float]]:
    """Rectangles (x0, y0, x1, y1) in pixel edges as polygons."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in corners]


# --- polygons --------------------------------------------------------------------------------------------------------


def drawn(polygon: list[float], height: int, width: int) -> Array:
    """A polygon as COCO's published algorithm draws it, point by point: outline on a grid five times as fine, where it
    crosses the middle of a column, and from there run lengths down the columns."""
    fine = 5
    corners = [(int(fine * x + 0.5), int(fine * y + 0.5)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    outline: list[tuple[int, int]] = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        outline += line(x0, y0, x1, y1)
    crossings = [
        crossing
        for (x0, y0), (x1, y1) in pairwise(outline)
        if x0 != x1 and (crossing := cross(x0 if x1 > x0 else x0 - 1, min(y0, y1), height, width)) is not None
    ]
    on = np.zeros(height * width + 1, np.int64)
    np.add.at(on, crossings, 1)
    return (np.cumsum(on[:-1]) % 2 == 1).reshape(width, height).T


def line(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    across, down = abs(x1 - x0), abs(y1 - y0)
    swapped = (across >= down and x0 > x1) or (across < down and y0 > y1)
    if swapped:
        x0, x1, y0, y1 = x1, x0, y1, y0
    if across >= down:
        slope = (y1 - y0) / across if across else 0.0
        points = [(x0 + t, int(y0 + slope * t + 0.5)) for t in range(across + 1)]
    else:
        slope = (x1 - x0) / down
        points = [(int(x0 + slope * t + 0.5), y0 + t) for t in range(down + 1)]
    return points[::-1] if swapped else points


def cross(x: int, y: int, height: int, width: int) -> int | None:
    """Where, down the columns, a step of the outline from fine column x to x + 1 flips pixels on or off."""
    column = (x + 0.5) / 5 - 0.5
    if column != int(column) or not 0 <= column <= width - 1:
        return None
    row = min(max((y + 0.5) / 5 - 0.5, 0.0), float(height))
    return int(column) * height + int(np.ceil(row))


sides = st.integers(1, 12)
coordinates = st.one_of(st.integers(-8, 40).map(lambda n: n / 2), st.floats(-4, 20, width=32))


@given(height=sides, width=sides, points=st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8))
def test_polygons_are_drawn_as_coco_draws_them(height: int, width: int, points: list[tuple[float, float]]) -> None:
    polygon = [float(number) for point in points for number in point]
    xs, ys = polygon[::2], polygon[1::2]
    outside = max(xs) < 0 or max(ys) < 0 or min(xs) > width or min(ys) > height
    far = min(xs) < -width or min(ys) < -height or max(xs) > 2 * width or max(ys) > 2 * height
    if outside or far:
        with pytest.raises(ValueError, match=r"^polygon 0: it (lies outside|reaches further beyond) the image"):
            polygons_mask([polygon], (height, width))
    else:
        assert polygons_mask([polygon], (height, width)).tolist() == drawn(polygon, height, width).tolist()


def test_a_polygon_on_squared_paper() -> None:
    mask = polygons_mask(boxes((1, 1, 4, 3)), (5, 5))
    assert mask.astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_several_polygons_are_their_union_and_the_frame_cuts() -> None:
    mask = polygons_mask(boxes((-2, -1, 2, 2), (1, 1, 3, 3), (4, 4, 9, 5)), (5, 5))
    assert mask.astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
    ]


# --- run lengths -----------------------------------------------------------------------------------------------------

masks = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=30))


@given(masks)
def test_compressed_run_lengths_of_hotcoco_are_read(mask: Array) -> None:
    encoded = hotcoco_mask.encode(mask.astype(np.uint8))
    rle = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    assert rle_mask(rle, mask.shape).tolist() == mask.tolist()


@given(masks)
def test_plain_run_lengths_are_read(mask: Array) -> None:
    column_wise = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(column_wise, prepend=0))
    counts = np.diff(changes, prepend=0, append=mask.size).tolist()
    assert rle_mask({"size": [*mask.shape], "counts": counts}, mask.shape).tolist() == mask.tolist()


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=30))
def test_long_runs_survive_compression(counts: list[int]) -> None:
    text = "".join(compressed(n if k < 3 else n - counts[k - 2]) for k, n in enumerate(counts))
    assert uncompressed(text).tolist() == counts


def compressed(number: int) -> str:
    """One number, five bits a character, until what is left is its sign."""
    text = ""
    while True:
        bits, number = number & 31, number >> 5
        done = number == (-1 if bits & 16 else 0)
        text += chr(48 + (bits if done else bits | 32))
        if done:
            return text


def test_run_lengths_have_holes() -> None:
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    assert rle_mask({"size": [5, 5], "counts": [0, 6, 3, 2, 3, 2, 3, 6]}, (5, 5)).tolist() == ring.tolist()


NO_MASKS: list[tuple[Any, str]] = [
    (None, "expected polygons or run lengths, found None"),
    (5, "expected polygons or run lengths, found 5"),
    ("abc", "expected polygons or run lengths, found 'abc'"),
    ([], "there is no polygon"),
    ([1, 1, 4, 1, 4, 3], "polygon 0: expected numbers [x0, y0, x1, y1, ...], found 1"),
    ([[1, 1, 4, 1, 4, "3"]], "polygon 0: expected numbers [x0, y0, x1, y1, ...], found [1, 1, 4, 1, 4, '3']"),
    ([[1, 1, 4, 1, 4, True]], "polygon 0: expected numbers [x0, y0, x1, y1, ...], found [1, 1, 4, 1, 4, True]"),
    ([[1, 1, 4, 1]], "polygon 0: three points or more have 6, 8, 10, ... numbers, this has 4"),
    ([[1, 1, 4, 1, 4, 3, 2]], "polygon 0: three points or more have 6, 8, 10, ... numbers, this has 7"),
    ([[1, 1, 4, 1, 4, 3], []], "polygon 1: three points or more have 6, 8, 10, ... numbers, this has 0"),
    ([[1, 1, 4, float("nan"), 4, 3]], "polygon 0: a coordinate is NaN or infinite"),
    ([[1, 1, 4, float("inf"), 4, 3]], "polygon 0: a coordinate is NaN or infinite"),
    ([[1, 1, 4, 10**400, 4, 3]], "polygon 0: a coordinate is too large"),
    (boxes((7, 1, 8, 3)), "polygon 0: it lies outside the image (x 7 to 8, y 1 to 3 in an image of 6x5)"),
    (boxes((1, -3, 3, -1)), "polygon 0: it lies outside the image (x 1 to 3, y -3 to -1 in an image of 6x5)"),
    (
        boxes((1, 1, 10**9, 3)),
        "polygon 0: it reaches further beyond the image than the image is wide or high "
        "(x 1 to 1e+09, y 1 to 3 in an image of 6x5)",
    ),
    ([[0, 0, 6, 5] * 200], "polygon 0: its outline of 2,400 pixels is longer than any in 30 pixels"),
    ({}, 'run lengths of another size: "size" is None, [height, width] of the image is [5, 6]'),
    (
        {"size": [6, 5], "counts": [30]},
        'run lengths of another size: "size" is [6, 5], [height, width] of the image is [5, 6]',
    ),
    (
        {"size": [10**9, 10**9], "counts": [10**18]},
        'run lengths of another size: "size" is [1000000000, 1000000000], [height, width] of the image is [5, 6]',
    ),
    (
        {"size": [5.0, 6], "counts": [30]},
        'run lengths of another size: "size" is [5.0, 6], [height, width] of the image is [5, 6]',
    ),
    ({"size": [5, 6]}, '"counts" are whole numbers or compressed text, found None'),
    ({"size": [5, 6], "counts": [15.0, 15.0]}, '"counts" are whole numbers or compressed text, found [15.0, 15.0]'),
    ({"size": [5, 6], "counts": []}, "run lengths do not add up to the 30 pixels of 6x5"),
    ({"size": [5, 6], "counts": [10, 10]}, "run lengths do not add up to the 30 pixels of 6x5"),
    ({"size": [5, 6], "counts": [10, 10**18]}, "run lengths do not add up to the 30 pixels of 6x5"),
    ({"size": [5, 6], "counts": [2**63, 2**63, 30]}, "run lengths do not add up to the 30 pixels of 6x5"),
    ({"size": [5, 6], "counts": [40, -10]}, "a run length is negative: -10"),
    ({"size": [5, 6], "counts": ""}, "compressed run lengths are damaged or cut off: ''"),
    ({"size": [5, 6], "counts": "é"}, "compressed run lengths are damaged or cut off: 'é'"),
    ({"size": [5, 6], "counts": "o"}, "compressed run lengths are damaged or cut off: 'o'"),
    ({"size": [5, 6], "counts": "oooooooo0"}, "a compressed run length has more than 7 characters"),
    ({"size": [5, 6], "counts": "9"}, "run lengths do not add up to the 30 pixels of 6x5"),
    ({"size": [5, 6], "counts": "10J"}, "run lengths do not add up to the 30 pixels of 6x5"),
]


@pytest.mark.parametrize(("segmentation", "text"), NO_MASKS)
def test_masks_that_cannot_be(segmentation: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        decode_mask(segmentation, (5, 6))


# --- layers ----------------------------------------------------------------------------------------------------------


@given(npst.arrays(bool, npst.array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_layers_keep_every_pixel_of_every_mask(stack: Array) -> None:
    ids = layered(stack, stack.shape[1:])
    layers = ids if ids.ndim == 3 else ids[None]
    assert ids.dtype == np.int32
    for n, mask in enumerate(stack, start=1):
        holding = [layer for layer in layers if (layer == n).any()]
        assert len(holding) == int(mask.any())
        assert all(((layer == n) == mask).all() for layer in holding)
    depth = int(stack.sum(0).max())
    assert max(depth, 1) <= len(layers) <= max(len(stack), 1)
    assert (ids.ndim == 2) == (depth <= 1)


def test_the_smaller_lies_in_front() -> None:
    table, cup = np.ones((3, 3), bool), np.eye(3, dtype=bool)
    assert layered([table, cup], (3, 3)).tolist() == [(cup * 2).tolist(), table.astype(int).tolist()]
    assert layered([], (2, 2)).tolist() == [[0, 0], [0, 0]]
