"""Explicit prompts from disk, as `save_prompts` wrote them, and the proof that they are of these photos and masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import DataError
from .maps import segment_areas, segment_boxes
from .prompt_files import photo_digest
from .prompts import BOTTOM_RIGHT, NEGATIVE, OBJECTS, objects_of
from .types import Prompts, Sample, Segments

AGAIN = "Write the prompts of these data again: everymask prompts DATA --out F.json."


@dataclass(frozen=True, eq=False)
class PromptFile:
    """The prompts of a data set by sample name.

    Attributes:
        path: of the file.
        by: what an object is in it.
        rows: a line of the file each.
    """

    path: Path
    by: str
    rows: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> PromptFile:
        """Check the whole file.

        Raises:
            DataError: it cannot be read, or an entry makes no sense; the message names it.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_bytes())
            by, samples = data["settings"]["by"], data["samples"]
            rows = {row["name"]: row for row in samples}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"[:200]
            raise DataError("cannot read a file of prompts", where=path, why=why, fix=AGAIN) from error
        if by not in OBJECTS or len(rows) < len(samples):
            why = f"by is {by!r}" if by not in OBJECTS else "a name occurs twice"
            raise DataError("a file of prompts makes no sense", where=path, why=why, fix=AGAIN)
        for name, row in rows.items():
            if why := fault(row):
                raise DataError("an entry of a file of prompts makes no sense", where=f"{path}, {name}", why=why)
        return cls(path, by, rows)

    def of(self, sample: Sample) -> tuple[Prompts, Segments]:
        """The prompts of a sample, and its objects.

        Raises:
            DataError: there are none, or they belong to another photo or other masks.
        """
        row = self.rows.get(sample.name)
        if row is None:
            raise self._refused("has no prompts of a sample", sample, f"{len(self.rows)} others")
        if row["size"] != list(sample.image.shape[:2]) or row["photo"] != photo_digest(sample.image):
            raise self._refused("belongs to other images", sample, "the photo is not the one that was prompted")
        objects = objects_of(sample.segments, self.by)
        if [(entry["area"], entry["box"]) for entry in row["objects"]] != measured(objects):
            raise self._refused("belongs to other masks", sample, "areas or boxes of the objects differ")
        points = torch.tensor(row["points"], dtype=torch.float32).reshape(-1, 2)
        labels = torch.tensor(row["labels"], dtype=torch.int32)
        return Prompts(points, labels, torch.tensor(row["of"], dtype=torch.int64)), objects

    def of_objects(self, sample: Sample) -> tuple[Sample, Prompts]:
        """The same with the objects as the sample's truth."""
        prompts, objects = self.of(sample)
        return replace(sample, segments=objects), prompts

    def _refused(self, what: str, sample: Sample, why: str) -> DataError:
        return DataError(f"this file of prompts {what}", where=f"{self.path}, {sample.name}", why=why, fix=AGAIN)


def measured(objects: Segments) -> list[tuple[int, list[int] | None]]:
    """Area and tight box of each object, as they are written."""
    pairs = zip(segment_areas(objects).tolist(), segment_boxes(objects), strict=True)
    return [(area, None if box is None else list(box)) for area, box in pairs]


def fault(row: dict[str, Any]) -> str:
    """What is wrong with an entry; empty if nothing is."""
    try:
        (height, width), count = row["size"], len(row["objects"])
        points, labels, of = (np.array(row[key], float) for key in ("points", "labels", "of"))
        points = points.reshape(-1, 2)
        if not isinstance(row["photo"], str) or not all("area" in entry and "box" in entry for entry in row["objects"]):
            return "it is not complete"
    except (ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    if not len(points) == len(labels) == len(of):
        return f"{len(points)} points, {len(labels)} labels, {len(of)} objects"
    if odd := _first(labels, np.isin(labels, range(NEGATIVE, BOTTOM_RIGHT + 1))):
        return f"a label is {odd}, not 0, 1, 2 or 3"
    if odd := _first(of, np.isin(of, range(count))):
        return f"a point is of object {odd}, there are {count}"
    inside = ((points >= -0.5) & (points <= np.array([width, height]) - 0.5)).all(1)
    if not inside.all():
        x, y = points[~inside][0]
        return f"the point ({x:g}, {y:g}) is outside of {width} x {height}"
    return "" if boxes_in_order(points, labels, of) else "the corners of a box are not in order"


def _first(values: np.ndarray, good: np.ndarray) -> str:
    """The first value that is not good, as text; empty if all are."""
    return "" if good.all() else f"{values[~good][0]:g}"


def boxes_in_order(points: np.ndarray, labels: np.ndarray, of: Sequence[float] | np.ndarray) -> bool:
    """Whether every object has as many top left as bottom right corners, and those lie before these."""
    starts, ends = labels == 2, labels == 3
    rows = np.asarray(of)
    return bool(np.array_equal(rows[starts], rows[ends]) and (points[starts] <= points[ends]).all())
