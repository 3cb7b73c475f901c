"""Models in folders: ``model.safetensors`` + ``model.json``. No pickle is ever opened.

A training run keeps its optimizer state beside them in the same two kinds of file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError, EverymaskError, ModelError, WriteError
from .files import sync_folder, write_json
from .labels import LabelMap
from .manifest import NAME as MANIFEST
from .manifest import faults_of, file_hash, write_manifest
from .model import SegmentationModel
from .models import model_module, model_name
from .published import build_published, find_published
from .size_limit import sized_like

SCHEMA = 1
BUNDLED = Path(__file__).parent / "weights"
COPY_AGAIN = "Copy the checkpoint again or use another one."


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/model.json"))


def load(source: str | Path, device: str = "cpu") -> SegmentationModel:
    """A model ready for prediction, in eval mode.

    Args:
        source: a bundled name (``"hybrid-pets"``), a checkpoint folder of ours or in the layout of `transformers`, a
            file of a system's original code (``"detr-r50-panoptic.pth"``), or a name of the Hugging Face Hub
            (``"facebook/maskformer-swin-tiny-ade"``), which is downloaded.

    Raises:
        CheckpointError: no such model, or a folder that is incomplete, damaged or of another shape.
    """
    folder = find_own(source)
    if folder is None and (published := find_published(source)) is not None:
        model, tensors = build_published(published)
        load_weights(model, tensors, source)
        model.read_extras(published)
        model.card = {"source": str(source)}
    else:
        folder = folder or find_model(source)
        check_whole(folder)
        card = read_card(folder)
        tensors = read_tensors(folder / "model.safetensors", card.get("sha256"))
        model = _build(card, tensors, folder)
        load_weights(model, tensors, folder)
        model.read_extras(folder)
        model.card = card
    # Channels last is the faster memory order of convolutions on CPUs and GPUs alike.
    return model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def check_whole(folder: Path) -> None:
    """Raise `CheckpointError` if a folder with a manifest is not as it was written."""
    if (folder / MANIFEST).exists() and (faults := faults_of(folder)):
        why = "; ".join(faults[:3])
        raise CheckpointError("the checkpoint is damaged", where=folder, why=why, fix=COPY_AGAIN)


def find_own(source: str | Path) -> Path | None:
    """The folder of a bundled name, a checkpoint folder or a run folder (its best, else its last).

    A checkpoint that a process was about to replace when it was killed is found where that put it.
    """
    given = Path(source)
    places = chain((BUNDLED / str(source), given, given / "best", given / "last"), (p / "old" for p in _places(given)))
    return next((folder for folder in places if (folder / "model.json").is_file()), None)


def find_model(source: str | Path) -> Path:
    """`find_own`, or an error.

    Raises:
        CheckpointError: there is no model of ours.
    """
    folder = find_own(source)
    if folder is not None:
        return folder
    fix = f"Bundled: {', '.join(bundled_models()) or 'none'}; or give a folder that holds model.json."
    raise CheckpointError("no model found", where=source, fix=fix)


def read_card(folder: Path) -> dict[str, Any]:
    """The checked ``model.json``."""
    try:
        card = json.loads((folder / "model.json").read_text())
        if card["schema"] > SCHEMA:
            why = f"schema {card['schema']}, this version reads up to {SCHEMA}"
            raise CheckpointError(
                "a newer version wrote this checkpoint", where=folder, why=why, fix="Upgrade everymask."
            )
        missing = {"model", "config", "classes"} - set(card)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError("cannot read model.json", where=folder, why=f"{type(error).__name__}: {error}") from error
    if missing:
        raise CheckpointError("model.json is incomplete", where=folder, why=f"lacks {', '.join(sorted(missing))}")
    return card


def _build(card: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> SegmentationModel:
    """The model of a card, with random weights, about as large as `tensors`."""
    try:
        module = model_module(card["model"])
        config, labels = config_from_json(module, card["config"]), LabelMap.from_json(card["classes"])
        with sized_like(tensors):
            model: SegmentationModel = module.Model(config, labels)
    except Exception as error:  # Wrong values make a constructor fail in nearly every way there is.
        why = str(error) if isinstance(error, EverymaskError) else f"{type(error).__name__}: {error}"
        raise CheckpointError("model.json describes no model", where=folder, why=why, fix=COPY_AGAIN) from error
    return model


def config_from_json(module: Any, data: Mapping[str, Any]) -> Any:
    """A system's ``Config`` from its JSON form; lists become tuples."""
    return module.Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, half precision widened to float32.

    Raises:
        CheckpointError: the file is damaged, or not the one that has this checksum.
    """
    try:
        if sha256 and sha256 != file_hash(path):
            wanted = str(sha256)[:12]
            raise ValueError(f"the checksum is {file_hash(path)[:12]}..., not {wanted}...: damaged or exchanged")
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        why = str(error) or type(error).__name__
        raise CheckpointError("cannot read the weights", where=path, why=why, fix=COPY_AGAIN) from error
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in tensors.items()}


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # Made first by us, because safetensors gives new files to their owner alone.
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(mode)


def load_weights(model: SegmentationModel, state: Mapping[str, Tensor], where: object) -> None:
    """Strict `load_state_dict` with an error that lists what does not fit."""
    own = model.state_dict()
    wrong = [
        f"{n} is {tuple(state[n].shape)}, not {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    problems = [f"missing {n}" for n in own if n not in state] + [f"unknown {n}" for n in state if n not in own] + wrong
    if problems:
        shown = "; ".join(problems[:6]) + ("; ..." if len(problems) > 6 else "")
        raise ModelError("the weights do not belong to this model", where=where, why=f"{len(problems)}: {shown}")
    model.load_state_dict(state)


def transfer(model: SegmentationModel, source: str | Path) -> list[str]:
    """Start `model` from the weights of a checkpoint of the same system, to fine-tune it.

    Rows of the class head are matched by class name; what the checkpoint lacks (a new class, a deeper encoder) stays
    as it is.

    Args:
        source: what `load` takes.

    Returns:
        names of the parameters and classes that were not in the checkpoint.

    Raises:
        ModelError: it is another system, or its sizes are others.
    """
    given = load(source)
    if model_name(given) != model_name(model):
        why = f"the weights are of {model_name(given)}, the model is {model_name(model)}"
        raise ModelError("weights of another system", where=source, why=why)
    own, state = model.state_dict(), given.state_dict()
    known = {name: row for row, name in enumerate(given.labels.names)}
    rows = [*(known.get(name) for name in model.labels.names), len(known)]  # The last row is "no object".
    for name in [n for n in own if n.startswith("class_head.") and n in state]:
        if own[name].shape[1:] == state[name].shape[1:]:
            state[name] = _class_rows(own[name], state[name], rows)
    fresh = [name for name in own if name not in state]
    load_weights(model, own | state, source)
    return fresh + [f"class {name}" for name in model.labels.names if name not in known]


def _class_rows(own: Tensor, given: Tensor, rows: list[int | None]) -> Tensor:
    """`own` [K+1, ...] with row `k` taken from ``given[rows[k]]`` where that is a number."""
    filled = own.clone()
    for k, row in enumerate(rows):
        if row is not None:
            filled[k] = given[row]
    return filled


def model_json(model: SegmentationModel, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``model.json`` of a model: enough to build it again, and what people should know of it."""
    module = model_module(model_name(model))
    preset = next((name for name, config in module.PRESETS.items() if config == model.config), "custom")
    return {
        "schema": SCHEMA,
        "model": model_name(model),
        "preset": preset,
        # As reading the file gives them back, lists for tuples: a resumed run compares the two.
        "config": _plain(asdict(model.config)),
        "classes": _plain(model.labels.to_json()),
        "parameters": sum(p.numel() for p in model.parameters()),
        **(extra or {}),
    }


def _plain(data: Any) -> Any:
    return json.loads(json.dumps(data))


def save(
    model: SegmentationModel, folder: str | Path, *, extra: Mapping[str, Any] | None = None, half: bool = False
) -> Path:
    """Write a model into `folder`, all or nothing: an older checkpoint there stays until the new one is complete.

    Args:
        extra: further entries of ``model.json`` (metrics, licence, credits, recipe).
        half: store matrices in half precision: half the bytes, for shipping.
    """
    return replace_folder(Path(folder), lambda fresh: save_model_files(model, fresh, extra, half))


def save_model_files(
    model: SegmentationModel, folder: Path, extra: Mapping[str, Any] | None = None, half: bool = False
) -> None:
    """``model.safetensors`` and ``model.json`` into an existing folder."""
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    if half:
        state = {name: t.half() if t.is_floating_point() and t.ndim > 1 else t for name, t in state.items()}
    model.write_extras(folder)
    _save_tensors(state, folder / "model.safetensors")
    write_json(folder / "model.json", model_json(model, extra) | {"sha256": file_hash(folder / "model.safetensors")})


def replace_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new folder, then put it in the place of `folder`.

    Raises:
        WriteError: the system refuses, or `folder` holds something that is no checkpoint; it stays as it was.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "model.json").is_file()):
        why, fix = "it exists and is no checkpoint, which is all that may be replaced", "Give another folder."
        raise WriteError("cannot write a checkpoint", where=folder, why=why, fix=fix)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(folder)
        prefix = f".{folder.name}-"  # And eight characters, as `_places` knows them.
        place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            _exchange(folder, place, write)
        finally:
            if folder.exists() or not (place / "old").exists():  # Else it has the only copy, to be recovered.
                shutil.rmtree(place, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        fix = "Check the folder, its permissions and the free space."
        raise WriteError("cannot write a checkpoint", where=folder, why=str(error), fix=fix) from error
    return folder


def _exchange(folder: Path, place: Path, write: Callable[[Path], None]) -> None:
    """Fill ``place/new``, move `folder` to ``place/old`` and ``place/new`` to `folder`."""
    new, old = place / "new", place / "old"
    new.mkdir()
    write(new)
    write_manifest(new, {})
    sync_folder(new)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)


def recover_folder(folder: Path) -> None:
    """Clear away what a process that was killed within `replace_folder` left: put `folder` back if it was between the
    two renames, drop what it had begun to write."""
    for place in _places(folder):
        if (place / "old").is_dir() and not folder.exists():
            os.rename(place / "old", folder)
        shutil.rmtree(place, ignore_errors=True)


def _places(folder: Path) -> Iterator[Path]:
    """Where `replace_folder` keeps what it has begun; those of ``model`` are not those of ``model-large``."""
    name = re.compile(rf"\.{re.escape(folder.name)}-[a-z0-9_]{{8}}")
    with suppress(OSError):
        yield from [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]


def save_training(folder: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Optimizer state and progress, for `load_training`."""
    path = folder / "training.safetensors"
    _save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    write_json(folder / "training.json", {**progress, "sha256": file_hash(path)})


def load_training(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_training` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        progress = json.loads((folder / "training.json").read_text())
        missing = {"step", "validated", "best", "waited", "config", "model"} - set(progress)
        if missing or not isinstance(progress, dict):
            raise ValueError(f"training.json lacks {', '.join(sorted(missing)) or 'everything'}")
        return read_tensors(folder / "training.safetensors", progress.get("sha256")), progress
    except (ValueError, TypeError, OSError, RecursionError) as error:
        fix = "Move this folder away to begin anew; best/ may still be whole."
        raise CheckpointError("cannot read the training state", where=folder, why=str(error), fix=fix) from error
