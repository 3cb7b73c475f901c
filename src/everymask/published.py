"""Published weights: folders in the layout of `transformers`, from disk or from the Hugging Face Hub.

Nothing is downloaded unless somebody asks for a name of the Hub (``"facebook/maskformer-swin-tiny-ade"``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import CheckpointError, DataError
from .labels import Label, LabelMap, distinct_color
from .model import SegmentationModel
from .models import list_models, model_module

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.bin"]


def find_published(source: str | Path) -> Path | None:
    """The folder of a checkpoint in the layout of `transformers`; a name of the Hub is downloaded.

    Raises:
        CheckpointError: the Hub cannot be reached or has no such name.
    """
    if (Path(source) / "config.json").is_file():
        return Path(source)
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and not Path(source).exists():
        return download(source)
    return None


def download(name: str) -> Path:
    """The local folder of a Hub checkpoint; what was downloaded before is not downloaded again."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # The Hub's client fails in many ways, some of them of the HTTP library below it.
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        fix = "Check the name and the network, or copy the checkpoint here and give its folder."
        raise CheckpointError("cannot get the weights from the Hub", where=name, why=why[:300], fix=fix) from error


def build_published(folder: Path) -> tuple[SegmentationModel, dict[str, Tensor]]:
    """The model of a published checkpoint with random weights, and the checkpoint's tensors under our names.

    Raises:
        CheckpointError: no system here reads it, or its files are damaged.
    """
    config = _read_json(folder / "config.json")
    preprocessor = folder / "preprocessor_config.json"
    processing = _read_json(preprocessor) if preprocessor.is_file() else {}
    for name in list_models():
        module = model_module(name)
        own = _own_config(module, config, processing, folder)
        if own is not None:
            model: SegmentationModel = module.Model(own, published_labels(config, folder))
            tensors = module.convert(_read_weights(folder))
            return model, tensors | _normalization(model, processing)
    why = f"its model type is {config.get('model_type')!r}"
    raise CheckpointError("no system here reads this checkpoint", where=folder, why=why)


def _own_config(module: Any, config: dict[str, Any], processing: dict[str, Any], folder: Path) -> Any:
    try:
        return module.published(config, processing)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot read the configuration", where=folder / "config.json", why=why) from error


def published_labels(config: dict[str, Any], folder: Path) -> LabelMap:
    """The class table from ``id2label``; names that repeat are numbered.

    Raises:
        CheckpointError: there is none, or its ids have gaps.
    """
    names = config.get("id2label")
    try:
        by_id = {int(key): str(name) for key, name in (names or {}).items()}
        ordered = [by_id[k] for k in range(len(by_id))]
        return LabelMap(tuple(Label(name, distinct_color(k)) for k, name in enumerate(_unique(ordered))))
    except (AttributeError, ValueError, KeyError, DataError) as error:
        why = f"id2label is {str(names)[:100]}"
        raise CheckpointError("the checkpoint has no class table", where=folder / "config.json", why=why) from error


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _normalization(model: SegmentationModel, processing: dict[str, Any]) -> dict[str, Tensor]:
    """The normalisation buffers, which `transformers` keeps with the preprocessor: mean and standard deviation 0..1."""
    own = {name: value for name, value in model.state_dict().items() if name.startswith("normalize.")}
    for name, key in (("normalize.mean", "image_mean"), ("normalize.std", "image_std")):
        if name in own and processing.get(key):
            own[name] = torch.tensor(processing[key], dtype=torch.float32).view(1, 3, 1, 1) * 255
    return own


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
        return data
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot read the configuration", where=path, why=str(error)) from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``model.safetensors``, of its parts, or of ``pytorch_model.bin`` (never more than tensors)."""
    index = folder / "model.safetensors.index.json"
    paths = [folder / "model.safetensors"]
    if index.is_file():
        paths = [folder / part for part in sorted(set(_read_json(index)["weight_map"].values()))]
    try:
        if not paths[0].is_file() and (folder / "pytorch_model.bin").is_file():
            return dict(torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True))
        return {name: tensor for path in paths for name, tensor in load_file(path).items()}
    except Exception as error:  # A damaged file makes either reader fail in its own ways.
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot read the weights", where=folder, why=why[:300]) from error
