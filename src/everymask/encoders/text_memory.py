"""Text features that need not be computed again: in memory a class at a time, on disk by list.

Nothing can be stale. In memory, features belong to one state of the text tower and are dropped when a weight is
written to; on disk, a file is named after the content of the weights and the token ids of the texts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import WriteError
from ..features import weights_version
from ..files import write_bytes

Texts = tuple[str, ...]
"""All texts of one class."""

MOST_BYTES = 256 << 20
"""Size of the features remembered; beyond it, only those of the last list are."""

LEAST_ON_DISK = 64
"""Texts from which on a file pays: fewer are encoded in less time than the weights are read for their name."""

MOST_FILES = 100


class TextMemory:
    """Features [P, D] of classes by their texts.

    Attributes:
        encoded: how many classes had to be encoded: for tests and timings.
    """

    def __init__(self) -> None:
        self.encoded = 0
        self._version: Any = None
        self._name: str | None = None
        self._found: dict[Texts, Tensor] = {}

    def get(
        self,
        tower: nn.Module,
        classes: Sequence[Texts],
        tokenize: Callable[[Sequence[Texts]], Tensor],
        encode: Callable[[Sequence[Texts], Tensor], Tensor],
        form: str = "",
    ) -> Tensor:
        """[T, P, D] of all classes, encoding only those not known.

        Args:
            tower: that `encode` uses.
            tokenize: ids [n, length] of all texts of some classes.
            encode: features [T, P, D] of some classes, given the ids of their texts.
            form: of the features, where the same texts may be given in several; always the same for one memory.
        """
        self._check_version(tower)
        known = self._found
        if missing := [texts for texts in dict.fromkeys(classes) if texts not in known]:
            features = self._from_disk(tower, missing, tokenize(missing), encode, form)
            known = known | dict(zip(missing, features, strict=True))
            size = sum(own.numel() * own.element_size() for own in known.values())
            self._found = known if size <= MOST_BYTES else {texts: known[texts] for texts in classes}
        return torch.stack([known[texts] for texts in classes])

    def _check_version(self, tower: nn.Module) -> None:
        version = weights_version(tower)
        if version != self._version:
            self._found.clear()
            self._version, self._name = version, None

    def _from_disk(
        self, tower: nn.Module, classes: Sequence[Texts], ids: Tensor, encode: Any, form: str
    ) -> Sequence[Tensor]:
        path = self._path(tower, classes, ids, form) if len(ids) >= LEAST_ON_DISK else None
        features = _read(path, ids.device, len(classes)) if path else None
        if features is None:
            self.encoded += len(classes)
            features = encode(classes, ids)
            if path:
                _write(path, features)
        # Copies, so that no class keeps the memory of a whole list alive.
        return [own.clone() for own in features]

    def _path(self, tower: nn.Module, classes: Sequence[Texts], ids: Tensor, form: str) -> Path:
        """Named after the weights, the form, the ids and how many texts each class has."""
        self._name = self._name or content_name(tower)
        digest = hashlib.blake2b(self._name.encode(), digest_size=20)
        digest.update(repr((form, [len(texts) for texts in classes])).encode())
        digest.update(ids.cpu().contiguous().numpy().data)
        return cache_folder() / "texts" / f"{digest.hexdigest()}.safetensors"

    def __deepcopy__(self, memo: dict[int, Any]) -> TextMemory:
        return TextMemory()  # A copied tower has weights of its own.

    def __getstate__(self) -> dict[str, Any]:
        return vars(TextMemory())


def cache_folder() -> Path:
    """Where files go that can be made again: ``$EVERYMASK_CACHE``, else the user's cache folder."""
    if own := os.environ.get("EVERYMASK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everymask"


def content_name(tower: nn.Module) -> str:
    """Fingerprint of what a module computes: the types, settings (such as a number of heads) and weights in it."""
    digest = hashlib.blake2b(digest_size=20)
    for name, part in tower.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, int | float | str)}
        own = sorted((key, value) for key, value in settings.items() if key != "training" and not key.startswith("_"))
        digest.update(f"{name} {type(part).__name__} {own}".encode())
    for name, value in tower.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, device: torch.device, count: int) -> Tensor | None:
    """The features in a file, None where there is no whole one of so many classes."""
    try:
        features = load(path.read_bytes())["features"]
    except Exception:  # Missing or damaged: it is made again.
        return None
    return features.to(device) if features.ndim == 3 and len(features) == count else None


def _write(path: Path, features: Tensor) -> None:
    """A cache that cannot be written to is no reason to fail. The oldest files beyond `MOST_FILES` go."""
    with suppress(WriteError, OSError):
        write_bytes(path, save({"features": features.detach().cpu().contiguous()}))
        files = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for old in files[:-MOST_FILES]:
            old.unlink(missing_ok=True)
