"""SigLIP and SigLIP 2 towers (Zhai et al. 2023, Tschannen et al. 2025) from `transformers`, with dense features.

The image tower has no class token: every token is a patch. Its head pools them by attention with a learnt probe,
``pooled = y + mlp(norm(y))`` where ``y`` is what attention gives: for each head, patches weighted by the probe, through
the head's value and output projections. The same without weighting, patch by patch, puts each patch where the texts
are (MaskCLIP, Zhou et al. 2022): `dense`.

Checkpoints of fixed resolution are `SiglipModel`; "naflex" ones, `Siglip2Model`, take any number of patches in any
shape. Here both get images of whole patches, and positions are interpolated as each kind does it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, UsageError
from ..layers.aggregation import DenseFeatures
from .towers import TowerSizes, check_activations, guidance_depths

MEAN, STD = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)


class Towers(nn.Module):
    """Image and text tower.

    Names of parameters are those of `SiglipModel` and `Siglip2Model`, without the scale and bias of the contrastive
    loss.
    """

    lowercase = True

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        if sizes.space != sizes.width:
            why = f"the image tower is {sizes.width} wide, the space {sizes.space}"
            raise ModelError("images of this family are not projected into the texts' space", where="space", why=why)
        self.sizes = sizes
        model = _model(sizes)
        self.vision_model: Any = model.vision_model
        self.text_model: Any = model.text_model

    def images(self, images: Tensor) -> DenseFeatures:
        """Of normalised images [B, 3, H, W], H and W multiples of the patch."""
        x, early, middle = self._tokens(images)
        grid = images.shape[-2] // self.sizes.patch, images.shape[-1] // self.sizes.patch
        maps = (t.transpose(1, 2).unflatten(-1, grid) for t in (self.dense(x), early, middle))
        return DenseFeatures(*maps)

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised last states [B, h x w, C]: `last_hidden_state` of `transformers`."""
        return self._tokens(images)[0]

    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self._embedded(images)
        depths, found = guidance_depths(self.sizes.depth), []
        for number, layer in enumerate(self.vision_model.encoder.layers, 1):
            x = layer(x, attention_mask=None)
            found += [x] * depths.count(number)
        return self.vision_model.post_layernorm(x), *found

    def _embedded(self, images: Tensor) -> Tensor:
        embeddings, patch = self.vision_model.embeddings, self.sizes.patch
        if self.sizes.kind == "siglip":
            return embeddings(images, interpolate_pos_encoding=True)
        height, width = images.shape[-2] // patch, images.shape[-1] // patch
        # Pixels of a patch row by row, channels innermost.
        cells = images.unflatten(-1, (width, patch)).unflatten(-3, (height, patch))
        flat = cells.permute(0, 2, 4, 3, 5, 1).reshape(len(images), height * width, -1)
        return embeddings(flat, torch.tensor([(height, width)] * len(images)))

    def values(self, tokens: Tensor) -> Tensor:
        """What the pooling attention would add up, without its bias: [B, n, C] -> [B, n, heads, C].

        Each head's values go through its part of the output projection, so that the pooled vector is the sum over
        heads and patches, weighted by the head's attention.
        """
        attention = self.vision_model.head.attention
        weight, bias = _value_projection(attention)
        values = F.linear(tokens, weight, bias).unflatten(-1, (attention.num_heads, -1))
        out = attention.out_proj.weight.unflatten(-1, (attention.num_heads, -1))
        return torch.einsum("bnhd,chd->bnhc", values, out)

    def dense(self, tokens: Tensor) -> Tensor:
        """Each patch in the space of the texts: [B, n, C] -> [B, n, D]."""
        head = self.vision_model.head
        weight, bias = _value_projection(head.attention)
        y = head.attention.out_proj(F.linear(tokens, weight, bias))
        return y + head.mlp(head.layernorm(y))

    def texts(self, ids: Tensor) -> Tensor:
        """Features [n, D] of texts as token ids [n, `text_length`].

        Raises:
            UsageError: the texts are not padded to `text_length`: the tower reads its last token, which only then is
                the one it was trained with.
        """
        if ids.shape[-1] != self.sizes.text_length:
            why = f"they have {ids.shape[-1]} tokens, not {self.sizes.text_length}"
            raise UsageError("the texts are not padded to the length the tower was trained with", where="ids", why=why)
        return self.text_model(input_ids=ids).pooler_output

    def text_parts(self) -> nn.ModuleList:
        """The modules that `texts` depends on."""
        return nn.ModuleList([self.text_model])

    def untrained(self) -> list[nn.Parameter]:
        """Parameters that what we compute does not depend on."""
        return [self.vision_model.head.probe]


def _value_projection(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """The last third of the joint projection of queries, keys and values."""
    dim = attention.embed_dim
    return attention.in_proj_weight[2 * dim :], attention.in_proj_bias[2 * dim :]


def _model(sizes: TowerSizes) -> Any:
    """Both towers of `transformers` with random weights."""
    # Imported here: listing the systems must not take the seconds that `transformers` takes.
    from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

    text = sizes.shared("text") | {
        "vocab_size": sizes.tokens,
        "max_position_embeddings": sizes.text_length,
        "projection_size": sizes.space,
        # Of no use to a tower that reads its last token, and by default beyond small vocabularies.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    image = sizes.shared("image") | {"patch_size": sizes.patch}
    if sizes.kind == "naflex":
        image["num_patches"] = sizes.positions**2
        return Siglip2Model(Siglip2Config(text_config=text, vision_config=image))
    image["image_size"] = sizes.positions * sizes.patch
    return SiglipModel(SiglipConfig(text_config=text, vision_config=image))


def published_sizes(config: dict[str, Any]) -> TowerSizes:
    """Of a checkpoint's ``config.json``, whose unsaid settings are the defaults of `transformers`."""
    from transformers import Siglip2Config, SiglipConfig

    naflex = config["model_type"] == "siglip2"
    whole: Any = (Siglip2Config if naflex else SiglipConfig).from_dict(config)
    image, text = whole.vision_config, whole.text_config
    check_activations("gelu_pytorch_tanh", image, text)
    positions = round(image.num_patches**0.5) if naflex else image.image_size // image.patch_size
    return TowerSizes.of("naflex" if naflex else "siglip", image, text, positions, text.projection_size)


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `SiglipModel` or `Siglip2Model` without those of the contrastive loss and numbers counted anew."""
    unused = ("logit_scale", "logit_bias", "position_ids")
    return {name: value for name, value in state.items() if not name.endswith(unused)}
