"""Ways in which numbers of a training may not be finite: each patches a model that is about to take a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from everymask.matcher import hungarian
from everymask.model import SegmentationModel
from everymask.types import Batch


def spoil_logits(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model.forward

    def forward(batch: Batch) -> Any:
        found = real(batch)
        return replace(found, class_logits=found.class_logits * torch.nan)

    monkeypatch.setattr(model, "forward", forward)


def spoil_masks(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for term in ("mask_bce", "mask_focal"):
        monkeypatch.setattr(f"everymask.losses.{term}", lambda logits, *_: logits.sum(-1) * torch.nan)


def spoil_loss(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model.loss
    monkeypatch.setattr(model, "loss", lambda batch: real(batch) | {"extra": torch.tensor(torch.inf)})


def spoil_gradient(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    next(model.parameters()).register_hook(lambda gradient: gradient * torch.inf)


def spoil_weights(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim > 1)[0] = torch.nan


def spoil_costs(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everymask.criterion.matcher.hungarian", lambda cost: hungarian(cost * torch.inf))


PLACES: dict[str, Callable[[SegmentationModel, pytest.MonkeyPatch], None]] = {
    "logits": spoil_logits,
    "masks": spoil_masks,
    "loss": spoil_loss,
    "gradient": spoil_gradient,
    "weights": spoil_weights,
    "costs": spoil_costs,
}
