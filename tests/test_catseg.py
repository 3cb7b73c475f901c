"""CAT-Seg: the contract, the plain implementation of the same maths, words, windows, weights, training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from benchmarks.catseg import DenseAggregator
from everymask.checkpoint import load, save
from everymask.class_criterion import ClassCriterion, class_bce
from everymask.cli import main
from everymask.datasets import find_folders, join
from everymask.encoders import clip
from everymask.errors import CheckpointError, EverymaskError, ModelError, UsageError
from everymask.evaluate import evaluate
from everymask.image import read_image, write_png
from everymask.labels import LabelMap
from everymask.layers import aggregation
from everymask.layers.class_maps import ClassMaps
from everymask.models.catseg import PRESETS, RECIPE, Model
from everymask.overfit import learn_step
from everymask.predict import predict
from everymask.types import VOID, Batch, Letterbox, Prediction, Segments
from everymask.vocabulary import SHIPPED, words
from tests.contract import ModelContract, batch_of, gradient_faults, total, with_truth
from tests.scenes import LABELS, TABLE, scene, write_dataset
from tests.test_aggregation import dense_features

TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYMASK_CACHE", str(tmp_path / "cache"))


class TestCatSeg(ModelContract):
    system = "catseg"

    def test_void_and_padding_get_no_gradient(self, model: Any, batch: Batch) -> None:
        """The loss asks for pooled attention, which `forward` does not do: here it is sent through it."""
        answer = model.answer

        def rerouted(features: Any, batch: Batch, pooling: int = 1) -> Prediction:
            return model.forward(batch) if "forward" in vars(model) else answer(features, batch, pooling)

        model.answer = rerouted
        super().test_void_and_padding_get_no_gradient(model, batch)


def tiny(labels: LabelMap | Sequence[str] = LABELS, **changes: Any) -> Model:
    """Random weights, in eval mode."""
    torch.manual_seed(0)
    return Model(replace(TINY, **changes), words(labels)).eval()


def photo(height: int = 64, width: int = 96) -> np.ndarray:
    return scene(height, width).image


def logits(model: Model, image: np.ndarray, side: int | None = None) -> Tensor:
    """[T, h, w] of one photo, remembered or not."""
    box = model.letterbox((image.shape[0], image.shape[1]), side)
    resized = F.interpolate(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float(), box.content, mode="bilinear")
    canvas = torch.zeros(1, 3, *box.canvas)
    canvas[:, :, : box.content[0], : box.content[1]] = resized
    with torch.no_grad():
        maps = model.recall(Batch(canvas, (box,))).masks
    return maps.decode(0, torch.arange(len(model.labels)))


# --- photos of any size ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (300, 96), (1, 2000), (2000, 1), (7, 5)])
def test_results_have_the_photo_s_size_and_aspect(size: tuple[int, int]) -> None:
    model = tiny(image_side=160)
    content = model.letterbox(size).content
    assert max(content) == 160
    assert abs(content[0] - 160 * size[0] / max(size)) <= 1
    found = predict(model, np.full((*size, 3), 90, np.uint8), background=None)
    assert found.segments.size == size
    assert int((found.segments.id_map > 0).sum()) == size[0] * size[1]


@pytest.mark.parametrize("kept", [1, 100_000])
def test_views_may_be_aggregated_one_by_one(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    expected = logits(tiny(image_side=160), photo())
    monkeypatch.setattr(aggregation, "KEPT_BYTES", kept)
    torch.testing.assert_close(logits(tiny(image_side=160), photo()), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_windows_are_seen_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(image_side=160)
    seen: list[int] = []
    real = model.encoder.images
    monkeypatch.setattr(model.encoder, "images", lambda x: seen.append(len(x)) or real(x))
    predict(model, photo(96, 96))
    assert seen == [5]  # Four windows and the whole, all of one size.


# --- words -----------------------------------------------------------------------------------------------------------


def test_other_words_cost_no_encoding_and_another_photo_no_texts() -> None:
    model = tiny()
    image, other = photo(), photo(90, 40)
    predict(model, image, classes=["cat", "dog"])
    assert (model.features.encoded, model.words.memory.encoded) == (1, 2)
    predict(model, image, classes=["dog", "rug"])
    assert (model.features.encoded, model.words.memory.encoded) == (1, 3)
    predict(model, other, classes=["dog", "rug"])
    assert (model.features.encoded, model.words.memory.encoded) == (2, 3)


def test_changing_the_list_never_shows_stale_classes() -> None:
    # In double precision: texts are encoded in other company, which in float32 turns a last digit and with it a pixel.
    model, image = tiny(background=None).double(), photo()
    for names in (["cat", "dog"], ["dog", "cat"], ["rug"], ["cat", "dog", "rug"]):
        found = predict(model, image, classes=names)
        fresh = predict(tiny(background=None).double(), image, classes=names)
        assert {s.label for s in found.segments} <= set(names)
        assert torch.equal(found.segments.id_map, fresh.segments.id_map)
    assert model.labels == LABELS


def test_a_training_step_leaves_nothing_remembered() -> None:
    model, image = tiny(), photo()
    before = logits(model, image)
    learn_step(model, batch_of([scene()], 96), torch.optim.SGD(model.param_groups(0.1), lr=0.1))
    model.eval()
    after = logits(model, image)
    assert (model.features.encoded, model.words.memory.encoded) == (2, 4)
    assert (after - before).abs().max() > 1e-4


def test_none_of_these() -> None:
    """A pixel whose best word is less probable than `background` has none."""
    model, image = tiny(["cat", "dog", "rug"]), photo()
    best = F.interpolate(logits(model, image).sigmoid().amax(0)[None, None], (64, 96), mode="bilinear")[0, 0]
    level = float(best.median())
    found = predict(model, image, background=level).segments
    assert ((found.id_map > 0) == (best >= level)).float().mean() > 0.999
    assert len(predict(model, image, background=1.0).segments) == 0
    assert not (predict(model, image, background=None).segments.id_map == 0).any()


def test_one_class_is_found_where_it_is_probable() -> None:
    model = tiny(["cat"])
    found = predict(model, photo(), background=float(logits(model, photo()).sigmoid().median())).segments
    assert [s.label for s in found] == ["cat"]
    assert 0 < found[0].area < 64 * 96


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_words(count: int) -> None:
    model = tiny(background=None)
    names = [f"word {n}" for n in range(count)]
    found = predict(model, photo(), classes=names).segments
    maps = logits(model.with_classes(names), photo())
    full = F.interpolate(maps.sigmoid()[None], (64, 96), mode="bilinear")[0]
    # Of so many, some are equal up to the last digit.
    chosen = full.gather(0, found.class_map(count)[None].long())[0]
    assert (full.amax(0) - chosen).max() < 1e-5


@pytest.mark.parametrize("names", [["Straße", "猫"], ["🐈", "🛋️ sofa"], ["sofa, couch"], ["cityscapes-19"]])
def test_any_words(names: list[str]) -> None:
    model = tiny(background=None)
    found = predict(model, photo(), classes=names).segments
    assert {s.label for s in found} <= set(words(names).names)
    assert len(found)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "there is no class to look for: classes. Give one word or more."),
        (["cat", " "], "a class has no name: classes (' ' is empty). Leave it out."),
        (["cat", "dog", "cat"], "a class is given twice: classes (cat). Give it once."),
        (
            [" ".join(["very"] * 300)],
            f"a class has too many words: {'very ' * 11}ve... (301 tokens, the text tower reads 16). Shorten it.",
        ),
        (
            "cat",
            "classes are a list of words: classes ('cat' is a text). Give a list, as in ['sofa', 'cat'], or one of: "
            f"{', '.join(SHIPPED)}.",
        ),
    ],
)
def test_words_that_make_no_sense(names: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        predict(tiny(), photo(), classes=names)
    assert error.value.message == message


def test_templates_as_channels_of_the_cost_volume() -> None:
    model = tiny(templates=("a {}", "the {}", "{}"), ensemble="channels")
    assert model.aggregator.embed.in_channels == 3
    assert model.text_features().shape == (2, 3, 32)
    assert len(predict(model, photo(), background=None).segments)
    with pytest.raises(UsageError, match="a template has no place for the word"):
        tiny(templates=("a photo",))


# --- heat maps and the command line ----------------------------------------------------------------------------------


def test_heat_maps_are_probabilities_at_the_photo_s_size(tmp_path: Path) -> None:
    model, image = tiny(), photo(70, 50)
    result = predict(model, image, classes=["cat", "a/b: 猫"], heatmaps=True)
    full = F.interpolate(
        logits(model.with_classes(["cat", "a/b: 猫"]), image).sigmoid()[None], (70, 50), mode="bilinear"
    )
    assert result.heatmaps is not None
    assert len(result.heatmaps) == 2
    for k in range(2):
        assert np.abs(result.heatmaps[k] - 255 * full[0, k].numpy()).max() < 3
    written = [path.name for path in result.save(tmp_path)]
    assert {"image_heat_0_cat.png", "image_heat_1_a_b_猫.png"} <= set(written)
    table = json.loads((tmp_path / "image.json").read_text())
    assert table["files"]["image_heat_0_cat.png"] == {"content": "probability of cat: 255 is certain"}
    assert np.array_equal(read_image(tmp_path / "image_heat_0_cat.png")[..., 0], result.heatmaps[0])
    assert predict(model, image).heatmaps is None


def test_words_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "room.png", photo())
    save(tiny(), tmp_path / "model")
    command = [
        "predict",
        str(tmp_path / "room.png"),
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "out"),
    ]
    main([*command, "--classes", "sofa, couch; cat; rug", "--heatmaps", "--background", "0"])
    table = json.loads((tmp_path / "out" / "room.json").read_text())
    assert [row["name"] for row in table["classes"]] == ["sofa", "cat", "rug"]
    assert table["classes"][0]["synonyms"] == ["couch"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*heat*")) == [
        "room_heat_0_sofa.png",
        "room_heat_1_cat.png",
        "room_heat_2_rug.png",
    ]
    with pytest.raises(SystemExit):
        main([*command, "--classes", "sofa,,rug"])
    assert "a class has no name" in capsys.readouterr().err


def test_zero_shot_evaluation_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on other names; scored on those of the data."""
    folder = write_dataset(tmp_path / "data", train=1, val=2)
    model = tiny(["sofa", "cat", "rug"])
    scores = evaluate(model, join([f.open("val") for f in find_folders([folder], None, {})]))
    assert list(scores["per_class"]) == list(LABELS.names)
    assert model.labels.names == ("sofa", "cat", "rug")
    save(model, tmp_path / "model")
    main(["evaluate", str(tmp_path / "model"), str(folder), "--split", "val", "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] == pytest.approx(scores["miou"], abs=1e-6)
    assert "disc" in capsys.readouterr().out
    assert TABLE["background"] == [0]


# --- published weights -----------------------------------------------------------------------------------------------

FOREIGN = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
WORDS = ["<pad>", "<eos>", "<unk>", "a", "photo", "of", "in", "the", "scene", "cat", "dog", "sofa"]


def siglip_folder(folder: Path, tokenizer: bool = True) -> SiglipModel:
    """A published tower, as `transformers` writes it."""
    torch.manual_seed(0)
    text = FOREIGN | {"vocab_size": 12, "max_position_embeddings": 14, "bos_token_id": None, "eos_token_id": 1}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=FOREIGN | {"image_size": 64, "patch_size": 8}))
    model.save_pretrained(folder)
    text_of = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(text_of))
    if tokenizer:
        own = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
        own.pre_tokenizer = pre_tokenizers.Whitespace()
        own.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
        PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>").save_pretrained(folder)
    return model


def test_a_published_tower_becomes_a_catseg(tmp_path: Path) -> None:
    tower = siglip_folder(tmp_path / "siglip")
    model: Any = load(tmp_path / "siglip")
    assert isinstance(model, Model)
    assert (model.config.resolution, model.config.grid, model.config.window) == (64, 8, 4)
    assert model.labels.names[15] == "cat"
    assert model.normalize.mean.flatten().tolist() == pytest.approx([127.5, 102, 76.5])
    assert model.normalize.std.flatten().tolist() == pytest.approx([51, 63.75, 76.5])
    own = model.encoder.state_dict()
    theirs = {n: t for n, t in tower.state_dict().items() if n not in ("logit_scale", "logit_bias")}
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    # Lower case and padding are as the tower was trained.
    ids = model.words.tokenizer(["A Cat"], 14)
    assert ids.tolist() == [[3, 9, 1, *[0] * 11]]
    found = model.with_classes(["cat", "sofa"]).text_features()[:, 0]
    expected = tower.get_text_features(input_ids=ids_of("a photo of a cat in the scene")).pooler_output[0]
    torch.testing.assert_close(found[0], F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["naflex", "clip"])
def test_other_towers_become_one_too(tmp_path: Path, kind: str) -> None:
    text = FOREIGN | {"vocab_size": 12, "max_position_embeddings": 14, "bos_token_id": None, "eos_token_id": clip.END}
    tower: Any
    if kind == "naflex":
        image = FOREIGN | {"num_patches": 64, "patch_size": 8}
        tower = Siglip2Model(Siglip2Config(text_config=text, vision_config=image))
    else:
        image = FOREIGN | {"image_size": 64, "patch_size": 8}
        tower = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=24))
    tower.save_pretrained(tmp_path)
    model: Any = load(tmp_path)
    assert (model.config.kind, model.config.patch, model.config.positions) == (kind, 8, 8)
    own = model.encoder.state_dict()
    theirs = {n: t for n, t in tower.state_dict().items() if n not in ("logit_scale", "logit_bias")}
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    # Without a preprocessor's word on it, the family's own.
    mean = {"naflex": [127.5] * 3, "clip": [122.77, 116.75, 104.09]}[kind]
    assert model.normalize.mean.flatten().tolist() == pytest.approx(mean, abs=0.01)


def ids_of(text: str) -> Tensor:
    own = [WORDS.index(word) for word in text.split()] + [1]
    return torch.tensor([own + [0] * (14 - len(own))])


def test_the_tokenizer_travels_with_the_weights(tmp_path: Path) -> None:
    siglip_folder(tmp_path / "siglip")
    model = load(tmp_path / "siglip")
    again: Any = load(save(model, tmp_path / "own"))
    assert (tmp_path / "own" / "tokenizer.json").is_file()
    for path in (tmp_path / "siglip").iterdir():
        path.unlink()
    assert again.words.tokenizer(["dog"], 14).tolist()[0][:2] == [10, 1]
    found = predict(again, photo(), classes=["cat", "dog"], background=None).segments
    assert len(found)


def test_a_tower_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    siglip_folder(tmp_path / "siglip", tokenizer=False)
    model = load(tmp_path / "siglip")
    with pytest.raises(CheckpointError) as error:
        predict(model, photo(), classes=["cat"])
    assert error.value.what == "this model's tokenizer is not here"
    assert error.value.where == str(tmp_path / "siglip")
    assert error.value.fix == "Copy tokenizer.json and tokenizer_config.json of the published weights into it."


def test_presets_name_the_tokenizer_to_fetch() -> None:
    with torch.device("meta"):
        model = Model(PRESETS["siglip2-b16-384"], LABELS)
    with pytest.raises(CheckpointError) as error:
        model.words.tokenizer(["cat"], 64)
    assert error.value.fix == (
        "Run once: hf download google/siglip2-base-patch16-384 config.json tokenizer.json tokenizer_config.json"
    )


def openai_names(model: CLIPModel) -> dict[str, Tensor]:
    """Weights of `transformers` under the names of OpenAI's code as CAT-Seg has it, queries, keys and values apart."""
    theirs: dict[str, Tensor] = {"logit_scale": model.logit_scale}
    towers = (("vision_model", "visual.", "visual.ln_pre", "pre_layrnorm"), ("text_model", "", "", ""))
    for tower, prefix, *_ in towers:
        for n, layer in enumerate(getattr(model, tower).encoder.layers):
            block = f"{prefix}transformer.resblocks.{n}."
            for part in "qkv":
                theirs[f"{block}attn.{part}_proj_weight"] = getattr(layer.self_attn, f"{part}_proj").weight
            biases = [getattr(layer.self_attn, f"{part}_proj").bias for part in "qkv"]
            theirs[f"{block}attn.in_proj_bias"] = torch.cat(biases)
            modules = {"attn.out_proj": layer.self_attn.out_proj, "ln_1": layer.layer_norm1, "ln_2": layer.layer_norm2}
            modules |= {"mlp.c_fc": layer.mlp.fc1, "mlp.c_proj": layer.mlp.fc2}
            theirs |= {f"{block}{key}.{t}": p for key, module in modules.items() for t, p in module.named_parameters()}
    vision, text = model.vision_model, model.text_model
    theirs |= {
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.proj": model.visual_projection.weight.T,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "text_projection": model.text_projection.weight.T,
    }
    norms = {"visual.ln_pre": vision.pre_layrnorm, "visual.ln_post": vision.post_layernorm}
    norms |= {"ln_final": text.final_layer_norm}
    theirs |= {f"{key}.{t}": p for key, module in norms.items() for t, p in module.named_parameters()}
    return {name: value.detach().clone().contiguous() for name, value in theirs.items()}


def test_published_catseg_weights_convert(tmp_path: Path) -> None:
    """A file with the names of ``model_base.pth``, made by renaming; all of its numbers arrive."""
    torch.manual_seed(0)
    text = {**FOREIGN, "hidden_size": 64, "num_attention_heads": 1, "vocab_size": 30, "max_position_embeddings": 9}
    image = {**FOREIGN, "hidden_size": 64, "num_attention_heads": 1, "image_size": 64, "patch_size": 16}
    options = {"bos_token_id": None, "eos_token_id": clip.END}
    towers = CLIPModel(CLIPConfig(text_config=text | options, vision_config=image, projection_dim=20)).eval()
    sizes = replace(TINY, dim=32, space=20, width=64, decoder=(16, 8), window=12, padding=256, layers=2)
    dense = DenseAggregator(replace(sizes, aggregation_heads=4)).eval()
    state = {f"sem_seg_head.predictor.clip_model.{name}": t for name, t in openai_names(towers).items()}
    for name, value in dense.state_dict().items():
        state[name if name.startswith("upsample") else f"sem_seg_head.predictor.transformer.{name}"] = value
    state["sem_seg_head.predictor.transformer.layers.0.swin_block.block_2.attn_mask"] = torch.zeros(4, 144, 144)
    torch.save({"model": state, "iteration": 80000}, tmp_path / "model_base.pth")
    model: Any = load(tmp_path / "model_base.pth")
    config = model.config
    assert (config.compat, config.tokenizer, config.templates) == (
        "original",
        PRESETS["clip-b16"].tokenizer,
        ("single",),
    )
    assert (config.image_side, config.resolution, config.positions, config.heads) == (640, 384, 4, 1)
    own = model.encoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in towers.state_dict().items() if name != "logit_scale")
    features = dense_features(1, (24, 24), config)
    words_of = torch.randn(3, 1, 20)
    with torch.no_grad():
        expected = dense(features.aligned, features.early, features.middle, words_of[:, 0])
        torch.testing.assert_close(model.aggregator(features, words_of)[0], expected, rtol=1e-3, atol=1e-5)


def test_a_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    siglip_folder(tmp_path / "siglip")
    path = tmp_path / "siglip" / "config.json"
    data = json.loads(path.read_text())
    data["vision_config"]["num_hidden_layers"] = 4
    path.write_text(json.dumps(data))
    with pytest.raises(EverymaskError, match="the weights do not belong to this model"):
        load(tmp_path / "siglip")
    data["vision_config"]["hidden_act"] = "relu"
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="hidden_act is relu, known is gelu_pytorch_tanh"):
        load(tmp_path / "siglip")


# --- as published ----------------------------------------------------------------------------------------------------


def test_the_published_inference_squashes_photos() -> None:
    model = tiny(compat="original", image_side=160)
    assert model.letterbox((50, 300)) == Letterbox((50, 300), (160, 160), (160, 160))
    found = predict(model, photo(50, 300), background=None)
    assert found.segments.size == (50, 300)
    assert tiny().letterbox((50, 300)).content == (16, 96)


@torch.no_grad()
def test_the_published_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfolded windows, and the whole made smaller as PyTorch does it unless told otherwise."""
    model = tiny(compat="original", image_side=160)
    seen: list[Tensor] = []
    real = model.encoder.images
    monkeypatch.setattr(model.encoder, "images", lambda x: seen.append(x) or real(x))
    image, size = 255 * torch.rand(1, 3, 160, 160), (160, 160)
    model(Batch(image, (Letterbox(size, size, size),)))
    normal = model.normalize(image)
    windows = F.unfold(normal, 96, stride=64)[0].T.reshape(4, 3, 96, 96)
    torch.testing.assert_close(seen[0], torch.cat([windows, F.interpolate(normal, (96, 96), mode="bilinear")]))


def test_the_published_words() -> None:
    """One template, the first synonym alone."""
    label = words(["sofa, couch"])[0]
    assert tiny(compat="original", templates=("single",)).words.texts(label) == ("A photo of a sofa in the scene",)
    assert tiny().words.texts(label) == ("sofa", "couch")


@torch.no_grad()
def test_the_published_way_with_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than 256 words, the best 256 by their highest similarity; all others are excluded."""
    monkeypatch.setattr("everymask.models.catseg.BEST", 5)
    names = [f"word{n}" for n in range(12)]
    model = tiny(names, compat="original")
    maps = logits(model, photo(96, 96))
    features = model.encode(batch_of([scene(96, 96)], 96))[0].features
    highest = model.aggregator.similarities(features, model.text_features())[0].flatten(1).amax(1)
    excluded = maps.amax((1, 2)) < -10
    assert int(excluded.sum()) == 7
    assert set(torch.nonzero(~excluded).flatten().tolist()) == set(highest.topk(5).indices.tolist())


def test_void_is_a_negative_as_published_and_nothing_to_us() -> None:
    size = (32, 32)
    box = Letterbox(size, size, size)
    ids = torch.zeros(size, dtype=torch.int32)
    ids[:, :10], ids[:, 20:] = 1, VOID
    batch = Batch(torch.zeros(1, 3, *size), (box,), (Segments.build(ids, [1], labels=LABELS),))
    for void, seen in (("ignored", False), ("negative", True)):
        maps = torch.randn(2, *size, requires_grad=True)
        prediction = Prediction(30 * torch.eye(2, 3)[None], ClassMaps([maps], (box,)), by_class=True)
        loss = ClassCriterion(0, void)(prediction, batch, torch.arange(2))["mask"]
        loss.backward()
        assert bool(maps.grad[:, :, 20:].any()) is seen
        target = torch.zeros(2, *size)
        target[1, :, :10] = 1
        known = slice(None) if void == "negative" else slice(0, 20)
        expected = F.binary_cross_entropy_with_logits(maps[:, :, known], target[:, :, known])
        torch.testing.assert_close(loss, expected)
    assert tiny().criterion.void == "ignored"
    assert tiny(compat="original").criterion.void == "negative"


# --- training --------------------------------------------------------------------------------------------------------


def test_cross_entropy_of_a_point_is_that_of_pytorch() -> None:
    maps, classes = torch.randn(4, 50), torch.randint(0, 5, (50,))
    classes[:3] = VOID
    target = F.one_hot(classes.clamp(min=0), 5)[:, :4].T.float()
    target[:, :3] = 0
    expected = F.binary_cross_entropy_with_logits(maps, target, reduction="none").sum(0)
    torch.testing.assert_close(class_bce(maps, classes), expected)


def test_a_step_learns_the_words_in_the_batch_first() -> None:
    labels = LabelMap.from_names("abcdefgh")
    size = (16, 16)
    box = Letterbox(size, size, size)
    truth = Segments.build(torch.randint(-1, 4, size), [5, 2, 7], labels=labels)
    batch = Batch(torch.zeros(1, 3, *size), (box,), (truth,))
    drawn = [tuple(ClassCriterion(0, classes=4).chosen(batch, 8).tolist()) for _ in range(20)]
    assert all({2, 5, 7} <= set(rows) and rows == tuple(sorted(rows)) and len(rows) == 4 for rows in drawn)
    assert len(set(drawn)) > 1
    assert ClassCriterion(0).chosen(batch, 8).tolist() == list(range(8))
    # With fewer places than words in the batch, some are left out: to the others, their pixels are negatives.
    for rows in ([2, 4, 5, 7], [2, 5]):
        maps = torch.randn(len(rows), *size)
        prediction = Prediction(torch.zeros(1, len(rows), 9), ClassMaps([maps], (box,)), by_class=True)
        found = ClassCriterion(0)(prediction, batch, torch.tensor(rows))["mask"]
        classes = truth.class_map(8)
        target = torch.stack([classes == k for k in rows]).float()
        expected = F.binary_cross_entropy_with_logits(maps, target, reduction="none")[:, classes != VOID].mean()
        torch.testing.assert_close(found, expected)


def test_towers_of_two_spaces_are_refused() -> None:
    with pytest.raises(ModelError) as error:
        tiny(space=48)
    assert error.value.message == (
        "images of this family are not projected into the texts' space: space "
        "(the image tower is 32 wide, the space 48)."
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": 2, "layers": 2, "train_words": 1},
        {"kind": "clip", "compat": "original", "train_towers": "attention"},
        {"kind": "naflex", "train_towers": "attention"},
        {"train_towers": "lora", "points": 0},
        {"train_towers": "frozen", "templates": ("a {}", "the {}"), "ensemble": "channels"},
    ],
)
def test_all_kinds_train(changes: dict[str, Any]) -> None:
    model = tiny(**changes).train()
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    total(model.loss(batch)).backward()
    assert gradient_faults(model) == []
    empty = [Segments.build(torch.full(batch.size, VOID), [], labels=LABELS) for _ in range(2)]
    assert torch.isfinite(total(model.loss(with_truth(batch, *empty))))


def test_pooling_is_for_training_alone() -> None:
    pooled, plain = tiny(pooling=2), tiny(pooling=1)
    batch = batch_of([scene()], 96)
    every = torch.arange(2)
    with torch.no_grad():
        torch.testing.assert_close(pooled(batch).masks.decode(0, every), plain(batch).masks.decode(0, every))
        torch.manual_seed(0)
        first = total(pooled.loss(batch))
        torch.manual_seed(0)
        assert (total(plain.loss(batch)) - first).abs() > 1e-6


def test_towers_learn_slowly_and_only_where_they_should() -> None:
    model = tiny(train_towers="attention", tower_rate=0.01)
    groups = model.param_groups(2e-4, 1e-4)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    names = {name: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-2] for name in names if name.startswith("encoder.")} == {"q_proj", "v_proj"}
    for name, rate in names.items():
        assert rate == pytest.approx(2e-6 if name.startswith("encoder.") else 2e-4)


def test_presets_are_the_published_sizes() -> None:
    grids = {name: (config.grid, config.window, config.positions) for name, config in PRESETS.items()}
    assert grids["siglip2-b16-224"] == (14, 7, 14)
    assert grids["siglip2-b16-384"] == grids["siglip2-l16-384"] == grids["siglip2-so400m-384"] == (24, 12, 24)
    assert grids["siglip2-b16-512"] == (32, 16, 32)
    assert grids["clip-b16"] == (24, 12, 14)
    assert grids["clip-l14"] == grids["siglip2-b16-384"]
    assert grids["siglip2-naflex-b16"] == (24, 12, 16)


def test_training_is_the_published_one_by_default() -> None:
    """Cho et al. 2024, section 4.1, and the published configuration."""
    assert (RECIPE.steps, RECIPE.batch_size, RECIPE.lr, RECIPE.weight_decay) == (80_000, 4, 2e-4, 1e-4)
    assert (RECIPE.image_side, RECIPE.clip, RECIPE.warmup, RECIPE.ema) == (384, 0.01, 0, 0)
    config = PRESETS["siglip2-b16-384"]
    assert (config.train_towers, config.tower_rate, config.pooling, config.train_words) == ("attention", 0.01, 2, 0)
    # A photo of 640 x 480 becomes one of 512 x 384, of which a crop of 384 x 384 is seen.
    fitted = Letterbox.fit((480, 640), RECIPE.image_side).content
    assert [round(length * scale) for length, scale in zip(fitted, RECIPE.scale, strict=True)] == [384, 512]
