"""COCO's readers and class tables: hand-made files in every layout, each refusal, and the real sets."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import write_mask, write_photo
from mutate import check_legal
from PIL import Image

from benchmarks import coco_panoptic
from everymask.datasets import find_format, open_dataset
from everymask.datasets.coco_classes import PANOPTIC, STUFF, STUFF_TRAINING, THINGS
from everymask.datasets.coco_index import CocoIndex
from everymask.datasets.coco_layout import sample_names
from everymask.datasets.segment_ids import read_colors, rows_of
from everymask.errors import DataError, EverymaskError
from everymask.image import read_mask
from everymask.labels import LabelMap, packed
from everymask.types import VOID, Sample

Array = np.ndarray[Any, Any]
Json = dict[str, Any]


def box(x0: int, y0: int, x1: int, y1: int) -> list[int]:
    """A rectangle of pixel edges as polygon."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def seen(sample: Sample) -> list[tuple[str, int]]:
    """Class name and area of each segment."""
    areas = np.bincount(sample.segments.id_map.numpy().ravel() + 1, minlength=len(sample.segments) + 2)[2:]
    return [(segment.label, area) for segment, area in zip(sample.segments, areas.tolist(), strict=True)]


# --- class tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(171))
def test_each_class_of_coco_stuff_has_three_ids(position: int) -> None:
    label = STUFF[position]
    assert label.source_id is not None
    assert STUFF.index_of_source(label.source_id) == position
    published, training = np.array([[label.source_id - 1, 255]]), np.array([[position, 255]])
    assert STUFF.classes_of(published, "here").tolist() == [[position, VOID]]
    assert STUFF_TRAINING.classes_of(training, "here").tolist() == [[position, VOID]]
    assert STUFF_TRAINING[position].name == label.name
    assert label.is_thing == (position < 80)


@pytest.mark.parametrize(
    ("name", "category", "published", "training"),
    [
        ("person", 1, 0, 0),
        ("stop sign", 13, 12, 11),
        ("cat", 17, 16, 15),
        ("dog", 18, 17, 16),
        ("horse", 19, 18, 17),
        ("toothbrush", 90, 89, 79),
        ("banner", 92, 91, 80),
        ("sky-other", 157, 156, 145),
        ("wood", 182, 181, 170),
    ],
)
def test_ids_as_published(name: str, category: int, published: int, training: int) -> None:
    position = STUFF.index(name)
    ids = STUFF[position].source_id, STUFF[position].raw_pixel, STUFF_TRAINING[position].raw_pixel
    assert (position, *ids) == (training, category, published, training)


def test_eleven_ids_of_coco_stuff_are_unused() -> None:
    used = [label.source_id for label in STUFF]
    assert [k for k in range(1, 183) if k not in used] == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]


@pytest.mark.parametrize(("table", "things", "stuff"), [(THINGS, 80, 0), (PANOPTIC, 80, 53), (STUFF, 80, 91)])
def test_tables_are_whole(table: LabelMap, things: int, stuff: int) -> None:
    assert [label.is_thing for label in table] == [True] * things + [False] * stuff
    assert [label.source_id for label in table] == sorted(label.source_id or 0 for label in table)
    names = [*table.names, *(text for label in table for text in label.synonyms)]
    assert len({*names}) == len(names)
    assert len({label.color for label in table}) == len(table)


def test_odd_names_have_plain_ones() -> None:
    assert STUFF[STUFF.index("brick wall")].name == "wall-brick"
    assert PANOPTIC[PANOPTIC.index("sky")].name == "sky-other-merged"
    assert THINGS[THINGS.index("sofa")].name == "couch"


def test_panoptic_classes_are_those_of_the_published_file(data: Callable[[str], Path]) -> None:
    rows = json.loads((data("panopticapi_sample") / "panoptic_examples.json").read_text())["categories"]
    published = [(row["id"], row["name"], row["isthing"], tuple(row["color"])) for row in rows]
    assert [(label.source_id, label.name, label.is_thing, label.color) for label in PANOPTIC] == published
    assert [label.source_id for label in THINGS] == [row["id"] for row in rows if row["isthing"]]


# --- panoptic --------------------------------------------------------------------------------------------------------

SEGMENT_IDS = np.array([[0, 300, 300, 70000], [0, 300, 255, 70000], [2**24 - 1, 255, 255, 70000]])


def colors_of(ids: Array) -> Array:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def panoptic_json() -> Json:
    """Two images: `a` with four segments, one a crowd, and `b` that is one."""
    return {
        "info": {"year": 2018},
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 3, "width": 4},
            {"id": 9, "file_name": "b.jpg", "height": 2, "width": 2},
        ],
        "annotations": [
            {
                "image_id": 7,
                "file_name": "a.png",
                "segments_info": [
                    {"id": 70000, "category_id": 5, "iscrowd": 0, "area": 3, "bbox": [3, 0, 1, 3]},
                    {"id": 255, "category_id": 2, "iscrowd": 0},
                    {"id": 300, "category_id": 2, "iscrowd": 1},
                    {"id": 16777215, "category_id": 2, "iscrowd": 0},
                ],
            },
            {"image_id": 9, "file_name": "b.png", "segments_info": [{"id": 1, "category_id": 5, "iscrowd": 0}]},
        ],
        "categories": [
            {"id": 5, "name": "grass", "isthing": 0, "color": [1, 200, 3]},
            {"id": 2, "name": "sheep", "isthing": 1},
        ],
    }


def write_panoptic(
    root: Path, json_path: str = "panoptic/panoptic_val2017.json", pngs: str = "", images: str = ""
) -> Path:
    """That data set in any layout; returns the annotation file."""
    path = write_json(root / json_path, panoptic_json())
    folder = root / pngs if pngs else path.with_suffix("")
    for stem, ids in {"a": SEGMENT_IDS, "b": np.ones((2, 2), int)}.items():
        write_photo(root / (images or "images/val2017") / f"{stem}.jpg", ids.shape[1::-1])
        write_mask(folder / f"{stem}.png", colors_of(ids))
    return path


def test_panoptic_segments_are_rows_in_the_order_of_the_json(tmp_path: Path) -> None:
    write_panoptic(tmp_path)
    first, second = open_dataset(tmp_path, "val")
    assert first.segments.id_map.tolist() == [[-1, 3, 3, 1], [-1, 3, 2, 1], [4, 2, 2, 1]]
    assert seen(first) == [("grass", 3), ("sheep", 3), ("sheep", 3), ("sheep", 1)]
    assert first.segments.is_thing.tolist() == [False, True, True, True]
    assert first.segments.is_crowd.tolist() == [False, False, True, False]
    assert first.segments.void.tolist() == [[True, True, True, False], [True, True, False, False], [False] * 4]
    assert second.segments.id_map.tolist() == [[1, 1], [1, 1]]
    # Classes go by category id, whatever the order of the file.
    assert [(label.name, label.source_id, label.is_thing) for label in open_dataset(tmp_path, "val").labels] == [
        ("sheep", 2, True),
        ("grass", 5, False),
    ]
    assert open_dataset(tmp_path, "val").labels[1].color == (1, 200, 3)
    for sample in (first, second):
        check_legal(sample)


@pytest.mark.parametrize(
    ("json_path", "pngs", "images", "splits"),
    [
        ("panoptic/panoptic_val2017.json", "", "images/val2017", ("val",)),
        ("annotations/panoptic_val2017.json", "", "val2017", ("val",)),
        ("annotations/panoptic_val2017.json", "panoptic_val2017", "val2017", ("val",)),
        ("annotations/panoptic_train2017.json", "", "images", ("train",)),
        ("panoptic_val.json", "", "images/val", ("val",)),
        ("panoptic_examples.json", "", "input_images", ()),
        ("panoptic_examples.json", "", ".", ()),
    ],
)
def test_panoptic_layouts(tmp_path: Path, json_path: str, pngs: str, images: str, splits: tuple[str, ...]) -> None:
    path = write_panoptic(tmp_path, json_path, pngs, images)
    assert find_format(tmp_path)[0] == "coco_panoptic"
    dataset = open_dataset(tmp_path, *splits)
    assert list(dataset.names) == ["a", "b"]
    folder = tmp_path / pngs if pngs else path.with_suffix("")
    assert dataset.files(1) == (tmp_path / images / "b.jpg", folder / "b.png", path)
    assert seen(dataset[-1]) == [("grass", 4)]


def test_splits_go_by_the_names_of_annotation_files(tmp_path: Path) -> None:
    write_panoptic(tmp_path, "annotations/panoptic_val2017.json", images="val2017")
    write_panoptic(tmp_path, "annotations/panoptic_train2017.json", images="train2017")
    assert open_dataset(tmp_path).files(0)[0].parent.name == "train2017"
    assert open_dataset(tmp_path, "val").files(0)[0].parent.name == "val2017"
    write_panoptic(tmp_path, "annotations/panoptic_val2014.json", images="val2014")
    with pytest.raises(DataError, match=r"\(asked for val, there are: train2017, val2014, val2017\)\.$"):
        open_dataset(tmp_path, "val")


def spoil(value: Json, *path: Any, to: Any = None, drop: bool = False) -> Json:
    """The same JSON with another value at `path`, or without it."""
    spoiled = copy.deepcopy(value)
    inside: Any = spoiled
    for key in path[:-1]:
        inside = inside[key]
    if drop:
        del inside[path[-1]]
    else:
        inside[path[-1]] = to
    return spoiled


SEGMENT = ("annotations", 0, "segments_info", 1)
PANOPTIC_FAULTS: list[tuple[tuple[Any, ...], Any, str]] = [
    (("images",), [], 'no image: {json} ("images" is empty).'),
    (("images",), {}, "cannot read an annotation file: {json}, images (expected '[' at byte "),
    (("images", 0), 3, "expected an object: {json}, images[0] (found 3)."),
    (("images", 1, "id"), 7, 'two images are one: {json}, images[1], id 7 (images[0] has the same "id", 7). Keep'),
    (
        ("images", 1, "file_name"),
        "./a.jpg",
        "two images are one: {json}, images[1], id 9 (images[0] has the same \"file_name\", 'a.jpg'). Keep one",
    ),
    (("images", 0, "file_name"), 3, 'expected text: {json}, images[0], id 7 ("file_name" is 3).'),
    (("images", 0, "file_name"), "x\0", "expected text: {json}, images[0], id 7 (\"file_name\" is 'x\\x00')."),
    (
        ("images", 0, "file_name"),
        "../a.jpg",
        "the name of an image leads out of its folder: {json}, images[0], id 7 (\"file_name\" is '../a.jpg').",
    ),
    (
        ("images", 0, "file_name"),
        "c.jpg",
        "no such image file: {json}, images[0], id 7 ('c.jpg' is not in val2017, images, panoptic, ",
    ),
    (("images", 0, "file_name"), "x" * 5000, "no such image file: {json}, images[0], id 7 ('xxx"),
    (
        ("images", 0, "height"),
        5,
        "image and annotation differ in size: {json}, images[0], id 7 (a.jpg is 4x3, its entry says 4x5). Use the",
    ),
    (
        ("images", 0, "width"),
        4.0,
        'expected a whole number from 1 to 1048576: {json}, images[0], id 7 ("width" is 4.0).',
    ),
    (
        ("annotations", 0, "image_id"),
        True,
        'expected a whole number from 0: {json}, annotations[0] ("image_id" is True).',
    ),
    (("annotations", 0, "image_id"), -7, 'expected a whole number from 0: {json}, annotations[0] ("image_id" is -7).'),
    (("annotations", 0, "image_id"), 10**30, "expected a whole number from 0: {json}, annotations[0] ("),
    (
        ("annotations", 0, "image_id"),
        8,
        'an annotation of an unknown image: {json}, annotations[0] (no entry of "images" has the id 8).',
    ),
    (
        ("annotations", 1, "image_id"),
        7,
        'two annotations are one: {json}, annotations[1] (annotations[0] has the same "image_id", 7). Keep one of',
    ),
    (
        ("annotations", 1, "file_name"),
        "c.png",
        "no such PNG file: {json}, annotations[1] ('c.png' is not in {root}/panoptic/panoptic_val2017). Add the",
    ),
    (
        ("annotations", 1, "file_name"),
        "/c.png",
        "the name of a PNG leads out of its folder: {json}, annotations[1] (\"file_name\" is '/c.png').",
    ),
    (("annotations", 0, "segments_info"), None, 'expected a list: {json}, annotations[0] ("segments_info" is None).'),
    (SEGMENT, None, "expected an object: {json}, annotations[0].segments_info[1] (found None)."),
    (
        (*SEGMENT, "id"),
        0,
        'expected a whole number from 1 to 16777215: {json}, annotations[0].segments_info[1], id 0 ("id" is 0).',
    ),
    (
        (*SEGMENT, "id"),
        300,
        "two segments have one id: {json}, annotations[0].segments_info[2], id 300 "
        "(annotations[0].segments_info[1] has it too).",
    ),
    (
        (*SEGMENT, "id"),
        256,
        "a segment id is in the PNG alone: {root}/panoptic/panoptic_val2017/a.png "
        "(found 255; panoptic_val2017.json, annotations[0] has no such segment). JSON and PNG files are of different",
    ),
    (
        (*SEGMENT, "category_id"),
        3,
        'unknown category: {json}, annotations[0].segments_info[1], id 255 ("category_id" is 3, there are [2, 5]).',
    ),
    (
        (*SEGMENT, "iscrowd"),
        2,
        'expected 0 or 1: {json}, annotations[0].segments_info[1], id 255 ("iscrowd" is 2).',
    ),
    (("categories",), [], 'no class: {json} ("categories" is empty). Name at least one.'),
    (
        ("categories", 1, "id"),
        5,
        'two categories are one: {json}, categories[1], id 5 (categories[0] has the same "id", 5).',
    ),
    (
        ("categories", 1, "name"),
        "grass",
        "two categories are one: {json}, categories[1], id 2 (categories[0] has the same \"name\", 'grass'). Keep one",
    ),
    (("categories", 0, "name"), "", "expected text: {json}, categories[0], id 5 (\"name\" is '')."),
    (("categories", 0, "isthing"), "yes", "expected 0 or 1: {json}, categories[0], id 5 (\"isthing\" is 'yes')."),
]


@pytest.mark.parametrize(("path", "to", "text"), PANOPTIC_FAULTS)
def test_panoptic_json_that_is_refused(tmp_path: Path, path: tuple[Any, ...], to: Any, text: str) -> None:
    file = write_panoptic(tmp_path)
    write_json(file, spoil(panoptic_json(), *path, to=to))
    with pytest.raises(DataError) as error:
        list(open_dataset(tmp_path, "val"))
    assert str(error.value).startswith(text.format(json=file, root=tmp_path))


MISSING = [
    (("images",), "not an annotation file of COCO: {json} (it has no images). Is it one of"),
    (("annotations",), "not an annotation file of COCO: {json} (it has no annotations). Is it one of"),
    (("images", 0, "id"), "an entry lacks its \"id\": {json}, images[0] (it has 'file_name, height, width')."),
    (("images", 1, "width"), "an entry lacks its \"width\": {json}, images[1], id 9 (it has 'id, file_name, height')."),
    (("annotations", 0, "image_id"), 'an entry lacks its "image_id": {json}, annotations[0] (it has \'file_name, '),
    (("annotations", 1), "an image has no annotation: {json}, images[1], id 9. Add its annotation, or remove its"),
    (
        ("annotations", 0, "segments_info", 1),
        "a segment id is in the PNG alone: {root}/panoptic/panoptic_val2017/a.png (found 255; panoptic_val2017.json,",
    ),
    ((*SEGMENT, "category_id"), 'an entry lacks its "category_id": {json}, annotations[0].segments_info[1], id 255'),
]


@pytest.mark.parametrize(("path", "text"), MISSING)
def test_panoptic_json_that_lacks_something(tmp_path: Path, path: tuple[Any, ...], text: str) -> None:
    file = write_panoptic(tmp_path)
    write_json(file, spoil(panoptic_json(), *path, drop=True))
    with pytest.raises(DataError) as error:
        list(open_dataset(tmp_path, "val"))
    assert str(error.value).startswith(text.format(json=file, root=tmp_path))


def test_a_segment_without_a_pixel_is_refused(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path)
    ids = np.where(SEGMENT_IDS == 255, 300, SEGMENT_IDS)
    write_mask(file.with_suffix("") / "a.png", colors_of(ids))
    with pytest.raises(DataError) as error:
        list(open_dataset(tmp_path, "val"))
    start = f"a segment has no pixel: {file}, annotations[0].segments_info[1], id 255 (in {file.with_suffix('')}/a.png;"
    assert str(error.value).startswith(start)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.zeros((3, 4), np.uint8), "expected segment ids as colours: {png} (its pixels are grey). Give PNG files"),
        (np.zeros((4, 3, 3), np.uint8), "image and mask differ in size: {png} (a.jpg is 4x3, its mask 3x4)."),
        (b"", "Cannot read mask: {png} (the file is empty (0 bytes))."),
        (b"\x89PNG\r\n\x1a\n", "Cannot read mask: {png} (truncated or damaged: the PNG has no end marker)."),
    ],
)
def test_panoptic_png_files_that_are_refused(tmp_path: Path, mask: Array | bytes, text: str) -> None:
    png = write_panoptic(tmp_path).with_suffix("") / "a.png"
    png.write_bytes(mask) if isinstance(mask, bytes) else write_mask(png, mask)
    with pytest.raises(EverymaskError) as error:
        list(open_dataset(tmp_path, "val"))
    assert str(error.value).startswith(text.format(png=png))


UNREADABLE = [
    ("", "its beginning (expected '{' at byte 0, found '')."),
    ("[]", "its beginning (expected '{' at byte 0, found '[]')."),
    ('{"images": [{"id": 1', "images[0] (Expecting ',' delimiter: line 1 column 21 (char 20))."),
    ('{"info": [1 2]}', "'info' (Expecting ',' delimiter: line 1 column 13 (char 12))."),
    ('{"categories": [{} 2]}', "categories[0] (expected ']' at byte 19, found '2]}')."),
    ('{"images": [], "images": []}', "images (it is there twice)."),
    ('{"images": [{"id": ' + "[" * 100_000, "images[0] (nested too deeply)."),
    ('{"images": [{"id": ' + "9" * 5000 + "}]}", "images[0] (Exceeds the limit"),
    ('{"images": [{"id": "\xff"}]}'.encode("latin-1"), "images[0] ('utf-8' codec can't decode byte 0xff in position 8"),
    ('{"images": [], "annotations": [], "categories": []} x', "categories (expected the end at byte 52, found 'x')."),
    ("{1: 2}", "its beginning (expected a name in quotes at byte 2, found ': 2}')."),
]


@pytest.mark.parametrize(("text", "why"), UNREADABLE, ids=[why[:20] for _, why in UNREADABLE])
def test_files_that_are_no_json(tmp_path: Path, text: str | bytes, why: str) -> None:
    file = write_panoptic(tmp_path)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path, "val")
    assert str(error.value).startswith(f"cannot read an annotation file: {file}, {why}"[:-2])


def test_annotation_files_may_be_written_in_any_way(tmp_path: Path) -> None:
    value = spoil(panoptic_json(), "categories", 0, "name", to="草")
    backwards = dict(reversed(value.items()))
    file = write_panoptic(tmp_path)
    for text in (json.dumps(backwards, indent=2), json.dumps(value, ensure_ascii=False, separators=(",", ":"))):
        file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        assert [seen(sample)[0] for sample in open_dataset(tmp_path, "val")] == [("草", 3), ("草", 4)]


def test_a_file_that_changes_behind_the_reader_is_refused(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path)
    dataset = open_dataset(tmp_path, "val")
    for text in ("", file.read_text()[1:], file.read_text().replace('"image_id": 9', '"image_id": 7')):
        file.write_text(text)
        with pytest.raises(DataError) as error:
            dataset[1]
        start = f"an annotation file has changed since it was opened: {file}, annotations[1]. Open the data set again."
        assert str(error.value) == start
    file.unlink()
    with pytest.raises(DataError, match=r"^cannot read an annotation file: .*No such file"):
        dataset[1]


def test_sample_names_are_as_short_as_they_can_be() -> None:
    assert sample_names(["x/a.jpg", "y/b.jpg"]) == ["a", "b"]
    assert sample_names(["x/a.jpg", "y/a.jpg"]) == ["x/a", "y/a"]
    assert sample_names(["a.jpg", "a.png"]) == ["a.jpg", "a.png"]


def test_the_index_is_small_and_its_making_too(tmp_path: Path) -> None:
    annotation = {"image_id": 0, "category_id": 1, "iscrowd": 0, "segmentation": [box(0, 0, 5, 5)] * 20}
    value = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 5, "width": 5} for n in range(15)],
        "annotations": [annotation | {"id": n, "image_id": n % 15} for n in range(300)],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = write_json(tmp_path / "x.json", value)
    tracemalloc.start()
    try:
        index = CocoIndex(path, ("id", "image_id", "category_id"), unique="id")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index.annotations(3)) == 20
    assert kept < 0.1 * path.stat().st_size
    assert peak < 3 * path.stat().st_size  # The text twice, for a moment.


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_panoptic_set(data: Callable[[str], Path], split: str) -> None:
    root = data("coco_panoptic_mini")
    dataset = open_dataset(root, split)
    assert dataset.labels == PANOPTIC
    assert len(dataset) == 100
    entries = json.loads((root / "panoptic" / f"panoptic_{split}2017.json").read_text())
    areas = {row["image_id"]: [info["area"] for info in row["segments_info"]] for row in entries["annotations"]}
    for number in range(0, 100, 20):
        sample = dataset[number]
        check_legal(sample)
        # The areas that the file tells were counted by somebody else.
        assert [area for _, area in seen(sample)] == areas[int(sample.name)]
        raw = packed(np.array(Image.open(dataset.files(number)[1])))
        assert np.array_equal(sample.segments.id_map.numpy() == VOID, raw == 0)


def test_segment_ids_as_everybody_makes_masks_of_them(data: Callable[[str], Path]) -> None:
    root = data("coco_panoptic_mini") / "panoptic"
    row = json.loads((root / "panoptic_val2017.json").read_text())["annotations"][0]
    colors = read_colors(root / "panoptic_val2017" / row["file_name"])
    ids = np.array([info["id"] for info in row["segments_info"]])
    rows = rows_of(colors, ids)
    for n, number in enumerate(ids.tolist(), start=1):
        assert ((rows.id_map == n) == (packed(colors) == number)).all()
    assert (rows.unknown, rows.absent) == ([], [])
    fewer = rows_of(colors, np.append(ids[1:], 123))
    assert (fewer.unknown, fewer.absent) == ([ids[0]], [len(ids) - 1])


def test_both_decoders_of_segment_ids_agree(data: Callable[[str], Path]) -> None:
    for path in sorted((data("coco_panoptic_mini") / "panoptic" / "panoptic_val2017").glob("*.png"))[::7]:
        assert (read_colors(path) == read_mask(path)).all()


@pytest.mark.parametrize("options", [{"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0"}, {}])
def test_png_files_out_of_the_ordinary_go_the_usual_way(tmp_path: Path, options: Json) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(colors_of(SEGMENT_IDS)).save(path, **options)
    turned = SEGMENT_IDS[::-1, ::-1] if options else SEGMENT_IDS
    assert packed(read_colors(path)).tolist() == turned.tolist() == packed(read_mask(path)).tolist()
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(EverymaskError, match="the PNG has no end marker"):
        read_colors(path)


def test_both_sides_of_the_benchmark_find_the_same(tmp_path: Path) -> None:
    drawn = coco_panoptic.draw_map(tmp_path / "a.png", segments=5, size=(20, 30))
    colors, ids = coco_panoptic.pillow(drawn.path), np.array(drawn.ids)
    numbered = coco_panoptic.id_map(colors, ids)
    assert np.array_equal(coco_panoptic.masks(colors, ids), [numbered == n for n in range(1, 6)])
    assert (numbered > 0).all()


def test_rows_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_panoptic, "peak_memory", lambda prepare, small, full: prepare(full)() and 1.0)
    write_panoptic(tmp_path / "coco_panoptic_mini")
    rows = coco_panoptic.rows(tmp_path, size=(60, 80), rounds=1)
    assert [row.bar for row in rows] == [">= 3 x", ">= 3 x", "", "", ">= 20 x", ""] * 2
    assert [row.unit for row in rows] == ["s", "s", "s", "MiB", "MiB", "MiB"] * 2
    assert rows[6].name == "2 real maps: time"
    assert len(coco_panoptic.rows(tmp_path / "nothing", size=(60, 80), rounds=1)) == 6


# --- instances -------------------------------------------------------------------------------------------------------


def instances_json() -> Json:
    """Three images: `a` with a polygon, run lengths that overlap it, and a crowd; `b` with one object; `c` empty."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 5, "width": 6},
            {"id": 2, "file_name": "b.jpg", "height": 2, "width": 2},
            {"id": 3, "file_name": "c.jpg", "height": 4, "width": 4},
        ],
        "annotations": [
            {
                "id": 11,
                "image_id": 1,
                "category_id": 8,
                "iscrowd": 0,
                "segmentation": [box(0, 0, 3, 3), box(4, 0, 6, 1)],
            },
            {"id": 12, "image_id": 2, "category_id": 3, "segmentation": {"size": [2, 2], "counts": [1, 1, 2]}},
            {
                "id": 13,
                "image_id": 1,
                "category_id": 3,
                "iscrowd": 0,
                "segmentation": {"size": [5, 6], "counts": [12, 2, 16]},
            },
            {
                "id": 14,
                "image_id": 1,
                "category_id": 8,
                "iscrowd": 1,
                "segmentation": {"size": [5, 6], "counts": "d028"},
            },
        ],
        "categories": [{"id": 8, "name": "lamp"}, {"id": 3, "name": "frog", "color": "#00ff00"}],
    }


def write_instances(root: Path, json_path: str = "annotations/instances_val2017.json", images: str = "val2017") -> Path:
    value = instances_json()
    for row in value["images"]:
        write_photo(root / images / row["file_name"], (row["width"], row["height"]))
    return write_json(root / json_path, value)


def test_instances_become_layers_where_they_overlap(tmp_path: Path) -> None:
    write_instances(tmp_path)
    first, second, third = open_dataset(tmp_path, "val")
    assert first.segments.id_map.tolist() == [
        [[0, 0, 0, 0, 3, 0], [0, 0, 0, 0, 3, 0], [0, 0, 2, 0, 0, 0], [0, 0, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
        [[1, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    ]
    assert [(s.label, s.is_crowd, s.is_thing) for s in first.segments] == [
        ("lamp", False, True),
        ("frog", False, True),
        ("lamp", True, True),
    ]
    assert second.segments.id_map.tolist() == [[0, 0], [1, 0]]
    assert len(third.segments) == 0
    assert third.segments.id_map.tolist() == [[0] * 4] * 4
    assert [(label.name, label.source_id) for label in open_dataset(tmp_path, "val").labels] == [
        ("frog", 3),
        ("lamp", 8),
    ]
    for sample in (first, second, third):
        check_legal(sample)


@pytest.mark.parametrize(
    ("json_path", "images", "splits"),
    [
        ("annotations/instances_val2017.json", "val2017", ("val",)),
        ("annotations/instances_train2017.json", "images/train2017", ("train",)),
        ("annotations/instances_default.json", "images", ()),
        ("annotations/train.json", "images/train", ("train",)),
        ("result.json", "images", ()),
        ("my_test_set.json", "test", ("test",)),
        ("labels.json", ".", ()),
        ("valid/_annotations.coco.json", "valid", ("val",)),
    ],
)
def test_instance_layouts(tmp_path: Path, json_path: str, images: str, splits: tuple[str, ...]) -> None:
    path = write_instances(tmp_path, json_path, images)
    assert find_format(tmp_path) == ("coco_instances", f"{json_path} has images, annotations and categories")
    dataset = open_dataset(tmp_path, *splits)
    assert list(dataset.names) == ["a", "b", "c"]
    assert dataset.files(0) == (tmp_path / images / "a.jpg", path)
    assert seen(dataset[1]) == [("frog", 1)]


def test_images_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    file = write_instances(tmp_path, images="images/deep")
    value = instances_json()
    for row in value["images"]:
        row["file_name"] = f"deep\\{row['file_name']}"
    write_json(file, value)
    assert open_dataset(tmp_path, "val").files(0)[0] == tmp_path / "images" / "deep" / "a.jpg"


def test_other_json_files_are_not_taken_for_instances(tmp_path: Path) -> None:
    write_instances(tmp_path)
    write_json(tmp_path / "annotations" / "captions_val2017.json", {"images": [], "annotations": []})
    assert open_dataset(tmp_path, "val").files(0)[1].name == "instances_val2017.json"
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    (tmp_path / "annotations" / "empty.json").touch()
    write_json(tmp_path / "annotations" / "panoptic_val2017.json", panoptic_json())
    with pytest.raises(DataError, match=r"^the layout of a data folder is not known"):
        find_format(tmp_path)


def test_official_categories_give_the_official_table(tmp_path: Path) -> None:
    file = write_instances(tmp_path)
    rows = [{"id": label.source_id, "name": label.name, "supercategory": "x"} for label in THINGS]
    write_json(file, instances_json() | {"categories": rows[::-1]})
    dataset = open_dataset(tmp_path, "val")
    assert dataset.labels is THINGS
    assert seen(dataset[1]) == [("car", 1)]
    # One name short, it is a table like any other.
    write_json(file, instances_json() | {"categories": rows[:-1]})
    assert len(open_dataset(tmp_path, "val").labels) == 79


MASK = ("annotations", 2, "segmentation")
BEGIN = "an annotation has no sound mask: {json}, annotations[2], id 13 "
INSTANCE_FAULTS: list[tuple[tuple[Any, ...], Any, str]] = [
    (MASK, None, BEGIN + "(expected polygons or run lengths, found None). Draw or export it again, or remove the"),
    (MASK, [], BEGIN + "(there is no polygon)."),
    (MASK, [[1, 1, 2, 2]], BEGIN + "(polygon 0: three points or more have 6, 8, 10, ... numbers, this has 4)."),
    (MASK, {"size": [10**9] * 2, "counts": [10**18]}, BEGIN + '(run lengths of another size: "size" is [1000000000,'),
    (MASK, {"size": [5, 6], "counts": [5]}, BEGIN + "(run lengths do not add up to the 30 pixels of 6x5)."),
    (
        ("annotations", 2, "id"),
        11,
        'two annotations are one: {json}, annotations[2], id 11 (annotations[0] has the same "id", 11). Keep one of',
    ),
    (
        ("annotations", 2, "id"),
        "13",
        "expected a whole number from 0: {json}, annotations[2], id '13' (\"id\" is '13').",
    ),
    (
        ("annotations", 2, "category_id"),
        4,
        'unknown category: {json}, annotations[2], id 13 ("category_id" is 4, there are [3, 8]).',
    ),
    (
        ("annotations", 2, "image_id"),
        4,
        'an annotation of an unknown image: {json}, annotations[2], id 13 (no entry of "images" has the id 4).',
    ),
    (("annotations", 2, "iscrowd"), None, 'expected 0 or 1: {json}, annotations[2], id 13 ("iscrowd" is None).'),
    (
        ("images", 1, "file_name"),
        "d.jpg",
        "no such image file: {json}, images[1], id 2 ('d.jpg' is not in val2017, annotations, {root.name}). Add the",
    ),
    (
        ("images", 0, "width"),
        5,
        "image and annotation differ in size: {json}, images[0], id 1 (a.jpg is 6x5, its entry says 5x5). Use the",
    ),
    (
        ("images", 0, "width"),
        10**9,
        'expected a whole number from 1 to 1048576: {json}, images[0], id 1 ("width" is 1000000000).',
    ),
]


@pytest.mark.parametrize(("path", "to", "text"), INSTANCE_FAULTS)
def test_instance_json_that_is_refused(tmp_path: Path, path: tuple[Any, ...], to: Any, text: str) -> None:
    file = write_instances(tmp_path)
    write_json(file, spoil(instances_json(), *path, to=to))
    with pytest.raises(DataError) as error:
        list(open_dataset(tmp_path, "val"))
    assert str(error.value).startswith(text.format(json=file, root=tmp_path))


def test_panoptic_png_files_and_their_run_lengths_are_one(data: Callable[[str], Path]) -> None:
    root = data("panopticapi_sample")
    # Both forms were made by the tools of COCO.
    panoptic, instances = open_dataset(root), open_dataset(root, format="coco_instances")
    assert panoptic.labels == instances.labels == PANOPTIC
    for a, b in zip(panoptic, instances, strict=True):
        assert a.name == b.name
        unlabelled = a.segments.id_map == VOID
        assert unlabelled.any()
        assert (b.segments.id_map[unlabelled] == 0).all()
        assert (a.segments.class_map(133)[~unlabelled] == b.segments.class_map(133)[~unlabelled]).all()
        assert sorted(seen(a)) == sorted(seen(b))


# --- COCO-Stuff ------------------------------------------------------------------------------------------------------


def write_stuff(root: Path, folder: str, *maps: list[list[int]], images: str = "images") -> Path:
    for number, values in enumerate(maps):
        mask = np.array(values, np.uint8)
        write_photo(root / images / "val2017" / f"{number}.jpg", mask.shape[1::-1])
        write_mask(root / folder / "val2017" / f"{number}.png", mask)
    return root


TRAINING_MAPS = "annotations_detectron2/ has training maps: a pixel is the position in the table of classes"
PUBLISHED_MAPS = "has published maps: a pixel is the category id minus one"


def test_pixel_17_is_a_horse_in_training_maps_and_a_dog_in_published_ones(tmp_path: Path) -> None:
    training = write_stuff(tmp_path / "training", "annotations_detectron2", [[15, 17, 255, 170]])
    published = write_stuff(tmp_path / "published", "stuffthingmaps", [[16, 17, 255, 181]])
    assert find_format(training) == ("coco_stuff", TRAINING_MAPS)
    assert find_format(published) == ("coco_stuff", f"stuffthingmaps/ {PUBLISHED_MAPS}")
    assert seen(open_dataset(training, "val")[0]) == [("cat", 1), ("horse", 1), ("wood", 1)]
    assert seen(open_dataset(published, "val")[0]) == [("cat", 1), ("dog", 1), ("wood", 1)]
    assert open_dataset(training, "val").labels == open_dataset(published, "val").labels == STUFF
    for root in (training, published):
        sample = open_dataset(root, "val")[0]
        assert sample.segments.id_map.tolist() == [[1, 2, -1, 3]]
        check_legal(sample)


@pytest.mark.parametrize("folder", ["stuffthingmaps_trainval2017", "annotations"])
def test_other_places_of_published_maps(tmp_path: Path, folder: str) -> None:
    write_stuff(tmp_path, folder, [[17]], images=".")
    assert find_format(tmp_path) == ("coco_stuff", f"{folder}/ {PUBLISHED_MAPS}")
    assert seen(open_dataset(tmp_path, "val")[0]) == [("dog", 1)]


def test_training_maps_go_before_published_ones(tmp_path: Path) -> None:
    write_stuff(tmp_path, "stuffthingmaps", [[17]])
    write_stuff(tmp_path, "annotations_detectron2", [[16]])
    beside = "; the published maps in stuffthingmaps/ are not read"
    assert find_format(tmp_path) == ("coco_stuff", TRAINING_MAPS + beside)
    assert seen(open_dataset(tmp_path, "val")[0]) == [("dog", 1)]


@pytest.mark.parametrize(
    ("folder", "value", "text"),
    [
        (
            "annotations_detectron2",
            181,
            "(found 181; maps in this folder hold training ids, 0 to 170, and 255). If it is a published map, move its "
            "folder to stuffthingmaps or stuffthingmaps_trainval2017 or annotations/; they must not be mixed.",
        ),
        (
            "stuffthingmaps",
            11,
            "(found 11; maps in this folder hold category ids minus one, 0 to 181 with gaps, and 255). If it is a "
            "training map, move its folder to annotations_detectron2/; they must not be mixed.",
        ),
        ("stuffthingmaps", 182, "(found 182; maps in this folder hold category ids minus one, 0 to 181 with gaps, and"),
    ],
)
def test_maps_of_the_other_kind_are_refused(tmp_path: Path, folder: str, value: int, text: str) -> None:
    # Among a hundred maps one hides until it is read; a folder of them shows when it is opened.
    write_stuff(tmp_path / "one", folder, *[[[1]]] * 50, [[value]], *[[[1]]] * 49)
    write_stuff(tmp_path / "all", folder, *[[[value]]] * 100)
    dataset = open_dataset(tmp_path / "one", "val")
    assert seen(dataset[0]) == [("bicycle", 1)]
    for read in (lambda: dataset[50], lambda: open_dataset(tmp_path / "all", "val")):
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value).startswith("unknown value in a mask: ")
        assert text in str(error.value)


def test_coco_stuff_in_colour_is_refused(tmp_path: Path) -> None:
    write_stuff(tmp_path, "stuffthingmaps", [[17]])
    path = tmp_path / "stuffthingmaps" / "val2017" / "0.png"
    write_mask(path, np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path, "val")
    assert str(error.value).startswith(f"expected one label value a pixel: {path} (the mask is RGB).")


def test_orphans_of_coco_stuff_are_named(tmp_path: Path) -> None:
    write_stuff(tmp_path, "stuffthingmaps", [[17]], [[18]])
    (tmp_path / "stuffthingmaps" / "val2017" / "0.png").unlink()
    with pytest.raises(DataError, match=r"^files without a partner: .* \(1: val2017/0.jpg\)"):
        open_dataset(tmp_path, "val")
