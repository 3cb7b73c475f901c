"""Checkpoints: written whole or not at all, read strictly, and never executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from everymask import checkpoint
from everymask.checkpoint import (
    bundled_models,
    load,
    load_training,
    model_json,
    read_card,
    recover_folder,
    replace_folder,
    save,
    save_training,
    transfer,
)
from everymask.errors import CheckpointError, ModelError, WriteError
from everymask.labels import LabelMap
from everymask.model import SegmentationModel
from everymask.models import create_model
from everymask.models.hybrid import PRESETS, Model
from tests.scenes import LABELS

TINY = asdict(PRESETS["tiny"])


@pytest.fixture(scope="session")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return create_model("hybrid", "tiny", classes=LABELS)


@pytest.fixture(scope="session")
def saved(model: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; tests change copies of it."""
    return save(model, tmp_path_factory.mktemp("saved") / "model", extra={"licence": "CC0-1.0"})


@pytest.fixture
def whole(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def folder(whole: Path) -> Path:
    """Without its manifest, which would tell every change before anything else could."""
    (whole / "manifest.json").unlink()
    return whole


def change_card(folder: Path, **entries: Any) -> None:
    """Other entries in ``model.json``; None drops one."""
    card = json.loads((folder / "model.json").read_text()) | entries
    (folder / "model.json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Other weights, with no checksum to tell."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    change_card(folder, sha256=None)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- there and back ----


def test_loaded_is_what_was_saved(model: SegmentationModel, saved: Path) -> None:
    loaded = load(saved)
    assert (loaded.config, loaded.labels, loaded.training) == (model.config, LABELS, False)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], t) for name, t in model.state_dict().items())


def test_card_says_what_people_should_know(model: SegmentationModel, saved: Path) -> None:
    card = load(saved).card
    assert (card["model"], card["preset"], card["schema"], card["licence"]) == ("hybrid", "tiny", 1, "CC0-1.0")
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert [row["name"] for row in card["classes"]["labels"]] == ["disc", "square"]


def test_description_is_the_same_before_and_after_json(model: SegmentationModel) -> None:
    assert json.loads(json.dumps(model_json(model))) == model_json(model)


def test_saving_twice_gives_the_same_bytes(model: SegmentationModel, whole: Path, saved: Path) -> None:
    before = listing(whole)
    save(model, whole, extra={"licence": "CC0-1.0"})
    assert listing(whole) == before
    assert oct(whole.stat().st_mode) == oct(saved.stat().st_mode)


def test_half_precision_halves_the_matrices(model: SegmentationModel, saved: Path, tmp_path: Path) -> None:
    half = save(model, tmp_path / "half", half=True)
    stored = load_file(half / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point() and t.ndim > 1} == {torch.float16}
    assert {t.dtype for t in stored.values() if t.is_floating_point() and t.ndim == 1} == {torch.float32}
    assert {t.dtype for t in load(half).parameters()} == {torch.float32}
    sizes = [(p / "model.safetensors").stat().st_size for p in (half, saved)]
    assert sizes[0] < 0.65 * sizes[1]


def test_training_state_there_and_back(folder: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "steps": torch.tensor(7)}
    progress = {
        "step": 7,
        "validated": 6,
        "best": {"miou": 0.25},
        "waited": 1,
        "config": {"lr": 1e-3},
        "model": {"schema": 1},
    }
    save_training(folder, tensors, progress)
    found, read = load_training(folder)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert progress.items() <= read.items()


@pytest.mark.parametrize("inside", ["", "best", "last"])
def test_run_folders_load_too(saved: Path, tmp_path: Path, inside: str) -> None:
    shutil.copytree(saved, tmp_path / "run" / inside)
    assert load(tmp_path / "run").labels == LABELS


# ---- all or nothing ----


@pytest.mark.parametrize("broken", ["save_file", "write_json", "file_hash"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_the_old_one(
    model: SegmentationModel, folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    before = listing(folder.parent)
    monkeypatch.setattr(checkpoint, broken, fail)
    with pytest.raises(WriteError if isinstance(error, OSError) else KeyboardInterrupt):
        save(model, folder)
    assert listing(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("failing", [1, 2])
def test_failure_while_renaming_leaves_the_old_one(
    model: SegmentationModel, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls: list[int] = []

    def rename(source: Any, target: Any) -> None:
        calls.append(1)
        if len(calls) == failing:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    real, before = os.rename, listing(folder.parent)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(WriteError, match=r"cannot write a checkpoint: .*copy .*Permission denied.*Check the folder"):
        save(model, folder)
    assert listing(folder.parent) == before


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_killed_while_saving_the_folder_is_found_again(folder: Path, renamed: int) -> None:
    """What is on disk after a kill that no handler saw: before, between and after the two renames."""
    place, before = folder.with_name(f".{folder.name}-abcdefgh"), listing(folder)
    (place / "new").mkdir(parents=True)
    (place / "new" / "model.json").write_text("new")
    if renamed >= 1:
        folder.rename(place / "old")
    if renamed == 2:
        (place / "new").rename(folder)
    else:
        assert load(folder).labels == LABELS
    recover_folder(folder)
    assert listing(folder) == ({"model.json": b"new"} if renamed == 2 else before)
    assert [p.name for p in folder.parent.iterdir()] == ["copy"]


def test_what_a_killed_process_left_of_another_folder_stays(model: SegmentationModel, folder: Path) -> None:
    """``copy-large`` was being replaced; saving ``copy`` neither deletes what is left of it nor takes it."""
    left = folder.with_name(f".{folder.name}-large-abcdefgh") / "old"
    left.mkdir(parents=True)
    (left / "model.json").write_text("precious")
    save(model, folder)
    folder.rename(folder.with_name("moved"))
    recover_folder(folder)
    assert (left / "model.json").read_text() == "precious"
    assert not folder.exists()


@pytest.mark.parametrize("name", ["a[1]", "a*", "a.b+"])
def test_any_name_is_found_again(whole: Path, name: str) -> None:
    place = whole.with_name(f".{name}-abcdefgh")
    place.mkdir()
    whole.rename(place / "old")
    recover_folder(whole.with_name(name))
    assert [path.name for path in whole.parent.iterdir()] == [name]
    assert load(whole.with_name(name)).labels == LABELS


def test_a_folder_of_other_things_is_never_replaced(model: SegmentationModel, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    for target in (tmp_path / "photos", tmp_path / "photos" / "cat.jpg"):
        with pytest.raises(WriteError, match="is no checkpoint"):
            save(model, target)
    assert listing(tmp_path) == {"photos/cat.jpg": b"precious"}


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    replace_folder(tmp_path, lambda folder: (folder / "model.json").touch())
    assert set(listing(tmp_path)) == {"model.json", "manifest.json"}


# ---- damage ----


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut off, or with a few bytes changed, anywhere or near the start, where the header is."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(rng.choice((16, 4096, len(data))) % (len(data) + 1))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def refuses(read: Callable[[Path], Any], folder: Path) -> bool:
    """Whether `read` raises an error of ours; any other error is a fault."""
    try:
        read(folder)
    except (CheckpointError, ModelError):
        return True
    return False


@pytest.mark.parametrize("checksum", [True, False])
def test_damaged_weights_are_refused(folder: Path, checksum: bool) -> None:
    """With the checksum every change is found; without it, nothing but our errors may come of one."""
    path = folder / "model.safetensors"
    if not checksum:
        change_card(folder, sha256=None)
    data, refused = path.read_bytes(), 0
    for seed in range(100):
        path.write_bytes(mutated(data, random.Random(seed)))
        refused += refuses(load, folder)
    assert refused == 100 if checksum else refused > 50


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "manifest.json"])
def test_every_changed_byte_is_found(whole: Path, name: str) -> None:
    data, rng = (whole / name).read_bytes(), random.Random(0)
    for _ in range(40):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (whole / name).write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"the checkpoint is damaged: .*(was changed|is damaged)"):
            load(whole)
    (whole / name).write_bytes(data)
    load(whole)


def test_damaged_cards_are_refused_or_harmless(folder: Path) -> None:
    path = folder / "model.json"
    data, refused = path.read_bytes(), 0
    for seed in range(100):
        path.write_bytes(mutated(data, random.Random(seed)))
        refused += refuses(load, folder)
    assert refused > 50


@pytest.mark.parametrize("name", ["training.safetensors", "training.json"])
def test_damaged_training_state_is_refused(folder: Path, name: str) -> None:
    save_training(
        folder, {"a": torch.arange(9.0)}, dict.fromkeys(("step", "validated", "best", "waited", "config", "model"), 0)
    )
    data, refused = (folder / name).read_bytes(), 0
    for seed in range(50):
        (folder / name).write_bytes(mutated(data, random.Random(seed)))
        refused += refuses(load_training, folder)
    assert refused == 50 if name == "training.safetensors" else refused > 25


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"x"', "{}", '{"schema": "1"}', '{"schema": 1}', "\xff"])
def test_cards_that_are_none(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"schema": 2}, r"a newer version wrote this checkpoint: .*schema 2, .*reads up to 1.*Upgrade"),
        ({"classes": None}, r"model\.json is incomplete: .*lacks classes"),
        ({"model": None, "config": None}, r"lacks config, model"),
        ({"model": "unet"}, r"unknown model: unet \(there are: .*hybrid"),
        ({"model": "../evil"}, r"unknown model"),
        ({"model": ["hybrid"]}, r"unknown model"),
        ({"config": {"depth": 3}}, r"describes no model: .*copy .*depth"),
        ({"config": [1]}, r"describes no model"),
        ({"config": TINY | {"dim": -1}}, r"describes no model"),
        ({"config": TINY | {"layers": 10**9}}, r"describes no model.*it describes a model that is far larger than"),
        ({"config": TINY | {"queries": 10**8}}, r"describes no model"),
        ({"sha256": 5}, r"cannot read the weights: .*the checksum is \w+\.\.\., not 5\.\.\."),
        ({"classes": []}, r"at least one class"),
        ({"classes": [{"name": "disc", "color": [0, 0, 0]}] * 2}, r"repeated: disc"),
        ({"classes": [{"name": "disc"}]}, r"describes no model: .*color"),
        ({"classes": 5}, r"describes no model"),
    ],
)
def test_cards_that_do_not_fit(folder: Path, entries: dict[str, Any], message: str) -> None:
    change_card(folder, **entries)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="no model found" if name == "model.json" else "cannot read the weights"):
        load(folder)


def test_exchanged_weights_are_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: t * 2 for name, t in state.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot read the weights: .*model\.safetensors \(the checksum is"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("class_head.bias"), r"do not belong to this model: .*copy \(1: missing class_head\.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1: unknown extra"),
        (lambda s: s.update({"class_head.bias": torch.zeros(9)}), r"1: class_head\.bias is \(9,\), not \(3,\)"),
        (lambda s: s.clear(), r"\d+: missing .*; missing .*; \.\.\."),
    ],
)
def test_weights_that_do_not_fit_are_listed(folder: Path, change: Any, message: str) -> None:
    change_weights(folder, change)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_other_configuration_lists_shapes(folder: Path) -> None:
    change_card(folder, config=read_card(folder)["config"] | {"mask_dim": 8})
    with pytest.raises(ModelError, match=r"query_proj\.weight is \(16, 32\), not \(8, 32\)"):
        load(folder)


@pytest.mark.parametrize("name", ["nonsense", "", "no/such/folder", "\0"])
def test_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no model found.*Bundled: {', '.join(bundled_models()) or 'none'}; or"):
        load(name)


# ---- never executed ----


class Canary:
    """Its pickle creates a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [pickle.dumps, "torch"])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path, write: Any, checksum: bool) -> None:
    target = folder / "model.safetensors"
    if write == "torch":
        torch.save({"weights": Canary(tmp_path / "dead")}, target)
    else:
        target.write_bytes(write(Canary(tmp_path / "dead")))
    if not checksum:
        change_card(folder, sha256=None)
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        load(folder)
    assert not (tmp_path / "dead").exists()
    pickle.loads(pickle.dumps(Canary(tmp_path / "dead")))
    assert (tmp_path / "dead").exists()  # The canary sings.


# ---- fine-tuning: weights of one model for another ----


def create(*classes: str, **changes: Any) -> SegmentationModel:
    torch.manual_seed(1)
    return Model(replace(PRESETS["tiny"], **changes), LabelMap.from_names(classes))


def test_weights_are_taken_over_and_classes_matched_by_name(saved: Path, model: SegmentationModel) -> None:
    target = create("ring", *reversed(LABELS.names))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    assert transfer(target, saved) == ["class ring"]
    state, given = target.state_dict(), model.state_dict()
    for name in ("class_head.weight", "class_head.bias"):
        assert torch.equal(state[name][0], before[name][0])
        assert torch.equal(state[name][1:3], given[name][:2].flip(0))
        assert torch.equal(state[name][3], given[name][2])
    others = [name for name in given if not name.startswith("class_head")]
    assert all(torch.equal(state[name], given[name]) for name in others)


def test_a_deeper_encoder_keeps_its_own_new_blocks(saved: Path) -> None:
    target = create(*LABELS.names, blocks=(1, 1, 1, 2))
    fresh = transfer(target, saved)
    assert fresh
    assert all(name.startswith("encoder.stages.3.blocks.1.") for name in fresh)


def test_weights_of_other_sizes_are_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"the weights do not belong to this model: .* is \(\d"):
        transfer(create(*LABELS.names, dim=64), saved)


def test_weights_of_another_system_are_refused(saved: Path) -> None:
    other = create_model("maskformer", "tiny", classes=LABELS)
    with pytest.raises(ModelError) as error:
        transfer(other, saved)
    text = f"weights of another system: {saved} (the weights are of hybrid, the model is maskformer)."
    assert str(error.value) == text
