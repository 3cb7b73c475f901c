"""Everymask: five families of image segmentation behind one core. Public names are imported on first use."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everymask.checkpoint import load
    from everymask.datasets import open_dataset
    from everymask.errors import EverymaskError
    from everymask.evaluate import evaluate
    from everymask.explain import explain
    from everymask.image import read_image
    from everymask.labels import LabelMap
    from everymask.models import create_model, list_models
    from everymask.predict import predict
    from everymask.recipe import TrainConfig
    from everymask.result import Result
    from everymask.train import train
    from everymask.types import Batch, Letterbox, Prediction, Sample, Segments

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "EverymaskError",
    "LabelMap",
    "Letterbox",
    "Prediction",
    "Result",
    "Sample",
    "Segments",
    "TrainConfig",
    "create_model",
    "evaluate",
    "explain",
    "list_models",
    "load",
    "open_dataset",
    "predict",
    "read_image",
    "train",
]

_HOME = {
    "Batch": "types",
    "EverymaskError": "errors",
    "LabelMap": "labels",
    "Letterbox": "types",
    "Prediction": "types",
    "Result": "result",
    "Sample": "types",
    "Segments": "types",
    "TrainConfig": "recipe",
    "create_model": "models",
    "evaluate": "evaluate",
    "explain": "explain",
    "list_models": "models",
    "load": "checkpoint",
    "open_dataset": "datasets",
    "predict": "predict",
    "read_image": "image",
    "train": "train",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # found without this function next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `everymask.predict`, `.train`, `.evaluate` and `.explain` the functions, whatever was imported before.

    Python binds a submodule to its package after importing it, so `import everymask.predict` anywhere would turn
    the public function of that name into a module. The submodule stays in `sys.modules`, where
    `from everymask.predict import ...` finds it.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
