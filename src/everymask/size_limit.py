"""A configuration that asks for far more than its weights are, because a number in it is damaged, is stopped early."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

SPARE, SPARE_PARAMETERS, FACTOR = 50_000_000, 10_000, 4
"""Models may be built with parts that they then give up, and with parts that their weights lack."""


@contextmanager
def sized_like(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Models that this thread builds meanwhile may be some times larger than `tensors`, not more.

    Raises:
        ValueError: in the constructor of a larger one.
    """
    numbers = FACTOR * sum(tensor.numel() for tensor in tensors.values()) + SPARE
    parameters = FACTOR * len(tensors) + SPARE_PARAMETERS
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal numbers, parameters
        if threading.get_ident() == thread and parameter is not None:
            numbers -= parameter.numel()
            parameters -= 1
            if numbers < 0 or parameters < 0:
                raise ValueError("it describes a model that is far larger than the weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
