"""Building models by name: presets, and fields that differ from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from everymask.errors import ModelError
from everymask.models import create_model, list_models, model_module, model_name
from everymask.models.maskformer import PRESETS


def test_fields_differ_from_the_preset_as_asked() -> None:
    model = create_model("maskformer", "tiny", classes=["cat"], queries=5, head="per-pixel", background=None)
    changed = {"queries": 5, "head": "per-pixel", "background": None}
    assert asdict(model.config) == asdict(PRESETS["tiny"]) | changed
    assert not hasattr(model, "criterion")


@pytest.mark.parametrize(
    "change", [{"depths": (1, 2, 1, 1)}, {"dropout": 0}, {"background": 0.25}, {"encoder": "resnet"}, {"queries": 3}]
)
def test_values_of_the_right_kind(change: dict[str, Any]) -> None:
    model = create_model("maskformer", "tiny", classes=["cat"], **change)
    assert {name: getattr(model.config, name) for name in change} == change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queriez": 3}, "the model has no such setting: queriez (there are: image_side, shortest_side, "),
        ({"queries": 3.5}, "a model setting has the wrong type: queries (3.5 is not int)."),
        ({"queries": True}, "a model setting has the wrong type: queries (True is not int)."),
        ({"depths": (1, "two")}, "a model setting has the wrong type: depths ((1, 'two') is not tuple[int, ...])."),
        ({"head": "pixel"}, "a model setting has the wrong type: head ('pixel' is not typing.Literal['mask', 'per-"),
        ({"queries": None}, "a model setting has the wrong type: queries (None is not int)."),
    ],
)
def test_values_of_the_wrong_kind(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        create_model("maskformer", "tiny", classes=["cat"], **change)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", list_models())
def test_a_model_knows_its_name(name: str) -> None:
    assert "tiny" in model_module(name).PRESETS
    assert model_name(create_model(name, "tiny", classes=["cat", "dog"])) == name


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"unknown model: unet \(there are: .*hybrid, maskformer"):
        create_model("unet", classes=["cat"])
    with pytest.raises(ModelError, match=r"unknown preset of hybrid: giant \(there are: base, "):
        create_model("hybrid", "giant", classes=["cat"])
