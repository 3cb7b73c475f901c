"""Truth and prediction side by side: error maps and comparison sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from .drawing import Array, contact_sheet
from .errors import DataError
from .labels import Label, LabelMap
from .types import VOID, Segments
from .visualize import check_photo, class_colors, id_layers, overlay

ERRORS = LabelMap(  # Colours of Okabe and Ito, which stay apart with every kind of colour vision.
    (
        Label("correct", (0, 158, 115)),
        Label("missed", (213, 94, 0)),
        Label("false alarm", (86, 180, 233)),
        Label("wrong class", (240, 228, 66)),
    )
)


def error_map(photo: Array, truth: Segments, predicted: Segments, *, legend: bool = True) -> Image.Image:
    """What a prediction got right and wrong, class by class, on a dimmed grey photo; true void is hatched.

    Void that a prediction claims counts as background: nothing was found there.

    Raises:
        DataError: sizes or class tables differ.
    """
    check_photo(photo, truth)
    check_photo(photo, predicted)
    grey = np.asarray(Image.fromarray(photo).convert("L")) // 2 + 16
    kinds = Segments.build(_error_kinds(truth, predicted), range(len(ERRORS)), labels=ERRORS)
    return overlay(np.dstack([grey] * 3), kinds, opacity=0.7, outline=False, legend=legend)


def comparison(rows: Sequence[tuple[str, Array, Segments, Segments]], *, cell: int = 360) -> Image.Image:
    """A sheet with one row for each (name, photo, truth, prediction): photo, truth, prediction and errors.

    Everything is drawn at the size it is shown at, so that outlines and legends stay readable.
    """
    pictures: list[Image.Image] = []
    captions: list[str] = []
    for name, photo, truth, predicted in rows:
        small, true, found = _resized(photo, cell), _resized_segments(truth, cell), _resized_segments(predicted, cell)
        pictures += [Image.fromarray(small), overlay(small, true), overlay(small, found), error_map(small, true, found)]
        captions += [name, "truth", "prediction", "errors"]
    return contact_sheet(pictures, captions, columns=4, cell=cell)


def _error_kinds(truth: Segments, predicted: Segments) -> Array:
    """int32 [H, W]: rows of `ERRORS` from 1, 0 where both see background, -1 where truth is void."""
    tables = [segments.labels.names for segments in (truth, predicted) if segments.labels]
    if len(tables) == 2 and tables[0] != tables[1]:
        why = f"truth has {', '.join(tables[0])}; the prediction has {', '.join(tables[1])}"
        raise DataError("truth and prediction name different classes", where="error_map", why=why)
    ground = max(len(class_colors(truth)), len(class_colors(predicted)))
    true, found = (segments.class_map(ground).cpu().numpy() for segments in (truth, predicted))
    is_there, is_found = true != ground, (found != ground) & (found != VOID)
    kinds = np.select([is_there & (true == found), is_there & ~is_found, ~is_there & is_found, is_there], [1, 2, 3, 4])
    return np.where(true == VOID, VOID, kinds).astype(np.int32)


def _resized(photo: Array, width: int) -> Array:
    height = max(1, round(photo.shape[0] * width / photo.shape[1]))
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))


def _resized_segments(segments: Segments, width: int) -> Segments:
    (rows, columns), layers = segments.size, id_layers(segments)
    height = max(1, round(rows * width / columns))
    ys, xs = np.arange(height) * rows // height, np.arange(width) * columns // width
    small = layers[:, ys[:, None], xs]
    return replace(segments, id_map=segments.id_map.new_tensor(small if len(small) > 1 else small[0]), alpha=None)
