"""Scores by task, on drawn truth and drawn predictions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from everymask.datasets import Dataset
from everymask.errors import UsageError
from everymask.evaluate import evaluate, stacked, things_of
from everymask.labels import Label, LabelMap
from everymask.models import create_model
from everymask.types import Sample, Segments
from tests.scenes import LABELS, scene

TABLE = LabelMap((Label("cat"), Label("dog"), Label("sky", is_thing=False)))
CAT, DOG, SKY = range(3)


class Drawn(Dataset):
    """Samples from memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples, self.labels = samples, samples[0].segments.labels or TABLE
        self.names = tuple(sample.name for sample in samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[range(len(self))[index]]


def drawn(ids: list[list[int]], classes: list[int], **columns: Any) -> Segments:
    """Each number is a square of 8 x 8 pixels."""
    return Segments.build(np.kron(np.array(ids), np.ones((8, 8), np.int32)), classes, labels=TABLE, **columns)


def sample(truth: Segments) -> Sample:
    return Sample(np.zeros((*truth.size, 3), np.uint8), truth, "drawn")


Given = Callable[..., None]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Fixes what models answer, one `Segments` a task asked for."""

    def give(*found: Segments) -> None:
        monkeypatch.setattr(sys.modules["everymask.evaluate"], "answers", lambda *_, **__: list(found))

    return give


def scored(truth: Segments, task: str) -> dict[str, Any]:
    model = create_model("hybrid", "tiny", classes=TABLE)
    return evaluate(model, Drawn([sample(truth)]), task=task)  # type: ignore[arg-type]


TRUTH = drawn([[1, 1, 0, 2], [1, 1, 0, 2], [3, 3, 3, -1]], [CAT, CAT, SKY])


def test_perfect_instances(answered: Given) -> None:
    found = drawn([[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 0]], [CAT, CAT], scores=torch.tensor([0.9, 0.8]))
    answered(found, found)
    scores = scored(TRUTH, "instance")
    assert (scores["ap"], scores["pq"], scores["pq_things"]) == (1, 1, 1)
    assert {name: row["fn"] for name, row in scores["per_class"].items()} == {"cat": 0, "dog": 0, "sky": 0}
    assert [row["pq"] for row in scores["per_image"]] == [1]
    assert scores["images"] == 1


def test_instances_on_void_are_not_wrong_and_on_stuff_are(answered: Given) -> None:
    ids, table = [[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 3]], [CAT, CAT, CAT]
    found = drawn(ids, table, scores=torch.tensor([0.8, 0.7, 0.9]))
    answered(found, found)
    assert (scored(TRUTH, "instance")["ap"], scored(TRUTH, "instance")["pq"]) == (1, 1)
    found = drawn([[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 3, 0]], table, scores=torch.tensor([0.8, 0.7, 0.9]))
    answered(found, found)
    scores = scored(TRUTH, "instance")
    assert scores["ap"] == pytest.approx(2 / 3, abs=0.01)  # One false alarm ranks before two hits.
    assert scores["per_class"]["cat"]["fp"] == 1


def test_average_precision_sees_candidates_that_quality_does_not(answered: Given) -> None:
    sure = drawn([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], [CAT], scores=torch.tensor([0.9]))
    candidates = drawn([[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 0]], [CAT, CAT], scores=torch.tensor([0.9, 0.1]))
    answered(sure, candidates)
    scores = scored(TRUTH, "instance")
    assert (scores["ap"], scores["rq"]) == (1, pytest.approx(2 / 3))


def test_panoptic_scores_things_and_stuff(answered: Given) -> None:
    answered(drawn([[1, 1, 0, 0], [1, 1, 0, 0], [2, 2, 2, 2]], [CAT, SKY], scores=torch.tensor([0.9, 0.9])))
    scores = scored(TRUTH, "panoptic")
    assert scores["pq_stuff"] == 1
    assert scores["pq_things"] == pytest.approx(2 / 3)
    assert scores["pq"] == pytest.approx((1 + 2 / 3) / 2)


def test_things_alone_keep_void_and_crowds() -> None:
    truth = drawn([[3, 1, 0, 2], [-1, 1, 0, 2]], [CAT, DOG, SKY], crowd=[False, True, False])
    things = things_of(truth)
    assert things.id_map[::8, ::8].tolist() == [[0, 1, 0, 2], [-1, 1, 0, 2]]
    assert things.classes.tolist() == [CAT, DOG]
    assert things.is_crowd.tolist() == [False, True]
    assert stacked(things_of(drawn([[1]], [SKY]))).shape == (0, 8, 8)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_a_real_model_is_scored_on_every_task(task: str) -> None:
    model = create_model("maskformer", "tiny", classes=LABELS).eval()
    scores = evaluate(model, Drawn([scene(), scene(seed=1)]), task=task, side=64)  # type: ignore[arg-type]
    assert scores["images"] == 2
    assert {row["name"] for row in scores["per_image"]} == {"scene0", "scene1"}
    assert set(scores["per_class"]) == set(LABELS.names)


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no scores for this task: matting \(there are: semantic, instance, panop"):
        evaluate(create_model("hybrid", "tiny", classes=TABLE), Drawn([sample(TRUTH)]), task="matting")  # type: ignore[arg-type]
