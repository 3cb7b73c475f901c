"""Points and boxes as a user gives them, checked, to `Prompts`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .errors import UsageError
from .prompts import CORNERS, NEGATIVE, POSITIVE
from .types import Prompts

Array = np.ndarray[Any, np.dtype[Any]]


def given_prompts(points: Any = None, labels: Any = None, boxes: Any = None) -> Prompts | None:
    """Prompts in pixels of the photo; None where nothing is given.

    Args:
        points: [P, 2] (x, y) on one object, or a list of such lists, one an object.
        labels: [P], 1 on the object, 0 beside it, nested as `points` are; all 1 if not given.
        boxes: (x0, y0, x1, y1), corners inclusive, or a list of such, one an object. With points, object n has box n.

    Raises:
        UsageError: a wrong shape, a label other than 0 and 1, a box whose corners are not in order, or lists of
            different length.
    """
    if points is None and boxes is None:
        if labels is not None:
            raise UsageError("there are labels but no points", where="labels")
        return None
    clicks, signs = _clicks(points, labels)
    corners = _boxes(boxes)
    if clicks and corners and len(clicks) != len(corners):
        why = f"points for {len(clicks)} objects, {len(corners)} boxes"
        raise UsageError("each object has its points and its box", where="boxes", why=why)
    found = [_object(n, clicks, signs, corners) for n in range(max(len(clicks), len(corners)))]
    if not sum(len(own) for own, _ in found):
        raise UsageError("there is no prompt at all", where="points", fix="Give a point or a box.")
    rows = torch.repeat_interleave(torch.arange(len(found)), torch.tensor([len(own) for own, _ in found]))
    xy = np.concatenate([own for own, _ in found]).astype(np.float32)
    return Prompts(torch.from_numpy(xy), torch.tensor([k for _, own in found for k in own], dtype=torch.int32), rows)


def _object(n: int, clicks: list[Array], signs: list[list[int]], corners: list[Array]) -> tuple[Array, list[int]]:
    """Points [p, 2] and labels of object n, its box first."""
    parts = [corners[n].reshape(2, 2)] if corners else []
    kinds = list(CORNERS) if corners else []
    if clicks:
        parts.append(clicks[n])
        kinds += signs[n]
    return np.concatenate(parts), kinds


def _clicks(points: Any, labels: Any) -> tuple[list[Array], list[list[int]]]:
    """Points and labels of each object."""
    if points is None:
        return [], []
    nested = _is_nested(points)
    clicks = [_numbers("points", own, 2) for own in (points if nested else [points])]
    given = [[POSITIVE] * len(own) for own in clicks] if labels is None else (labels if nested else [labels])
    signs = [[int(k) for k in np.asarray(own).reshape(-1)] for own in given]
    if [len(own) for own in signs] != [len(own) for own in clicks]:
        why = f"{sum(map(len, clicks))} points, {sum(map(len, signs))} labels"
        raise UsageError("each point has one label", where="labels", why=why)
    if odd := sorted({k for own in signs for k in own} - {NEGATIVE, POSITIVE}):
        fix = "1 is on the object, 0 beside it; give boxes as boxes."
        raise UsageError("no such label of a point", where="labels", why=str(odd[0]), fix=fix)
    return clicks, signs


def _is_nested(points: Any) -> bool:
    """Whether there is a list of points for each object, rather than one list of points."""
    first = next(iter(points), None)
    return np.ndim(first) == 2 if first is not None and len(first) else False


def _boxes(boxes: Any) -> list[Array]:
    if boxes is None:
        return []
    corners = _numbers("boxes", [boxes] if np.ndim(boxes) == 1 and len(boxes) else boxes, 4)
    for box in corners:
        if box[2] < box[0] or box[3] < box[1]:
            why, fix = f"{box.tolist()}", "A box is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1."
            raise UsageError("the corners of a box are not in order", where="boxes", why=why, fix=fix)
    return list(corners)


def _numbers(name: str, values: Any, width: int) -> Array:
    """[n, width] float64."""
    try:
        array = (
            np.asarray(values, dtype=np.float64).reshape(-1, width) if len(values) == 0 else np.asarray(values, float)
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} are not numbers", where=name, why=str(error)) from error
    if array.ndim != 2 or array.shape[1] != width or not np.isfinite(array).all():
        why = f"shape {array.shape}" if array.ndim != 2 or array.shape[1] != width else "not finite"
        raise UsageError(f"{name} have the wrong shape", where=name, why=f"{why}, needed [n, {width}]")
    return array


def check_inside(prompts: Prompts, size: tuple[int, int]) -> None:
    """Raise `UsageError` if a point or a corner lies outside a photo of `size` (H, W)."""
    low, high = -0.5, prompts.points.new_tensor([size[1], size[0]]) - 0.5
    outside = ((prompts.points < low) | (prompts.points > high)).any(1)
    if bool(outside.any()):
        x, y = prompts.points[outside][0].tolist()
        why = f"({x:g}, {y:g}) on a photo of {size[1]} x {size[0]}"
        raise UsageError("a prompt lies outside the photo", where="points", why=why)
