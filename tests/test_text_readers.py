"""YOLO, LabelMe and Hugging Face: hand-drawn maps, the real sets, and what each refuses."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everymask.datasets import find_format, open_dataset
from everymask.errors import DataError, EverymaskError, ImageError, UsageError
from everymask.types import Sample
from tests.folders import Array, ids_of, write_photo, write_table

Data = Callable[[str], Path]


def refusal(read: Callable[[], object], kind: type[EverymaskError] = DataError) -> str:
    with pytest.raises(kind) as error:
        read()
    return str(error.value)


def labels_of(sample: Sample) -> list[str]:
    return [segment.label for segment in sample.segments]


# --- YOLO ------------------------------------------------------------------------------------------------------------

LEFT = "0 0 0 0.5 0 0.5 1 0 1"
MIDDLE = "2 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
NAMES = "names: [cat, dog, hen]"


def write_yolo(root: Path, texts: dict[str, str], images: str = "images", labels: str = "labels") -> Path:
    """Photos of 4x4 pixels and their label files."""
    for stem, text in texts.items():
        write_photo(root / images / f"{stem}.jpg", (4, 4))
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"{stem}.txt").write_text(text)
    (root / "data.yaml").write_text(NAMES)
    return root


def test_outlines(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": f"{LEFT}\n\n2 0.75 0 1 0 1 0.5 0.75 0.5\n", "b": ""})
    assert find_format(root) == ("yolo", "images/ has label files in labels/")
    first, second = open_dataset(root)
    assert ids_of(first) == [[1, 1, 0, 2], [1, 1, 0, 2], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert labels_of(first) == ["cat", "hen"]
    assert first.name == "a"
    # An empty file says that nothing is there.
    assert (len(second.segments), ids_of(second)) == (0, [[0] * 4] * 4)


def test_outlines_that_overlap_lie_in_layers(tmp_path: Path) -> None:
    sample = open_dataset(write_yolo(tmp_path, {"a": f"{LEFT}\n{MIDDLE}"}))[0]
    assert sample.segments.id_map.shape == (2, 4, 4)
    assert [segment.area for segment in sample.segments] == [8, 4]
    assert [segment.mask.tolist() for segment in sample.segments] == [
        [[True, True, False, False]] * 4,
        [[False] * 4, [False, True, True, False], [False, True, True, False], [False] * 4],
    ]
    # The smaller one is what a single map shows.
    assert sample.segments.class_map(3).tolist() == [[0, 0, 3, 3], [0, 2, 2, 3], [0, 2, 2, 3], [0, 0, 3, 3]]


def test_an_outline_without_a_pixel_is_still_a_segment(tmp_path: Path) -> None:
    sample = open_dataset(write_yolo(tmp_path, {"a": f"1 0.1 0.1 0.11 0.1 0.11 0.11\n{LEFT}"}))[0]
    assert [(s.label, s.area) for s in sample.segments] == [("dog", 0), ("cat", 8)]


def test_outlines_may_reach_over_the_edge_a_little(tmp_path: Path) -> None:
    sample = open_dataset(write_yolo(tmp_path, {"a": "0 -0.009 -0.001 0.5 0 0.5 1.009 0 1"}))[0]
    assert sample.segments[0].mask.tolist() == [[True, True, False, False]] * 4


NESTINGS = [
    ("images/train2017", "labels/train2017", "images/val", "labels/val"),
    ("train/images", "train/labels", "valid/images", "valid/labels"),
    ("train/images", "train/labels_yolo", "val/images", "val/labels_yolo"),
    ("images/train2017", "instance_yolo/train2017", "images/val2017", "instance_yolo/val2017"),
]


@pytest.mark.parametrize("folders", NESTINGS)
def test_outlines_in_splits(tmp_path: Path, folders: tuple[str, ...]) -> None:
    train_images, train_labels, val_images, val_labels = folders
    write_yolo(tmp_path, {"a": LEFT}, train_images, train_labels)
    write_yolo(tmp_path, {"b": LEFT}, val_images, val_labels)
    write_photo(tmp_path / "images" / "unlabelled" / "c.jpg", (4, 4))
    assert find_format(tmp_path) == ("yolo", f"{train_images}/ has label files in {train_labels}/")
    assert [open_dataset(tmp_path, split).names for split in ("", "train", "val")] == [["a"], ["a"], ["b"]]
    assert open_dataset(tmp_path, "val")[0].segments[0].area == 8


def test_class_numbers_need_not_start_at_0(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": LEFT.replace("0", "17", 1)})
    (root / "data.yaml").write_text("names: {17: cat, 3: bus}")
    sample = open_dataset(root)[0]
    assert labels_of(sample) == ["cat"]
    assert sample.segments.labels is not None
    assert [(label.name, label.source_id) for label in sample.segments.labels] == [("bus", 3), ("cat", 17)]


@pytest.mark.parametrize(
    ("name", "text"), [("classes.txt", "cat\ndog\nhen"), ("classes.json", '["cat", "dog", "hen"]')]
)
def test_class_names_in_other_files(tmp_path: Path, name: str, text: str) -> None:
    root = write_yolo(tmp_path, {"a": MIDDLE})
    (root / "data.yaml").unlink()
    # Beside the label files it is not one of them.
    (root / "labels" / "classes.txt").write_text("cat")
    assert refusal(lambda: open_dataset(root)) == (
        f"the classes are not known: {root} (there is no data.yaml or data.yml or dataset.yaml or classes.json or "
        "classes.txt). Write their names into data.yaml, or give the file by --option classes=FILE."
    )
    (root / name).write_text(text)
    assert labels_of(open_dataset(root)[0]) == ["hen"]


def test_images_without_a_label_file(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": LEFT, "b": LEFT})
    (root / "labels" / "b.txt").unlink()
    message = refusal(lambda: open_dataset(root))
    assert message.startswith(f"files without a partner: {root} (1: images/b.jpg)")
    assert open_dataset(root, missing="skip").names == ["a"]
    background = open_dataset(root, missing="background")
    assert background.names == ["a", "b"]
    assert [len(sample.segments) for sample in background] == [1, 0]
    assert background.files(1) == (root / "images" / "b.jpg",)
    # A label file whose image got lost is never right.
    (root / "images" / "a.jpg").unlink()
    for missing in ("refuse", "skip", "background"):
        assert "labels/a.txt" in refusal(lambda missing=missing: open_dataset(root, missing=missing))


LINES = [
    ("cat 0 0 1 0 1 1", "it begins with 'cat', not with the number of a class"),
    ("-1 0 0 1 0 1 1", "it begins with '-1', not with the number of a class"),
    ("0.0 0 0 1 0 1 1", "it begins with '0.0', not with the number of a class"),
    ("7 0 0 1 0 1 1", "class 7; the table has 0, 1, 2"),
    ("0 0.5 0.5 0.2 0.2", "four numbers are a box; outlines have three points or more"),
    ("0", "polygon 0: three points or more have 6, 8, 10, ... numbers, this has 0"),
    ("0 0.5 0.5", "polygon 0: three points or more have 6, 8, 10, ... numbers, this has 2"),
    ("0 0 0 1 0 1", "5 coordinates are no pairs of x and y"),
    ("0 0 0 1 0 1 nan", "'nan' is no coordinate"),
    ("0 0 0 1 0 1 1,0", "'1,0' is no coordinate"),
    ("0 0 0 1 0 1 1_0", "'1_0' is no coordinate"),
    ("0 0 0 1 0 1 ٣", "'٣' is no coordinate"),
    ("0 0 0 1 0 1 1-2", "could not convert string to float: '1-2'"),
    ("0 0 0 1 0 1 1e999", "coordinates from 0 to inf are not shares of width and height"),
    ("0 0 0 4 0 4 4", "coordinates from 0 to 4 are not shares of width and height"),
    ("0 0 0 1 0 1 -0.02", "coordinates from -0.02 to 1 are not shares of width and height"),
]


@pytest.mark.parametrize(("line", "why"), LINES)
def test_lines_that_are_no_outlines(tmp_path: Path, line: str, why: str) -> None:
    root = write_yolo(tmp_path, {"a": f"{LEFT}\n{line}\n"})
    expected = f"a line of a label file is no outline: {root}/labels/a.txt, line 2 ({why})."
    assert refusal(lambda: open_dataset(root)[0]) == expected


def test_label_files_that_are_no_text(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": LEFT})
    (root / "labels" / "a.txt").write_bytes(b"0 \xff")
    assert refusal(lambda: open_dataset(root)[0]).startswith(f"cannot read a label file: {root}/labels/a.txt (")


def test_label_files_of_another_format(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": LEFT})
    (root / "labels" / "a.txt").unlink()
    assert "the layout of a data folder is not known" in refusal(lambda: open_dataset(root))
    assert refusal(lambda: open_dataset(tmp_path / "images", format="yolo")).startswith("the classes are not known: ")


def test_real_outlines_are_the_real_instances(data: Data) -> None:
    root = data("feral_cat")
    outlines, instances = open_dataset(root, "val", format="yolo"), open_dataset(root, "val")
    assert outlines.names == instances.names
    for index in range(0, len(outlines), 24):
        drawn, truth = outlines[index].segments, instances[index].segments
        assert len(drawn) >= len(truth)
        assert {segment.label for segment in drawn} == {"cat"}
        both = (drawn.foreground & truth.foreground).sum() / (drawn.foreground | truth.foreground).sum()
        assert both > 0.97


def test_real_outlines_of_many_classes(data: Data) -> None:
    root = data("coco_panoptic_mini")
    dataset = open_dataset(root, "val", format="yolo", classes=root / "instance_segmentation_config.yaml")
    assert len(dataset) == 100
    assert dataset.labels[dataset.labels.index("cat")].source_id == 17
    sample = dataset[dataset.names.index("000000000139")]
    lines = dataset.files(dataset.names.index("000000000139"))[1].read_text().splitlines()
    numbers = [int(line.split()[0]) for line in lines]
    assert [dataset.labels[k].source_id for k in sample.segments.classes.tolist()] == numbers


# --- LabelMe ---------------------------------------------------------------------------------------------------------


def shape(label: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y1]]


def write_labelme(folder: Path, shapes: dict[str, list[Any]], size: tuple[int, int] = (5, 5), **more: Any) -> Path:
    """Photos of `size` (W, H) and their annotation files."""
    for stem, rows in shapes.items():
        write_photo(folder / f"{stem}.jpg", size)
        row = {"version": "5.5.0", "imagePath": f"{stem}.jpg", "imageData": None, **more}
        row |= {"imageWidth": size[0], "imageHeight": size[1], "shapes": rows} | more
        (folder / f"{stem}.json").write_text(json.dumps(row))
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_shapes(tmp_path: Path) -> None:
    rows = [
        shape("dog", [[0, 0], [2, 0], [2, 2], [0, 2]]),
        shape("cat", box(5, 5, 3, 4), "rectangle"),
        {"label": "cat", "points": [[0, 3], [1, 3], [1, 5], [0, 5]]},
    ]
    root = write_labelme(tmp_path, {"a": rows})
    assert find_format(root) == ("labelme", "it has JSON files of shapes")
    sample = open_dataset(root, "train")[0]
    assert ids_of(sample) == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [3, 0, 0, 0, 0], [3, 0, 0, 2, 2]]
    # Classes in the order of the alphabet, segments in that of the file.
    assert sample.segments.labels is not None
    assert sample.segments.labels.names == ("cat", "dog")
    assert labels_of(sample) == ["dog", "cat", "cat"]
    assert open_dataset(root).files(0) == (root / "a.jpg", root / "a.json")


def test_a_circle_is_as_large_as_a_circle(tmp_path: Path) -> None:
    root = write_labelme(tmp_path, {"a": [shape("sun", [[50, 40], [80, 40]], "circle")]}, (100, 90))
    mask = open_dataset(root)[0].segments[0].mask.numpy()
    y, x = np.mgrid[:90, :100] + 0.5
    distance = np.hypot(y - 40, x - 50)
    assert mask[distance < 29.5].all()
    assert not mask[distance > 30.5].any()
    assert abs(mask.sum() - np.pi * 30**2) < 40


def small_mask(values: list[list[int]]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.array(values, np.uint8) * 255).convert("1").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_mask_lies_between_its_corners(tmp_path: Path) -> None:
    row = shape("dog", box(1, 2, 3, 3), "mask", mask=small_mask([[1, 0, 1], [1, 1, 0]]))
    sample = open_dataset(write_labelme(tmp_path, {"a": [row]}))[0]
    assert ids_of(sample) == [[0] * 5, [0] * 5, [0, 1, 0, 1, 0], [0, 1, 1, 0, 0], [0] * 5]


def test_a_group_is_one_instance(tmp_path: Path) -> None:
    rows = [
        shape("dog", box(0, 0, 1, 1), "rectangle", group_id=4),
        shape("cat", box(2, 0, 3, 1), "rectangle", group_id=4),
        shape("dog", box(4, 4, 5, 5), "rectangle", group_id=4),
        shape("dog", box(0, 4, 1, 5), "rectangle"),
    ]
    sample = open_dataset(write_labelme(tmp_path, {"a": rows}))[0]
    assert ids_of(sample) == [[1, 0, 2, 0, 0], [0] * 5, [0] * 5, [0] * 5, [3, 0, 0, 0, 1]]
    assert labels_of(sample) == ["dog", "cat", "dog"]


def test_shapes_that_overlap_lie_in_layers(tmp_path: Path) -> None:
    rows = [shape("car", box(0, 0, 4, 4), "rectangle"), shape("man", box(3, 3, 5, 5), "rectangle")]
    sample = open_dataset(write_labelme(tmp_path, {"a": rows}))[0]
    assert [segment.area for segment in sample.segments] == [16, 4]
    assert sample.segments.class_map(2)[3, 3] == 1


def test_ignore_and_background_paint_over_what_was_drawn_before(tmp_path: Path) -> None:
    rows = [
        shape("__ignore__", box(0, 0, 2, 1), "rectangle"),
        shape("dog", box(1, 0, 5, 2), "rectangle"),
        shape("__ignore__", box(4, 0, 5, 5), "rectangle"),
        shape("_background_", box(2, 0, 3, 5), "rectangle"),
        shape("_background_", box(4, 4, 5, 5), "rectangle"),
    ]
    dataset = open_dataset(write_labelme(tmp_path, {"a": rows}))
    assert dataset.labels.names == ("dog",)
    assert ids_of(dataset[0]) == [[-1, 1, 0, 1, -1], [0, 1, 0, 1, -1], [0, 0, 0, 0, -1], [0, 0, 0, 0, -1], [0] * 5]


def test_ignore_is_void_in_all_layers(tmp_path: Path) -> None:
    rows = [
        shape("car", box(0, 0, 4, 4), "rectangle"),
        shape("man", box(3, 3, 5, 5), "rectangle"),
        shape("__ignore__", box(3, 3, 4, 4), "rectangle"),
        shape("man", box(0, 0, 1, 1), "rectangle"),
    ]
    sample = open_dataset(write_labelme(tmp_path, {"a": rows}))[0]
    assert sample.segments.void.nonzero().tolist() == [[3, 3]]
    assert [segment.area for segment in sample.segments] == [15, 3, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [("labels.txt", "__ignore__\n_background_\nzebra\ncat"), ("classes.json", '["zebra", "cat"]')],
)
def test_the_order_of_classes_may_be_given(tmp_path: Path, name: str, text: str) -> None:
    root = write_labelme(tmp_path, {"a": [shape("cat", box(0, 0, 1, 1), "rectangle")]})
    (root / name).write_text(text)
    assert open_dataset(root).labels.names == ("zebra", "cat")
    rewrite(root / "a.json", shapes=[shape("dog", box(0, 0, 1, 1), "rectangle")])
    message = refusal(lambda: open_dataset(root)[0])
    assert message == f"unknown class: {root}/a.json, shapes[0], dog (the table has: zebra, cat)."


def test_splits_of_shapes_share_their_classes(tmp_path: Path) -> None:
    write_labelme(tmp_path / "training", {"a": [shape("zebra", box(0, 0, 1, 1), "rectangle")]})
    write_labelme(tmp_path / "val", {"b": [shape("cat", box(0, 0, 1, 1), "rectangle")], "c": []})
    assert find_format(tmp_path) == ("labelme", "training/ has JSON files of shapes")
    train, val = open_dataset(tmp_path), open_dataset(tmp_path, "val")
    assert train.labels == val.labels
    assert train.labels.names == ("cat", "zebra")
    assert (train.names, val.names) == (["a"], ["b", "c"])
    assert [len(sample.segments) for sample in val] == [1, 0]


def test_annotation_files_in_a_folder_of_their_own(tmp_path: Path) -> None:
    root = write_labelme(tmp_path / "json", {"a": [shape("cat", box(0, 0, 1, 1), "rectangle")]}).parent
    (root / "photos").mkdir()
    (root / "json" / "a.jpg").rename(root / "photos" / "b.jpg")
    rewrite(root / "json" / "a.json", imagePath="../photos/b.jpg")
    assert find_format(root) == ("labelme", "json/ has JSON files of shapes")
    dataset = open_dataset(root, "train")
    assert dataset.files(0) == (root / "photos" / "b.jpg", root / "json" / "a.json")
    assert labels_of(dataset[0]) == ["cat"]


def test_a_root_with_a_detour(tmp_path: Path) -> None:
    write_labelme(tmp_path / "data", {"a": [shape("cat", box(0, 0, 1, 1), "rectangle")]})
    assert open_dataset(tmp_path / "data" / ".." / "data").names == ["a"]


def test_where_the_image_is(tmp_path: Path) -> None:
    root = write_labelme(tmp_path / "data", {"a": [shape("cat", box(0, 0, 1, 1), "rectangle")]})
    Image.new("RGB", (5, 5), "blue").save(tmp_path / "outside.png")
    (root / "photos").mkdir()
    Image.new("RGB", (5, 5), "lime").save(root / "photos" / "b.png")
    colors = {
        "a.jpg": (255, 165, 0),
        ".\\photos\\b.png": (0, 255, 0),
        "photos/../a.jpg": (255, 165, 0),
        "../outside.png": (255, 165, 0),
        str(tmp_path / "outside.png"): (255, 165, 0),
        "C:\\old\\place.jpg": (255, 165, 0),
    }
    for name, color in colors.items():
        rewrite(root / "a.json", imagePath=name)
        image = open_dataset(root, missing="skip")[0].image
        assert np.abs(image.astype(int) - color).max() <= 2, name


def test_an_image_inside_the_file(tmp_path: Path) -> None:
    root = write_labelme(tmp_path, {"a": [shape("cat", box(0, 0, 1, 1), "rectangle")]})
    data = base64.b64encode((root / "a.jpg").read_bytes()).decode()
    (root / "a.jpg").unlink()
    rewrite(root / "a.json", imageData=data)
    dataset = open_dataset(root)
    assert dataset[0].image.shape == (5, 5, 3)
    assert dataset.files(0) == (root / "a.json",)
    for broken in (None, "!", "AAAA", data[:40]):
        rewrite(root / "a.json", imageData=broken)
        assert refusal(lambda: open_dataset(root)[0]) == (
            f"no image for an annotation file: {root}/a.json (there is no 'a.jpg', and \"imageData\" is no image)."
        )


def test_images_and_annotation_files_belong_together(tmp_path: Path) -> None:
    root = write_labelme(tmp_path, {"a": [shape("cat", box(0, 0, 1, 1), "rectangle")], "b": []})
    write_photo(root / "c.jpg", (5, 5))
    message = refusal(lambda: open_dataset(root))
    assert message.startswith(f"images without an annotation file: {root} (1: c.jpg). Annotate them, save them without")
    assert open_dataset(root, missing="skip").names == ["a", "b"]
    (root / "c.jpg").unlink()
    rewrite(root / "b.json", imagePath="a.jpg")
    assert refusal(lambda: open_dataset(root)) == (
        f"several annotation files speak of one image: {root}/a.jpg (a.json, b.json)."
    )


SHAPES: list[tuple[Any, str]] = [
    (5, "a shape needs a label: {path}, shapes[1] (found 5)."),
    ({"points": []}, "a shape needs a label: {path}, shapes[1] (found {{'points': []}})."),
    (shape(" ", []), "a shape needs a label: {path}, shapes[1] (found ' ')."),
    (shape("a\nb", []), "a shape needs a label: {path}, shapes[1] (found 'a\\nb')."),
    (shape("cat", [], group_id="1"), "a group has a number: {path}, shapes[1] (\"group_id\" is '1')."),
    (shape("cat", box(0, 0, 1, 1), "line"), "{cat} (shapes of type 'line' have no area; there are polygon, rectangle,"),
    (shape("cat", [[0, 0]], "point"), "{cat} (shapes of type 'point' have no area; there are polygon, rectangle, "),
    (shape("cat", box(0, 0, 1, 1), "linestrip"), "{cat} (shapes of type 'linestrip' have no area; "),
    (shape("cat", [[0, 0]], "rectangle"), "{cat} (a rectangle has two points, this has 1)."),
    (shape("cat", [[0, 0]] * 3, "circle"), "{cat} (a circle has two points, this has 3)."),
    (shape("cat", box(0, 0, 1, 1)), "{cat} (polygon 0: three points or more have 6, 8, 10, ... numbers, this has 4)."),
    (shape("cat", None), "{cat} (expected points [x, y], found None)."),
    (shape("cat", [[0, 0], [1], [2, 2]]), "{cat} (expected points [x, y], found [1])."),
    (shape("cat", [[0, 0], [1, "1"], [2, 2]]), "{cat} (expected points [x, y], found [1, '1'])."),
    (shape("cat", [[0, 0], [1, 0], [float("nan"), 2]]), "{cat} (polygon 0: a coordinate is NaN or infinite)."),
    (shape("cat", [[0, 0], [1, 10**400]], "circle"), "{cat} (int too large to convert to float)."),
    (shape("cat", [[0, 0], [1, 1e308]], "circle"), "{cat} (polygon 0: "),
    (shape("cat", [[20, 0], [21, 0], [21, 9]]), "{cat} (polygon 0: it lies outside the image (x 20 to 21, "),
    (shape("cat", box(0, 0, 1, 1), "mask"), '{cat} (a mask has two corners and a PNG under "mask").'),
    (shape("cat", box(0, 0, 1, 1), "mask", mask="!"), "{cat} ("),
    (shape("cat", box(0, 0, 1, 1), "mask", mask="AAAA"), "{cat} (Cannot read mask: bytes in memory (it begins with "),
    (
        shape("cat", box(0, 0, 1, 1), "mask", mask=small_mask([[1, 1]])),
        "{cat} (a mask of shape [1, 2] is not of pixels 0, 0 to 1, 1 of an image of 5x5).",
    ),
    (
        shape("cat", box(4, 4, 5, 4), "mask", mask=small_mask([[1, 1]])),
        "{cat} (a mask of shape [1, 2] is not of pixels 4, 4 to 5, 4 of an image of 5x5).",
    ),
]


@pytest.mark.parametrize(("row", "text"), SHAPES)
def test_shapes_that_are_refused(tmp_path: Path, row: Any, text: str) -> None:
    root = write_labelme(tmp_path, {"a": [shape("cat", box(0, 0, 1, 1), "rectangle"), row]})
    place = f"a shape cannot be drawn: {root}/a.json, shapes[1], cat"
    message = refusal(lambda: open_dataset(root)[0])
    assert message.startswith(text.format(path=root / "a.json", cat=place))


FILES: list[tuple[Any, str]] = [
    ("{", "cannot read a file as JSON: {path} (Expecting property name"),
    ("[" * 100_000, "cannot read a file as JSON: {path} (maximum recursion depth exceeded"),
    ("[]", 'a file is not LabelMe\'s: {path} (it has no list "shapes"). Move it away.'),
    ('{"shapes": {}}', 'a file is not LabelMe\'s: {path} (it has no list "shapes"). Move it away.'),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_files_that_are_not_labelmes(tmp_path: Path, text: str, message: str) -> None:
    root = write_labelme(tmp_path, {"a": [], "b": [shape("cat", box(0, 0, 1, 1), "rectangle")]})
    (root / "a.json").write_text(text)
    assert refusal(lambda: open_dataset(root)).startswith(message.format(path=root / "a.json"))


def test_shapes_of_an_image_of_another_size(tmp_path: Path) -> None:
    root = write_labelme(tmp_path, {"a": [shape("cat", box(0, 0, 1, 1), "rectangle")]})
    rewrite(root / "a.json", imageWidth=50)
    assert refusal(lambda: open_dataset(root)[0]) == (
        f"image and annotation file differ in size: {root}/a.json (its shapes are for 50x5, the image is 5x5)."
    )
    rewrite(root / "a.json", imageWidth=None, imageHeight=None)
    assert open_dataset(root)[0].segments[0].area == 1


def test_files_without_a_class(tmp_path: Path) -> None:
    root = write_labelme(tmp_path, {"a": [], "b": [shape("__ignore__", box(0, 0, 1, 1), "rectangle")]})
    assert refusal(lambda: open_dataset(root)) == f"no shape is of a class: {root} (2 annotation files)."


# --- Hugging Face ----------------------------------------------------------------------------------------------------

VALUES = np.array([[0, 1, 255], [2, 1, 0]], np.uint8)


def png(pixels: Array, palette: list[int] | None = None) -> dict[str, Any]:
    buffer, picture = io.BytesIO(), Image.fromarray(pixels)
    if palette:
        picture.putpalette(palette)
    picture.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(mask: Array = VALUES, **more: Any) -> dict[str, Any]:
    return {"image": png(np.zeros((*mask.shape[:2], 3), np.uint8)), "annotation": png(mask, [7] * 768), **more}


class Stub:
    """As much of `datasets` as the reader asks of it: rows that a test gives instead of a saved folder."""

    class Image:
        def __init__(self, decode: bool = True) -> None:
            self.decode = decode

    class ClassLabel:
        def __init__(self, names: list[str]) -> None:
            self.names = names

    class Rows(list[dict[str, Any]]):
        def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
            super().__init__(rows)
            self.features = dict(features)
            self.cache_files = [{"filename": "data-00000-of-00001.arrow"}]

        def cast_column(self, column: str, feature: Any) -> Stub.Rows:
            self.features[column] = feature
            return self

        def __getitem__(self, index: Any) -> Any:
            # Decoded by Pillow, masks would come out in the colours of their palettes.
            assert [feature.decode for feature in self.features.values()] == [False, False]
            if index == 5:
                raise OSError("Arrow is broken")
            return super().__getitem__(index)

        def select_columns(self, columns: list[str]) -> Stub.Rows:
            self.features = {column: self.features[column] for column in columns}
            return self


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A folder that looks like a saved data set; the stub gives its rows."""

    def save(rows: list[dict[str, Any]], features: dict[str, Any]) -> Path:
        stub = ModuleType("datasets")
        vars(stub).update(Image=Stub.Image, ClassLabel=Stub.ClassLabel)
        vars(stub)["load_from_disk"] = lambda path: Stub.Rows(rows, features)
        monkeypatch.setitem(sys.modules, "datasets", stub)
        for name in ("dataset_info.json", "state.json"):
            (tmp_path / name).write_text("{}")
        return tmp_path

    return save


COLUMNS = {"image": Stub.Image(), "annotation": Stub.Image()}
LIST = SimpleNamespace(feature=Stub.ClassLabel(["sky", "tree", "car"]))


def test_rows(saved: Callable[..., Path]) -> None:
    root = saved([row(), row(VALUES * 0)], {**COLUMNS, "classes": LIST, "scene": Stub.ClassLabel(["indoor"])})
    assert find_format(root) == ("huggingface", "it has the dataset_info.json and state.json of a saved Dataset")
    dataset = open_dataset(root, "train")
    assert dataset.names == ["000000", "000001"]
    first, second = dataset
    # Indices of a palette, not the colour that all of it has.
    assert ids_of(first) == [[1, 2, -1], [3, 2, 1]]
    assert (labels_of(first), labels_of(second)) == (["sky", "tree", "car"], ["sky"])
    assert dataset.files(0) == (Path("data-00000-of-00001.arrow"),)


def test_class_names_of_rows(saved: Callable[..., Path]) -> None:
    root = saved([row(VALUES % 255)], {**COLUMNS, "kind": Stub.ClassLabel(["a", "b", "c"])})
    # What the image is called as a whole says nothing of pixels, unless somebody says so.
    assert "(found 1, 2; this data set knows 0, 255)" in refusal(lambda: open_dataset(root)[0])
    assert labels_of(open_dataset(root, names="kind")[0]) == ["a", "b", "c"]
    (root / "id2label.json").write_text('{"0": "x", "1": "y", "2": "z"}')
    assert labels_of(open_dataset(root)[0]) == ["x", "y", "z"]
    assert labels_of(open_dataset(root, names="kind")[0]) == ["a", "b", "c"]
    assert labels_of(open_dataset(root, names="kind", classes=root / "id2label.json")[0]) == ["x", "y", "z"]
    write_table(root, {"classes": [{"name": "thing", "value": 1}], "background": [0], "void": [2]})
    assert ids_of(open_dataset(root)[0]) == [[0, 1, 0], [-1, 1, 0]]


def test_binary_rows(saved: Callable[..., Path]) -> None:
    sample = open_dataset(saved([row(VALUES // 255 * 255)], COLUMNS))[0]
    assert ids_of(sample) == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({"image": Stub.Image()}, {}, "cannot tell the column of the mask: {root} (columns of images: image). Say wh"),
        ({"x": 1}, {}, "cannot tell the column of the image: {root} (columns of images: none). Say which it is: --opt"),
        ({**COLUMNS, "mask": Stub.Image()}, {}, "cannot tell the column of the mask: {root} (columns of images: image"),
        (COLUMNS, {"mask": "x"}, "cannot tell the column of the mask: {root} (columns of images: image, annotation)"),
        (COLUMNS, {"names": "x"}, "cannot tell the class names: {root} (class labels: none). --option names=COLUMN"),
        ({**COLUMNS, "a": LIST, "b": LIST}, {}, "cannot tell the class names: {root} (class labels: a, b). --option"),
    ],
)
def test_columns_that_cannot_be_told(
    saved: Callable[..., Path], features: Any, options: dict[str, str], message: str
) -> None:
    root = saved([row()], features)
    assert refusal(lambda: open_dataset(root, **options)).startswith(message.format(root=root))


def test_columns_may_be_given(saved: Callable[..., Path]) -> None:
    features = {"a": Stub.Image(), "b": Stub.Image(), "c": Stub.ClassLabel(["sky", "tree", "car"])}
    root = saved([{"a": row()["annotation"], "b": row()["image"]}], features)
    dataset = open_dataset(root, image="b", mask="a", names="c")
    assert ids_of(dataset[0]) == [[1, 2, -1], [3, 2, 1]]


def test_cells_that_cannot_be_read(saved: Callable[..., Path], tmp_path: Path) -> None:
    rows = [
        row(annotation=None),
        row(annotation={"bytes": b"hello", "path": None}),
        row(annotation=png(VALUES.T)),
        row(annotation={"bytes": None, "path": str(tmp_path / "lost.png")}),
        row(VALUES + 1),
        row(),
    ]
    dataset = open_dataset(saved(rows, {**COLUMNS, "classes": LIST}))
    assert refusal(lambda: dataset[0]) == f"a cell is empty: {tmp_path}/row 0/annotation."
    assert refusal(lambda: dataset[1], ImageError).startswith(f"Cannot read mask: {tmp_path}/row 1 (it begins with")
    assert refusal(lambda: dataset[2]).startswith(f"image and mask differ in size: {tmp_path}/row 2/annotation (")
    assert refusal(lambda: dataset[3], ImageError).startswith(f"Cannot read mask: {tmp_path}/row 3 (No such file")
    assert refusal(lambda: dataset[4]).startswith(f"unknown value in a mask: {tmp_path}/row 4/annotation (found 3; ")
    assert refusal(lambda: dataset[5]) == f"cannot read a row: {tmp_path}/row 5 (Arrow is broken)."


def test_the_package_may_be_missing(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = saved([row()], COLUMNS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refusal(lambda: open_dataset(root), UsageError)
    assert message == "the package datasets is not installed: huggingface. pip install 'everymask[hf]'"


@pytest.fixture
def package() -> Any:
    """The real one, which is an extra."""
    return pytest.importorskip("datasets", reason="the extra hf is not installed")


def test_a_really_saved_data_set(package: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    features = package.Features(
        {
            "image": package.Image(),
            "annotation": package.Image(),
            "classes": package.Sequence(package.ClassLabel(names=["sky", "tree", "car"])),
            "scene": package.ClassLabel(names=["indoor", "outdoor"]),
        }
    )
    rows = [row(mask, classes=[0], scene=0) for mask in (VALUES, VALUES * 0)]
    splits = {"train": rows, "validation": rows[:1]}
    saved = {name: package.Dataset.from_list(part, features=features) for name, part in splits.items()}
    package.DatasetDict(saved).save_to_disk(tmp_path / "all")
    saved["train"].save_to_disk(tmp_path / "one")
    capfd.readouterr()
    assert find_format(tmp_path / "all") == ("huggingface", "it has the dataset_dict.json of a saved DatasetDict")
    train, val, one = (
        open_dataset(tmp_path / name, split) for name, split in [("all", "train"), ("all", "val"), ("one", "")]
    )
    assert [len(dataset) for dataset in (train, val, one)] == [2, 1, 2]
    for dataset in (train, val, one):
        assert ids_of(dataset[0]) == [[1, 2, -1], [3, 2, 1]]
        assert torch.equal(torch.from_numpy(dataset[0].image), torch.zeros(2, 3, 3, dtype=torch.uint8))
    assert labels_of(train[1]) == ["sky"]
    assert train.files(0)[0].is_relative_to(tmp_path / "all" / "train")
    assert open_dataset(tmp_path / "all", names="classes").labels.names == ("sky", "tree", "car")
    # Nothing of its progress bars gets into our output.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff\xff\xff"])
def test_a_saved_data_set_that_is_damaged(package: Any, tmp_path: Path, name: str, content: bytes) -> None:
    features = package.Features({"image": package.Image(), "annotation": package.Image()})
    package.Dataset.from_list([row()], features=features).save_to_disk(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert refusal(lambda: open_dataset(tmp_path)).startswith(f"cannot read a saved data set: {tmp_path} (")
