"""DETR's panoptic results: drawn by hand, and against the published steps written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from everymask.labels import Label, LabelMap
from everymask.layers.masks import QueryPixelMasks
from everymask.postprocess import panoptic_of_logits
from everymask.types import Letterbox, Prediction, Segments

TABLE = LabelMap((Label("cat"), Label("dog"), Label("sky", is_thing=False), Label("sea", is_thing=False)))
CAT, DOG, SKY, SEA, NOBODY = range(5)


def prediction_of(maps: Tensor, classes: list[int], box: Letterbox, sure: float = 9.0) -> Prediction:
    """Queries of these classes with these logits [q, h, w]."""
    logits = torch.zeros(1, len(classes), len(TABLE) + 1)
    logits[0, torch.arange(len(classes)), classes] = sure
    canvas = tuple(length * -(-own // length) for length, own in zip(maps.shape[1:], box.content, strict=True))
    return Prediction(logits, QueryPixelMasks(torch.eye(len(classes))[None], maps[None], (box,), canvas))


# --- drawn by hand: a letter is the query with the highest logit, the letter in the second drawing has the next -------

FOUND = """
    AAAABBBB
    AAAABBBB
    AAAABBBB
    AAAABBBB
    CCCCBBBB
    CCCCBBBB
    CCCCCDBB
    CCCCDDBB
"""
NEXT = """
    BBBBAAAA
    BBBBAAAA
    BBBBAAAA
    BBBBAAAA
    BBBBAAAA
    BBBBAAAA
    BBBBBBAA
    BBBBBBAA
"""


def drawn(found: str, then: str, queries: str) -> Tensor:
    """Logits [q, 8, 8]: 2 in the first drawing, 1 in the second, -1 elsewhere."""
    first, second = (np.array([list(row.strip()) for row in text.split()]) for text in (found, then))
    maps = [np.where(first == q, 2.0, np.where(second == q, 1.0, -1.0)) for q in queries]
    return torch.tensor(np.array(maps), dtype=torch.float32)


def letters(segments: Segments, names: str) -> str:
    """The id map as a drawing."""
    return "\n".join("".join(names[n - 1] for n in row) for row in segments.id_map.tolist())


def square(text: str) -> str:
    return "\n".join(row.strip() for row in text.split())


SQUARE = Letterbox((8, 8), (8, 8), (8, 8))


def solve(classes: list[int], **options: object) -> Segments:
    prediction = prediction_of(drawn(FOUND, NEXT, "ABCD"), classes, SQUARE)
    return panoptic_of_logits(prediction, SQUARE, TABLE, **options)


@pytest.mark.parametrize("compat", ["default", "original"])
def test_things_take_what_is_theirs_and_small_ones_go(compat: str) -> None:
    """D has three pixels: dropped, and they go to the next highest."""
    segments = solve([CAT, DOG, CAT, DOG], compat=compat)
    assert letters(segments, "ABC") == square(FOUND.replace("D", "B"))
    assert [s.label for s in segments] == ["cat", "dog", "cat"]


@pytest.mark.parametrize("compat", ["default", "original"])
def test_four_pixels_are_few_and_five_are_not(compat: str) -> None:
    for count, names in ((4, "ABC"), (5, "ABCD")):
        found = FOUND.replace("D", "B")
        for _ in range(count):
            found = found[: found.rindex("B")] + "D" + found[found.rindex("B") + 1 :]
        all_a = "\n".join(["A" * 8] * 8)
        prediction = prediction_of(drawn(found, all_a, "ABCD"), [CAT, DOG, CAT, DOG], SQUARE)
        segments = panoptic_of_logits(prediction, SQUARE, TABLE, compat=compat)
        assert letters(segments, names) == square(found if count == 5 else found.replace("D", "A"))


def test_stuff_is_merged_before_pixels_are_decided() -> None:
    """A and C are sky: one segment, however small the rest."""
    segments = solve([SKY, DOG, SKY, DOG])
    assert letters(segments, "AB") == square(FOUND.replace("D", "B").replace("C", "A"))
    assert [s.label for s in segments] == ["sky", "dog"]


def test_the_published_merge_is_undone() -> None:
    """There, C is merged into A, is left without a pixel, dropped as small, and its pixels go to the dog beside it."""
    segments = solve([SKY, DOG, SKY, DOG], compat="original")
    assert letters(segments, "AB") == square(FOUND.replace("D", "B").replace("C", "B"))


def test_a_merge_cannot_help_two_small_parts_of_stuff_there() -> None:
    """Three pixels of sky in each of two places: enough together, but not for the original."""
    corners = square(FOUND.replace("C", "B").replace("A", "B").replace("D", "B")).split()
    corners[0], corners[7] = "AAABBBBB", "BBBBBCCC"
    found = "\n".join(corners)
    prediction = prediction_of(drawn(found, NEXT.replace("A", "B"), "ABC"), [SKY, DOG, SKY], SQUARE)
    default = panoptic_of_logits(prediction, SQUARE, TABLE)
    assert letters(default, "AB") == found.replace("C", "A")
    original = panoptic_of_logits(prediction, SQUARE, TABLE, compat="original")
    assert letters(original, "A") == "\n".join(["A" * 8] * 8)
    assert [s.label for s in original] == ["dog"]


def test_pixels_without_a_mask() -> None:
    maps = drawn(FOUND, NEXT, "AB")
    segments = panoptic_of_logits(prediction_of(maps - 1.5, [CAT, DOG], SQUARE), SQUARE, TABLE, covered_only=True)
    assert ((segments.id_map == 0) == (maps.amax(0) < 1.5)).all()
    everywhere = panoptic_of_logits(prediction_of(maps - 1.5, [CAT, DOG], SQUARE), SQUARE, TABLE)
    assert (everywhere.id_map > 0).all()


@pytest.mark.parametrize("compat", ["default", "original"])
def test_nothing_kept_or_nothing_left(compat: str) -> None:
    maps = drawn(FOUND, NEXT, "AB")
    for prediction, options in (
        (prediction_of(maps, [NOBODY, NOBODY], SQUARE), {}),
        (prediction_of(maps, [CAT, DOG], SQUARE, sure=1.0), {}),
        (prediction_of(maps, [CAT, DOG], SQUARE), {"tiny_area": 64}),
    ):
        segments = panoptic_of_logits(prediction, SQUARE, TABLE, compat=compat, **options)
        assert len(segments) == 0
        assert not segments.id_map.any()


# --- against the published steps -------------------------------------------------------------------------------------


def published_steps(maps: Tensor, classes: list[int], content: tuple[int, int], source: tuple[int, int]) -> Segments:
    """What `PostProcessPanoptic` of the original does, step by step, for queries that are all kept."""
    masks = F.interpolate(maps[:, None], size=content, mode="bilinear").squeeze(1)
    stuff: dict[int, list[int]] = {}
    for k, label in enumerate(classes):
        if not TABLE[label].is_thing:
            stuff.setdefault(label, []).append(k)

    def image_of_ids(masks: Tensor, dedup: bool) -> np.ndarray:
        # Where nothing is left, the original makes up a class; here, nobody has a pixel.
        ids = masks.argmax(0) if len(masks) else torch.full(content, -1)
        for same in stuff.values() if dedup else ():
            for k in same:
                ids[ids == k] = same[0]
        picture = Image.fromarray(ids.to(torch.int32).numpy(), mode=None)
        return np.asarray(picture.resize(source[::-1], Image.Resampling.NEAREST))

    ids = image_of_ids(masks, dedup=True)
    while len(classes):
        small = [(ids == k).sum() <= 4 for k in range(len(classes))]
        if not any(small):
            break
        kept = [k for k in range(len(classes)) if not small[k]]
        masks, classes = masks[kept], [classes[k] for k in kept]
        ids = image_of_ids(masks, dedup=False)
    return Segments.build(torch.from_numpy(ids.astype(np.int32)) + 1, classes, labels=TABLE)


def merged_first(maps: Tensor, classes: list[int], box: Letterbox) -> Segments:
    """Ours, plainly: merge, interpolate every map at every pixel, decide, drop, decide again."""
    keys = [("stuff", c) if not TABLE[c].is_thing else ("thing", n) for n, c in enumerate(classes)]
    order = list(dict.fromkeys(keys))
    groups = [[n for n, own in enumerate(keys) if own == key] for key in order]
    merged = torch.stack([maps[group].amax(0) for group in groups])
    names = [classes[group[0]] for group in groups]
    stride = [cells / length for cells, length in zip(maps.shape[1:], box.content, strict=True)]
    assert stride == [1 / 4, 1 / 4]  # So that the content ends with a cell, and stretching is right.
    full = F.interpolate(merged[None], size=box.source, mode="bilinear")[0]
    ids = full.argmax(0)
    while small := [n for n in range(len(names)) if (ids == n).sum() <= 4]:
        kept = [n for n in range(len(names)) if n not in small]
        full, names = full[kept], [names[n] for n in kept]
        ids = full.argmax(0) if kept else torch.full(box.source, -1)
    return Segments.build(ids + 1, names, labels=TABLE)


def blobs(count: int, size: tuple[int, int], seed: int) -> Tensor:
    coarse = torch.randn(1, count, 5, 6, generator=torch.Generator().manual_seed(seed))
    return 4 * F.interpolate(coarse, size, mode="bicubic")[0]


CLASSES = [CAT, SKY, DOG, SKY, SEA, CAT, SKY, SEA, DOG, CAT, DOG, SEA]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("source", [(60, 100), (96, 128), (191, 333), (17, 400), (1, 9)])
def test_the_published_steps_give_the_same(seed: int, source: tuple[int, int]) -> None:
    maps, box = blobs(len(CLASSES), (24, 32), seed), Letterbox(source, (95, 126), (96, 128))
    found = panoptic_of_logits(prediction_of(maps, CLASSES, box), box, TABLE, compat="original")
    expected = published_steps(maps, CLASSES, box.content, source)
    assert found.classes.tolist() == expected.classes.tolist()
    assert torch.equal(found.id_map, expected.id_map)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("source", [(60, 100), (96, 128), (191, 333), (17, 400), (1, 9)])
def test_merging_first_gives_the_same_written_plainly(seed: int, source: tuple[int, int]) -> None:
    maps, box = blobs(len(CLASSES), (24, 32), seed), Letterbox(source, (96, 128), (96, 128))
    found = panoptic_of_logits(prediction_of(maps, CLASSES, box), box, TABLE)
    expected = merged_first(maps, CLASSES, box)
    assert found.classes.tolist() == expected.classes.tolist()
    assert torch.equal(found.id_map, expected.id_map)
    stuff = [s.label for s in found if not s.is_thing]
    assert len(stuff) == len(set(stuff))
