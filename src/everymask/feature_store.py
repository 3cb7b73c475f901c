"""Features of an image encoder that does not learn, on disk: the second time a photo is seen it costs no encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .features import fingerprint
from .files import write_bytes
from .types import Batch

Maps = tuple[Tensor, ...]


class FrozenEncoder(Protocol):
    """What the store needs of a model."""

    def encode(self, batch: Batch) -> Sequence[Maps]: ...
    def frozen_state(self) -> dict[str, Tensor]: ...
    def named_parameters(self) -> Any: ...


class FeatureStore:
    """Feature maps by photo and weights, in half precision: one safetensors file an image.

    The name of a file is a fingerprint of the pixels, that of its folder one of the encoder's weights. So nothing here
    can be stale, a file that is damaged is made anew, and folders may be deleted at any time.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoded = 0  # Images that `get` had to encode: for tests and timings.
        self._weights: tuple[object, str] | None = None

    def get(self, model: FrozenEncoder, batch: Batch) -> list[Maps]:
        """``model.encode(batch)``, a tuple of maps an image, from disk where it is there."""
        home = self.folder / self._weights_name(model)
        paths = [home / f"{self._photo_name(batch, b)}.safetensors" for b in range(len(batch))]
        found = [_read(path, batch.images.device) for path in paths]
        missing = [b for b, maps in enumerate(found) if maps is None]
        if missing:
            boxes = tuple(batch.letterboxes[b] for b in missing)
            fresh = model.encode(replace(batch, images=batch.images[missing], letterboxes=boxes))
            self.encoded += len(missing)
            for b, maps in zip(missing, fresh, strict=True):
                write_bytes(paths[b], save({str(n): m.half().contiguous().cpu() for n, m in enumerate(maps)}))
                # Rounded as the file is: a photo gives the same features every time.
                found[b] = tuple(m.half().to(m.dtype) for m in maps)
        return [maps for maps in found if maps is not None]

    def _photo_name(self, batch: Batch, b: int) -> str:
        """Of the content alone: neighbours in the batch do not matter."""
        height, width = batch.letterboxes[b].content
        return fingerprint(batch.images[b, :, :height, :width].contiguous()).hex()

    def _weights_name(self, model: FrozenEncoder) -> str:
        """A digest of the weights, taken anew when one of them was written to."""
        state = model.frozen_state()
        version = tuple((name, value.data_ptr(), value._version) for name, value in state.items())
        if self._weights is None or self._weights[0] != version:
            digest = hashlib.blake2b(digest_size=8)
            for name, value in sorted(state.items()):
                digest.update(name.encode() + fingerprint(value))
            self._weights = version, digest.hexdigest()
        return self._weights[1]


def _read(path: Path, device: torch.device) -> Maps | None:
    """Maps in float32; None where the file is not there or damaged."""
    try:
        maps = load(path.read_bytes())
        return tuple(maps[str(n)].to(device).float() for n in range(len(maps)))
    except (OSError, SafetensorError, KeyError):
        return None
