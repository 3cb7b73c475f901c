"""Mattes: masks that say how much of each pixel is the subject, 0 (none) to 255 (all). What such readers share.

The matte is kept as it is (`Segments.alpha`); the id map is its hard version: a pixel belongs to the subject where
alpha is at least 128. Nothing is void. Polarity is never touched: white is the subject, and a data set that has it the
other way round is for the data doctor to report, not for a reader to guess.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..labels import LabelMap
from ..types import Segments
from .base import PairDataset

OPAQUE = 128
"""The smallest alpha that counts as the subject."""

PERSON = LabelMap.from_names(["person"])


class MatteDataset(PairDataset):
    """Photo plus matte, one class."""

    def segments(self, mask: np.ndarray, path: Path) -> Segments:
        return matte_segments(matte_values(mask, path), self.labels)


def matte_values(mask: np.ndarray, path: Path) -> np.ndarray:
    """Alpha uint8 [H, W] from raw values [H, W] or grey [H, W, 3].

    Raises:
        DataError: the pixels are coloured or 16-bit, or stop at 1, where 255 is due.
    """
    if mask.ndim == 3 and (mask == mask[..., :1]).all():
        mask = mask[..., 0]
    if mask.ndim != 2 or mask.dtype != np.uint8:
        why = "its pixels are coloured" if mask.ndim == 3 else f"its values are {mask.dtype}"
        raise DataError("expected a matte", where=path, why=why, fix="Save it as an 8-bit grey PNG, 0 to 255.")
    if mask.max(initial=0) == 1:
        # Read as alpha this would be an empty picture: nobody means that.
        fix = "Multiply it by 255, or read the folder as plain masks: format='folder'."
        raise DataError("expected a matte", where=path, why="its values are 0 and 1, not 0 to 255", fix=fix)
    return np.ascontiguousarray(mask)


def matte_segments(alpha: np.ndarray, labels: LabelMap) -> Segments:
    """Truth of one subject of class 0 from its matte, uint8 [H, W]; no segment where no pixel is opaque."""
    ids = (alpha >= OPAQUE).astype(np.int32)
    return Segments.build(ids, [0] * int(ids.any()), labels=labels, alpha=alpha)
