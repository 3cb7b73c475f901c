"""Where a transformer model looked: maps of attention behind a result, for any system with `layers.transformer` in it.

    for each query kept: its mask, where the last decoder layer looked for it, and where each head looked
    for one pixel of the photo: which other places each encoder layer took into account

The heads are those of DETR's mask head where there is one, else those of the last decoder layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .boxes import to_corners
from .errors import UsageError
from .image import read_image
from .layers.mask_head import AttentionMasks
from .layers.masks import resample_content
from .layers.transformer import Attention, DecoderLayer, EncoderLayer
from .model import SegmentationModel
from .models import model_name
from .postprocess import check_probability, confident
from .predict import device_of, fit, run
from .types import Letterbox, Prediction, round_up

Point = tuple[float, float]

VIEW_SIDE = 480
"""Longest side of the masks, in pixels: they are here to be looked at."""


@dataclass(frozen=True, eq=False)
class AttentionView:
    """One map of attention.

    Attributes:
        title: what it is of.
        weights: [h, w], the share of each cell of `stride` canvas pixels; the last cells may reach beyond the content.
        content: (H, W) of the photo on the canvas.
    """

    title: str
    weights: Tensor
    stride: int
    content: tuple[int, int]

    def resampled(self, size: tuple[int, int]) -> Tensor:
        """[H, W] over the photo at `size`."""
        return resample_content(self.weights[None], self.content, (self.stride, self.stride), size)[0]


@dataclass(frozen=True, eq=False)
class QueryView:
    """What one kept query is, and where it looked.

    Attributes:
        label, score: its class.
        mask: probabilities [h, w] over the photo, `VIEW_SIDE` at most.
        box: (x0, y0, x1, y1) relative to the photo, of systems that have boxes.
        attention: of the last decoder layer, then of single heads.
    """

    label: str
    score: float
    mask: Tensor
    box: tuple[float, ...] | None
    attention: tuple[AttentionView, ...]


@dataclass(frozen=True, eq=False)
class Explanation:
    """The answer of `explain`.

    Attributes:
        photo: uint8 [H, W, 3].
        queries: of the highest score first.
        point: (x, y) in the photo that `encoder` looks from.
        encoder: self-attention of each encoder layer at that point; empty for systems without encoder layers.
    """

    photo: np.ndarray
    queries: tuple[QueryView, ...]
    point: Point
    encoder: tuple[AttentionView, ...]


@torch.no_grad()
def explain(
    model: SegmentationModel,
    image: str | Path | bytes | np.ndarray,
    *,
    threshold: float = 0.5,
    point: Point | None = None,
    side: int | None = None,
    limit: int = 20,
) -> Explanation:
    """Attention behind what a model finds in a photo.

    Args:
        threshold: least class probability of a query.
        point: (x, y) in pixels of the photo, for the encoder; its middle if not given.
        side: canvas side in pixels instead of the model's own.
        limit: most queries, those of the highest scores.

    Raises:
        ImageError: the photo cannot be read.
        UsageError: the system has no queries or no attention to show, or a number is out of range.
    """
    check_probability("threshold", threshold)
    photo = read_image(image)
    height, width = photo.shape[:2]
    x, y = point or ((width - 1) / 2, (height - 1) / 2)
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        raise UsageError("the point is outside the photo", where=f"{x:g},{y:g}", why=f"it is {width} x {height}")
    batch = fit(photo, model.letterbox((height, width), side), device=device_of(model))
    with watched(model) as calls:
        prediction = run(model, batch)
    box, at = batch.letterboxes[0], batch.letterboxes[0].to_canvas(torch.tensor([x, y]))
    if prediction.class_logits is None or not any(isinstance(layer, DecoderLayer) for layer in calls):
        raise UsageError("this system has no queries whose attention could be shown", where=model_name(model))
    queries = _query_views(model, prediction, calls, box, threshold, limit)
    return Explanation(photo, queries, (x, y), _encoder_views(calls, box, at))


Calls = dict[nn.Module, "Call"]
"""By the layer that the attention is part of, in the order of their calls."""


@dataclass(frozen=True, eq=False)
class Call:
    """What an attention was given: queries [1, Q, D], keys [1, S, D], and which of these count."""

    attention: Attention
    query: Tensor
    key: Tensor
    valid: Tensor | None

    def weights(self, rows: Tensor) -> Tensor:
        """[heads, q, S] of queries `rows` [q]."""
        return self.attention.weights(self.query[:, rows], self.key, self.valid)[0]


@contextmanager
def watched(model: nn.Module) -> Iterator[Calls]:
    """Remember the inputs of encoder self-attention and decoder cross-attention while the model runs."""
    calls: Calls = {}
    layers = [module for module in model.modules() if isinstance(module, DecoderLayer | EncoderLayer)]
    hooks = []
    for layer in layers:
        attention = layer.cross_attention if isinstance(layer, DecoderLayer) else layer.attention
        hooks.append(attention.register_forward_pre_hook(partial(_remember, calls, layer)))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _remember(calls: Calls, layer: nn.Module, attention: Any, inputs: tuple[Any, ...]) -> None:
    query, key, _, valid = (*inputs, None)[:4]
    calls[layer] = Call(attention, query, key, valid)


def _encoder_views(calls: Calls, box: Letterbox, at: Tensor) -> tuple[AttentionView, ...]:
    """The mean of all heads, by layer, from canvas point `at`."""
    views: list[AttentionView] = []
    for call in (call for layer, call in calls.items() if isinstance(layer, EncoderLayer)):
        height, width, stride = grid_of(call.key.shape[1], box)
        column, row = ((at + 0.5) / stride).long().minimum(torch.tensor([width - 1, height - 1])).tolist()
        weights = call.weights(torch.tensor([row * width + column], device=call.key.device))
        views.append(view(f"encoder layer {len(views) + 1}", weights[:, 0].mean(0), box))
    return tuple(views)


def _query_views(
    model: SegmentationModel, prediction: Prediction, calls: Calls, box: Letterbox, threshold: float, limit: int
) -> tuple[QueryView, ...]:
    scores, classes, kept = confident(prediction, 0, len(model.labels), threshold)
    kept = kept[scores[kept].argsort(descending=True)[:limit]]
    scale = min(1.0, VIEW_SIDE / max(box.source))
    size = max(1, round(scale * box.source[0])), max(1, round(scale * box.source[1]))
    masks = prediction.masks.decode(0, kept, size).float().sigmoid().cpu()
    attention = _query_attention(prediction, calls, box, kept)
    boxes = [None] * len(kept) if prediction.boxes is None else to_corners(prediction.boxes[0, kept]).tolist()
    labels = [model.labels[k].name for k in classes[kept].tolist()]
    return tuple(map(QueryView, labels, scores[kept].tolist(), masks, boxes, attention))


def _query_attention(
    prediction: Prediction, calls: Calls, box: Letterbox, kept: Tensor
) -> list[tuple[AttentionView, ...]]:
    """Of each kept query: the last decoder layer, then single heads."""
    decoder = [call for layer, call in calls.items() if isinstance(layer, DecoderLayer)][-1].weights(kept)
    kind, heads = "decoder", decoder
    if isinstance(prediction.masks, AttentionMasks):
        kind, heads = "mask head", prediction.masks.attention(0, kept).transpose(0, 1).flatten(2)
    return [
        (
            view("decoder, all heads", decoder[:, n].mean(0), box),
            *(view(f"{kind}, head {number}", own[n], box) for number, own in enumerate(heads, start=1)),
        )
        for n in range(len(kept))
    ]


def view(title: str, weights: Tensor, box: Letterbox) -> AttentionView:
    """Attention [S] to the tokens of a canvas, its content alone."""
    height, width, stride = grid_of(len(weights), box)
    rows, columns = (round_up(length, stride) // stride for length in box.content)
    cells = weights.unflatten(0, (height, width))[:rows, :columns].float().cpu()
    return AttentionView(title, cells, stride, box.content)


def grid_of(count: int, box: Letterbox) -> tuple[int, int, int]:
    """Rows, columns and stride of so many tokens: a grid over the canvas, or over the content alone.

    Raises:
        UsageError: no grid has as many.
    """
    for stride in (4, 8, 16, 32, 64):
        for size in (box.content, box.canvas):
            height, width = (round_up(length, stride) // stride for length in size)
            if height * width == count:
                return height, width, stride
    raise UsageError("cannot tell where the tokens lie", where=f"{count} tokens", why=f"the canvas is {box.canvas}")
