"""Every system has its contract tests, and what they promise can fail."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from everymask import criterion
from everymask.models import list_models
from everymask.types import Batch, Segments
from tests.contract import ModelContract, batch_of, segment_faults
from tests.scenes import LABELS, scene


@pytest.mark.parametrize("name", list_models())
def test_every_model_has_its_contract_tests(name: str) -> None:
    tests = vars(importlib.import_module(f"tests.test_{name}")).values()
    contracts = [test for test in tests if isinstance(test, type) and issubclass(test, ModelContract)]
    assert name in [getattr(test, "system", None) for test in contracts]


class Hybrid(ModelContract):
    """Not collected: its checks are called on a model that was spoilt first."""

    system = "hybrid"


def without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "valid", lambda self, multiple=32: None)


def blind_to_void(monkeypatch: pytest.MonkeyPatch) -> None:
    def targets(segments: Segments, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, known = real(segments, points)
        return found, torch.ones_like(known)

    real = criterion.losses.point_targets
    monkeypatch.setattr(criterion.losses, "point_targets", targets)


def blind_to_crowds(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Segments.build
    monkeypatch.setattr(Segments, "build", lambda *args, crowd=None, **options: real(*args, **options))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (without_padding, lambda t: t.test_a_batch_gives_what_single_images_give(t.create().eval())),
        (without_padding, lambda t: t.test_padding_changes_nothing(t.create().eval(), 32, 32)),
        (blind_to_void, lambda t: t.test_void_and_padding_get_no_gradient(t.create(), two_scenes())),
        (blind_to_crowds, lambda t: t.test_a_crowd_counts_as_void(t.create(), two_scenes())),
    ],
)
def test_a_spoilt_model_is_found(
    spoil: Callable[[pytest.MonkeyPatch], None], check: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(Hybrid())
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        check(Hybrid())


def two_scenes() -> Batch:
    return batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)


@pytest.mark.parametrize(
    ("ids", "classes", "scores", "fault"),
    [
        ([[0, 1]], [0, 1], [0.5, 0.5], "rows without a pixel"),
        ([[0, 1]], [0], [1.5], "scores"),
        ([[0, -1]], [], [], "ids beyond the table"),
        ([[0, 1, 1]], [0], [0.5], "size"),
    ],
)
def test_faulty_segments_are_found(ids: list[list[int]], classes: list[int], scores: list[float], fault: str) -> None:
    segments = Segments.build(torch.tensor(ids), classes, labels=LABELS, scores=torch.tensor(scores))
    assert segment_faults(segments, (1, 2)) == [fault]
