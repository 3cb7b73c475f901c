"""The hybrid: the contract of every system, the published sizes, and the original's way of training."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from everymask import losses
from everymask.encoders.darknet import DarkNet
from everymask.models import create_model
from everymask.models.hybrid import PRESETS, Model, original_loss
from everymask.types import Batch, Letterbox, Prediction
from tests.contract import FreeMasks, ModelContract, batch_of
from tests.scenes import LABELS, scene

TINY = PRESETS["tiny"]


class TestHybrid(ModelContract):
    system = "hybrid"

    def test_padding_changes_nothing_at_full_resolution(self) -> None:
        """ "base" and "original" start at stride 1, where a convolution reaches one pixel into the padding."""
        for compat in ("default", "original"):
            config = replace(TINY, widths=(4, 8, 8, 16, 24, 32), blocks=(1,) * 5, stem_stride=1, compat=compat)
            self.test_padding_changes_nothing(Model(config, LABELS).eval(), 32, 32)

    def test_every_layer_is_supervised_alike(self, model: Model, batch: Batch) -> None:
        torch.manual_seed(0)
        layer = Prediction(torch.randn(2, 8, 3), FreeMasks(torch.randn(2, 8, *batch.size)))
        losses = []
        for aux in ((), (layer, layer)):
            torch.manual_seed(1)
            losses.append(model.criterion(replace(layer, aux=aux), batch))
        for name, value in losses[0].items():
            torch.testing.assert_close(losses[1][name], 3 * value)


def photo_batch(side: int = 640) -> Batch:
    """Two photos that fill their canvas, shapes without values."""
    size = (side, side)
    images = torch.empty(2, 3, side, side, device="meta", dtype=torch.uint8)
    return Batch(images, (Letterbox(size, size, size),) * 2)


def on_meta(preset: str) -> Model:
    with torch.device("meta"):
        return create_model("hybrid", preset, classes=LABELS)


# ---- sizes ----


def darknet53_parameters() -> int:
    """From table 1 of YOLOv3: (kernel, in, out) of each convolution, without bias, each with a batch norm."""
    convolutions = [(3, 3, 32)]
    for width, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        convolutions += [(3, width // 2, width), *[(1, width, width // 2), (3, width // 2, width)] * blocks]
    assert len(convolutions) == 52
    return sum(kernel**2 * a * b + 2 * b for kernel, a, b in convolutions)


def test_the_encoder_is_darknet53() -> None:
    encoder = DarkNet(PRESETS["base"].widths, PRESETS["base"].blocks)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 52
    assert sum(p.numel() for p in encoder.parameters()) == darknet53_parameters() == 40_584_928


def test_features_at_640() -> None:
    features = on_meta("base").encoder(torch.empty(1, 3, 640, 640, device="meta"))
    assert [tuple(f.shape[1:]) for f in features] == [(128, 160, 160), (256, 80, 80), (512, 40, 40), (1024, 20, 20)]


def test_base_at_640() -> None:
    model = on_meta("base")
    seen: list[Tensor] = []
    model.decoder[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    prediction = model(photo_batch())
    assert prediction.class_logits.shape == (2, 100, len(LABELS) + 1)
    assert seen[0].shape == (2, 40 * 40, 384)
    assert (len(model.decoder), len(prediction.aux)) == (6, 5)
    assert {layer.cross_attention.heads for layer in model.decoder} == {6}
    queries = torch.arange(3, device="meta")
    assert prediction.masks.decode(0, queries).shape == (3, 160, 160)
    assert prediction.masks.decode(0, queries, (640, 640)).shape == (3, 640, 640)


@pytest.mark.parametrize(("preset", "stride"), [("base", 4), ("original", 16), ("small", 4), ("tiny", 4)])
def test_pixel_embeddings(preset: str, stride: int) -> None:
    side = PRESETS[preset].image_side
    masks = on_meta(preset)(photo_batch(side)).masks
    assert masks.pixels.shape == (2, PRESETS[preset].mask_dim, side // stride, side // stride)


# ---- as first published ----


def original_reference(class_logits: Tensor, masks: Tensor, truth: list[Tensor], classes: list[int]) -> float:
    """Query 0 is the object, the others are empty; BCE over the masks of all queries, plain cross entropy.

    masks [B, Q, P] at the same points as truth [B, P]: 1 object, 0 background, -1 void.
    """
    bce, entropy = [], []
    for b, row in enumerate(truth):
        for query, values in enumerate(masks[b].double()):
            known = [(float(v), float(t == 1 and query == 0)) for v, t in zip(values, row, strict=True) if t >= 0]
            bce.append(math.fsum(max(v, 0) - v * t + math.log1p(math.exp(-abs(v))) for v, t in known) / len(known))
            logits = class_logits[b, query].double()
            wanted = classes[b] if query == 0 else len(logits) - 1
            entropy.append(float(logits.logsumexp(0) - logits[wanted]))
    return math.fsum(bce) / len(bce) + math.fsum(entropy) / len(entropy)


def test_the_original_loss_is_that_of_query_0() -> None:
    torch.manual_seed(0)
    batch = batch_of([scene(64, 96, seed=1), scene(60, 60, seed=2, shapes=(2,))], 96)
    points = 200
    class_logits, logits = torch.randn(2, 100, 3), torch.randn(2, 100, *batch.size)
    torch.manual_seed(1)
    found = original_loss(Prediction(class_logits, FreeMasks(logits)), batch, points)
    torch.manual_seed(1)
    drawn = losses.random_points(batch, points)
    x, y = drawn.long().unbind(-1)
    truth = [s.id_map[y[b], x[b]].clamp(max=1) for b, s in enumerate(batch.truth())]
    expected = original_reference(class_logits, FreeMasks(logits).sample(drawn), truth, [0, 1])
    assert (truth[0] == -1).any()
    assert float(sum(found.values())) == pytest.approx(expected, rel=1e-5)


def test_the_original_trains_and_predicts_at_stride_16() -> None:
    torch.manual_seed(0)
    model = Model(replace(TINY, compat="original"), LABELS)
    batch = batch_of([scene(64, 96)], 96)
    prediction = model(batch)
    assert prediction.masks.decode(0, torch.tensor([0])).shape == (1, 4, 6)
    optimizer = torch.optim.AdamW(model.param_groups(2e-3))
    losses = []
    for _ in range(12):
        terms = model.loss(batch)
        loss = terms["class"] + terms["mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
