"""Clips: consecutive frames of one video in which a row of the truth is the same object throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .transforms import Geometry, collate
from .types import VOID, Batch, Prompts, Sample


@dataclass(frozen=True, eq=False)
class FrameBatch(Batch):
    """A `Batch` whose T images follow each other: prompts of one frame ask for objects in all.

    All `segments` have the same rows; an object that a frame does not show has no pixel there. A photo is a clip of
    one frame.

    Attributes:
        frames: number of each frame in its video.
        reverse: the frames are in reversed order.
    """

    frames: tuple[int, ...] = ()
    reverse: bool = False

    @property
    def count(self) -> int:
        """O: the objects, prompted for or not."""
        told = max((prompts.count for prompts in self.prompts or ()), default=0)
        return max(told, len(self.segments[0]) if self.segments else 0)

    @property
    def source_sizes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of each frame before it was put on the canvas."""
        return tuple(box.source for box in self.letterboxes)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Prompts as models take them: ``point_coords`` [T, O, K, 2] and ``point_labels`` [T, O, K], padded with -1."""
        told = self.prompts or tuple(nothing() for _ in self.images)
        own = [prompts.padded(self.count) for prompts in told]
        width = max(labels.shape[1] for _, labels in own)
        coords = torch.zeros(len(own), self.count, width, 2)
        kinds = torch.full((len(own), self.count, width), -1, dtype=torch.int32)
        for t, (points, labels) in enumerate(own):
            coords[t, :, : labels.shape[1]], kinds[t, :, : labels.shape[1]] = points, labels
        return coords, kinds

    def masks(self) -> Tensor:
        """bool [T, O, H, W], made from the id maps when somebody asks."""
        rows = torch.arange(1, self.count + 1, device=self.images.device)[:, None, None]
        layers = [s.id_map if s.id_map.ndim == 3 else s.id_map[None] for s in self.truth()]
        return torch.stack([(ids[None] == rows[:, None]).any(1) for ids in layers])


def nothing() -> Prompts:
    """No prompt for any object."""
    return Prompts(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))


def clip_of(names: Sequence[str], index: int, count: int, rng: np.random.Generator) -> list[int]:
    """Indices of `count` consecutive frames of the video that sample `index` is of, in either order.

    Frames of one video have names ``video/frame`` that differ after the last slash. A random window that holds the
    sample is taken; half of the clips are reversed, so that objects also appear as they go. A video of fewer frames
    gives all it has.
    """
    video = names[index].rpartition("/")[0]
    own = [n for n, name in enumerate(names) if name.rpartition("/")[0] == video] if video else [index]
    own.sort(key=lambda n: names[n])
    place, last = own.index(index), max(0, len(own) - count)
    start = int(rng.integers(max(0, place - count + 1), min(place, last) + 1)) if len(own) > count else 0
    chosen = own[start : start + count]
    return chosen[::-1] if rng.random() < 0.5 else chosen


def collate_frames(samples: Sequence[Sample], geometries: Sequence[Geometry]) -> FrameBatch:
    """Frames of one clip on one canvas. Unlike photos, frames keep the rows of objects that they do not show.

    Raises:
        DataError: the frames do not have the same table of objects.
    """
    check_same_table(samples)
    still = collate(samples, geometries)
    truth = tuple(
        replace(s.segments, id_map=grown(g, still.size).labels(s.segments.id_map, VOID))
        for s, g in zip(samples, geometries, strict=True)
    )
    numbers = tuple(frame_number(sample.name) for sample in samples)
    reverse = len(numbers) > 1 and numbers[-1] < numbers[0]
    return FrameBatch(still.images, still.letterboxes, truth, still.names, None, (), numbers, reverse)


def grown(geometry: Geometry, canvas: tuple[int, int]) -> Geometry:
    """The same view on a larger canvas."""
    height, width = geometry.letterbox.canvas
    return geometry.padded(right=canvas[1] - width, bottom=canvas[0] - height)


def check_same_table(samples: Sequence[Sample]) -> None:
    """Raise `DataError` unless all frames have the same size and rows."""
    first = samples[0].segments
    for sample in samples:
        if sample.segments.size != first.size:
            why = f"{first.size} in {samples[0].name}, {sample.segments.size} in {sample.name}"
            raise DataError("frames of one clip differ in size", where=sample.name, why=why)
        if not torch.equal(sample.segments.classes, first.classes):
            why = f"{len(first)} objects in {samples[0].name}, {len(sample.segments)} in {sample.name}"
            fix = "Read videos with the format frames, which gives all frames the same rows."
            raise DataError("frames of one clip have different objects", where=sample.name, why=why, fix=fix)


def frame_number(name: str) -> int:
    """The digits at the end of a sample's name; 0 without any."""
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else 0


def as_clip(batch: Batch, b: int) -> FrameBatch:
    """One photo of a batch as a clip of one frame."""
    segments = None if batch.segments is None else (batch.segments[b],)
    prompts = None if batch.prompts is None else (batch.prompts[b],)
    return FrameBatch(batch.images[b, None], (batch.letterboxes[b],), segments, batch.names[b : b + 1], prompts)
