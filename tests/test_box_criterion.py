"""The loss of detectors against `transformers`, its blind spots, and its divisor over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

from everymask.criterion import BoxCriterion, BoxTruth, logits_at, mean_over_processes
from everymask.errors import TrainingError
from everymask.layers.masks import QueryPixelMasks
from everymask.types import VOID, Batch, Letterbox, Prediction, Segments

CLASSES, QUERIES = 5, 12
SIZE = (24, 32)
BOX = Letterbox(SIZE, SIZE, SIZE)


def stripes(count: int, generator: torch.Generator) -> Segments:
    """Segments in vertical stripes of random width, classes at random."""
    edges = torch.randperm(SIZE[1] - 1, generator=generator)[: count - 1].sort().values + 1
    columns = (torch.arange(SIZE[1])[:, None] >= edges).sum(1) + 1
    return Segments.build(columns.expand(SIZE).int(), torch.randint(CLASSES, (count,), generator=generator))


def random_prediction(batch: int, generator: torch.Generator, layers: int = 1) -> Prediction:
    """Random logits, boxes and masks at the size of the canvas."""
    made = []
    for _ in range(layers):
        masks = QueryPixelMasks(
            torch.eye(QUERIES).expand(batch, -1, -1),
            torch.randn(batch, QUERIES, *SIZE, generator=generator),
            (BOX,) * batch,
            SIZE,
        )
        logits = torch.randn(batch, QUERIES, CLASSES + 1, generator=generator)
        made.append(Prediction(logits, masks, boxes=torch.rand(batch, QUERIES, 4, generator=generator)))
    return Prediction(made[-1].class_logits, made[-1].masks, boxes=made[-1].boxes, aux=tuple(made[:-1]))


def their_losses(prediction: Prediction, truth: list[Segments]) -> dict[str, Tensor]:
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    reference = ImageLoss(matcher, CLASSES, eos_coef=0.1, losses=["labels", "boxes", "masks"])
    outputs = {"logits": prediction.class_logits, "pred_boxes": prediction.boxes, "pred_masks": prediction.masks.pixels}
    outputs["auxiliary_outputs"] = [{"logits": p.class_logits, "pred_boxes": p.boxes} for p in prediction.aux]
    targets = [
        {
            "class_labels": segments.classes,
            "boxes": BoxTruth.of(segments, BOX).boxes,
            "masks": torch.stack([s.mask for s in segments]),
        }
        for segments in truth
    ]
    return reference(outputs, targets)


@pytest.mark.parametrize("seed", range(4))
def test_exact_losses_are_those_of_transformers(seed: int) -> None:
    """Every pixel, no void: class and boxes of each layer, masks of the last."""
    generator = torch.Generator().manual_seed(seed)
    truth = [stripes(count, generator) for count in (5, 3)]
    prediction = random_prediction(2, generator, layers=3)
    expected = their_losses(prediction, truth)
    found = BoxCriterion(points=0)(prediction, Batch(torch.zeros(2, 3, *SIZE), (BOX, BOX), tuple(truth)))
    for name, theirs, weight in (("class", "loss_ce", 1), ("box", "loss_bbox", 5), ("giou", "loss_giou", 2)):
        layers = [expected[theirs + suffix] for suffix in ("", "_0", "_1")]
        assert float(found[name]) == pytest.approx(weight * float(sum(layers)), rel=1e-5)
    assert float(found["mask"]) == pytest.approx(float(expected["loss_mask"]), rel=1e-5)
    assert float(found["dice"]) == pytest.approx(float(expected["loss_dice"]), rel=1e-5)


def test_points_estimate_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = (stripes(4, generator),)
    prediction, batch = random_prediction(1, generator), Batch(torch.zeros(1, 3, *SIZE), (BOX,), truth)
    torch.manual_seed(0)
    exact, sampled = (BoxCriterion(points=points, oversample=1)(prediction, batch) for points in (0, 20000))
    for name, value in exact.items():
        assert float(sampled[name]) == pytest.approx(float(value), rel=0.03)


def test_crowds_void_and_segments_without_a_pixel_are_not_learnt() -> None:
    ids = torch.full(SIZE, VOID, dtype=torch.int32)
    ids[:8, :8], ids[:8, 8:16] = 1, 2
    truth = BoxTruth.of(Segments.build(ids, [3, 4, 0], crowd=[False, True, False]), BOX)
    assert (truth.rows.tolist(), truth.classes.tolist()) == ([0], [3])
    torch.testing.assert_close(truth.boxes, torch.tensor([[4 / 32, 4 / 24, 8 / 32, 8 / 24]]))


def test_boxes_are_relative_to_the_content_not_to_the_canvas() -> None:
    ids = torch.full((32, 64), VOID, dtype=torch.int32)
    ids[:20, :40] = 1
    truth = BoxTruth.of(Segments.build(ids, [0]), Letterbox((200, 400), (20, 40), (32, 64)))
    torch.testing.assert_close(truth.boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


def test_logits_of_some_queries_are_those_of_sampling_all() -> None:
    generator = torch.Generator().manual_seed(0)
    box = Letterbox((45, 60), (45, 60), (64, 64))
    masks = QueryPixelMasks(
        torch.eye(QUERIES)[None], torch.randn(1, QUERIES, 16, 16, generator=generator), (box,), box.canvas
    )
    points = (torch.rand(500, 2, generator=generator) * torch.tensor([60, 45])).floor()
    some = torch.tensor([7, 2])
    torch.testing.assert_close(logits_at(masks, 0, some, points, box), masks.sample(points[None])[0, some])


@pytest.mark.parametrize("what", ["class_logits", "boxes"])
def test_numbers_that_are_not_finite_are_named(what: str) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = random_prediction(1, generator)
    getattr(prediction, what)[0, 3, 0] = float("nan")
    with pytest.raises(TrainingError, match="matching needs finite costs"):
        BoxCriterion()(prediction, Batch(torch.zeros(1, 3, *SIZE), (BOX,), (stripes(2, generator),)))


@pytest.mark.parametrize(("count", "expected"), [(0, 1.0), (1, 1.0), (7, 7.0)])
def test_divisor_of_one_process(count: int, expected: float) -> None:
    assert mean_over_processes(count, torch.device("cpu")) == expected


def count_in_a_group(rank: int, folder: str) -> None:
    """One of two processes; writes what it divides by."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = mean_over_processes((9, 2)[rank], torch.device("cpu"))
    Path(folder, str(rank)).write_text(str(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_divisor_of_two_processes(tmp_path: Path) -> None:
    mp.spawn(count_in_a_group, (str(tmp_path),), nprocs=2)
    assert [(tmp_path / name).read_text() for name in ("0", "1")] == ["5.5", "5.5"]


def test_divisor_is_asked_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which the other has 4."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(4))
    assert mean_over_processes(7, torch.device("cpu")) == 5.5
    generator = torch.Generator().manual_seed(0)
    prediction, truth = random_prediction(1, generator), (stripes(4, generator),)
    batch = Batch(torch.zeros(1, 3, *SIZE), (BOX,), truth)
    criterion = BoxCriterion(points=0)
    together = criterion(prediction, batch)  # (4 + 4) / 2: as alone.
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(12))
    more = criterion(prediction, batch)
    for name in ("box", "giou", "mask", "dice"):
        assert float(together[name]) == pytest.approx(2 * float(more[name]))
