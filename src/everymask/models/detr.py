"""DETR (Carion et al. 2020): boxes and classes from queries, then masks from where the queries look.

    photo -> ResNet -> c2..c5 -> 1x1 -> source -> encoder -> memory
                                           queries -> decoder over memory -> class logits (K+1), boxes
                              query x memory -> attention maps --+
                                                   source -------+-> mask head (c4, c3, c2 added) -> mask logits at 4

Masks are decoded for the queries that somebody asks for: those matched in training, those kept at inference.
`head="boxes"` is the detector alone; its masks are filled boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import postprocess
from ..criterion import BoxCriterion
from ..encoders import resnet
from ..encoders.resnet import ResNet, at_stride
from ..labels import LabelMap
from ..layers.attention_map import AttentionMap
from ..layers.conv import keep_valid
from ..layers.map_masks import BoxMasks
from ..layers.mask_head import AttentionMasks, MaskHead, MaskSource
from ..layers.normalize import Normalize
from ..layers.param_groups import param_groups
from ..layers.position import normalized_sine_position
from ..layers.transformer import MLP, DecoderLayer, EncoderLayer
from ..model import SegmentationModel
from ..recipe import TrainConfig
from ..types import Batch, Letterbox, MaskDecoder, Prediction, round_up


@dataclass(frozen=True)
class Config:
    """Sizes of a DETR.

    Attributes:
        image_side: longest side of the photo on its canvas.
        shortest_side: the photo's shortest side on the canvas, as long as the longest stays within `image_side`;
            0 fits the longest side alone.
        width, depths, norm, dilated: of the `ResNet`; `dilated` is DC5. With "frozen" norms, which published weights
            want, the stem and the first stage do not learn either.
        dim, heads, encoder_layers, decoder_layers, queries, hidden_dim, dropout: of the transformer.
        head: "masks", or "boxes" for a detector without a mask head.
        points: points an image that the mask losses see; 0 takes every pixel, as the paper does.
        mask_memory: MiB that the mask head's largest maps may take; more queries are decoded one part after the other.
        recompute: train the mask head without keeping its maps: less memory, more time.
        background: semantic results leave pixels of less evidence than this without a class; None gives every pixel
            one.
    """

    image_side: int = 1333
    shortest_side: int = 800
    width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    norm: resnet.Norm = "frozen"
    dilated: bool = False
    dim: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 100
    hidden_dim: int = 2048
    dropout: float = 0.1
    head: Literal["masks", "boxes"] = "masks"
    points: int = 12544
    mask_memory: int = 64
    recompute: bool = False
    background: float | None = None


DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
"""By the names that published configurations have for them."""

PRESETS = {
    "r50": Config(),
    "r101": Config(depths=DEPTHS["resnet101"]),
    "r50-dc5": Config(dilated=True),
    "r101-dc5": Config(depths=DEPTHS["resnet101"], dilated=True),
    "small": Config(
        image_side=384,
        shortest_side=0,
        width=24,
        depths=(2, 2, 4, 2),
        norm="batch",
        dim=128,
        encoder_layers=2,
        decoder_layers=3,
        queries=40,
        hidden_dim=512,
        dropout=0.0,
        points=4096,
        background=0.5,
    ),
    "tiny": Config(
        image_side=64,
        shortest_side=0,
        width=8,
        depths=(1, 1, 1, 1),
        norm="batch",
        dim=64,
        encoder_layers=1,
        decoder_layers=2,
        queries=8,
        hidden_dim=64,
        dropout=0.0,
        points=1024,
        background=0.5,
    ),
}

RECIPE = TrainConfig(
    steps=300_000, batch_size=16, lr=1e-4, weight_decay=1e-4, warmup=0, clip=0.1, ema=0.0, targets="instance"
)

TASKS = {
    "panoptic": postprocess.panoptic_of_logits,
    "instance": partial(postprocess.instance, threshold=0.85),
    "semantic": partial(postprocess.semantic, reduce="max"),
}


class Model(SegmentationModel):
    """DETR. See the head of this file for the picture.

    Args:
        labels: the K classes.
    """

    parts = MappingProxyType(
        {
            "detector": (
                "encoder",
                "input_proj",
                "transformer_encoder",
                "query_position",
                "decoder",
                "decoder_norm",
                "class_head",
                "box_head",
            ),
            "masks": ("attention_map", "mask_head"),
        }
    )

    def __init__(self, config: Config, labels: LabelMap) -> None:
        super().__init__(config, labels)
        dim, heads, hidden = config.dim, config.heads, config.hidden_dim
        self.normalize = Normalize()
        self.encoder = ResNet(config.depths, config.width, config.norm, config.dilated)
        self.input_proj = nn.Conv2d(self.encoder.channels[-1], dim, kernel_size=1)
        self.transformer_encoder = nn.ModuleList(
            EncoderLayer(dim, heads, hidden, config.dropout) for _ in range(config.encoder_layers)
        )
        self.query_position = nn.Embedding(config.queries, dim)
        self.decoder = nn.ModuleList(
            DecoderLayer(dim, heads, hidden, config.dropout) for _ in range(config.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, len(labels) + 1)
        self.box_head = MLP(dim, dim, 4, layers=3)
        if config.head == "masks":
            self.attention_map = AttentionMap(dim, heads)
            self.mask_head = MaskHead(dim, heads, self.encoder.channels[:3])
        for part in (self.transformer_encoder, self.decoder):
            for weight in part.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
        if config.norm == "frozen":
            self.encoder.stem.requires_grad_(False)
            self.encoder.stages[0].requires_grad_(False)
        self.criterion = BoxCriterion(masks=config.head == "masks", points=config.points)

    def letterbox(self, source: tuple[int, int], side: int | None = None) -> Letterbox:
        shortest = self.config.shortest_side
        return super().letterbox(source, side) if side or not shortest else fit_sides(source, self.config)

    def task_options(self, task: str) -> dict[str, Any]:
        return {"background": self.config.background} if task == "semantic" else {}

    def forward(self, batch: Batch) -> Prediction:
        """A canvas of any size; what all images leave empty of it is cut away."""
        height, width = (max(box.content[axis] for box in batch.letterboxes) for axis in (0, 1))
        batch = replace(batch, images=batch.images[..., :height, :width])
        valid = batch.valid(multiple=1)
        features = self.encoder(keep_valid(self.normalize(batch.images), valid), valid)
        source = self.input_proj(features[-1])
        memory, states = self._transform(source, batch, valid)
        masks = self._mask_source(features, source, memory)
        *aux, last = (self._heads(x, masks, batch.letterboxes) for x in states)
        return replace(last, aux=tuple(aux))

    def _transform(self, source: Tensor, batch: Batch, valid: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """[B, D, h, w] -> encoded [B, D, h, w] and the states of the queries [B, Q, D] after each decoder layer."""
        stride = self.encoder.strides[-1]
        position = positions([box.content for box in batch.letterboxes], source, stride)
        memory, memory_pos = (x.flatten(-2).transpose(-2, -1) for x in (source, position))
        cells = at_stride(valid, stride)
        known = None if cells is None else cells.flatten(1)
        for encoder_layer in self.transformer_encoder:
            memory = encoder_layer(memory, memory_pos, known)
        query_pos = self.query_position.weight.expand(len(source), -1, -1)
        x, states = torch.zeros_like(query_pos), []
        for layer in self.decoder:
            x = layer(x, query_pos, memory, memory_pos, known)
            states.append(self.decoder_norm(x))
        return memory.transpose(1, 2).unflatten(-1, source.shape[-2:]), states

    def _mask_source(self, features: Sequence[Tensor], source: Tensor, memory: Tensor) -> MaskSource | None:
        """None for a detector without masks."""
        if self.config.head == "boxes":
            return None
        stride, config = self.encoder.strides[-1], self.config
        return MaskSource(
            memory,
            source,
            features[:3],
            self.attention_map,
            self.mask_head,
            stride,
            config.mask_memory,
            self.training and config.recompute,
        )

    def _heads(self, x: Tensor, source: MaskSource | None, letterboxes: tuple[Letterbox, ...]) -> Prediction:
        boxes = self.box_head(x).sigmoid()
        masks: MaskDecoder = BoxMasks(boxes, letterboxes) if source is None else AttentionMasks(x, source, letterboxes)
        return Prediction(self.class_head(x), masks, boxes=boxes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms; their sum is what is minimised."""
        return self.criterion(self(batch), batch)

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Every parameter once; a pretrained ResNet learns at a tenth of the rate (paper, section A.4)."""
        return param_groups(self, lr, weight_decay, rates={"encoder": 0.1} if self.config.norm == "frozen" else {})


def fit_sides(source: tuple[int, int], config: Config) -> Letterbox:
    """The shortest side to `shortest_side`, or the longest to `image_side` if it would become longer than that."""
    short, long = sorted(source)
    if config.shortest_side * long <= config.image_side * short:
        # Rounded down, as published: 480 x 640 becomes 800 x 1066.
        sides = config.shortest_side, config.shortest_side * long // short
    else:
        sides = max(1, round(config.image_side * short / long)), config.image_side
    content = sides if source[0] <= source[1] else sides[::-1]
    return Letterbox(source, content, (round_up(content[0], 32), round_up(content[1], 32)))


def positions(contents: Sequence[tuple[int, int]], like: Tensor, stride: int) -> Tensor:
    """[B, D, h, w] as `like`: each image's sine encoding relative to its own content, zero beyond it."""
    maps = like.new_zeros(like.shape)
    for own, content in zip(maps, contents, strict=True):
        height, width = (round_up(length, stride) // stride for length in content)
        own[:, :height, :width] = normalized_sine_position(height, width, len(own), device=own.device)
    return maps


# --- published weights -----------------------------------------------------------------------------------------------


def published(config: dict[str, Any], preprocessor: dict[str, Any]) -> Config | None:
    """The configuration of a checkpoint in the layout of `transformers`, None if it is another system's.

    Args:
        config: its ``config.json``.
        preprocessor: its ``preprocessor_config.json``, empty if there is none.
    """
    if config.get("model_type") != "detr":
        return None
    if config.get("position_embedding_type", "sine") != "sine":
        raise ValueError(f"position_embedding_type is {config['position_embedding_type']}, not sine")
    if config["decoder_attention_heads"] != config["encoder_attention_heads"]:
        raise ValueError("encoder and decoder have different numbers of heads")
    size = preprocessor.get("size", {})
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    segments = "DetrForSegmentation" in (config.get("architectures") or [])
    return Config(
        image_side=size.get("longest_edge") or preprocessor.get("max_size") or 1333,
        shortest_side=size.get("shortest_edge", 800),
        **_published_encoder(config),
        dim=config["d_model"],
        heads=config["encoder_attention_heads"],
        encoder_layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        queries=config["num_queries"],
        hidden_dim=config["encoder_ffn_dim"],
        dropout=config["dropout"],
        head="masks" if segments else "boxes",
    )


def _published_encoder(config: dict[str, Any]) -> dict[str, Any]:
    """Our encoder settings: from a backbone's own configuration, or from its name."""
    backbone = config.get("backbone_config") or {}
    if backbone.get("model_type") == "resnet":
        return {"width": backbone["embedding_size"], "depths": tuple(backbone["depths"])}
    name = backbone.get("backbone") or config.get("backbone") or "resnet50"
    dilated = bool(config.get("dilation")) or backbone.get("output_stride") == 16
    return {"depths": DEPTHS[name], "dilated": dilated}


def original(state_dict: dict[str, Tensor], name: str) -> Config | None:
    """The configuration of the weights as first published, which have none beside them; None if they are others'.

    Args:
        name: of the file. Whether the last stage is dilated leaves no trace in the weights: the name says "dc5".
    """
    state = {key.removeprefix("detr."): value for key, value in state_dict.items()}
    if "query_embed.weight" not in state or "class_embed.weight" not in state:
        return None
    queries, dim = state["query_embed.weight"].shape
    segments = "mask_head.lay1.weight" in state
    return Config(
        width=len(state["backbone.0.body.conv1.weight"]),
        depths=tuple(_count(state, rf"backbone\.0\.body\.layer{n}\.(\d+)\.") for n in (1, 2, 3, 4)),
        dilated="dc5" in name.lower(),
        dim=dim,
        heads=len(state["mask_head.lay1.weight"]) - dim if segments else 8,
        encoder_layers=_count(state, r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=_count(state, r"transformer\.decoder\.layers\.(\d+)\."),
        queries=queries,
        hidden_dim=len(state["transformer.decoder.layers.0.linear1.weight"]),
        head="masks" if segments else "boxes",
    )


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers the names have at that place."""
    return len({found[1] for found in map(re.compile(pattern).match, state) if found})


Names = dict[str, str | Callable[[re.Match[str]], str]]
"""Patterns of published names, and ours in their place."""

COMMON_NAMES: Names = {
    r"mask_head\.lay(\d)\.": lambda found: f"mask_head.blocks.{int(found[1]) - 1}.conv.",
    r"mask_head\.gn(\d)\.": lambda found: f"mask_head.blocks.{int(found[1]) - 1}.norm.",
    r"mask_head\.adapter(\d)\.": lambda found: f"mask_head.blocks.{int(found[1]) + 1}.adapter.",
    r"mask_head\.out_lay\.": "mask_head.output.",
    r"bbox_attention\.([qk])_(?:linear|proj)\.": r"attention_map.\1_proj.",
    r"bbox_(?:embed|predictor)\.layers\.(\d)\.": lambda found: f"box_head.{2 * int(found[1])}.",
}
"""In both published layouts."""

TRANSFORMERS_NAMES: Names = {
    r"^(?:detr\.)?(?:model\.)?": "",
    r"^encoder\.layers\.(\d+)\.self_attn\.": r"transformer_encoder.\1.attention.",
    r"^encoder\.layers\.(\d+)\.final_layer_norm\.": r"transformer_encoder.\1.norm2.",
    r"^encoder\.layers\.": "transformer_encoder.",
    r"^decoder\.layers\.": "decoder.",
    r"^decoder\.layernorm\.": "decoder_norm.",
    r"\.self_attn\.": ".self_attention.",
    r"\.encoder_attn\.": ".cross_attention.",
    r"\.o_proj\.": ".out_proj.",
    r"\.self_attn_layer_norm\.": ".norm1.",
    r"\.encoder_attn_layer_norm\.": ".norm2.",
    r"\.final_layer_norm\.": ".norm3.",
    r"\.(?:mlp\.)?fc1\.": ".mlp.0.",
    r"\.(?:mlp\.)?fc2\.": ".mlp.2.",
    r"^input_projection\.": "input_proj.",
    r"^query_position_embeddings\.": "query_position.",
    r"^class_labels_classifier\.": "class_head.",
    # As they are called in memory; saved, these have the names of the original.
    r"^mask_head\.conv(\d)\.": lambda found: f"mask_head.blocks.{int(found[1]) - 1}.",
    r"^mask_head\.fpn_stages\.(\d)\.refine\.": lambda found: f"mask_head.blocks.{int(found[1]) + 2}.",
    r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter\.": lambda found: f"mask_head.blocks.{int(found[1]) + 2}.adapter.",
    r"^mask_head\.output_conv\.": "mask_head.output.",
}
"""In the layout of `transformers`, in this order."""

ORIGINAL_NAMES: Names = {
    r"^(?:detr\.)?(?:transformer\.)?": "",
    r"^encoder\.layers\.(\d+)\.self_attn\.": r"transformer_encoder.\1.attention.",
    r"^encoder\.layers\.": "transformer_encoder.",
    r"^decoder\.layers\.": "decoder.",
    r"^decoder\.norm\.": "decoder_norm.",
    r"\.self_attn\.": ".self_attention.",
    r"\.multihead_attn\.": ".cross_attention.",
    r"\.linear1\.": ".mlp.0.",
    r"\.linear2\.": ".mlp.2.",
    r"^query_embed\.": "query_position.",
    r"^class_embed\.": "class_head.",
}
"""In the layout of the original, in this order."""

BACKBONE = re.compile(r"(?:detr\.)?(?:model\.)?backbone\.(?:0\.body|(?:conv_encoder\.)?model)\.(.*)")


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the layout of `transformers` or of the original to ours; ours are left alone."""
    if "query_position.weight" in state_dict:
        return state_dict
    state = {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}
    backbone = {found[1]: state.pop(name) for name in list(state) if (found := BACKBONE.fullmatch(name))}
    of_torchvision = "conv1.weight" in backbone
    encoder = (resnet.from_torchvision if of_torchvision else resnet.from_transformers)(backbone)
    names = ORIGINAL_NAMES if any(name.endswith("query_embed.weight") for name in state) else TRANSFORMERS_NAMES
    renamed = {_renamed(name, names): value for name, value in state.items()}
    return {f"encoder.{name}": value for name, value in encoder.items()} | _separate_projections(renamed)


def _renamed(name: str, names: Names) -> str:
    for pattern, ours in (names | COMMON_NAMES).items():
        name = re.sub(pattern, ours, name, count=1)
    return name


def _separate_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original keeps the projections to queries, keys and values in one tensor."""
    separate: dict[str, Tensor] = {}
    for name, value in state.items():
        place, joined, kind = name.partition("in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True) if joined else []
        separate |= {f"{place}{part}_proj.{kind}": own.clone() for part, own in parts} if joined else {name: value}
    return separate
