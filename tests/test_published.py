"""Folders in the layout of `transformers`, and the Hub: what is wrong with them is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save as save_tensors
from safetensors.torch import save_file

from everymask.checkpoint import load
from everymask.errors import CheckpointError, ModelError
from everymask.published import find_published, published_labels

MASKFORMER: dict[str, Any] = {
    "model_type": "maskformer",
    "id2label": {"0": "wall", "1": "sky"},
    "fpn_feature_size": 32,
    "mask_feature_size": 16,
    "decoder_config": {
        "d_model": 32,
        "decoder_attention_heads": 2,
        "decoder_layers": 1,
        "num_queries": 4,
        "decoder_ffn_dim": 32,
        "dropout": 0.0,
    },
    "backbone_config": {"model_type": "resnet", "embedding_size": 8, "depths": [1, 1, 1, 1]},
}


def folder_of(tmp_path: Path, config: Any, weights: bytes | None = None) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    if weights is not None:
        (tmp_path / "model.safetensors").write_bytes(weights)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "cannot read the configuration: {folder}/config.json (Expecting property name"),
        ("[]", "cannot read the configuration: {folder}/config.json (it holds no object)."),
        ({"model_type": "bert"}, "no system here reads this checkpoint: {folder} (its model type is 'bert')."),
        ({}, "no system here reads this checkpoint: {folder} (its model type is None)."),
        (
            {"model_type": "maskformer"},
            "cannot read the configuration: {folder}/config.json (KeyError: 'decoder_config').",
        ),
        (
            MASKFORMER | {"id2label": None},
            "the checkpoint has no class table: {folder}/config.json (id2label is None).",
        ),
        (
            MASKFORMER | {"id2label": {"0": "wall", "7": "sky"}},
            "the checkpoint has no class table: {folder}/config.json (id2label is {{'0': 'wall', '7': 'sky'}}).",
        ),
        (MASKFORMER, "cannot read the weights: {folder} (FileNotFoundError: No such file"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, config: Any, text: str) -> None:
    with pytest.raises(CheckpointError) as error:
        load(folder_of(tmp_path, config))
    assert str(error.value).startswith(text.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({}, "it has no weight_map"),
        ({"weight_map": []}, "it has no weight_map"),
        ({"weight_map": {"a": 3}}, "weight_map names '3'"),
        ({"weight_map": {"a": ["model.safetensors"]}}, "weight_map names \"['model.safetensors']\""),
        ({"weight_map": {"a": "../other/model.safetensors"}}, "weight_map names '../other/model.safetensors'"),
        ({"weight_map": {"a": "/dev/zero"}}, "weight_map names '/dev/zero'"),
    ],
)
def test_an_index_names_files_beside_it(tmp_path: Path, index: Any, why: str) -> None:
    folder = folder_of(tmp_path, MASKFORMER)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert str(error.value) == f"the index of the weights is damaged: {path} ({why})."


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_nested_too_deep_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (folder_of(tmp_path, MASKFORMER) / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"^cannot read the configuration: .*{name} \(maximum recursion"):
        load(tmp_path)


def test_a_configuration_that_describes_no_model(tmp_path: Path) -> None:
    weights = save_tensors({"a": torch.zeros(1)})
    folder = folder_of(tmp_path, MASKFORMER | {"mask_feature_size": -16}, weights)
    with pytest.raises(
        CheckpointError, match=r"^the configuration describes no model: .*config\.json \(RuntimeError: "
    ):
        load(folder)


def test_a_configuration_far_larger_than_the_weights(tmp_path: Path) -> None:
    decoder = {**MASKFORMER["decoder_config"], "decoder_layers": 10**9}
    folder = folder_of(tmp_path, MASKFORMER | {"decoder_config": decoder}, save_tensors({"a": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"^the configuration describes no model: .*far larger than the weights"):
        load(folder)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^cannot read the weights: .*SafetensorError"):
        load(folder_of(tmp_path, MASKFORMER, b"no weights"))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, MASKFORMER)
    save_file({"class_predictor.weight": torch.zeros(3, 7)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"^the weights do not belong to this model: .* \(\d+: missing "):
        load(folder)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, MASKFORMER)
    torch.save({"x": Path}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"^cannot read the weights: .*UnpicklingError"):
        load(folder)


def test_names_that_repeat_are_numbered(tmp_path: Path) -> None:
    names = {"0": "door", "1": "screen", "2": "door", "3": "door"}
    assert published_labels({"id2label": names}, tmp_path).names == ("door", "screen", "door (2)", "door (3)")


def test_only_names_of_the_hub_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert find_published("hybrid-pets") is None
    assert find_published(tmp_path) is None
    assert find_published("a/b/c") is None
    assert asked == []
    assert find_published("facebook/maskformer-swin-tiny-ade") == tmp_path
    assert asked == ["facebook/maskformer-swin-tiny-ade"]


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **_: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as error:
        load("facebook/nothing")
    text = (
        "cannot get the weights from the Hub: facebook/nothing (ConnectionError: no route). "
        "Check the name and the network, or copy the checkpoint here and give its folder."
    )
    assert str(error.value) == text
