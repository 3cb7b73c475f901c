"""From candidate masks to segments: what is painted, who wins, which candidate is taken; grids and duplicates."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from everymask.automatic import AT_ONCE, automatic, best_of_duplicates, grid_points
from everymask.errors import UsageError
from everymask.labels import LabelMap
from everymask.layers.masks import cell_positions
from everymask.layers.prompt_decoder import Candidates
from everymask.prompted import PromptedMasks, Unprompted, prompted, stacked
from everymask.types import Letterbox, Prediction, Prompts, Segments

LABELS = LabelMap.from_names(["cat", "dog"])


def candidates(logits: Tensor, ious: Tensor, ambiguous: list[bool]) -> Candidates:
    """Of masks [O, 4, h, w]."""
    count = len(logits)
    return Candidates(logits, ious, torch.ones(count), torch.zeros(count, 4, 8), torch.tensor(ambiguous))


def box_of(cells: tuple[int, int], source: tuple[int, int]) -> Letterbox:
    canvas = (cells[0] * 4, cells[1] * 4)
    return Letterbox(source, canvas, canvas)


def predicted(
    found: Candidates, source: tuple[int, int], classes: Tensor | None = None
) -> tuple[Prediction, Letterbox]:
    box = box_of((found.logits.shape[-2], found.logits.shape[-1]), source)
    return Prediction(torch.zeros(1, len(found), 3), PromptedMasks([found], [box], [classes])), box


@pytest.mark.parametrize("seed", range(12))
def test_painting_is_interpolating_and_deciding(seed: int) -> None:
    """Against `F.interpolate` of every mask at every pixel; pixels that rounding decides are left out."""
    torch.manual_seed(seed)
    cells, size = torch.randint(1, 9, (2,)).tolist(), torch.randint(1, 60, (2,)).tolist()
    logits, scores = torch.randn(4, *cells) * 2 - 1, torch.rand(4)
    full = F.interpolate(logits[None], size, mode="bilinear")[0]
    sure = full.abs().amin(0) > 1e-5
    rows, columns = (cell_positions(out, 4 * n, 4) for out, n in zip(size, cells, strict=True))
    expected = torch.zeros(size, dtype=torch.int32)
    for n in scores.argsort().tolist():
        expected[full[n] > 0] = n + 1
    (found,) = stacked(logits, scores, rows, columns)
    assert torch.equal(found[sure], expected[sure])
    layers = stacked(logits, scores, rows, columns, separate=True)
    for n in range(4):
        assert torch.equal((layers == n + 1).any(0)[sure], (full[n] > 0)[sure])


def test_no_more_layers_than_it_takes() -> None:
    logits = torch.full((4, 4, 4), -5.0)
    logits[0], logits[1, :2], logits[2, 2:], logits[3, :, :1] = 5, 5, 5, 5
    rows = columns = cell_positions(16, 16, 4)
    # The first fills everything; the second and third do not meet each other; the fourth meets all.
    assert len(stacked(logits, torch.tensor([0.9, 0.8, 0.7, 0.6]), rows, columns, separate=True)) == 3


def test_one_segment_an_object() -> None:
    logits = torch.full((3, 4, 4, 4), -5.0)
    logits[0, 0, :2], logits[2, 0, 1:] = 5, 5
    ious = torch.tensor([[0.5], [0.9], [0.7]]).expand(3, 4)
    prediction, box = predicted(candidates(logits, ious, [False] * 3), (16, 16), torch.tensor([1, 0, 0]))
    segments = prompted(prediction, box, LABELS)
    assert [(s.label, round(s.score, 2)) for s in segments] == [
        ("dog", 0.5),
        ("cat", 0.7),
    ]  # The empty one is left out.
    assert [s.area for s in segments] == [16 * 4, 16 * 12]  # Better wins where they meet.
    apart = prompted(prediction, box, LABELS, overlap="layers")
    assert apart.id_map.shape == (2, 16, 16)
    assert [s.area for s in apart] == [16 * 8, 16 * 12]
    unnamed, _ = predicted(candidates(logits, ious, [False] * 3), (16, 16))
    assert {s.label for s in prompted(unnamed, box, LABELS)} == {"object"}


def test_which_candidate_is_taken() -> None:
    logits = torch.full((2, 4, 4, 4), -5.0)
    for n in range(4):
        logits[:, n, : n + 1] = 5
    ious = torch.tensor([0.9, 0.2, 0.6, 0.4]).expand(2, 4)
    found = candidates(logits, ious, [True, False])
    assert found.likely().tolist() == [2, 0]
    assert found.trusted().tolist() == [2, 0]
    prediction, box = predicted(found, (16, 16))
    areas = [
        [s.area for s in prompted(prediction, box, LABELS, overlap="layers", candidate=n)] for n in (None, 0, 1, 2)
    ]
    # A box leaves no doubt: there is one candidate for it.
    assert areas == [[16 * 12, 16 * 4], [16 * 8, 16 * 4], [16 * 12, 16 * 4], [16 * 16, 16 * 4]]


def test_an_unstable_mask_is_not_trusted() -> None:
    logits = torch.full((2, 4, 10, 10), -5.0)
    logits[:, 0, :5] = 5
    logits[0, 0, 5] = 0.01  # Ten cells of sixty that a little more would cost.
    found = candidates(logits, torch.tensor([0.9, 0.1, 0.2, 0.3]).expand(2, 4), [False, False])
    assert found.trusted().tolist() == [3, 0]
    assert found.likely().tolist() == found.trusted(stable=0.0).tolist() == [0, 0]


def test_bad_options() -> None:
    prediction, box = predicted(candidates(torch.ones(1, 4, 4, 4), torch.ones(1, 4), [True]), (16, 16))
    with pytest.raises(UsageError) as error:
        prompted(prediction, box, LABELS, candidate=3)
    assert str(error.value) == "there are three candidates: candidate (3 is not 0, 1 or 2)."
    with pytest.raises(UsageError) as error:
        prompted(prediction, box, LABELS, overlap="both")  # type: ignore[arg-type]
    assert str(error.value) == "an option is unknown: overlap (both). score or layers."
    with pytest.raises(UsageError) as error:
        automatic(prediction, box, LABELS)
    text = "the task automatic takes no prompts: prompts. Leave points and boxes out, or take the task prompted."
    assert str(error.value) == text
    nobody = Prediction(torch.zeros(1, 0, 3), Unprompted(lambda b, prompts: pytest.fail("nobody was to ask")))
    with pytest.raises(UsageError) as error:
        prompted(nobody, box, LABELS)
    text = "there is no prompt at all: prompts. Give points or boxes, or take the task automatic."
    assert str(error.value) == text
    for option, text in (
        ({"grid": 0}, "an option is out of range: grid (0 is below 1)."),
        ({"iou": 2}, "a threshold must lie in 0..1: iou (got 2)."),
    ):
        with pytest.raises(UsageError) as error:
            automatic(nobody, box, LABELS, **option)
        assert str(error.value) == text


# ---- automatic -------------------------------------------------------------------------------------------------------


def test_the_grid_covers_the_content_evenly() -> None:
    points = grid_points((40, 80), 4)
    assert points[:5].tolist() == [[9.5, 4.5], [29.5, 4.5], [49.5, 4.5], [69.5, 4.5], [9.5, 14.5]]
    assert points[-1].tolist() == [69.5, 34.5]


def test_duplicates_go() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 30]]).float()
    scores = torch.tensor([0.8, 0.9, 0.7, 0.1])
    assert best_of_duplicates(boxes, scores, 0.7).tolist() == [1, 2, 3]
    assert best_of_duplicates(boxes, scores, 0.5).tolist() == [1, 3]
    assert best_of_duplicates(boxes, scores, 1.0).tolist() == [1, 0, 2, 3]
    assert best_of_duplicates(boxes[:0], scores[:0], 0.7).tolist() == []


def test_duplicates_by_brute_force() -> None:
    torch.manual_seed(0)
    boxes = torch.randint(0, 12, (30, 4)).float().view(30, 2, 2).sort(1).values.flatten(1) + torch.tensor([0, 0, 1, 1])
    scores, kept = torch.rand(30), list[int]()

    def iou(a: Tensor, b: Tensor) -> float:
        cells = [{*itertools.product(range(int(x0), int(x1)), range(int(y0), int(y1)))} for x0, y0, x1, y1 in (a, b)]
        return len(cells[0] & cells[1]) / len(cells[0] | cells[1])

    for n in scores.argsort(descending=True).tolist():
        if all(iou(boxes[n], boxes[m]) <= 0.4 for m in kept):
            kept.append(n)
    assert best_of_duplicates(boxes, scores, 0.4).tolist() == kept


class Squares:
    """Answers every click with the square tile of 8 x 8 cells that it is in, once sure and twice not."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, b: int, prompts: Prompts) -> Candidates:
        self.asked.append(prompts.count)
        logits = torch.full((len(prompts), 4, 32, 32), -5.0)
        for n, (x, y) in enumerate(prompts.points.tolist()):
            i, j = int(y // 32) * 8, int(x // 32) * 8
            logits[n, 1, i : i + 8, j : j + 8] = 5.0
            logits[n, 2, i : i + 8, j : j + 8] = 0.5  # Unstable.
            logits[n, 3] = 5.0  # Everything, but thought to be bad.
        ious = torch.tensor([1.0, 0.9, 0.95, 0.5]).expand(len(prompts), 4)
        return candidates(logits, ious, [True] * len(prompts))


def found_by(ask: Squares, **options: object) -> Segments:
    box = box_of((32, 32), (64, 96))
    return automatic(Prediction(torch.zeros(1, 0, 3), Unprompted(ask)), box, LABELS, **options)  # type: ignore[arg-type]


def test_everything_is_found_once() -> None:
    ask = Squares()
    segments = found_by(ask, grid=12)
    assert sum(ask.asked) == 144
    assert max(ask.asked) <= AT_ONCE
    assert len(segments) == 16
    assert all(16 * 24 - 3 <= s.area <= 16 * 24 for s in segments)  # Interpolation rounds the corners.
    assert {s.label for s in segments} == {"object"}
    assert len(found_by(Squares(), grid=12, iou=0.92)) == 0
    assert len(found_by(Squares(), grid=12, least_area=400)) == 0
    # The whole photo is there as well, below the smaller tiles, which leave it their corners.
    assert [s.area < 50 for s in found_by(Squares(), grid=12, iou=0.4)] == [False] * 16 + [True]
    assert len(found_by(Squares(), grid=2, iou=0.4)) == 5
