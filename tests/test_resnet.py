"""The ResNet: frozen norms as part of convolutions, and padding that leaves features alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from everymask.encoders.resnet import ConvNorm, FrozenBatchNorm, ResNet


def small(**options: object) -> ResNet:
    torch.manual_seed(0)
    model = ResNet((1, 2, 1, 2), width=8, **options).eval()
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.3)
        elif name.endswith(("running_var", "weight")):
            value.uniform_(0.5, 1.5)
    return model


def test_a_frozen_norm_is_part_of_its_convolution() -> None:
    model = small(norm="frozen")
    block = next(module for module in model.modules() if isinstance(module, ConvNorm))
    x = torch.randn(2, 3, 20, 31, requires_grad=True)
    apart = block[1](block[0](x))
    torch.testing.assert_close(block(x), apart)
    found, expected = (torch.autograd.grad(y.square().sum(), [x, block[0].weight]) for y in (block(x), apart))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_frozen_norms_are_batch_norms_in_eval_mode() -> None:
    frozen, batch = small(norm="frozen"), small(norm="batch")
    batch.load_state_dict(frozen.state_dict())  # PyTorch forgives that counters are missing.
    images = torch.randn(1, 3, 64, 96)
    for one, other in zip(frozen(images), batch(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not [p for module in frozen.modules() if isinstance(module, FrozenBatchNorm) for p in module.parameters()]


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("size", [(33, 47), (64, 40), (1, 90)])
def test_padding_leaves_features_alone(size: tuple[int, int], dilated: bool) -> None:
    model, images = small(norm="frozen", dilate_last=dilated), torch.zeros(1, 3, 70, 101)
    images[..., : size[0], : size[1]] = torch.randn(1, 3, *size)
    valid = torch.zeros(1, 1, 70, 101, dtype=torch.bool)
    valid[..., : size[0], : size[1]] = True
    alone = model(images[..., : size[0], : size[1]])
    padded = model(images, valid)
    for one, other, stride in zip(alone, padded, model.strides, strict=True):
        assert one.shape[-2:] == tuple(-(-length // stride) for length in size)
        torch.testing.assert_close(cut(other, one), one, rtol=1e-4, atol=1e-4)
    assert any(not torch.allclose(cut(b, a), a, atol=1e-3) for a, b in zip(alone, model(images), strict=True))


def cut(maps: Tensor, like: Tensor) -> Tensor:
    return maps[..., : like.shape[-2], : like.shape[-1]]
