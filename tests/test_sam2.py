"""SAM 2: the contract of every system, parity with `transformers`, the multi-step loss, what learns."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Sam2Model

from benchmarks.sam2 import peer_config
from everymask.checkpoint import load, load_training, transfer
from everymask.datasets import open_dataset
from everymask.errors import UsageError
from everymask.metrics import SemanticIoU
from everymask.models import create_model
from everymask.models.sam2 import PRESETS, RECIPE, Config, Model, convert, published
from everymask.overfit import learn_step
from everymask.predict import fit, predict
from everymask.prompted import PromptedMasks, prompted
from everymask.prompts import PromptSettings, draw_prompts
from everymask.train import train
from everymask.transforms import Geometry, collate
from everymask.types import Batch, Letterbox, Prediction, Prompts, Sample, Segments
from tests.contract import ModelContract, batch_of, gradient_faults, segment_faults, total
from tests.scenes import LABELS, scene, write_dataset

TINY = PRESETS["tiny"]
CLOSE = {"rtol": 0.0, "atol": 1e-4}

# ---- parity with transformers ----


def spread(model: torch.nn.Module, seed: int = 0) -> None:
    """Random weights under which all parts matter: what goes in comes out at about the same size."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        embedding = "embed" in name or "token" in name
        size = 1.0 if embedding and p.ndim > 1 else 0.1 if p.ndim <= 1 else 1.2 / (p[0].numel() ** 0.5)
        if name.startswith("mask_decoder") and "proj_out" in name:
            size *= 0.05  # Mask logits of about 5, as real ones have, and IoUs that differ.
        torch.nn.init.normal_(p, mean=float(norm), std=size)


def own_normalization(model: Model) -> dict[str, Tensor]:
    """What `transformers` keeps with the preprocessor."""
    return {name: value for name, value in model.state_dict().items() if name.startswith("normalize.")}


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Sam2Model]:
    """Ours and theirs with the same weights."""
    torch.manual_seed(0)  # Positional embeddings are random too, and no parameters.
    peer = Sam2Model(peer_config(TINY)).eval()
    spread(peer)
    state = peer.state_dict()
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    peer.load_state_dict(state)
    ours = create_model("sam2", "tiny", classes=LABELS).eval()
    ours.load_state_dict(convert(peer.state_dict()) | own_normalization(ours))
    assert isinstance(ours, Model)
    return ours, peer


def photo(seed: int = 0, side: int = 64) -> Batch:
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    return Batch(images, (Letterbox((side, side), (side, side), (side, side)),))


def asked(points: list[list[tuple[float, float]]], labels: list[list[int]], masks: Tensor | None = None) -> Prompts:
    rows = [n for n, own in enumerate(points) for _ in own]
    xy = torch.tensor([p for own in points for p in own], dtype=torch.float32).reshape(-1, 2)
    return Prompts(
        xy, torch.tensor([k for own in labels for k in own], dtype=torch.int32), torch.tensor(rows).long(), masks=masks
    )


POINTS = [[(12.0, 20.0)], [(40.0, 31.0)], [(5.5, 60.0)]]
BOXES = [[(3.0, 4.0), (30.0, 50.0)], [(20.0, 10.0), (60.0, 22.0)]]


@pytest.mark.parametrize("case", ["point", "points", "box", "box and points", "mask", "point and mask"])
@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_parity(pair: tuple[Model, Sam2Model], case: str, multimask: bool) -> None:
    # In double precision: weights this far spread make 7e-4 of what float32 rounds off.
    ours, peer = (copy.deepcopy(model).double() for model in pair)
    batch = photo()
    torch.manual_seed(3)
    masks = torch.randn(2, 16, 16, dtype=torch.float64) * 4
    clicks, some = {"points": POINTS, "labels": [[1], [1], [0]]}, {"points": POINTS[:2], "labels": [[1], [0]]}
    twice = {"points": [p * 2 for p in POINTS], "labels": [[1, 0]] * 3}
    both = [b + p for b, p in zip(BOXES, POINTS, strict=False)]
    prompts, inputs = {
        "point": (asked(POINTS, [[1], [1], [0]]), clicks),
        "points": (asked([p * 3 for p in POINTS], [[1, 0, -1]] * 3), twice),
        "box": (asked(BOXES, [[2, 3]] * 2), {"boxes": BOXES}),
        "box and points": (asked(both, [[2, 3, 1], [2, 3, 0]]), {"boxes": BOXES, **some}),
        "mask": (asked([[], []], [[], []], masks), {"masks": masks}),
        "point and mask": (asked(POINTS[:2], [[1], [0]], masks), {**some, "masks": masks}),
    }[case]
    count = prompts.count
    answers = []
    for n in range(count) if "masks" in inputs else [slice(None)]:  # Theirs takes one mask for all objects.
        own = {k: v[n] if isinstance(n, slice) else v[n : n + 1] for k, v in inputs.items()}
        kinds = {
            "input_points": torch.tensor([own["points"]], dtype=torch.float64) if "points" in own else None,
            "input_labels": torch.tensor([own["labels"]]) if "labels" in own else None,
            "input_boxes": torch.tensor([own["boxes"]], dtype=torch.float64).flatten(2) if "boxes" in own else None,
            "input_masks": own["masks"][:, None] if "masks" in own else None,
        }
        answers.append(peer(ours.normalize(batch.images), multimask_output=multimask, **kinds))
    theirs = torch.cat([answer.pred_masks[0] for answer in answers])
    scores = torch.cat([answer.iou_scores[0] for answer in answers])
    presence = torch.cat([answer.object_score_logits[0, :, 0] for answer in answers])
    levels = ours.encode(batch)[0]
    found = ours.candidates(levels, prompts, torch.full((count,), multimask))
    torch.testing.assert_close(found.presence, presence, **CLOSE)
    if multimask:
        torch.testing.assert_close(found.logits[:, 1:], theirs, **CLOSE)
        torch.testing.assert_close(found.ious[:, 1:], scores, **CLOSE)
    else:
        logits, ious, _ = found.pick(found.trusted())
        torch.testing.assert_close(logits, theirs[:, 0], **CLOSE)
        torch.testing.assert_close(ious, scores[:, 0], **CLOSE)
    assert theirs.std() > 0.1
    assert theirs.flatten(2).std(2).min() > 0.01


def test_published_configuration() -> None:
    config = peer_config(TINY).to_dict()
    sizes = ("image_side", "width", "depths", "heads", "windows", "global_blocks", "dim", "decoder_heads", "hidden_dim")
    expected = Config(**{name: getattr(TINY, name) for name in sizes}, memory=False)
    assert published(config, {}) == expected
    assert published({"model_type": "maskformer"}, {}) is None


# ---- the contract of every system ----


PARTS = ("points", "labels", "objects")


def told(batch: Batch) -> Batch:
    """The batch with four prompted objects an image: the box of each segment, and a click on each."""
    prompts = []
    for truth in batch.truth():
        boxes = draw_prompts(truth, PromptSettings(("box",)))
        clicks = draw_prompts(truth, PromptSettings(("center",)))
        inside = dataclasses.replace(clicks, objects=clicks.objects + len(truth))
        points, labels, objects = (torch.cat([getattr(p, name) for p in (boxes, inside)]) for name in PARTS)
        prompts.append(Prompts(points, labels, objects, classes=truth.classes.repeat(2)))
    return dataclasses.replace(batch, prompts=tuple(prompts))


def segments_of(model: Model, sample: Sample, side: int, **options: Any) -> Segments:
    """The objects of a sample, each told by its box in the photo."""
    drawn = draw_prompts(sample.segments, PromptSettings(("box",)))
    drawn = dataclasses.replace(drawn, classes=sample.segments.classes)
    letterbox = model.letterbox(sample.segments.size, side)
    batch = fit(sample.image, letterbox, drawn)
    with torch.no_grad():
        return prompted(model.recall(batch), letterbox, model.labels, **options)


class TestSam2(ModelContract):
    """Forward passes are asked for the objects of the truth; the loss draws its own prompts."""

    system = "sam2"

    @pytest.fixture(scope="class")
    @classmethod
    def learnt(cls) -> Model:
        """Longer than others, as there are two things to learn: the scene, and what a prompt is. Stretched."""
        model, sample = cls.create(), scene()
        height, width = sample.segments.size
        view = Geometry((0, 0, width, height), model.letterbox((height, width), cls.side))
        optimizer = torch.optim.AdamW(model.param_groups(2e-3), weight_decay=0.0)
        for _ in range(140):
            learn_step(model, collate([sample], [view]), optimizer)
        return model.eval()

    @pytest.fixture(autouse=True)
    def _tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer = Model.answer

        def asked_for(model: Model, features: Any, batch: Batch) -> Prediction:
            wanting = batch.prompts is None and batch.segments is not None
            return answer(model, features, told(batch) if wanting else batch)

        monkeypatch.setattr(Model, "answer", asked_for)

    def test_loss_is_finite_and_reaches_every_trained_parameter(self, batch: Batch) -> None:
        """What a step reaches depends on its prompts: which of three candidates is best, where the errors are."""
        model = self.create().train()
        model.config = dataclasses.replace(model.config, clicks=3)
        for seed in range(12):
            torch.manual_seed(seed)
            terms = model.loss(batch)
            assert set(terms) == {"mask", "dice", "iou", "presence"}
            assert all(value.shape == () and torch.isfinite(value) for value in terms.values())
            total(terms).backward()
        assert gradient_faults(model) == []
        # Of the three candidates for a click, only the best learns.
        heads = model.decoder.mask_decoder.output_hypernetworks_mlps
        unseen = {n for n in (1, 2, 3) if not heads[n].proj_out.bias.grad.any()}
        assert len(unseen) < 3
        still = [name for name, p in model.named_parameters() if not p.grad.any()]
        assert [name for name in still if not any(f"hypernetworks_mlps.{n}." in name for n in unseen)] == []

    def test_void_and_padding_get_no_gradient(self, model: Model, batch: Batch) -> None:
        for cells in (False, True):
            criterion = dataclasses.replace(model.criterion, cells=cells)
            for b, truth in enumerate(batch.truth()):
                lesson = model.plan.lesson(batch, b)
                logits = torch.randn(2, 3, 24, 24, requires_grad=True)
                ious, presence = torch.rand(2, 3), torch.randn(2)
                total(criterion(logits, ious, presence, lesson, torch.arange(2))).backward()
                seen = (logits.grad != 0).any(0).any(0)
                # A cell is seen if interpolation takes it for any known pixel.
                known = torch.nn.functional.pad((~truth.void).float(), (0, 96 - truth.size[1], 0, 96 - truth.size[0]))
                near = torch.nn.functional.max_pool2d(known[None, None], 12, 4, 4)[0, 0][:24, :24] > 0
                assert not seen[~near].any()
                assert seen.float().mean() > 0.2

    def test_one_image_is_learnt(self, learnt: Model) -> None:
        sample = scene()
        found = segments_of(learnt, sample, self.side)
        count = len(LABELS)
        assert SemanticIoU(count).update(found.class_map(count), sample.segments.class_map(count))["miou"] > 0.9

    def test_every_task_gives_consistent_segments(self, learnt: Model, module: ModuleType) -> None:
        sample = scene(101, 151)
        for overlap in ("score", "layers"):
            segments = segments_of(learnt, sample, self.side, overlap=overlap)
            assert segment_faults(segments, (101, 151)) == []
            assert {s.label for s in segments} == set(LABELS.names)
        found = predict(learnt, sample.image, task="automatic", side=self.side, grid=4, iou=0.3, stability=0.3).segments
        assert [fault for fault in segment_faults(found, (101, 151)) if fault != "class table"] == []
        assert {s.label for s in found} == {"object"}

    @pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (33, 47), (3, 400)])
    def test_photos_of_any_size(self, learnt: Model, module: ModuleType, size: tuple[int, int]) -> None:
        photo = np.full((*size, 3), (220, 60, 40), np.uint8)
        box = (0, 0, size[1] - 1, size[0] - 1)
        for options in (
            {"boxes": [box]},
            {"points": [(0, 0)]},
            {"task": "automatic", "grid": 3, "iou": 0.0, "stability": 0.0},
        ):
            segments = predict(learnt, photo, **options).segments
            assert [fault for fault in segment_faults(segments, size) if fault != "class table"] == []


# ---- prompts ----


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(pair: tuple[Model, Sam2Model]) -> None:
    """Objects of one, two and three points together give what each gives alone."""
    ours, _ = pair
    levels = ours.encode(photo())[0]
    points = [[(12.0, 20.0)], [(40.0, 31.0), (3.0, 4.0)], [(5.0, 60.0), (9.0, 9.0), (20.0, 30.0)], [(8.0, 8.0)]]
    labels = [[1], [2, 3], [1, 0, 1], [0]]
    together = ours.candidates(levels, asked(points, labels))
    assert together.ambiguous.tolist() == [True, False, False, True]
    for n in range(4):
        alone = ours.candidates(levels, asked(points[n : n + 1], labels[n : n + 1]))
        for name in ("logits", "ious", "presence", "tokens"):
            torch.testing.assert_close(getattr(together, name)[n], getattr(alone, name)[0], **CLOSE)


@torch.no_grad()
def test_multimask_goes_by_real_points(pair: tuple[Model, Sam2Model]) -> None:
    """Padding does not count: with -1 beside it, a single click is still ambiguous."""
    ours, _ = pair
    levels = ours.encode(photo())[0]
    padded = ours.candidates(levels, asked([[(12.0, 20.0), (0.0, 0.0), (0.0, 0.0)]], [[1, -1, -1]]))
    plain = ours.candidates(levels, asked([[(12.0, 20.0)]], [[1]]))
    assert padded.ambiguous.tolist() == plain.ambiguous.tolist() == [True]
    torch.testing.assert_close(padded.logits, plain.logits)
    wrong = ours.candidates(levels, asked([[(12.0, 20.0), (0.0, 0.0)]], [[1, 0]]))
    assert wrong.ambiguous.tolist() == [False]
    assert (wrong.logits - plain.logits).abs().max() > 0.01


def test_points_lie_where_the_processor_puts_them() -> None:
    """The processor of `transformers` scales coordinates; ours are pixel centres, half a canvas pixel less apart."""
    letterbox = create_model("sam2", "tiny", classes=LABELS, image_side=1024).letterbox((480, 640))
    assert letterbox.content == letterbox.canvas == (1024, 1024)
    points = torch.tensor([[0.0, 0.0], [639.0, 479.0], [100.0, 200.0]])
    theirs = points * torch.tensor([1024 / 640, 1024 / 480])
    difference = letterbox.to_canvas(points) - theirs
    torch.testing.assert_close(difference, torch.tensor([0.3, 0.5667]).expand(3, 2), rtol=0, atol=1e-3)


def test_another_prompt_costs_no_encoding() -> None:
    model = create_model("sam2", "tiny", classes=LABELS).eval()
    sample = scene()
    for box in ((2, 2, 30, 40), (40, 10, 90, 60)):
        predict(model, sample.image, boxes=[box])
    predict(model, sample.image, points=[(40, 30)], labels=[1])
    assert model.features.encoded == 1


@torch.no_grad()
def test_when_the_other_masks_take_over(pair: tuple[Model, Sam2Model]) -> None:
    """Published weights infer as SAM 2.1 does; where the other three masks have learnt little, the first stays."""
    ours, _ = pair
    told_by_box = dataclasses.replace(photo(), prompts=(asked(BOXES, [[2, 3]] * 2),))
    chosen = {}
    for stable in (0.0, 1.0):
        ours.config = dataclasses.replace(ours.config, stable=stable)
        masks = ours(told_by_box).masks
        assert isinstance(masks, PromptedMasks)
        chosen[stable] = masks.chosen[0].tolist()
    ours.config = TINY
    assert chosen[0.0] == [0, 0]
    assert min(chosen[1.0]) > 0
    assert Config().stable == 0.98


# ---- what learns ----


def learning(train: str) -> dict[str, int]:
    """Trained parameters by part."""
    model = create_model("sam2", "tiny", classes=LABELS, train=train)
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith("decoder") else name.split(".")[0]
        part = "lora" if ".lora_" in name else "features" if "conv_s" in name else part
        counts[part] = counts.get(part, 0) + parameter.requires_grad * parameter.numel()
    return {part: count for part, count in counts.items() if count}


def test_one_option_says_what_learns() -> None:
    assert set(learning("decoder")) == {"decoder.mask_decoder"}
    assert set(learning("decoder+prompts")) == {"decoder.mask_decoder", "decoder.prompt_encoder", "no_memory"}
    assert set(learning("lora")) == {"decoder.mask_decoder", "decoder.prompt_encoder", "no_memory", "lora"}
    every = {"encoder", "features", "decoder.mask_decoder", "decoder.prompt_encoder", "no_memory"}
    assert set(learning("full")) == every


@pytest.mark.parametrize("train", ["decoder", "decoder+prompts", "lora", "full"])
def test_a_step_moves_what_learns_alone(train: str) -> None:
    torch.manual_seed(0)
    model = create_model("sam2", "tiny", classes=LABELS, train=train).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.param_groups(1e-2))
    for _ in range(2):  # A LoRA's second matrix begins at zero, so the first moves one step later.
        learn_step(model, batch_of([scene()], 64), optimizer)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved <= trained
    assert len(moved) > 0.8 * len(trained)


def test_lora_begins_as_the_plain_model() -> None:
    torch.manual_seed(0)
    plain = create_model("sam2", "tiny", classes=LABELS).eval()
    adapted = create_model("sam2", "tiny", classes=LABELS, train="lora").eval()
    missing = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert {name.rpartition(".")[2] for name in missing.missing_keys} == {"lora_up", "lora_down"}
    assert missing.unexpected_keys == []
    with torch.no_grad():
        for ours, theirs in zip(adapted.encode(photo())[0], plain.encode(photo())[0], strict=True):
            assert torch.equal(ours, theirs)


def test_rates_fall_towards_the_image() -> None:
    model = create_model("sam2", "tiny", classes=LABELS, encoder_rate=0.6, layer_decay=0.9)
    rates = {id(p): group["lr"] for group in model.param_groups(1.0) for p in group["params"]}
    found = {name: round(rates[id(p)], 4) for name, p in model.named_parameters()}
    assert found["decoder.mask_decoder.iou_token.weight"] == 1
    assert found["encoder.neck.convs.0.weight"] == 0.6
    blocks = [found[f"encoder.backbone.blocks.{n}.attn.proj.weight"] for n in range(5)]
    assert blocks == [round(0.6 * 0.9 ** (5 - n), 4) for n in range(5)]
    assert found["encoder.backbone.pos_embed"] == round(0.6 * 0.9**6, 4)


# ---- features on disk ----


def test_features_are_kept_while_the_encoder_does_not_learn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("sam2", "tiny", classes=LABELS, train="decoder").train()
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    losses = []
    for turn in range(3):
        if turn == 1:
            model.keep_features(tmp_path / "features")
        torch.manual_seed(1)
        losses.append({name: value.item() for name, value in model.loss(batch).items()})
    assert model.store.encoded == 2
    assert losses[1] == losses[2]  # Rounded once, the same every time.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    alone = batch_of([scene(90, 40, seed=1)], 96)  # Other neighbours, another canvas: the same photo.
    model.loss(alone)
    assert model.store.encoded == 2
    files = sorted((tmp_path / "features").glob("*/*.safetensors"))
    assert len(files) == 2
    files[0].write_bytes(b"damaged")
    model.loss(batch)
    assert model.store.encoded == 3
    with torch.no_grad():
        next(model.encoder.parameters()).add_(0.1)
    model.loss(batch)
    assert model.store.encoded == 5
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_what_is_frozen_by_hand_is_frozen(tmp_path: Path) -> None:
    """`freeze=encoder` leaves the convolutions that prepare features: these learn, so nothing is kept."""
    model = create_model("sam2", "tiny", classes=LABELS).train()
    model.freeze(["encoder"])
    model.keep_features(tmp_path)
    total(model.loss(batch_of([scene()], 64))).backward()
    assert list(tmp_path.iterdir()) == []
    assert model.decoder.mask_decoder.conv_s0.weight.grad.any()
    assert next(model.encoder.parameters()).grad is None


def test_an_encoder_that_learns_is_never_read_from_disk(tmp_path: Path) -> None:
    model = create_model("sam2", "tiny", classes=LABELS).train()
    model.keep_features(tmp_path)
    model.loss(batch_of([scene()], 64))
    assert list(tmp_path.iterdir()) == []


def test_training_encodes_every_view_once(tmp_path: Path) -> None:
    data = open_dataset(write_dataset(tmp_path / "data", train=3, val=1), "train")
    config = RECIPE.with_settings(
        ["steps=6", "batch_size=1", "views=1", "color=0", "flip=0", "workers=0", "validate_every=3"]
    )
    torch.manual_seed(0)
    model = create_model("sam2", "tiny", classes=data.labels, train="decoder")
    scores = train(model, data, config, out=tmp_path / "run", val=open_dataset(tmp_path / "data", "val"))
    assert model.store.encoded == 3
    assert {"dice", "iou", "step"} <= set(scores)
    assert (tmp_path / "run" / "best" / "model.json").is_file()
    with pytest.raises(UsageError, match="views that repeat have colours that do"):
        RECIPE.with_settings(["views=1"])


def test_a_checkpoint_every_epoch(tmp_path: Path) -> None:
    """All that a run is, and no masks: weights, averages and optimizer as tensors, the rest as JSON."""
    data = open_dataset(write_dataset(tmp_path / "data", train=6, val=1), "train")
    config = RECIPE.with_settings(["steps=7", "batch_size=2", "validate_every=0", "keep=9", "workers=0"])
    val = open_dataset(tmp_path / "data", "val")
    train(create_model("sam2", "tiny", classes=data.labels, clicks=0), data, config, out=tmp_path / "run", val=val)
    states = sorted((tmp_path / "run").glob("**/training.json"))
    found = {(state := json.loads(path.read_text()))["step"]: state for path in states if not path.parent.is_symlink()}
    assert {step: state["epoch"] for step, state in found.items()} == {3: 1, 6: 2, 7: 2}
    last = found[7]
    assert last["loss"] > 0
    assert last["seconds"] >= found[3]["seconds"] > 0
    assert {"dice", "step"} <= set(last["best"])
    assert [row["name"] for row in last["model"]["classes"]["labels"]] == list(data.labels.names)
    assert last["config"]["seed"] == config.seed  # With the step it decides every draw and the order of samples.
    tensors, _ = load_training(next(path.parent for path in states if '"step": 7' in path.read_text()))
    parts = {name.partition(".")[0] for name in tensors}
    assert parts == {"model", "average", "optimizer", "averaged_steps"}


# ---- published weights ----


def test_a_published_folder_loads_as_it_is(pair: tuple[Model, Sam2Model], tmp_path: Path) -> None:
    ours, peer = pair
    peer.save_pretrained(tmp_path / "sam2")
    loaded = load(tmp_path / "sam2")
    assert isinstance(loaded, Model)
    assert (loaded.labels.names, loaded.config.memory) == (("object",), False)
    assert loaded.config.dim == ours.config.dim
    with torch.no_grad():
        for a, b in zip(loaded.encode(photo())[0], ours.encode(photo())[0], strict=True):
            torch.testing.assert_close(a, b, **CLOSE)
    fresh = create_model("sam2", "tiny", classes=["tumor", "stroma"], train="lora")
    names = transfer(fresh, tmp_path / "sam2")
    assert all("lora" in name or name.startswith("class ") for name in names)
