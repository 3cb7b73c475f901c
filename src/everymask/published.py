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
from .errors import CheckpointError, DataError, EverymaskError
from .labels import LabelMap
from .model import SegmentationModel
from .models import list_models, model_module
from .size_limit import sized_like

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt"]
ORIGINAL_SUFFIXES = (".pth", ".pt")
PART = re.compile(r"[\w.-]+\.safetensors")


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
            state = _read_weights(folder)
            model = _built(module, own, labels, state, folder / "config.json")
            tensors = _fresh(module, model) | _converted(module, state, folder)
            return model, tensors | _normalization(model, processing, preprocessor)
    why = f"its model type is {config.get('model_type')!r}"
    raise CheckpointError("no system here reads this checkpoint", where=folder, why=why)


def _built(module: Any, own: Any, labels: LabelMap, state: dict[str, Tensor], where: Path) -> SegmentationModel:
    """The model with random weights, about as large as the published ones."""
    try:
        with sized_like(state):
            model: SegmentationModel = module.Model(own, labels)
    except Exception as error:  # Wrong values make a constructor fail in nearly every way there is.
        why = str(error) if isinstance(error, EverymaskError) else f"{type(error).__name__}: {error}"
        raise CheckpointError("the configuration describes no model", where=where, why=why[:300]) from error
    return model


def _converted(module: Any, state: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Published tensors under our names."""
    try:
        tensors: dict[str, Tensor] = module.convert(state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:  # Not there, or of other shapes.
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("the weights are not those of this system", where=where, why=why[:300]) from error
    return tensors


def _fresh(module: Any, model: SegmentationModel) -> dict[str, Tensor]:
    """The random weights of what the checkpoints that a system begins with do not have."""
    prefixes = getattr(module, "FRESH", ())
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}


def _build_original(path: Path) -> tuple[SegmentationModel, dict[str, Tensor]]:
    """As `build_published`, from a file that holds tensors alone: sizes and classes are read off their shapes."""
    state = _tensors_of(path)
    for module in map(model_module, list_models()):
        own = _original_config(module, state, path)
        if own is not None:
            tensors = _converted(module, state, path)
            labels = getattr(module, "LABELS", None) or _labels_of(tensors, path)
            model = _built(module, own, labels, state, path)
            return model, tensors | _normalization(model, {}, path)
    raise CheckpointError("no system here reads this checkpoint", where=path, why="its tensors have unknown names")


def _original_config(module: Any, state: dict[str, Tensor], path: Path) -> Any:
    try:
        return module.original(state, path.stem) if hasattr(module, "original") else None
    except (KeyError, IndexError, ValueError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("the weights are not those of this system", where=path, why=why) from error


def _labels_of(tensors: dict[str, Tensor], path: Path) -> LabelMap:
    """COCO's class table, of as many ids as the class head has."""
    try:
        return table_of_coco_ids(len(tensors["class_head.bias"]) - 1)
    except (KeyError, TypeError, DataError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("the checkpoint has no class table", where=path, why=why) from error


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


def _normalization(model: SegmentationModel, processing: dict[str, Any], where: Path) -> dict[str, Tensor]:
    """The normalisation buffers, which `transformers` keeps with the preprocessor: mean and standard deviation 0..1."""
    own = {name: value for name, value in model.state_dict().items() if name.startswith("normalize.")}
    for name, key in (("normalize.mean", "image_mean"), ("normalize.std", "image_std")):
        if name in own and processing.get(key):
            try:
                own[name] = torch.tensor(processing[key], dtype=torch.float32).view(1, 3, 1, 1) * 255
            except (TypeError, ValueError, RuntimeError) as error:
                why = f"{key} is {str(processing[key])[:100]}, not three numbers"
                raise CheckpointError("cannot read the configuration", where=where, why=why) from error
    return own


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
        return data
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("cannot read the configuration", where=path, why=str(error)) from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``model.safetensors``, of its parts, or of ``pytorch_model.bin`` (never more than tensors)."""
    paths = _parts(folder)
    if not paths[0].is_file() and (folder / "pytorch_model.bin").is_file():
        return _tensors_of(folder / "pytorch_model.bin")
    try:
        return {name: tensor for path in paths for name, tensor in load_file(path).items()}
    except Exception as error:  # A damaged file makes the reader fail in its own ways.
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot read the weights", where=folder, why=why[:300]) from error


def _parts(folder: Path) -> list[Path]:
    """``model.safetensors``, or the files that an index names; they lie beside it."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    parts = _read_json(index).get("weight_map")
    names = list(parts.values()) if isinstance(parts, dict) else []
    wrong = [name for name in names if not isinstance(name, str) or not PART.fullmatch(name)]
    if wrong or not names:
        why = f"weight_map names {str(wrong[0])[:100]!r}" if wrong else "it has no weight_map"
        raise CheckpointError("the index of the weights is damaged", where=index, why=why)
    return [folder / name for name in sorted(set(names))]
