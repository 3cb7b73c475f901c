"""The nouns, on maps drawn by hand: what each pixel is can be read off the picture."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everymask import errors
from everymask.boxes import segment_boxes as relative_boxes
from everymask.errors import DataError, EverymaskError
from everymask.evaluate import things_of
from everymask.labels import Label, LabelMap, distinct_color
from everymask.losses import point_targets
from everymask.maps import segment_areas, segment_boxes
from everymask.prompts import objects_of
from everymask.transforms import Geometry
from everymask.types import BACKGROUND, VOID, Batch, Letterbox, Segments, id_type

LABELS = LabelMap((Label("cat"), Label("dog"), Label("sky", is_thing=False)))


def draw(picture: str) -> torch.Tensor:
    """`?` is void, `.` background, a digit itself; layers are separated by blank lines."""
    values = {"?": VOID, ".": BACKGROUND}
    layers = [[[values.get(c, c) for c in row.split()] for row in part.split("\n")] for part in _parts(picture)]
    maps = torch.tensor(np.array(layers).astype(np.int32))
    return maps if len(maps) > 1 else maps[0]


def _parts(picture: str) -> list[str]:
    lines = "\n".join(line.strip() for line in picture.strip().split("\n"))
    return lines.split("\n\n")


# Two cats, a dog, sky.
FLAT = draw("""
    4 4 4 4 ?
    . 1 1 4 ?
    . 1 1 2 2
    3 . . 2 2
    3 3 ? ? .
""")
FLAT_CLASSES = [0, 0, 1, 2]

# A cat in front of a dog, and a second cat.
LAYERS = draw("""
    . . . . ?
    . 1 1 . .
    . 1 1 . .
    . . . . .
    3 . . ? .

    . . . . .
    . . 2 2 .
    . . 2 2 .
    . . 2 2 ?
    2 . . . .
""")
LAYER_CLASSES = [0, 1, 0]


def flat(**options: Any) -> Segments:
    return Segments.build(FLAT, FLAT_CLASSES, labels=LABELS, **options)


def layered(**options: Any) -> Segments:
    return Segments.build(LAYERS, LAYER_CLASSES, labels=LABELS, **options)


# --- building --------------------------------------------------------------------------------------------------------


def test_build_takes_thing_and_stuff_from_the_class_table() -> None:
    segments = flat()
    assert segments.is_thing.tolist() == [True, True, True, False]
    assert segments.is_crowd.tolist() == [False] * 4
    assert segments.size == (5, 5)
    assert (segments.id_map.dtype, segments.classes.dtype) == (torch.int32, torch.int64)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.uint8])
def test_build_reads_arrays_of_any_integer_type(dtype: type) -> None:
    ids = FLAT.clamp(min=0).numpy().astype(dtype)
    assert torch.equal(Segments.build(ids, FLAT_CLASSES).id_map, FLAT.clamp(min=0))


def test_build_without_a_table_makes_things_of_all() -> None:
    segments = Segments.build(FLAT, [7, 0, 1, 90])
    assert segments.is_thing.all()
    assert [s.label for s in segments] == ["7", "0", "1", "90"]


REFUSED = {
    "id beyond the table": (
        lambda: Segments.build(FLAT, [0, 0, 1]),
        "the id map and its table do not agree: Segments (ids go from -1 to 4, the table has 3 rows).",
    ),
    "id below void": (
        lambda: Segments.build(torch.tensor([[-2, 0]]), []),
        "the id map and its table do not agree: Segments (ids go from -2 to 0, the table has 0 rows).",
    ),
    "one axis": (
        lambda: Segments.build(torch.zeros(5), []),
        "an id map is [H, W] or [L, H, W]: Segments (got shape (5,)).",
    ),
    "class beyond the labels": (
        lambda: Segments.build(FLAT, [0, 0, 1, 3], labels=LABELS),
        "a segment's class is not in the class table: Segments (classes go from 0 to 3, the class table has 3).",
    ),
    "negative class": (
        lambda: Segments.build(FLAT, [0, -1, 1, 2], labels=LABELS),
        "a segment's class is not in the class table: Segments (classes go from -1 to 2, the class table has 3).",
    ),
    "crowd flags": (
        lambda: flat(crowd=[True]),
        "the parts of a segmentation do not agree: Segments.crowd (crowd has shape (1,), expected (4,)).",
    ),
    "scores": (
        lambda: flat(scores=torch.ones(5)),
        "the parts of a segmentation do not agree: Segments.scores (scores has shape (5,), expected (4,)).",
    ),
    "alpha": (
        lambda: layered(alpha=np.zeros((5, 4), np.uint8)),
        "the parts of a segmentation do not agree: Segments.alpha (alpha has shape (5, 4), expected (5, 5)).",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_build_refuses(case: str) -> None:
    build, text = REFUSED[case]
    with pytest.raises(DataError) as error:
        build()
    assert str(error.value) == text


def test_no_segment_at_all_is_allowed() -> None:
    segments = Segments.build(draw(". ?\n. ."), [], labels=LABELS)
    assert len(segments) == 0
    assert list(segments) == []
    assert segments.class_map(3).tolist() == [[3, -1], [3, 3]]
    assert len(segments.merged_by_class()) == 0
    assert not segments.foreground.any()


# --- whole maps ------------------------------------------------------------------------------------------------------

# 0 cat, 1 dog, 2 sky, 3 background.
CLASS_MAPS = {
    "flat": (flat, "2 2 2 2 ?\n3 0 0 2 ?\n3 0 0 0 0\n1 3 3 0 0\n1 1 ? ? 3"),
    "crowd": (lambda: flat(crowd=[0, 1, 0, 0]), "2 2 2 2 ?\n3 0 0 2 ?\n3 0 0 ? ?\n1 3 3 ? ?\n1 1 ? ? 3"),
    # The first layer wins where both have a segment; void of any layer is void.
    "layers": (layered, "3 3 3 3 ?\n3 0 0 1 3\n3 0 0 1 3\n3 3 1 1 ?\n0 3 3 ? 3"),
    "layers and crowd": (lambda: layered(crowd=[0, 1, 0]), "3 3 3 3 ?\n3 0 ? ? 3\n3 0 ? ? 3\n3 3 ? ? ?\n? 3 3 ? 3"),
}


@pytest.mark.parametrize("case", CLASS_MAPS)
def test_class_map(case: str) -> None:
    make, expected = CLASS_MAPS[case]
    assert make().class_map(3).tolist() == draw(expected).tolist()
    assert make().class_map(3).dtype == torch.int64


@pytest.mark.parametrize("case", CLASS_MAPS)
def test_void_is_where_the_class_map_is_unknown(case: str) -> None:
    make, expected = CLASS_MAPS[case]
    assert torch.equal(make().void, draw(expected) == VOID)


def test_foreground_is_any_segment_of_any_layer() -> None:
    assert torch.equal(flat().foreground, FLAT > 0)
    picture = ". . . . .\n. 1 1 1 .\n. 1 1 1 .\n. . 1 1 .\n1 . . . ."
    assert torch.equal(layered().foreground, draw(picture) == 1)


def test_merged_by_class() -> None:
    merged = flat(crowd=[0, 1, 0, 0], alpha=np.full((5, 5), 7, np.uint8)).merged_by_class()
    picture = "3 3 3 3 ?\n. 1 1 3 ?\n. 1 1 1 1\n2 . . 1 1\n2 2 ? ? ."
    assert torch.equal(merged.id_map, draw(picture))
    assert merged.classes.tolist() == [0, 1, 2]
    assert merged.is_thing.tolist() == [True, True, False]
    assert not merged.is_crowd.any()
    assert merged.alpha is not None
    assert (merged.alpha == 7).all()
    assert merged.labels is LABELS


def test_merged_by_class_skips_absent_classes() -> None:
    merged = Segments.build(draw("1 2\n. ?"), [2, 0], labels=LABELS).merged_by_class()
    assert merged.id_map.tolist() == [[2, 1], [0, -1]]
    assert merged.classes.tolist() == [0, 2]


def test_merged_by_class_flattens_layers() -> None:
    merged = layered().merged_by_class()
    # Cats (1) hide the dog (2); a segment outranks the void of the other layer.
    assert torch.equal(merged.id_map, draw(". . . . ?\n. 1 1 2 .\n. 1 1 2 .\n. . 2 2 ?\n1 . . ? ."))


def test_flatten_layers_prefers_segment_then_void_then_background() -> None:
    stack = torch.tensor([[[5, 5, 0, 0, 0, -1, -1]], [[0, 3, 3, -1, 0, 3, 0]]], dtype=torch.int32)
    assert Segments.flatten_layers(stack).tolist() == [[5, 5, 3, -1, 0, 3, -1]]


def test_to_moves_every_tensor() -> None:
    moved = flat(scores=torch.ones(4), alpha=torch.zeros(5, 5, dtype=torch.uint8)).to("meta")
    for name in ("id_map", "classes", "is_thing", "is_crowd", "scores", "alpha"):
        assert getattr(moved, name).device.type == "meta"


# --- views -----------------------------------------------------------------------------------------------------------


def test_views_of_a_flat_map() -> None:
    cat, other, dog, sky = flat(crowd=[0, 1, 0, 0], scores=torch.tensor([0.5, 0.25, 1.0, 0.75]))
    assert [s.label for s in (cat, other, dog, sky)] == ["cat", "cat", "dog", "sky"]
    assert [s.area for s in (cat, other, dog, sky)] == [4, 4, 3, 5]
    assert [s.box for s in (cat, other, dog, sky)] == [(1, 1, 2, 2), (3, 2, 4, 3), (0, 3, 1, 4), (0, 0, 3, 1)]
    assert [s.score for s in (cat, other, dog, sky)] == [0.5, 0.25, 1.0, 0.75]
    assert [s.id for s in (cat, other, dog, sky)] == [1, 2, 3, 4]
    assert (sky.is_thing, cat.is_thing, other.is_crowd, cat.is_crowd) == (False, True, True, False)
    assert torch.equal(dog.mask, FLAT == 3)


def test_views_of_layers_see_hidden_pixels() -> None:
    _, dog, _ = layered()
    assert dog.area == 7
    assert dog.box == (0, 1, 3, 4)
    assert dog.score == 1.0


def test_a_segment_without_pixels_has_no_box() -> None:
    empty = Segments.build(torch.zeros(2, 3), [0])[0]
    assert (empty.area, empty.box) == (0, None)


def test_indexing_as_in_a_list() -> None:
    assert flat()[-1].label == "sky"
    with pytest.raises(IndexError):
        flat()[4]


# --- letterbox and batch ---------------------------------------------------------------------------------------------

SIDES = st.integers(1, 6000)
LETTERBOXES = st.builds(
    Letterbox.fit, st.tuples(SIDES, SIDES), side=st.integers(1, 1500), multiple=st.sampled_from([1, 14, 16, 32])
)
POINTS = st.lists(st.tuples(st.floats(-7000, 7000), st.floats(-7000, 7000)), min_size=1, max_size=5)


@given(LETTERBOXES, POINTS)
def test_points_survive_the_round_trip(box: Letterbox, points: list[tuple[float, float]]) -> None:
    there = box.to_canvas(torch.tensor(points, dtype=torch.float64))
    torch.testing.assert_close(box.to_source(there), torch.tensor(points, dtype=torch.float64), rtol=1e-12, atol=1e-9)


@given(LETTERBOXES)
def test_corners_of_the_photo_are_corners_of_the_content(box: Letterbox) -> None:
    corners = torch.tensor([[-0.5, -0.5], [box.source[1] - 0.5, box.source[0] - 0.5]], dtype=torch.float64)
    expected = torch.tensor([[-0.5, -0.5], [box.content[1] - 0.5, box.content[0] - 0.5]], dtype=torch.float64)
    torch.testing.assert_close(box.to_canvas(corners), expected)


@given(st.tuples(SIDES, SIDES), st.integers(1, 1500), st.sampled_from([1, 14, 16, 32]))
def test_fit(source: tuple[int, int], side: int, multiple: int) -> None:
    box = Letterbox.fit(source, side, multiple)
    assert max(box.content) == side
    for length, content, canvas in zip(source, box.content, box.canvas, strict=True):
        assert abs(content - length * side / max(source)) < 1
        assert 1 <= content <= canvas < content + multiple
        assert canvas % multiple == 0


def test_whole_numbers_are_points_too() -> None:
    box = Letterbox.fit((480, 640), 320)
    assert box.to_canvas(torch.tensor([[420, 310]])).tolist() == [[209.75, 154.75]]
    assert box.to_source(torch.tensor([[0, 100]])).tolist() == [[0.5, 200.5]]


def test_valid_is_each_images_own_canvas() -> None:
    boxes = tuple(Letterbox.fit(size, 64) for size in [(40, 80), (80, 40)])
    batch = Batch(torch.zeros(2, 3, 64, 64), boxes)
    valid = batch.valid()
    assert valid is not None
    assert valid.shape == (2, 1, 64, 64)
    assert valid[0, 0, :32].all()
    assert valid[1, 0, :, :32].all()
    assert valid.sum() == 2 * 32 * 64
    # With patches of 16, 32 is still a whole number of them; with 64 all is valid.
    assert torch.equal(batch.valid(16), valid)
    assert batch.valid(64) is None


def test_valid_costs_nothing_for_images_of_one_canvas() -> None:
    boxes = (Letterbox((50, 50), (33, 60), (64, 64)), Letterbox((90, 90), (64, 64), (64, 64)))
    assert Batch(torch.zeros(2, 3, 64, 64), boxes).valid() is None


def test_a_batch_without_truth_says_so() -> None:
    batch = Batch(torch.zeros(1, 3, 32, 32), (Letterbox.fit((8, 8), 32),))
    assert (len(batch), batch.size) == (1, (32, 32))
    with pytest.raises(DataError, match=r"^this batch has no truth: Batch\.segments\. Use a labelled data set\.$"):
        batch.truth()


# --- errors ----------------------------------------------------------------------------------------------------------

TEXTS = [
    (("cannot read",), {}, "cannot read."),
    (("cannot read",), {"where": "a.png"}, "cannot read: a.png."),
    (("cannot read",), {"why": "0 bytes"}, "cannot read (0 bytes)."),
    (("cannot read",), {"fix": "Get it again."}, "cannot read. Get it again."),
    (("cannot read",), {"where": 3, "why": "w", "fix": "Do f."}, "cannot read: 3 (w). Do f."),
]


@pytest.mark.parametrize(("arguments", "options", "text"), TEXTS)
def test_error_text(arguments: tuple[str], options: dict[str, Any], text: str) -> None:
    assert str(EverymaskError(*arguments, **options)) == text


@pytest.mark.parametrize("kind", [EverymaskError, *EverymaskError.__subclasses__()])
def test_errors_cross_process_borders(kind: type[EverymaskError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", where="where", why="why", fix="Fix.")))
    assert type(error) is kind
    assert str(error) == "what: where (why). Fix."
    assert (error.what, error.where, error.why, error.fix) == ("what", "where", "why", "Fix.")


def test_all_errors_are_one_family() -> None:
    own = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(own) == 8
    assert all(issubclass(e, EverymaskError) for e in own)


# --- class tables ----------------------------------------------------------------------------------------------------


def test_index_by_name_and_synonym() -> None:
    table = LabelMap((Label("cat", synonyms=("kitten", "dog")), Label("dog", synonyms=("puppy", "kitten"))))
    # A class's own name outranks another's synonym; of two synonyms the first counts.
    assert [table.index(name) for name in ("cat", "dog", "kitten", "puppy")] == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"^unknown class: Cat \(the table has: cat, dog\)\.$"):
        table.index("Cat")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "a class table needs at least one class: LabelMap."),
        (["b", "a", "b", "c", "a"], "class names must be unique: LabelMap (repeated: a, b)."),
    ],
)
def test_class_tables_that_are_refused(names: list[str], text: str) -> None:
    with pytest.raises(DataError) as error:
        LabelMap.from_names(names)
    assert str(error.value) == text


CHANNEL = st.integers(0, 255)
ROWS = st.builds(
    Label,
    name=st.text(min_size=1, max_size=8),
    color=st.tuples(CHANNEL, CHANNEL, CHANNEL),
    is_thing=st.booleans(),
    source_id=st.none() | st.integers(0, 300),
    raw_pixel=st.none() | st.integers(0, 65535),
    synonyms=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)


UNIQUE = (lambda label: label.name, lambda label: label.raw_pixel if label.raw_pixel is not None else label.name)


@given(st.lists(ROWS, min_size=1, max_size=6, unique_by=UNIQUE), st.sets(st.integers(70000, 70009), max_size=3))
def test_json_round_trip(rows: list[Label], void: set[int]) -> None:
    table = LabelMap(tuple(rows), void=tuple(void), background=(80000,))
    assert LabelMap.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_rows_alone_are_read_as_the_first_version_wrote_them() -> None:
    table = LabelMap.from_names(["cat", "dog"])
    assert LabelMap.from_json(table.to_json()["labels"]) == table


TABLE = LabelMap(
    (Label("cat", source_id=17, raw_pixel=16), Label("sky", raw_pixel=90000)), void=(255,), background=(0,)
)


def test_pixels_become_class_indices() -> None:
    small = np.array([[0, 16], [255, 16]], np.uint8)
    assert TABLE.classes_of(small, "a.png").tolist() == [[2, 0], [-1, 0]]
    large = np.array([[0, 16], [90000, 255]])
    assert TABLE.classes_of(large, "a.png").tolist() == [[2, 0], [1, -1]]


def test_colours_are_pixels_too() -> None:
    colors = np.array([[[90000 % 256, 90000 // 256 % 256, 90000 // 65536], [16, 0, 0]]], np.uint8)
    assert TABLE.classes_of(colors, "a.png").tolist() == [[1, 0]]


def test_a_negative_pixel_is_unknown_and_no_index_from_the_end() -> None:
    with pytest.raises(DataError, match=r"^unknown value in a mask: a\.tif \(found -1"):
        TABLE.classes_of(np.array([[-1, 0, 16]], np.int32), "a.tif")


@pytest.mark.parametrize("pixels", [np.array([[0, 7]], np.uint8), np.array([[7, 90000]]), np.array([[7, 99999]])])
def test_an_unknown_pixel_is_named(pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"^unknown value in a mask: a\.png \(found 7.*knows 0, 16, 255, 90000\)"):
        TABLE.classes_of(pixels, "a.png")


def test_meanings_in_words() -> None:
    assert [TABLE.meaning(value) for value in (16, 0, 255, 3)] == ["cat", "background", "void", "unknown"]


def test_source_ids() -> None:
    assert TABLE.index_of_source(17) == 0
    with pytest.raises(DataError, match=r"^unknown class id: 16 \(the table has: 17 cat"):
        TABLE.index_of_source(16)


def test_one_meaning_a_pixel() -> None:
    with pytest.raises(DataError, match="a pixel value has two meanings"):
        LabelMap((Label("a", raw_pixel=3),), void=(3,))


def test_300_classes_have_300_colours() -> None:
    colors = {distinct_color(k) for k in range(300)}
    assert len(colors) == 300
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def test_neighbouring_colours_are_far_apart() -> None:
    colors = np.array([distinct_color(k) for k in range(300)])
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() >= 60


# --- ids in the smallest type that holds them ------------------------------------------------------------------------


def both_types(layers: int) -> tuple[Segments, Segments]:
    """The same 127 segments, as many as int8 holds, in int8 and in int32."""
    chance = np.random.default_rng(0)
    ids = chance.permutation(np.resize(np.arange(VOID, 128), 48 * 40 * layers)).reshape(layers, 48, 40)
    classes, crowd = chance.integers(0, 3, 127).tolist(), [n % 40 == 5 for n in range(127)]
    built = [Segments.build(ids.astype(t).squeeze(), classes, labels=LABELS, crowd=crowd) for t in (np.int8, np.int32)]
    return built[0], built[1]


VIEWS: dict[str, Callable[[Segments], Any]] = {
    "void": lambda s: s.void,
    "foreground": lambda s: s.foreground,
    "classes": lambda s: s.class_map(3),
    "merged": lambda s: s.merged_by_class().id_map.int(),
    "masks": lambda s: torch.stack([segment.mask for segment in s]),
    "areas": lambda s: torch.from_numpy(segment_areas(s)),
    "boxes": lambda s: torch.tensor(segment_boxes(s)),
    "relative boxes": lambda s: relative_boxes(s, s.size)[0],
    "turned": lambda s: Geometry.fit(s.size, 64).turned(1).segments(s).id_map.int(),
    "components": lambda s: objects_of(s, "component").id_map.int(),
    "by class": lambda s: objects_of(s, "class").id_map.int(),
    "things": lambda s: things_of(s).id_map.int(),
    "targets": lambda s: point_targets(s, torch.tensor([[3.0, 4.0], [30.0, 40.0]]))[0].float(),
}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_the_type_of_the_ids_changes_nothing(view: Callable[[Segments], Any], layers: int) -> None:
    small, wide = both_types(layers)
    assert (small.id_map.dtype, wide.id_map.dtype) == (torch.int8, torch.int32)
    assert torch.equal(view(small), view(wide))


@pytest.mark.parametrize(("segments", "name"), [(0, "int8"), (126, "int8"), (127, "int16"), (32767, "int32")])
def test_the_smallest_type_leaves_room_for_one_more(segments: int, name: str) -> None:
    assert id_type(segments) == np.dtype(name)


@pytest.mark.parametrize("given", [np.uint8, np.int64, np.bool_])
def test_other_types_become_int32(given: type) -> None:
    assert Segments.build(np.ones((2, 2), given), [0]).id_map.dtype == torch.int32
