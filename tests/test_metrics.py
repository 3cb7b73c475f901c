"""Metrics against things that we did not write: hand-drawn maps, literal loops over the definitions, SciPy, hotcoco."""

from __future__ import annotations

import io
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import hotcoco
import hotcoco.panoptic
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from everymask.errors import DataError, UsageError
from everymask.metrics import BoundaryF, MaskAP, MattingErrors, Metric, PanopticQuality, SemanticIoU

Array = np.ndarray[Any, Any]
K = 3

# --- random images, one call of `update` each ------------------------------------------------------------------------


def blocks(rng: np.random.Generator, values: list[int], size: tuple[int, int] = (18, 22), number: int = 9) -> Array:
    """An integer map of overlapping rectangles."""
    painted = np.full(size, rng.choice(values))
    for _ in range(number):
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        painted[y : y + rng.integers(3, 12), x : x + rng.integers(3, 12)] = rng.choice(values)
    return painted


def semantic_image(rng: np.random.Generator) -> tuple:
    return blocks(rng, [*range(K + 1)]), blocks(rng, [-1, *range(K + 1)])


def boundary_image(rng: np.random.Generator) -> tuple:
    true = blocks(rng, [0, 1])
    return np.roll(true, rng.integers(0, 3), 1), true, blocks(rng, [0, 1, 1, 1]).astype(bool)


def matting_image(rng: np.random.Generator) -> tuple:
    true = np.clip(ndimage.gaussian_filter(blocks(rng, [0, 1]).astype(float), 1.0) * 1.2 - 0.1, 0, 1)
    pred = np.clip(true + ndimage.gaussian_filter(rng.normal(0, 0.4, true.shape), 1.0), 0, 1)
    return pred, true, blocks(rng, [0, 128, 255])


def panoptic_image(rng: np.random.Generator, crowds: int = 3) -> tuple:
    """Truth with void, background and crowds; a prediction that is the truth, moved and partly repainted."""
    true_ids = blocks(rng, [-1, *range(7)], number=14)
    true_classes = rng.integers(0, K, 6)
    crowd = np.isin(np.arange(6), rng.choice(6, crowds, replace=False))
    pred_ids = np.roll(np.maximum(true_ids, 0), rng.integers(0, 3), rng.integers(0, 2))
    pred_ids = np.where(blocks(rng, [0, 0, 0, 1], number=4) == 1, blocks(rng, [*range(9)]), pred_ids)
    pred_classes = np.concatenate([np.where(rng.random(6) < 0.8, true_classes, rng.integers(0, K, 6)), [0, 1]])
    return pred_ids, pred_classes, true_ids, true_classes, crowd


def instance_image(rng: np.random.Generator, side: int = 40) -> tuple:
    boxes = [(*rng.integers(0, side - 15, 2), *rng.integers(5, 15, 2)) for _ in range(4)]
    true, pred = np.zeros((4, side, side), bool), np.zeros((6, side, side), bool)
    for i, (y, x, h, w) in enumerate(boxes):
        true[i, y : y + h, x : x + w] = True
    for i in range(6):
        y, x, h, w = boxes[i % 4]
        pred[i, y + rng.integers(0, 3) : y + h, x + rng.integers(0, 3) : x + w] = True
    return pred, rng.random(6), rng.integers(0, K, 6), true, rng.integers(0, K, 4), rng.random(4) < 0.2


KINDS: dict[str, tuple[Callable[[], Metric], Callable[[np.random.Generator], tuple]]] = {
    "semantic": (lambda: SemanticIoU(K), semantic_image),
    "boundary": (lambda: BoundaryF(0.02), boundary_image),
    "matting": (MattingErrors, matting_image),
    "panoptic": (lambda: PanopticQuality(K, [True, True, False]), panoptic_image),
    "instances": (lambda: MaskAP(K), instance_image),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def run_over(kind: str, seeds: list[int]) -> Any:
    build, draw = KINDS[kind]
    metric: Any = build()
    for seed in seeds:
        metric.update(*draw(np.random.default_rng(seed)))
    return metric


# --- what all metrics promise ----------------------------------------------------------------------------------------

SEEDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)


@every_kind
@given(seeds=SEEDS, data=st.data())
def test_merged_parts_equal_one_run(kind: str, seeds: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(seeds)))
    merged, rest = run_over(kind, seeds[:cut]), run_over(kind, seeds[cut:])
    before = rest.state()
    merged.merge(rest)
    np.testing.assert_equal(merged.compute(), run_over(kind, seeds).compute())
    np.testing.assert_equal(merged.state(), run_over(kind, seeds).state())
    np.testing.assert_equal(rest.state(), before)


@every_kind
@given(seeds=SEEDS, data=st.data())
def test_order_of_images_changes_nothing(kind: str, seeds: list[int], data: st.DataObject) -> None:
    # MaskAP too: scores are distinct here, unless one image comes twice.
    seeds = list(dict.fromkeys(seeds))
    shuffled = data.draw(st.permutations(seeds))
    np.testing.assert_equal(run_over(kind, shuffled).compute(), run_over(kind, seeds).compute())


@every_kind
def test_state_survives_a_file(kind: str) -> None:
    metric, other = run_over(kind, [1, 2, 3]), run_over(kind, [4])
    file = io.BytesIO()
    np.savez(file, **metric.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as state:
        other.load_state(state)
    np.testing.assert_equal(other.compute(), metric.compute())
    other.merge(run_over(kind, [5]))
    np.testing.assert_equal(other.compute(), run_over(kind, [1, 2, 3, 5]).compute())


@every_kind
def test_state_is_a_copy(kind: str) -> None:
    metric = run_over(kind, [1])
    expected = metric.compute()
    for array in metric.state().values():
        array[...] = 0
    np.testing.assert_equal(metric.compute(), expected)


@every_kind
def test_image_row_equals_a_run_of_one_image(kind: str) -> None:
    build, draw = KINDS[kind]
    metric: Any = build()
    row = metric.update(*draw(np.random.default_rng(3)))
    whole = metric.compute()
    np.testing.assert_equal(row, {key: whole[key] for key in row})
    assert bool(row) == (kind != "instances")
    assert all(type(value) is float for value in row.values())


@every_kind
def test_tensors_and_arrays_give_the_same(kind: str) -> None:
    build, draw = KINDS[kind]
    metric: Any = build()
    metric.update(*(torch.as_tensor(np.ascontiguousarray(value)) for value in draw(np.random.default_rng(3))))
    np.testing.assert_equal(metric.compute(), run_over(kind, [3]).compute())


@every_kind
def test_nothing_seen_is_nan(kind: str) -> None:
    scores = KINDS[kind][0]().compute()
    rows = scores.pop("per_class", {})
    assert all(math.isnan(value) for value in scores.values())
    assert all(math.isnan(v) for row in rows.values() for key, v in row.items() if key not in ("tp", "fp", "fn"))


def test_only_equal_metrics_merge() -> None:
    with pytest.raises(UsageError, match="only metrics of the same class can be merged: merge \\(BoundaryF into Sem"):
        SemanticIoU(2).merge(BoundaryF())
    pairs = [
        (SemanticIoU(2), SemanticIoU(3)),
        (BoundaryF(0.01), BoundaryF(0.02)),
        (PanopticQuality(2, [1, 0]), PanopticQuality(2, [1, 1])),
        (MaskAP(2), MaskAP(3)),
    ]
    for one, two in pairs:
        with pytest.raises(UsageError, match="not a state of this class with the same settings"):
            one.merge(two)
    for state in ({}, {"errors": np.zeros((2, 3))}, {"errors": np.zeros(10)}, MattingErrors().state() | {"x": 1}):
        with pytest.raises(UsageError, match="not a state of this class"):
            MattingErrors().load_state(state)


# --- semantic --------------------------------------------------------------------------------------------------------

TRUE_5X5 = np.array([[0, 0, 1, 1, 3], [0, 0, 1, 1, 3], [0, 0, 3, 3, 3], [-1, -1, 3, 3, 3], [3, 3, 3, 3, 3]])
PRED_5X5 = np.array([[0, 0, 1, 3, 3], [0, 1, 1, 3, 3], [0, 0, 3, 3, 3], [2, 7, 3, 3, 3], [3, 3, 3, 0, 0]])


def test_semantic_by_hand() -> None:
    metric = SemanticIoU(3, ["cat", "dog", "cow"])
    metric.update(PRED_5X5, TRUE_5X5)
    scores = metric.compute()
    # cat: 5 right, 2 too many, 1 missed. dog: 2 right, 1 too many, 2 missed. cow: predicted at void alone.
    assert scores["per_class"]["cat"] == pytest.approx(
        {"iou": 5 / 8, "dice": 10 / 13, "precision": 5 / 7, "recall": 5 / 6}
    )
    assert scores["per_class"]["dog"] == pytest.approx(
        {"iou": 2 / 5, "dice": 4 / 7, "precision": 2 / 3, "recall": 1 / 2}
    )
    assert all(math.isnan(value) for value in scores["per_class"]["cow"].values())
    assert scores["miou"] == pytest.approx((5 / 8 + 2 / 5) / 2)
    assert scores["dice"] == pytest.approx((10 / 13 + 4 / 7) / 2)
    assert scores["miou_with_background"] == pytest.approx((5 / 8 + 2 / 5 + 11 / 15) / 3)
    # As one foreground: 10 true, 10 predicted, 8 in common (the cat taken for a dog counts).
    assert scores["foreground_iou"] == pytest.approx(8 / 12)
    assert scores["foreground_dice"] == pytest.approx(16 / 20)
    assert scores["pixel_accuracy"] == pytest.approx(18 / 23)


@pytest.mark.parametrize("seed", range(5))
def test_semantic_against_double_loop(seed: int) -> None:
    images = [semantic_image(np.random.default_rng([seed, i])) for i in range(3)]
    confusion = np.zeros((K + 1, K + 1), int)
    metric = SemanticIoU(K)
    for pred, true in images:
        metric.update(pred, true)
        for y, x in np.ndindex(true.shape):
            if true[y, x] != -1:
                confusion[true[y, x], pred[y, x]] += 1
    np.testing.assert_array_equal(metric.state()["confusion"], confusion)
    known = [(p, t) for pred, true in images for p, t in zip(pred.flat, true.flat, strict=True) if t != -1]
    ious = []
    for k in range(K):
        both, either = sum(p == k == t for p, t in known), sum(k in (p, t) for p, t in known)
        ious.append(both / either)
        assert metric.compute()["per_class"][str(k)]["iou"] == both / either
    assert metric.compute()["miou"] == pytest.approx(sum(ious) / K)
    fg_both, fg_either = sum(p < K and t < K for p, t in known), sum(p < K or t < K for p, t in known)
    assert metric.compute()["foreground_iou"] == fg_both / fg_either


@pytest.mark.parametrize("seed", range(3))
def test_semantic_against_hotcoco(seed: int) -> None:
    from hotcoco.semantic import SemanticEval

    metric, reference = SemanticIoU(K), SemanticEval(K + 1, ignore_index=255)
    for i in range(3):
        pred, true = semantic_image(np.random.default_rng([seed, i]))
        metric.update(pred, true)
        reference.update(np.where(true < 0, 255, true), pred)
    results = reference.results()
    assert metric.compute()["miou_with_background"] == pytest.approx(results["mIoU"])
    assert metric.compute()["pixel_accuracy"] == pytest.approx(results["aAcc"])


@given(seed=st.integers(0, 2**32 - 1))
def test_prediction_at_void_changes_no_iou(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, true = semantic_image(rng)
    other = np.where(true == -1, rng.integers(-50, 300, true.shape), pred)
    np.testing.assert_equal(SemanticIoU(K).update(other, true), SemanticIoU(K).update(pred, true))


def test_empty_foreground_is_nan_for_its_image_and_nothing_for_the_rest() -> None:
    metric, nothing = SemanticIoU(1), np.full((4, 4), 1)
    assert math.isnan(metric.update(nothing, nothing)["foreground_iou"])
    assert metric.update(np.zeros((4, 4), int), np.zeros((4, 4), int))["foreground_iou"] == 1
    assert metric.compute()["foreground_iou"] == 1


# --- boundary --------------------------------------------------------------------------------------------------------


def square(size: int, top: int, left: int, side: int) -> Array:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_boundary_by_hand() -> None:
    mask, empty = square(100, 20, 30, 40), np.zeros((100, 100), bool)
    update = BoundaryF().update
    assert update(mask, mask)["boundary_f"] == 1
    assert update(empty, empty) == {"boundary_f": 1, "boundary_precision": 1, "boundary_recall": 1}
    assert update(empty, mask) == {"boundary_f": 0, "boundary_precision": 1, "boundary_recall": 0}
    assert update(mask, empty) == {"boundary_f": 0, "boundary_precision": 0, "boundary_recall": 1}
    # The diagonal is 141.4 pixels, so 0.0075 of it allows 2.
    for shift in (1, 2):
        assert update(np.roll(mask, shift, 1), mask)["boundary_f"] == 1
    assert 0.5 < update(np.roll(mask, 3, 1), mask)["boundary_f"] < 1
    assert update(np.roll(mask, 55, 0), mask)["boundary_f"] < 0.1
    assert math.isnan(update(empty, mask, np.zeros_like(mask))["boundary_f"])


def test_step_into_void_is_no_boundary() -> None:
    mask, valid = square(60, 10, 10, 30), np.ones((60, 60), bool)
    valid[:, 25:] = False
    whole = mask & valid  # the same where it is known
    assert BoundaryF().update(whole, mask, valid)["boundary_f"] == 1
    assert BoundaryF().update(whole, mask)["boundary_f"] < 1


def brute_boundary(mask: Array, valid: Array) -> list[tuple[int, int]]:
    height, width = mask.shape
    found = []
    for y, x in np.ndindex(mask.shape):
        around = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        known = [(v, u) for v, u in around if v < height and u < width and valid[v, u] and valid[y, x]]
        if any(mask[v, u] != mask[y, x] for v, u in known):
            found.append((y, x))
    return found


def brute_share(these: list[tuple[int, int]], those: list[tuple[int, int]], radius: int) -> float:
    near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in those) for y, x in these]
    return sum(near) / len(near) if near else 1.0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tolerance", [0.01, 0.06, 0.13])
def test_boundary_against_brute_force(seed: int, tolerance: float) -> None:
    pred, true, valid = boundary_image(np.random.default_rng(seed))
    radius = math.ceil(tolerance * math.hypot(*true.shape))
    ours, theirs = brute_boundary(pred, valid), brute_boundary(true, valid)
    precision, recall = brute_share(ours, theirs, radius), brute_share(theirs, ours, radius)
    scores = BoundaryF(tolerance).update(pred, true, valid)
    assert scores["boundary_precision"] == pytest.approx(precision)
    assert scores["boundary_recall"] == pytest.approx(recall)
    f = 0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)
    assert scores["boundary_f"] == pytest.approx(f)


@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_at_void_changes_the_boundary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, true, valid = boundary_image(rng)
    other_pred, other_true = (np.where(valid, mask, rng.integers(0, 2, mask.shape)) for mask in (pred, true))
    np.testing.assert_equal(BoundaryF().update(other_pred, other_true, valid), BoundaryF().update(pred, true, valid))


# --- matting ---------------------------------------------------------------------------------------------------------


def test_matting_by_hand() -> None:
    true, pred = np.zeros((20, 50)), np.zeros((20, 50))
    true[:, 25:] = 1
    pred[:, 25:] = 1
    pred[:10, 25:] = 0.5  # 250 pixels too thin by a half
    trimap = np.zeros((20, 50), np.uint8)
    trimap[:, 25:] = 255
    trimap[8:12, 24:27] = 128  # 12 pixels, of which 4 are too thin
    scores = MattingErrors().update(pred, true, trimap)
    assert scores["sad"] == pytest.approx(0.125)
    assert scores["mad"] == pytest.approx(0.125)
    assert scores["mse"] == pytest.approx(0.0625)
    assert scores["sad_unknown"] == pytest.approx(0.002)
    assert scores["mad_unknown"] == pytest.approx(2 / 12)
    assert scores["mse_unknown"] == pytest.approx(1 / 12)
    # Those 250 pixels are joined to the rest up to 0.5: phi is 1 for the prediction and 0.5 for the truth.
    assert scores["conn"] == pytest.approx(0.125)
    assert scores["conn_unknown"] == pytest.approx(0.002)


def test_connectivity_by_hand() -> None:
    true = np.array([[1.0, 1.0, 1.0, 0.0, 0.9, 0.0]])
    pred = np.array([[1.0, 1.0, 0.88, 0.0, 0.2, 0.0]])
    # Third pixel: joined up to 0.8; 0.08 over it is less than theta, 0.2 is not. Fifth: never joined, 0.2 and 0.9 over.
    assert MattingErrors().update(pred, true)["conn"] == pytest.approx((0.2 + 0.7) / 1000)


def test_matting_means_and_missing_trimaps() -> None:
    metric, ones = MattingErrors(), np.ones((10, 10))
    metric.update(ones, ones)
    metric.update(ones * 0, ones, np.full((10, 10), 128))
    metric.update(ones * 0, ones, np.full((10, 10), 255))
    scores = metric.compute()
    assert scores["mad"] == pytest.approx(2 / 3)
    assert scores["mad_unknown"] == 1
    assert scores["sad_unknown"] == pytest.approx(0.1)


def test_matting_takes_bytes_and_floats() -> None:
    rng = np.random.default_rng(0)
    pred, true = rng.integers(0, 256, (2, 16, 16)).astype(np.uint8)
    expected = MattingErrors().update(pred / 255, true / 255)
    assert MattingErrors().update(pred, true) == pytest.approx(expected, nan_ok=True)
    assert MattingErrors().update(torch.from_numpy(pred), true / 255) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_gradient_against_scipy(seed: int) -> None:
    pred, true, trimap = matting_image(np.random.default_rng(seed))

    def gradient(alpha: Array, order: tuple[int, int]) -> Array:
        return ndimage.gaussian_filter(alpha, 1.4, order=order, mode="nearest", truncate=4 / 1.4)

    impulse = np.zeros((31, 31))
    impulse[15, 15] = 1
    norm = np.sqrt((gradient(impulse, (0, 1)) ** 2).sum())
    amplitudes = [np.sqrt(gradient(a, (0, 1)) ** 2 + gradient(a, (1, 0)) ** 2) / norm for a in (pred, true)]
    error = (amplitudes[0] - amplitudes[1]) ** 2
    scores = MattingErrors().update(pred, true, trimap)
    assert scores["grad"] == pytest.approx(error.sum() / 1000)
    assert scores["grad_unknown"] == pytest.approx(error[trimap == 128].sum() / 1000)


def flood(region: set[tuple[int, int]], start: tuple[int, int]) -> set[tuple[int, int]]:
    """All pixels of the region that 4-neighbour steps reach from `start`."""
    reached, waiting = {start}, deque([start])
    while waiting:
        y, x = waiting.popleft()
        for step in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if step in region and step not in reached:
                reached.add(step)
                waiting.append(step)
    return reached


def literal_connectivity(pred: Array, true: Array) -> Array:
    largest: dict[float, set[tuple[int, int]]] = {}
    for tenth in range(1, 11):
        region = {(y, x) for y, x in np.ndindex(true.shape) if min(pred[y, x], true[y, x]) >= tenth / 10}
        parts = [flood(region, start) for start in sorted(region)]
        largest[tenth / 10] = max(parts, key=len, default=set())
    error = np.zeros(true.shape)
    for y, x in np.ndindex(true.shape):
        level = 0.0
        for threshold, source in largest.items():
            if (y, x) not in source:
                break
            level = threshold
        phi = [1 - (a - level if a - level >= 0.15 else 0) for a in (pred[y, x], true[y, x])]
        error[y, x] = abs(phi[0] - phi[1])
    return error


@pytest.mark.parametrize("seed", range(6))
def test_connectivity_against_definition(seed: int) -> None:
    pred, true, trimap = (a[:12, :14] for a in matting_image(np.random.default_rng(seed)))
    error = literal_connectivity(pred, true)
    scores = MattingErrors().update(pred, true, trimap)
    assert scores["conn"] == pytest.approx(error.sum() / 1000)
    if (trimap == 128).any():
        assert scores["conn_unknown"] == pytest.approx(error[trimap == 128].sum() / 1000)


# --- panoptic --------------------------------------------------------------------------------------------------------


def counts(scores: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    return {name: (row["tp"], row["fp"], row["fn"]) for name, row in scores["per_class"].items()}


def test_panoptic_by_hand() -> None:
    true = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0], [-1, -1, -1, -1, 3, 3]])
    pred = np.array([[1, 1, 1, 0, 2, 2], [1, 1, 1, 3, 0, 0], [0, 0, 0, 3, 0, 0], [4, 4, 4, 0, 4, 5]])
    metric = PanopticQuality(3, [True, True, False], ["cat", "dog", "sky"])
    metric.update(pred, [0, 0, 1, 2, 2], true, [0, 0, 2])
    scores = metric.compute()
    # cat 1: 6 of 8. cat 2: 2 of 4 is no match. dog 3: false. Sky 4: 3 of 4 in void, excused. Sky 5: 1 of 2, no match.
    assert counts(scores) == {"cat": (1, 1, 1), "dog": (0, 1, 0), "sky": (0, 1, 1)}
    assert scores["per_class"]["cat"]["sq"] == pytest.approx(0.75)
    assert scores["per_class"]["cat"]["rq"] == pytest.approx(0.5)
    assert scores["per_class"]["cat"]["pq"] == pytest.approx(0.375)
    assert scores["pq"] == pytest.approx(0.125)
    assert scores["pq_things"] == pytest.approx(0.1875)
    assert scores["pq_stuff"] == 0


def test_void_leaves_the_union_and_background_stays() -> None:
    true = np.array([[1, 1, -1, -1, -1]])
    assert PanopticQuality(1, [1]).update(np.array([[1, 1, 1, 1, 1]]), [0], true, [0])["pq"] == 1
    assert PanopticQuality(1, [1]).update(np.array([[1, 1, 1, 1, 1]]), [0], np.maximum(true, 0), [0])["pq"] == 0


def test_crowd_excuses_but_is_neither_matched_nor_missed() -> None:
    true = np.array([[1, 1, 1, 1, 2, 2]])
    metric = PanopticQuality(2, [1, 1])
    for classes in ([0], [1]):
        metric.update(np.array([[1, 1, 1, 1, 0, 0]]), classes, true, [0, 1], [True, True])
    # On a crowd of its own class the prediction is excused, on one of another class it is false.
    assert counts(metric.compute()) == {"0": (0, 0, 0), "1": (0, 1, 0)}


def test_rows_without_pixels_and_empty_tables() -> None:
    metric = PanopticQuality(2, [1, 0])
    metric.update(np.zeros((3, 3), int), [0, 1], np.zeros((3, 3), int), [1])
    metric.update(np.zeros((3, 3), int), [], np.full((3, 3), -1), [])
    assert counts(metric.compute()) == {"0": (0, 0, 0), "1": (0, 0, 0)}
    assert math.isnan(metric.compute()["pq"])


def literal_panoptic(pred: Array, pred_classes: Array, true: Array, true_classes: Array, crowd: Array) -> dict:
    """Section 4 of the paper over sets of pixels: class -> [sum of IoU, tp, fp, fn]."""
    pixels = list(np.ndindex(true.shape))
    void = {at for at in pixels if true[at] == -1}
    trues = {i: {at for at in pixels if true[at] == i} for i in range(1, len(true_classes) + 1)}
    preds = {i: {at for at in pixels if pred[at] == i} for i in range(1, len(pred_classes) + 1)}
    table = {k: [0.0, 0, 0, 0] for k in range(K)}
    matched_true, matched_pred = set(), set()
    for (t, here), (p, there) in itertools.product(trues.items(), preds.items()):
        if not here or not there or crowd[t - 1] or true_classes[t - 1] != pred_classes[p - 1]:
            continue
        known = there - void
        if (iou := len(here & known) / len(here | known)) > 0.5:
            table[true_classes[t - 1]][0] += iou
            table[true_classes[t - 1]][1] += 1
            matched_true.add(t)
            matched_pred.add(p)
    for p, there in preds.items():
        crowds = [trues[t] for t in trues if crowd[t - 1] and true_classes[t - 1] == pred_classes[p - 1]]
        excused = sum(len(there & region) for region in (void, *crowds))
        if there and p not in matched_pred and excused / len(there) <= 0.5:
            table[pred_classes[p - 1]][2] += 1
    for t, here in trues.items():
        if here and not crowd[t - 1] and t not in matched_true:
            table[true_classes[t - 1]][3] += 1
    return table


@pytest.mark.parametrize("seed", range(30))
def test_panoptic_against_the_paper(seed: int) -> None:
    image = panoptic_image(np.random.default_rng(seed))
    metric = PanopticQuality(K, [True, True, False])
    metric.update(*image)
    scores = metric.compute()
    for k, (iou, tp, fp, fn) in literal_panoptic(*image).items():
        row = scores["per_class"][str(k)]
        assert (row["tp"], row["fp"], row["fn"]) == (tp, fp, fn)
        total = tp + fp / 2 + fn / 2
        assert row["pq"] == pytest.approx(iou / total if total else math.nan, nan_ok=True)
        assert row["sq"] == pytest.approx((iou / tp if tp else 0) if total else math.nan, nan_ok=True)
        assert row["rq"] == pytest.approx(tp / total if total else math.nan, nan_ok=True)


def coco_panoptic(images: list[tuple[Array, Array, Array]], background: int) -> dict[str, Any]:
    """COCO with one annotation a segment; pixels of none are void. `background` is the category of id 0, or -1."""
    annotations = []
    for i, (ids, classes, crowd) in enumerate(images, 1):
        for value in np.unique(ids[ids >= (0 if background >= 0 else 1)]).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(classes[value - 1]) + 1 if value else background,
                    "segmentation": hotcoco.mask.encode(np.asfortranarray(ids == value)),
                    "iscrowd": int(crowd[value - 1]) if value else 0,
                    "area": int((ids == value).sum()),
                }
            )
    sizes = [{"id": i, "height": ids.shape[0], "width": ids.shape[1]} for i, (ids, _, _) in enumerate(images, 1)]
    categories = [{"id": k + 1, "name": str(k), "isthing": int(k < 2)} for k in range(K + 1)]
    return {"images": sizes, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("start", range(0, 30, 3))
def test_panoptic_against_hotcoco(start: int) -> None:
    """Our background is known, COCO's is void: for COCO it is painted as a class of its own that nothing predicts."""
    # panopticapi looks at one crowd segment of each class alone, so the images have one.
    images = [panoptic_image(np.random.default_rng(seed), crowds=1) for seed in range(start, start + 3)]
    metric = PanopticQuality(K, [True, True, False])
    for image in images:
        metric.update(*image)
    true = coco_panoptic([(ids, classes, crowd) for _, _, ids, classes, crowd in images], background=K + 1)
    pred = coco_panoptic([(ids, classes, np.zeros(len(classes))) for ids, classes, *_ in images], background=-1)
    evaluation = hotcoco.panoptic.PanopticEval(true, pred)
    evaluation.evaluate()
    for k, row in metric.compute()["per_class"].items():
        theirs = evaluation.results()["per_class"][int(k) + 1]
        assert (row["tp"], row["fp"], row["fn"]) == (theirs["tp"], theirs["fp"], theirs["fn"])
        for key in ("pq", "sq", "rq"):
            assert row[key] == pytest.approx(math.nan if theirs[key] < 0 else theirs[key], nan_ok=True)
    assert metric.compute()["pq_things"] == pytest.approx(evaluation.results()["Things"]["pq"])


# --- mask AP ---------------------------------------------------------------------------------------------------------

ONE, TWO = square(60, 5, 5, 10), square(60, 30, 30, 10)
NONE = np.zeros((0, 60, 60), bool)


def average_precision(
    pred: list[Array], scores: list[float], true: list[Array], crowd: list[bool] | None = None
) -> dict:
    metric = MaskAP(2)
    metric.update(
        np.array(pred) if pred else NONE,
        scores,
        [0] * len(pred),
        np.array(true) if true else NONE,
        [0] * len(true),
        crowd,
    )
    return metric.compute()


def test_ap_by_hand() -> None:
    assert average_precision([ONE, TWO], [0.5, 0.9], [ONE, TWO])["ap"] == pytest.approx(1)
    assert average_precision([], [], [ONE])["ap"] == 0
    assert math.isnan(average_precision([ONE], [0.5], [])["ap"])
    # Moved by 2 of 10 pixels: IoU 80 / 120, enough for 0.50, 0.55, 0.60 and 0.65.
    moved = average_precision([np.roll(ONE, 2, 1)], [0.5], [ONE])
    assert (moved["ap"], moved["ap50"], moved["ap75"]) == pytest.approx((0.4, 1, 0))
    # Moved by 3 of 20: IoU 340 / 460 = 0.739, one threshold more, but still not 0.75. Moved by 2: 360 / 440 = 0.818.
    large = square(60, 5, 5, 20)
    for shift, ap, ap75 in ((3, 0.5, 0), (2, 0.7, 1)):
        moved = average_precision([np.roll(large, shift, 1)], [0.5], [large])
        assert (moved["ap"], moved["ap75"]) == pytest.approx((ap, ap75))
    # A false prediction ranked first halves the precision; a duplicate ranked last does no harm.
    assert average_precision([TWO, ONE], [0.9, 0.8], [ONE])["ap"] == pytest.approx(0.5)
    assert average_precision([ONE, ONE], [0.9, 0.8], [ONE])["ap"] == pytest.approx(1)
    # A duplicate in the middle: precision 1 up to recall 0.5 (51 of 101 points), then 2 / 3.
    middle = average_precision([ONE, ONE, TWO], [0.9, 0.8, 0.7], [ONE, TWO])
    assert middle["ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert middle["per_class"]["0"]["ap"] == middle["ap"]
    assert math.isnan(middle["per_class"]["1"]["ap"])


def test_ap_leaves_out_predictions_on_a_crowd() -> None:
    crowd = square(60, 25, 25, 30)
    assert average_precision([TWO, ONE], [0.9, 0.8], [ONE, crowd], [False, True])["ap"] == pytest.approx(1)
    assert average_precision([TWO, ONE], [0.9, 0.8], [ONE])["ap"] == pytest.approx(0.5)


def test_ap_by_area() -> None:
    masks = np.array([square(200, 0, 0, 20), square(200, 30, 30, 50), square(200, 90, 90, 100)])
    for found, area in enumerate(("small", "medium", "large")):
        metric = MaskAP(1)
        metric.update(masks[found : found + 1], [0.5], [0], masks, [0, 0, 0])
        for other in ("small", "medium", "large"):
            assert metric.compute()[f"ap_{other}"] == pytest.approx(float(other == area))


def test_ap_against_hotcoco_by_its_own_way_in(capfd: pytest.CaptureFixture[str]) -> None:
    """The adapter: same numbers as COCO tables written down here and the summary that hotcoco prints."""
    images = [instance_image(np.random.default_rng(seed), side=160) for seed in range(8)]
    table: dict[str, list[dict]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
    }
    results = []
    for i, (pred, scores, classes, true, true_classes, crowd) in enumerate(images):
        table["images"].append({"id": 100 + i, "height": 160, "width": 160})
        for mask, k, flag in zip(true, true_classes, crowd, strict=True):
            rle = hotcoco.mask.encode(mask)
            row = {"segmentation": rle, "iscrowd": int(flag), "area": float(mask.sum()), "category_id": int(k) + 1}
            table["annotations"].append(row | {"id": len(table["annotations"]) + 1, "image_id": 100 + i})
        for mask, score, k in zip(pred, scores, classes, strict=True):
            rle = hotcoco.mask.encode(mask)
            results.append({"image_id": 100 + i, "category_id": int(k) + 1, "segmentation": rle, "score": float(score)})
    reference = hotcoco.COCO(table)
    evaluation = hotcoco.COCOeval(reference, reference.load_res(results), "segm")
    evaluation.run()
    capfd.readouterr()
    expected = evaluation.get_results(per_class=True)

    metric = MaskAP(K)
    for image in images:
        metric.update(*image)
    scores = metric.compute()
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
    for ours, theirs in names.items():
        assert scores[ours] == pytest.approx(math.nan if expected[theirs] < 0 else expected[theirs], nan_ok=True)
    for k in range(K):
        assert scores["per_class"][str(k)]["ap"] == pytest.approx(expected[f"AP/{k + 1}"])
    assert 0 < scores["ap"] < 1
    assert capfd.readouterr() == ("", "")


# --- bad input -------------------------------------------------------------------------------------------------------

MAP, FLAT = np.zeros((4, 5), int), np.zeros((4, 5))
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "shape": (
        lambda: SemanticIoU(2).update(MAP, MAP[:3]),
        UsageError,
        r"wrong shape: pred \(\[4, 5\], needed \[3, 5\]\)",
    ),
    "batch": (
        lambda: SemanticIoU(2).update(MAP[None], MAP[None]),
        UsageError,
        r"true \(\[1, 4, 5\], needed \[any, any\]",
    ),
    "logits": (
        lambda: SemanticIoU(2).update(FLAT, MAP),
        UsageError,
        r"wrong type: pred \(float64, needed int or uint\)",
    ),
    "bool map": (lambda: SemanticIoU(2).update(MAP, MAP == 0), UsageError, r"true \(bool, needed int or uint\)"),
    "class": (lambda: SemanticIoU(2).update(MAP + 3, MAP), DataError, r"values that are not in 0\.\.2: pred \(\[3\]\)"),
    "void 255": (lambda: SemanticIoU(2).update(MAP, MAP + 255), DataError, r"-1\.\.2: true \(\[255\]\)\. Void is -1"),
    "void in pred": (lambda: SemanticIoU(2).update(MAP - 1, MAP), DataError, r"0\.\.2: pred \(\[-1\]\)"),
    "no classes": (lambda: SemanticIoU(0), UsageError, "at least one class"),
    "names": (lambda: SemanticIoU(2, ["cat", "cat"]), UsageError, "one name for each: names .2 classes, 1 different"),
    "tolerance": (lambda: BoundaryF(2), UsageError, r"share of the image diagonal: BoundaryF \(2\)"),
    "not binary": (lambda: BoundaryF().update(MAP + 255, MAP), DataError, r"0\.\.1: pred \(\[255\]\)"),
    "valid": (lambda: BoundaryF().update(MAP, MAP, MAP.T), UsageError, "wrong shape: valid"),
    "nan": (lambda: MattingErrors().update(FLAT * np.nan, FLAT), DataError, r"not in 0\.\.1: alpha_pred \(\[nan\]\)"),
    "bytes as float": (lambda: MattingErrors().update(FLAT, FLAT + 255), DataError, r"alpha_true \(\[255\.0\]\)"),
    "int alpha": (lambda: MattingErrors().update(MAP, MAP), UsageError, "wrong type: alpha_true .int64, needed float"),
    "trimap": (lambda: MattingErrors().update(FLAT, FLAT, MAP[:2]), UsageError, "wrong shape: trimap"),
    "is_thing": (lambda: PanopticQuality(2, [True]), UsageError, r"is_thing \(\[1\], needed \[2\]\)"),
    "id": (lambda: PanopticQuality(2, [1, 1]).update(MAP + 2, [0], MAP, []), DataError, r"0\.\.1: pred_ids \(\[2\]\)"),
    "id class": (
        lambda: PanopticQuality(2, [1, 1]).update(MAP, [2], MAP, []),
        DataError,
        r"0\.\.1: pred_classes \(\[2\]",
    ),
    "crowd": (lambda: PanopticQuality(1, [1]).update(MAP, [], MAP, [0], []), UsageError, "wrong shape: true_crowd"),
    "scores": (lambda: MaskAP(1).update(ONE[None], [0.5, 0.5], [0], NONE, []), UsageError, "wrong shape: scores"),
    "inf score": (lambda: MaskAP(1).update(ONE[None], [np.inf], [0], NONE, []), DataError, r"scores \(\[inf\]\)"),
    "mask size": (lambda: MaskAP(1).update(NONE, [], [], MAP[None] == 1, [0]), UsageError, "wrong shape: true_masks"),
    "mask class": (lambda: MaskAP(1).update(ONE[None], [0.5], [1], NONE, []), DataError, r"0\.\.0: classes \(\[1\]\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, error, text = BAD[case]
    with pytest.raises(error, match=text):
        call()


@every_kind
def test_refused_image_leaves_no_trace(kind: str) -> None:
    metric = run_over(kind, [1])
    before = metric.state()
    first, *rest = KINDS[kind][1](np.random.default_rng(2))
    with pytest.raises(UsageError):
        metric.update(np.asarray(first)[:-1], *rest)
    np.testing.assert_equal(metric.state(), before)


def test_boundary_that_lies_in_void_cannot_be_measured() -> None:
    true = np.zeros((9, 9), bool)
    true[3:6, 3:6] = True
    around = np.zeros((9, 9), bool)
    around[2:7, 2:7] = True
    valid = ~around | true
    row = BoundaryF().update(true, true, valid)
    assert all(math.isnan(value) for value in row.values())
    assert BoundaryF().update(true, true)["boundary_f"] == 1
