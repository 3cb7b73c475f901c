"""What every system is: the contract that prediction, training and checkpoints rely on."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

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
        parts: groups of submodules by a name for them all, which `freeze` takes.
    """

    open_vocabulary = False
    takes_prompts = False
    parts: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, config: Any, labels: LabelMap) -> None:
        super().__init__()
        self.config: Any = config
        self.labels = labels
        self.card: dict[str, Any] = {}
        self._frozen: list[nn.Module] = []

    def letterbox(self, source: tuple[int, int], side: int | None = None) -> Letterbox:
        """How a photo of this size (H, W) lies on its canvas at inference.

        Args:
            side: longest side in pixels instead of the model's own.
        """
        return Letterbox.fit(source, side or self.config.image_side)

    def task_options(self, task: str) -> dict[str, Any]:
        """Options of a task's post-processing that these weights want where the caller says nothing."""
        return {}

    def read_extras(self, folder: Path) -> None:
        """Take what a checkpoint folder holds beside weights and configuration, such as a tokenizer."""

    def write_extras(self, folder: Path) -> None:
        """Write what `read_extras` takes."""

    def keep_features(self, folder: Path) -> None:
        """Called before a training whose views repeat: a system whose image encoder does not learn may keep in `folder`
        what the encoder gives. Others do nothing."""

    @abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """The same computation in training and evaluation, up to batch statistics and dropout."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms of a batch with truth; their sum is what is minimised."""

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimizer groups that hold every trained parameter exactly once."""
        return param_groups(self, lr, weight_decay)

    def freeze(self, names: Iterable[str]) -> None:
        """Keep submodules as they are: no gradients, and dropout and batch statistics as in evaluation.

        Args:
            names: of submodules (``"encoder"``, ``"encoder.stages.0"``) or of `parts` (``"detector"``).

        Raises:
            UsageError: there is no such submodule, or nothing would be left to train.
        """
        modules = dict(self.named_modules())
        chosen = [own for name in names for own in self.parts.get(name, (name,))]
        if unknown := [name for name in chosen if not name or name not in modules]:
            known = ", ".join([*self.parts, *(name for name, _ in self.named_children())])
            raise UsageError("the model has no such part", where=", ".join(unknown), why=f"there are: {known}")
        frozen = [modules[name] for name in chosen]
        still = {id(p) for module in frozen for p in module.parameters()}
        if not any(p.requires_grad and id(p) not in still for p in self.parameters()):
            raise UsageError("nothing is left to train", where=", ".join(chosen), fix="Freeze less.")
        self._frozen += [module.requires_grad_(False).eval() for module in frozen]

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, except for what is frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


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
