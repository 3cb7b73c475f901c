"""From predictions to segments, on masks drawn by hand and against slow loops over pixels and queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from everymask import upsample
from everymask.errors import DataError, UsageError
from everymask.labels import Label, LabelMap
from everymask.postprocess import cutout, instance, panoptic, semantic
from everymask.types import Letterbox, Prediction, Segments

LABELS = LabelMap((Label("cat"), Label("dog"), Label("sky", is_thing=False)))
CAT, DOG, SKY, NOTHING = range(4)
SIZE = (5, 5)
BOX = Letterbox(SIZE, SIZE, SIZE)
DECIDERS: dict[str, Callable[..., Segments]] = {
    "semantic": semantic,
    "panoptic": panoptic,
    "instance": instance,
    "cutout": cutout,
}


class DrawnMasks:
    """Mask logits [Q, h, w] of one image; remembers which queries were decoded."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.asked: list[list[int]] = []

    def sample(self, points: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, b: int, queries: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        self.asked.append(queries.tolist())
        maps = self.logits[queries]
        if size is None or len(maps) == 0:
            return maps if size is None else maps.new_zeros(0, *size)
        return F.interpolate(maps[None], size, mode="bilinear")[0]

    def positions(self, b: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        height, width = self.logits.shape[-2:]
        rows = (torch.arange(size[0]) + 0.5) * height / size[0] - 0.5
        columns = (torch.arange(size[1]) + 0.5) * width / size[1] - 0.5
        return rows, columns


def predicted(masks: Sequence[np.ndarray], classes: Sequence[int], probability: float | Sequence[float]) -> Prediction:
    """Queries of given mask probabilities, classes and class probabilities; the rest of 1 is "no object"."""
    share = np.broadcast_to(probability, len(classes))
    table = np.full((len(classes), len(LABELS) + 1), 1e-12)
    table[:, NOTHING] = 1 - share
    table[np.arange(len(classes)), classes] = share
    p = torch.from_numpy(np.stack(masks)).double().clamp(1e-6, 1 - 1e-6)
    return Prediction(torch.from_numpy(table).log()[None].float(), DrawnMasks(p.logit().float()))


def asked(prediction: Prediction) -> list[int]:
    """Queries that were decoded, chunks joined."""
    assert isinstance(prediction.masks, DrawnMasks)
    return list(itertools.chain.from_iterable(prediction.masks.asked))


def random_prediction(seed: int, queries: int = 7, size: tuple[int, int] = SIZE, spread: float = 2.0) -> Prediction:
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(1, queries, len(LABELS) + 1, generator=g)
    return Prediction(logits, DrawnMasks(2 * torch.randn(queries, *size, generator=g)))


def probabilities(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities [Q, K+1] and mask probabilities [Q, h, w] in float64."""
    assert isinstance(prediction.masks, DrawnMasks)
    exponentials = np.exp(prediction.class_logits[0].double().numpy())
    masks = 1 / (1 + np.exp(-prediction.masks.logits.double().numpy()))
    return exponentials / exponentials.sum(1, keepdims=True), masks


def columns(first: int, last: int, probability: float = 0.9) -> np.ndarray:
    """A mask over whole columns; 0.1 elsewhere."""
    mask = np.full(SIZE, 0.1)
    mask[:, first : last + 1] = probability
    return mask


def rows_of(segments: Segments) -> list[list[int]]:
    return segments.id_map.tolist()


# --- semantic --------------------------------------------------------------------------------------------------------


def slow_evidence(prediction: Prediction, reduce: str) -> np.ndarray:
    """[K+1, h, w] by loops; the last row is that of any class."""
    classes, masks = probabilities(prediction)
    combine = sum if reduce == "sum" else max
    evidence = np.zeros((len(LABELS) + 1, *masks.shape[1:]))
    for k, y, x in itertools.product(range(len(evidence)), *map(range, masks.shape[1:])):
        evidence[k, y, x] = combine(
            (row[k] if k < len(LABELS) else row[:-1].sum()) * mask[y, x]
            for row, mask in zip(classes, masks, strict=True)
        )
    return evidence


@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("background", [None, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_semantic_takes_the_class_of_most_evidence(reduce: Any, background: float | None, seed: int) -> None:
    # Without spread in the classes, every query counts as an object.
    prediction = random_prediction(seed, spread=1.0)
    evidence = slow_evidence(prediction, reduce)
    expected = evidence[:-1].argmax(0)
    if background is not None:
        expected[evidence[-1] < background] = NOTHING
    result = semantic(prediction, BOX, LABELS, reduce=reduce, background=background)
    assert result.class_map(NOTHING).tolist() == expected.tolist()
    assert result.classes.tolist() == sorted(set(expected[expected < NOTHING].tolist()))
    assert result.scores is not None
    for k, score in zip(result.classes.tolist(), result.scores.tolist(), strict=True):
        assert score == pytest.approx(min(1.0, evidence[k][expected == k].mean()), rel=1e-4)


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_semantic_interpolates_evidence_to_the_photo(reduce: Any) -> None:
    prediction = random_prediction(0, spread=1.0)
    evidence = torch.from_numpy(slow_evidence(prediction, reduce))
    source = (15, 10)
    large = F.interpolate(evidence[None], source, mode="bilinear")[0]
    expected = torch.where(large[-1] >= 0.6, large[:-1].argmax(0), NOTHING)
    result = semantic(prediction, Letterbox(source, SIZE, SIZE), LABELS, reduce=reduce, background=0.6)
    assert result.class_map(NOTHING).tolist() == expected.tolist()


def test_semantic_merges_what_queries_of_one_class_cover() -> None:
    prediction = predicted([columns(0, 0), columns(4, 4), columns(2, 2)], [CAT, CAT, SKY], 0.9)
    result = semantic(prediction, BOX, LABELS, reduce="max", background=0.5)
    assert rows_of(result) == [[1, 0, 2, 0, 1]] * 5
    assert [s.label for s in result] == ["cat", "sky"]


def test_semantic_decodes_no_query_that_is_hardly_an_object() -> None:
    prediction = predicted([columns(0, 1), columns(1, 3), columns(2, 4)], [CAT, DOG, DOG], [0.9, 0.01, 0.9])
    semantic(prediction, BOX, LABELS, reduce="max", background=0.5)
    assert asked(prediction) == [0, 2]


# --- panoptic --------------------------------------------------------------------------------------------------------


def test_panoptic_gives_each_pixel_to_the_highest_score_times_mask() -> None:
    # Columns 1 and 2 are claimed by both: 0.95 x 0.8 against 0.85 x 0.9, then 0.95 x 0.8 against 0.85 x 0.9.
    cat, dog = columns(0, 2, 0.8), columns(1, 4, 0.9)
    result = panoptic(predicted([cat, dog], [CAT, DOG], [0.95, 0.85]), BOX, LABELS, overlap=0.3)
    assert rows_of(result) == [[1, 2, 2, 2, 2]] * 5
    result = panoptic(predicted([cat, dog], [CAT, DOG], [0.99, 0.85]), BOX, LABELS, overlap=0.3)
    assert rows_of(result) == [[1, 1, 1, 2, 2]] * 5
    assert result.classes.tolist() == [CAT, DOG]
    assert result.scores is not None
    np.testing.assert_allclose(result.scores, [0.99, 0.85], rtol=1e-5)


@pytest.mark.parametrize(("overlap", "kept"), [(0.6, [CAT, DOG]), (0.7, [DOG])])
def test_panoptic_drops_what_is_mostly_hidden(overlap: float, kept: list[int]) -> None:
    """The cat keeps two of its three columns."""
    prediction = predicted([columns(0, 2, 0.8), columns(2, 4, 0.9)], [CAT, DOG], 0.9)
    result = panoptic(prediction, BOX, LABELS, overlap=overlap)
    assert result.classes.tolist() == kept
    # Pixels of a dropped query are not given to another.
    assert rows_of(result) == ([[1, 1, 2, 2, 2]] if len(kept) == 2 else [[0, 0, 1, 1, 1]]) * 5


def test_panoptic_ignores_what_no_mask_covers() -> None:
    prediction = predicted([columns(0, 1, 0.49), columns(1, 2, 0.51)], [CAT, DOG], 0.9)
    result = panoptic(prediction, BOX, LABELS)
    assert rows_of(result) == [[0, 1, 1, 0, 0]] * 5
    assert result.classes.tolist() == [DOG]


def test_panoptic_merges_stuff_and_not_things() -> None:
    masks = [columns(0, 0), columns(1, 1), columns(3, 3), columns(4, 4)]
    prediction = predicted(masks, [SKY, CAT, SKY, CAT], 0.9)
    result = panoptic(prediction, BOX, LABELS)
    assert rows_of(result) == [[1, 2, 0, 1, 3]] * 5
    assert [s.label for s in result] == ["sky", "cat", "cat"]
    assert rows_of(panoptic(prediction, BOX, LABELS, merge_stuff=False)) == [[1, 2, 0, 3, 4]] * 5


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, [CAT, DOG]), (0.7, [CAT]), (0.95, [])])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_only_queries_above_the_threshold_are_decoded(task: str, threshold: float, kept: list[int]) -> None:
    prediction = predicted([columns(0, 0), columns(2, 2), columns(4, 4)], [CAT, DOG, NOTHING], [0.9, 0.6, 1.0])
    result = DECIDERS[task](prediction, BOX, LABELS, threshold=threshold)
    assert result.classes.tolist() == kept
    assert asked(prediction) == kept


def slow_panoptic(prediction: Prediction, threshold: float, overlap: float) -> tuple[np.ndarray, list[int]]:
    """Query of each pixel [h, w] (-1: none) and the queries that survive, by loops."""
    classes, masks = probabilities(prediction)
    kept = [q for q, row in enumerate(classes) if row.argmax() < NOTHING and row.max() > threshold]
    owner = np.full(masks.shape[1:], -1)
    for y, x in np.ndindex(*owner.shape):
        best = max(kept, key=lambda q: classes[q].max() * masks[q, y, x], default=-1)
        if best >= 0 and masks[best, y, x] > 0.5:
            owner[y, x] = best
    alive = [q for q in kept if (owner == q).any() and (owner == q).sum() >= overlap * (masks[q] > 0.5).sum()]
    return np.where(np.isin(owner, alive), owner, -1), alive


@given(st.integers(0, 10_000), st.floats(0.0, 0.7), st.floats(0.0, 1.0), st.sampled_from([1, 25, 60, 10**9]))
def test_panoptic_against_a_slow_loop_in_any_chunks(seed: int, threshold: float, overlap: float, chunk: int) -> None:
    prediction = random_prediction(seed)
    owner, alive = slow_panoptic(prediction, threshold, overlap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "CHUNK_VALUES", chunk)
        result = panoptic(prediction, BOX, LABELS, threshold=threshold, overlap=overlap, merge_stuff=False)
        merged = panoptic(prediction, BOX, LABELS, threshold=threshold, overlap=overlap)
    expected = np.zeros(SIZE, int)
    for n, query in enumerate(alive, start=1):
        expected[owner == query] = n
    assert rows_of(result) == expected.tolist()
    # Merging stuff changes neither classes nor what is covered, and leaves one segment a stuff class.
    assert torch.equal(merged.class_map(NOTHING), result.class_map(NOTHING))
    assert merged.classes.tolist().count(SKY) <= 1
    assert sum(s.is_thing for s in merged) == sum(s.is_thing for s in result)
    for segments in (result, merged):
        assert all(s.area > 0 for s in segments)
        assert sum(s.area for s in segments) == int(segments.foreground.sum()) <= 25


# --- instance --------------------------------------------------------------------------------------------------------


def test_instances_keep_what_is_left_of_them() -> None:
    """Four of five cat pixels in a row are hidden, and two of the same stuff stay two."""
    masks = [columns(0, 4, 0.6), columns(1, 2), columns(3, 4)]
    prediction = predicted(masks, [CAT, SKY, SKY], 0.9)
    result = instance(prediction, BOX, LABELS, overlap=0.2)
    assert rows_of(result) == [[1, 2, 2, 3, 3]] * 5
    assert [s.label for s in result] == ["cat", "sky", "sky"]
    assert instance(prediction, BOX, LABELS, overlap=0.21).classes.tolist() == [SKY, SKY]


def test_a_duplicate_is_no_second_instance() -> None:
    """The second cat is the first one again, a column shorter; both want the same pixels."""
    prediction = predicted([columns(0, 3, 0.9), columns(0, 4, 0.7)], [CAT, CAT], [0.95, 0.9])
    assert rows_of(instance(prediction, BOX, LABELS)) == [[1, 1, 1, 1, 0]] * 5


def test_the_score_of_an_instance_says_how_sure_its_mask_is() -> None:
    result = instance(predicted([columns(0, 1, 0.6), columns(3, 4, 0.8)], [CAT, CAT], [0.9, 0.7]), BOX, LABELS)
    assert result.scores is not None
    np.testing.assert_allclose(result.scores, [0.9 * 0.6, 0.7 * 0.8], rtol=1e-5)


def test_a_fully_hidden_instance_is_no_segment() -> None:
    result = instance(predicted([columns(1, 2, 0.6), columns(0, 4)], [CAT, DOG], 0.9), BOX, LABELS)
    assert rows_of(result) == [[1] * 5] * 5
    assert result.classes.tolist() == [DOG]


# --- cut-outs --------------------------------------------------------------------------------------------------------


def test_cutout_merges_by_the_maximum_and_keeps_the_soft_edge() -> None:
    left, right = np.tile([1.0, 0.8, 0.4, 0.2, 0.0], (5, 1)), np.tile([0.0, 0.2, 0.3, 0.6, 0.9], (5, 1))
    result = cutout(predicted([left, right], [CAT, CAT], [0.8, 0.9]), BOX, LABELS)
    assert rows_of(result) == [[1, 1, 0, 1, 1]] * 5
    assert result.alpha is not None
    assert result.alpha.dtype == torch.uint8
    # 255 times 1, 0.8, 0.4, 0.6, 0.9: 229.5 may round either way.
    np.testing.assert_allclose(result.alpha, [[255, 204, 102, 153, 229.5]] * 5, atol=0.5)
    assert result.scores is not None
    np.testing.assert_allclose(result.scores, [0.9], rtol=1e-5)


@pytest.mark.parametrize(("mask_threshold", "row"), [(0.0, [1, 1, 1, 1]), (0.3, [1, 1, 1, 0]), (0.7, [1, 1, 0, 0])])
def test_cutout_draws_the_line_at_the_mask_threshold(mask_threshold: float, row: list[int]) -> None:
    mask = np.tile([0.95, 0.8, 0.6, 0.1, 0.05], (5, 1))
    result = cutout(predicted([mask], [DOG], 0.9), BOX, LABELS, mask_threshold=mask_threshold)
    assert [r[:4] for r in rows_of(result)] == [row] * 5
    assert result.alpha is not None
    # The soft values stay the same.
    np.testing.assert_allclose(result.alpha[0], [242, 204, 153, 26, 13], atol=1)


@pytest.mark.parametrize(
    ("classes", "row", "found"),
    [
        (None, [1, 1, 0, 2, 2], ["cat", "dog"]),
        (["cat", "dog", "sky"], [1, 1, 0, 2, 2], ["cat", "dog"]),
        (["dog", "cat", "dog"], [1, 1, 0, 2, 2], ["cat", "dog"]),
        (["dog"], [0, 0, 0, 1, 1], ["dog"]),
        (("sky",), [0, 0, 0, 0, 0], []),
    ],
)
def test_cutout_of_chosen_classes(classes: list[str] | None, row: list[int], found: list[str]) -> None:
    prediction = predicted([columns(0, 1), columns(3, 4)], [CAT, DOG], 0.9)
    result = cutout(prediction, BOX, LABELS, classes=classes)
    assert rows_of(result) == [row] * 5
    assert [s.label for s in result] == found
    assert result.alpha is not None
    assert (result.alpha > 127).tolist() == (result.id_map > 0).tolist()


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, [0, 1]), (0.8, [1]), (0.99, [])])
def test_cutout_decodes_objects_above_the_threshold(threshold: float, kept: list[int]) -> None:
    prediction = predicted([columns(0, 1), columns(3, 4)], [CAT, DOG], [0.7, 0.9])
    result = cutout(prediction, BOX, LABELS, threshold=threshold)
    assert asked(prediction) == kept
    assert result.classes.tolist() == kept


def test_cutout_adds_up_the_chosen_classes() -> None:
    """Cat or dog, the model cannot tell, but an animal it is."""
    logits = torch.tensor([[0.45, 0.44, 0.01, 0.10]]).log()
    for classes, label in [(["cat", "dog"], ["cat"]), (["cat"], []), (None, ["cat"])]:
        prediction = Prediction(logits[None], DrawnMasks(torch.full((1, *SIZE), 3.0)))
        result = cutout(prediction, BOX, LABELS, classes=classes, threshold=0.7)
        assert [s.label for s in result] == label


def test_cutout_in_an_overlap_goes_to_the_surer_mask() -> None:
    result = cutout(predicted([columns(0, 2, 0.7), columns(2, 4, 0.9)], [DOG, CAT], 0.9), BOX, LABELS)
    assert [[s.label for s in result][i - 1] for i in rows_of(result)[0]] == ["dog", "dog", "cat", "cat", "cat"]


# --- all of them -----------------------------------------------------------------------------------------------------

TASKS = pytest.mark.parametrize("task", DECIDERS)


@TASKS
@pytest.mark.parametrize("source", [(5, 5), (11, 8), (1, 1)])
def test_nothing_found_is_an_empty_result(task: str, source: tuple[int, int]) -> None:
    prediction = predicted([columns(0, 4), columns(0, 1)], [NOTHING, NOTHING], 1.0)
    options = {"reduce": "max", "background": 0.5} if task == "semantic" else {}
    result = DECIDERS[task](prediction, Letterbox(source, SIZE, SIZE), LABELS, **options)
    assert len(result) == 0
    assert result.size == source
    assert (result.id_map == 0).all()
    assert result.alpha is None or (result.alpha.shape == source and not result.alpha.any())


@TASKS
def test_results_have_the_size_of_the_photo_and_the_class_table(task: str) -> None:
    prediction = predicted([columns(0, 4)], [DOG], 0.9)
    result = DECIDERS[task](prediction, Letterbox((7, 13), SIZE, SIZE), LABELS)
    assert rows_of(result) == [[1] * 13] * 7
    assert result.labels == LABELS
    assert result.id_map.dtype == torch.int32
    assert [(s.label, s.is_thing) for s in result] == [("dog", True)]
    assert result.scores is not None
    assert result.scores.dtype == torch.float32


@TASKS
def test_the_second_image_of_a_batch_has_its_own_classes(task: str) -> None:
    first, second = (predicted([columns(0, 4)], [k], 0.9) for k in (DOG, CAT))
    both = Prediction(torch.cat([first.class_logits, second.class_logits]), first.masks)
    assert [s.label for s in DECIDERS[task](both, BOX, LABELS, 1)] == ["cat"]


PROBABILITIES = [
    ("panoptic", "threshold"),
    ("panoptic", "overlap"),
    ("instance", "threshold"),
    ("cutout", "threshold"),
    ("cutout", "mask_threshold"),
    ("semantic", "background"),
]


@pytest.mark.parametrize(("task", "option"), PROBABILITIES)
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_thresholds_are_probabilities(task: str, option: str, value: float) -> None:
    with pytest.raises(UsageError) as error:
        DECIDERS[task](random_prediction(0), BOX, LABELS, **{option: value})
    assert str(error.value) == f"a threshold must lie in 0..1: {option} (got {value})."


@pytest.mark.parametrize(("task", "option"), PROBABILITIES)
@pytest.mark.parametrize("value", [0, 1])
def test_the_ends_of_the_range_are_allowed(task: str, option: str, value: int) -> None:
    assert DECIDERS[task](random_prediction(0), BOX, LABELS, **{option: value}).size == SIZE


def test_cutout_of_an_unknown_class() -> None:
    with pytest.raises(DataError, match=r"^unknown class: horse \(the table has: cat, dog, sky\)\.$"):
        cutout(random_prediction(0), BOX, LABELS, classes=["cat", "horse"])


def test_cutout_of_no_class() -> None:
    with pytest.raises(UsageError, match=r"^there is no class to cut out: classes\. Name one or more, or None for all"):
        cutout(random_prediction(0), BOX, LABELS, classes=[])


@given(hnp.arrays(np.int64, SIZE, elements=st.integers(0, 3)))
def test_segments_come_numbered_without_gaps(drawn: np.ndarray) -> None:
    masks = [np.where(drawn == n, 0.9, 0.1) for n in (1, 2, 3)]
    for decide in (semantic, panoptic, cutout):
        options = {"background": 0.5} if decide is semantic else {}
        result = decide(predicted(masks, [CAT, DOG, SKY], 0.9), BOX, LABELS, **options)
        present = sorted(set(drawn[drawn > 0].tolist()))
        assert [k + 1 for k in result.classes.tolist()] == present
        assert sorted(set(result.id_map[result.id_map > 0].tolist())) == list(range(1, len(present) + 1))
        assert (result.class_map(NOTHING) + 1).tolist() == np.where(drawn > 0, drawn, NOTHING + 1).tolist()
