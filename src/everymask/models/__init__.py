"""One file a system. A file named ``x.py`` is the model ``"x"``: `create_model` imports it, `list_models` lists them.

A model file defines ``Config`` (frozen dataclass) and ``PRESETS`` (always with ``"tiny"``), ``Model`` with
``forward(batch) -> Prediction``, ``loss(batch) -> dict of weighted terms`` and ``param_groups(lr, weight_decay)``,
``RECIPE`` (training defaults), ``TASKS`` (post-processing by name, the default first), ``published(config,
preprocessor)`` (the ``Config`` of a checkpoint in the layout of `transformers`, None if it is another system's) and
``convert(state_dict)`` (published weights to ours, strict).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..labels import LabelMap

if TYPE_CHECKING:
    from ..model import SegmentationModel


def list_models() -> list[str]:
    """Names of the systems: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def model_module(name: str) -> ModuleType:
    """The file of a system.

    Raises:
        ModelError: there is no such file; the message lists those there are.
    """
    if name not in list_models():
        raise ModelError("unknown model", where=name, why=f"there are: {', '.join(list_models())}")
    return importlib.import_module(f"{__name__}.{name}")


def model_name(model: SegmentationModel) -> str:
    """The name of a model's system: the inverse of `model_module`."""
    return type(model).__module__.rpartition(".")[2]


def create_model(name: str, preset: str = "tiny", *, classes: LabelMap | Iterable[str]) -> SegmentationModel:
    """A model with random weights.

    Args:
        preset: a key of the system's ``PRESETS``.
        classes: the class table, or names.

    Raises:
        ModelError: unknown model or preset.
    """
    module = model_module(name)
    if preset not in module.PRESETS:
        raise ModelError(f"unknown preset of {name}", where=preset, why=f"there are: {', '.join(module.PRESETS)}")
    labels = classes if isinstance(classes, LabelMap) else LabelMap.from_names(classes)
    model: SegmentationModel = module.Model(module.PRESETS[preset], labels)
    return model
