"""MaskFormer (Cheng, Schwing, Kirillov 2021): N masks and N classes instead of a class for each pixel.

    photo -> ResNet or Swin -> c2..c5 -> pixel decoder -> pixel embeddings at stride 4 ---+
                                c5 (or encoded c5) = memory                               | inner product -> mask logits
              queries -> 6 decoder layers over the memory -> mask embedding MLP ----------+
                                                          -> class logits (K+1)

`head="per-pixel"` is the paper's baseline: the same pixel decoder, then one 1x1 convolution to classes and per-pixel
cross entropy, so that the two formulations can be compared on the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses, postprocess
from ..criterion import MaskCriterion, mean_over_processes
from ..encoders import resnet, swin
from ..encoders.resnet import ResNet
from ..encoders.swin import Swin
from ..labels import LabelMap
from ..layers.canvas import by_canvas
from ..layers.conv import keep_valid
from ..layers.masks import ProjectedMasks, ProjectedPixels, QueryPixelMasks
from ..layers.normalize import Normalize
from ..layers.param_groups import param_groups
from ..layers.pixel_decoder import PixelDecoder
from ..layers.position import normalized_sine_position
from ..layers.transformer import MLP, DecoderLayer
from ..model import SegmentationModel
from ..recipe import TrainConfig
from ..types import VOID, Batch, Letterbox, Prediction


@dataclass(frozen=True)
class Config:
    """Sizes of a MaskFormer.

    Attributes:
        image_side: longest side of the photo on its canvas.
        shortest_side: the photo's shortest side on the canvas, as long as the longest stays within `image_side`;
            0 fits the longest side alone.
        encoder: kind of the encoder; `width`, `depths` and, for Swin, `heads`, `window` and `drop_path` are its own.
        norm: of a ResNet: "frozen" for published weights, "batch" to train from random ones.
        dim, decoder_heads, layers, queries, hidden_dim, dropout: of the transformer decoder.
        pixel_dim, mask_dim: width of the pixel decoder and of the query and pixel embeddings.
        encoder_layers: transformer encoder layers in the pixel decoder.
        head: "mask", or "per-pixel" for the paper's baseline.
        points: points an image that the mask losses see.
        background: semantic results leave pixels of less evidence than this without a class; None, as in the paper,
            gives every pixel one.
    """

    image_side: int = 640
    shortest_side: int = 0
    encoder: Literal["resnet", "swin"] = "swin"
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.3
    norm: resnet.Norm = "frozen"
    dim: int = 256
    decoder_heads: int = 8
    layers: int = 6
    queries: int = 100
    hidden_dim: int = 2048
    dropout: float = 0.1
    pixel_dim: int = 256
    mask_dim: int = 256
    encoder_layers: int = 0
    head: Literal["mask", "per-pixel"] = "mask"
    points: int = 12544
    background: float | None = None


_R50 = Config(image_side=2048, shortest_side=512, encoder="resnet", width=64, depths=(3, 4, 6, 3))
_R101 = Config(image_side=2048, shortest_side=512, encoder="resnet", width=64, depths=(3, 4, 23, 3))
_SWIN_T = Config(image_side=2048, shortest_side=512)
_SWIN_S = Config(image_side=2048, shortest_side=512, depths=(2, 2, 18, 2))
_SWIN_B = Config(image_side=2560, shortest_side=640, width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12)
_SWIN_L = Config(image_side=2560, shortest_side=640, width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12)


def _coco(config: Config) -> Config:
    """The same network at COCO's sizes; with a ResNet, six encoder layers (paper, section 4.1)."""
    sizes = {**vars(config), "image_side": 1333, "shortest_side": 800}
    return Config(**(sizes | {"encoder_layers": 6} if config.encoder == "resnet" else sizes))


PRESETS = {
    "swin-t-ade": _SWIN_T,
    "swin-s-ade": _SWIN_S,
    "swin-b-ade": _SWIN_B,
    "swin-l-ade": _SWIN_L,
    "r50-ade": _R50,
    "r101-ade": _R101,
    "swin-t-coco": _coco(_SWIN_T),
    "swin-s-coco": _coco(_SWIN_S),
    "swin-b-coco": _coco(_SWIN_B),
    "swin-l-coco": _coco(_SWIN_L),
    "r50-coco": _coco(_R50),
    "r101-coco": _coco(_R101),
    "small": Config(
        image_side=480,
        encoder="resnet",
        width=24,
        depths=(2, 2, 4, 2),
        norm="batch",
        dim=128,
        decoder_heads=4,
        layers=3,
        queries=40,
        hidden_dim=512,
        dropout=0.0,
        pixel_dim=64,
        mask_dim=64,
        points=2048,
        background=0.5,
    ),
    "tiny": Config(
        image_side=64,
        encoder="resnet",
        width=8,
        depths=(1, 1, 1, 1),
        norm="batch",
        dim=32,
        decoder_heads=2,
        layers=2,
        queries=8,
        hidden_dim=64,
        dropout=0.0,
        pixel_dim=32,
        mask_dim=16,
        points=1024,
        background=0.5,
    ),
}

RECIPE = TrainConfig(
    steps=160_000, batch_size=16, lr=1e-4, weight_decay=1e-4, warmup=1500, clip=0.01, ema=0.0, targets="instance"
)

TASKS = {
    "semantic": postprocess.semantic,
    "instance": partial(postprocess.instance, threshold=0.5),
    "panoptic": postprocess.panoptic,
}


class Model(SegmentationModel):
    """MaskFormer. See the head of this file for the picture.

    Args:
        labels: the K classes.
    """

    def __init__(self, config: Config, labels: LabelMap) -> None:
        super().__init__(config, labels)
        self.normalize = Normalize()
        self.encoder = build_encoder(config)
        heads, hidden = config.decoder_heads, config.hidden_dim
        self.pixel_decoder = PixelDecoder(self.encoder.channels, config.pixel_dim, config.encoder_layers, heads, hidden)
        self.mask_proj = nn.Conv2d(config.pixel_dim, config.mask_dim, kernel_size=3, padding=1)
        if config.head == "per-pixel":
            self.pixel_head = nn.Conv2d(config.mask_dim, len(labels) + 1, kernel_size=1)
            return
        memory_dim = config.pixel_dim if config.encoder_layers else self.encoder.channels[-1]
        self.input_proj = nn.Conv2d(memory_dim, config.dim, 1) if memory_dim != config.dim else nn.Identity()
        self.query_position = nn.Embedding(config.queries, config.dim)
        self.decoder = nn.ModuleList(
            DecoderLayer(config.dim, heads, hidden, config.dropout) for _ in range(config.layers)
        )
        self.decoder_norm = nn.LayerNorm(config.dim)
        self.class_head = nn.Linear(config.dim, len(labels) + 1)
        self.mask_head = MLP(config.dim, config.dim, config.mask_dim, layers=3)
        self.criterion = MaskCriterion(1.0, 20.0, 1.0, no_object_weight=0.1, focal=True, points=config.points)

    def letterbox(self, source: tuple[int, int], side: int | None = None) -> Letterbox:
        shortest = self.config.shortest_side
        if side or not shortest:
            return super().letterbox(source, side)
        longest = min(self.config.image_side, shortest * max(source) / min(source))
        return Letterbox.fit(source, round(longest))

    def task_options(self, task: str) -> dict[str, Any]:
        return {"background": self.config.background} if task == "semantic" else {}

    def forward(self, batch: Batch) -> Prediction:
        """Canvas sides must be multiples of 32."""
        images = keep_valid(self.normalize(batch.images), batch.valid(multiple=1))
        if self.config.head == "per-pixel":
            (logits,) = by_canvas(self._pixel_logits, images, batch)
            return per_pixel_prediction(logits, batch)
        features, states = by_canvas(self._features, images, batch)
        pixels = ProjectedPixels(features, self.mask_proj)
        layers = [self._heads(x, pixels, batch) for x in self.decoder_norm(states).chunk(self.config.layers, dim=1)]
        return Prediction(layers[-1].class_logits, layers[-1].masks, aux=tuple(layers[:-1]))

    def _pixel_logits(self, images: Tensor) -> tuple[Tensor]:
        """[b, 3, h, w] -> [b, K+1, h/4, w/4]."""
        return (self.pixel_head(self.mask_proj(self.pixel_decoder(self.encoder(images))[0])),)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[b, 3, h, w] -> pixel features [b, C, h/4, w/4] and query states [b, layers x Q, dim]."""
        features, memory = self.pixel_decoder(self.encoder(images))
        memory = self.input_proj(memory)
        height, width = memory.shape[-2:]
        position = normalized_sine_position(height, width, self.config.dim, device=memory.device).to(memory.dtype)
        memory, memory_pos = (x.flatten(-2).transpose(-2, -1) for x in (memory, position))
        query_pos = self.query_position.weight.expand(len(images), -1, -1)
        x, states = torch.zeros_like(query_pos), []
        for layer in self.decoder:
            x = layer(x, query_pos, memory, memory_pos)
            states.append(x)
        return features, torch.stack(states, dim=1).flatten(1, 2)

    def _heads(self, x: Tensor, pixels: ProjectedPixels, batch: Batch) -> Prediction:
        masks = ProjectedMasks(self.mask_head(x), pixels, batch.letterboxes, batch.size)
        return Prediction(self.class_head(x), masks)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms; their sum is what is minimised."""
        prediction = self(batch)
        if self.config.head == "per-pixel":
            return {"pixel": per_pixel_loss(prediction, batch, self.config.points)}
        return self.criterion(prediction, batch)

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Every parameter once; a pretrained ResNet learns at a tenth of the rate (paper, section 4.1)."""
        rates = {"encoder": 0.1} if self.config.encoder == "resnet" and self.config.norm == "frozen" else {}
        return param_groups(self, lr, weight_decay, rates=rates)


def build_encoder(config: Config) -> ResNet | Swin:
    """The encoder that a configuration describes."""
    if config.encoder == "resnet":
        return ResNet(config.depths, config.width, config.norm)
    return Swin(config.width, config.depths, config.heads, config.window, config.drop_path)


class PixelClassMasks(QueryPixelMasks):
    """Masks of the per-pixel head: query k is class k, the last is "no class".

    Mask logits are such that their sigmoid is the softmax over classes, so that all post-processing fits.

    Args:
        logits: class logits of each pixel [B, K+1, h, w].
    """

    def __init__(self, logits: Tensor, letterboxes: Sequence[Letterbox], canvas: tuple[int, int]) -> None:
        count = logits.shape[1]
        identity = torch.eye(count, device=logits.device, dtype=logits.dtype).expand(len(logits), -1, -1)
        super().__init__(identity, logits, letterboxes, canvas)

    def sample(self, points: Tensor) -> Tensor:
        return one_against_all(super().sample(points), axis=1)

    def decode(self, b: int, queries: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        every = torch.arange(self.queries.shape[1], device=self.pixels.device)
        return one_against_all(super().decode(b, every, size), axis=0)[queries]


def one_against_all(class_logits: Tensor, axis: int) -> Tensor:
    """Logits whose sigmoid is the softmax of `class_logits` along `axis`."""
    probability = class_logits.softmax(axis)
    return class_logits.log_softmax(axis) - torch.log1p(-probability.clamp(max=1 - 1e-7))


def per_pixel_prediction(logits: Tensor, batch: Batch) -> Prediction:
    """The prediction of the per-pixel head from class logits [B, K+1, h, w]."""
    masks = PixelClassMasks(logits, batch.letterboxes, batch.size)
    return Prediction(30 * masks.queries, masks)


def per_pixel_loss(prediction: Prediction, batch: Batch, count: int) -> Tensor:
    """Cross entropy at random points that are not void (paper, equation 1)."""
    points = losses.random_points(batch, count)
    log_probability = F.logsigmoid(prediction.masks.sample(points))
    classes = []
    for truth, at in zip(batch.truth(), points.long(), strict=True):
        classes.append(truth.class_map(log_probability.shape[1] - 1)[at[:, 1], at[:, 0]])
    wanted = torch.stack(classes)
    known = mean_over_processes(int((wanted != VOID).sum()), wanted.device)
    return F.nll_loss(log_probability, wanted, ignore_index=VOID, reduction="sum") / known


def published(config: dict[str, Any], preprocessor: dict[str, Any]) -> Config | None:
    """The configuration of a checkpoint in the layout of `transformers`, None if it is another system's.

    Args:
        config: its ``config.json``.
        preprocessor: its ``preprocessor_config.json``, empty if there is none.
    """
    if config.get("model_type") != "maskformer":
        return None
    decoder = config["decoder_config"]
    size = preprocessor.get("size", {})
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    shortest = size.get("shortest_edge", 800)
    return Config(
        image_side=size.get("longest_edge") or preprocessor.get("max_size", 1333),
        shortest_side=shortest,
        **_published_encoder(config["backbone_config"]),
        dim=decoder["d_model"],
        decoder_heads=decoder["decoder_attention_heads"],
        layers=decoder["decoder_layers"],
        queries=decoder["num_queries"],
        hidden_dim=decoder["decoder_ffn_dim"],
        dropout=decoder["dropout"],
        pixel_dim=config["fpn_feature_size"],
        mask_dim=config["mask_feature_size"],
    )


def _published_encoder(config: dict[str, Any]) -> dict[str, Any]:
    """Our encoder settings from a backbone's."""
    if config["model_type"] == "resnet":
        return {"encoder": "resnet", "width": config["embedding_size"], "depths": tuple(config["depths"])}
    return {
        "encoder": "swin",
        "width": config["embed_dim"],
        "depths": tuple(config["depths"]),
        "heads": tuple(config["num_heads"]),
        "window": config["window_size"],
        "drop_path": config["drop_path_rate"],
    }


_PIXEL, _DECODER = "model.pixel_level_module.", "model.transformer_module."

PUBLISHED_NAMES = {
    _PIXEL + "decoder.fpn.stem.": "pixel_decoder.stem.",
    _PIXEL + "decoder.mask_projection.": "mask_proj.",
    _DECODER + "queries_embedder.": "query_position.",
    _DECODER + "input_projection.": "input_proj.",
    _DECODER + "decoder.layernorm.": "decoder_norm.",
    _DECODER + "decoder.layers.": "decoder.",
    ".self_attn.": ".self_attention.",
    ".encoder_attn.": ".cross_attention.",
    ".self_attn_layer_norm.": ".norm1.",
    ".encoder_attn_layer_norm.": ".norm2.",
    ".final_layer_norm.": ".norm3.",
    ".fc1.": ".mlp.0.",
    ".fc2.": ".mlp.2.",
    "class_predictor.": "class_head.",
    "mask_embedder.0.0.": "mask_head.0.",
    "mask_embedder.1.0.": "mask_head.2.",
    "mask_embedder.2.0.": "mask_head.4.",
}
"""Parts of names in the checkpoints of `transformers`, and ours."""


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the layout of `transformers` to ours; ours are left alone."""
    if not any(name.startswith(_PIXEL) for name in state_dict):
        return state_dict
    dropped = ("criterion.empty_weight", "num_batches_tracked")
    state = {name: value for name, value in state_dict.items() if not name.endswith(dropped)}
    encoder = {
        name.removeprefix(_PIXEL + "encoder."): state.pop(name)
        for name in list(state)
        if name.startswith(_PIXEL + "encoder.")
    }
    kind = resnet if any(name.startswith("embedder.") for name in encoder) else swin
    converted = {f"encoder.{name}": value for name, value in kind.from_transformers(encoder).items()}
    return converted | {_own_name(name): value for name, value in state.items()}


def _own_name(name: str) -> str:
    if name.startswith(_PIXEL + "decoder.fpn.layers."):
        layer, part, tensor = name.removeprefix(_PIXEL + "decoder.fpn.layers.").split(".", 2)
        return f"pixel_decoder.{'lateral' if part == 'proj' else 'output'}.{layer}.{tensor}"
    for theirs, ours in PUBLISHED_NAMES.items():
        name = name.replace(theirs, ours)
    return name
