"""Photos that occur twice: equal to the pixel, or to the eye, found among the prints of all photos at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from ...errors import ImageError
from ...image import read_image
from .survey import Survey
from .tally import Prints

NEAR_BITS = 6
"""Two photos may be nearly the same if so many bits of their looks differ at most."""

BAND = 16
"""Bits of a band. Only looks that agree in one of the four bands are compared, as all do that differ in three bits."""

LARGEST_BUCKET = 200
"""Photos that agree in a band; more do so only where the band says nothing (a dark border)."""

MOST_CANDIDATES = 400
"""Pairs that are opened and compared; more would be a video, where a few hundred examples are enough."""

GRID = 32
SAME_LOOK = 0.98
"""Least correlation of two photos, brightness averaged over a 32 x 32 grid, that are nearly the same."""


def exact_copies(prints: Prints) -> list[list[tuple[int, int]]]:
    """Groups of two or more photos with equal pixels: (sample number, digest of its mask) of each, in order."""
    numbers, digests, masks, _, _ = prints.columns()
    order = np.argsort(digests, kind="stable")
    edges = np.flatnonzero(np.diff(digests[order])) + 1
    groups = [group for group in np.split(order, edges) if len(group) > 1]
    return sorted(list(zip(numbers[group].tolist(), masks[group].tolist(), strict=True)) for group in groups)


def near_copies(prints: Prints, survey: Survey) -> list[tuple[int, int]]:
    """Pairs of sample numbers, of two splits, whose photos look the same and are not equal to the pixel."""
    columns = prints.columns()
    numbers, digests, _, looks, _ = columns[:, columns[4] > 0]
    ends = np.cumsum([len(part) for part in survey.parts])
    splits = np.searchsorted(ends, numbers.astype(np.int64), side="right")
    if len(np.unique(splits)) < 2:
        return []
    pairs = _close_pairs(looks, lambda a, b: (splits[a] != splits[b]) & (digests[a] != digests[b]))
    found = [(int(numbers[a]), int(numbers[b])) for a, b in pairs[:MOST_CANDIDATES]]
    return [pair for pair in found if _look_the_same(*pair, survey)]


def _close_pairs(looks: np.ndarray, wanted: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> list[tuple[int, int]]:
    """Sorted pairs of positions whose looks uint64 [n] differ in at most `NEAR_BITS` bits."""
    close: set[tuple[int, int]] = set()
    for shift in range(0, 64, BAND):
        band = (looks >> np.uint64(shift)) & np.uint64((1 << BAND) - 1)
        order = np.argsort(band, kind="stable")
        edges = np.flatnonzero(np.diff(band[order])) + 1
        for group in np.split(order, edges):
            if 1 < len(group) <= LARGEST_BUCKET:
                close |= _close_in(np.sort(group), looks, wanted)
    return sorted(close)


def _close_in(
    group: np.ndarray, looks: np.ndarray, wanted: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> set[tuple[int, int]]:
    first, second = (group[side] for side in np.triu_indices(len(group), 1))
    differing = np.bitwise_count(looks[first] ^ looks[second])
    close = (differing <= NEAR_BITS) & wanted(first, second)
    return set(zip(first[close].tolist(), second[close].tolist(), strict=True))


def _look_the_same(one: int, other: int, survey: Survey) -> bool:
    """A second look at two photos, finer than their 64 bits."""
    try:
        grids = [_grid(survey, number) for number in (one, other)]
    except ImageError:
        return False
    deviations = [grid - grid.mean() for grid in grids]
    scale = float(np.prod([np.linalg.norm(deviation) for deviation in deviations]))
    return scale > 0 and float((deviations[0] * deviations[1]).sum()) / scale >= SAME_LOOK


def _grid(survey: Survey, number: int) -> np.ndarray:
    """Brightness float64 [GRID, GRID] of a photo."""
    picture = Image.fromarray(read_image(survey.ref(number).files[0], min_side=2 * GRID)).convert("L")
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX), np.float64)
