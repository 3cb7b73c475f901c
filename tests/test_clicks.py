"""Clicks drawn while a model answers: where they may be, which label they have, which of them are deepest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from torch import Tensor

from everymask.clicks import (
    correction_clicks,
    deepest_pixels,
    random_pixels,
    sampled_boxes,
    sampled_clicks,
    tight_boxes,
)

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9))


def at(masks: Tensor, points: Tensor) -> Tensor:
    """The value of each mask at its own point."""
    x, y = points.long().unbind(-1)
    assert torch.equal(points, points.round())
    return masks[torch.arange(len(masks)), y, x]


@given(MASKS)
def test_a_random_pixel_is_of_its_region(masks: np.ndarray) -> None:
    regions = torch.from_numpy(masks)
    points, found = random_pixels(regions)
    assert torch.equal(found, regions.flatten(1).any(1))
    assert at(regions, points)[found].all()


def test_every_pixel_has_the_same_chance() -> None:
    torch.manual_seed(0)
    region = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
    points, _ = random_pixels(region.expand(4000, 3, 3))
    places, counts = points.unique(dim=0, return_counts=True)
    assert places.tolist() == [[0, 2], [1, 0], [2, 0], [2, 1]]
    assert ((counts - 1000).abs() < 120).all()


@given(MASKS)
def test_the_deepest_pixel(masks: np.ndarray) -> None:
    points, depths = deepest_pixels(torch.from_numpy(masks))
    for mask, point, depth in zip(masks, points.long().tolist(), depths.tolist(), strict=True):
        inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        assert depth == pytest.approx(inside.max())
        if mask.any():
            assert inside[point[1], point[0]] == inside.max()


def test_the_deepest_pixel_by_hand() -> None:
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 2:7, 3:8] = True
    points, depths = deepest_pixels(mask)
    assert points.tolist() == [[5, 4]]
    assert depths.tolist() == [3]


@given(MASKS, st.randoms(use_true_random=False), st.booleans())
def test_corrections_are_where_the_answer_is_wrong(masks: np.ndarray, chance: object, deepest: bool) -> None:
    rng = np.random.default_rng(chance.randrange(2**32))  # type: ignore[attr-defined]
    truth, predicted = torch.from_numpy(masks), torch.from_numpy(rng.random(masks.shape) < 0.5)
    known = torch.from_numpy(rng.random(masks.shape[1:]) < 0.8)
    points, labels = correction_clicks(predicted, truth, known, deepest=deepest)
    wrong, seen = (predicted != truth) & known, known.expand_as(truth)
    assert labels.dtype == torch.int32
    for n in range(len(truth)):
        if not known.any():
            assert labels[n] == -1
            continue
        assert at(seen, points)[n]
        assert labels[n] == int(at(truth, points)[n])
        if wrong[n].any():
            assert at(wrong, points)[n]
        elif (~truth[n] & known).any():
            assert labels[n] == 0


def test_the_larger_error_is_corrected_first() -> None:
    truth = torch.zeros(2, 12, 12, dtype=torch.bool)
    truth[:, 1:8, 1:8] = True
    predicted = truth.clone()
    predicted[0, 2:7, 2:7] = False  # Missed, five pixels wide ...
    predicted[0, 9:12, 9:12] = True  # ... against an extra of three.
    predicted[1, 9:12, 4:12] = True
    predicted[1, 1, 1] = False
    points, labels = correction_clicks(predicted, truth, torch.ones(12, 12, dtype=torch.bool), deepest=True)
    assert points.tolist() == [[4, 4], [5, 10]]
    assert labels.tolist() == [1, 0]


@given(MASKS)
def test_first_clicks_and_boxes(masks: np.ndarray) -> None:
    truth = torch.from_numpy(masks)
    present = truth.flatten(1).any(1)
    points, labels = sampled_clicks(truth)
    assert torch.equal(labels[:, 0] == 1, present)
    assert at(truth, points[:, 0])[present].all()
    boxes, found = tight_boxes(truth)
    corners, kinds = sampled_boxes(truth)
    assert torch.equal(found, present)
    assert kinds.tolist() == [[2, 3] if there else [-1, -1] for there in present.tolist()]
    for mask, box, moved in zip(masks[present.numpy()], boxes[present].tolist(), corners[present], strict=True):
        ys, xs = np.nonzero(mask)
        assert box == [xs.min(), ys.min(), xs.max(), ys.max()]
        most = torch.tensor([0.1 * (box[2] - box[0]), 0.1 * (box[3] - box[1])])
        assert ((moved - torch.tensor(box).view(2, 2)).abs() <= most + 1e-5).all()
        assert (moved >= 0).all()
        assert (moved <= torch.tensor([mask.shape[1] - 1.0, mask.shape[0] - 1.0])).all()


def test_large_boxes_move_by_twenty_pixels_at_most() -> None:
    torch.manual_seed(0)
    truth = torch.zeros(64, 700, 700, dtype=torch.bool)
    truth[:, 50:650, 50:650] = True
    corners, _ = sampled_boxes(truth)
    moved = (corners - torch.tensor([[50.0, 50.0], [649.0, 649.0]])).abs().amax()
    assert 15 < moved <= 20
