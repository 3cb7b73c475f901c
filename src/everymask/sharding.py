"""Weights that are spread over processes (FSDP2): each has a part of every tensor, of its gradient and of its average.

Elsewhere a tensor is a tensor: what is read from or written to files is whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .model import SegmentationModel


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread a module's weights over the processes of a mesh.

    As one unit: blocks that are gathered one by one would have to be called in the same order everywhere, and how often
    a text tower or a decoder is called depends on what is in the images.
    """
    fully_shard(module, mesh=mesh)
    return module


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process: all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_spread(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, spread as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def same_everywhere(module: nn.Module) -> None:
    """All processes take the weights and buffers of the first."""
    if dist.is_available() and dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


class WeightAverage:
    """Exponential average of weights and buffers, whose memory grows with the run: early steps are forgotten soon.

    Attributes:
        model: a whole copy of the model, which has the averages after `gather`.
        count: updates so far.
    """

    def __init__(self, model: SegmentationModel, decay: float) -> None:
        self.model, self.decay, self.count = copy.deepcopy(model), decay, 0
        self._spread: dict[str, Tensor] = {}

    def follow(self, model: SegmentationModel) -> None:
        """Take on the precision of the model as it is trained and, where its weights are spread, their spread."""
        self.model.to(next(model.parameters()).dtype)
        if any(isinstance(tensor, DTensor) for tensor in model.state_dict().values()):
            self._spread = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """The averages by name, as spread as the weights."""
        return self._spread or self.model.state_dict()

    @torch.no_grad()
    def update(self, model: SegmentationModel) -> None:
        """Go towards the model's weights; the first time, become them."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        current = model.state_dict()
        for name, own in self.state.items():
            if decay and own.is_floating_point():
                own.lerp_(current[name], 1 - decay)
            else:
                own.copy_(current[name])
        self.count += 1

    def gather(self) -> SegmentationModel:
        """The whole model, with the averages; all processes must ask."""
        if self._spread:
            self.model.load_state_dict({name: whole(tensor) for name, tensor in self._spread.items()})
        return self.model

    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Go on from averages that were saved, whole."""
        self.count = count
        self.model.load_state_dict(tensors)
        self._spread = {name: as_spread(tensors[name], own) for name, own in self._spread.items()}
