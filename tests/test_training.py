"""The training loop: what it writes, that it repeats itself, and that nothing which stops it costs more than time."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from everymask.checkpoint import load
from everymask.datasets import Dataset, Subset, open_dataset, open_datasets
from everymask.datasets.loader import Batches, training_batches
from everymask.errors import CheckpointError, DataError, TrainingError, UsageError
from everymask.image import read_image, write_png
from everymask.labels import LabelMap
from everymask.model import SegmentationModel
from everymask.models import create_model
from everymask.predict import predict
from everymask.recipe import TrainConfig
from everymask.report import read_log
from everymask.run_folder import RunFolder
from everymask.train import spread, train
from everymask.training_run import Run, rate_factor
from everymask.types import Batch
from tests.scenes import LABELS, mask_values, scene, write_dataset, write_scenes

# The functions `everymask.train` and `everymask.report` have these names too; the modules are what is patched.
TRAIN, REPORT = (importlib.import_module(f"everymask.{name}") for name in ("train", "report"))
CONFIG = TrainConfig(
    steps=6, batch_size=4, image_side=64, lr=1e-3, warmup=2, validate_every=2, log_every=1, workers=0, threads=1
)


@pytest.fixture(autouse=True, scope="module")
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 8 scenes to train on and 3 for validation."""
    return write_dataset(tmp_path_factory.mktemp("scenes"), train=8, val=3)


@pytest.fixture(scope="session")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SegmentationModel, dict[str, Any]]:
    """Run folder, model and scores of a training with validation."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return out, *run(root, out, val=open_dataset(root, "val"), validate_every=3)


@pytest.fixture(scope="session")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a training without validation, which interrupted ones must end like."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(root, out)
    return out


def tiny(labels: LabelMap = LABELS) -> SegmentationModel:
    torch.manual_seed(0)
    return create_model("hybrid", "tiny", classes=labels)


def run(root: Path, out: Path, val: Dataset | None = None, **changes: Any) -> tuple[SegmentationModel, dict[str, Any]]:
    """Train a fresh model with `CONFIG` and `changes`: the same call again resumes."""
    model = tiny()
    return model, train(model, open_dataset(root, "train"), replace(CONFIG, **changes), out=out, val=val)


def weights(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "last").glob("*.safetensors"))}


def train_rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in read_log(out) if row["kind"] == "train"]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Let training step number `step` raise."""
    real = Run.train_step

    def train_step(self: Run, parts: list[Batch]) -> dict[str, float]:
        if self.step + 1 == step:
            raise error
        return real(self, parts)

    monkeypatch.setattr(Run, "train_step", train_step)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[list[Batch]]:
    """The batches of each step from now on."""
    seen: list[list[Batch]] = []
    real = Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda self, parts: (seen.append(parts), real(self, parts))[1])
    return seen


# ---- what a run writes ----


def test_log_has_every_step_and_validation(finished: tuple[Path, SegmentationModel, dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in (finished[0] / "log.jsonl").read_text().splitlines()]
    steps = [(row["kind"], row["step"]) for row in rows]
    assert steps == [
        *(("train", 1), ("train", 2), ("train", 3), ("validation", 3)),
        *(("train", 4), ("train", 5), ("train", 6), ("validation", 6)),
    ]
    for row in rows:
        keys = ("loss", "class", "mask", "dice", "gradient", "lr", "images_per_second", "data_wait")
        assert row["kind"] != "train" or all(np.isfinite(row[key]) for key in keys)
        assert row["kind"] != "validation" or 0 <= row["foreground_iou"] <= 1
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][term] for term in ("class", "mask", "dice")))
    assert [row["lr"] for row in rows[:3]] == [0.0005, 0.001, 0.001]


@pytest.mark.parametrize("name", ["samples.png", "loss.png", "scores.png", "validation.png"])
def test_pictures_can_be_read(finished: tuple[Path, SegmentationModel, dict[str, Any]], name: str) -> None:
    picture = read_image(finished[0] / name)
    assert min(picture.shape[:2]) > 100
    assert picture.std() > 5


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_load_and_predict(finished: tuple[Path, SegmentationModel, dict[str, Any]], name: str) -> None:
    out, _, scores = finished
    model = load(out / name)
    assert model.labels.names == LABELS.names
    assert model.card["recipe"]["steps"] == 6
    assert model.card["metrics"] == scores
    assert predict(model, scene().image).segments.size == (64, 96)


def test_run_folder_loads_its_best(finished: tuple[Path, SegmentationModel, dict[str, Any]]) -> None:
    out, _, scores = finished
    assert load(out).card["step"] == scores["step"]


def test_averaged_weights_are_what_counts(finished: tuple[Path, SegmentationModel, dict[str, Any]]) -> None:
    out, model, _ = finished
    shipped = load_file(out / "last" / "model.safetensors")
    state = load_file(out / "last" / "training.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, shipped[name])
        assert torch.equal(tensor, state[f"average.{name}"])
    assert not torch.equal(shipped["class_head.weight"], state["model.class_head.weight"])
    assert not model.training


@pytest.mark.parametrize("name", ["class_head.bias", "encoder.stem.1.running_mean"])
def test_average_is_exponential(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of weights and statistics alike. The first step is copied; early on the memory is as short as the run."""
    seen: list[Tensor] = []
    real = Run.train_step

    def train_step(self: Run, parts: list[Batch]) -> dict[str, float]:
        terms = real(self, parts)
        seen.append(self.model.state_dict()[name].clone())
        return terms

    monkeypatch.setattr(Run, "train_step", train_step)
    model, _ = run(root, tmp_path, steps=3, ema=0.15)
    average = seen[0]
    for count, current in enumerate(seen[1:], 1):
        decay = min(0.15, (1 + count) / (10 + count))
        average = average * decay + current * (1 - decay)
    torch.testing.assert_close(model.state_dict()[name], average)


def test_a_log_line_has_the_means_since_the_one_before(uninterrupted: Path, root: Path, tmp_path: Path) -> None:
    run(root, tmp_path, log_every=4)
    single = [row["loss"] for row in train_rows(uninterrupted)]
    found = [(row["step"], row["loss"]) for row in train_rows(tmp_path)]
    assert found == [(4, pytest.approx(np.mean(single[:4]))), (6, pytest.approx(np.mean(single[4:])))]


def test_without_validation_the_last_is_the_best(uninterrupted: Path) -> None:
    assert (uninterrupted / "best" / "model.safetensors").read_bytes() == weights(uninterrupted)["model.safetensors"]
    assert not (uninterrupted / "validation.png").exists()
    assert [row["kind"] for row in read_log(uninterrupted)] == ["train"] * 6


def test_validation_shows_each_image_once_from_worst_to_best(
    finished: tuple[Path, SegmentationModel, dict[str, Any]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    sheet = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(REPORT, "comparison", lambda rows: (shown.extend(row[0].split()[0] for row in rows), sheet)[1])
    val = open_dataset(root, "val")
    scores = {"per_image": [{"foreground_iou": iou} for iou in (0.5, float("nan"), 0.1)]}
    report = REPORT.Report(finished[0], CONFIG)
    monkeypatch.setattr(REPORT, "write_png", lambda *_: None)
    report.predictions(finished[1], val, scores, 64)
    assert shown == [val.names[2], val.names[0], val.names[1]]


# ---- the same again ----


def test_same_seed_same_weights(uninterrupted: Path, root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(uninterrupted)


def test_another_seed_gives_other_weights(uninterrupted: Path, root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "other", seed=1)
    assert weights(tmp_path / "other")["model.safetensors"] != weights(uninterrupted)["model.safetensors"]


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (2, 0), (5, 0), (5, 1)])
def test_interrupted_and_resumed_it_ends_the_same(
    uninterrupted: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, workers: int
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run(root, tmp_path, workers=workers)
    run(root, tmp_path, workers=workers)
    assert weights(tmp_path) == weights(uninterrupted)
    assert [row["step"] for row in train_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in train_rows(tmp_path)] == [row["loss"] for row in train_rows(uninterrupted)]


def stop_at_call(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """A save renames its folder, then replaces `best` and `last`: stop before one of these."""

    def call(source: Any, target: Any) -> None:
        if Path(target).parent.name != "checkpoints" and name == "rename":
            return real(source, target)
        if name == "replace" and Path(target).name not in ("best", "last"):
            return real(source, target)
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(source, target)

    real, calls = getattr(os, name), iter(range(1, 100))
    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("name", "number"), [("rename", 2), ("replace", 3), ("replace", 4)])
def test_stopped_while_saving_it_ends_the_same(
    uninterrupted: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """At each point of the second save."""
    with monkeypatch.context() as patch:
        stop_at_call(patch, name, number)
        with pytest.raises(KeyboardInterrupt):
            run(root, tmp_path)
    assert load(tmp_path / "last").card["step"] == 2
    run(root, tmp_path)
    assert weights(tmp_path) == weights(uninterrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("best", "checkpoints", "last", "lock", "log.jsonl", "samples.png", "started.jsonl")
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["step", "validation"])
def test_a_signal_finishes_the_step_and_saves(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, moment: str
) -> None:
    """At a step or in a validation; afterwards the run ends as if nothing had been."""
    val = open_dataset(root, "val")
    run(root, tmp_path / "whole", val=val)
    with monkeypatch.context() as patch:
        if moment == "step":
            raise_at(patch, Run, "train_step", 3, number)
        else:
            raise_at(patch, Run, "judge", 2, number)  # Too late for this validation, which counts.
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as stopped:
            run(root, tmp_path / "stopped", val=val)
    assert number == signal.SIGINT or stopped.value.code == 143
    assert load(tmp_path / "stopped" / "last").card["step"] == (3 if moment == "step" else 4)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(root, tmp_path / "stopped", val=val)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    rows = [[(row["kind"], row["step"]) for row in read_log(tmp_path / name)] for name in ("stopped", "whole")]
    assert rows[0] == rows[1]


def raise_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, number: signal.Signals) -> None:
    """Send this process a signal in the course of a method's call number `call`."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def method(*arguments: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(number)
        return real(*arguments)

    monkeypatch.setattr(owner, name, method)


def test_a_validation_broken_off_by_a_signal_is_made_up_for(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = open_dataset(root, "val")
    _, expected = run(root, tmp_path / "whole", val=val, validate_every=3)
    with monkeypatch.context() as patch:
        raise_at(patch, sys.modules["everymask.evaluate"], "with_labels", 1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            run(root, tmp_path / "stopped", val=val, validate_every=3)
    assert not [row for row in read_log(tmp_path / "stopped") if row["kind"] == "validation"]
    _, found = run(root, tmp_path / "stopped", val=val, validate_every=3)
    assert found == expected


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    uninterrupted: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(root, tmp_path)
    newest = tmp_path / "checkpoints" / "00000004"
    with (newest / "training.safetensors").open("r+b") as file:
        file.truncate(1000)
    run(root, tmp_path)
    assert weights(tmp_path) == weights(uninterrupted)
    (row,) = [row for row in read_log(tmp_path) if row["kind"] == "damaged"]
    assert row["step"] == 2
    assert row["checkpoints"][0].startswith("00000004: training.safetensors has 1,000 of ")


def test_where_no_checkpoint_is_whole_nothing_is_overwritten(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path, steps=2)
    for path in tmp_path.glob("checkpoints/*/model.json"):
        path.write_text("{}")
    before = listing(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of this run is whole: .* \(00000002: model\.json has 2 of"
    ):
        run(root, tmp_path, steps=2)
    assert listing(tmp_path) == before


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_training_in_the_same_folder_is_refused(root: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked():
        message = rf"another training runs in this folder: .* \(process {os.getpid()} holds .*lock\)\. Wait for it"
        with pytest.raises(TrainingError, match=message):
            run(root, tmp_path)
    run(root, tmp_path, steps=1)


def test_the_newest_checkpoints_and_the_best_stay(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "judge", lambda self, scores: setattr(self, "improved", self.step == 2))
    run(root, tmp_path, val=open_dataset(root, "val"), steps=6, validate_every=1, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000002", "00000005", "00000006"]
    assert (tmp_path / "best").resolve().name == "00000002"
    assert (tmp_path / "last").resolve().name == "00000006"


@pytest.mark.faults
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_it_ends_the_same(uninterrupted: Path, root: Path, tmp_path: Path, workers: int) -> None:
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.test_training import Run, run
real = Run.train_step
Run.train_step = lambda self, parts: (time.sleep(0.3), real(self, parts))[1]
run(Path({str(root)!r}), Path({str(tmp_path)!r}), workers={workers})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(train_rows(tmp_path)) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "last").is_dir()
    run(root, tmp_path, workers=workers)
    assert weights(tmp_path) == weights(uninterrupted)
    assert [row["step"] for row in train_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_finished_run_answers_at_once(
    finished: tuple[Path, SegmentationModel, dict[str, Any]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model, scores = finished
    stop_at(monkeypatch, 7)
    again, found = run(root, out, val=open_dataset(root, "val"), validate_every=3)
    assert found == scores
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


# ---- another run in the same folder ----


def test_other_settings_are_refused_with_the_difference(uninterrupted: Path, root: Path) -> None:
    before = weights(uninterrupted)
    with pytest.raises(TrainingError, match=r"another run.*lr: 0\.001 -> 0\.5; clip: 1\.0 -> 2\.0.*another --out"):
        run(root, uninterrupted, lr=0.5, clip=2.0)
    assert weights(uninterrupted) == before


def test_other_classes_are_refused(uninterrupted: Path, root: Path) -> None:
    model = tiny(LabelMap.from_names(["disc", "square", "ring"]))
    with pytest.raises(TrainingError, match="ring"):
        train(model, open_dataset(root, "train"), CONFIG, out=uninterrupted)


def test_other_settings_can_be_allowed(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path, steps=2)
    dataset = open_dataset(root, "train")
    train(tiny(), dataset, replace(CONFIG, steps=3, lr=5e-4), out=tmp_path, allow_change=True)
    rows = read_log(tmp_path)
    assert [row["kind"] for row in rows] == ["train", "train", "change", "train"]
    assert rows[2]["changed"] == ["steps: 2 -> 3", "lr: 0.001 -> 0.0005"]


# ---- what stops it ----


def test_a_loss_that_is_not_finite_stops_before_weights_move(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    real, before = type(model).loss, [p.detach().clone() for p in model.parameters()]
    nan = {"mask": torch.tensor(float("nan"))}
    monkeypatch.setattr(type(model), "loss", lambda self, batch: real(self, batch) | nan)
    with pytest.raises(TrainingError, match=r"loss is not finite: mask \(images scene\d, .*Lower|precision"):
        train(model, open_dataset(root, "train"), CONFIG, out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not (tmp_path / "last").exists()


def test_a_gradient_that_is_not_finite_stops_before_weights_move(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    before = [p.detach().clone() for p in model.parameters()]
    # Zero, but the root of zero has no derivative.
    root_of_zero = lambda self, _: {"class": (0 * self.class_head.weight).sum().sqrt()}  # noqa: E731
    monkeypatch.setattr(type(model), "loss", root_of_zero)
    with pytest.raises(TrainingError, match="gradient is not finite: step 0"):
        train(model, open_dataset(root, "train"), CONFIG, out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_named(root: Path, tmp_path: Path, workers: int) -> None:
    write_scenes(tmp_path / "data", [scene(seed=n) for n in range(4)])
    write_png(tmp_path / "data" / "masks" / "scene2.png", np.zeros((5, 5), np.uint8))
    (tmp_path / "data" / "classes.json").write_text((root / "classes.json").read_text())
    with pytest.raises(DataError) as error:
        train(tiny(), open_dataset(tmp_path / "data"), replace(CONFIG, workers=workers), out=tmp_path / "run")
    assert "scene2.png is 96x64, its mask 5x5" in str(error.value)
    assert "Traceback" not in str(error.value)
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.parametrize("which", ["training", "validation"])
def test_classes_that_the_model_lacks_are_named_before_anything_is_written(
    root: Path, tmp_path: Path, which: str
) -> None:
    strange, known = strange_and_known(root, tmp_path)
    dataset, val = (strange, known) if which == "training" else (known, strange)
    with pytest.raises(DataError, match=f"{which} data .*the model has disc, square; the data also have ring"):
        train(tiny(), dataset, CONFIG, out=tmp_path / "run", val=val)
    assert not (tmp_path / "run").exists()


def strange_and_known(root: Path, tmp_path: Path) -> tuple[Dataset, Dataset]:
    folder = write_scenes(tmp_path / "strange", [scene()])
    rows = [{"name": "ring", "value": 1}, {"name": "disc", "value": 2}]
    (folder / "classes.json").write_text(json.dumps({"classes": rows, "background": [0]}))
    return open_dataset(folder), open_dataset(root, "train")


@pytest.mark.parametrize("name", ["iou", "sad", "per_class", "images"])
def test_unknown_score_to_monitor_is_refused_at_once(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"monitor={name} .*there are: miou, .*foreground_iou.*boundary_f"):
        run(root, tmp_path / "run", val=open_dataset(root, "val"), monitor=name)
    assert not (tmp_path / "run").exists()


# ---- patience ----


@pytest.fixture
def scores_in_order(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Let validations give these scores instead of real ones."""

    def give(values: list[float]) -> None:
        left = iter(values)
        names = ("miou", "foreground_iou", "dice", "boundary_f")
        monkeypatch.setattr(TRAIN, "merged", lambda *_: dict.fromkeys(names, next(left)) | {"per_image": []})
        monkeypatch.setattr(REPORT.Report, "predictions", lambda *_: None)

    return give


@pytest.mark.parametrize(
    ("scores", "patience", "stopped", "best"),
    [
        ([0.5, 0.4, 0.3, 0.9], 2, 3, 1),
        ([0.5, 0.4, 0.6, 0.9], 2, 4, 4),
        ([0.5, 0.5, 0.9, 0.9], 1, 2, 1),  # As good is not better.
        ([0.5, 0.4, 0.3, 0.2], 0, 4, 1),  # No patience asked for.
        ([float("nan"), 0.1, float("nan"), 0.2], 2, 4, 4),
    ],
)
def test_stops_when_nothing_gets_better(
    scores: list[float], patience: int, stopped: int, best: int, root: Path, tmp_path: Path, scores_in_order: Any
) -> None:
    scores_in_order(scores)
    settings = {"steps": 4, "validate_every": 1, "patience": patience, "batch_size": 1}
    val = open_dataset(root, "val")
    _, found = run(root, tmp_path, val=val, **settings)
    assert (found["step"], found["miou"]) == (best, scores[best - 1])
    assert (load(tmp_path / "last").card["step"], load(tmp_path / "best").card["step"]) == (stopped, best)
    assert [row["step"] for row in train_rows(tmp_path)] == list(range(1, stopped + 1))


@pytest.mark.parametrize("number", [3, 4])
def test_stopped_while_saving_the_best_is_the_best(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores_in_order: Any, number: int
) -> None:
    """Whichever of ``best`` and ``last`` is written first: the scores and the weights of the best stay one."""
    settings = {"steps": 3, "validate_every": 1, "batch_size": 2, "val": open_dataset(root, "val")}
    scores_in_order([0.5, 0.9])
    with monkeypatch.context() as patch:
        stop_at_call(patch, "replace", number)
        with pytest.raises(KeyboardInterrupt):
            run(root, tmp_path, **settings)
    scores_in_order([0.9, 0.1])
    _, best = run(root, tmp_path, **settings)
    assert (best["step"], best["miou"]) == (2, 0.9)
    assert load(tmp_path / "best").card["step"] == 2


# ---- what a step sees ----


def test_accumulated_batches_are_the_images_of_one_large_batch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    run(root, tmp_path / "large", steps=2, batch_size=4)
    run(root, tmp_path / "small", steps=2, batch_size=2, accumulate=2)
    names = [sorted(name for batch in parts for name in batch.names) for parts in seen]
    assert names[:2] == names[2:]
    assert [len(parts) for parts in seen] == [1, 1, 2, 2]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_accumulated_gradients_are_means(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    monkeypatch.setattr(type(tiny()), "loss", lambda self, batch: {"class": 2 * self.class_head.bias.sum() + 5})
    run(root, tmp_path, steps=1, accumulate=accumulate)
    (row,) = train_rows(tmp_path)
    assert row["gradient"] == pytest.approx(2 * 3**0.5)
    assert row["loss"] == row["class"] == pytest.approx(5, abs=2)


def test_every_image_is_seen_once_each_time_through() -> None:
    draws = [draw for batch in Batches(8, replace(CONFIG, batch_size=3, steps=16), 64) for draw in batch]
    assert [epoch for _, epoch, _ in draws] == sorted([0, 1, 2, 3, 4, 5] * 8)
    for epoch in range(6):
        assert sorted(index for index, e, _ in draws if e == epoch) == list(range(8))
    assert draws[:8] != [(index, 0, 64) for index, _, _ in draws[8:16]]


def test_batches_do_not_depend_on_where_a_run_starts() -> None:
    config = replace(CONFIG, accumulate=2, batch_size=3)
    assert list(Batches(8, config, 64))[4:] == list(Batches(8, config, 64, first=2))


def test_canvas_grows_with_the_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    run(root, tmp_path, steps=5, batch_size=2, image_side=96, start_side=32, grow_until=0.8)
    assert [parts[0].size for parts in seen] == [(s, s) for s in (32, 32, 64, 96, 96)]


def test_own_side_of_the_model_is_the_default(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    run(root, tmp_path, steps=1, batch_size=1, image_side=0)
    assert seen[0][0].size == (64, 64)


@pytest.mark.parametrize(("targets", "counts"), [("instance", [3, 3]), ("semantic", [1, 1])])
def test_targets_are_instances_or_classes(tmp_path: Path, targets: str, counts: list[int]) -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[5:20, 5:20], mask[5:20, 40:55], mask[40:55, 20:40] = 1, 2, 3
    for n in range(2):
        write_png(tmp_path / "images" / f"{n}.png", np.repeat(mask[..., None] * 80, 3, axis=2))
        write_png(tmp_path / "instances" / f"{n}.png", mask)
    config = replace(CONFIG, batch_size=2, targets=targets, scale=(1.0, 1.0))
    dataset = open_dataset(tmp_path)
    batch = next(training_batches(dataset, config, dataset.labels, 64, 0))
    assert [len(segments) for segments in batch.truth()] == counts


def test_several_folders_are_joined_by_class_name(root: Path, tmp_path: Path) -> None:
    strange, _ = strange_and_known(root, tmp_path)
    dataset = open_datasets([root, strange.root], "train")
    assert dataset.labels.names == ("disc", "square", "ring")
    train(tiny(dataset.labels), dataset, replace(CONFIG, steps=1), out=tmp_path / "run")
    assert load(tmp_path / "run").labels.names == ("disc", "square", "ring")


def test_classes_of_the_data_become_those_of_the_model(root: Path, tmp_path: Path) -> None:
    """A model with the classes in another order learns by name."""
    dataset, reverse = open_dataset(root, "train"), LabelMap.from_names(["square", "disc"])
    ours, theirs = (
        next(training_batches(dataset, CONFIG, labels, 64, 0)).truth() for labels in (dataset.labels, reverse)
    )
    for a, b in zip(ours, theirs, strict=True):
        # Disc 0 and square 1 change places; background stays 2 and void, read as the last entry, -1.
        assert torch.equal(torch.tensor([1, 0, 2, -1])[a.class_map(2)], b.class_map(2))


def test_jitter_leaves_truth_and_shape_alone(root: Path, tmp_path: Path) -> None:
    run_ = Run(tiny(), CONFIG, tmp_path)
    batch = next(training_batches(open_dataset(root, "train"), CONFIG, LABELS, 64, 0))
    torch.manual_seed(0)
    changed = run_._augmented(batch)
    assert changed.segments is not None
    assert changed.images.shape == batch.images.shape
    assert 0 <= float(changed.images.min()) <= float(changed.images.max()) <= 255
    assert (changed.images - batch.images).abs().mean() > 1


# ---- small parts ----


def test_rate_warms_up_and_falls_to_its_end() -> None:
    config = replace(CONFIG, steps=100, warmup=10, final_lr=0.1)
    rates = [rate_factor(step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert rate_factor(0, replace(config, warmup=0)) == 1


def test_every_group_of_parameters_follows_the_rate(tmp_path: Path) -> None:
    started = Run(tiny(), CONFIG, tmp_path)
    full = [group["lr"] for group in started.optimizer.param_groups]
    started._set_rates()
    assert [group["lr"] for group in started.optimizer.param_groups] == [rate / 2 for rate in full]
    assert len(set(full)) > 1


@pytest.mark.parametrize(("count", "expected"), [(0, 8), (3, 3), (8, 8), (99, 8)])
def test_validation_images_are_spread_over_the_set(root: Path, count: int, expected: int) -> None:
    dataset = open_dataset(root, "train")
    chosen = spread(dataset, count)
    assert len(chosen) == expected
    if isinstance(chosen, Subset):
        assert chosen.indices == [0, 2, 5]


def test_scenes_are_read_as_they_were_made(root: Path) -> None:
    for sample in open_dataset(root, "train"):
        assert (mask_values(sample) == mask_values(scene(seed=int(sample.name[5:])))).all()
