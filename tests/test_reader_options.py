"""Options of readers, what commands say of data folders, class tables that differ, and packing every format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everymask.cli import main
from everymask.datasets import (
    FORMATS,
    Concat,
    Dataset,
    find_folders,
    find_format,
    open_dataset,
    open_datasets,
    open_where_split,
    reader,
    reader_options,
)
from everymask.datasets.base import with_labels
from everymask.datasets.pack import pack
from everymask.errors import DataError, UsageError
from everymask.evaluate import check_classes, describe_mapping, evaluate
from everymask.labels import Label, LabelMap
from everymask.types import Sample, Segments
from tests.conftest import REPOSITORY
from tests.folders import CROSS, ids_of, write, write_mask, write_photo, write_table
from tests.test_text_readers import LEFT, MIDDLE, box, shape, write_labelme, write_yolo

TRIMAP = np.array([[2, 3, 3, 2], [2, 3, 1, 3]], np.uint8)


def write_pets(root: Path, count: int = 3, mask: np.ndarray = TRIMAP) -> Path:
    """Of one breed: by the rule the first is test, the second val, the third train."""
    return write(root, {f"Bengal_{n}": mask for n in range(1, count + 1)}, "trimaps")


# --- options ---------------------------------------------------------------------------------------------------------


def test_every_format_has_what_a_reader_needs() -> None:
    for name in FORMATS:
        module = reader(name)
        assert module.__doc__, name
        assert all(callable(getattr(module, part)) for part in ("detect", "splits", "open_split")), name
    assert list(reader_options("pets")) == ["border"]
    assert list(reader_options("huggingface")) == ["image", "mask", "names", "classes"]
    assert reader_options("penn_fudan") == {}


def test_the_documentation_knows_every_format_and_option() -> None:
    text = (REPOSITORY / "docs" / "data.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert {name for name in FORMATS if not any(row.startswith(f"| `{name}` |") for row in rows)} == set()
    for name in FORMATS:
        for option in reader_options(name):
            assert any(f"`{option}=" in row and f"`{name}`" in row for row in rows), (name, option)


def test_the_example_in_the_documentation_is_the_file() -> None:
    text = (REPOSITORY / "docs" / "data.md").read_text("utf-8")
    assert (REPOSITORY / "examples" / "dubai-classes.json").read_text() in text


def test_options_reach_the_reader(tmp_path: Path) -> None:
    root = write_pets(tmp_path)
    assert ids_of(open_dataset(root, "val")[0]) == [[0, -1, -1, 0], [0, -1, 1, -1]]
    assert ids_of(open_dataset(root, "val", border="foreground")[0]) == [[0, 1, 1, 0], [0, 1, 1, 1]]
    found = open_where_split([root], "val", border="foreground")
    assert found is not None
    assert ids_of(found[0]) == [[0, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "unknown reader option: colour=red (format pets has: border)."),
        ({"border": "red"}, "a reader option has an unknown value: border=red (border is one of void, foreground)."),
    ],
)
def test_options_that_a_reader_does_not_have(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        open_dataset(write_pets(tmp_path), **options)
    assert str(error.value) == message


def test_of_several_folders_each_takes_the_options_that_it_has(tmp_path: Path) -> None:
    pets, cells = write_pets(tmp_path / "pets"), write(tmp_path / "cells", {"a": CROSS}, "instances")
    both = open_datasets([pets, cells], border="foreground", name="nucleus")
    assert both.labels.names == ("cat", "dog", "nucleus")
    assert ids_of(both[0]) == [[0, 1, 1, 0], [0, 1, 1, 1]]
    with pytest.raises(UsageError) as error:
        open_datasets([pets, cells], colour="red")
    assert str(error.value) == (
        "unknown reader option: colour=red (format pets has: border; format instances has: name, classes)."
    )


def test_how_a_folder_is_read(tmp_path: Path) -> None:
    root = write_pets(tmp_path)
    (found,) = find_folders([root], options={"border": "foreground"})
    assert (found.root, found.format, found.why) == (root, "pets", "it has images/ and trimaps/")
    assert (found.splits, found.options) == (("train", "val", "test"), {"border": "foreground"})
    write(root, dict.fromkeys(("Bengal_1", "Bengal_2", "Bengal_3"), CROSS))
    (told,) = find_folders([root], "folder")
    assert (told.format, told.why) == ("folder", "as told")
    with pytest.raises(DataError, match=r"^no such data folder: "):
        find_folders([root / "x"], "folder")


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str, str]]:
    """Run a command line; returns exit code, output and messages."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[Any, str, str]:
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


Command = Callable[..., tuple[Any, str, str]]


def test_packing_says_what_it_found(command: Command, tmp_path: Path) -> None:
    root, out = write_pets(tmp_path / "pets"), tmp_path / "out"
    code, said, _ = command("pack", root, "--out", out, "--size", 4, "--option", "border=foreground", "--split", "val")
    assert (code, said) == (0, f"{root}: pets (it has images/ and trimaps/), 1 images\n{out}: 1 images\n")
    assert ids_of(open_dataset(out)[0]) == [[0, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--option", "border"], "an option is key=value: --option border."),
        (["--option", "border=x"], "a reader option has an unknown value: border=x (border is one of void, foregr"),
        (["--option", "x=1"], "unknown reader option: x=1 (format pets has: border)."),
        (["--format", "x"], "unknown data format: x (there are: "),
        (["--format", "folder"], "no such split: {root} (asked for any, there are: )."),
    ],
)
@pytest.mark.parametrize("verb", [["train", "hybrid"], ["evaluate", "nonsense"], ["pack"]])
def test_options_that_make_no_sense(
    command: Command, tmp_path: Path, verb: list[str], arguments: list[str], message: str
) -> None:
    root = write_pets(tmp_path / "pets")
    out = [] if verb[0] == "evaluate" else ["--out", tmp_path / "out"]
    code, said, error = command(*verb, root, *out, *arguments)
    assert (code, said) == (1, "")
    assert error.startswith(f"everymask: {message.format(root=root)}")
    assert not (tmp_path / "out").exists()


def test_training_and_evaluation_say_what_they_found(command: Command, tmp_path: Path) -> None:
    big = np.kron(TRIMAP, np.ones((16, 16), np.uint8))
    root, run = write_pets(tmp_path / "pets", 4, big), tmp_path / "run"
    write(tmp_path / "more", {"a": (big == 1) * np.uint8(1)})
    write_table(
        tmp_path / "more", {"classes": [{"name": "kitten", "value": 1, "synonyms": ["cat"]}], "background": [0]}
    )
    settings = [t for s in ("steps=1", "batch_size=2", "image_side=64", "workers=0") for t in ("--set", s)]
    options = ["--option", "border=foreground"]
    code, said, _ = command("train", "hybrid", root, "--out", run, "--preset", "tiny", *settings, *options)
    first, second, *_ = said.splitlines()
    assert (code, first) == (0, f"{root}: pets (it has images/ and trimaps/), 2 images")
    assert second == "2 training images, 1 for validation; cat, dog"
    code, said, _ = command("evaluate", run, tmp_path / "more", "--side", 32)
    first, second, *_ = said.splitlines()
    assert (code, first) == (0, f"{tmp_path}/more: folder (it has images/ and masks/), 1 images")
    assert second == "classes by synonym: kitten as cat; not in the data: dog"


# --- class tables that differ ----------------------------------------------------------------------------------------

MODEL = LabelMap((Label("person"), Label("car", synonyms=("automobile", "auto")), Label("tree")))
DATA = LabelMap((Label("auto"), Label("tree"), Label("pedestrian", synonyms=("person",))))


def test_classes_are_found_by_name_and_by_the_synonyms_of_both_tables() -> None:
    assert check_classes(MODEL, DATA, "data") == [1, 2, 0]
    truth = Segments.build(torch.tensor([[1, 2, 3]]), [0, 1, 2], labels=DATA)
    assert [s.label for s in with_labels(truth, DATA, MODEL)] == ["car", "tree", "person"]
    assert describe_mapping(MODEL, DATA) == "classes by name: tree; by synonym: auto as car, pedestrian as person"
    assert describe_mapping(MODEL, MODEL) == ""
    reverse = LabelMap.from_names(["tree", "person"])
    assert describe_mapping(MODEL, reverse) == "classes by name: tree, person; not in the data: car"


def test_a_name_comes_before_a_synonym() -> None:
    model = LabelMap((Label("animal", synonyms=("cat",)), Label("cat")))
    assert check_classes(model, LabelMap((Label("cat", synonyms=("animal",)),)), "data") == [1]


def test_classes_that_the_model_lacks_are_listed_beside_its_own() -> None:
    with pytest.raises(DataError) as error:
        describe_mapping(MODEL, LabelMap.from_names(["tree", "sea", "sky"]))
    assert str(error.value).startswith(
        "model and data have different classes: evaluation data (the model has person, car, tree; the data also have "
        "sea, sky). Take a model that has them, train one on these data, give the model's names as synonyms in "
    )


def test_long_tables_make_one_line_all_the_same() -> None:
    line = describe_mapping(LabelMap.from_names(map(str, range(100))), LabelMap.from_names(["5", "3"]))
    assert line.startswith("classes by name: 5, 3; not in the data: 0, 1, 2, 4, 6, ")
    assert line.endswith(" and 78 more")


def test_evaluation_counts_a_class_that_goes_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.kron(np.array([[1, 2, 2]], np.uint8), np.ones((6, 4), np.uint8))
    model = SimpleNamespace(labels=LabelMap.from_names(["left", "right"]))
    found = Segments.build(mask.astype(np.int32), [0, 1], labels=model.labels)
    module = sys.modules["everymask.evaluate"]  # By its name one gets the function.
    monkeypatch.setattr(module, "answers", lambda *_, **__: [found])
    rows = [{"name": "port", "value": 1}, {"name": "starboard", "value": 2}]
    for n, (synonyms, iou) in enumerate([(("left", "right"), 1.0), (("right", "left"), 0.0)]):
        root = write(tmp_path / str(n), {"a": mask})
        write_table(root, [{**row, "synonyms": [name]} for row, name in zip(rows, synonyms, strict=True)])
        scores = evaluate(model, open_dataset(root))  # type: ignore[arg-type]
        assert {name: row["iou"] for name, row in scores["per_class"].items()} == {"left": iou, "right": iou}


# --- packing ---------------------------------------------------------------------------------------------------------


def folder_of_values(root: Path) -> Dataset:
    write_table(write(root, {"a": np.array([[0, 3, 7], [255, 3, 9]], np.uint8)}), ["a", "b", "c", "d", *"efghij"])
    return open_dataset(root)


def folder_of_colors(root: Path) -> Dataset:
    rows = [{"name": "red", "color": "#ff0000"}, {"name": "black", "color": "#000000"}]
    write_table(write(root, {"a": CROSS[..., None] * np.array([255, 0, 0], np.uint8)}), rows)
    return open_dataset(root)


def camvid(root: Path) -> Dataset:
    return open_dataset(write(root, {"0016E5_00001": CROSS * 11}, "trainannot", "train"))


def bcss(root: Path) -> Dataset:
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "gtruth_codes.tsv").write_text("label\tGT_code\noutside_roi\t0\ntumor\t1\n")
    return open_dataset(write(root, {"a": CROSS}))


def instances(root: Path) -> Dataset:
    return open_dataset(write(root, {"a": np.arange(12, dtype=np.uint16).reshape(3, 4) * 100}, "instances"))


def penn_fudan(root: Path) -> Dataset:
    write_photo(root / "PNGImages" / "a.png", (4, 3))
    write_mask(root / "PedMasks" / "a_mask.png", CROSS * 2)
    return open_dataset(root)


def frames(root: Path) -> Dataset:
    for n in range(2):
        write_photo(root / "JPEGImages" / "480p" / "cat" / f"{n:05}.jpg", (4, 3))
        write_mask(root / "Annotations" / "480p" / "cat" / f"{n:05}.png", CROSS * 3)
    return open_dataset(root)


def voc(root: Path) -> Dataset:
    write(write(root, {"a": CROSS * 15}, "SegmentationClass", "JPEGImages"), {"a": CROSS * 2}, "SegmentationObject")
    return open_dataset(root)


def yolo(root: Path) -> Dataset:
    return open_dataset(write_yolo(root, {"a": f"{LEFT}\n{MIDDLE}", "b": "", "c": MIDDLE}))


def labelme(root: Path) -> Dataset:
    rows = [shape("car", box(0, 0, 4, 4), "rectangle"), shape("man", box(3, 3, 5, 5), "rectangle")]
    return open_dataset(write_labelme(root, {"a": [*rows, shape("__ignore__", box(4, 0, 5, 1), "rectangle")]}))


def huggingface(root: Path) -> Dataset:
    package = pytest.importorskip("datasets", reason="the extra hf is not installed")
    features = package.Features({"image": package.Image(), "mask": package.Image()})
    row = {"image": Image.new("RGB", (4, 3)), "mask": Image.fromarray(CROSS * 255)}
    package.Dataset.from_list([row, row], features=features).save_to_disk(root)
    return open_dataset(root)


def pets(root: Path) -> Dataset:
    return open_dataset(write_pets(root), border="foreground")


MADE = [
    *(folder_of_values, folder_of_colors, camvid, bcss, instances, penn_fudan, frames, voc, yolo, labelme, huggingface),
    pets,
]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_packing_every_format(tmp_path: Path, make: Callable[[Path], Dataset]) -> None:
    dataset = make(tmp_path / "data")
    packed = pack(dataset, tmp_path / "packed", side=max(dataset[0].image.shape))
    assert packed.labels == dataset.labels
    assert (len(packed), list(packed.names)) == (len(dataset), list(dataset.names))
    for found, expected in zip(packed, dataset, strict=True):
        np.testing.assert_array_equal(found.image, expected.image)
        assert [s.label for s in found.segments] == [s.label for s in expected.segments]
        for part in ("id_map", "classes", "is_thing", "is_crowd"):
            assert torch.equal(getattr(found.segments, part), getattr(expected.segments, part)), part
    assert packed.manifest["sources"][0]["reader"] in FORMATS
    # Going on compares every source with what was packed.
    assert pack(dataset, tmp_path / "packed", side=max(dataset[0].image.shape)).rows == packed.rows


@pytest.mark.parametrize(
    ("count", "dtype", "layers"), [(127, "int8", 1), (128, "int16", 2), (32768, "int32", 1), (66000, "int32", 2)]
)
def test_ids_take_the_smallest_type_that_holds_them(tmp_path: Path, count: int, dtype: str, layers: int) -> None:
    side = 260
    ids = np.zeros((layers, side * side), np.int32)
    ids[0, :count] = np.arange(1, count + 1)
    ids[-1, -3:] = -1
    segments = Segments.build(ids.reshape(layers, side, side).squeeze(), [0] * count, labels=LabelMap.from_names(["a"]))
    packed = pack(One(segments), tmp_path, side=side)
    assert packed.manifest["ids"] == dtype
    assert (tmp_path / "ids.bin").stat().st_size == layers * side**2 * np.dtype(dtype).itemsize
    assert torch.equal(packed[0].segments.id_map, segments.id_map)
    assert len(packed[0].segments) == count


class One(Dataset):
    """One sample in memory."""

    def __init__(self, segments: Segments) -> None:
        assert segments.labels is not None
        self.root, self.split, self.labels, self.names = Path("one"), "", segments.labels, ["one"]
        self.segments = segments

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((*self.segments.size, 3), np.uint8), self.segments, "one")


def test_packing_several_formats_at_once(tmp_path: Path) -> None:
    parts = [make(tmp_path / make.__name__) for make in (yolo, labelme, instances, voc)]
    packed = pack(Concat(parts), tmp_path / "packed", side=5)
    assert packed.labels.names == (
        "cat",
        "dog",
        "hen",
        "car",
        "man",
        "object",
        *parts[3].labels.names[:6],
        *(name for name in parts[3].labels.names[6:] if name not in ("cat", "dog", "car")),
    )
    assert find_format(tmp_path / "packed")[0] == "pack"
    assert [row.layers for row in packed.rows] == [2, 0, 0, 2, 0, 0]
