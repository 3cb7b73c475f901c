"""The recipe for BCSS from end to end: real masks, cut to a window, with stand-in images that this test paints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from everymask.checkpoint import load
from everymask.cli import main
from everymask.datasets import open_dataset
from everymask.image import read_mask, write_png
from everymask.prompts import PromptSettings as Settings
from everymask.prompts import draw_prompts, objects_of
from everymask.types import VOID
from tests.conftest import REPOSITORY

RECIPE: dict[str, Any] = yaml.safe_load((REPOSITORY / "recipes" / "sam2-bcss.yaml").read_text())
WINDOW = 512


def window(mask: np.ndarray) -> np.ndarray:
    """The window with most classes, on a coarse grid."""
    places = [(y, x) for y in range(0, mask.shape[0] - WINDOW, 256) for x in range(0, mask.shape[1] - WINDOW, 256)]
    cuts = [mask[y : y + WINDOW, x : x + WINDOW] for y, x in places]
    return max(cuts, key=lambda cut: len(np.unique(cut)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """BCSS as it is published: three masks to train on and one to test."""
    source = shared_data / "bcss_masks_only"
    if not source.is_dir():
        pytest.skip("no data set 'bcss_masks_only' in the folder of real data")
    root = tmp_path_factory.mktemp("bcss")
    (root / "meta").mkdir()
    shutil.copy(source / "meta" / "gtruth_codes.tsv", root / "meta")
    rng = np.random.default_rng(0)
    paint = rng.integers(60, 240, (256, 3))
    for n, path in enumerate(sorted((source / "masks").glob("*.png"))):
        codes = window(read_mask(path)).astype(np.uint8)
        image = (paint[codes] + rng.normal(0, 12, (WINDOW, WINDOW, 3))).clip(0, 255).astype(np.uint8)
        folder = root / ("test" if n == 0 else "train")
        write_png(folder / "masks" / path.name, codes)
        write_png(folder / "images" / path.name, image)
    return root


def settings(name: str, changes: dict[str, Any]) -> list[str]:
    """Options of the command line from the recipe, some of them changed for speed."""
    values = RECIPE[name] | changes
    return [text for key, value in values.items() for text in (f"--{name}", f"{key}={value}")]


def test_outside_of_the_annotation_is_void(root: Path) -> None:
    for sample in open_dataset(root, "train"):
        path = root / "train" / "masks" / f"{sample.name}.png"
        assert torch.equal(sample.segments.id_map == VOID, torch.from_numpy(read_mask(path) == 0))


def test_prompts_are_of_what_they_ask_for(root: Path) -> None:
    """A component's box fits the component; no negative is in the same class, nor where nobody annotated."""
    (sample,) = open_dataset(root, "test")
    objects = objects_of(sample.segments, "component")
    prompts = draw_prompts(objects, Settings(("box", "center", "negative"), least_area=400), name=sample.name)
    classes = sample.segments.class_map(100)
    assert len(prompts.objects.unique()) > 2
    for n in prompts.objects.unique().tolist():
        own = prompts.objects == n
        points, labels = prompts.points[own].long(), prompts.labels[own]
        assert tuple(points[labels >= 2].flatten().tolist()) == objects[n].box
        assert objects[n].mask[points[labels == 1, 1], points[labels == 1, 0]].all()
        beside = classes[points[labels == 0, 1], points[labels == 0, 0]]
        assert not ((beside == objects[n].class_index) | (beside == VOID)).any()


def test_the_recipe_runs(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = open_dataset(root, "train").labels.names
    assert set(RECIPE["config"]["only"]) <= set(known)
    drawn = RECIPE["prompts"]
    kinds = [text for kind in drawn["kind"] for text in ("--kind", kind)]
    out = ["--out", str(tmp_path / "prompts.json"), "--split", "train"]
    main(["prompts", str(root), *out, *kinds, "--by", drawn["by"], "--least-area", str(drawn["least_area"])])
    assert len(json.loads((tmp_path / "prompts.json").read_text())["samples"]) == 3
    # Smaller in every way, and from random weights; the prompts come from the file.
    small = {"steps": 3, "batch_size": 2, "warmup": 1, "validate_every": 3, "workers": 0}
    config = settings("config", {"least_area": 16, "clicks": 1, "train": "lora"})
    given = settings("set", small | {"prompts": tmp_path / "prompts.json"})
    for name in ("first", "second"):
        main(["train", "sam2", str(root), "--out", str(tmp_path / name), "--preset", "tiny", *config, *given])
    model = load(tmp_path / "second")
    assert model.labels.names == known
    assert any("lora_up" in name for name, _ in model.named_parameters())
    ask = [text for value in RECIPE["evaluate"]["ask"] for text in ("--ask", value)]
    files = ["--json", str(tmp_path / "scores.json"), "--picture", str(tmp_path / "scores.png")]
    capsys.readouterr()
    command = ["evaluate", str(tmp_path / "second"), str(root), "--split", "test", *ask, *files]
    main([*command, "--prompts", RECIPE["evaluate"]["prompts"], "--against", str(tmp_path / "first")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores) == ["before", "after"]
    assert list(scores["after"]["kinds"]) == ["point", "box", "negatives", *(f"click{n}" for n in range(1, 9))]
    assert scores["before"] == scores["after"]  # Two runs of one recipe are one run.
    assert scores["after"]["kinds"]["box"]["objects"] > 2
    assert set(scores["after"]["kinds"]["box"]["per_class"]) <= set(known)
    assert (tmp_path / "scores.png").is_file()
    assert "warning" not in capsys.readouterr().out


def test_the_class_filter_is_a_setting(root: Path) -> None:
    from everymask.models import create_model
    from everymask.transforms import Geometry, collate

    samples = list(open_dataset(root, "train"))
    labels = open_dataset(root, "train").labels
    batch = collate(samples, [Geometry.fit((WINDOW, WINDOW), 128)] * len(samples))
    for only in (("stroma",), ("tumor", "stroma")):
        model = create_model("sam2", "tiny", classes=labels, only=only, by="component", least_area=50)
        wanted = {labels.index(name) for name in only}
        for b in range(len(batch)):
            objects = objects_of(batch.truth()[b], "component")
            rows = model.plan.rows(objects)
            assert {int(objects.classes[n]) for n in rows} <= wanted
            assert all(objects[n].area >= 50 for n in rows)
            assert len(rows) <= model.config.objects
