"""Dense features of the towers: against `transformers` with the same weights, and against what the maths says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from everymask.encoders import clip, siglip
from everymask.encoders.towers import TowerSizes, choose_trained, guidance_depths
from everymask.errors import UsageError

TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 9,
    "bos_token_id": None,
}
IMAGE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48, "patch_size": 16}


def reference(kind: str) -> Any:
    """Random towers of `transformers`, their biases and norms too."""
    torch.manual_seed(0)
    model: Any
    if kind == "siglip":
        model = SiglipModel(
            SiglipConfig(text_config=TEXT | {"eos_token_id": None}, vision_config=IMAGE | {"image_size": 224})
        )
    elif kind == "naflex":
        model = Siglip2Model(
            Siglip2Config(text_config=TEXT | {"eos_token_id": None}, vision_config=IMAGE | {"num_patches": 36})
        )
    else:
        text = TEXT | {"eos_token_id": clip.END}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=IMAGE | {"image_size": 224}, projection_dim=20))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float("norm" in name and name.endswith("weight")), 0.2)
    return model.eval()


def towers(kind: str, model: Any) -> Any:
    """Ours, with those weights."""
    module = clip if kind == "clip" else siglip
    own = module.Towers(module.published_sizes(model.config.to_dict()))
    own.load_state_dict(module.from_transformers(model.state_dict()))
    return own.eval()


@pytest.fixture(scope="module", params=["siglip", "naflex", "clip"])
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    model = reference(request.param)
    return request.param, model, towers(request.param, model)


def noise(height: int = 224, width: int = 224) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def naflex_inputs(images: Tensor) -> dict[str, Tensor]:
    """As the processor makes them, with some patches of padding."""
    patches = torch.stack([torch.from_numpy(convert_image_to_patches(i.numpy(), 16)) for i in images])
    count, height, width = patches.shape[1], images.shape[-2] // 16, images.shape[-1] // 16
    mask = torch.cat([torch.ones(2, count), torch.zeros(2, 5)], dim=1).int()
    return {
        "pixel_values": F.pad(patches, (0, 0, 0, 5)),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([(height, width)] * 2),
    }


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
def test_states_are_those_of_transformers_at_any_size(pair: tuple[str, Any, Any], size: tuple[int, int]) -> None:
    kind, model, own = pair
    images = noise(*size)
    features = own.images(images)
    count = size[0] // 16 * (size[1] // 16)
    if kind == "naflex":
        found = model.vision_model(**naflex_inputs(images), output_hidden_states=True)
        last = found.last_hidden_state[:, :count]
    else:
        found = model.vision_model(images, interpolate_pos_encoding=True, output_hidden_states=True)
        last = found.last_hidden_state
    prefix = 1 if kind == "clip" else 0
    for maps, state in zip((features.early, features.middle), (1, 2), strict=True):
        expected = found.hidden_states[state][:, prefix : prefix + count]
        torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    if kind != "clip":
        torch.testing.assert_close(own.tokens(images), last, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_no_patch_is_dropped() -> None:
    """224 pixels are 14 x 14 patches, all of them tokens: there is no class token to take off."""
    own = towers("siglip", reference("siglip"))
    images = noise()
    assert own.tokens(images).shape == (2, 196, 24)
    assert own.images(images).grid == (14, 14)
    changed = images.clone()
    changed[:, :, :16, :16] = 0
    difference = (own.images(changed).aligned - own.images(images).aligned).abs().amax(1)
    assert difference[:, 0, 0].min() == difference.flatten(1).amax(1).min()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "naflex"])
def test_values_weighted_by_the_pooling_attention_are_the_pooled_vector(kind: str) -> None:
    """Head by head; so the value path is the one by which the tower itself gets from patches to texts."""
    model = reference(kind)
    own = towers(kind, model)
    tokens, head = own.tokens(noise(96, 96)), model.vision_model.head
    query = F.linear(head.probe, *(p.chunk(3)[0] for p in (head.attention.in_proj_weight, head.attention.in_proj_bias)))
    key = F.linear(tokens, *(p.chunk(3)[1] for p in (head.attention.in_proj_weight, head.attention.in_proj_bias)))
    q, k = (x.unflatten(-1, (3, -1)).transpose(1, 2) for x in (query, key))
    weight = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1)[:, :, 0]
    pooled = torch.einsum("bhn,bnhc->bc", weight, own.values(tokens)) + head.attention.out_proj.bias
    expected = head.attention(head.probe.expand(2, -1, -1), tokens, tokens)[0][:, 0]
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    # And the rest of the head is that of the dense features: patches that are all alike pool to themselves.
    alike = tokens[:, :1].expand(-1, 36, -1)
    torch.testing.assert_close(own.dense(alike)[:, 0], head(alike), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_last_layer_of_clip_keeps_patches_apart() -> None:
    own = towers("clip", reference("clip"))
    images = noise()
    tower = own.vision_model
    x = tower.pre_layrnorm(tower.embeddings(images))
    for layer in tower.encoder.layers[:-1]:
        x = layer(x, attention_mask=None)
    features = own.images(images).aligned.flatten(2).transpose(1, 2)
    x[:, 2:] = 0
    # With all other patches gone after the last attention, the first is what it was.
    torch.testing.assert_close(own._dense(x)[:, 0], features[:, 0])


# --- texts -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_text_features_are_those_of_transformers(pair: tuple[str, Any, Any]) -> None:
    _, model, own = pair
    ids = torch.randint(3, 49, (4, 9), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 49
    found = model.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(own.texts(ids), found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_texts_must_be_padded() -> None:
    """The tower reads its last token: the same words padded otherwise are another text."""
    model = reference("siglip")
    own = towers("siglip", model)
    words = torch.tensor([[5, 6, 7, 1]])
    padded = F.pad(words, (0, 5), value=1)
    short = model.get_text_features(input_ids=words).pooler_output
    assert (F.cosine_similarity(short, own.texts(padded)) < 0.99).all()
    with pytest.raises(UsageError, match="the texts are not padded") as error:
        own.texts(words)
    assert error.value.message == (
        "the texts are not padded to the length the tower was trained with: ids (they have 4 tokens, not 9)."
    )


# --- sizes and training ----------------------------------------------------------------------------------------------


def test_sizes_come_from_the_configuration() -> None:
    sizes = siglip.published_sizes({"model_type": "siglip", "vision_config": {"image_size": 384}})
    assert sizes == TowerSizes("siglip", 16, 24, 768, 12, 12, 3072, 768, 12, 12, 3072, 64, 32000, 768)
    flexible = siglip.published_sizes({"model_type": "siglip2", "text_config": {"vocab_size": 256000}})
    assert (flexible.kind, flexible.positions, flexible.tokens) == ("naflex", 16, 256000)
    with pytest.raises(ValueError, match="hidden_act is relu"):
        siglip.published_sizes({"model_type": "siglip", "vision_config": {"hidden_act": "relu"}})


def test_guidance_is_taken_at_thirds() -> None:
    assert [guidance_depths(depth) for depth in (12, 24, 27, 3)] == [(4, 8), (8, 16), (9, 18), (1, 2)]


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("trained", ["attention", "full", "frozen", "lora"])
def test_what_learns(kind: str, trained: Any) -> None:
    own = towers(kind, reference(kind))
    images, ids = noise(64, 64), torch.randint(3, 49, (2, 9))
    before = own.images(images).aligned
    choose_trained(own, trained, rank=2)
    torch.testing.assert_close(own.images(images).aligned, before)
    learning = {name for name, p in own.named_parameters() if p.requires_grad}
    if trained == "frozen":
        assert learning == set()
        return
    (own.images(images).aligned.square().sum() + own.texts(ids).square().sum()).backward()
    # All that learns is reached; updates of low rank begin at zero, which keeps gradients from their other half.
    reached = {name for name, p in own.named_parameters() if p.grad is not None}
    assert reached == learning
    if trained == "attention":
        assert {name.split(".")[-2] for name in learning} == {"q_proj", "v_proj"}
        assert len(learning) == 10 - (kind == "clip")
    if trained == "lora":
        assert {name.split(".")[-1] for name in learning} == {"lora_down", "lora_up"}
