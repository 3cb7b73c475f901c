"""From predictions to segments: choose queries by score first, then decode only their masks.

Every function takes one image of a batch and gives `Segments` at the photo's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from .errors import UsageError
from .labels import LabelMap
from .types import Letterbox, Prediction, Segments
from .upsample import bands, contenders, decide_pixels, grey_pixels

MIN_OBJECT = 0.05
"""Queries that are less probably an object than this have no say in semantic results."""

CLASSES_AT_ONCE = 128
"""Maps of classes that are looked at together where each query is a class."""


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
    if background is not None:
        check_probability("background", background)
    evidence, own = _certain_evidence(prediction, b) if prediction.by_class else _class_evidence(prediction, b, reduce)
    covered = evidence[-1] if background is not None else None
    classes = contenders(evidence[:-1], covered, background or 0.0)
    scores = _mean_evidence(evidence, classes, covered, background or 0.0)
    rows, columns = prediction.masks.positions(b, letterbox.source)
    ids = winners(torch.cat([evidence[classes], evidence[-1:]]), rows, columns, background)
    return numbered(ids, own[classes].tolist(), scores, labels)


def winners(maps: Tensor, rows: Tensor, columns: Tensor, least: float | None) -> Tensor:
    """[H, W]: 1 + the highest of all maps [n + 1, h, w] but the last, 0 where the last one is below `least`."""

    def select(band: Tensor) -> Tensor:
        some = contenders(band[:-1], None if least is None else band[-1], least or 0.0)
        return torch.cat([some, some.new_tensor([len(band) - 1])])

    # The smallest type that holds the ids: at full size, moving them is most of the time.
    dtype = torch.uint8 if len(maps) < 255 else torch.int32

    def decide(values: Tensor, chosen: Tensor) -> Tensor:
        if len(values) == 1:
            return torch.zeros(values.shape[1:], dtype=dtype, device=values.device)
        ids = (chosen + 1).to(dtype)[best_of(values[:-1])[0].long() - 1]
        return ids if least is None else ids * (values[-1] >= least)

    return decide_pixels(maps, rows, columns, decide, select)


def _mean_evidence(evidence: Tensor, classes: Tensor, covered: Tensor | None, background: float) -> list[float]:
    """Mean evidence of each class over the cells it wins, at most 1; its highest where it wins only between cells."""
    won = best_of(evidence[:-1])[0].int() - 1
    won = won if covered is None else won.where(covered >= background, -1)
    scores = []
    for k in classes:
        own = evidence[k][won == k]
        scores.append(min(1.0, float(own.mean() if len(own) else evidence[k].amax())))
    return scores


def _class_evidence(prediction: Prediction, b: int, reduce: Literal["sum", "max"]) -> tuple[Tensor, Tensor]:
    """[K+1, h, w] at the decoder's own resolution, the last row any class at all, and the class of each row [K]."""
    probability = prediction.class_logits[b].float().softmax(-1)[:, :-1]
    classes = torch.arange(probability.shape[1], device=probability.device)
    queries = torch.nonzero(probability.sum(-1) > (MIN_OBJECT if reduce == "max" else -1)).flatten()
    probability = probability[queries]
    masks = prediction.masks.decode(b, queries).float().sigmoid()
    weights = torch.cat([probability, probability.sum(-1, keepdim=True)], dim=1)
    if reduce == "sum" or len(queries) == 0:
        return torch.einsum("qk,qhw->khw", weights, masks), classes
    return torch.stack([(column[:, None, None] * masks).amax(0) for column in weights.T]), classes


def class_evidence(prediction: Prediction, b: int) -> Tensor:
    """[K, h, w]: evidence of each class at the decoder's own resolution, from 0 up."""
    if not prediction.by_class:
        return _class_evidence(prediction, b, "sum")[0][:-1]
    every = torch.arange(prediction.class_logits.shape[1], device=prediction.class_logits.device)
    return prediction.masks.decode(b, every).float().sigmoid()


def _certain_evidence(prediction: Prediction, b: int) -> tuple[Tensor, Tensor]:
    """As `_class_evidence` where query k is class k, of the classes alone that may be the highest somewhere."""
    classes = torch.arange(0, device=prediction.class_logits.device)
    for part in torch.arange(prediction.class_logits.shape[1], device=classes.device).split(CLASSES_AT_ONCE):
        # Who cannot win against some cannot win against all: few are in memory at a time.
        classes = torch.cat([classes, part])
        classes = classes[contenders(prediction.masks.decode(b, classes))]
    masks = prediction.masks.decode(b, classes).float().sigmoid()
    return torch.cat([masks, masks.amax(0, keepdim=True)]), classes


def best_of(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Highest of the maps [n, H, W] at each pixel: 1 + its index [H, W], and its value [H, W]. n >= 1.

    A running maximum: one pass a map over memory, where `argmax` over the first axis takes twenty times as long.
    """
    best = maps[0]
    ids = torch.ones(best.shape, dtype=torch.uint8 if len(maps) < 255 else torch.int32, device=maps.device)
    for number, challenger in enumerate(maps[1:], start=2):
        ids.masked_fill_(challenger > best, number)
        best = torch.maximum(best, challenger)
    return ids, best


def numbered(ids: Tensor, classes: Sequence[int], scores: Sequence[float], labels: LabelMap) -> Segments:
    """Segments of ids [H, W], 0 or 1 + position in `classes`; positions that no pixel has are dropped."""
    present = present_ids(ids, len(classes))
    # In ascending order, no new number still occurs. A table to look up in would take four times the memory.
    for number, old in enumerate(present, start=1):
        if number != old + 1:
            ids = ids.masked_fill(ids == old + 1, number)
    kept = torch.tensor([scores[n] for n in present], dtype=torch.float32)
    return Segments.build(ids.cpu(), [classes[n] for n in present], labels=labels, scores=kept)


def present_ids(ids: Tensor, count: int) -> list[int]:
    """Which of 0..count-1 occur in ids [H, W] of 1 + n."""
    for view in (ids[::4, ::4], ids):  # A sixteenth of the pixels mostly tells.
        counts = torch.bincount(view.flatten(), minlength=count + 1)[1:]
        if bool(counts.all()):
            break
    return torch.nonzero(counts).flatten().tolist()


def instance(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    threshold: float = 0.5,
    overlap: float = 0.5,
) -> Segments:
    """One segment a confident query; a pixel that several claim goes to the one of highest score x mask.

    The score of a segment is its class probability x the mean mask probability inside its mask, as in Mask2Former.

    Args:
        threshold: least class probability of a query.
        overlap: a query that keeps less than this share of its mask is taken for a duplicate, and dropped.
    """
    check_probability("threshold", threshold)
    check_probability("overlap", overlap)
    scores, classes, kept = confident(prediction, b, len(labels), threshold)
    masks = prediction.masks.decode(b, kept).float().sigmoid_()
    inside = masks > 0.5
    scores[kept] *= (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    winner, own, areas = paint(masks, scores[kept], *prediction.masks.positions(b, letterbox.source))
    survives = (own > 0) & (own >= overlap * areas)
    return _collect(winner, kept[survives], survives, scores, classes, labels, merge=False)


def confident(prediction: Prediction, b: int, count: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Best probability [Q] and class [Q] of every query, and the queries above `threshold` whose class is an object."""
    scores, classes = prediction.class_logits[b].float().softmax(-1).max(-1)
    return scores, classes, torch.nonzero((classes < count) & (scores > threshold)).flatten()


def panoptic(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    threshold: float = 0.8,
    overlap: float = 0.8,
    merge_stuff: bool = True,
    covered_only: bool = True,
) -> Segments:
    """Things and stuff without overlap (MaskFormer, section 3.4 and appendix).

    Mask probabilities, not logits, are interpolated to the photo, as `transformers` does.

    Args:
        threshold: least class probability of a query.
        overlap: a query must keep at least this share of the pixels where its mask alone is above one half.
        merge_stuff: queries of one stuff class become one segment.
        covered_only: pixels that their query's mask does not cover belong to nobody; the paper gives them to it.
    """
    check_probability("threshold", threshold)
    check_probability("overlap", overlap)
    scores, classes, kept = confident(prediction, b, len(labels), threshold)
    masks = prediction.masks.decode(b, kept).float().sigmoid_()
    winner, own, areas = paint(masks, scores[kept], *prediction.masks.positions(b, letterbox.source), covered_only)
    survives = (own > 0) & (own >= overlap * areas)
    return _collect(winner, kept[survives], survives, scores, classes, labels, merge_stuff)


def paint(
    masks: Tensor, scores: Tensor, rows: Tensor, columns: Tensor, covered_only: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each pixel to the mask of highest score x probability, if that mask covers it.

    Args:
        masks: probabilities [q, h, w]; overwritten.
        scores: [q].
        rows, columns: [H] and [W], where the pixels lie among the cells.

    Returns:
        winner: int32 [H, W], 1 + the mask's number, 0 where no mask covers the pixel.
        own: int64 [q], pixels won and covered.
        areas: int64 [q], pixels where the mask alone is above one half.
    """
    if len(masks) == 0:
        nothing = torch.zeros(0, dtype=torch.int64)
        return torch.zeros((len(rows), len(columns)), dtype=torch.int32), nothing, nothing
    masks = masks.mul_(scores[:, None, None])
    half = scores / 2

    def decide(values: Tensor, chosen: Tensor) -> Tensor:
        ids, best = best_of(values)
        ids = chosen.int()[ids.long() - 1]
        # Which query and whether it covers: "nobody" alone would not be a convex set.
        return 2 * (ids + 1) + ((best > half[ids]) if covered_only else 1)

    codes, areas = [], torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    for band in bands(masks, rows, columns):
        areas += band.count_above(half)
        codes.append(band.decide(decide, contenders))
    code = codes[0] if len(codes) == 1 else torch.cat(codes)
    winner = (code >> 1) * (code & 1)
    own = torch.bincount(winner.flatten(), minlength=len(masks) + 1)[1:]
    return winner.cpu(), own.cpu(), areas.cpu()


def _collect(
    winner: Tensor, queries: Tensor, survives: Tensor, scores: Tensor, classes: Tensor, labels: LabelMap, merge: bool
) -> Segments:
    """Number the surviving queries 1..N, one number for all queries of a stuff class if `merge`."""
    rows: list[int] = []
    row_of_class: dict[int, int] = {}
    ids = torch.zeros(len(survives) + 1, dtype=torch.int32)  # Of position - 1; the first is nobody.
    for position, query in zip(torch.nonzero(survives).flatten().tolist(), queries.tolist(), strict=True):
        k = int(classes[query])
        if merge and not labels[k].is_thing and k in row_of_class:
            ids[position + 1] = row_of_class[k]
            continue
        rows.append(query)
        ids[position + 1] = row_of_class[k] = len(rows)
    id_map = ids.index_select(0, winner.flatten()).view(winner.shape)
    return Segments.build(id_map, classes[rows].cpu(), labels=labels, scores=scores[rows].cpu())


def panoptic_of_logits(
    prediction: Prediction,
    letterbox: Letterbox,
    labels: LabelMap,
    b: int = 0,
    *,
    threshold: float = 0.85,
    tiny_area: int = 4,
    covered_only: bool = False,
    compat: Literal["default", "original"] = "default",
) -> Segments:
    """Things and stuff without overlap, by mask logits alone: scores choose queries but do not weigh pixels (DETR).

    Each pixel goes to the highest logit of all queries kept. Queries of one stuff class become one before that, by the
    maximum of their logits.

    `compat="original"` is what was published with DETR: logits are decided at the canvas's resolution, over which whole
    cells are stretched, and ids resized to the photo by nearest neighbour; stuff is merged after pixels are decided. A
    merged duplicate has no pixel left then, so it is dropped as tiny, and deciding again undoes the merge.

    Args:
        threshold: least class probability of a query.
        tiny_area: segments of so many pixels or fewer are dropped and their pixels decided again among the others,
            until there is none.
        covered_only: pixels whose highest logit is below zero belong to nobody; the paper gives them to somebody.
            Not with `compat`.
    """
    check_probability("threshold", threshold)
    scores, classes, kept = confident(prediction, b, len(labels), threshold)
    logits = prediction.masks.decode(b, kept).float()
    scores, classes = scores[kept], classes[kept]
    owners = _stuff_owners(classes, labels)
    if compat == "original":
        rows, columns = (
            nearest_positions(*sizes, logits.device)
            for sizes in zip(letterbox.source, letterbox.content, logits.shape[1:], strict=True)
        )
        ids, alive = _settle(logits, rows, columns, tiny_area, owners=owners)
    else:
        first, member = torch.unique(owners, return_inverse=True)
        logits, scores = (_highest_of_group(x, member, len(first)) for x in (logits, scores))
        classes = classes[first]
        rows, columns = prediction.masks.positions(b, letterbox.source)
        ids, alive = _settle(logits, rows, columns, tiny_area, covered_only=covered_only)
    return numbered(ids, classes[alive].tolist(), scores[alive].tolist(), labels)


def _stuff_owners(classes: Tensor, labels: LabelMap) -> Tensor:
    """int64 [q]: the first query of the same stuff class; things are their own."""
    first: dict[int, int] = {}
    owners = [n if labels[k].is_thing else first.setdefault(k, n) for n, k in enumerate(classes.tolist())]
    return torch.tensor(owners, dtype=torch.int64, device=classes.device)


def _highest_of_group(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Maximum [count, ...] of the values [q, ...] of each group, which `group` [q] says."""
    if count == len(values):
        return values
    return torch.stack([values[group == n].amax(0) for n in range(count)])


def nearest_positions(out: int, length: int, cells: int, device: torch.device) -> Tensor:
    """Positions [out] among `cells` stretched over `length` pixels, of the pixels nearest to `out` that cover them."""
    # Added up as Pillow does, which decides ties.
    steps = torch.full((out,), length / out, dtype=torch.float64)
    steps[0] /= 2
    nearest = steps.cumsum(0).floor().clamp(max=length - 1).to(device, torch.float32)
    return (nearest + 0.5) * (cells / length) - 0.5


def _settle(
    maps: Tensor,
    rows: Tensor,
    columns: Tensor,
    tiny_area: int,
    *,
    owners: Tensor | None = None,
    covered_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Decide pixels, drop maps that won too few, and again, until none is left that did.

    Args:
        maps: [n, h, w].
        owners: int64 [n]: before maps are dropped for the first time, pixels of map n count for map `owners[n]`.

    Returns:
        ids [H, W], 0 or 1 + position among the maps left, and int64 [m], which are left.
    """
    alive = torch.arange(len(maps), device=maps.device)
    ids = _highest(maps, rows, columns, covered_only)
    if owners is not None and len(owners):
        ids = (owners + 1).to(ids.dtype)[ids.long() - 1]
    while len(alive):
        large = torch.bincount(ids.flatten(), minlength=len(alive) + 1)[1:] > tiny_area
        if bool(large.all()):
            break
        alive = alive[large]
        ids = _highest(maps[alive], rows, columns, covered_only)
    return ids, alive


def _highest(maps: Tensor, rows: Tensor, columns: Tensor, covered_only: bool) -> Tensor:
    """Whole numbers [H, W]: 1 + the highest of the maps [n, h, w] at each pixel, 0 where there is none (above zero)."""
    # The smallest type that holds twice the ids: moving them is much of the time.
    dtype = torch.uint8 if len(maps) < 127 else torch.int32
    if len(maps) == 0:
        return torch.zeros(len(rows), len(columns), dtype=dtype, device=maps.device)

    def decide(values: Tensor, chosen: Tensor) -> Tensor:
        ids, best = best_of(values)
        ids = (chosen + 1).to(dtype)[ids.long() - 1]
        # Which map and whether it covers: "nobody" alone would not be a convex set.
        return 2 * ids + (best > 0) if covered_only else ids

    ids = decide_pixels(maps, rows, columns, decide, contenders)
    return (ids >> 1) * (ids & 1) if covered_only else ids


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
    if classes is not None and not classes:
        raise UsageError("there is no class to cut out", where="classes", fix="Name one or more, or None for all.")
    chosen = sorted({labels.index(name) for name in classes}) if classes is not None else list(range(len(labels)))
    probability = prediction.class_logits[b].float().softmax(-1)[:, chosen]
    kept = torch.nonzero(probability.sum(-1) > threshold).flatten()
    masks = prediction.masks.decode(b, kept).float().sigmoid()
    own_class = probability[kept].argmax(-1)
    found = torch.unique(own_class).tolist()
    if not found:
        nothing = torch.zeros(letterbox.source, dtype=torch.uint8)
        return replace(numbered(nothing, [], [], labels), alpha=nothing)
    merged = torch.stack([masks[own_class == n].amax(0) for n in found])
    soft = merged.amax(0, keepdim=True)
    rows, columns = prediction.masks.positions(b, letterbox.source)
    # Any class at all is merged at the decoder's resolution too, so that the id map and alpha have one outline.
    ids = winners(torch.cat([merged, soft]), rows, columns, mask_threshold)
    scores = [float(probability[kept][own_class == n].sum(-1).max()) for n in found]
    alpha = grey_pixels(soft[0], rows, columns)
    return replace(numbered(ids, [chosen[n] for n in found], scores, labels), alpha=alpha.cpu())


def check_probability(name: str, value: float) -> None:
    """Raise `UsageError` unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise UsageError("a threshold must lie in 0..1", where=name, why=f"got {value}")
