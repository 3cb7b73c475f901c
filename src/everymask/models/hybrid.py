"""Hybrid: DarkNet53, FPN, patchified tokens, transformer decoder. For cut-outs and a few classes.

    photo -> DarkNet -> c2..c5 -> FPN -> p2 -> 1x1 -> pixel embeddings at stride 4 --+
                                        p3 -> 2x2 stride-2 patchify -> tokens at 16  |  inner product -> mask logits
                                              queries -> decoder over tokens --------+
                                                         -> class logits (K+1)

`compat="original"` is the system as first published: pixel embeddings are the tokens themselves (stride 16, soft
edges) and training has no matching: query 0 is always the object, all other masks learn to be empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses, postprocess
from ..criterion import MaskCriterion
from ..encoders.darknet import DarkNet
from ..labels import LabelMap
from ..layers.conv import ConvBlock, keep_valid
from ..layers.fpn import ConcatFPN
from ..layers.masks import PixelMap, QueryPixelMasks
from ..layers.normalize import Normalize
from ..layers.param_groups import param_groups
from ..layers.position import sine_position
from ..layers.transformer import DecoderLayer
from ..model import SegmentationModel
from ..recipe import TrainConfig
from ..types import Batch, Prediction


@dataclass(frozen=True)
class Config:
    """Sizes of a hybrid.

    Attributes:
        image_side: longest side of the photo on its canvas.
        widths, blocks, stem_stride: of the `DarkNet`.
        pyramid: FPN channels of p2..p5.
        dim, heads, layers, queries: of the transformer decoder.
        mask_dim: width of the query and pixel embeddings.
        points: points an image that the mask losses see.
    """

    image_side: int = 640
    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    blocks: tuple[int, ...] = (1, 2, 8, 8, 4)
    stem_stride: int = 1
    pyramid: tuple[int, ...] = (128, 256, 256, 256)
    dim: int = 384
    heads: int = 6
    layers: int = 6
    queries: int = 100
    mask_dim: int = 256
    points: int = 4096
    compat: Literal["default", "original"] = "default"


PRESETS = {
    "base": Config(),
    "original": Config(mask_dim=384, compat="original"),
    "small": Config(
        image_side=512,
        widths=(16, 32, 64, 128, 256),
        blocks=(2, 6, 12, 6),
        stem_stride=2,
        pyramid=(32, 64, 96, 128),
        dim=128,
        heads=4,
        layers=3,
        queries=20,
        mask_dim=32,
        points=1024,
    ),
    "tiny": Config(
        image_side=64,
        widths=(8, 12, 16, 24, 32),
        blocks=(1, 1, 1, 1),
        stem_stride=2,
        pyramid=(16, 16, 24, 32),
        dim=32,
        heads=2,
        layers=2,
        queries=8,
        mask_dim=16,
        points=1024,
    ),
}

RECIPE = TrainConfig(steps=12000, batch_size=8, lr=1e-3, weight_decay=0.02, warmup=300, ema=0.998, scale=(0.7, 1.5))

TASKS = {
    "semantic": partial(postprocess.semantic, reduce="max", background=0.5),
    "instance": postprocess.instance,
    "cutout": postprocess.cutout,
}


class Model(SegmentationModel):
    """The hybrid. See the head of this file for the picture.

    Args:
        labels: the K classes.
    """

    def __init__(self, config: Config, labels: LabelMap) -> None:
        super().__init__(config, labels)
        self.normalize = Normalize()
        self.encoder = DarkNet(config.widths, config.blocks, config.stem_stride)
        self.skip = 1 if config.compat == "original" else 0
        pyramid = config.pyramid[self.skip :]
        self.fpn = ConcatFPN(self.encoder.channels[self.skip :], pyramid)
        self.patchify = ConvBlock(config.pyramid[1], config.dim, kernel=2, stride=2)
        self.query_content = nn.Embedding(config.queries, config.dim)
        self.query_position = nn.Embedding(config.queries, config.dim)
        self.decoder = nn.ModuleList(
            DecoderLayer(config.dim, config.heads, 4 * config.dim) for _ in range(config.layers)
        )
        self.class_head = nn.Linear(config.dim, len(labels) + 1)
        self.query_proj = nn.Linear(config.dim, config.mask_dim)
        self.pixel_proj = nn.Conv2d(config.dim if self.skip else pyramid[0], config.mask_dim, kernel_size=1)
        self.criterion = MaskCriterion(points=config.points)

    def forward(self, batch: Batch) -> Prediction:
        """Canvas sides must be multiples of 32."""
        valid = batch.valid()
        images = keep_valid(self.normalize(batch.images), valid)
        pyramid = self.fpn(self.encoder(images, valid)[self.skip :], valid)
        tokens = keep_valid(self.patchify(pyramid[1 - self.skip]), valid)
        pixels = PixelMap(self.pixel_proj(tokens if self.skip else pyramid[0]))
        *aux, last = (self._heads(x, pixels, batch) for x in self._decode(tokens, valid))
        return Prediction(last.class_logits, last.masks, aux=tuple(aux))

    def _decode(self, tokens: Tensor, valid: Tensor | None) -> list[Tensor]:
        """Query states [B, Q, D] after each decoder layer; tokens [B, D, h, w]."""
        height, width = tokens.shape[-2:]
        position = sine_position(height, width, self.config.dim, device=tokens.device).to(tokens.dtype)
        memory, memory_pos = (x.flatten(-2).transpose(-2, -1) for x in (tokens, position))
        stride = 16
        token_valid = None if valid is None else valid[..., ::stride, ::stride].flatten(1)
        x, query_pos = (e.weight.expand(len(tokens), -1, -1) for e in (self.query_content, self.query_position))
        states = []
        for layer in self.decoder:
            x = layer(x, query_pos, memory, memory_pos, token_valid)
            states.append(x)
        return states

    def _heads(self, x: Tensor, pixels: PixelMap, batch: Batch) -> Prediction:
        masks = QueryPixelMasks(self.query_proj(x), pixels, batch.letterboxes, batch.size)
        return Prediction(self.class_head(x), masks)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms; their sum is what is minimised."""
        prediction = self(batch)
        return original_loss(prediction, batch) if self.skip else self.criterion(prediction, batch)

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Every parameter once; attention learns at a third of the rate that the convolutions stand."""
        return param_groups(self, lr, weight_decay, rates=dict.fromkeys(("decoder", "query_", "class_head"), 0.3))


def original_loss(prediction: Prediction, batch: Batch, points: int = 12544) -> dict[str, Tensor]:
    """The first published training: no matching, plain cross entropy, BCE over all queries' masks.

    Query 0 learns the merged foreground; the other queries, 99 of 100, learn emptiness, which dominates the loss.
    """
    sampled = losses.random_points(batch, points)
    mask_logits = prediction.masks.sample(sampled)
    target_classes = torch.full_like(prediction.class_logits[..., 0], prediction.class_logits.shape[-1] - 1).long()
    terms = []
    for b, segments in enumerate(batch.truth()):
        targets, known = losses.point_targets(segments, sampled[b])
        wanted = torch.zeros_like(mask_logits[b])
        if len(segments):
            wanted[0] = targets.amax(0)
            target_classes[b, 0] = segments.classes[0]
        terms.append(losses.mask_bce(mask_logits[b], wanted, known).mean())
    class_loss = F.cross_entropy(prediction.class_logits.flatten(0, 1), target_classes.flatten())
    return {"class": class_loss, "mask": torch.stack(terms).mean()}


def published(config: dict[str, Any], preprocessor: dict[str, Any]) -> None:
    """None: no checkpoint of another library is one of this system's."""


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights to ours. No weights of this system were ever published, so there is nothing to rename.

    The names are ours already; `load_state_dict(strict=True)` refuses all others.
    """
    return state_dict
