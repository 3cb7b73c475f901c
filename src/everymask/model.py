"""What every system is: the contract that prediction, training and checkpoints rely on."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from .labels import LabelMap
from .layers.param_groups import param_groups
from .types import Batch, Letterbox, Prediction


class SegmentationModel(nn.Module):
    """Base of the class ``Model`` in each file of `everymask.models`.

    Attributes:
        config: a frozen dataclass, what ``model.json`` rebuilds the model from. Only ``image_side``, the longest side
            of a photo on its canvas in pixels, has a meaning outside the system's own file.
        labels: the class table.
        card: the rest of ``model.json`` where the model was loaded: metrics, licence, credits.
    """

    def __init__(self, config: Any, labels: LabelMap) -> None:
        super().__init__()
        self.config: Any = config
        self.labels = labels
        self.card: dict[str, Any] = {}

    def letterbox(self, source: tuple[int, int], side: int | None = None) -> Letterbox:
        """How a photo of this size (H, W) lies on its canvas at inference.

        Args:
            side: longest side in pixels instead of the model's own.
        """
        return Letterbox.fit(source, side or self.config.image_side)

    def task_options(self, task: str) -> dict[str, Any]:
        """Options of a task's post-processing that these weights want where the caller says nothing."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """The same computation in training and evaluation, up to batch statistics and dropout."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms of a batch with truth; their sum is what is minimised."""

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimizer groups that hold every trained parameter exactly once."""
        return param_groups(self, lr, weight_decay)
