"""What stops or disturbs a training is named, with its files, and leaves weights and checkpoints as they were."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from everymask import checkpoint
from everymask.datasets import Dataset, open_dataset
from everymask.datasets.loader import training_batches
from everymask.datasets.loader_watch import LoaderWatch
from everymask.errors import DataError, EverymaskError, TrainingError, UsageError
from everymask.model import SegmentationModel
from everymask.models import create_model
from everymask.recipe import TrainConfig
from everymask.report import read_log
from everymask.run_record import data_hash
from everymask.train import train
from everymask.training_run import Run
from everymask.types import Batch, Sample
from tests.scenes import LABELS, TABLE, scene, write_dataset, write_scenes
from tests.spoil import PLACES

CONFIG = TrainConfig(
    steps=4, batch_size=4, image_side=64, lr=1e-3, warmup=1, validate_every=2, log_every=1, workers=0, threads=1
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 scenes to train on."""
    return write_dataset(tmp_path_factory.mktemp("guarded"), train=8, val=0)


def tiny() -> SegmentationModel:
    torch.manual_seed(0)
    return create_model("hybrid", "tiny", classes=LABELS)


def run(dataset: Dataset, out: Path, model: SegmentationModel | None = None, **changes: Any) -> SegmentationModel:
    model = model or tiny()
    train(model, dataset, replace(CONFIG, **changes), out=out)
    return model


def failure(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "failure.json").read_text())
    return found


# ---- numbers that are not finite ----


@pytest.mark.parametrize("spoil", PLACES.values(), ids=PLACES)
def test_a_number_that_is_not_finite_stops_before_the_step(
    spoil: Callable[..., None], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, real = tiny(), Run.train_step
    before: dict[str, torch.Tensor] = {}

    def train_step(self: Run, parts: list[Batch]) -> dict[str, float]:
        if self.step == 2:
            spoil(self.model, monkeypatch)
            before.update({name: value.clone() for name, value in self.model.state_dict().items()})
        return real(self, parts)

    monkeypatch.setattr(Run, "train_step", train_step)
    with pytest.raises(TrainingError, match=r"not finite|finite costs"):
        run(open_dataset(root, "train"), tmp_path, model)
    learnt = {name for name, _ in model.named_parameters()}
    assert all(torch.equal(before[name], model.state_dict()[name]) or before[name].isnan().any() for name in learnt)
    assert checkpoint.load(tmp_path / "last").card["step"] == 2
    noted = failure(tmp_path)
    assert (noted["step"], noted["rank"], noted["kind"]) == (2, 0, "TrainingError")
    assert "images scene" in noted["why"]


def test_a_run_that_goes_well_afterwards_has_no_failure(root: Path, tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text("{}")
    run(open_dataset(root, "train"), tmp_path)
    assert not (tmp_path / "failure.json").exists()


# ---- loader processes ----


class Deadly(Dataset):
    """Scenes of which one does something else than being read."""

    def __init__(self, base: Dataset, name: str, deed: Callable[[], None]) -> None:
        self.base, self.deed = base, deed
        self.root, self.split, self.labels, self.names = base.root, base.split, base.labels, base.names
        self.index = base.names.index(name)

    def __getitem__(self, index: int) -> Sample:
        if index == self.index:
            self.deed()
        return self.base[index]

    def files(self, index: int) -> tuple[Path, ...]:
        return self.base.files(index)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


@pytest.mark.parametrize(("deed", "what"), [(die, "has died"), (hang, "hangs")])
def test_a_loader_process_that_is_lost_is_named_with_its_file(
    deed: Callable[[], None], what: str, root: Path, tmp_path: Path
) -> None:
    data = Deadly(open_dataset(root, "train"), "scene3", deed)
    with pytest.raises(TrainingError, match=rf"a loader process {what}: .*scene3\.png .*DataLoader"):
        run(data, tmp_path, workers=1, loader_timeout=3.0)
    assert "scene3.png" in failure(tmp_path)["where"]


def test_it_travels_to_a_loader_process_of_any_kind(root: Path, tmp_path: Path) -> None:
    """Where processes are not forked, everything is pickled."""
    with (tmp_path / "log").open("w") as file:
        watch = LoaderWatch(open_dataset(root), 1, on_skip=lambda name, error: print(name, file=file))
        assert ForkingPickler.dumps(watch)


def test_other_errors_stay_what_they_are(root: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), LoaderWatch(open_dataset(root), 1).watched():
        raise RuntimeError("something else")


# ---- samples that cannot be read ----


@pytest.fixture
def damaged(tmp_path: Path) -> Dataset:
    """6 scenes, of which two are cut off."""
    root = write_scenes(tmp_path / "data", [scene(seed=n) for n in range(6)])
    (root / "classes.json").write_text(json.dumps(TABLE))
    for n in (1, 4):
        photo = root / "images" / f"scene{n}.png"
        photo.write_bytes(photo.read_bytes()[:400])
    return open_dataset(root)


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_cannot_be_read_are_left_out_and_listed(damaged: Dataset, tmp_path: Path, workers: int) -> None:
    seen = run(damaged, tmp_path / "run", skip=2, workers=workers)
    rows = [row for row in read_log(tmp_path / "run") if row["kind"] == "skipped"]
    assert sorted(row["sample"] for row in rows) == ["scene1", "scene4"]
    assert all("scene" in row["error"] and "png" in row["error"] for row in rows)
    again = run(damaged, tmp_path / "again", skip=2, workers=1 - workers)
    assert all(torch.equal(a, b) for a, b in zip(seen.parameters(), again.parameters(), strict=True))


def test_too_many_of_them_stop_the_training(damaged: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too many samples .*2 samples, skip=1: .*raise the setting skip"):
        run(damaged, tmp_path / "run", skip=1)
    with pytest.raises(EverymaskError, match="scene"):
        run(damaged, tmp_path / "none", skip=0)


# ---- memory ----


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: RuntimeError) -> list[int]:
    """Let the loss of more than `most` images fail; returns the sizes that were tried."""
    tried: list[int] = []
    real = Run._losses

    def losses(self: Run, batch: Batch) -> Any:
        tried.append(len(batch))
        if len(batch) > most:
            raise error
        return real(self, batch)

    monkeypatch.setattr(Run, "_losses", losses)
    return tried


ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
ON_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [ON_GPU, ON_CPU])
def test_want_of_memory_says_what_to_lower(
    error: RuntimeError, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 2, error)
    with pytest.raises(TrainingError, match=r"out of memory: step 0 \(4 images in 1.*Halve batch_size and double"):
        run(open_dataset(root, "train"), tmp_path)


def test_batches_are_cut_and_stay_so(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images a step, and a run that is resumed goes on with the pieces that it had."""
    tried = short_of_memory(monkeypatch, 2, ON_GPU)
    data = open_dataset(root, "train")
    run(data, tmp_path / "run", split=True, steps=2)
    assert tried == [4, 2, 2, 2, 2]
    train(tiny(), data, replace(CONFIG, split=True), out=tmp_path / "run", allow_change=True)
    assert tried[5:] == [2] * 4
    assert [row["step"] for row in read_log(tmp_path / "run") if row["kind"] == "train"] == [1, 2, 3, 4]
    short_of_memory(monkeypatch, 0, ON_GPU)
    with pytest.raises(TrainingError, match="4 images in 4"):
        run(data, tmp_path / "hopeless", split=True)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_pieces_of_a_batch_are_the_batch(count: int) -> None:

    data = ScenesInMemory()
    (batch,) = training_batches(data, replace(CONFIG, steps=1), LABELS, 64, 0)
    pieces = batch.split(count)
    assert len(pieces) == min(count, 4)
    assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
    for name in ("letterboxes", "names", "seeds"):
        assert sum((getattr(piece, name) for piece in pieces), ()) == getattr(batch, name)
    assert [s for piece in pieces for s in piece.truth()] == list(batch.truth())


class ScenesInMemory(Dataset):
    """Four scenes."""

    def __init__(self) -> None:
        self.root, self.split, self.labels, self.names = Path("memory"), "", LABELS, [f"scene{n}" for n in range(4)]

    def __getitem__(self, index: int) -> Sample:
        return scene(seed=range(4)[index])

    def files(self, index: int) -> tuple[Path, ...]:
        return ()


# ---- what a run was made with ----


def test_every_start_is_recorded(root: Path, tmp_path: Path) -> None:
    data = open_dataset(root, "train")
    run(data, tmp_path, steps=2)
    train(tiny(), data, CONFIG, out=tmp_path, allow_change=True)
    first, second = map(json.loads, (tmp_path / "started.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 2)
    assert (first["configuration"]["steps"], second["configuration"]["steps"]) == (2, 4)
    assert first["data"] == {"train": {"samples": 8, "sha256": data_hash(data)}} == second["data"]
    assert first["versions"]["torch"] == torch.__version__
    assert first["machine"]["processes"] == 1
    assert set(first["git"] or {"commit": "", "changed": ""}) == {"commit", "changed"}


def test_the_hash_of_data_tells_other_data_apart(root: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", train=8, val=0)
    assert data_hash(open_dataset(other, "train")) == data_hash(open_dataset(root, "train"))
    photo = next((other / "train" / "images").iterdir())
    photo.write_bytes(photo.read_bytes() + b" ")
    assert data_hash(open_dataset(other, "train")) != data_hash(open_dataset(root, "train"))


@pytest.mark.parametrize(("setting", "text"), [("skip=-1", "skip"), ("loader_timeout=-2", "loader_timeout")])
def test_settings_out_of_range(setting: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        CONFIG.with_settings([setting])
