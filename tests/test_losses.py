"""Losses, costs, matching and the criterion against float64 formulas, SciPy-free searches and `transformers`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from transformers.models.maskformer import modeling_maskformer as hf

from everymask import losses, matcher
from everymask.criterion import MaskCriterion, assigned_classes, class_loss
from everymask.errors import TrainingError
from everymask.types import VOID, Batch, Letterbox, Prediction, Segments

Q, N, P = 6, 4, 300


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int = 0, queries: int = Q, void: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [queries, P], targets [N, P] and known [P] by chance."""
    g = generator(seed)
    logits = 3 * torch.randn(queries, P, generator=g)
    targets = (torch.rand(N, P, generator=g) < 0.3).float()
    return logits, targets, torch.rand(P, generator=g) >= void


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# --- the formulas ----------------------------------------------------------------------------------------------------


def bce_formula(x: np.ndarray, t: np.ndarray) -> float:
    p = sigmoid(x)
    return float(np.mean(-t * np.log(p) - (1 - t) * np.log(1 - p)))


def focal_formula(x: np.ndarray, t: np.ndarray) -> float:
    p = sigmoid(x)
    return float(np.mean(-0.25 * t * (1 - p) ** 2 * np.log(p) - 0.75 * (1 - t) * p**2 * np.log(1 - p)))


def dice_formula(x: np.ndarray, t: np.ndarray) -> float:
    p = sigmoid(x)
    return float(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))


MASK_TERMS: list[tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., float]]] = [
    (losses.mask_bce, matcher.bce_cost, bce_formula),
    (losses.mask_focal, matcher.focal_cost, focal_formula),
    (losses.mask_dice, matcher.dice_cost, dice_formula),
]
TERMS = pytest.mark.parametrize(("loss", "cost", "formula"), MASK_TERMS, ids=["bce", "focal", "dice"])


@TERMS
@pytest.mark.parametrize("void", [0.0, 0.4])
def test_losses_are_their_formulas_over_known_points(loss: Any, cost: Any, formula: Any, void: float) -> None:
    logits, targets, known = drawn(queries=N, void=void)
    x, t = logits.double().numpy()[:, known], targets.double().numpy()[:, known]
    expected = [formula(x[n], t[n]) for n in range(N)]
    np.testing.assert_allclose(loss(logits, targets, known), expected, rtol=1e-4)


@TERMS
@pytest.mark.parametrize("void", [0.0, 0.4])
def test_costs_are_the_losses_pair_by_pair(loss: Any, cost: Any, formula: Any, void: float) -> None:
    logits, targets, known = drawn(void=void)
    pairwise = torch.stack([loss(logits, row.expand(Q, -1), known) for row in targets], dim=1)
    torch.testing.assert_close(cost(logits, targets, known), pairwise, rtol=1e-4, atol=1e-5)


@TERMS
def test_losses_of_sure_and_right_masks_vanish(loss: Any, cost: Any, formula: Any) -> None:
    _, targets, known = drawn()
    assert loss(targets * 40 - 20, targets, known).max() < 1e-6
    assert loss(20 - targets * 40, targets, known).min() > 0.5


@TERMS
def test_no_known_point_is_no_loss(loss: Any, cost: Any, formula: Any) -> None:
    logits, targets, known = drawn(void=1.1)
    assert not known.any()
    assert loss(logits[:N], targets, known).tolist() == [0.0] * N
    assert cost(logits, targets, known).abs().max() == 0


ANY = st.floats(-(2.0**60), 2.0**60, width=32) | st.floats(-20, 20, width=32)


@TERMS
@given(st.lists(ANY, min_size=1, max_size=9), st.integers(0, 9))
def test_void_is_invisible(loss: Any, cost: Any, formula: Any, other: list[float], seed: int) -> None:
    logits, targets, known = drawn(seed)
    anything = torch.from_numpy(np.resize(other, (Q, P))).float()
    changed = torch.where(known, logits, anything).requires_grad_()
    other_targets = torch.where(known, targets, 1 - targets)
    assert torch.equal(loss(changed[:N], other_targets, known), loss(logits[:N], targets, known))
    assert torch.equal(cost(changed, other_targets, known), cost(logits, targets, known))
    (loss(changed[:N], other_targets, known).sum() + cost(changed, other_targets, known).sum()).backward()
    assert changed.grad is not None
    assert (changed.grad[:, ~known] == 0).all()
    assert (changed.grad[:, known] != 0).any()


# --- transformers ----------------------------------------------------------------------------------------------------


def test_losses_match_transformers_on_dense_masks() -> None:
    logits, targets, known = drawn(queries=N, void=0.0)
    focal, dice = losses.mask_focal(logits, targets, known).sum(), losses.mask_dice(logits, targets, known).sum()
    torch.testing.assert_close(focal, hf.sigmoid_focal_loss(logits, targets, 1))
    torch.testing.assert_close(dice, hf.dice_loss(logits, targets, 1))


def test_costs_match_transformers_on_dense_masks() -> None:
    logits, targets, known = drawn(void=0.0)
    focal, dice = matcher.focal_cost(logits, targets, known), matcher.dice_cost(logits, targets, known)
    torch.testing.assert_close(focal, hf.pair_wise_sigmoid_focal_loss(logits, targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dice, hf.pair_wise_dice_loss(logits, targets), rtol=1e-5, atol=1e-6)


def hf_criterion(classes: int, no_object: float) -> Any:
    return hf.MaskFormerLoss(classes, matcher=None, weight_dict={}, eos_coef=no_object)


@pytest.mark.parametrize("no_object", [0.1, 1.0, 0.0])
def test_class_loss_matches_transformers(no_object: float) -> None:
    logits = torch.randn(2, Q, 4, generator=generator())
    pairs = [(torch.tensor([4, 1]), torch.tensor([0, 1])), (torch.tensor([0]), torch.tensor([2]))]
    classes = [torch.tensor([2, 0]), torch.tensor([1, 1, 2])]
    ours = class_loss(logits, assigned_classes(logits, pairs, classes), no_object)
    theirs = hf_criterion(3, no_object).loss_labels(logits, classes, pairs)["loss_cross_entropy"]
    torch.testing.assert_close(ours, theirs)


def test_class_loss_weighs_no_object_down() -> None:
    """By hand: each query counts with its class's weight, and the weights are divided out."""
    logits = torch.zeros(1, 3, 3)
    logits[0, 0, 0] = math.log(2)  # softmax 1/2, 1/4, 1/4
    loss = class_loss(logits, torch.tensor([[0, 2, 2]]), 0.25)
    assert loss.item() == pytest.approx((math.log(2) + 0.25 * 2 * math.log(3)) / 1.5)


def test_class_cost_is_minus_the_probability() -> None:
    logits = torch.randn(Q, 4, generator=generator())
    cost = matcher.class_cost(logits, torch.tensor([2, 0, 2]))
    exponentials = np.exp(logits.double().numpy())
    expected = -exponentials[:, [2, 0, 2]] / exponentials.sum(1, keepdims=True)
    np.testing.assert_allclose(cost, expected, rtol=1e-5)


# --- points ----------------------------------------------------------------------------------------------------------


def random_layers(layers: int, seed: int = 0) -> Segments:
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, N + 1, (layers, 9, 13)).astype(np.int32)
    return Segments.build(ids if layers > 1 else ids[0], [0] * N, crowd=[False, True, False, False])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_point_targets_are_the_boolean_masks(layers: int) -> None:
    segments = random_layers(layers)
    ys, xs = np.indices((9, 13)).reshape(2, -1)
    targets, known = losses.point_targets(segments, torch.from_numpy(np.stack([xs, ys], axis=1)).float())
    ids = segments.id_map.numpy().reshape(layers, 9, 13)
    for n in range(N):
        assert targets[n].reshape(9, 13).numpy().tolist() == (ids == n + 1).any(0).astype(float).tolist()
    unknown = (ids == VOID).any(0) | (ids == 2).any(0)
    assert known.reshape(9, 13).numpy().tolist() == (~unknown).tolist()


def test_background_is_known_and_negative() -> None:
    targets, known = losses.point_targets(Segments.build(torch.tensor([[0, 1, -1]]), [0]), torch.tensor([[0.0, 0]]))
    assert (targets.tolist(), known.tolist()) == ([[0.0]], [True])


def test_point_targets_without_segments() -> None:
    points = torch.tensor([[0.0, 0], [2, 0]])
    targets, known = losses.point_targets(Segments.build(torch.tensor([[0, 0, -1]]), []), points)
    assert targets.shape == (0, 2)
    assert known.tolist() == [True, False]


def test_random_points_are_pixel_centres_spread_over_the_content() -> None:
    boxes = (Letterbox((9, 9), (3, 5), (64, 64)), Letterbox((9, 9), (64, 1), (64, 64)))
    batch = Batch(torch.zeros(2, 3, 64, 64), boxes, seeds=(3, 4))
    points = losses.random_points(batch, 4000)
    assert torch.equal(points[1:], losses.random_points(Batch(batch.images[1:], boxes[1:], seeds=(4,)), 4000))
    assert not torch.equal(*(losses.random_points(replace(batch, seeds=()), 9) for _ in range(2)))
    assert points.shape == (2, 4000, 2)
    for drawn_points, box in zip(points.long(), boxes, strict=True):
        counts = torch.zeros(box.canvas)
        counts.index_put_((drawn_points[:, 1], drawn_points[:, 0]), torch.ones(4000), accumulate=True)
        height, width = box.content
        assert counts[:height, :width].sum() == 4000
        np.testing.assert_allclose(counts[:height, :width] * height * width / 4000, 1, atol=0.6)
    assert torch.equal(points, points.floor())


def test_uncertain_points_are_the_least_certain() -> None:
    logits = torch.randn(3, 1000, generator=generator())
    chosen = losses.uncertain_points(logits, 400, important=0.75)
    assert len(torch.unique(chosen)) == len(chosen) == 400
    # The first quarter is there by chance, whatever the logits say.
    assert chosen[:100].tolist() == list(range(100))
    certainty = np.abs(logits.numpy()).min(0)
    expected = 100 + np.argsort(certainty[100:])[:300]
    assert set(chosen[100:].tolist()) == set(expected.tolist())


@pytest.mark.parametrize("important", [0.0, 1.0])
def test_uncertain_points_at_the_ends_of_the_range(important: float) -> None:
    logits = torch.arange(20.0, 0, -1)[None]
    chosen = losses.uncertain_points(logits, 5, important)
    assert sorted(chosen.tolist()) == ([15, 16, 17, 18, 19] if important else [0, 1, 2, 3, 4])


def test_uncertain_points_without_masks_are_the_first() -> None:
    assert losses.uncertain_points(torch.zeros(0, 20), 5).tolist() == [0, 1, 2, 3, 4]


# --- assignments -----------------------------------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=16))))
def test_hungarian_is_the_best_of_all_assignments(cost: np.ndarray) -> None:
    queries, rows = matcher.hungarian(torch.from_numpy(cost))
    small, large = sorted(cost.shape)
    assert len(queries) == len(set(queries.tolist())) == len(set(rows.tolist())) == small
    tall = cost if cost.shape[0] == large else cost.T
    best = min(sum(tall[i, j] for j, i in enumerate(p)) for p in itertools.permutations(range(large), small))
    assert cost[queries, rows].sum() == pytest.approx(best, abs=1e-3)


def test_with_too_few_queries_the_dearest_segment_stays_out() -> None:
    queries, rows = matcher.hungarian(torch.tensor([[3.0, 1.0, 9.0], [1.0, 3.0, 9.0]]))
    assert (queries.tolist(), rows.tolist()) == ([0, 1], [1, 0])
    assert queries.dtype == rows.dtype == torch.int64


def test_without_segments_nobody_is_assigned() -> None:
    queries, rows = matcher.hungarian(torch.zeros(5, 0))
    assert (queries.tolist(), rows.tolist()) == ([], [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_hungarian_refuses_what_is_not_finite(value: float) -> None:
    cost = torch.zeros(4, 3)
    cost[1, 2] = cost[3, 0] = cost[3, 1] = value
    text = r"^matching needs finite costs: matcher\.hungarian \(2 of 4 queries have NaN or infinite costs\)\. Lower the"
    with pytest.raises(TrainingError, match=text):
        matcher.hungarian(cost)


def test_assignments_that_are_given() -> None:
    queries, rows = matcher.by_class(torch.tensor([3, 0, 7]))
    assert (queries.tolist(), rows.tolist()) == ([3, 0, 7], [0, 1, 2])
    queries, rows = matcher.by_prompt(3)
    assert (queries.tolist(), rows.tolist()) == ([0, 1, 2], [0, 1, 2])


# --- the criterion ---------------------------------------------------------------------------------------------------

CANVAS = (16, 24)
CLASSES = 3


class PixelMasks:
    """Mask logits [B, Q, H, W], one a canvas pixel."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def sample(self, points: Tensor) -> Tensor:
        x, y = points.long().unbind(-1)
        return torch.stack([maps[:, v, u] for maps, u, v in zip(self.logits, x, y, strict=True)])

    def decode(self, b: int, queries: Tensor, size: object = None) -> Tensor:
        raise NotImplementedError

    def positions(self, b: int, size: object) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def predicted(seed: int = 0, queries: int = Q, images: int = 1, aux: int = 0) -> Prediction:
    g = generator(seed)
    class_logits = torch.randn(images, queries, CLASSES + 1, generator=g).requires_grad_()
    mask_logits = torch.randn(images, queries, *CANVAS, generator=g).requires_grad_()
    earlier = tuple(predicted(seed + 1 + n, queries, images) for n in range(aux))
    return Prediction(class_logits, PixelMasks(mask_logits), aux=earlier)


def mask_logits(prediction: Prediction) -> Tensor:
    assert isinstance(prediction.masks, PixelMasks)
    return prediction.masks.logits


def truth(seed: int = 0, segments: int = 3, void: bool = True) -> Segments:
    """Vertical stripes: segments, background, and void at the right."""
    ids = torch.zeros(CANVAS, dtype=torch.int32)
    for n in range(segments):
        ids[:, 4 * n : 4 * n + 3] = n + 1
    if void:
        ids[:, -5:] = VOID
    classes = torch.randint(0, CLASSES, (segments,), generator=generator(seed))
    return Segments.build(ids, classes)


def batch_of(*segments: Segments) -> Batch:
    box = Letterbox(CANVAS, CANVAS, CANVAS)
    return Batch(torch.zeros(len(segments), 3, *CANVAS), (box,) * len(segments), segments)


def losses_of(
    prediction: Prediction, segments: Sequence[Segments], criterion: MaskCriterion | None = None, seed: int = 0
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return (criterion or MaskCriterion(points=500))(prediction, batch_of(*segments))


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def gradients(prediction: Prediction, terms: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    wanted = [prediction.class_logits, mask_logits(prediction)]
    found = torch.autograd.grad(sum(terms.values(), torch.zeros(())), wanted, allow_unused=True)
    return found[0], found[1]


ONLY_VOID = Segments.build(torch.full(CANVAS, VOID), [])
NOTHING = Segments.build(torch.zeros(CANVAS), [])


@pytest.mark.parametrize("empty", [ONLY_VOID, NOTHING], ids=["only void", "only background"])
@pytest.mark.parametrize("focal", [False, True])
def test_images_without_segments_have_finite_losses_that_reach_everything(empty: Segments, focal: bool) -> None:
    prediction = predicted(images=2)
    terms = losses_of(prediction, [empty, empty], MaskCriterion(points=100, focal=focal))
    assert set(terms) == {"class", "mask", "dice"}
    assert (terms["mask"].item(), terms["dice"].item()) == (0.0, 0.0)
    # With "no object" alone, weights cancel.
    target = torch.full((2 * Q,), CLASSES)
    expected = 2 * F.cross_entropy(prediction.class_logits.flatten(0, 1), target)
    torch.testing.assert_close(terms["class"], expected)
    for gradient in gradients(prediction, terms):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_a_segment_all_of_whose_points_are_void_costs_nothing() -> None:
    hidden = replace(truth(segments=1), id_map=torch.full(CANVAS, VOID, dtype=torch.int32))
    prediction = predicted()
    terms = losses_of(prediction, [hidden])
    assert (terms["mask"].item(), terms["dice"].item()) == (0.0, 0.0)
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(prediction, terms))


@pytest.mark.parametrize("focal", [False, True])
def test_a_perfect_prediction_costs_next_to_nothing(focal: bool) -> None:
    segments = truth()
    classes = torch.full((1, Q, CLASSES + 1), -20.0)
    maps = torch.full((1, Q, *CANVAS), -20.0)
    for n, query in enumerate([4, 0, 3]):
        classes[0, query, segments.classes[n]] = 20.0
        maps[0, query][segments.id_map == n + 1] = 20.0
    classes[0, [1, 2, 5], CLASSES] = 20.0
    terms = values(losses_of(Prediction(classes, PixelMasks(maps)), [segments], MaskCriterion(points=500, focal=focal)))
    assert all(0 <= value < 1e-4 for value in terms.values())
    wrong = values(losses_of(Prediction(-classes, PixelMasks(-maps)), [segments], MaskCriterion(points=500)))
    assert all(value > 1 for value in wrong.values())


@given(st.permutations(range(Q)), st.permutations(range(3)), st.booleans())
def test_order_does_not_matter(queries: list[int], rows: list[int], focal: bool) -> None:
    criterion = MaskCriterion(points=200, focal=focal)
    prediction, segments = predicted(), truth()
    shuffled = Prediction(prediction.class_logits[:, queries], PixelMasks(mask_logits(prediction)[:, queries]))
    new_id = torch.tensor([*(rows.index(n) + 1 for n in range(3)), VOID, 0], dtype=torch.int32)
    renamed = Segments.build(new_id[segments.id_map.long() - 1], segments.classes[rows])
    before = values(losses_of(prediction, [segments], criterion))
    after = values(losses_of(shuffled, [renamed], criterion))
    assert after == pytest.approx(before, rel=1e-4)


def test_crowds_are_never_matched_and_their_points_are_void() -> None:
    segments = truth()
    crowded = replace(segments, is_crowd=torch.tensor([False, True, False]))
    ids = segments.id_map
    without = torch.where(ids == 2, VOID, torch.where(ids == 3, 2, ids))
    kept = Segments.build(without, segments.classes[[0, 2]])
    prediction = predicted()
    assert values(losses_of(prediction, [crowded])) == values(losses_of(prediction, [kept]))
    _, gradient = gradients(prediction, losses_of(prediction, [crowded]))
    assert gradient is not None
    assert (gradient[..., segments.id_map == 2] == 0).all()


def test_only_crowds_are_no_segments() -> None:
    segments = truth(segments=2)
    crowded = replace(segments, is_crowd=torch.tensor([True, True]))
    terms = values(losses_of(predicted(), [crowded]))
    assert (terms["mask"], terms["dice"]) == (0.0, 0.0)


@given(st.floats(-50, 50), st.integers(0, 99))
def test_logits_at_void_change_neither_losses_nor_gradients(shift: float, seed: int) -> None:
    # One candidate a point: the choice of points is made on all logits.
    criterion = MaskCriterion(points=200, oversample=1)
    prediction, segments = predicted(seed), truth()
    void = segments.id_map == VOID
    maps = torch.where(void, mask_logits(prediction).detach() * 3 + shift, mask_logits(prediction).detach())
    changed = replace(prediction, masks=PixelMasks(maps.requires_grad_()))
    before, after = (losses_of(p, [segments], criterion) for p in (prediction, changed))
    assert values(after) == pytest.approx(values(before), rel=1e-5)
    _, gradient = gradients(changed, after)
    assert gradient is not None
    assert (gradient[..., void] == 0).all()
    assert (gradient != 0).any()


def test_aux_layers_are_added_up() -> None:
    prediction, segments = predicted(images=2, aux=2), [truth(0), truth(1, segments=2)]
    alone = [values(losses_of(replace(p, aux=()), segments)) for p in (*prediction.aux, prediction)]
    together = values(losses_of(prediction, segments))
    for name, value in together.items():
        assert value == pytest.approx(sum(terms[name] for terms in alone), rel=1e-5)


def test_weights_scale_their_own_terms() -> None:
    # A single query and segment: nothing to match, so the weights can act on the loss alone.
    prediction, segments = predicted(queries=1), truth(segments=1)
    one = values(losses_of(prediction, [segments], MaskCriterion(1, 1, 1, points=100)))
    other = values(losses_of(prediction, [segments], MaskCriterion(2, 3, 5, points=100)))
    assert other == pytest.approx({"class": 2 * one["class"], "mask": 3 * one["mask"], "dice": 5 * one["dice"]})


def test_losses_are_means_over_the_segments_of_the_whole_batch() -> None:
    prediction, segments = predicted(images=2), [truth(0, segments=3), truth(1, segments=1)]
    criterion = MaskCriterion(points=4000, oversample=1)
    both = values(losses_of(prediction, segments, criterion))
    alone = [
        values(
            losses_of(
                Prediction(prediction.class_logits[b : b + 1], PixelMasks(mask_logits(prediction)[b : b + 1])),
                [s],
                criterion,
            )
        )
        for b, s in enumerate(segments)
    ]
    for name in ("mask", "dice"):
        assert both[name] == pytest.approx((3 * alone[0][name] + alone[1][name]) / 4, rel=0.03)


def test_matching_weighs_class_mask_and_dice() -> None:
    """Query 0 has the class, query 1 the mask: the weights decide which of them is responsible."""
    segments = truth(segments=1)
    classes, maps = torch.zeros(1, 2, CLASSES + 1), torch.zeros(1, 2, *CANVAS)
    classes[0, 0, segments.classes[0]] = 5.0
    maps[0, 1] = torch.where(segments.id_map == 1, 5.0, -5.0)
    points = losses.random_points(batch_of(segments), 300)[0]
    targets, known = losses.point_targets(segments, points)
    sampled = PixelMasks(maps).sample(points[None])[0]
    for weights, query in [((10, 1, 1), 0), ((1, 10, 1), 1), ((1, 1, 10), 1)]:
        pair = MaskCriterion(*weights).match(classes[0], sampled, segments.classes, targets, known)
        assert pair[0].tolist() == [query]


def test_more_segments_than_queries() -> None:
    prediction = predicted(queries=2)
    terms = losses_of(prediction, [truth(segments=4)])
    assert all(torch.isfinite(term) for term in terms.values())
    target = assigned_classes(
        torch.zeros(1, 2, 4), [(torch.tensor([0, 1]), torch.tensor([3, 1]))], [torch.tensor([9, 8, 7, 6])]
    )
    assert target.tolist() == [[6, 8]]


def test_a_model_that_went_astray_is_reported() -> None:
    prediction = predicted()
    broken = replace(prediction, class_logits=prediction.class_logits * math.nan)
    with pytest.raises(TrainingError, match="6 of 6 queries have NaN or infinite costs"):
        losses_of(broken, [truth()])


def test_void_points_are_never_important() -> None:
    logits = torch.full((2, 12), 9.0)
    logits[:, 8:] = 0.0
    known = torch.ones(12, dtype=torch.bool)
    known[8:] = False
    chosen = losses.uncertain_points(logits, 8, important=0.5, known=known)
    assert known[chosen].all()
    assert not known[losses.uncertain_points(logits, 8, important=0.5)].all()
