"""The loss of prompted masks against a reference written out in float64, and what it must not see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from everymask import prompt_criterion
from everymask.models.sam2 import PRESETS, Model
from everymask.prompt_criterion import Lesson, PromptCriterion, at_cells, at_pixels
from tests.contract import batch_of
from tests.scenes import LABELS, scene

Array = np.ndarray


def interpolated(cells: Array, size: tuple[int, int]) -> Array:
    """Bilinear, pixel by pixel: cell i covers pixels 4 i to 4 i + 3."""
    full = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = (np.clip((p + 0.5) / 4 - 0.5, 0, n - 1) for p, n in zip((y, x), cells.shape, strict=True))
            i, j = int(v), int(u)
            k, m = min(i + 1, cells.shape[0] - 1), min(j + 1, cells.shape[1] - 1)
            top, bottom = (row[j] + (row[m] - row[j]) * (u - j) for row in (cells[i], cells[k]))
            full[y, x] = top + (bottom - top) * (v - i)
    return full


def reference(
    logits: Array, ious: Array, presence: float, truth: Array, known: Array, there: float
) -> dict[str, float]:
    """One object, candidates [M, H, W]: SAM 2's `MultiStepMultiMasksAndIous`, pixel by pixel and in float64.

    Args:
        there: 1 if the object is in the image, 0 if not.
    """
    masks, dices, wrong = [], [], []
    for candidate, iou in zip(logits.astype(np.float64), ious, strict=True):
        focal, both, total, hits, either = [], 0.0, 0.0, 0, 0
        for value, t, seen in zip(candidate.ravel(), truth.ravel(), known.ravel(), strict=True):
            if not seen:
                continue
            p = 1 / (1 + math.exp(-value))
            entropy = max(value, 0) - value * t + math.log1p(math.exp(-abs(value)))
            focal.append((0.25 if t else 0.75) * (1 - (p if t else 1 - p)) ** 2 * entropy)
            both, total = both + p * t, total + p + t
            hits, either = hits + (value > 0 and t), either + (value > 0 or t)
        masks.append(math.fsum(focal) / max(1, len(focal)))
        dices.append(1 - (2 * both + 1) / (total + 1))
        wrong.append(abs(iou - hits / max(1, either)))
    best = min(range(len(masks)), key=lambda m: 20 * masks[m] + dices[m])
    entropy = max(presence, 0) - presence * there + math.log1p(math.exp(-abs(presence)))
    return {
        "mask": 20 * masks[best] * there,
        "dice": dices[best] * there,
        "iou": math.fsum(wrong) / len(wrong) * there,
        "presence": entropy,
    }


def lesson_of(truth: Array, known: Array, counts: list[float]) -> Lesson:
    points = torch.zeros(len(truth), 1, 2)
    labels = torch.zeros(len(truth), 1, dtype=torch.int32)
    return Lesson(torch.from_numpy(truth), torch.from_numpy(known), points, labels, torch.tensor(counts))


@pytest.mark.parametrize("cells", [False, True])
@pytest.mark.parametrize("size", [(12, 16), (9, 14), (16, 3)])
def test_terms_are_those_of_the_reference(size: tuple[int, int], cells: bool) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((4, *size)) < 0.3
    truth[2] = False  # Not there.
    known = rng.random(size) < 0.8
    truth &= known
    logits = torch.from_numpy(rng.normal(0, 3, (4, 3, 4, 4))).float()
    ious, presence = torch.rand(4, 3), torch.randn(4)
    lesson = lesson_of(truth, known, [1, 1, 1, 0])
    found = PromptCriterion(cells=cells)(logits, ious, presence, lesson, torch.arange(4))
    expected = dict.fromkeys(found, 0.0)
    for n in range(3):  # The last object counts for nothing.
        if cells:
            own, seen = truth[n, 2::4, 2::4], known[2::4, 2::4]
            shown = logits[n].numpy()[:, : own.shape[0], : own.shape[1]]
        else:
            own, seen = truth[n], known
            shown = np.stack([interpolated(c, size) for c in logits[n].double().numpy()])
        terms = reference(shown, ious[n].numpy(), float(presence[n]), own, seen, float(truth[n].any()))
        for name, value in terms.items():
            expected[name] += value
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_void_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is predicted there nor what a careless truth says of it."""
    rng = np.random.default_rng(1)
    known = np.ones((16, 16), bool)
    known[4:9, 3:12] = False
    truth = (rng.random((2, 16, 16)) < 0.5) & known
    maps = torch.randn(2, 3, 16, 16)
    wild = maps + 50 * torch.randn(16, 16) * ~torch.from_numpy(known)
    ious, presence = torch.rand(2, 3), torch.randn(2)
    found = []
    for shown in (maps, wild):
        monkeypatch.setattr(prompt_criterion, "at_pixels", lambda _, size, shown=shown: shown)
        found.append(PromptCriterion()(maps, ious, presence, lesson_of(truth, known, [1, 1]), torch.arange(2)))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)
        assert float(value) > 0


def test_rounds_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a batch is the sum over rounds of the criterion's terms, divided by the objects."""
    torch.manual_seed(0)
    model = Model(replace(PRESETS["tiny"], clicks=3), LABELS).train()
    seen: list[dict[str, torch.Tensor]] = []
    original = PromptCriterion.__call__

    def counted(self: PromptCriterion, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(original(self, *args))
        return seen[-1]

    monkeypatch.setattr(PromptCriterion, "__call__", counted)
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    terms = model.loss(batch)
    assert len(seen) == 2 * 4
    for name, value in terms.items():
        torch.testing.assert_close(value, torch.stack([some[name] for some in seen]).sum() / 4)


def test_cells_and_pixels_lie_over_each_other() -> None:
    ramp = torch.arange(8.0)[None, None, None].expand(1, 1, 8, 8)
    full = at_pixels(ramp, (30, 32))
    assert full.shape == (1, 1, 30, 32)
    # The middle of cell 3 is at pixel 13.5: between pixels 13 and 14.
    assert float(full[0, 0, 5, 13:15].mean()) == pytest.approx(3)
    columns = torch.arange(32)[None, None].expand(1, 30, 32)
    assert at_cells(columns, ramp)[0, 0].tolist() == [2, 6, 10, 14, 18, 22, 26, 30]
