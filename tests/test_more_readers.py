"""Readers of mask files beyond the plain folder, and class tables: small folders by Pillow, and the real sets."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everymask.datasets import find_format, open_dataset
from everymask.datasets.classes import read_table
from everymask.datasets.folder import Folder
from everymask.datasets.voc import Objects
from everymask.errors import DataError, EverymaskError
from everymask.labels import LabelMap, packed
from everymask.types import VOID, Sample
from tests.conftest import REPOSITORY
from tests.folders import CROSS, Array, ids_of, write, write_mask, write_photo, write_table

Data = Callable[[str], Path]


def refusal(read: Callable[[], object], kind: type[EverymaskError] = DataError) -> str:
    with pytest.raises(kind) as error:
        read()
    return str(error.value)


def labels_of(sample: Sample) -> list[str]:
    return [segment.label for segment in sample.segments]


# --- class tables ----------------------------------------------------------------------------------------------------

NUMBERED = [
    ("names.yaml", "names: [sky, tree]", {0: "sky", 1: "tree"}),
    ("names.yml", "names: {3: tree, 1: sky}", {1: "sky", 3: "tree"}),
    ("names.json", '{"10": "tree", "2": "sky"}', {2: "sky", 10: "tree"}),
    ("names.txt", "\ufeffsky\n\n tree \n", {0: "sky", 1: "tree"}),
    ("names.json", '["sky", {"title": "tree"}]', {0: "sky", 1: "tree"}),
]


@pytest.mark.parametrize(("name", "text", "expected"), NUMBERED)
def test_names_by_number(tmp_path: Path, name: str, text: str, expected: dict[int, str]) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    table = read_table(tmp_path / name)
    assert {label.raw_pixel: label.name for label in table.labels} == expected
    assert [label.source_id for label in table.labels] == sorted(expected)
    assert (table.labels.void, table.by_color) == ((255,), False)


def test_all_that_an_entry_may_say(tmp_path: Path) -> None:
    row = {"title": "road", "value": 7, "color": "#0102fF", "stuff": True, "synonyms": ["street"], "shape": "polygon"}
    write_table(tmp_path, {"classes": [row], "tags": []})
    (label,) = read_table(tmp_path / "classes.json").labels
    assert (label.name, label.raw_pixel, label.color, label.is_thing) == ("road", 7, (1, 2, 255), False)
    assert label.synonyms == ("street",)


def test_colors_without_values_are_what_pixels_hold(tmp_path: Path) -> None:
    rows = [{"name": "a", "color": [255, 0, 0]}, {"name": "b", "color": "#00ff00"}]
    write_table(tmp_path, {"classes": rows, "void": ["#9B9B9B", [0, 0, 0]], "background": ["#0000FF"]})
    table = read_table(tmp_path / "classes.json")
    assert table.by_color
    # Red is 255 as a number, which is void only where pixels are numbers.
    assert [label.raw_pixel for label in table.labels] == [255, 255 << 8]
    assert (table.labels.void, table.labels.background) == ((0x9B9B9B, 0), (255 << 16,))
    write_table(tmp_path, [rows[0], {**rows[1], "value": 1}])
    assert not read_table(tmp_path / "classes.json").by_color


@pytest.mark.parametrize("name", ["classes.json", "names.yaml", "names.txt"])
def test_a_table_that_is_not_there(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, {"a": CROSS})
    message = refusal(lambda: open_dataset(root, classes=tmp_path / name))
    assert message.startswith(f"cannot read a file: {tmp_path / name} (")
    assert "No such file" in message


def test_a_list_of_names_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("Bäume".encode("latin-1"))
    assert refusal(lambda: read_table(tmp_path / "names.txt")).startswith(f"cannot read a file: {tmp_path}/names.txt (")


def test_a_yaml_file_that_stands_for_millions_is_refused_at_once(tmp_path: Path) -> None:
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" if n else "a0: &a0 [x, x]" for n in range(12)]
    (tmp_path / "names.yaml").write_text("\n".join([*lines, "names: *a11"]))
    message = refusal(lambda: read_table(tmp_path / "names.yaml"))
    assert message.startswith(f"a class needs a name: {tmp_path}/names.yaml (an entry is [[[[[[")
    assert len(message) < 1_000_000


def test_the_users_table_wins_and_the_folder_stays_as_it_is(tmp_path: Path) -> None:
    root = write(tmp_path / "data", {"a": CROSS * 7})
    write_table(root, [{"name": "wrong", "value": 3}])
    (tmp_path / "right.json").write_text('{"classes": [{"name": "right", "value": 7}], "background": [0]}')
    assert "found 0, 7; this data set knows 3, 255" in refusal(lambda: open_dataset(root)[0])
    assert labels_of(open_dataset(root, classes=tmp_path / "right.json")[0]) == ["right"]


# --- folder: masks of colours ----------------------------------------------------------------------------------------

RED, GREEN, GREY, BLACK = (255, 0, 0), (0, 128, 1), (155, 155, 155), (0, 0, 0)
COLORED = {
    "classes": [{"name": "red", "color": "#FF0000"}, {"name": "green", "color": list(GREEN)}],
    "void": ["#9B9B9B"],
    "background": ["#000000"],
}
PICTURE = np.array([[RED, GREEN, GREY], [BLACK, GREEN, RED]], np.uint8)
EXPECTED = [[1, 2, -1], [0, 2, 1]]


def test_masks_of_colors(tmp_path: Path) -> None:
    write_table(write(tmp_path, {"a": PICTURE}), COLORED)
    sample = open_dataset(tmp_path)[0]
    assert ids_of(sample) == EXPECTED
    assert labels_of(sample) == ["red", "green"]


def test_palettes_stand_for_their_colors(tmp_path: Path) -> None:
    write_table(write(tmp_path, {"a": PICTURE}), COLORED)
    indices = np.array([[3, 1, 2], [0, 1, 3]], np.uint8)
    write_mask(tmp_path / "masks" / "a.png", indices, [*BLACK, *GREEN, *GREY, *RED])
    assert ids_of(open_dataset(tmp_path)[0]) == EXPECTED


def test_a_palette_that_ends_too_early(tmp_path: Path) -> None:
    write_table(write(tmp_path, {"a": PICTURE}), COLORED)
    rows = zlib.compress(bytes([0, 200, 1, 0, 0, 0, 1, 0]))
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 3, 2, 8, 3, 0, 0, 0), b"PLTE": bytes([*BLACK, *GREEN]), b"IDAT": rows}
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in {**chunks, b"IEND": b""}.items():
        png += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "masks" / "a.png").write_bytes(png)
    assert refusal(lambda: open_dataset(tmp_path)[0]) == (
        f"a value is beyond the palette: {tmp_path}/masks/a.png (value 200, the palette has 2 colours). "
        "Export the mask again."
    )


def test_grey_masks_where_colors_are_due(tmp_path: Path) -> None:
    write_table(write(tmp_path, {"a": CROSS}), COLORED)
    assert refusal(lambda: open_dataset(tmp_path)[0]) == (
        f"expected one colour a class: {tmp_path}/masks/a.png (the mask is grey). "
        'Its class table gives colours and no values: add a "value" to each class.'
    )


def test_colors_where_values_are_due(tmp_path: Path) -> None:
    # The red channel alone would pass for values.
    write_table(write(tmp_path, {"a": PICTURE * np.array([1, 0, 0], np.uint8)}), ["sky"])
    message = refusal(lambda: open_dataset(tmp_path)[0])
    assert message.startswith(f"expected one label value a pixel: {tmp_path}/masks/a.png (the mask is RGB). Save")
    assert message.endswith("or give each class its colour and no value.")


def test_unknown_colors_are_listed_the_most_frequent_first(tmp_path: Path) -> None:
    mask = np.stack([np.arange(12).repeat(np.arange(1, 13)), *np.zeros((2, 78))], -1).astype(np.uint8)[None]
    write_table(write(tmp_path, {"a": mask}), COLORED)
    assert refusal(lambda: open_dataset(tmp_path)[0]) == (
        f"unknown colour in a mask: {tmp_path}/masks/a.png (found #0B0000, #0A0000, #090000, #080000, #070000, "
        "#060000, #050000, #040000 and 3 more; the table knows #9B9B9B void, #000000 background, #FF0000 red, "
        "#008001 green). Give a table that is right: --option classes=FILE."
    )


DUBAI_TABLE = REPOSITORY / "examples" / "dubai-classes.json"


def test_the_wrong_table_of_the_dubai_tiles_is_refused(data: Data) -> None:
    root = data("dubai_aerial")
    assert find_format(root) == ("folder", "it has images/ and masks/")
    message = refusal(lambda: open_dataset(root)[0])
    assert message.startswith(f"unknown colour in a mask: {root}/masks/tile_1_image_part_001.png (found #8429F6, ")
    assert all(color in message for color in ("#3C1098", "#6EC1E4", "#E2A929", "#FEDD3A"))
    assert "; the table knows #50E3C2 Water, #F5A623 Land (unpaved area), #DE597F Road, " in message


def test_the_dubai_tiles_with_the_right_table(data: Data) -> None:
    root = data("dubai_aerial")
    dataset = open_dataset(root, classes=DUBAI_TABLE)
    assert dataset.labels.names == ("building", "land", "road", "vegetation", "water")
    assert len(dataset) == 63
    colors = {
        tuple(bytes.fromhex(c[1:])): n for n, c in enumerate(("#3C1098", "#8429F6", "#6EC1E4", "#FEDD3A", "#E2A929"))
    }
    for index in (0, 40):
        sample, (_, path) = dataset[index], dataset.files(index)
        with Image.open(path) as picture:
            pixels = np.array(picture)
        expected = np.full(pixels.shape[:2], VOID)
        for k, color in enumerate(colors):
            expected[(pixels == color).all(-1)] = k
        assert torch.equal(sample.segments.class_map(5), torch.from_numpy(expected))


# --- camvid ----------------------------------------------------------------------------------------------------------

STEM = "0001TP_00669"


def test_camvid(tmp_path: Path) -> None:
    values = np.array([[0, 8, 11], [10, 8, 0]], np.uint8)
    for split in ("train", "val"):
        write(tmp_path, {f"{STEM}{split}": values}, kind=f"{split}annot", images=split)
    assert find_format(tmp_path) == ("camvid", "it has train/ + trainannot/, val/ + valannot/")
    sample = open_dataset(tmp_path, "val")[0]
    assert ids_of(sample) == [[1, 2, -1], [3, 2, 1]]
    assert [(s.label, s.is_thing) for s in sample.segments] == [("sky", False), ("car", True), ("bicyclist", True)]
    assert sample.name == f"{STEM}val"
    assert open_dataset(tmp_path).names == [f"{STEM}train"]


def test_camvid_knows_twelve_values(tmp_path: Path) -> None:
    write(tmp_path, {STEM: CROSS + 11}, kind="trainannot", images="train")
    assert "(found 12; this data set knows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)" in refusal(
        lambda: open_dataset(tmp_path)[0]
    )


def test_other_photos_in_camvids_layout_need_a_table(tmp_path: Path) -> None:
    write(tmp_path, {STEM: CROSS, "street": CROSS}, kind="trainannot", images="train")
    assert refusal(lambda: open_dataset(tmp_path)) == (
        f"the classes are not known: {tmp_path} (there is no classes.json, and the photos are not those of CamVid's "
        "four videos). Write classes.json into the folder, or give it by --option classes=FILE."
    )
    write_table(tmp_path, ["ground", "weed"])
    assert labels_of(open_dataset(tmp_path)[0]) == ["ground", "weed"]


def test_real_camvid(data: Data) -> None:
    root = data("camvid")
    assert {split: len(open_dataset(root, split)) for split in ("train", "val", "test")} == {
        "train": 367,
        "val": 101,
        "test": 233,
    }
    dataset = open_dataset(root, "val")
    for index in (0, 50, 100):
        sample, (_, path) = dataset[index], dataset.files(index)
        with Image.open(path) as picture:
            values = torch.from_numpy(np.array(picture)).long()
        assert torch.equal(sample.segments.class_map(11), values.where(values != 11, VOID))


# --- bcss ------------------------------------------------------------------------------------------------------------

CODES = "label\tGT_code\noutside_roi\t0\ntumor\t1\nstroma\t2\nblood_vessel\t18\n"


def write_codes(root: Path, text: str = CODES) -> Path:
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "gtruth_codes.tsv").write_text(text)
    return root


@pytest.mark.parametrize("images", ["images", "rgbs_colorNormalized"])
@pytest.mark.parametrize("palette", [None, [9, 9, 9] * 256])
def test_tissue_codes(tmp_path: Path, images: str, palette: list[int] | None) -> None:
    root = write_codes(tmp_path)
    codes = np.array([[0, 1, 18], [2, 1, 0]], np.uint8)
    write_photo(root / images / "a.png", (3, 2))
    write_mask(root / "masks" / "a.png", codes, palette)
    assert find_format(root) == ("bcss", "it has meta/gtruth_codes.tsv")
    sample = open_dataset(root)[0]
    assert ids_of(sample) == [[-1, 1, 3], [2, 1, -1]]
    assert [(s.label, s.is_thing) for s in sample.segments] == [
        ("tumor", False),
        ("stroma", False),
        ("blood_vessel", False),
    ]


def test_tissue_in_split_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(write_codes(tmp_path) / split, {split: CROSS})
    assert [open_dataset(tmp_path, split).names for split in ("", "train", "test")] == [["train"], ["train"], ["test"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a class table needs at least one class: {path}."),
        ("name\tcode\ntumor\t1\n", 'a line of the class codes is not complete: {path} (line 2, column "label").'),
        ("label\tGT_code\ntumor\n", 'a line of the class codes is not complete: {path} (line 2, column "GT_code").'),
        ("label\tGT_code\ntumor\t1.5\n", "a class code is no number from 0 to 255: {path} (line 2: 1.5)."),
        ("label\tGT_code\ntumor\t256\n", "a class code is no number from 0 to 255: {path} (line 2: 256)."),
        ("label\tGT_code\na\t1\na\t2\n", "a class has two codes: {path}. Keep one line for each."),
        ("label\tGT_code\na\t1\nb\t1\n", "a pixel value has two meanings: {path} (1 among classes, void and"),
    ],
)
def test_tissue_codes_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write_codes(write(tmp_path, {"a": CROSS}), text) / "meta" / "gtruth_codes.tsv"
    assert refusal(lambda: open_dataset(tmp_path)).startswith(message.format(path=path))


@pytest.fixture(scope="session")
def bcss(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real masks beside black photos of their sizes."""
    source, root = data("bcss_masks_only"), tmp_path_factory.mktemp("bcss")
    for name in ("masks", "meta"):
        os.symlink(source / name, root / name)
    for path in sorted((root / "masks").iterdir())[:2]:
        with Image.open(path) as mask:
            (root / "images").mkdir(exist_ok=True)
            Image.new("L", mask.size).save(root / "images" / path.name, compress_level=1)
    return root


def test_real_tissue_masks(bcss: Path, tmp_path: Path) -> None:
    message = refusal(lambda: open_dataset(bcss))
    assert message.startswith(f"files without a partner: {bcss} (2: masks/TCGA-A2-A0SX")
    shutil.copytree(bcss / "meta", tmp_path / "meta")
    (tmp_path / "masks").mkdir()
    os.symlink(bcss / "images", tmp_path / "images")
    for path in (bcss / "images").iterdir():
        os.symlink(bcss / "masks" / path.name, tmp_path / "masks" / path.name)
    dataset = open_dataset(tmp_path)
    assert len(dataset.labels) == 21
    assert dataset.labels.void == (0,)
    assert [(label.name, label.raw_pixel) for label in dataset.labels][:4:3] == [
        ("tumor", 1),
        ("necrosis_or_debris", 4),
    ]
    for index, codes in enumerate([{1, 2, 3, 4, 9}, {1, 2, 4, 7}]):
        sample = dataset[index]
        with Image.open(dataset.files(index)[1]) as picture:
            values = np.asarray(picture)
        assert {dataset.labels[s.class_index].raw_pixel for s in sample.segments} == codes - {0}
        assert torch.equal(sample.segments.void, torch.from_numpy(values == 0))
        assert torch.equal(sample.segments.class_map(21), torch.from_numpy(values.astype(np.int64) - 1))


# --- instances, Penn-Fudan -------------------------------------------------------------------------------------------


def test_penn_fudan(tmp_path: Path) -> None:
    write_photo(tmp_path / "PNGImages" / "FudanPed00001.png", (3, 2))
    write_mask(tmp_path / "PedMasks" / "FudanPed00001_mask.png", np.array([[0, 2, 2], [1, 0, 5]], np.uint8), [0] * 768)
    assert find_format(tmp_path) == ("penn_fudan", "it has PNGImages/ and PedMasks/")
    sample = open_dataset(tmp_path, "train")[0]
    assert sample.name == "FudanPed00001"
    assert ids_of(sample) == [[0, 2, 2], [1, 0, 3]]
    assert labels_of(sample) == ["person"] * 3
    write_photo(tmp_path / "PNGImages" / "FudanPed00002.png", (3, 2))
    message = refusal(lambda: open_dataset(tmp_path))
    assert message.startswith(f"files without a partner: {tmp_path} (1: PNGImages/FudanPed00002.png)")


def test_real_nuclei(data: Data) -> None:
    dataset = open_dataset(data("dsb2018_he"), name="nucleus")
    samples = list(dataset)
    assert (len(samples), sum(len(s.segments) for s in samples)) == (107, 4550)
    assert {segment.label for segment in samples[0].segments} == {"nucleus"}
    for index in (0, 53, 106):
        with Image.open(dataset.files(index)[1]) as picture:
            numbers = np.asarray(picture)
        areas = np.bincount(numbers.ravel())[1:]
        assert [segment.area for segment in samples[index].segments] == areas[areas > 0].tolist()


# --- Pascal VOC ------------------------------------------------------------------------------------------------------

CLASSES = np.array([[0, 15, 255, 12], [15, 15, 255, 12]], np.uint8)
OBJECTS = np.array([[0, 2, 255, 1], [3, 3, 255, 1]], np.uint8)
PALETTE = list(itertools.chain.from_iterable((0, 0, k // 3) for k in range(256)))


def write_voc(root: Path, lists: dict[str, list[str]], objects: Array | None = OBJECTS) -> Path:
    for stem in dict.fromkeys(itertools.chain.from_iterable(lists.values() or [["a"]])):
        write_photo(root / "JPEGImages" / f"{stem}.jpg", (4, 2))
        write_mask(root / "SegmentationClass" / f"{stem}.png", CLASSES, PALETTE)
        if objects is not None:
            write_mask(root / "SegmentationObject" / f"{stem}.png", objects, PALETTE)
    for split, stems in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems) + "\n")
    return root


LISTS = {"train": ["b", "a"], "val": ["c"], "trainval": ["b", "a", "c"]}


def test_voc_splits_are_lists(tmp_path: Path) -> None:
    root = write_voc(tmp_path, LISTS)
    write_photo(root / "JPEGImages" / "detection_only.jpg", (4, 2))
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("unlabelled\n")
    assert find_format(root) == ("voc", "it has JPEGImages/ and SegmentationClass/")
    assert {split: open_dataset(root, split).names for split in LISTS} == LISTS
    assert sorted(open_dataset(root).names) == ["a", "b", "c"]
    assert "there are: train, val, trainval)" in refusal(lambda: open_dataset(root, "test"))


def test_voc_without_lists_pairs_all(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {})
    assert open_dataset(root, "train").names == ["a"]
    write_photo(root / "JPEGImages" / "b.jpg", (4, 2))
    assert refusal(lambda: open_dataset(root)).startswith(f"files without a partner: {root} (1: JPEGImages/b.jpg)")


def test_voc_objects_have_the_class_of_their_pixels(tmp_path: Path) -> None:
    dataset = open_dataset(write_voc(tmp_path, LISTS))
    sample = dataset[0]
    assert isinstance(dataset, Objects)
    assert ids_of(sample) == [[0, 2, -1, 1], [3, 3, -1, 1]]
    assert labels_of(sample) == ["dog", "person", "person"]
    assert [path.parent.name for path in dataset.files(0)] == ["JPEGImages", "SegmentationClass", "SegmentationObject"]


@pytest.mark.parametrize(("objects", "targets"), [(OBJECTS, "semantic"), (None, "auto")])
def test_voc_classes(tmp_path: Path, objects: Array | None, targets: str) -> None:
    dataset = open_dataset(write_voc(tmp_path, LISTS, objects), targets=targets)
    assert type(dataset) is Folder
    assert ids_of(dataset[0]) == [[0, 2, -1, 1], [2, 2, -1, 1]]
    assert labels_of(dataset[0]) == ["dog", "person"]
    assert [dataset.labels.names[k] for k in (0, 7, 19)] == ["aeroplane", "cat", "tv monitor"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([[0, 2, 255, 1], [0, 3, 255, 1]], "(where one has background, the other has something)"),
        ([[4, 2, 255, 1], [3, 3, 255, 1]], "(where one has background, the other has something)"),
        ([[0, 2, 255, 2], [3, 3, 255, 1]], "(object 2 has several classes)"),
        ([[0, 2, 255]], "differ in size: {path} ([2, 4] and [1, 3])"),
    ],
)
def test_voc_masks_that_contradict_each_other(tmp_path: Path, objects: Any, message: str) -> None:
    root = write_voc(tmp_path, {"train": ["a"]}, np.array(objects, np.uint8))
    found = refusal(lambda: open_dataset(root)[0])
    assert message.format(path=root / "SegmentationObject" / "a.png") in found
    assert found.startswith("the masks of classes and of objects d")


def test_voc_lists_name_what_is_there(tmp_path: Path) -> None:
    root = write_voc(tmp_path, LISTS)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("c lost")
    assert refusal(lambda: open_dataset(root, "val")) == (
        f"a list names photos that are not there: {root}/ImageSets (1, the first is 'lost')."
    )
    (root / "JPEGImages" / "a.jpg").unlink()
    message = refusal(lambda: open_dataset(root, "train"))
    assert message.startswith(f"files without a partner: {root} (1: SegmentationClass/a.png)")


def test_other_classes_in_vocs_layout(tmp_path: Path) -> None:
    root = write_voc(tmp_path, LISTS)
    write_table(root, {"classes": [{"name": "hen", "value": 12}, {"name": "egg", "value": 15}], "background": [0]})
    assert labels_of(open_dataset(root)[0]) == ["hen", "egg", "egg"]


# --- every table is one that can be saved ----------------------------------------------------------------------------


@pytest.mark.parametrize("table", [COLORED, ["a", "b"], {"3": "a", "7": "b"}])
def test_tables_survive_a_checkpoint(tmp_path: Path, table: Any) -> None:
    write_table(tmp_path, table)
    labels = read_table(tmp_path / "classes.json").labels
    assert LabelMap.from_json(json.loads(json.dumps(labels.to_json()))) == labels


def test_packed_colors_are_those_of_coco_panoptic() -> None:
    assert packed(np.array([[1, 2, 3]], np.uint8)).tolist() == [1 + 256 * 2 + 65536 * 3]
