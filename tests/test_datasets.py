"""Readers on small folders written by Pillow and on the real sets, and the loader's promise to repeat itself."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everymask.datasets import (
    Concat,
    Dataset,
    Subset,
    find_format,
    hold_out,
    open_dataset,
    open_datasets,
    open_where_split,
)
from everymask.datasets.folder import Folder
from everymask.datasets.instances import Instances
from everymask.datasets.loader import Batches, training_batches
from everymask.datasets.pets import Pets, assigned_splits
from everymask.errors import DataError, EverymaskError, ImageError, UsageError
from everymask.labels import Label, LabelMap
from everymask.recipe import TrainConfig
from everymask.types import VOID, Batch, Sample, Segments
from tests.folders import CROSS, Array, ids_of, write, write_table

# --- folder ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 255])
def test_binary_masks(tmp_path: Path, value: int) -> None:
    sample = open_dataset(write(tmp_path, {"a": CROSS * value}))[0]
    assert ids_of(sample) == CROSS.tolist()
    assert [s.label for s in sample.segments] == ["foreground"]
    assert sample.name == "a"
    assert sample.image.shape == (3, 4, 3)


def test_a_bilevel_png_is_binary_too(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": CROSS})
    Image.fromarray(CROSS * 255).convert("1").save(root / "masks" / "a.png")
    assert ids_of(open_dataset(root)[0]) == CROSS.tolist()


def test_an_empty_mask_is_an_image_without_segments(tmp_path: Path) -> None:
    sample = open_dataset(write(tmp_path, {"a": CROSS * 0}))[0]
    assert len(sample.segments) == 0
    assert (sample.segments.id_map == 0).all()


TABLE = {
    "classes": [{"name": "road", "value": 3, "color": [1, 2, 3], "stuff": True}, {"name": "car", "value": 7}],
    "void": [255, 9],
    "background": [0, 5],
}


def test_a_class_table_gives_values_their_meaning(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": np.array([[0, 3, 7, 255], [5, 3, 7, 9]], np.uint8), "b": np.full((1, 2), 7, np.uint8)})
    write_table(root, TABLE)
    first, second = open_dataset(root)
    assert ids_of(first) == [[0, 1, 2, -1], [0, 1, 2, -1]]
    assert [(s.label, s.is_thing) for s in first.segments] == [("road", False), ("car", True)]
    # Rows of the table are what occurs.
    assert ids_of(second) == [[1, 1]]
    assert [(s.label, s.class_index) for s in second.segments] == [("car", 1)]
    assert first.segments.labels is not None
    assert (first.segments.labels[0].color, first.segments.labels[0].raw_pixel) == ((1, 2, 3), 3)


def test_palette_masks_are_read_as_indices(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": CROSS})
    picture = Image.fromarray(CROSS * 3)
    picture.putpalette([200, 100, 50] * 256)
    picture.save(root / "masks" / "a.png")
    write_table(root, [{"name": "nothing", "value": 0}, {"name": "cross", "value": 3}])
    assert open_dataset(root)[0].segments.class_map(2).tolist() == CROSS.tolist()


def test_a_list_of_names_counts_values_up_and_255_is_void(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": np.array([[0, 1, 255]], np.uint8)})
    write_table(root, ["sky", "tree"])
    assert open_dataset(root)[0].segments.class_map(2).tolist() == [[0, 1, VOID]]


@pytest.mark.parametrize("table", [{"classes": [{"name": "cell", "value": 255}], "background": [0]}])
def test_a_class_may_have_the_value_255(tmp_path: Path, table: Any) -> None:
    root = write(tmp_path, {"a": CROSS * 255})
    write_table(root, table)
    assert ids_of(open_dataset(root)[0]) == CROSS.tolist()


def test_255_may_be_background(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": np.array([[0, 255]], np.uint8)})
    write_table(root, {"classes": ["cell"], "background": [255]})
    assert ids_of(open_dataset(root)[0]) == [[1, 0]]


SPLITS = {"train": ["a", "b"], "val": ["c"], "test": ["d", "e", "f"]}


@pytest.mark.parametrize("kind", ["masks", "instances"])
def test_splits_are_folders(tmp_path: Path, kind: str) -> None:
    for split, stems in SPLITS.items():
        write(tmp_path / split, dict.fromkeys(stems, CROSS), kind)
    found = {split: list(open_dataset(tmp_path, split).names) for split in SPLITS}
    assert found == SPLITS
    assert list(open_dataset(tmp_path).names) == SPLITS["train"]
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path, "dev")
    assert str(error.value) == f"no such split: {tmp_path} (asked for dev, there are: test, train, val)."


def test_a_flat_folder_is_all_train(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": CROSS, "b": CROSS})
    assert len(open_dataset(root)) == len(open_dataset(root, "train")) == 2
    with pytest.raises(DataError, match=r"\(asked for val, there are: none\)\.$"):
        open_dataset(root, "val")
    assert open_where_split([root], "val") is None


def test_the_class_table_of_a_split_set_lies_at_its_root(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": CROSS * 7})
    write_table(tmp_path, TABLE)
    assert [s.label for s in open_dataset(tmp_path)[0].segments] == ["car"]


def test_samples_come_in_the_order_of_numbers_and_know_their_files(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, {"img10": CROSS, "img9": CROSS, "img1": CROSS}))
    assert list(dataset.names) == ["img1", "img9", "img10"]
    assert dataset.files(2) == (tmp_path / "images" / "img10.jpg", tmp_path / "masks" / "img10.png")
    assert [s.name for s in dataset] == list(dataset.names)
    assert dataset[-1].name == "img10"


# --- faults ----------------------------------------------------------------------------------------------------------


def orphan_image(root: Path) -> None:
    (root / "masks" / "a.png").unlink()


def orphans(root: Path) -> None:
    (root / "masks" / "a.png").unlink()
    (root / "images" / "b.jpg").unlink()


def two_images(root: Path) -> None:
    Image.new("RGB", (4, 3)).save(root / "images" / "a.png")


def two_masks(root: Path) -> None:
    Image.new("L", (4, 3)).save(root / "masks" / "a.bmp")


def no_masks(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.unlink()


def no_images(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


UNOPENED: list[tuple[Callable[[Path], None], type[EverymaskError], str]] = [
    (orphan_image, DataError, "files without a partner: {root} (1: images/a.jpg). Add the missing partner or"),
    (orphans, DataError, "files without a partner: {root} (2: images/a.jpg, masks/b.png). Add the missing"),
    (two_images, DataError, "two files share a stem: {root}/images (a.jpg and a.png). Keep one of them."),
    (two_masks, DataError, "two files share a stem: {root}/masks (a.bmp and a.png). Keep one of them."),
    (no_masks, ImageError, "Cannot list images: {root}/masks (no image file in it)."),
    (no_images, ImageError, "Cannot list images: {root}/images (no image file in it)."),
]


@pytest.mark.parametrize(("spoil", "kind", "text"), UNOPENED, ids=[case[0].__name__ for case in UNOPENED])
def test_folders_that_do_not_fit_together(
    tmp_path: Path, spoil: Callable[[Path], None], kind: type[EverymaskError], text: str
) -> None:
    spoil(write(tmp_path, {"a": CROSS, "b": CROSS}))
    with pytest.raises(kind) as error:
        open_dataset(tmp_path)
    assert str(error.value).startswith(text.format(root=tmp_path))


UNREADABLE: list[tuple[str, Array | bytes, type[EverymaskError], str]] = [
    (
        "another size",
        CROSS.T,
        DataError,
        "image and mask differ in size: {mask} (a.jpg is 4x3, its mask 3x4). Export the mask at the image's size;",
    ),
    (
        "a third value",
        CROSS * 128 + 2,
        DataError,
        "unknown value in a mask: {mask} (found 2, 130; this data set knows 0, 255). List it in classes.json",
    ),
    (
        "0, 1 and 255",
        np.array([[0, 1, 255, 0]] * 3, np.uint8),
        DataError,
        "unknown value in a mask: {mask} (found 1; this data set knows 0, 255).",
    ),
    (
        "many values",
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        DataError,
        "unknown value in a mask: {mask} (found 1, 2, 3, 4, 5, 6, 7, 8, ...; this data set knows 0, 255).",
    ),
    (
        "RGB",
        np.zeros((3, 4, 3), np.uint8),
        DataError,
        "expected one label value a pixel: {mask} (the mask is RGB). Save labels as a one-channel or palette PNG",
    ),
    ("0 bytes", b"", ImageError, "Cannot read mask: {mask} (the file is empty (0 bytes)). Get the file again."),
    ("no image", b"hello", ImageError, "Cannot read mask: {mask} (it begins with b'hello'"),
]


@pytest.mark.parametrize(("case", "mask", "kind", "text"), UNREADABLE, ids=[case[0] for case in UNREADABLE])
def test_masks_that_are_refused(
    tmp_path: Path, case: str, mask: Array | bytes, kind: type[EverymaskError], text: str
) -> None:
    path = write(tmp_path, {"a": CROSS}) / "masks" / "a.png"
    path.write_bytes(mask) if isinstance(mask, bytes) else Image.fromarray(mask).save(path)
    with pytest.raises(kind) as error:
        open_dataset(tmp_path)[0]
    assert str(error.value).startswith(text.format(mask=path))


TABLES = [
    ("{", "cannot read a file as JSON: {path} (Expecting property name"),
    ("", "cannot read a file as JSON: {path} (Expecting value"),
    ("[" * 100_000, "cannot read a file as JSON: {path} (maximum recursion depth exceeded"),
    ("5", "expected a list of classes: {path} (found 5)."),
    ('"road"', "expected a list of classes: {path} (found 'road')."),
    ("null", "expected a list of classes: {path} (found None)."),
    ({}, "expected a list of classes: {path} (found {{}})."),
    ({"classes": {"road": 3}}, "expected a list of classes: {path} (found {{'road': 3}})."),
    ([{"name": "a"}, {"value": 3}], "a class needs a name: {path} (an entry is {{'value': 3}})."),
    ([{"name": "a"}, 5], "a class needs a name: {path} (an entry is 5)."),
    ([{"name": 5}], "a class needs a name: {path} (an entry is {{'name': 5}})."),
    ([" "], "a class needs a name: {path} (an entry is {{'name': ' '}})."),
    (["a\nb"], "a class needs a name: {path} (an entry is {{'name': 'a\\nb'}})."),
    (["a", "b", "a"], "class names must be unique: {path} (repeated: a)."),
    ([{"name": "a", "value": "3"}], "expected a whole number: {path} (\"value\" of a is '3')."),
    ([{"name": "a", "value": None}], 'expected a whole number: {path} ("value" of a is None).'),
    ([{"name": "a", "value": 2**31}], 'expected a whole number: {path} ("value" of a is 2147483648).'),
    ([{"name": "a", "stuff": "yes"}], "expected true or false: {path} (\"stuff\" of a is 'yes')."),
    ([{"name": "a", "synonyms": "b"}], "expected a list of names: {path} (\"synonyms\" of a is 'b')."),
    ([{"name": "a", "color": "red"}], "a colour is [R, G, B] or \"#RRGGBB\": {path} (found 'red')."),
    ([{"name": "a", "color": [1, 2]}], 'a colour is [R, G, B] or "#RRGGBB": {path} (found [1, 2]).'),
    ([{"name": "a", "color": [1, 2, 256]}], 'a colour is [R, G, B] or "#RRGGBB": {path} (found [1, 2, 256]).'),
    ({"classes": ["a"], "void": 255}, 'expected whole numbers: {path} ("void" is 255). As in [0, 255].'),
    (
        {"classes": ["a"], "background": [1.5]},
        'expected whole numbers: {path} ("background" is [1.5]). As in [0, 255].',
    ),
    (
        {"classes": ["a"], "background": ["#000000"]},
        "expected whole numbers: {path} (\"background\" is ['#000000']). As in [0, 255].",
    ),
    (
        {"classes": [{"name": "a", "color": "#000001"}], "void": [0]},
        'a colour is [R, G, B] or "#RRGGBB": {path} (found 0).',
    ),
    (
        [{"name": "a", "value": 3}, {"name": "b", "value": 3}],
        "a pixel value has two meanings: {path} (3 among classes, void and background). Give each value once.",
    ),
    (
        {"classes": ["a", "b"], "void": [1, 255], "background": [0, 255]},
        "a pixel value has two meanings: {path} (0, 1, 255 among classes, void and background). Give each value once.",
    ),
    ({"0": "sky", "1": 5}, "a class needs a name: {path} (an entry is 5)."),
]


@pytest.mark.parametrize(("table", "text"), TABLES)
def test_class_tables_that_are_refused(tmp_path: Path, table: Any, text: str) -> None:
    write_table(write(tmp_path, {"a": CROSS}), table)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert str(error.value).startswith(text.format(path=tmp_path / "classes.json"))


def test_formats_are_found_by_looking(tmp_path: Path) -> None:
    assert find_format(write(tmp_path / "a", {"a": CROSS}))[0] == "folder"
    assert find_format(write(tmp_path / "b", {"a": CROSS}, kind="trimaps"))[0] == "pets"
    assert find_format(write(tmp_path / "c", {"a": CROSS}, kind="instances"))[0] == "instances"
    assert find_format(write(tmp_path / "d" / "train", {"a": CROSS}).parent)[0] == "folder"


def test_a_format_may_be_chosen(tmp_path: Path) -> None:
    root = write(write(tmp_path, {"a": CROSS}, kind="instances"), {"a": CROSS * 255})
    assert isinstance(open_dataset(root), Instances)
    assert isinstance(open_dataset(root, format="folder"), Folder)
    with pytest.raises(DataError, match=r"^unknown data format: coco \(there are: .*pets, .*folder, .*\)\.$"):
        open_dataset(root, format="coco")


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "nowhere")
    assert str(error.value) == f"no such data folder: {tmp_path / 'nowhere'}. Check the path."
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    start = f"the layout of a data folder is not known: {tmp_path} (it holds: photos). Expected images/ and masks/"
    assert str(error.value).startswith(start)


def test_no_folder_at_all() -> None:
    with pytest.raises(DataError, match=r"^no data folder given\.$"):
        open_datasets([])


# --- instances -------------------------------------------------------------------------------------------------------

NUMBERED = {
    "one to three": np.array([[0, 1, 2], [3, 0, 2]], np.uint8),
    "gaps": np.array([[0, 4, 9], [200, 0, 9]], np.uint8),
    "16 bit": np.array([[0, 300, 1000], [65535, 0, 1000]], np.uint16),
}


@pytest.mark.parametrize("case", NUMBERED)
def test_instance_numbers_are_counted_up(tmp_path: Path, case: str) -> None:
    sample = open_dataset(write(tmp_path, {"a": NUMBERED[case]}, "instances"))[0]
    assert ids_of(sample) == [[0, 1, 2], [3, 0, 2]]
    assert [(s.label, s.is_thing) for s in sample.segments] == [("object", True)] * 3


def test_instances_that_fill_the_image_or_none_at_all(tmp_path: Path) -> None:
    full, empty = open_dataset(write(tmp_path, {"a": CROSS + 5, "b": CROSS * 0}, "instances"))
    assert ids_of(full) == (CROSS + 1).tolist()
    assert len(full.segments) == 2
    assert len(empty.segments) == 0


def test_instance_numbers_are_not_negative(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": CROSS}, "instances")
    (root / "instances" / "a.png").unlink()
    Image.fromarray(CROSS.astype(np.int32) - 3).save(root / "instances" / "a.tif")
    with pytest.raises(DataError, match=r"^an instance number is negative: .*a\.tif \(found -3\)\.$"):
        open_dataset(root)[0]


def test_instances_need_one_number_a_pixel(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": np.zeros((3, 4, 3), np.uint8)}, "instances")
    with pytest.raises(DataError) as error:
        open_dataset(root)[0]
    assert (
        str(error.value) == f"expected one instance number a pixel: {root / 'instances' / 'a.png'} (the mask is RGB)."
    )


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("data.yaml", "names: [cat]", "cat"),
        ("data.yaml", "names: {0: cat}", "cat"),
        ("data.yaml", "names: {7: cat}", "cat"),
        ("classes.json", '["dog"]', "dog"),
        ("classes.json", '{"0": "dog"}', "dog"),
        ("readme.txt", "", "object"),
    ],
)
def test_the_class_name_of_instances(tmp_path: Path, name: str, text: str, label: str) -> None:
    root = write(tmp_path, {"a": CROSS}, "instances")
    (root / name).write_text(text)
    assert open_dataset(root)[0].segments[0].label == label
    assert open_dataset(root, name="nucleus")[0].segments[0].label == "nucleus"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat", "cannot read a file as YAML: {path} (while parsing a flow sequence"),
        ("a: !!timestamp x", "cannot read a file as YAML: {path} ("),
        ("- cat\n- dog", "expected class names: {path} (found None)."),
        ("nc: 1", "expected class names: {path} (found None)."),
        ("", "expected class names: {path} (found None)."),
        ("names: cat", "expected class names: {path} (found 'cat')."),
        ("names: []", "expected class names: {path} (found {{}})."),
        ("names: [no]", "a class needs a name: {path} (an entry is False)."),
        ("names: {a: cat}", "expected class names by number: {path} ('cat' has 'a')."),
        ("names: {-1: cat}", "expected class names by number: {path} ('cat' has -1)."),
        ("names: [cat, cat]", "class names must be unique: {path} (repeated: cat)."),
        (
            "names: [cat, dog]",
            "instance masks are of one class: {root} (found cat, dog). Say which it is: --option name=",
        ),
    ],
)
def test_class_names_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, {"a": CROSS}, "instances") / "data.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert str(error.value).startswith(message.format(path=path, root=tmp_path))


def test_real_instances(data: Callable[[str], Path]) -> None:
    root = data("feral_cat")
    sizes = {split: len(open_dataset(root, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 699, "val": 195, "test": 101}
    dataset = open_dataset(root, "val")
    for index in (0, 97, 194):
        sample, (_, path) = dataset[index], dataset.files(index)
        numbers = np.asarray(Image.open(path))
        assert [s.area for s in sample.segments] == [(numbers == n).sum() for n in np.unique(numbers[numbers > 0])]
        assert {s.label for s in sample.segments} == {"cat"}
        assert torch.equal(sample.segments.foreground, torch.from_numpy(numbers > 0))


# --- pets ------------------------------------------------------------------------------------------------------------

TRIMAP = np.array([[2, 3, 3, 2], [2, 3, 1, 3]], np.uint8)


def test_trimaps(tmp_path: Path) -> None:
    root = write(tmp_path, {"Bengal_1": TRIMAP, "american_bulldog_2": TRIMAP}, "trimaps")
    samples = {s.name: s for s in open_dataset(root)}
    assert ids_of(samples["Bengal_1"]) == [[0, -1, -1, 0], [0, -1, 1, -1]]
    assert [s.label for s in samples["Bengal_1"].segments] == ["cat"]
    assert [s.label for s in samples["american_bulldog_2"].segments] == ["dog"]
    assert ids_of(Pets(root, border="foreground")[0]) == [[0, 1, 1, 0], [0, 1, 1, 1]]


def test_trimaps_know_three_values(tmp_path: Path) -> None:
    root = write(tmp_path, {"Bengal_1": TRIMAP - 1}, "trimaps")
    with pytest.raises(DataError, match=r"\(found 0; this data set knows 1, 2, 3\)"):
        open_dataset(root)[0]


def test_the_split_rule_goes_by_the_place_within_a_breed() -> None:
    stems = [f"{breed}_{n:02d}" for breed in ("Bengal", "american_bulldog") for n in range(24)]
    train = ["train"] * 4
    expected = (["test", "val", *train, "test", "train", *train] * 2) * 2
    assert assigned_splits(stems) == expected
    order = np.random.default_rng(0).permutation(len(stems))
    assert assigned_splits([stems[i] for i in order]) == [expected[i] for i in order]


def test_real_pets_are_split_over_breeds(data: Callable[[str], Path]) -> None:
    root = data("oxford_pet_700")
    names = {split: set(open_dataset(root, split).names) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in names.items()} == {"train": 484, "val": 77, "test": 132}
    assert len(set().union(*names.values())) == 484 + 77 + 132 == len(open_dataset(root))
    for found in names.values():
        breeds = Counter(name.rsplit("_", 1)[0] for name in found)
        assert all(breeds[big] >= 10 for big in ("Abyssinian", "Bengal", "american_bulldog"))


def test_real_pets_are_their_trimaps(data: Callable[[str], Path]) -> None:
    dataset = open_dataset(data("oxford_pet_700"), "val")
    for index in (0, 30, 76):
        sample, (_, path) = dataset[index], dataset.files(index)
        trimap = torch.from_numpy(np.array(Image.open(path)))
        assert torch.equal(sample.segments.void, trimap == 3)
        assert torch.equal(sample.segments.foreground, trimap == 1)
        assert [s.label for s in sample.segments] == ["cat" if sample.name[0].isupper() else "dog"]


# --- joining and choosing --------------------------------------------------------------------------------------------


class Drawn(Dataset):
    """Squares in memory, one class each; the photo tells which sample it is."""

    def __init__(self, classes: Sequence[int], labels: LabelMap, size: tuple[int, int] = (20, 30)) -> None:
        self.root, self.split, self.labels = Path("drawn"), "train", labels
        self.names = [f"{labels[k].name}{n}" for n, k in enumerate(classes)]
        self.classes, self.size = classes, size

    def __getitem__(self, index: int) -> Sample:
        ids = np.zeros(self.size, np.int32)
        ids[2:9, 3:12], ids[11:18, 3:28] = 1, 2
        segments = Segments.build(ids, [self.classes[index]] * 2, labels=self.labels)
        return Sample(np.full((*self.size, 3), 50 + index, np.uint8), segments, self.names[index])

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.root / self.names[index],)


FIRST = Drawn([1, 0, 1], LabelMap.from_names(["cat", "dog"]))
SECOND = Drawn([0, 1, 2, 1], LabelMap.from_names(["horse", "cat", "sheep"]))


def test_concat_joins_classes_by_name() -> None:
    both = Concat([FIRST, SECOND])
    assert both.labels.names == ("cat", "dog", "horse", "sheep")
    assert list(both.names) == ["dog0", "cat1", "dog2", "horse0", "cat1", "sheep2", "cat3"]
    assert len(both) == len(list(both)) == 7
    for sample in both:
        # Names of samples tell their class.
        assert sample.segments.labels == both.labels
        assert {s.label for s in sample.segments} == {sample.name[:-1]}
    assert both.files(5) == (Path("drawn/sheep2"),)
    assert both[-1].name == "cat3"
    with pytest.raises(IndexError):
        both[7]


def test_concat_of_one_table_changes_nothing() -> None:
    both = Concat([FIRST, FIRST])
    assert both.labels == FIRST.labels
    assert [s.segments.classes.tolist() for s in both] == [s.segments.classes.tolist() for s in FIRST] * 2


def test_synonyms_do_not_take_over_a_class_of_that_name() -> None:
    tables = [LabelMap((Label("cat", synonyms=("kitten",)),)), LabelMap.from_names(["kitten"])]
    both = Concat([Drawn([0], table) for table in tables])
    assert [{s.label for s in sample.segments} for sample in both] == [{"cat"}, {"kitten"}]


def test_several_folders_are_one_data_set(tmp_path: Path) -> None:
    roots = [write(tmp_path / name, {name: CROSS}) for name in ("a", "b")]
    write_table(roots[1], [{"name": "cell", "value": 1}, {"name": "nothing", "value": 0}])
    joined = open_datasets(roots)
    assert joined.labels.names == ("foreground", "cell", "nothing")
    assert [[s.label for s in sample.segments] for sample in joined] == [["foreground"], ["cell", "nothing"]]


def test_only_folders_with_the_split_are_opened(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat", {"x": CROSS})
    for split, stems in SPLITS.items():
        write(tmp_path / "split" / split, dict.fromkeys(stems, CROSS))
    found = open_where_split([flat, tmp_path / "split"], "val")
    assert found is not None
    assert list(found.names) == SPLITS["val"]


def test_subset_keeps_the_order_asked_for() -> None:
    some = Subset(SECOND, [3, 0])
    assert list(some.names) == ["cat3", "horse0"]
    assert [s.name for s in some] == ["cat3", "horse0"]
    assert some.files(1) == (Path("drawn/horse0"),)
    assert some.labels == SECOND.labels
    assert len(Subset(SECOND, [])) == 0


class Named(Dataset):
    """Samples that have nothing but names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.root, self.split, self.names, self.labels = Path("named"), "", names, SECOND.labels

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def files(self, index: int) -> tuple[Path, ...]:
        return ()


def test_what_is_held_out_depends_on_names_alone() -> None:
    names = [f"n{n}" for n in range(60)]
    train, val = hold_out(Named(names), 4)
    assert sorted([*train.names, *val.names]) == sorted(names)
    assert 8 <= len(val) <= 22
    fewer = [name for name in reversed(names) if name != "n7"]
    assert set(hold_out(Named(fewer), 4)[1].names) == set(val.names) - {"n7"}


def test_too_little_to_hold_out() -> None:
    with pytest.raises(DataError, match=r"too few samples to hold some out: .* \(there are 1\)"):
        hold_out(Named(["a"]), 5)
    with pytest.raises(UsageError, match=r"a setting is out of range: hold-out \(1 is below 2\)"):
        hold_out(Named(["a", "b"]), 1)


# --- loader ----------------------------------------------------------------------------------------------------------

SQUARES = Drawn([0, 1, 0, 1, 1, 0, 1], LabelMap.from_names(["cat", "dog"]))
CONFIG = TrainConfig(steps=6, batch_size=3, workers=0, scale=(0.5, 2.0), flip=0.5)


def batches(config: TrainConfig, first: int = 0, labels: LabelMap = SQUARES.labels) -> list[Batch]:
    return list(training_batches(SQUARES, config, labels, 64, first))


def contents(found: Sequence[Batch]) -> Iterator[tuple]:
    for batch in found:
        truth = [(s.id_map.tolist(), s.classes.tolist()) for s in batch.truth()]
        yield batch.images.tolist(), batch.letterboxes, batch.names, truth


@pytest.fixture(scope="module")
def uninterrupted() -> list[tuple]:
    return list(contents(batches(CONFIG)))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(uninterrupted: list[tuple], workers: int) -> None:
    assert list(contents(batches(replace(CONFIG, workers=workers)))) == uninterrupted


@pytest.mark.parametrize("first", [1, 4, 6])
def test_resuming_goes_on_with_the_same_batches(uninterrupted: list[tuple], first: int) -> None:
    assert list(contents(batches(CONFIG, first))) == uninterrupted[first:]


def test_another_seed_gives_other_batches(uninterrupted: list[tuple]) -> None:
    other = list(contents(batches(replace(CONFIG, seed=1))))
    assert all(a != b for a, b in zip(other, uninterrupted, strict=True))


@pytest.mark.parametrize(("count", "size"), [(7, 3), (12, 4), (5, 8), (1, 3)])
def test_every_sample_is_seen_once_an_epoch(count: int, size: int) -> None:
    config = TrainConfig(steps=60, batch_size=size)
    found = list(Batches(count, config, 64))
    assert [len(batch) for batch in found] == [size] * 60
    draws = list(itertools.chain.from_iterable(found))
    whole = len(draws) // count
    epochs = [draws[e * count : (e + 1) * count] for e in range(whole)]
    for e, epoch in enumerate(epochs):
        assert sorted(index for index, _, _ in epoch) == list(range(count))
        assert {number for _, number, _ in epoch} == {e}
    orders = {tuple(index for index, _, _ in epoch) for epoch in epochs}
    assert len(orders) > 1 or count == 1


def test_a_sample_looks_different_every_time() -> None:
    found = batches(replace(CONFIG, steps=14))
    views = {}
    for batch in found:
        for name, image in zip(batch.names, batch.images, strict=True):
            views.setdefault(name, []).append(image)
    assert {len(images) for images in views.values()} == {6}
    assert all(len({i.numpy().tobytes() for i in images}) > 1 for images in views.values())


def test_accumulated_batches_see_what_a_large_batch_sees() -> None:
    large = list(Batches(7, replace(CONFIG, batch_size=6), 64))
    small = list(Batches(7, replace(CONFIG, accumulate=2), 64))
    assert len(Batches(7, replace(CONFIG, accumulate=2), 64)) == len(small) == 12
    assert [a + b for a, b in zip(small[::2], small[1::2], strict=True)] == large
    assert list(Batches(7, replace(CONFIG, accumulate=2), 64, first=4)) == small[8:]


def test_sides_grow_with_the_steps() -> None:
    found = batches(replace(CONFIG, start_side=32, grow_until=0.5))
    assert [batch.size for batch in found] == [(32, 32), (32, 32), (64, 64), (64, 64), (64, 64), (64, 64)]


@pytest.mark.parametrize(("targets", "most"), [("semantic", 1), ("instance", 2)])
def test_targets_are_classes_or_instances(targets: Any, most: int) -> None:
    found = batches(replace(CONFIG, targets=targets, scale=(1.0, 1.0)))
    assert {len(truth) for batch in found for truth in batch.truth()} == {most}


def test_classes_are_those_of_the_model() -> None:
    labels = LabelMap.from_names(["dog", "bird", "cat"])
    for batch in batches(CONFIG, labels=labels):
        for name, truth in zip(batch.names, batch.truth(), strict=True):
            assert truth.labels == labels
            assert {s.label for s in truth} == {name[:-1]}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_stops_the_batches_with_its_error(tmp_path: Path, workers: int) -> None:
    dataset = open_dataset(write(tmp_path, {"a": CROSS, "b": CROSS * 128}))
    config = replace(CONFIG, workers=workers)
    with pytest.raises(
        DataError, match=r"^unknown value in a mask: .*b\.png \(found 128; this data set knows 0, 255\)"
    ):
        list(training_batches(dataset, config, dataset.labels, 64, 0))
