"""Parts that do not learn, and a rate that falls in one step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from everymask.datasets import open_dataset
from everymask.errors import UsageError
from everymask.models import create_model
from everymask.recipe import TrainConfig
from everymask.train import train
from everymask.training_run import rate_factor
from tests.scenes import LABELS, write_dataset


def test_frozen_parts_get_no_gradient_and_stay_in_eval_mode() -> None:
    model = create_model("detr", classes=LABELS)
    model.freeze(["encoder.stages.0", "masks"])
    model.train()
    assert model.training
    assert model.encoder.stages[1].training
    assert not model.encoder.stages[0][0].reduce[1].training
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.partition(".")[0] for name in still} == {"encoder", "attention_map", "mask_head"}
    grouped = {id(p) for group in model.param_groups(1e-3) for p in group["params"]}
    assert grouped == {id(p) for name, p in model.named_parameters() if name not in still}


def test_a_copy_is_frozen_too() -> None:
    model = create_model("detr", classes=LABELS)
    model.freeze(["encoder"])
    other = copy.deepcopy(model).train()
    assert not other.encoder.training
    model.encoder.train()
    assert not other.encoder.training


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["detektor"], "the model has no such part: detektor (there are: detector, masks, normalize, encoder, "),
        (["encoder", ""], "the model has no such part (there are: detector, "),
        (["detector", "masks"], "nothing is left to train: encoder, input_proj, "),
    ],
)
def test_names_that_are_refused(names: list[str], text: str) -> None:
    model = create_model("detr", classes=LABELS)
    with pytest.raises(UsageError) as error:
        model.freeze(names)
    assert str(error.value).startswith(text)
    assert all(p.requires_grad for p in model.parameters())


def test_training_leaves_frozen_parts_as_they_are(tmp_path: Path) -> None:
    data = open_dataset(write_dataset(tmp_path / "data", train=4, val=0))
    model = create_model("hybrid", classes=data.labels)
    before = copy.deepcopy(model.state_dict())
    config = TrainConfig(steps=2, batch_size=2, freeze="encoder,fpn", workers=0, validate_every=2)
    train(model, data, config, out=tmp_path / "run")
    changed = {
        name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"patchify", "decoder", "class_head"} <= changed
    assert not {"encoder", "fpn"} & changed


def test_the_rate_falls_in_one_step() -> None:
    """25 epochs, drop at 15, to a tenth."""
    config = TrainConfig(steps=100, warmup=0, drop=0.6, final_lr=0.1)
    assert [rate_factor(step, config) for step in (0, 59, 60, 99)] == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_drop_out_of_range(value: float) -> None:
    with pytest.raises(UsageError, match="drop"):
        TrainConfig(drop=value)
