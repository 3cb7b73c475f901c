"""Boxes against `transformers`, against masks counted by hand, and where they are empty or outside."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import generalized_box_iou

from everymask import losses, matcher
from everymask.boxes import area, from_corners, generalized_iou, segment_boxes, to_corners
from everymask.types import Segments


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """(cx, cy, w, h) of boxes, some beyond the image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator) * torch.tensor([1.2, 1.2, 0.6, 0.6])


def test_numbers_are_those_of_transformers() -> None:
    one, other = random_boxes(7, 0), random_boxes(5, 1)
    corners = center_to_corners_format(one), center_to_corners_format(other)
    torch.testing.assert_close(to_corners(one), corners[0])
    expected = generalized_box_iou(*corners)
    torch.testing.assert_close(generalized_iou(to_corners(one)[:, None], to_corners(other)), expected)
    torch.testing.assert_close(matcher.giou_cost(one, other), -expected)
    torch.testing.assert_close(matcher.box_cost(one, other), torch.cdist(one, other, p=1))
    torch.testing.assert_close(losses.box_giou(one[:5], other), 1 - expected.diagonal())
    l1 = torch.nn.functional.l1_loss(one[:5], other, reduction="none").sum(1)
    torch.testing.assert_close(losses.box_l1(one[:5], other), l1)


@given(st.integers(0, 1000))
def test_corners_and_back(seed: int) -> None:
    boxes = random_boxes(4, seed)
    torch.testing.assert_close(from_corners(to_corners(boxes)), boxes)


def test_empty_boxes_have_finite_values_and_gradients() -> None:
    point, far, whole = [0.5, 0.5, 0.0, 0.0], [3.0, -2.0, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0]
    boxes = torch.tensor([point, point, far, whole], requires_grad=True)
    targets = torch.tensor([point, whole, whole, whole])
    values = losses.box_giou(boxes, targets)
    values.sum().backward()
    assert torch.isfinite(boxes.grad).all()
    torch.testing.assert_close(values[[1, 3]], torch.tensor([1.0, 0.0]))
    assert 1 < values[2] < 2
    assert area(torch.tensor([0.6, 0.6, 0.4, 0.4])) == 0


def test_boxes_of_segments_are_edges_of_pixels() -> None:
    ids = torch.tensor(
        [
            [0, 1, 1, 0, -1],
            [0, 1, 0, 0, -1],
            [0, 0, 0, 3, -1],
            [0, 0, 0, 0, -1],
        ]
    )
    boxes, present = segment_boxes(Segments.build(ids, [0, 0, 0]), content=(4, 4))
    assert present.tolist() == [True, False, True]
    assert to_corners(boxes[0]).tolist() == [0.25, 0.0, 0.75, 0.5]
    assert to_corners(boxes[2]).tolist() == [0.75, 0.5, 1.0, 0.75]


def test_boxes_of_overlapping_layers() -> None:
    ids = torch.zeros(2, 3, 5, dtype=torch.int32)
    ids[0, 0, 0], ids[1, 2, 4], ids[1, 0, 0] = 1, 1, 2
    boxes, present = segment_boxes(Segments.build(ids, [0, 0]), content=(3, 5))
    assert present.all()
    torch.testing.assert_close(to_corners(boxes), torch.tensor([[0, 0, 1, 1], [0, 0, 1 / 5, 1 / 3]]))


@given(st.integers(0, 1000))
def test_boxes_agree_with_those_of_single_masks(seed: int) -> None:
    ids = torch.randint(-1, 4, (6, 9), generator=torch.Generator().manual_seed(seed))
    segments = Segments.build(ids, [0, 0, 0])
    boxes, present = segment_boxes(segments, content=(6, 9))
    for segment, corners, there in zip(segments, to_corners(boxes), present, strict=True):
        assert there == (segment.box is not None)
        if segment.box:
            x0, y0, x1, y1 = segment.box
            torch.testing.assert_close(corners, torch.tensor([x0 / 9, y0 / 6, (x1 + 1) / 9, (y1 + 1) / 6]))


def test_no_segments() -> None:
    boxes, present = segment_boxes(Segments.build(torch.zeros(3, 3), []), content=(3, 3))
    assert boxes.shape == (0, 4)
    assert present.shape == (0,)
