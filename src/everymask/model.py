"""What every system is: the contract that prediction, training and checkpoints rely on."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .errors import UsageError
from .features import FeatureMemory
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
        open_vocabulary: any words can be its classes, see `with_classes`.
        takes_prompts: it is told by points and boxes (`Batch.prompts`) what to segment.
    """

    open_vocabulary = False
    takes_prompts = False

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


class EncodeOnce(SegmentationModel):
    """Base of systems that see the photo first and are told afterwards what to look for, by words or by clicks.

    Attributes:
        features: what was encoded last, so that another question about the same photo costs no encoding. Shared with
            the models that `with_classes` makes.
    """

    def __init__(self, config: Any, labels: LabelMap) -> None:
        super().__init__(config, labels)
        self.features = FeatureMemory()

    @abstractmethod
    def encode(self, batch: Batch) -> Any:
        """What depends on photos and weights alone, not on classes, prompts or truth."""

    @abstractmethod
    def answer(self, features: Any, batch: Batch) -> Prediction:
        """The prediction for the classes of this model and the prompts of the batch, from what `encode` gave."""

    def forward(self, batch: Batch) -> Prediction:
        """`encode`, then `answer`."""
        return self.answer(self.encode(batch), batch)

    def recall(self, batch: Batch) -> Prediction:
        """`forward` for inference, which encodes only if these photos were not the last or the weights changed."""
        return self.answer(self.features.get(self, batch), batch)

    def with_classes(self, classes: LabelMap | Iterable[str]) -> EncodeOnce:
        """The same model with other classes: weights and `features` are shared, nothing is copied.

        Raises:
            UsageError: the system's classes are fixed.
        """
        if not self.open_vocabulary:
            known = ", ".join(self.labels.names[:20])
            raise UsageError("the classes of this model are fixed", where=type(self).__module__, why=f"it has {known}")
        other = copy.copy(self)
        other.labels = classes if isinstance(classes, LabelMap) else LabelMap.from_names(classes)
        return other
