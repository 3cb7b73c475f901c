"""DETR: the contract, the numbers of `transformers` with the same weights, and masks only for queries asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from everymask.checkpoint import load
from everymask.cli import main
from everymask.errors import CheckpointError, ModelError, UsageError
from everymask.layers.map_masks import BoxMasks
from everymask.layers.mask_head import MaskHead
from everymask.model import SegmentationModel
from everymask.models.detr import PRESETS, Config, Model, convert, fit_sides
from everymask.predict import predict
from everymask.types import VOID, Letterbox, Prediction, Segments
from tests.contract import ModelContract, batch_of, gradient_faults, segment_faults, total, with_truth
from tests.detr_reference import (
    NAMES,
    SIZES,
    dilate,
    original_state,
    photos,
    pixel_values,
    reference,
    save_as_timm,
)
from tests.scenes import LABELS, scene, write_dataset


class TestDetr(ModelContract):
    system = "detr"
    steps = 100
    # Queries enter the first layer as zeros: there, all of them have the same value to attend to.
    never_reached = tuple(
        f"decoder.0.self_attention.{name}"
        for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight")
    )


class TestDilated(TestDetr):
    """DC5, and the mask head recomputed in training."""

    test_one_image_is_learnt = None
    test_every_task_gives_consistent_segments = None
    steps = 1

    @classmethod
    def create(cls) -> SegmentationModel:
        torch.manual_seed(0)
        return Model(replace(PRESETS["tiny"], dilated=True, recompute=True), LABELS)


# --- published weights -----------------------------------------------------------------------------------------------


@torch.no_grad()
def check_parity(theirs: Any, ours: SegmentationModel) -> None:
    """A padded batch of photos of four sizes against each photo alone."""
    batch, seen = photos(), {}
    if hasattr(theirs, "bbox_attention"):
        theirs.bbox_attention.register_forward_hook(lambda module, inputs, output: seen.update(attention=output[0]))
    together, every = ours(batch), torch.arange(12)
    for b in range(len(SIZES)):
        expected = theirs(pixel_values(batch, b))
        assert relative(together.class_logits[b], expected.logits[0]) < 1e-4
        assert relative(together.boxes[b], expected.pred_boxes[0]) < 1e-4
        if seen:
            assert relative(together.masks.attention(b, every), seen["attention"]) < 1e-4
            assert relative(together.masks.decode(b, every), expected.pred_masks[0]) < 1e-4


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("masks", [True, False])
def test_numbers_are_those_of_transformers(masks: bool, tmp_path: Path) -> None:
    theirs = reference(masks)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.config.head == ("masks" if masks else "boxes")
    check_parity(theirs, ours)


def test_a_backbone_of_timm_and_dc5(tmp_path: Path) -> None:
    theirs = reference(backbone={})  # ResNet-50.
    dilate(theirs)
    ours = load(save_as_timm(theirs, tmp_path, backbone="resnet50", dilation=True))
    assert ours.config == replace(
        PRESETS["r50-dc5"], dim=64, hidden_dim=96, encoder_layers=2, decoder_layers=2, queries=12
    )
    check_parity(theirs, ours)


@pytest.mark.parametrize("masks", [True, False])
def test_a_file_in_the_original_layout(masks: bool, tmp_path: Path) -> None:
    theirs = reference(masks)
    path = tmp_path / "detr-small-dc0.pth"
    torch.save({"model": original_state(theirs)}, path)
    ours = load(path)
    assert (ours.config.dilated, ours.config.depths, ours.config.queries) == (False, (1, 2, 1, 1), 12)
    check_parity(theirs, ours)


def test_the_command_that_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "detr.pth", tmp_path / "ours"
    torch.save(original_state(reference()), path)
    main(["convert", "detr", str(path), str(out)])
    assert capsys.readouterr().out == f"{out}: detr, 5 things and 0 classes of stuff\n"
    one, other = load(path), load(out)
    assert (one.config, one.labels) == (other.config, other.labels)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    with pytest.raises(SystemExit):
        main(["convert", "hybrid", str(path), str(out)])
    assert "these are weights of another system" in capsys.readouterr().err


def test_the_file_name_says_that_it_is_dilated(tmp_path: Path) -> None:
    torch.save(original_state(reference()), tmp_path / "detr-r50-dc5-00aa.pth")
    assert load(tmp_path / "detr-r50-dc5-00aa.pth").config.dilated


def test_names_in_memory_are_known_too() -> None:
    theirs = reference()
    ours = Model(Config(**small_config()), LABELS)
    ours.class_head = nn.Linear(64, len(NAMES) + 1)
    missing, unknown = ours.load_state_dict(convert(dict(theirs.state_dict())), strict=False)
    assert (missing, unknown) == (["normalize.mean", "normalize.std"], [])


def small_config() -> dict[str, Any]:
    sizes = {"width": 8, "depths": (1, 2, 1, 1), "dim": 64, "hidden_dim": 96, "queries": 12}
    return sizes | {"encoder_layers": 2, "decoder_layers": 2}


def test_things_and_stuff_come_from_the_names(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path)
    labels = load(tmp_path).labels
    assert labels.names == ("N/A", "person", "dog", "sky-other-merged", "N/A (2)")
    assert [label.is_thing for label in labels] == [True, True, True, False, True]
    assert labels[3].source_id == 187


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"position_embedding_type": "learned"}, "ValueError: position_embedding_type is learned, not sine"),
        ({"backbone_config": None, "backbone": "resnet34"}, "KeyError: 'resnet34'"),
        ({"decoder_attention_heads": 4}, "ValueError: encoder and decoder have different numbers of heads"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    reference().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    assert str(error.value) == f"cannot read the configuration: {path} ({text})."


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"model": {"conv.weight": torch.zeros(1)}}, "no system here reads this checkpoint: {path} (its tensors"),
        ({"model": Path}, "cannot read the weights: {path} (UnpicklingError"),
        ([1], "cannot read the weights: {path} (AttributeError"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: Any, text: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(error.value).startswith(text.format(path=path))


def test_a_file_without_its_last_tensor_is_refused(tmp_path: Path) -> None:
    state = original_state(reference())
    del state["mask_head.out_lay.bias"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ModelError, match=r"1: missing mask_head.output.bias\)"):
        load(tmp_path / "short.pth")


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((426, 640), (800, 1201)),
        ((200, 1000), (267, 1333)),
        ((1, 5000), (1, 1333)),
        ((7, 7), (800, 800)),
    ],
)
def test_photos_are_fitted_as_published(source: tuple[int, int], content: tuple[int, int]) -> None:
    box = fit_sides(source, Config())
    assert box.content == content
    assert all(length % 32 == 0 and 0 <= length - own < 32 for length, own in zip(box.canvas, content, strict=True))


# --- masks only for those who are asked ------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each call of a mask head got."""
    found: list[int] = []

    def counted(self: MaskHead, attention: Tensor, shares: Any) -> Tensor:
        found.append(len(attention))
        return real(self, attention, shares)

    real = MaskHead.forward
    monkeypatch.setattr(MaskHead, "forward", counted)
    return found


def fixed(model: SegmentationModel, sure: list[int]) -> Callable[[Any], Prediction]:
    """`forward` with some queries sure of their class, in turn."""
    forward = model.forward

    def changed(batch: Any) -> Prediction:
        prediction = forward(batch)
        logits = torch.zeros_like(prediction.class_logits)
        logits[..., -1] = 9.0
        for n, query in enumerate(sure):
            logits[:, query, n % len(LABELS)] = 20.0
        return replace(prediction, class_logits=logits)

    return changed


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_only_kept_queries_enter_the_mask_head(task: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = TestDetr.create().eval()
    monkeypatch.setattr(model, "forward", fixed(model, [1, 4, 6]))
    predict(model, scene().image, task=task)
    assert calls == [3]


def test_only_matched_queries_enter_the_mask_head_in_training(calls: list[int]) -> None:
    model = TestDetr.create().train()
    model.loss(batch_of([scene(64, 96), scene(90, 40, seed=1, shapes=(1,))], 96))
    assert calls == [2, 1]


def test_no_query_enters_the_mask_head_for_nothing(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = TestDetr.create().eval()
    monkeypatch.setattr(model, "forward", fixed(model, []))
    for task in ("panoptic", "instance", "semantic"):
        assert segment_faults(predict(model, scene().image, task=task).segments, (64, 96)) == []
    assert calls == []


def test_the_budget_cuts_queries_into_parts(calls: list[int]) -> None:
    model = TestDetr.create().eval()
    batch = batch_of([scene(64, 96)], 96)
    masks = model(batch).masks
    assert masks.source.budget == 64
    whole = masks.decode(0, torch.arange(8))
    small = replace(masks.source, budget=0)
    parts = type(masks)(masks.queries, small, masks.letterboxes).decode(0, torch.arange(8))
    assert calls == [8] + [1] * 8
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_what_does_not_depend_on_queries_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    real = MaskHead.image_shares
    monkeypatch.setattr(MaskHead, "image_shares", lambda self, *maps: found.append(1) or real(self, *maps))
    prediction = TestDetr.create().eval()(batch_of([scene(64, 96), scene(90, 40, seed=1)], 96))
    for masks in (prediction.masks, prediction.aux[0].masks):
        for b in (0, 1, 0):
            masks.decode(b, torch.arange(3))
    assert len(found) == 2


def test_recomputed_gradients_are_the_same() -> None:
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Model(replace(PRESETS["tiny"], recompute=recompute), LABELS).train()
        torch.manual_seed(1)
        total(model.loss(batch)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# --- the detector alone ----------------------------------------------------------------------------------------------


def test_boxes_are_masks_of_a_detector() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0]]])
    box = Letterbox((40, 80), (40, 80), (64, 96))
    masks = BoxMasks(boxes, (box,)).decode(0, torch.arange(4), box.content) > 0
    expected = torch.zeros(4, 40, 80, dtype=torch.bool)
    expected[0, 15:25, 20:60] = True
    expected[1, :20, :40] = True  # Half of it lies outside the image. The third does altogether, the fourth is empty.
    assert (masks == expected).float().mean((1, 2)).min() > 0.99
    assert not masks[2:].any()


def test_a_detector_trains_and_gives_segments() -> None:
    torch.manual_seed(0)
    model = Model(replace(PRESETS["tiny"], head="boxes"), LABELS).train()
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    terms = model.loss(batch)
    assert set(terms) == {"class", "box", "giou"}
    total(terms).backward()
    assert gradient_faults(model) == []
    model.eval()
    model.forward = fixed(model, [0, 5])  # type: ignore[method-assign]
    for task in ("panoptic", "instance", "semantic"):
        segments = predict(model, scene().image, task=task).segments
        assert segment_faults(segments, (64, 96)) == []


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (5, 9), (31, 31)])
@pytest.mark.parametrize("head", ["masks", "boxes"])
def test_small_and_narrow_photos(size: tuple[int, int], head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Model(replace(PRESETS["tiny"], head=head, shortest_side=48, image_side=96), LABELS).eval()
    monkeypatch.setattr(model, "forward", fixed(model, [1, 2]))
    for task in ("panoptic", "instance", "semantic"):
        for side in (None, 32):
            found = predict(model, np.zeros((*size, 3), np.uint8), task=task, side=side).segments
            assert segment_faults(found, size) == []


@pytest.mark.parametrize("value", [-0.1, 1.1])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_thresholds_out_of_range(value: float, task: str) -> None:
    with pytest.raises(UsageError) as error:
        predict(TestDetr.create().eval(), scene().image, task=task, threshold=value)
    assert str(error.value) == f"a threshold must lie in 0..1: threshold (got {value})."


@pytest.mark.parametrize("compat", ["default", "original"])
def test_no_query_is_no_segment(compat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original makes one up, of class 1."""
    model = TestDetr.create().eval()
    monkeypatch.setattr(model, "forward", fixed(model, []))
    segments = predict(model, scene().image, task="panoptic", compat=compat).segments
    assert len(segments) == 0
    assert not segments.id_map.any()


def test_all_void_and_segments_out_of_view_train() -> None:
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    void = Segments.build(torch.full(batch.size, VOID), [0, 1], labels=LABELS)
    pixel = torch.zeros(batch.size, dtype=torch.int32)
    pixel[3, 5] = 2
    model = TestDetr.create().train()
    terms = model.loss(with_truth(batch, void, Segments.build(pixel, [0, 1, 0], labels=LABELS)))
    total(terms).backward()
    assert all(map(torch.isfinite, terms.values()))
    assert gradient_faults(model) == []


# --- training --------------------------------------------------------------------------------------------------------


def test_published_encoders_learn_slowly_and_not_at_their_start() -> None:
    model = Model(replace(PRESETS["tiny"], norm="frozen"), LABELS)
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".0.")[0] for name in still} == {"encoder.stem", "encoder.stages"}
    assert not [name for name in still if name.startswith("encoder.stages.1")]
    rates = {id(p): group["lr"] for group in model.param_groups(1e-4) for p in group["params"]}
    assert rates[id(model.class_head.weight)] == 1e-4
    assert rates[id(model.encoder.stages[1][0].reduce[0].weight)] == pytest.approx(1e-5)


def test_a_detector_grows_a_mask_head_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two stages: boxes first; then their detector, frozen, with a mask head."""
    data = str(write_dataset(tmp_path / "data", train=4, val=0))
    small = [f"--set={setting}" for setting in ("steps=2", "batch_size=2", "workers=0", "validate_every=2")]
    first, second = str(tmp_path / "boxes"), str(tmp_path / "masks")
    main(["train", "detr", data, "--out", first, "--preset", "tiny", *small, "--config", "head=boxes"])
    freeze = ["--weights", first, "--freeze", "detector"]
    main(["train", "detr", data, "--out", second, "--preset", "tiny", *small, *freeze])
    assert "new: attention_map.q_proj.weight" in capsys.readouterr().out
    boxes, masks = load(first).state_dict(), load(second).state_dict()
    assert not [name for name, value in boxes.items() if not torch.equal(value, masks[name])]
    assert (load(first).config.head, load(second).config.head) == ("boxes", "masks")
