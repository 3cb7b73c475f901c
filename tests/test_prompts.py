"""Prompts: what is promised of every point and box holds on any map, and after any chain of geometry steps."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from everymask.cli import main
from everymask.errors import DataError, UsageError
from everymask.labels import LabelMap
from everymask.prompt_files import BAD, CELL, GOOD, picture, save_prompts
from everymask.prompts import KINDS, PromptSettings, draw_prompts, jittered, move_prompts, objects_of
from everymask.types import VOID, Prompts, Sample, Segments
from tests.chains import Flip, Resize, Step, Turn, Warp, chains, linked
from tests.scenes import scene, write_dataset

Array = np.ndarray[Any, Any]
EVERY = PromptSettings(KINDS)


def build(rows: str | Array, classes: list[int] | None = None, **more: Any) -> Segments:
    """From a drawing: digits are ids, a dot is background, an x void."""
    if isinstance(rows, str):
        codes = {".": 0, "x": VOID}
        rows = np.array([[codes[c] if c in codes else int(c) for c in line] for line in rows.split()], np.int32)
    count = max(0, int(rows.max()))
    return Segments.build(rows, list(range(count)) if classes is None else classes, **more)


@st.composite
def scenes_with_all(draw: st.DrawFn, size: tuple[int, int] | None = None) -> Segments:
    """Blobs of up to six segments of three classes in one or two layers, with void and crowds; scores tell the rows."""
    height, width = size or draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    rng, cell = np.random.default_rng(draw(st.integers(0, 10**6))), draw(st.integers(1, 12))
    layers = draw(st.integers(1, 2))
    grid = rng.integers(-1, 7, (layers, -(-height // cell), -(-width // cell)))
    ids = np.kron(grid, np.ones((1, cell, cell), int))[:, :height, :width].astype(np.int32)
    crowd = rng.random(6) < draw(st.sampled_from([0.0, 0.3]))
    return Segments.build(
        ids if layers > 1 else ids[0], rng.integers(0, 3, 6), crowd=torch.from_numpy(crowd), scores=torch.arange(6.0)
    )


def clicks(prompts: Prompts, n: int, label: int) -> Array:
    """Pixels (x, y) [p, 2] of one object's points of one label."""
    chosen = (prompts.objects == n) & (prompts.labels == label)
    return prompts.points[chosen].round().long().numpy()


def check(prompts: Prompts, objects: Segments, jitter: bool = False) -> None:
    """What is promised of all prompts."""
    assert prompts.points.dtype == torch.float32
    assert prompts.labels.dtype == torch.int32
    assert prompts.points.shape == (len(prompts.labels), 2)
    assert len(prompts.objects) == len(prompts.labels)
    height, width = objects.size
    # Whichever way a program rounds.
    for pixels in (prompts.points.round(), (prompts.points + 0.5).floor()):
        x, y = pixels.long().T
        assert bool(((x >= 0) & (x < width) & (y >= 0) & (y < height)).all())
    for n in prompts.objects.unique().tolist():
        segment = objects[n]
        assert not segment.is_crowd
        x, y = clicks(prompts, n, 1).T
        assert segment.mask[y, x].all()
        x, y = clicks(prompts, n, 0).T
        same = torch.stack([s.mask for s in objects if s.class_index == segment.class_index]).any(0)
        assert not (same | objects.void)[y, x].any()
        corners = prompts.points[(prompts.objects == n) & (prompts.labels >= 2)]
        if len(corners):
            assert prompts.labels[prompts.objects == n][:2].tolist() == [2, 3]
            box = torch.tensor(segment.box, dtype=torch.float32).view(2, 2)
            most = (box[1] - box[0]).mul(0.1).clamp(max=20) if jitter else torch.zeros(2)
            assert bool(((corners - box).abs() <= most + 0.006).all())
            assert bool((corners >= 0).all())
            assert bool((corners <= torch.tensor([width - 1, height - 1])).all())


# --- what holds always -----------------------------------------------------------------------------------------------


@given(scenes_with_all(), st.sampled_from(["segment", "class", "component"]), st.booleans(), st.integers(0, 99))
def test_promises_hold_on_any_map(segments: Segments, by: str, jitter: bool, seed: int) -> None:
    objects = objects_of(segments, by)
    prompts = draw_prompts(objects, PromptSettings(KINDS, 2, by, jitter), seed)
    check(prompts, objects, jitter)
    # Every object has all its kinds, but for points that it has no pixels for.
    for n, segment in enumerate(objects):
        assert 1 + min(2, segment.area) + 1 <= len(clicks(prompts, n, 1)) <= 5
        assert len(clicks(prompts, n, 2)) == len(clicks(prompts, n, 3)) == 1
        same = torch.stack([s.mask for s in objects if s.class_index == segment.class_index]).any(0)
        assert (len(clicks(prompts, n, 0)) == 0) == bool((same | objects.void).all())


@given(scenes_with_all(), st.sampled_from(["segment", "class", "component"]), st.booleans(), st.data())
def test_promises_hold_after_any_chain(segments: Segments, by: str, jitter: bool, data: st.DataObject) -> None:
    objects = objects_of(segments, by)
    objects = replace(objects, scores=torch.arange(float(len(objects))))
    prompts = draw_prompts(objects, PromptSettings(KINDS, 2, by, jitter))
    _, chain = data.draw(chains(source=segments.size))
    geometry = linked(segments.size, chain)
    moved, there = move_prompts(prompts, geometry, objects)
    assert torch.equal(there.id_map, geometry.segments(objects).id_map)
    check(moved, there, jitter)
    # All that can still be seen has a box and a positive point.
    for n in range(len(there)):
        assert len(clicks(moved, n, 1)) >= 1
        assert len(clicks(moved, n, 2)) == len(clicks(moved, n, 3)) == 1
    # Each point is for the object that it was for.
    assert there.scores is not None
    for n, before in enumerate(there.scores.int().tolist()):
        assert len(clicks(moved, n, 1)) <= len(clicks(prompts, before, 1))
        assert len(clicks(moved, n, 0)) <= len(clicks(prompts, before, 0))


@given(scenes_with_all(), st.lists(st.sampled_from([Flip(False), Flip(True), Turn(1), Turn(2), Turn(3)]), max_size=5))
def test_turned_and_flipped_prompts_are_the_very_pixels(segments: Segments, chain: list[Step]) -> None:
    objects = objects_of(segments)
    prompts, geometry = draw_prompts(objects, EVERY), linked(segments.size, chain)
    moved, _ = move_prompts(prompts, geometry, objects)
    for label in (0, 1):
        for n in range(len(objects)):
            expected = geometry.points(torch.from_numpy(clicks(prompts, n, label)))
            assert {*map(tuple, clicks(moved, n, label).tolist())} == {*map(tuple, expected.tolist())}


# --- each kind -------------------------------------------------------------------------------------------------------


def only(segments: Segments, kind: str, **settings: Any) -> Prompts:
    return draw_prompts(segments, PromptSettings((kind,), **settings))


@given(scenes_with_all(size=(11, 13)))
def test_the_center_is_the_pixel_farthest_from_all_outside(segments: Segments) -> None:
    objects = objects_of(segments)
    prompts = only(objects, "center")
    for n, segment in enumerate(objects):
        inside = np.argwhere(segment.mask.numpy()) + 1
        outside = np.argwhere(~np.pad(segment.mask.numpy(), 1))
        distance = np.sqrt(((inside[:, None] - outside[None]) ** 2).sum(-1)).min(1)
        y, x = inside[distance.argmax()] - 1
        assert clicks(prompts, n, 1).tolist() == [[x, y]]


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("1", (0, 0)),
        ("..... .111. .1.1. .111. .....", (1, 1)),
        (".....1 ....1. ...1.. ..1... .1.... 1.....", (5, 0)),
        ("11111 11111 11111", (1, 1)),
        ("......... .1111111. .1111111. .1111111. .........", (2, 2)),
        ("1.11", (0, 0)),
    ],
)
def test_centers_of_drawn_shapes(drawing: str, expected: tuple[int, int]) -> None:
    """A pixel, a ring, a diagonal, a whole image, a bar, two parts."""
    assert only(build(drawing), "center").points.tolist() == [list(map(float, expected))]


def test_points_of_the_boundary_are_close_to_it_and_uniform_points_are_everywhere() -> None:
    ids = np.zeros((40, 40), np.int32)
    ids[5:35, 5:35] = 1
    segments = build(ids)
    rim, anywhere = (clicks(only(segments, kind, count=900), 0, 1) for kind in ("boundary", "uniform"))
    assert {*map(tuple, anywhere.tolist())} == {(x, y) for x in range(5, 35) for y in range(5, 35)}
    expected = {(x, y) for x, y in anywhere.tolist() if min(x - 4, y - 4, 35 - x, 35 - y) <= 2}
    assert {*map(tuple, rim.tolist())} == expected


def test_uniform_points_are_uniform() -> None:
    ids = np.ones((1, 10), np.int32)
    drawn = [draw_prompts(build(ids), PromptSettings(("uniform",), 2), seed).points[:, 0] for seed in range(500)]
    counts = torch.bincount(torch.cat(drawn).long(), minlength=10) / 100
    assert counts.min() > 0.7
    assert counts.max() < 1.3


def test_few_pixels_give_few_points() -> None:
    for kind in ("uniform", "boundary"):
        assert sorted(only(build("1.. .11"), kind, count=9).points.tolist()) == [[0, 0], [1, 1], [2, 1]]


def test_negatives_are_near() -> None:
    ids = np.zeros((200, 200), np.int32)
    ids[90:130, 100:104] = 1
    found = clicks(only(build(ids), "negative", count=50), 0, 0)
    x, y = found.T
    right_and_left, below_and_above = np.maximum(100 - x, x - 103).clip(0), np.maximum(90 - y, y - 129).clip(0)
    distance = np.hypot(right_and_left, below_and_above)
    # A quarter of 40 is 10, which is the least reach too.
    assert 8 < distance.max() <= 10
    assert distance.min() >= 1


def test_negatives_are_the_nearest_where_none_are_near() -> None:
    ids = np.full((60, 300), VOID, np.int32)
    ids[:, :5], ids[:, 100:] = 1, 0
    found = clicks(only(build(ids), "negative", count=99), 0, 0)
    # 96 pixels away are the first; up to the reach, a quarter of 60, farther are near enough then.
    assert found[:, 0].min() >= 100
    assert 111 < found[:, 0].max() <= 115
    assert len(found) == 99


@pytest.mark.parametrize("drawing", ["11 11", "1x x1", "12 21"])
def test_without_another_class_there_are_no_negatives(drawing: str) -> None:
    segments = build(drawing, classes=[4] if "2" not in drawing else [4, 4])
    assert len(only(segments, "negative")) == 0


def test_negatives_are_on_other_objects_of_other_classes_only() -> None:
    segments = build("1x2 x13 322", classes=[0, 0, 1])
    prompts = only(segments, "negative", count=99)
    assert {*map(tuple, clicks(prompts, 0, 0).tolist())} == {(2, 1), (0, 2)}
    assert {*map(tuple, clicks(prompts, 2, 0).tolist())} == {(0, 0), (2, 0), (1, 1), (1, 2), (2, 2)}


def test_negatives_keep_off_crowds() -> None:
    prompts = only(build("12. 33.", classes=[0, 1, 2], crowd=[False, True, False]), "negative", count=9)
    assert {*map(tuple, clicks(prompts, 0, 0).tolist())} == {(2, 0), (0, 1), (1, 1), (2, 1)}


def test_a_pixel_that_has_the_class_or_void_in_any_layer_is_no_negative() -> None:
    layers = np.array([[[1, 0, 0, 0, 0]], [[0, 2, 3, VOID, 0]]], np.int32)
    prompts = only(build(layers, classes=[0, 1, 0]), "negative", count=9)
    assert {*map(tuple, clicks(prompts, 0, 0).tolist())} == {(1, 0), (4, 0)}


def test_tight_boxes_are_inclusive_and_jitter_is_that_of_sam_2() -> None:
    segments = build("..... .11.. ..1.. .....")
    assert only(segments, "box").points.tolist() == [[1, 1], [2, 2]]
    rng = np.random.default_rng(0)
    small = np.array([jittered((100, 50, 140, 150), (400, 400), rng) for _ in range(500)]) - [[100, 50], [140, 150]]
    assert np.abs(small).max((0, 1)) == pytest.approx([4, 10], rel=0.02)
    large = np.array([jittered((100, 100, 400, 150), (500, 500), rng) for _ in range(500)]) - [[100, 100], [400, 150]]
    assert np.abs(large).max((0, 1)) == pytest.approx([20, 5], rel=0.02)
    assert np.abs(small.mean(0)).max() < 1
    assert jittered((3, 3, 3, 3), (9, 9), rng).tolist() == [[3, 3], [3, 3]]
    clipped = np.array([jittered((0, 0, 99, 99), (100, 100), rng) for _ in range(50)])
    assert clipped.min() == 0
    assert clipped.max() == 99


def test_small_objects_and_crowds_get_nothing() -> None:
    segments = build("11.2 11.. 33.. 33..", crowd=[False, False, True])
    assert set(draw_prompts(segments, replace(EVERY, least_area=2)).objects.tolist()) == {0}
    assert set(draw_prompts(segments, EVERY).objects.tolist()) == {0, 1}
    empty = draw_prompts(build("x. .."), EVERY)
    assert (len(empty), empty.points.shape) == (0, (0, 2))


# --- objects ---------------------------------------------------------------------------------------------------------


def test_crowds_are_void_and_rows_without_pixels_go() -> None:
    found = objects_of(build("12 2. 4x", classes=[5, 6, 7, 8], crowd=[False, True, False, False]))
    assert found.id_map.tolist() == [[1, VOID], [VOID, 0], [2, VOID]]
    assert found.classes.tolist() == [5, 8]


def test_an_object_may_be_all_of_a_class() -> None:
    found = objects_of(build("12. 3x1", classes=[5, 2, 5]), "class")
    assert found.id_map.tolist() == [[2, 1, 0], [2, VOID, 2]]
    assert found.classes.tolist() == [2, 5]


def test_layers_stay_so_that_no_class_covers_another() -> None:
    layers = np.array([[[1, 1, 0]], [[0, 2, 2]]], np.int32)
    found = objects_of(build(layers, classes=[0, 1]), "class")
    assert [s.area for s in found] == [2, 2]


def test_components_touch_at_corners() -> None:
    found = objects_of(build("1.1.2 .1..2 ....x 1.222", classes=[3, 4]), "component")
    assert found.id_map.tolist() == [[1, 0, 1, 0, 3], [0, 1, 0, 0, 3], [0, 0, 0, 0, VOID], [2, 0, 4, 4, 4]]
    assert found.classes.tolist() == [3, 3, 4, 4]


def test_a_component_reaches_over_layers() -> None:
    layers = np.array([[[1, 1, 0, 0, 1]], [[0, 2, 1, 0, 2]]], np.int32)
    found = objects_of(build(layers, classes=[0, 1]), "component")
    assert found.id_map.tolist() == [[[1, 1, 0, 0, 2]], [[0, 3, 1, 0, 4]]]
    assert found.classes.tolist() == [0, 0, 1, 1]


# --- seeds -----------------------------------------------------------------------------------------------------------

SCENE = scene(48, 64).segments


def same(a: Prompts, b: Prompts) -> bool:
    return a.points.tolist() == b.points.tolist() and a.labels.tolist() == b.labels.tolist()


def test_draws_depend_on_seed_and_name() -> None:
    settings = PromptSettings(KINDS, jitter=True)
    first = draw_prompts(SCENE, settings, 1, "a")
    assert same(first, draw_prompts(SCENE, settings, 1, "a"))
    assert not same(first, draw_prompts(SCENE, settings, 2, "a"))
    assert not same(first, draw_prompts(SCENE, settings, 1, "b"))
    assert len(draw_prompts(SCENE, settings, 1, "\udcff")) == len(first)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_a_kind_do_not_depend_on_other_kinds_or_objects(kind: str) -> None:
    both, alone = draw_prompts(SCENE, EVERY), only(SCENE, kind)
    label = {"negative": 0, "box": 2}.get(kind, 1)
    for n in range(2):
        assert {*map(tuple, clicks(alone, n, label).tolist())} <= {*map(tuple, clicks(both, n, label).tolist())}
    first = replace(SCENE, id_map=SCENE.id_map.masked_fill(SCENE.id_map == 2, 0))
    if kind != "negative":
        assert clicks(only(first, kind), 0, label).tolist() == clicks(alone, 0, label).tolist()


def test_equal_objects_get_other_points() -> None:
    ids = np.zeros((20, 40), np.int32)
    ids[:, :18], ids[:, 22:] = 1, 2
    prompts = only(build(ids), "uniform")
    assert clicks(prompts, 0, 1).tolist() != (clicks(prompts, 1, 1) - [22, 0]).tolist()


class Drawing:
    """Prompts of scenes, for a loader."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[list[float]]:
        sample = scene(seed=index)
        points: list[list[float]] = draw_prompts(objects_of(sample.segments), EVERY, 5, sample.name).points.tolist()
        return points


def test_workers_draw_the_same() -> None:
    found = [list(DataLoader(Drawing(), collate_fn=list, num_workers=n)) for n in (0, 2)]  # type: ignore[arg-type]
    assert found[0] == found[1]


# --- moving ----------------------------------------------------------------------------------------------------------


def test_points_that_are_cut_away_go_and_what_is_left_gets_its_center() -> None:
    segments = build("11111111 11111111 11111111")
    prompts = Prompts(torch.tensor([[1.0, 1], [6, 1]]), torch.tensor([1, 1]).int(), torch.tensor([0, 0]))
    right, there = move_prompts(prompts, linked((3, 8), []).cropped((4, 0, 8, 3)), segments)
    assert right.points.tolist() == [[2, 1]]
    alone = Prompts(torch.tensor([[1.0, 1]]), torch.tensor([1]).int(), torch.tensor([0]))
    left_over, _ = move_prompts(alone, linked((3, 8), []).cropped((4, 0, 8, 3)), segments)
    assert left_over.points.tolist() == [[1, 1]]
    assert there.size == (3, 4)


def test_a_point_whose_pixel_was_not_sampled_moves_to_the_next_of_its_object() -> None:
    segments = build("1112111 1112111")
    prompts = Prompts(torch.tensor([[3.0, 0], [2, 0]]), torch.tensor([1, 0]).int(), torch.tensor([1, 1]))
    moved, there = move_prompts(prompts, linked((2, 7), [Resize((2, 3))]), segments)
    assert there.id_map.tolist() == [[1, 2, 1]] * 2
    assert moved.points[0].tolist() == [1, 0]
    assert moved.points[1, 0] != 1


def test_objects_that_vanish_take_their_prompts_along() -> None:
    segments = build("1.2", classes=[3, 4])
    moved, there = move_prompts(draw_prompts(segments, EVERY), linked((1, 3), []).cropped((1, 0, 3, 1)), segments)
    assert there.classes.tolist() == [4]
    assert set(moved.objects.tolist()) == {0}
    nothing, nobody = move_prompts(draw_prompts(segments, EVERY), linked((1, 3), []).cropped((1, 0, 2, 1)), segments)
    assert (len(nothing), len(nobody)) == (0, 0)


def test_jitter_grows_with_the_image() -> None:
    ids = np.zeros((40, 40), np.int32)
    ids[10:30, 10:30] = 1
    segments = build(ids)
    prompts = draw_prompts(segments, PromptSettings(("box",), jitter=True))
    moved, there = move_prompts(prompts, linked((40, 40), [Resize((80, 80))]), segments)
    offset = prompts.points - torch.tensor([[10.0, 10], [29, 29]])
    assert there[0].box == (20, 20, 59, 59)
    torch.testing.assert_close(moved.points - torch.tensor([[20.0, 20], [59, 59]]), 2 * offset, atol=0.02, rtol=0)


def test_a_matte_moves_along() -> None:
    segments = build("11 11", alpha=np.full((2, 2), 200, np.uint8))
    _, there = move_prompts(draw_prompts(segments, EVERY), linked((2, 2), [Warp(0, 0, 1, (1, 0))]), segments)
    assert there.alpha is not None
    assert there.alpha.tolist() == [[0, 200]] * 2


# --- as models take them ---------------------------------------------------------------------------------------------


def test_padding_is_label_minus_one() -> None:
    prompts = Prompts(torch.arange(8.0).view(4, 2), torch.tensor([1, 2, 3, 0]).int(), torch.tensor([2, 0, 0, 2]))
    points, labels = prompts.padded(3)
    assert labels.tolist() == [[2, 3], [-1, -1], [1, 0]]
    assert points.tolist() == [[[2, 3], [4, 5]], [[0, 0], [0, 0]], [[0, 1], [6, 7]]]
    assert (points.dtype, labels.dtype) == (torch.float32, torch.int32)
    nothing = draw_prompts(build(".."), EVERY).padded(2)
    assert [part.shape for part in nothing] == [(2, 0, 2), (2, 0)]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kinds": ("box", "dot")},
            "a setting is unknown: kinds (dot). There are: box, center, uniform, boundary, negative.",
        ),
        (
            {"kinds": ()},
            "a setting is unknown: kinds (there is none). There are: box, center, uniform, boundary, negative.",
        ),
        ({"by": "pixel"}, "a setting is unknown: by (pixel). There are: segment, class, component."),
        ({"count": 0}, "a setting is out of range: count (0 is below 1)."),
        ({"least_area": 0}, "a setting is out of range: least_area (0 is below 1)."),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        PromptSettings(**settings)
    assert str(error.value) == message


# --- files -----------------------------------------------------------------------------------------------------------


def samples(count: int) -> list[Sample]:
    return [scene(48, 64, seed=n) for n in range(count)]


def test_a_line_says_all_of_a_sample(tmp_path: Path) -> None:
    labels = LabelMap.from_names(["cat", "dog"])
    segments = build("11.. 11.. ....", classes=[1], labels=labels)
    image = np.zeros((3, 4, 3), np.uint8)
    kinds = PromptSettings(("box", "center"))
    assert save_prompts([Sample(image, segments, "one")], 1, tmp_path / "a.json", kinds) == (1, 3)
    head, line, end = (tmp_path / "a.json").read_text().splitlines()
    assert json.loads(line) == {
        "name": "one",
        "photo": hashlib.blake2b(bytes(36), digest_size=8).hexdigest(),
        "size": [3, 4],
        "objects": [{"class": "dog", "area": 4, "box": [0, 0, 1, 1]}],
        "points": [[0, 0], [1, 1], [0, 0]],
        "labels": [2, 3, 1],
        "of": [0, 0, 0],
    }
    assert json.loads(f"{head}{line}{end}")["settings"] == {
        "kinds": ["box", "center"],
        "count": 3,
        "by": "segment",
        "jitter": False,
        "least_area": 1,
        "seed": 0,
    }


def test_files_repeat_byte_for_byte(tmp_path: Path) -> None:
    settings = PromptSettings(KINDS, jitter=True)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        save_prompts(samples(30), 30, tmp_path / f"{name}.json", settings, seed=seed)
    a, b, c = ((tmp_path / f"{name}.json").read_bytes() for name in "abc")
    assert a == b != c
    assert a.count(b"\n") == 32
    assert len(json.loads(a)["samples"]) == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as sheet:
        # 15 of 30, four a row.
        assert sheet.width > 4 * CELL
        assert sheet.height == pytest.approx(4 * (CELL * 48 / 64 + 48), rel=0.05)


def test_one_more_sample_is_one_more_line(tmp_path: Path) -> None:
    for count in (2, 3):
        save_prompts(samples(count), count, tmp_path / f"{count}.json", EVERY)
    two, three = ((tmp_path / f"{count}.json").read_text().splitlines() for count in (2, 3))
    assert [line.rstrip(",") for line in three[:3]] == [line.rstrip(",") for line in two[:3]]


def test_nothing_is_written_when_a_sample_cannot_be_read(tmp_path: Path) -> None:
    def broken() -> Any:
        yield scene()
        raise DataError("unknown value in a mask", where="b.png")

    with pytest.raises(DataError):
        save_prompts(broken(), 2, tmp_path / "out.json", EVERY)
    assert list(tmp_path.iterdir()) == []


def test_prompts_are_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        save_prompts(samples(1), 1, tmp_path / "out.txt", EVERY)
    assert str(error.value) == f"prompts are written as JSON: {tmp_path / 'out.txt'} (it ends in .txt)."


@pytest.mark.parametrize("size", [(20, 40), (800, 1600)])
def test_the_picture_shows_points_where_they_are(size: tuple[int, int]) -> None:
    height, width = size
    ids, photo = np.zeros(size, np.int32), np.zeros((*size, 3), np.uint8)
    ids[height // 4 : height // 2, width // 4 : width // 2] = 1
    objects = build(ids)
    points = torch.tensor([[width * 0.3, height * 0.3], [width * 0.9, height * 0.9]]) - 0.5
    drawn = Prompts(points, torch.tensor([1, 0]).int(), torch.zeros(2).long())
    shown = np.asarray(picture(photo, objects, drawn))
    assert shown.shape == (CELL // 2, CELL, 3)
    assert tuple(shown[60, 120]) == GOOD
    assert tuple(shown[180, 360]) == BAD
    plain, boxed = (np.asarray(picture(photo, objects, p)) for p in (only(build("."), "box"), only(objects, "box")))
    ys, xs = np.nonzero((plain != boxed).any(-1))
    assert [xs.min(), ys.min(), xs.max(), ys.max()] == pytest.approx([99, 49, 200, 100], abs=1)


def test_the_verb_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_dataset(tmp_path / "data", train=3)
    arguments = ["--out", str(tmp_path / "p.json"), "--kind", "negative", "--kind", "center", "--by", "component"]
    main(["prompts", str(root), *arguments, "--count", "2", "--seed", "7", "--split", "train"])
    out = capsys.readouterr().out
    assert f"{tmp_path / 'p.json'}: 18 points for 6 objects in 3 images; see {tmp_path / 'p.png'}" in out
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["settings"]["kinds"] == ["negative", "center"]
    assert written["settings"]["seed"] == 7
    assert [row["labels"] for row in written["samples"]] == [[1, 0, 0, 1, 0, 0]] * 3
    with pytest.raises(SystemExit):
        main(["prompts", str(root), "--out", str(tmp_path / "q.json"), "--kind", "dot"])
    assert not (tmp_path / "q.json").exists()
