"""Published weights: folders in the layout of `transformers`, from disk or from the Hugging Face Hub, and single files
in the layout of a system's original code.

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

from .datasets.known_tables import table_of_coco_ids, table_of_names
from .errors import CheckpointError, DataError
from .labels import LabelMap
from .model import SegmentationModel
from .models import list_models, model_module

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt"]
ORIGINAL_SUFFIXES = (".pth", ".pt")


def find_published(source: str | Path) -> Path | None:
    """The folder of a checkpoint in the layout of `transformers`, or a file in that of an original.

    A name of the Hub is downloaded.

    Raises:
        CheckpointError: the Hub cannot be reached or has no such name.
    """
    if (Path(source) / "config.json").is_file() or is_original(Path(source)):
        return Path(source)
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and not Path(source).exists():
        return download(source)
    return None


def is_original(path: Path) -> bool:
    """Whether this is a single file of weights."""
    return path.suffix in ORIGINAL_SUFFIXES and path.is_file()


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
    if is_original(folder):
        return _build_original(folder)
    config = _read_json(folder / "config.json")
    preprocessor = folder / "preprocessor_config.json"
    processing = _read_json(preprocessor) if preprocessor.is_file() else {}
    for name in list_models():
        module = model_module(name)
        own = _own_config(module, config, processing, folder)
        if own is not None:
            labels = getattr(module, "LABELS", None) or published_labels(config, folder)
            model: SegmentationModel = module.Model(own, labels)
            tensors = _fresh(module, model) | module.convert(_read_weights(folder))
            return model, tensors | _normalization(model, processing)
    why = f"its model type is {config.get('model_type')!r}"
    raise CheckpointError("no system here reads this checkpoint", where=folder, why=why)


def _fresh(module: Any, model: SegmentationModel) -> dict[str, Tensor]:
    """The random weights of what the checkpoints that a system begins with do not have."""
    prefixes = getattr(module, "FRESH", ())
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}


def _build_original(path: Path) -> tuple[SegmentationModel, dict[str, Tensor]]:
    """As `build_published`, from a file that holds tensors alone: sizes and classes are read off their shapes."""
    state = _tensors_of(path)
    for module in map(model_module, list_models()):
        own = module.original(state, path.stem) if hasattr(module, "original") else None
        if own is not None:
            tensors = module.convert(state)
            labels = getattr(module, "LABELS", None) or table_of_coco_ids(len(tensors["class_head.bias"]) - 1)
            model: SegmentationModel = module.Model(own, labels)
            return model, tensors | _normalization(model, {})
    raise CheckpointError("no system here reads this checkpoint", where=path, why="its tensors have unknown names")


def _tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file (never more than tensors); training runs keep them as "model" among other things."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("model", content)
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # A damaged file makes the reader fail in its own ways.
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot read the weights", where=path, why=why[:300]) from error


def _own_config(module: Any, config: dict[str, Any], processing: dict[str, Any], folder: Path) -> Any:
    try:
        return module.published(config, processing)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot read the configuration", where=folder / "config.json", why=why) from error


def published_labels(config: dict[str, Any], folder: Path) -> LabelMap:
    """The class table from ``id2label``.

    Raises:
        CheckpointError: there is none, or its ids have gaps.
    """
    names = config.get("id2label")
    try:
        by_id = {int(key): str(name) for key, name in (names or {}).items()}
        return table_of_names([by_id[k] for k in range(len(by_id))])
    except (AttributeError, ValueError, KeyError, DataError) as error:
        why = f"id2label is {str(names)[:100]}"
        raise CheckpointError("the checkpoint has no class table", where=folder / "config.json", why=why) from error


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
