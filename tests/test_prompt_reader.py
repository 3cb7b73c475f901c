"""Prompts from a file: they reach the batch as they were written, and only with the data they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from everymask.datasets import open_dataset
from everymask.datasets.loader import training_batches
from everymask.errors import DataError, UsageError
from everymask.prompt_files import save_prompts
from everymask.prompt_reader import AGAIN, PromptFile
from everymask.prompts import KINDS, PromptSettings, draw_prompts, objects_of
from everymask.recipe import TrainConfig
from everymask.types import Sample
from tests.scenes import scene, write_dataset

OTHER = "the photo is not the one that was prompted"
SETTINGS = PromptSettings(KINDS, by="component")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.json"
    save_prompts([scene(seed=n) for n in range(3)], 3, path, SETTINGS, seed=5)
    return path


def test_what_was_written_is_read(file: Path) -> None:
    prompts = PromptFile.read(file)
    assert prompts.by == "component"
    for n in range(3):
        sample = scene(seed=n)
        found, objects = prompts.of(sample)
        drawn = draw_prompts(objects_of(sample.segments, "component"), SETTINGS, 5, sample.name)
        assert torch.equal(found.points, drawn.points)
        assert (found.labels.dtype, found.points.dtype) == (torch.int32, torch.float32)
        assert torch.equal(found.labels, drawn.labels)
        assert torch.equal(found.objects, drawn.objects)
        assert len(objects) == 2


def test_they_move_into_the_batch(tmp_path: Path) -> None:
    """Through the views of training, for several epochs: positives are on their object, boxes are tight."""
    root = write_dataset(tmp_path / "data", train=4)
    data = open_dataset(root, "train")
    save_prompts(data, len(data), tmp_path / "p.json", PromptSettings(("box", "center", "negative"), by="class"))
    config = TrainConfig(
        steps=8, batch_size=2, workers=0, image_side=64, targets="instance", prompts=str(tmp_path / "p.json")
    )
    labels = set()
    for batch in training_batches(data, replace(config, rotate90=0.5, angle=20.0), data.labels, 64, 0):
        assert batch.prompts is not None
        for truth, prompts in zip(batch.truth(), batch.prompts, strict=True):
            for segment in truth:
                own = prompts.objects == segment.index
                kinds, points = prompts.labels[own], prompts.points[own]
                labels |= {*kinds.tolist()}
                x, y = (points + 0.5).floor().long().unbind(-1)
                inside = segment.mask[y.clamp(0, 63), x.clamp(0, 63)]
                assert inside[kinds == 1].all()
                assert not inside[kinds == 0].any()
                assert tuple(points[kinds >= 2].flatten().tolist()) == segment.box
    assert labels == {0, 1, 2, 3}


def changed(sample: Sample, **changes: Any) -> Sample:
    return replace(sample, **changes)


def other_photo(sample: Sample) -> Sample:
    image = sample.image.copy()
    image[0, 0, 0] ^= 1
    return changed(sample, image=image)


def other_mask(sample: Sample) -> Sample:
    ids = sample.segments.id_map.clone()
    ids[ids == 1] = torch.where(torch.arange(int((ids == 1).sum())) == 0, 0, 1).int()
    return changed(sample, segments=replace(sample.segments, id_map=ids))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: changed(s, name="new"), "has no prompts of a sample: {path}, new (3 others)."),
        (other_photo, "belongs to other images: {path}, scene0 (the photo is not the one that was prompted)."),
        (
            lambda s: scene(60, 96),
            "belongs to other images: {path}, scene0 (the photo is not the one that was prompted).",
        ),
        (other_mask, "belongs to other masks: {path}, scene0 (areas or boxes of the objects differ)."),
    ],
)
def test_prompts_of_other_data_are_refused(file: Path, change: Callable[[Sample], Sample], text: str) -> None:
    with pytest.raises(DataError) as error:
        PromptFile.read(file).of(change(scene()))
    assert str(error.value) == f"this file of prompts {text.format(path=file)} {AGAIN}"


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def edit(data: dict[str, Any]) -> None:
        data["samples"][1][key][0] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (put("labels", 4), "a label is 4, not 0, 1, 2 or 3"),
        (put("labels", -1), "a label is -1, not 0, 1, 2 or 3"),
        (put("of", 2), "a point is of object 2, there are 2"),
        (put("points", [96, 3]), "the point (96, 3) is outside of 96 x 64"),
        (put("points", [95, 3]), "the corners of a box are not in order"),
        (lambda d: d["samples"][1]["labels"].pop(), "labels"),
        (lambda d: d["samples"][1].pop("photo"), "KeyError: 'photo'"),
        (put("points", "left"), "ValueError"),
        (lambda d: d["samples"][1]["objects"][0].pop("area"), "it is not complete"),
    ],
)
def test_bad_entries_are_named(file: Path, edit: Callable[[dict[str, Any]], object], why: str) -> None:
    with pytest.raises(DataError) as error:
        PromptFile.read(edited(file, edit))
    assert str(error.value).startswith(f"an entry of a file of prompts makes no sense: {file}, scene1 (")
    assert why in error.value.why


def test_bad_files(file: Path) -> None:
    with pytest.raises(DataError, match="a file of prompts makes no sense") as error:
        PromptFile.read(edited(file, lambda d: d["samples"].append(d["samples"][0])))
    assert error.value.why == "a name occurs twice"
    with pytest.raises(DataError) as error:
        PromptFile.read(edited(file, lambda d: d["settings"].update(by="colour")))
    assert error.value.why == "by is 'colour'"
    for content in ("{", "[]", "{}", '{"settings": {"by": "class"}, "samples": 3}', '{"settings": 1, "samples": []}'):
        file.write_text(content)
        with pytest.raises(DataError, match="cannot read a file of prompts"):
            PromptFile.read(file)
    with pytest.raises(DataError, match="cannot read a file of prompts"):
        PromptFile.read(file.with_name("absent.json"))


def test_prompts_are_for_instances() -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(prompts="p.json")
    assert str(error.value) == "prompts are for single objects: prompts. Set targets=instance."
