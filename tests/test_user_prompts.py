"""Points and boxes as users give them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from everymask.errors import UsageError
from everymask.user_prompts import check_inside, given_prompts

CASES: list[tuple[dict[str, Any], list[list[float]], list[int], list[int]]] = [
    ({"points": [(4, 3)]}, [[4, 3]], [1], [0]),
    ({"points": [(4, 3), (1, 2)], "labels": [1, 0]}, [[4, 3], [1, 2]], [1, 0], [0, 0]),
    ({"points": [[(4, 3)], [(1, 2), (5, 5)]]}, [[4, 3], [1, 2], [5, 5]], [1, 1, 1], [0, 1, 1]),
    ({"points": [[(4, 3)], [(1, 2)]], "labels": [[0], [1]]}, [[4, 3], [1, 2]], [0, 1], [0, 1]),
    ({"boxes": (1, 2, 3, 4)}, [[1, 2], [3, 4]], [2, 3], [0, 0]),
    ({"boxes": [(1, 2, 3, 4), (0, 0, 0, 0)]}, [[1, 2], [3, 4], [0, 0], [0, 0]], [2, 3, 2, 3], [0, 0, 1, 1]),
    (
        {"points": [[(9, 9)], [(8, 8)]], "labels": [[0], [1]], "boxes": [(1, 2, 3, 4), (5, 6, 7, 8)]},
        [[1, 2], [3, 4], [9, 9], [5, 6], [7, 8], [8, 8]],
        [2, 3, 0, 2, 3, 1],
        [0, 0, 0, 1, 1, 1],
    ),
]


@pytest.mark.parametrize(("given", "points", "labels", "objects"), CASES)
def test_what_is_given_becomes_prompts(
    given: dict[str, Any], points: list[list[float]], labels: list[int], objects: list[int]
) -> None:
    prompts = given_prompts(**given)
    assert prompts is not None
    assert prompts.points.tolist() == points
    assert prompts.labels.tolist() == labels
    assert prompts.objects.tolist() == objects
    assert [str(t.dtype) for t in (prompts.points, prompts.labels, prompts.objects)] == [
        "torch.float32",
        "torch.int32",
        "torch.int64",
    ]


def test_nothing_given_is_no_prompt() -> None:
    assert given_prompts() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [1]}, "there are labels but no points: labels."),
        ({"points": []}, "there is no prompt at all: points. Give a point or a box."),
        ({"points": [(1, 2)], "labels": [1, 0]}, "each point has one label: labels (1 points, 2 labels)."),
        ({"points": [(1, 2)], "labels": [-1]}, "no such label of a point: labels (-1). 1 is on the object"),
        ({"points": [(1, 2, 3)]}, "points have the wrong shape: points (shape (1, 3), needed [n, 2])."),
        ({"points": [(1, float("nan"))]}, "points have the wrong shape: points (not finite, needed [n, 2])."),
        ({"points": "ab"}, "points are not numbers: points"),
        ({"boxes": (5, 2, 3, 4)}, "the corners of a box are not in order: boxes ([5.0, 2.0, 3.0, 4.0])."),
        ({"boxes": [(5, 2, 3)]}, "boxes have the wrong shape: boxes (shape (1, 3), needed [n, 4])."),
        (
            {"points": [(1, 1)], "boxes": [(0, 0, 1, 1), (2, 2, 3, 3)]},
            "each object has its points and its box: boxes (points for 1 objects, 2 boxes).",
        ),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        given_prompts(**given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("point", "inside"), [((-0.5, 0), True), ((9.5, 4.5), True), ((-0.6, 0), False), ((0, 5), False)]
)
def test_prompts_must_lie_on_the_photo(point: tuple[float, float], inside: bool) -> None:
    prompts = given_prompts(points=[point])
    assert prompts is not None
    refused = pytest.raises(UsageError, match=r"a prompt lies outside the photo: points \(.* on a photo of 10 x 5\)")
    with nullcontext() if inside else refused:
        check_inside(prompts, (5, 10))
