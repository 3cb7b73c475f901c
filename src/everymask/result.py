"""The answer to a photo: its segments, with the photo itself, and what people do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .heatmaps import HeatMaps
from .save import save_result
from .types import Segments
from .visualize import cutout, overlay

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Result:
    """Segments of one photo at its own size.

    Attributes:
        photo: uint8 [H, W, 3].
        segments: id map, classes, scores; `segments.alpha` is the soft foreground where the task gives one.
        name: the photo's file stem.
        timings: seconds by stage.
        heatmaps: how probable each class is at each pixel, where it was asked for.
    """

    photo: np.ndarray
    segments: Segments
    name: str = "image"
    timings: dict[str, float] = field(default_factory=dict)
    heatmaps: HeatMaps | None = None

    def overlay(self, opacity: float = 0.5) -> Image:
        """The photo with coloured segments, outlines and a legend."""
        return overlay(self.photo, self.segments, opacity=opacity)

    def cutout(self, classes: Sequence[str] | None = None) -> Image:
        """RGBA photo: the foreground (of `classes`) with its soft edge, all else transparent."""
        return cutout(self.photo, self.segments, classes=classes)

    def save(self, folder: str | Path) -> list[Path]:
        """Write overlay, cut-out, id map and table into `folder`; returns the files written."""
        return save_result(self.photo, self.segments, Path(folder), self.name, self.timings, self.heatmaps)
