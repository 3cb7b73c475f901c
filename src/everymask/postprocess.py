"""From predictions to segments: choose queries by score first, then decode only their masks.

Every function takes one image of a batch and gives `Segments` at the photo's own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from .errors import UsageError
from .labels import LabelMap
from .types import Letterbox, Prediction, Segments

CHUNK_VALUES = 32_000_000
"""Most mask logits alive at once: 128 MB in float32."""


def semantic(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    reduce: Literal["sum", "max"] = "sum",
    background: float | None = None,
) -> Segments:
    """One segment a class: each pixel takes the class of highest evidence.

    Evidence is ``softmax(class_logits) x sigmoid(mask_logits)``, summed over queries as in MaskFormer (section 3.4)
    or their maximum.

    Args:
        background: pixels whose best foreground evidence is below this belong to no class; None assigns every pixel.
    """
    probability = prediction.class_logits[b].float().softmax(-1)[:, :-1]
    queries = torch.nonzero(probability.sum(-1) > 0.05 if reduce == "max" else probability.sum(-1) > 0).flatten()
    evidence = _class_evidence(prediction, b, queries, probability[queries], reduce)
    evidence = prediction.masks.resample(b, evidence, letterbox.source)
    best = evidence[:-1].argmax(0)
    if background is not None:
        best = torch.where(evidence[-1] >= background, best, len(labels))
    return segments_from_class_map(best, labels, evidence)


def _class_evidence(
    prediction: Prediction, b: int, queries: Tensor, probability: Tensor, reduce: Literal["sum", "max"]
) -> Tensor:
    """[K+1, h, w] at the decoder's own resolution; the last row is any class at all."""
    masks = prediction.masks.decode(b, queries).float().sigmoid()
    weights = torch.cat([probability, probability.sum(-1, keepdim=True)], dim=1)
    if reduce == "sum" or len(queries) == 0:
        return torch.einsum("qk,qhw->khw", weights, masks)
    return torch.stack([(column[:, None, None] * masks).amax(0) for column in weights.T])


def segments_from_class_map(class_map: Tensor, labels: LabelMap, evidence: Tensor | None = None) -> Segments:
    """A class map [H, W] (K = background) to one segment a present class, scored by its mean evidence [K+1, H, W]."""
    present = torch.bincount(class_map.flatten(), minlength=len(labels))[: len(labels)].nonzero().flatten()
    lookup = torch.zeros(len(labels) + 1, dtype=torch.int32)
    lookup[present] = torch.arange(1, len(present) + 1, dtype=torch.int32)
    scores = None
    if evidence is not None:
        scores = torch.tensor([float(evidence[k][class_map == k].mean().clamp(max=1)) for k in present])
    return Segments.build(lookup[class_map], present, labels=labels, scores=scores)


def instance(
    prediction: Prediction, letterbox: Letterbox, labels: LabelMap, b: int = 0, *, threshold: float = 0.5
) -> Segments:
    """One segment a confident query; a pixel that several claim goes to the one of highest score x mask."""
    return panoptic(prediction, letterbox, labels, b, threshold=threshold, overlap=0.0, merge_stuff=False)


def panoptic(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    threshold: float = 0.8,
    overlap: float = 0.8,
    merge_stuff: bool = True,
) -> Segments:
    """Things and stuff without overlap (MaskFormer, section 3.4 and appendix).

    Args:
        threshold: least class probability of a query.
        overlap: a query must keep at least this share of the pixels where its mask alone is above one half.
        merge_stuff: queries of one stuff class become one segment.
    """
    check_probability("threshold", threshold)
    scores, classes = prediction.class_logits[b].float().softmax(-1).max(-1)
    kept = torch.nonzero((classes < len(labels)) & (scores > threshold)).flatten()
    winner, own, areas = paint(prediction, b, kept, scores[kept], letterbox.source)
    survives = (own > 0) & (own >= overlap * areas)
    return _collect(winner, kept[survives], survives, scores, classes, labels, merge_stuff)


def paint(
    prediction: Prediction, b: int, queries: Tensor, scores: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each pixel to the query of highest score x mask probability, if that query's mask covers it.

    Returns:
        winner: int64 [H, W], position in `queries`, -1 where no mask covers the pixel.
        own: int64 [q], pixels won and covered.
        areas: int64 [q], pixels where the query's mask alone is above one half.
    """
    best = torch.zeros(size)
    winner = torch.full(size, -1)
    areas = torch.zeros(len(queries), dtype=torch.int64)
    for first, probability in _decoded(prediction, b, queries, size):
        covered = probability > 0.5
        areas[first : first + len(covered)] = covered.sum((1, 2)).cpu()
        value, position = (probability * scores[first : first + len(covered), None, None]).max(0)
        value, position = value.cpu(), position.cpu()
        better = value > best
        mine = covered.cpu().gather(0, position[None])[0]
        winner = torch.where(better, torch.where(mine, position + first, -1), winner)
        best = torch.maximum(best, value)
    own = torch.bincount(winner.flatten() + 1, minlength=len(queries) + 1)[1:]
    return winner, own, areas


def _decoded(prediction: Prediction, b: int, queries: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """(position of the first, probabilities [n, H, W]) in chunks of bounded memory."""
    step = max(1, CHUNK_VALUES // max(1, size[0] * size[1]))
    for first in range(0, len(queries), step):
        yield first, prediction.masks.decode(b, queries[first : first + step], size).float().sigmoid_()


def _collect(
    winner: Tensor, queries: Tensor, survives: Tensor, scores: Tensor, classes: Tensor, labels: LabelMap, merge: bool
) -> Segments:
    """Number the surviving queries 1..N, one number for all queries of a stuff class if `merge`."""
    rows: list[int] = []
    row_of_class: dict[int, int] = {}
    ids = torch.zeros(len(survives) + 1, dtype=torch.int32)
    for position, query in zip(torch.nonzero(survives).flatten().tolist(), queries.tolist(), strict=True):
        k = int(classes[query])
        if merge and not labels[k].is_thing and k in row_of_class:
            ids[position] = row_of_class[k]
            continue
        rows.append(query)
        ids[position] = row_of_class[k] = len(rows)
    # winner -1 (nobody) reads the last entry, which stays background.
    return Segments.build(ids[winner], classes[rows].cpu(), labels=labels, scores=scores[rows].cpu())


def cutout(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    classes: Sequence[str] | None = None,
    threshold: float = 0.7,
    mask_threshold: float = 0.5,
) -> Segments:
    """The foreground with a soft edge: queries of one class merged by the maximum of their masks.

    Args:
        classes: names to cut out; None takes all.
        threshold: least probability that a query is an object (of the chosen classes).
        mask_threshold: mask probability above which a pixel is in the id map; `alpha` keeps the soft values.
    """
    check_probability("threshold", threshold)
    check_probability("mask_threshold", mask_threshold)
    chosen = sorted({labels.index(name) for name in classes}) if classes is not None else list(range(len(labels)))
    probability = prediction.class_logits[b].float().softmax(-1)[:, chosen]
    kept = torch.nonzero(probability.sum(-1) > threshold).flatten()
    masks = prediction.masks.decode(b, kept).float().sigmoid()
    winners = probability[kept].argmax(-1)
    merged = [
        masks[winners == n].amax(0) if (winners == n).any() else masks.new_zeros(masks.shape[1:])
        for n in range(len(chosen))
    ]
    soft, best = prediction.masks.resample(b, torch.stack(merged), letterbox.source).max(0)
    class_map = torch.where(soft > mask_threshold, torch.tensor(chosen, device=best.device)[best], len(labels))
    found = segments_from_class_map(class_map.cpu(), labels)
    scores = torch.tensor(
        [float(probability[kept][winners == chosen.index(k)].sum(-1).max()) for k in found.classes.tolist()]
    )
    return Segments.build(
        found.id_map, found.classes, labels=labels, scores=scores, alpha=(soft * 255).round().byte().cpu()
    )


def check_probability(name: str, value: float) -> None:
    """Raise `UsageError` unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise UsageError("a threshold must lie in 0..1", where=name, why=f"got {value}")
