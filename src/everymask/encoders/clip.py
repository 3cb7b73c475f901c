"""CLIP towers (Radford et al. 2021) from `transformers`, with the dense features of the published CAT-Seg models.

All layers but the last as ever; in the last one patches do not look at each other: each goes through the value and
output projections, and what it is added to is not the patch but the class token, as in the published code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layers.aggregation import DenseFeatures
from .towers import TowerSizes, check_activations, guidance_depths

END = 2
"""`eos_token_id` of the published text towers: it makes `transformers` take the highest id of a text as its end."""

MEAN, STD = (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.3231630)


class Towers(nn.Module):
    """Image and text tower. Names of parameters are those of `CLIPModel`, without the scale of the contrastive loss."""

    lowercase = False  # Its tokenizers do that.

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        model = _model(sizes)
        self.vision_model: Any = model.vision_model
        self.text_model: Any = model.text_model
        self.visual_projection: Any = model.visual_projection
        self.text_projection: Any = model.text_projection

    def images(self, images: Tensor) -> DenseFeatures:
        """Of normalised images [B, 3, H, W], H and W multiples of the patch."""
        tower = self.vision_model
        x = tower.pre_layrnorm(tower.embeddings(images, interpolate_pos_encoding=True))
        depths, found = guidance_depths(self.sizes.depth), []
        for number, layer in enumerate(tower.encoder.layers[:-1], 1):
            x = layer(x, attention_mask=None)
            found += [x[:, 1:]] * depths.count(number)
        grid = images.shape[-2] // self.sizes.patch, images.shape[-1] // self.sizes.patch
        maps = (t.transpose(1, 2).unflatten(-1, grid) for t in (self._dense(x), *found))
        return DenseFeatures(*maps)

    def _dense(self, tokens: Tensor) -> Tensor:
        """States before the last layer [B, 1 + n, C], class token first -> patches [B, n, D] in the texts' space."""
        last = self.vision_model.encoder.layers[-1]
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(tokens[:, 1:])))
        y = values + tokens[:, :1]
        y = y + last.mlp(last.layer_norm2(y))
        return self.visual_projection(self.vision_model.post_layernorm(y))

    def texts(self, ids: Tensor) -> Tensor:
        """Features [n, D] of texts as token ids [n, `text_length`]; what follows a text's end is not looked at."""
        return self.text_projection(self.text_model(input_ids=ids).pooler_output)

    def text_parts(self) -> nn.ModuleList:
        """The modules that `texts` depends on."""
        return nn.ModuleList([self.text_model, self.text_projection])

    def untrained(self) -> list[nn.Parameter]:
        """Parameters that what we compute does not depend on."""
        last = self.vision_model.encoder.layers[-1].self_attn
        return [*last.q_proj.parameters(), *last.k_proj.parameters()]


def _model(sizes: TowerSizes) -> Any:
    """Both towers of `transformers` with random weights."""
    from transformers import CLIPConfig, CLIPModel

    text = sizes.shared("text") | {
        "vocab_size": sizes.tokens,
        "max_position_embeddings": sizes.text_length,
        "eos_token_id": END,
    }
    image = sizes.shared("image") | {"patch_size": sizes.patch, "image_size": sizes.positions * sizes.patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=sizes.space))


def published_sizes(config: dict[str, Any]) -> TowerSizes:
    """Of a checkpoint's ``config.json``, whose unsaid settings are the defaults of `transformers`."""
    from transformers import CLIPConfig

    whole: Any = CLIPConfig.from_dict(config)
    image, text = whole.vision_config, whole.text_config
    check_activations("quick_gelu", image, text)
    return TowerSizes.of("clip", image, text, image.image_size // image.patch_size, whole.projection_dim)


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `CLIPModel` without that of the contrastive loss and without numbers that are counted anew."""
    return {n: v for n, v in state.items() if n != "logit_scale" and not n.endswith("position_ids")}


def openai_sizes(state: dict[str, Tensor]) -> TowerSizes:
    """Read off the shapes of weights under the names of OpenAI's code, whose heads are all 64 wide."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    tokens, text_width = state["token_embedding.weight"].shape
    return TowerSizes(
        kind="clip",
        patch=patch,
        positions=round((len(state["visual.positional_embedding"]) - 1) ** 0.5),
        width=width,
        depth=sum(name.startswith("visual.") and name.endswith(".ln_1.weight") for name in state),
        heads=max(1, width // 64),
        hidden=len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        text_width=text_width,
        text_depth=sum(name.startswith("transformer.") and name.endswith(".ln_1.weight") for name in state),
        text_heads=max(1, text_width // 64),
        text_hidden=len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        text_length=len(state["positional_embedding"]),
        tokens=tokens,
        space=state["text_projection"].shape[1],
    )


def from_openai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of OpenAI's code, queries, keys and values apart, to those of `CLIPModel`."""
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "logit_scale":
            continue
        if name.endswith("attn.in_proj_bias"):
            for part, bias in zip("qkv", value.chunk(3), strict=True):
                own[_own_name(name).replace("in_proj_bias", f"{part}_proj.bias")] = bias
        elif name in ("visual.proj", "text_projection"):
            own[_own_name(name)] = value.T.contiguous()
        else:
            own[_own_name(name)] = value
    return own


OPENAI_NAMES = {
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
}
"""Beginnings of names in OpenAI's code, and those of `transformers`."""

_INNER = {
    ".attn.": ".self_attn.",
    "_proj_weight": "_proj.weight",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def _own_name(name: str) -> str:
    start = next((key for key in OPENAI_NAMES if name.startswith(key)), "")
    name = OPENAI_NAMES.get(start, "") + name.removeprefix(start)
    for theirs, ours in _INNER.items():
        name = name.replace(theirs, ours)
    return name
