"""One file a system. A file named ``x.py`` is the model ``"x"``: `create_model` imports it, `list_models` lists them.

A model file defines ``Config`` (frozen dataclass) and ``PRESETS`` (always with ``"tiny"``), ``Model`` with
``forward(batch) -> Prediction``, ``loss(batch) -> dict of weighted terms`` and ``param_groups(lr, weight_decay)``,
``RECIPE`` (training defaults), ``TASKS`` (post-processing by name, the default first), ``published(config,
preprocessor)`` (the ``Config`` of a checkpoint in the layout of `transformers`, None if it is another system's) and
``convert(state_dict)`` (published weights to ours, strict). Where weights were first published as tensors alone, also
``original(state_dict, name)``: the ``Config`` read off their shapes and the file's name, None if they are not its own.

Where published weights name no classes, ``LABELS`` is their table; parameters that they lack, and that begin at random,
have names that start with one of ``FRESH``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

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


def create_model(
    name: str, preset: str = "tiny", *, classes: LabelMap | Iterable[str], **changes: Any
) -> SegmentationModel:
    """A model with random weights.

    Args:
        preset: a key of the system's ``PRESETS``.
        classes: the class table, or names.
        changes: fields of the system's ``Config`` that differ from the preset (`queries=50`).

    Raises:
        ModelError: unknown model, preset or field.
    """
    module = model_module(name)
    if preset not in module.PRESETS:
        raise ModelError(f"unknown preset of {name}", where=preset, why=f"there are: {', '.join(module.PRESETS)}")
    labels = classes if isinstance(classes, LabelMap) else LabelMap.from_names(classes)
    model: SegmentationModel = module.Model(changed(module.PRESETS[preset], changes), labels)
    return model


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A system's configuration with some fields changed.

    Raises:
        ModelError: it has no such field, or the value is of another type than the one it replaces.
    """
    known = {field.name: getattr(config, field.name) for field in fields(config)}
    if unknown := [key for key in changes if key not in known]:
        why = f"there are: {', '.join(known)}"
        raise ModelError("the model has no such setting", where=", ".join(unknown), why=why)
    hints = get_type_hints(type(config))
    for key, value in changes.items():
        if not _fits(value, hints[key]):
            raise ModelError(
                "a model setting has the wrong type", where=key, why=f"{value!r} is not {_shown(hints[key])}"
            )
    return replace(config, **changes)


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type of a configuration: plain types, tuples, literals and unions."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, options[0]) for item in value)
    if options:
        return any(_fits(value, option) for option in options)
    return type(value) is hint or (hint is float and type(value) is int)
