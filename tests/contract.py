"""What every system must do. A model's test file inherits it all::

    class TestHybrid(ModelContract):
        system = "hybrid"

`tests/test_contract.py` fails for a file of `everymask.models` without such a class, and shows that checks can fail.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from everymask.checkpoint import config_from_json, load, save
from everymask.metrics import SemanticIoU
from everymask.model import SegmentationModel
from everymask.models import create_model, model_module, model_name
from everymask.overfit import learn_step
from everymask.predict import predict
from everymask.recipe import TrainConfig
from everymask.transforms import Geometry, collate
from everymask.types import VOID, Batch, Prediction, Sample, Segments
from tests.scenes import LABELS, scene

CLOSE = {"rtol": 0.0, "atol": 1e-4}


def batch_of(samples: Sequence[Sample], side: int) -> Batch:
    """Whole photos on one canvas, as validation sees them."""
    return collate(samples, [Geometry.fit((s.image.shape[0], s.image.shape[1]), side) for s in samples])


def grown(sample: Sample, side: int, bottom: int, right: int) -> Batch:
    """One photo on a canvas larger than it needs, with bright noise where padding is."""
    geometry = Geometry.fit((sample.image.shape[0], sample.image.shape[1]), side)
    height, width = geometry.letterbox.canvas
    box = dataclasses.replace(geometry.letterbox, canvas=(height + bottom, width + right))
    batch = collate([sample], [dataclasses.replace(geometry, letterbox=box)])
    batch.images[:, :, height:], batch.images[:, :, :, width:] = 255, 200
    return batch


def with_truth(batch: Batch, *truth: Segments) -> Batch:
    return dataclasses.replace(batch, segments=truth)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def everything(prediction: Prediction, b: int, size: tuple[int, int]) -> list[Tensor]:
    """Class logits and all full-size mask logits of one image, of every layer."""
    layers = [prediction, *prediction.aux]
    logits = [layer.class_logits[b] for layer in layers]
    return logits + [layer.masks.decode(b, torch.arange(len(logits[0])), size) for layer in layers]


class FreeMasks:
    """A mask decoder whose logits are a free parameter [B, Q, H, W], to see which pixels a loss looks at."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def sample(self, points: Tensor) -> Tensor:
        x, y = points.long().unbind(-1)
        return torch.stack([maps[:, ys, xs] for maps, ys, xs in zip(self.logits, y, x, strict=True)])

    def decode(self, b: int, queries: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.logits[b, queries]

    def positions(self, b: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return tuple(torch.arange(length).float() for length in size)


class ModelContract:
    """Tests of one system at preset "tiny" on small synthetic scenes. What a system needs otherwise, it overrides."""

    system: str
    side = 96
    steps = 60
    """In which one scene is learnt by heart."""
    never_reached: Sequence[str] = ()
    """Parameters to which, by the published design, no gradient can come."""

    # ---- what the tests work on ----

    @pytest.fixture(scope="class")
    @classmethod
    def module(cls) -> ModuleType:
        return model_module(cls.system)

    @pytest.fixture
    def model(self) -> SegmentationModel:
        """Fresh weights, in eval mode."""
        return self.create().eval()

    @pytest.fixture(scope="class")
    @classmethod
    def learnt(cls) -> SegmentationModel:
        """A model that has learnt one scene by heart; tests leave it as it is."""
        model = cls.create()
        optimizer = torch.optim.AdamW(model.param_groups(2e-3), weight_decay=0.0)
        for _ in range(cls.steps):
            learn_step(model, batch_of([scene()], cls.side), optimizer)
        return model.eval()

    @pytest.fixture
    def batch(self) -> Batch:
        """Two photos of different size and aspect."""
        return batch_of([scene(64, 96), scene(90, 40, seed=1)], self.side)

    @classmethod
    def create(cls) -> SegmentationModel:
        torch.manual_seed(0)
        return create_model(cls.system, "tiny", classes=LABELS)

    # ---- the file ----

    def test_the_file_defines_what_it_must(self, module: ModuleType) -> None:
        assert "tiny" in module.PRESETS
        assert module.Config.__dataclass_params__.frozen
        assert isinstance(module.RECIPE, TrainConfig)
        assert module.TASKS
        assert all(map(callable, module.TASKS.values()))
        assert issubclass(module.Model, SegmentationModel)
        assert model_name(self.create()) == self.system

    def test_configurations_survive_json(self, module: ModuleType) -> None:
        for config in module.PRESETS.values():
            text = json.dumps(dataclasses.asdict(config))
            assert config_from_json(module, json.loads(text)) == config

    def test_convert_leaves_own_weights_alone(self, module: ModuleType, model: SegmentationModel) -> None:
        converted = module.convert(model.state_dict())
        assert converted.keys() == model.state_dict().keys()

    def test_param_groups_hold_each_trained_parameter_once(self, model: SegmentationModel) -> None:
        groups = model.param_groups(1e-3, 0.1)
        found = [id(p) for group in groups for p in group["params"]]
        assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        assert all(0 < group["lr"] <= 1e-3 for group in groups)
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert not [n for n, p in model.named_parameters() if p.ndim <= 1 and id(p) in decayed]

    # ---- forward ----

    def test_shapes(self, model: SegmentationModel, batch: Batch) -> None:
        prediction = model(batch)
        B, Q = prediction.class_logits.shape[:2]
        assert (B, prediction.class_logits.shape[2]) == (2, len(LABELS) + 1)
        for layer in (prediction, *prediction.aux):
            assert layer.class_logits.shape == prediction.class_logits.shape
            assert layer.masks.sample(torch.zeros(B, 7, 2)).shape == (B, Q, 7)
        for b, box in enumerate(batch.letterboxes):
            assert prediction.masks.decode(b, torch.tensor([1, 0, Q - 1]), box.source).shape == (3, *box.source)
            assert prediction.masks.decode(b, torch.tensor([], dtype=torch.long), box.source).shape == (0, *box.source)
            assert prediction.masks.decode(b, torch.tensor([0])).ndim == 3

    def test_sampled_masks_are_decoded_masks(self, model: SegmentationModel, batch: Batch) -> None:
        """Training and inference must see the same mask, up to the border of the content."""
        prediction = model(batch)
        masks, queries = prediction.masks, torch.arange(prediction.class_logits.shape[1])[:3]
        for b, box in enumerate(batch.letterboxes):
            decoded = masks.decode(b, queries, box.content)
            y, x = torch.meshgrid(*map(torch.arange, box.content), indexing="ij")
            points = torch.stack([x, y], dim=-1).reshape(1, -1, 2).float().expand(len(batch), -1, -1)
            sampled = masks.sample(points)[b, :3].reshape(decoded.shape)
            torch.testing.assert_close(sampled, decoded, **CLOSE)

    def test_a_batch_gives_what_single_images_give(self, model: SegmentationModel) -> None:
        samples = [scene(64, 96), scene(90, 40, seed=1), scene(33, 71, seed=2)]
        together = model(batch_of(samples, self.side))
        for b, sample in enumerate(samples):
            alone = everything(model(batch_of([sample], self.side)), 0, sample.image.shape[:2])
            torch.testing.assert_close(everything(together, b, sample.image.shape[:2]), alone, **CLOSE)

    def test_neighbours_of_the_same_size_change_nothing(self, model: SegmentationModel) -> None:
        first, second, third = (scene(64, 96, seed) for seed in range(3))
        one, two = (model(batch_of([first, other], self.side)) for other in (second, third))
        torch.testing.assert_close(everything(one, 0, (64, 96)), everything(two, 0, (64, 96)), **CLOSE)

    @pytest.mark.parametrize(("bottom", "right"), [(32, 0), (0, 32), (64, 64)])
    def test_padding_changes_nothing(self, model: SegmentationModel, bottom: int, right: int) -> None:
        sample = scene(50, 80)
        fitted = everything(model(batch_of([sample], self.side)), 0, (50, 80))
        padded = everything(model(grown(sample, self.side, bottom, right)), 0, (50, 80))
        torch.testing.assert_close(padded, fitted, **CLOSE)

    def test_training_mode_changes_batch_statistics_and_dropout_alone(
        self, model: SegmentationModel, batch: Batch
    ) -> None:
        expected = everything(model(batch), 0, (64, 96))
        model.train()
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                part.eval()
        torch.testing.assert_close(everything(model(batch), 0, (64, 96)), expected, **CLOSE)

    # ---- loss ----

    def test_loss_is_finite_and_reaches_every_trained_parameter(self, batch: Batch) -> None:
        model = self.create().train()
        terms = model.loss(batch)
        assert all(value.shape == () and torch.isfinite(value) for value in terms.values())
        total(terms).backward()
        assert gradient_faults(model) == []
        still = {name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()}
        assert still <= set(self.never_reached)

    @pytest.mark.parametrize("value", [0, VOID])
    def test_images_without_a_segment_train(self, batch: Batch, value: int) -> None:
        empty = [Segments.build(torch.full(batch.size, value), [], labels=LABELS) for _ in range(2)]
        model = self.create().train()
        total(model.loss(with_truth(batch, *empty))).backward()
        assert gradient_faults(model) == []

    def test_more_segments_than_queries_train(self, batch: Batch) -> None:
        height, width = batch.size
        count = height // 8 * (width // 8)
        ids = torch.arange(1, count + 1).reshape(height // 8, width // 8)
        ids = ids.repeat_interleave(8, 0).repeat_interleave(8, 1)
        model = self.create().train()
        assert count > model(batch).class_logits.shape[1]
        crowded = Segments.build(ids, [n % len(LABELS) for n in range(count)], labels=LABELS)
        total(model.loss(with_truth(batch, crowded, crowded))).backward()
        assert gradient_faults(model) == []

    def test_void_and_padding_get_no_gradient(self, model: SegmentationModel, batch: Batch) -> None:
        with torch.no_grad():
            found = model(batch)
        logits = torch.randn(*found.class_logits.shape[:2], *batch.size, requires_grad=True)
        free = Prediction(found.class_logits, FreeMasks(logits), boxes=found.boxes)  # type: ignore[arg-type]
        model.forward = lambda _: free  # type: ignore[assignment]
        for _ in range(4):
            total(model.loss(batch)).backward()
        # Interpolation at pixel centres gives their neighbours a millionth.
        least = 1e-5 * float(logits.grad.abs().max())
        for b, truth in enumerate(batch.truth()):
            seen = (logits.grad[b].abs() > least).any(0)
            assert not seen[truth.void].any()
            assert seen[~truth.void].float().mean() > 0.2

    def test_a_crowd_counts_as_void(self, model: SegmentationModel, batch: Batch) -> None:
        region = torch.zeros(batch.size, dtype=torch.bool)
        region[10:30, 10:30] = True
        losses = []
        for value, crowd in ((VOID, []), (3, [True])):
            truth = batch.truth()[0]
            ids = truth.id_map.masked_fill(region, value)
            classes = [*truth.classes.tolist(), *[0] * len(crowd)]
            changed = Segments.build(ids, classes, labels=LABELS, crowd=[False, False, *crowd])
            torch.manual_seed(1)
            losses.append(total(model.loss(with_truth(batch, changed, batch.truth()[1]))))
        torch.testing.assert_close(losses[0], losses[1])

    def test_one_image_is_learnt(self, learnt: SegmentationModel) -> None:
        sample = scene()
        found = predict(learnt, sample.image, task="semantic", side=self.side).segments
        count = len(LABELS)
        assert SemanticIoU(count).update(found.class_map(count), sample.segments.class_map(count))["miou"] > 0.9

    # ---- from photo to result ----

    def test_every_task_gives_consistent_segments(self, learnt: SegmentationModel, module: ModuleType) -> None:
        sample = scene(101, 151)
        for task in module.TASKS:
            segments = predict(learnt, sample.image, task=task, side=self.side).segments
            assert segment_faults(segments, (101, 151)) == []
            assert {s.label for s in segments if s.area} == set(LABELS.names), task

    @pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (33, 47), (3, 400)])
    def test_photos_of_any_size(self, learnt: SegmentationModel, module: ModuleType, size: tuple[int, int]) -> None:
        photo = np.full((*size, 3), (220, 60, 40), np.uint8)
        for task in module.TASKS:
            assert segment_faults(predict(learnt, photo, task=task).segments, size) == []

    # ---- checkpoints ----

    def test_saved_and_loaded_it_is_the_same_model(self, learnt: SegmentationModel, tmp_path: Path) -> None:
        loaded = load(save(learnt, tmp_path / "model"))
        assert (loaded.config, loaded.labels, loaded.training) == (learnt.config, learnt.labels, False)
        torch.testing.assert_close(outputs(loaded), outputs(learnt), rtol=0, atol=0)

    def test_half_precision_files_give_nearly_the_same(self, learnt: SegmentationModel, tmp_path: Path) -> None:
        loaded = load(save(learnt, tmp_path / "model", half=True))
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        for ours, theirs in zip(outputs(loaded), outputs(learnt), strict=True):
            assert (ours.sigmoid() - theirs.sigmoid()).abs().max() < 0.05


def gradient_faults(model: nn.Module) -> list[str]:
    """Trained parameters whose gradient is missing or not finite."""
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, grad in trained if grad is None or not bool(torch.isfinite(grad).all())]


def segment_faults(segments: Segments, size: tuple[int, int]) -> list[str]:
    """What is wrong with predicted segments of a photo of `size`."""
    ids, rows = set(torch.unique(segments.id_map).tolist()), len(segments)
    scores = torch.ones(0) if segments.scores is None else segments.scores
    checks: dict[str, Any] = {
        "size": segments.size == size,
        "ids beyond the table": ids <= set(range(rows + 1)),
        "rows without a pixel": segments.alpha is not None or ids >= set(range(1, rows + 1)),
        "class table": segments.labels == LABELS,
        "columns": len(segments.classes) == len(segments.is_thing) == len(segments.is_crowd) == len(scores) == rows,
        "scores": bool(((scores >= 0) & (scores <= 1)).all()),
        "matte": segments.alpha is None or (segments.alpha.shape == size and segments.alpha.dtype == torch.uint8),
    }
    return [name for name, right in checks.items() if not right]


@torch.no_grad()
def outputs(model: SegmentationModel) -> list[Tensor]:
    """All that a model says about one scene, in the memory order that `load` gives it."""
    own = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return everything(own(batch_of([scene()], 96)), 0, (64, 96))
