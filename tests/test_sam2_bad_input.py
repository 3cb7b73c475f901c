"""SAM 2 is told nonsense, or masks are odd: the text of every refusal, and what must work all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everymask.cli import main
from everymask.datasets import Dataset, open_dataset
from everymask.datasets.loader import training_batches
from everymask.errors import DataError, ModelError, UsageError
from everymask.image import write_png
from everymask.models import create_model
from everymask.models.sam2 import RECIPE, Model
from everymask.predict import predict
from everymask.prompt_files import save_prompts
from everymask.prompt_reader import AGAIN
from everymask.prompted_evaluation import Protocol, evaluate_prompts
from everymask.prompts import PromptSettings
from everymask.train import train
from everymask.types import Batch, Letterbox, Prompts, Segments
from tests.scenes import LABELS, scene, write_dataset


def tiny(**changes: Any) -> Model:
    torch.manual_seed(0)
    model = create_model("sam2", "tiny", classes=LABELS, **changes)
    assert isinstance(model, Model)
    return model.eval()


def batch_with(prompts: Prompts | None, truth: Segments | None = None) -> Batch:
    box = Letterbox((64, 64), (64, 64), (64, 64))
    told, segments = None if prompts is None else (prompts,), None if truth is None else (truth,)
    return Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), (box,), segments, ("photo",), told)


# ---- what somebody says ----

NOBODY = "there is no prompt at all: "


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"points": [(96, 3)]}, "a prompt lies outside the photo: points ((96, 3) on a photo of 96 x 64)."),
        ({"points": [(3, -1)]}, "a prompt lies outside the photo: points ((3, -1) on a photo of 96 x 64)."),
        ({"boxes": [(3, 4, 5, 64)]}, "a prompt lies outside the photo: points ((5, 64) on a photo of 96 x 64)."),
        (
            {"points": [(3, 3)], "labels": [4]},
            "no such label of a point: labels (4). 1 is on the object, 0 beside it; give boxes as boxes.",
        ),
        (
            {"boxes": [(10, 10, 5, 20)]},
            "the corners of a box are not in order: boxes ([10.0, 10.0, 5.0, 20.0]). "
            "A box is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1.",
        ),
        ({}, f"{NOBODY}prompts. Give points or boxes, or take the task automatic."),
        ({"points": []}, f"{NOBODY}points. Give a point or a box."),
        ({"points": [(3, 3)], "candidate": 3}, "there are three candidates: candidate (3 is not 0, 1 or 2)."),
    ],
)
def test_predict_refuses(given: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        predict(tiny(), scene().image, **given)
    assert str(error.value) == text


@pytest.mark.parametrize("label", [-2, 4, 255])
def test_labels_of_a_batch(label: int) -> None:
    told = Prompts(torch.tensor([[3.0, 3.0]]), torch.tensor([label], dtype=torch.int32), torch.tensor([0]))
    with pytest.raises(UsageError) as error:
        tiny()(batch_with(told))
    fix = "1 is on the object, 0 beside it, 2 and 3 are corners of its box, -1 is padding."
    assert str(error.value) == f"no such label of a point: labels ({label}). {fix}"


def test_a_batch_that_asks_for_nothing() -> None:
    nothing = Prompts(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UsageError) as error:
        tiny()(batch_with(nothing))
    assert str(error.value) == f"{NOBODY}prompts. Give a point or a box."


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clicks": 8}, "a setting is out of range: clicks (8 is not in 0..7)."),
        ({"explicit": 2.0}, "a setting is out of range: explicit (2.0 is not in 0..1)."),
        ({"noise": -0.1}, "a setting is out of range: noise (-0.1 is not in 0..1)."),
        ({"stable": 1.5}, "a setting is out of range: stable (1.5 is not in 0..1)."),
        ({"objects": 0}, "a setting is out of range: objects (0 is below 1)."),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        tiny(**settings)
    assert str(error.value) == text


def test_choices_are_checked() -> None:
    for name, value in (("train", "head"), ("compare", "blocks")):
        with pytest.raises(ModelError, match=f"a model setting has the wrong type: {name} \\('{value}' is not"):
            tiny(**{name: value})


def test_classes_that_are_not_there() -> None:
    with pytest.raises(DataError, match="unknown class"):
        tiny(only=("cat",))


def test_prompts_of_other_images_do_not_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_dataset(write_dataset(tmp_path / "data", train=2), "train")
    other = open_dataset(write_dataset(tmp_path / "other", train=2), "train")
    for path in sorted((tmp_path / "other" / "train" / "images").glob("*.png")):
        write_png(path, np.full((64, 96, 3), 7, np.uint8))
    save_prompts(other, 2, tmp_path / "prompts.json", PromptSettings(("box",)))
    config = RECIPE.with_settings(["steps=1", "batch_size=1", "workers=0", f"prompts={tmp_path / 'prompts.json'}"])
    with pytest.raises(DataError) as error:
        train(tiny(), data, config, out=tmp_path / "run")
    where = f"{tmp_path / 'prompts.json'}, {data.names[1]}"
    starts = f"this file of prompts belongs to other images: {where} (the photo is not the one that was prompted)."
    assert str(error.value).replace(data.names[0], data.names[1]) == f"{starts} {AGAIN}"
    command = ["train", "sam2", str(tmp_path / "data"), "--out", str(tmp_path / "cli"), "--preset", "tiny"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--set", "workers=0", "--set", f"prompts={tmp_path / 'prompts.json'}"])
    assert stop.value.code
    assert "belongs to other images" in capsys.readouterr().err


# ---- odd masks ----


def instances(root: Path, ids: np.ndarray) -> Dataset:
    """A data set of one photo with numbered instances."""
    rng = np.random.default_rng(0)
    write_png(root / "images" / "a.png", rng.integers(0, 255, (*ids.shape, 3)).astype(np.uint8))
    write_png(root / "instances" / "a.png", ids.astype(np.uint16))
    return open_dataset(root)


def prompted_batch(data: Dataset, place: Path, side: int) -> Batch:
    """The first batch of a training with the data's explicit boxes, from a file, without any change of the view."""
    save_prompts(data, len(data), place, PromptSettings(("box", "center")))
    settings = ["steps=1", "batch_size=1", "workers=0", "flip=0", "color=0", f"prompts={place}"]
    return next(training_batches(data, RECIPE.with_settings(settings), data.labels, side, 0))


def test_an_object_of_one_pixel(tmp_path: Path) -> None:
    """From the file of prompts through the loss to the scores: a box of equal corners."""
    ids = np.zeros((64, 64), int)
    ids[20, 33] = 1
    data = instances(tmp_path / "data", ids)
    batch = prompted_batch(data, tmp_path / "prompts.json", 64)
    assert batch.prompts is not None
    assert batch.prompts[0].points.tolist() == [[33, 20]] * 3
    assert batch.prompts[0].labels.tolist() == [2, 3, 1]
    model = tiny(least_area=1, explicit=1.0).train()
    terms = model.loss(batch)
    assert all(torch.isfinite(value) and value > 0 for value in terms.values())
    scores = evaluate_prompts(model.eval(), data, Protocol(("box", "point", "negatives", "click3")))
    assert {own["objects"] for own in scores["kinds"].values()} == {1}
    assert len(predict(model, data[0].image, boxes=[(33, 20, 33, 20)]).segments) <= 1


def test_three_hundred_objects(tmp_path: Path) -> None:
    """More than a byte counts: each keeps its number, its box and its answer."""
    rows, columns = np.divmod(np.arange(300), 20)
    ids = np.zeros((60, 80), int)
    for n, (y, x) in enumerate(zip(4 * rows, 4 * columns, strict=True), start=1):
        ids[y : y + 3, x : x + 3] = n
    data = instances(tmp_path / "data", ids)
    truth = data[0].segments
    assert len(truth) == 300
    batch = prompted_batch(data, tmp_path / "prompts.json", 96)
    assert batch.prompts is not None
    boxes = batch.prompts[0].points[batch.prompts[0].labels >= 2].reshape(-1, 4)
    assert [tuple(box) for box in boxes.tolist()] == [s.box for s in batch.truth()[0]]
    assert len(boxes) == 300
    model = tiny(least_area=1, objects=300, explicit=1.0)
    assert len(model.plan.lesson(batch, 0).truth) == 300
    assert all(torch.isfinite(value) for value in model.train().loss(batch).values())
    scores = evaluate_prompts(model.eval(), data, Protocol(("box",)))
    assert scores["kinds"]["box"]["objects"] == 300
    corners = [(4 * x, 4 * y, 4 * x + 2, 4 * y + 2) for y, x in zip(rows.tolist(), columns.tolist(), strict=True)]
    found = predict(model, data[0].image, boxes=corners, overlap="layers").segments
    assert int(found.id_map.max()) == len(found) <= 300


def test_an_object_that_a_frame_does_not_show(tmp_path: Path) -> None:
    """Frames keep its row, without a pixel; nobody is asked for it there."""
    for t in range(2):
        mask = np.zeros((64, 64), np.uint8)
        mask[8:24, 8:24] = 1
        mask[40:60, 30:50] = 2 * (t == 0)
        write_png(tmp_path / "JPEGImages" / "video" / f"{t:05}.png", np.full((64, 64, 3), 50 * t, np.uint8))
        write_png(tmp_path / "Annotations" / "video" / f"{t:05}.png", mask)
    data = open_dataset(tmp_path)
    assert [len(sample.segments) for sample in data] == [2, 2]
    assert not data[1].segments[1].mask.any()
    scores = evaluate_prompts(tiny(), data, Protocol(("box", "click2")))
    assert scores["kinds"]["box"]["objects"] == scores["kinds"]["click2"]["objects"] == 3
    told = Prompts(torch.tensor([[12.0, 12.0]]), torch.tensor([1], dtype=torch.int32), torch.tensor([0]))
    still = replace(batch_with(told), segments=(data[1].segments,))
    model = tiny(explicit=1.0).train()
    assert model.plan.rows(data[1].segments) == [0]
    assert all(torch.isfinite(value) for value in model.loss(still).values())
