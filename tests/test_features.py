"""Encoding a photo once: what is remembered, and that nothing remembered is ever stale."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from everymask.errors import UsageError
from everymask.features import FeatureMemory, fingerprint
from everymask.labels import LabelMap
from everymask.model import EncodeOnce
from everymask.types import Batch, Letterbox, Prediction

BOX = Letterbox((4, 4), (4, 4), (4, 4))


@dataclass(frozen=True)
class Config:
    image_side: int = 4


class Words(EncodeOnce):
    """Class logits are the photo's mean times a weight, one for each class."""

    open_vocabulary = True

    def __init__(self) -> None:
        super().__init__(Config(), LabelMap.from_names(["cat", "dog"]))
        self.weight = nn.Parameter(torch.ones(()))

    def encode(self, batch: Batch) -> Tensor:
        return batch.images.float().mean((1, 2, 3)) * self.weight

    def answer(self, features: Tensor, batch: Batch) -> Prediction:
        masks: Any = None
        return Prediction(features[:, None, None].expand(-1, 1, len(self.labels) + 1), masks)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"sum": self(batch).class_logits.sum()}


class Fixed(Words):
    open_vocabulary = False


def photo(value: int) -> Batch:
    return Batch(torch.full((1, 3, 4, 4), value, dtype=torch.uint8), (BOX,))


def answers(model: Words, batch: Batch) -> float:
    return float(model.recall(batch).class_logits[0, 0, 0].detach())


def test_the_same_photo_is_encoded_once() -> None:
    model = Words()
    assert [answers(model, photo(3)), answers(model, photo(3))] == [3, 3]
    assert model.features.encoded == 1


def test_another_photo_is_encoded_anew_and_the_oldest_forgotten() -> None:
    model = Words()
    model.features = FeatureMemory(capacity=2)
    for value in (1, 2, 1, 3, 1, 2):
        assert answers(model, photo(value)) == value
    assert model.features.encoded == 4  # 2 was forgotten for 3


def test_nothing_is_remembered_at_capacity_zero() -> None:
    model = Words()
    model.features = FeatureMemory(capacity=0)
    assert [answers(model, photo(3)) for _ in range(3)] == [3, 3, 3]
    assert model.features.encoded == 3


def change_in_place(model: Words) -> None:
    with torch.no_grad():
        model.weight.mul_(2)


def exchange(model: Words) -> None:
    model.weight = nn.Parameter(torch.tensor(2.0))


def load(model: Words) -> None:
    model.load_state_dict({"weight": torch.tensor(2.0)})


@pytest.mark.parametrize("change", [change_in_place, exchange, load])
def test_changed_weights_encode_anew(change: Any) -> None:
    model = Words()
    assert answers(model, photo(3)) == 3
    change(model)
    assert answers(model, photo(3)) == 6


def test_the_same_pixels_in_another_letterbox_are_another_photo() -> None:
    model = Words()
    answers(model, photo(3))
    answers(model, Batch(photo(3).images, (Letterbox((8, 8), (4, 4), (4, 4)),)))
    assert model.features.encoded == 2


def test_other_classes_share_weights_and_features() -> None:
    model = Words()
    answers(model, photo(3))
    other = model.with_classes(["sofa", "rug", "lamp"])
    assert other.labels.names == ("sofa", "rug", "lamp")
    assert model.labels.names == ("cat", "dog")
    assert other.recall(photo(3)).class_logits.shape == (1, 1, 4)
    assert model.features.encoded == 1
    change_in_place(model)
    assert answers(other, photo(3)) == 6  # type: ignore[arg-type]


def test_fixed_classes_are_not_exchanged() -> None:
    with pytest.raises(UsageError, match=r"the classes of this model are fixed: .* \(it has cat, dog\)"):
        Fixed().with_classes(["sofa"])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_remember_nothing(duplicate: Any) -> None:
    model = Words()
    answers(model, photo(3))
    twin = duplicate(model)
    assert twin.features is not model.features
    assert answers(twin, photo(3)) == 3
    assert twin.features.encoded == 1


def test_fingerprints_tell_shape_and_type_apart() -> None:
    zeros = torch.zeros(2, 8, dtype=torch.uint8)
    others = (zeros, zeros.view(8, 2), zeros.view(torch.int16), zeros + 1)
    assert len({fingerprint(x) for x in others}) == len(others)
