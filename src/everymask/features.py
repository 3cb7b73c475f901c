"""What an encoder made of the photos seen last: another question about the same photo costs no encoding."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, Protocol

from torch import Tensor, nn

from .types import Batch


class Encoder(Protocol):
    """A model with an `encode` of its own."""

    def encode(self, batch: Batch) -> Any: ...
    def named_parameters(self) -> Any: ...


class FeatureMemory:
    """Features by photos and weights, the oldest forgotten first.

    The key holds a fingerprint of pixels, letterboxes and weights, so nothing here can be stale: a model that was
    trained on, moved or loaded anew encodes again.

    Args:
        capacity: batches remembered; 0 remembers nothing.
    """

    def __init__(self, capacity: int = 1) -> None:
        self.capacity = capacity
        self.encoded = 0  # How often `get` had to encode: for tests and timings.
        self._found: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, model: Encoder, batch: Batch) -> Any:
        """``model.encode(batch)``, remembered."""
        key = (fingerprint(batch.images), batch.letterboxes, weights_version(model))
        if key not in self._found:
            self.encoded += 1
            self._found[key] = model.encode(batch)
            while len(self._found) > self.capacity + (self.capacity == 0):
                self._found.popitem(last=False)
        features = self._found[key]
        self._found.move_to_end(key)
        if not self.capacity:
            self.clear()
        return features

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureMemory:
        return FeatureMemory(self.capacity)  # A copied model has weights of its own.

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "encoded": 0, "_found": OrderedDict()}


def fingerprint(images: Tensor) -> bytes:
    """Of shape, type and content."""
    digest = hashlib.blake2b(f"{tuple(images.shape)} {images.dtype}".encode(), digest_size=16)
    digest.update(images.detach().cpu().contiguous().numpy().data)
    return digest.digest()


def weights_version(model: Encoder | nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a parameter is written to or exchanged."""
    return tuple((p.data_ptr(), p._version) for _, p in model.named_parameters())
