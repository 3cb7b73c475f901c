"""Networks of `transformers` with random weights, and the same weights under the names of timm and of the original."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, ResNetConfig

from everymask.types import Batch, Letterbox

SMALL = {"embedding_size": 8, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 2, 1, 1]}
NAMES = {0: "N/A", 1: "person", 2: "dog", 3: "sky-other-merged", 4: "N/A"}
SIZES = ((96, 160), (128, 64), (75, 101), (33, 170))
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def reference(masks: bool = True, backbone: dict[str, Any] = SMALL) -> Any:
    """A small DETR whose norms and biases do something."""
    torch.manual_seed(0)
    encoder = ResNetConfig(**backbone, out_features=["stage1", "stage2", "stage3", "stage4"])
    sizes = {"d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_layers": 2, "decoder_layers": 2}
    config = DetrConfig(backbone_config=encoder, use_timm_backbone=False, num_queries=12, id2label=NAMES, **sizes)
    model = (DetrForSegmentation if masks else DetrForObjectDetection)(config).eval()
    for name, value in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith(("running_mean", "bias", "query_position_embeddings.weight")):
            nn.init.normal_(value, std=1.0 if "query" in name else 0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 1.5)
    return model


def dilate(model: Any) -> None:
    """The last stage as in DC5, which `transformers` leaves to timm: stride 1, later blocks look twice as far."""
    for n, layer in enumerate(model.detr.model.backbone.model.encoder.stages[3].layers):
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if n and module.kernel_size == (3, 3):
                    module.dilation = module.padding = (2, 2)


TIMM = (
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.0\.", "layer1."),
    (r"encoder\.stages\.1\.", "layer2."),
    (r"encoder\.stages\.2\.", "layer3."),
    (r"encoder\.stages\.3\.", "layer4."),
    (r"\.layers\.", "."),
    (r"\.\.", "."),
    (r"layer\.0\.convolution", "conv1"),
    (r"layer\.1\.convolution", "conv2"),
    (r"layer\.2\.convolution", "conv3"),
    (r"layer\.0\.normalization", "bn1"),
    (r"layer\.1\.normalization", "bn2"),
    (r"layer\.2\.normalization", "bn3"),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
)
ORIGINAL = (
    (r"model\.backbone\.model\.", "backbone.0.body."),
    (r"model\.input_projection", "input_proj"),
    (r"model\.query_position_embeddings", "query_embed"),
    (r"model\.encoder\.", "transformer.encoder."),
    (r"model\.decoder\.layernorm", "transformer.decoder.norm"),
    (r"model\.decoder\.", "transformer.decoder."),
    (r"class_labels_classifier", "class_embed"),
    (r"bbox_predictor", "bbox_embed"),
    (r"(encoder.*)final_layer_norm", r"\1norm2"),
    (r"final_layer_norm", "norm3"),
    (r"self_attn_layer_norm", "norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"encoder_attn", "multihead_attn"),
    (r"o_proj", "out_proj"),
    (r"mlp\.fc", "linear"),
    (r"bbox_attention\.([qk])_proj", r"bbox_attention.\1_linear"),
    (r"mask_head\.conv(\d)\.conv", r"mask_head.lay\1"),
    (r"mask_head\.conv(\d)\.norm", r"mask_head.gn\1"),
    (r"fpn_stages\.0\.refine\.conv", "lay3"),
    (r"fpn_stages\.1\.refine\.conv", "lay4"),
    (r"fpn_stages\.2\.refine\.conv", "lay5"),
    (r"fpn_stages\.0\.refine\.norm", "gn3"),
    (r"fpn_stages\.1\.refine\.norm", "gn4"),
    (r"fpn_stages\.2\.refine\.norm", "gn5"),
    (r"fpn_stages\.0\.fpn_adapter", "adapter1"),
    (r"fpn_stages\.1\.fpn_adapter", "adapter2"),
    (r"fpn_stages\.2\.fpn_adapter", "adapter3"),
    (r"output_conv", "out_lay"),
)


def renamed(state: dict[str, Tensor], patterns: Sequence[tuple[str, str]], only: str = "") -> dict[str, Tensor]:
    """Patterns applied one after the other to names that hold `only`."""
    result = {}
    for name, value in state.items():
        for pattern, other in patterns if only in name else ():
            name = re.sub(pattern, other, name)
        result[name] = value
    return result


def timm_state(model: Any) -> dict[str, Tensor]:
    """As published on the Hub: older names, the backbone's from timm, counters that nobody needs."""
    old = (
        (r"model\.backbone\.model\.", "model.backbone.conv_encoder.model."),
        (r"o_proj", "out_proj"),
        (r"mlp\.fc", "fc"),
        *ORIGINAL[15:],
    )
    state = renamed(renamed(dict(model.state_dict()), TIMM, only="backbone"), old)
    return state | {"detr.model.backbone.conv_encoder.model.bn1.num_batches_tracked": torch.tensor(0)}


def original_state(model: Any) -> dict[str, Tensor]:
    """As published by DETR's authors: one tensor for the three projections of an attention."""
    state = renamed(renamed(dict(model.state_dict()), TIMM, only="backbone"), ORIGINAL)
    joined: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".q_proj." in name:
            parts = [value, *(state[name.replace("q_proj", other)] for other in ("k_proj", "v_proj"))]
            joined[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            joined[name] = value
    return joined


def save_as_timm(model: Any, folder: Path, **config: Any) -> Path:
    """A folder whose configuration names a backbone of timm, as the published ones do."""
    model.config.save_pretrained(folder)
    text = json.loads((folder / "config.json").read_text())
    text |= {"architectures": ["DetrForSegmentation"], "backbone_config": None, "use_timm_backbone": True} | config
    (folder / "config.json").write_text(json.dumps(text))
    save_file(
        {name: value.contiguous().clone() for name, value in timm_state(model).items()}, folder / "model.safetensors"
    )
    return folder


def photos(sizes: Sequence[tuple[int, int]] = SIZES) -> Batch:
    """Noise at these sizes on one canvas."""
    canvas = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.full((len(sizes), 3, *canvas), 99, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randint(0, 255, (3, height, width), generator=generator)
    return Batch(images, tuple(Letterbox(size, size, canvas) for size in sizes))


def pixel_values(batch: Batch, b: int) -> Tensor:
    """One photo alone, normalised as `transformers` does."""
    height, width = batch.letterboxes[b].content
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (batch.images[b : b + 1, :, :height, :width] - mean) / std
