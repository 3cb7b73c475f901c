"""Weights of the published CAT-Seg models (``model_base.pth``, ``model_large.pth``): sizes, and their names here.

Their authors' code keeps everything in one predictor: OpenAI's CLIP as ``clip_model``, the aggregator as
``transformer``, and beside these the two layers that upsample states of the image tower.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from . import clip

PREDICTOR = "sem_seg_head.predictor."


def is_published(state: dict[str, Tensor]) -> bool:
    """Whether these are weights of a published CAT-Seg."""
    return any(name.startswith(PREDICTOR) for name in state)


def published_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    """Fields of the model's configuration that can be read off the shapes."""
    towers, parts = _split(state)
    dim, channels = parts["conv1.weight"].shape[:2]
    return vars(clip.openai_sizes(towers)) | {
        "templates": ("single",) if channels == 1 else ("imagenet",),
        "ensemble": "mean" if channels == 1 else "channels",
        "dim": dim,
        "layers": 1 + max(int(name.split(".")[1]) for name in parts if name.startswith("layers.")),
        "decoder": tuple(len(parts[f"decoder{n}.conv.double_conv.0.weight"]) for n in (1, 2)),
    }


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights under the names of a CAT-Seg of ours."""
    towers, parts = _split(state)
    own = prefixed("encoder.", clip.from_openai(towers))
    return own | prefixed("aggregator.", aggregator_from_published(parts))


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, as those of a part."""
    return {prefix + name: value for name, value in state.items()}


def _split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of CLIP, and all others."""
    inner = {name.removeprefix(PREDICTOR): value for name, value in state.items()}
    towers = {n.removeprefix("clip_model."): v for n, v in inner.items() if n.startswith("clip_model.")}
    others = {n.removeprefix("transformer."): v for n, v in inner.items() if not n.startswith("clip_model.")}
    return towers, others


PUBLISHED_NAMES = {
    "upsample1.": "up_early.",
    "upsample2.": "up_middle.",
    "conv1.": "embed.",
    "text_guidance_projection.": "words.",
    "decoder_guidance_projection.0.": "up1.project.",
    "decoder_guidance_projection.1.": "up2.project.",
    "guidance_projection.": "appearance.",
    "decoder1.": "up1.",
    "decoder2.": "up2.",
    ".conv.double_conv.0.": ".conv1.",
    ".conv.double_conv.1.": ".norm1.",
    ".conv.double_conv.3.": ".conv2.",
    ".conv.double_conv.4.": ".norm2.",
    ".swin_block.block_1.": ".spatial.blocks.0.",
    ".swin_block.block_2.": ".spatial.blocks.1.",
    ".swin_block.guidance_norm.": ".spatial.norm.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.2.",
    ".attn.proj.": ".proj.",
    ".attention.MLP.": ".classes.mlp.",
    ".attention.norm": ".classes.norm",
    ".attention.padding_tokens": ".classes.padding_state",
    ".attention.padding_guidance": ".classes.padding_words",
}
"""Parts of names in the published code, and ours; projections to queries, keys and values apart."""


def aggregator_from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published `Aggregator` and its two upsampling layers to ours.

    There, queries and keys are made of state and guidance side by side; here, each has its own matrix.
    """
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".q.weight"):
            own |= _projections(state, name.removesuffix("q.weight"))
        elif not name.endswith((".attn_mask", ".q.bias", ".k.weight", ".k.bias", ".v.weight", ".v.bias")):
            own[_aggregator_name(name)] = value.flatten() if ".padding_" in name else value
    return own


def _projections(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One product for what comes from the state, one for the guidance."""
    (q, k, v), bias = ([state[f"{prefix}{part}.{kind}"] for part in "qkv"] for kind in ("weight", "bias"))
    dim = v.shape[1]
    guide = {"guide.weight": torch.cat([q[:, dim:], k[:, dim:]])}
    if ".swin_block." in prefix:
        weight = {"qkv.weight": torch.cat([q[:, :dim], k[:, :dim], v]), "qkv.bias": torch.cat(bias)}
        return {_aggregator_name(prefix.removesuffix("attn.")) + name: t for name, t in (weight | guide).items()}
    weight = {"q.weight": q[:, :dim].contiguous(), "q.bias": bias[0]}
    weight |= {"kv.weight": torch.cat([k[:, :dim], v]), "kv.bias": torch.cat(bias[1:])}
    place = prefix.removesuffix("attention.attention.") + "classes."
    return {place + name: t for name, t in (weight | guide).items()}


def _aggregator_name(name: str) -> str:
    for theirs, ours in PUBLISHED_NAMES.items():
        name = name.replace(theirs, ours) if theirs.startswith(".") else re.sub(f"^{re.escape(theirs)}", ours, name)
    return name
