"""How probable each class is at each pixel: grey pictures, made one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .labels import LabelMap
from .postprocess import class_evidence
from .types import Letterbox, Prediction
from .upsample import grey_pixels


@dataclass(frozen=True, eq=False)
class HeatMaps:
    """Evidence of all classes at the model's own resolution, and where the photo's pixels lie in it.

    Attributes:
        evidence: [K, h, w], 0..1.
        rows, columns: [H], [W] of the photo's pixels among the cells.
        labels: the K classes.
    """

    evidence: Tensor
    rows: Tensor
    columns: Tensor
    labels: LabelMap

    @classmethod
    def of(cls, prediction: Prediction, letterbox: Letterbox, labels: LabelMap, b: int = 0) -> HeatMaps:
        """Of one image of a prediction."""
        with torch.no_grad():
            evidence = class_evidence(prediction, b).clamp(max=1)
        return cls(evidence, *prediction.masks.positions(b, letterbox.source), labels)

    def __len__(self) -> int:
        return len(self.evidence)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [H, W] of one class: 255 is certain."""
        return grey_pixels(self.evidence[index], self.rows, self.columns).cpu().numpy()

    def files(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """File suffix, class name and picture of each class. Suffixes are numbered: not every word is a file name."""
        for k, name in enumerate(self.labels.names):
            word = re.sub(r"\W+", "_", name)[:40].strip("_")
            yield f"heat_{k}_{word}".rstrip("_"), name, self[k]
