"""The data doctor: its parts against other libraries and hand-drawn maps, its reports, resuming, and real data sets."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from scipy import ndimage

from benchmarks import check as benchmark
from everymask.cli import main
from everymask.datasets import find_folders, leave_out
from everymask.datasets.base import Subset
from everymask.datasets.check import KINDS, Report, Severity, Survey, check, survey
from everymask.datasets.check.examine import digest, examine_pair, look
from everymask.datasets.check.facts import Facts, open_facts, stamp
from everymask.datasets.check.masks import (
    Framing,
    binary_only,
    is_resampled,
    ramp_share,
    ramps,
    renumbered,
    shift_of,
)
from everymask.datasets.check.panoptic import extents
from everymask.datasets.check.polygons import polygon_sign
from everymask.datasets.check.survey import Part
from everymask.datasets.check.tally import SHOWN, Tally
from everymask.datasets.quarantine import left_out
from everymask.doctor_page import report_html
from everymask.doctor_text import print_report
from everymask.errors import DataError, EverymaskError, WriteError
from everymask.image import read_image, write_jpeg, write_png
from everymask.labels import Label, LabelMap
from tests import doctor_sets
from tests.conftest import REPOSITORY
from tests.mutate import json_mutations
from tests.scenes import scene, write_dataset

Array = np.ndarray[Any, np.dtype[Any]]

TABLE = LabelMap(
    (Label("road", (10, 20, 30), raw_pixel=1), Label("car", (200, 0, 0), raw_pixel=4)), void=(9,), background=(0,)
)


def surveyed(root: Path, format: str | None = None, **options: str) -> Survey:
    return survey(find_folders([root], format, options)[0])


def examined(root: Path, format: str | None = None, **options: str) -> Report:
    return check(surveyed(root, format, **options), workers=0)


def names(report: Report, least: Severity = Severity.NOTE) -> set[str]:
    return {finding.kind.name for finding in report.findings if finding.kind.severity <= least}


# --- arrays ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_ramps_are_values_between_two_neighbours(height: int, width: int, random: Any) -> None:
    mask = np.array([[random.randint(0, 4) for _ in range(width)] for _ in range(height)], np.uint8)
    padded = np.pad(mask.astype(int), 1, constant_values=-1)
    found = ramps(mask)
    for y in range(height):
        for x in range(width):
            lines = []
            if 0 < y < height - 1:
                lines.append((padded[y, x + 1], padded[y + 2, x + 1]))
            if 0 < x < width - 1:
                lines.append((padded[y + 1, x], padded[y + 1, x + 2]))
            assert found[y, x] == any(min(pair) < mask[y, x] < max(pair) for pair in lines)


def test_ramps_of_colours_are_those_of_any_channel() -> None:
    mask = np.zeros((1, 3, 3), np.uint8)
    mask[0, :, 1] = 3, 7, 200
    assert ramps(mask).tolist() == [[False, True, False]]


def disc(values: tuple[int, int], size: int = 120) -> Array:
    y, x = np.mgrid[:size, :size] - size / 2
    return np.where(np.hypot(y, x) < size / 3, *values).astype(np.uint8)


@pytest.mark.parametrize("filter", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX])
def test_a_filter_leaves_ramps_and_nearest_neighbour_does_not(filter: Image.Resampling) -> None:
    # Road around a car, sky above: a filter writes values between that are classes as well.
    mask = np.maximum(disc((8, 2)), 2)
    mask[:40] = np.where(mask[:40] == 8, 8, 5)
    smooth = np.asarray(Image.fromarray(mask).resize((90, 90), filter))
    sharp = np.asarray(Image.fromarray(mask).resize((90, 90), Image.Resampling.NEAREST))
    assert is_resampled(smooth, ramps(smooth))
    assert not is_resampled(sharp, ramps(sharp))
    assert ramp_share(sharp, ramps(sharp)) == 0


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_contour_that_was_drawn_is_no_resampling(width: int) -> None:
    # Ground 0, contour 1, cell 2: every step goes over the contour, as it should.
    cell = disc((1, 0)) > 0
    mask = (2 * cell).astype(np.uint8)
    mask[cell ^ ndimage.binary_erosion(cell, iterations=width)] = 1
    assert not is_resampled(mask, ramps(mask))


def test_thin_structures_are_no_resampling() -> None:
    mask = np.ones((100, 100), np.uint8)
    mask[50:] = 9
    mask[:, ::20] = 5  # Poles, one pixel wide: between below the horizon nowhere, above it nowhere.
    mask[50] = 4  # A kerb, one pixel high, all along.
    assert not is_resampled(mask, ramps(mask))


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_extents_are_those_of_scipy(height: int, width: int, random: Any) -> None:
    ids = np.array([[random.choice([0, 1, 2, 5]) for _ in range(width)] for _ in range(height)])
    values, areas, boxes = extents(ids)
    objects = ndimage.find_objects(ids + 1)
    expected = [
        (n, int((ids == n).sum()), [c.start, r.start, c.stop - c.start, r.stop - r.start])
        for n, (r, c) in ((n, objects[n]) for n in np.unique(ids).tolist())
    ]
    assert list(zip(values.tolist(), areas.tolist(), boxes.tolist(), strict=True)) == expected


def test_framing_is_of_known_pixels_at_the_border_and_in_the_middle_half() -> None:
    foreground = np.zeros((8, 8), bool)
    foreground[2:6, 2:6] = True
    known = np.ones((8, 8), bool)
    assert Framing.of(foreground, known) == Framing(0.0, 1.0)
    assert Framing.of(~foreground, known) == Framing(1.0, 0.0)
    assert Framing(1.0, 0.0).inverted
    assert not Framing(0.0, 1.0).inverted
    known[0] = False  # Of the 28 pixels of the border, 20 are left.
    foreground[1:6, 0] = True
    assert Framing.of(foreground, known) == Framing(5 / 20, 1.0)
    assert Framing.of(foreground & False, known) is None
    assert Framing.of(foreground, known & False) is None


def test_digests_are_of_pixels_and_shape() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert digest(pixels) == digest(pixels.copy())
    assert digest(pixels) == digest(np.asfortranarray(pixels))
    assert digest(pixels) != digest(pixels.reshape(4, 2, 3))
    assert digest(pixels) != digest(pixels + 1)


def test_a_look_survives_resizing_and_compression(tmp_path: Path) -> None:
    photo, _ = doctor_sets.street_pairs(doctor_sets.shared_folder())[0]
    smooth = np.asarray(Image.fromarray(photo).resize((160, 120), Image.Resampling.BICUBIC))
    write_jpeg(tmp_path / "a.jpg", photo, quality=40)
    looks = [look(photo), look(smooth), look(read_image(tmp_path / "a.jpg"))]
    assert all(one is not None for one in looks)
    assert max(bin(int(looks[0] or 0) ^ int(one or 0)).count("1") for one in looks) <= 3
    assert bin(int(looks[0] or 0) ^ int(look(photo[:, ::-1]) or 0)).count("1") > 10
    assert look(np.full((50, 50, 3), 7, np.uint8)) is None


@pytest.mark.parametrize(
    ("values", "shift"),
    [({2, 5}, 1), ({2, 5, 10}, 1), ({0, 1, 2}, 1), ({3}, -1), ({0, 3, 9}, -1), ({7}, 0), ({1, 4, 0, 9}, 0)],
)
def test_shifts(values: set[int], shift: int) -> None:
    # {1, 4, 0, 9} is the table itself: 4 is neither 3 + 1 nor 5 - 1. 0 and 9 are no classes and may stay.
    assert shift_of(values, TABLE) == shift


def test_masks_of_0_and_255() -> None:
    classes = (Label("a", raw_pixel=1), Label("b", raw_pixel=2))
    assert binary_only({0, 255}, LabelMap(classes))
    assert binary_only({255}, LabelMap(classes, void=(255,)))
    assert not binary_only({0}, LabelMap(classes))
    assert not binary_only({0, 1, 255}, LabelMap(classes, void=(255,)))
    assert not binary_only({0, 255}, LabelMap((Label("a", raw_pixel=255),)))


def test_a_palette_of_other_colours_says_nothing() -> None:
    road, car = 10 + 20 * 256 + 30 * 65536, 200
    assert renumbered({1: road, 4: car}, TABLE) == []
    assert renumbered({1: car, 4: road}, TABLE) == [(1, "car"), (4, "road")]
    assert renumbered({1: 5, 4: 6, 3: road}, TABLE) == []


SQUARE = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0]


@pytest.mark.parametrize(
    ("numbers", "kind", "detail"),
    [
        (SQUARE, None, ""),
        ([0, 0, 10, 0, 10, 10], None, ""),
        ([-0.05, 0, 10.05, 0, 10, 10], None, ""),
        ([0, 0, 12, 0, 10, 10], "polygon-outside", "x 0 to 12, y 0 to 10 in 10 x 10"),
        (SQUARE[:4], "polygon-degenerate", "4 coordinates"),
        ([*SQUARE, 3.0], "polygon-degenerate", "7 coordinates"),
        ([1, 1, 5, 5, 1, 1, 5, 5], "polygon-degenerate", "2 different points"),
        ([], "polygon-degenerate", "0 coordinates"),
    ],
)
def test_polygons(numbers: list[float], kind: str | None, detail: str) -> None:
    sign = polygon_sign(np.array(numbers, np.float64), 10, 10)
    assert (sign and (sign[0].name, sign[1])) == (kind and (kind, detail))


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_survive_their_file(tmp_path: Path) -> None:
    write_dataset(tmp_path, train=1, val=0)
    part = surveyed(tmp_path).parts[0]
    facts = part.examine(0)
    assert facts.values
    assert facts.sizes
    assert Facts.from_json(facts.to_json()) == facts
    with open_facts(tmp_path / "x" / "facts") as store:
        store.put("train/scene0", "then", facts)
    with open_facts(tmp_path / "x" / "facts") as store:
        assert store.get("train/scene0", "then") == facts
        assert store.get("train/scene0", "now") is None
        assert store.get("train/scene1", "then") is None


@pytest.mark.parametrize("content", [b"nonsense" * 100, b"SQLite format 3\0" + b"\xff" * 3000])
def test_a_damaged_file_of_facts_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "facts").write_bytes(content)
    for _ in range(2):
        with open_facts(tmp_path / "facts") as store:
            store.put("a", "then", Facts())
            assert store.get("a", "then") == Facts()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(WriteError, match=r"cannot keep the progress of a check: .*file/facts \(.+\)\. Check the folder"),
        open_facts(tmp_path / "file" / "facts"),
    ):
        pass


def test_a_stamp_changes_with_its_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    first = stamp((path,), "table")
    assert stamp((path,), "table") == first
    assert stamp((path,), "another table") != first
    path.write_text("xy")
    assert stamp((path,), "table") != first
    path.unlink()
    assert stamp((path,), "table") != first


def test_examples_do_not_depend_on_the_order_and_stay_few() -> None:
    facts = Facts(signs=[("unknown-value", "77")], holds="numbers", digest=5, look=3)
    tallies = [Tally(), Tally()]
    for tally, order in zip(tallies, (range(500), reversed(range(500))), strict=True):
        for number in order:
            tally.add(number, facts)
    one, other = (tally.hits["unknown-value"] for tally in tallies)
    assert one.examples == other.examples == [(n, "77") for n in range(SHOWN)]
    assert len(one) == len(other) == 500
    assert (tallies[0].prints.columns() == tallies[1].prints.columns()).all()


# --- reports ---------------------------------------------------------------------------------------------------------


def hand_made(root: Path) -> Path:
    """Two photos of 4 x 5 pixels with masks that one can count in one's head."""
    masks = {"a": [[1, 1, 4, 0, 9]] * 4, "b": [[0, 0, 0, 4, 4]] * 4}
    for number, (name, rows) in enumerate(masks.items()):
        write_png(root / "images" / f"{name}.png", np.random.default_rng(number).integers(0, 255, (4, 5, 3), np.uint8))
        write_png(root / "masks" / f"{name}.png", np.array(rows, np.uint8))
    classes = [{"name": label.name, "value": label.raw_pixel, "color": list(label.color)} for label in TABLE]
    classes.append({"name": "bus", "value": 5, "color": [7, 7, 7]})
    (root / "classes.json").write_text(json.dumps({"classes": classes, "void": [9], "background": [0]}))
    return root


def test_tables_count_pixels_images_and_sizes(tmp_path: Path) -> None:
    report = examined(hand_made(tmp_path))
    assert [(row.value, row.meaning, row.pixels, row.images) for row in report.values] == [
        ("0", "background", 16, 2),
        ("1", "road", 8, 1),
        ("4", "car", 12, 2),
        ("5", "bus", 0, 0),
        ("9", "void", 4, 1),
    ]
    columns = ("name", "pixels", "images", "objects", "median_area", "smallest_area")
    assert [tuple(getattr(row, column) for column in columns) for row in report.classes] == [
        ("road", 8, 1, 1, 8, 8),
        ("car", 12, 2, 2, 8, 4),
        ("bus", 0, 0, 0, 0, 0),
        ("background", 16, 2, 0, 0, 0),
        ("void", 4, 1, 0, 0, 0),
    ]  # fmt: skip
    assert sum(row.share for row in report.classes) == pytest.approx(1)
    assert names(report) == {"unused-class"}
    assert report.findings[0].summary == "1 of 3: bus."


def test_binary_masks_of_both_kinds_are_one_class(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 255)):
        write_png(tmp_path / "images" / f"{name}.png", scene(seed=value).image)
        write_png(tmp_path / "masks" / f"{name}.png", disc((value, 0), 96)[:64])
    report = examined(tmp_path)
    assert [(row.value, row.meaning) for row in report.values] == [
        ("0", "background"),
        ("1", "foreground"),
        ("255", "foreground"),
    ]
    assert names(report, Severity.WARNING) == set()


def test_palette_files_of_colours_are_counted_by_their_colours(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "a.png", scene().image)
    mask = np.zeros((64, 96), np.uint8)
    mask[20:40] = 1
    write_png(tmp_path / "masks" / "a.png", mask, [(200, 0, 0), (10, 20, 30)])
    rows = [{"name": label.name, "color": list(label.color)} for label in TABLE]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows}))
    report = examined(tmp_path)
    assert [(row.value, row.meaning, row.pixels) for row in report.values] == [
        ("#C80000", "car", 44 * 96),
        ("#0A141E", "road", 20 * 96),
    ]
    assert report.findings == []


def test_both_colour_lists_are_named(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "a.png", scene().image)
    colors = np.full((64, 96, 3), (0, 255, 0), np.uint8)
    colors[:16] = 1, 2, 3
    write_png(tmp_path / "masks" / "a.png", colors)
    rows = [{"title": label.name, "color": list(label.color)} for label in TABLE]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows}))
    (finding,) = examined(tmp_path).findings
    assert finding.kind.name == "wrong-colors"
    assert finding.summary == (
        "The masks have #00FF00 (75.0%), #010203 (25.0%).\nThe class table has #0A141E road, #C80000 car."
    )


def test_masks_of_two_kinds_without_a_table(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=3, val=0)
    path = root / "train" / "masks" / "scene0.png"
    write_png(path, np.zeros((64, 96, 3), np.uint8))
    (root / "classes.json").write_text("[]")
    report = examined(root)
    assert {"layout", "mixed-masks"} == names(report, Severity.FAULT)
    mixed = next(f for f in report.findings if f.kind.name == "mixed-masks")
    assert mixed.summary == "Of the masks, 1 hold colours, 2 hold numbers."
    assert [example.name for example in mixed.examples] == ["train/scene0"]


def test_what_a_reader_refuses_for_its_own_reasons_is_told_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    for name, numbers in (("a", 1), ("b", 0)):
        write_jpeg(tmp_path / "JPEGImages" / f"{name}.jpg", scene().image)
        write_png(tmp_path / "SegmentationClass" / f"{name}.png", np.full((64, 96), 1, np.uint8))
        write_png(tmp_path / "SegmentationObject" / f"{name}.png", np.full((64, 96), numbers, np.uint8))
    (finding,) = [f for f in examined(tmp_path).findings if f.kind.name == "refused"]
    assert [example.name for example in finding.examples] == ["b"]
    assert finding.examples[0].detail.startswith("the masks of classes and of objects disagree: ")


def test_lists_that_repeat_a_split_are_no_leak(tmp_path: Path) -> None:
    for n, name in enumerate(("a", "b")):
        write_jpeg(tmp_path / "JPEGImages" / f"{name}.jpg", scene(seed=n).image)
        write_png(tmp_path / "SegmentationClass" / f"{name}.png", np.full((64, 96), 1 + n, np.uint8))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, stems in {"train": "a", "val": "b", "trainval": "a\nb"}.items():
        (lists / f"{split}.txt").write_text(stems)
    report = examined(tmp_path)
    assert report.splits == {"train": 1, "val": 1}
    assert names(report, Severity.WARNING) == set()
    (lists / "val.txt").write_text("a\nb")
    assert names(examined(tmp_path), Severity.FAULT) == {"leaked-image"}


def test_orphans_that_the_reader_accepts_are_none(tmp_path: Path) -> None:
    for n in range(2):
        write_jpeg(tmp_path / "images" / f"{n}.jpg", scene(seed=n).image)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    (tmp_path / "data.yaml").write_text("names: [car]\n")
    assert names(examined(tmp_path), Severity.FAULT) == {"orphan-image"}
    assert names(examined(tmp_path, missing="background"), Severity.FAULT) == set()


def test_the_one_copy_to_keep_is_that_of_the_test_split(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=3, val=2)
    shutil.copytree(root / "val", root / "test")
    for part in ("images", "masks"):
        shutil.copy(root / "test" / part / "scene100.png", root / "train" / part / "x.png")
    report = examined(root)
    (finding,) = report.faults
    assert finding.kind.name == "leaked-image"
    assert sorted(report.survey.ref(number).title for number in finding.samples) == [
        "train/x",
        "val/scene100",
        "val/scene101",
    ]
    assert [example.name for example in finding.examples] == [
        "test/scene100 = val/scene100 = train/x",
        "test/scene101 = val/scene101",
    ]


def test_plain_pictures_are_near_to_nothing(tmp_path: Path) -> None:
    for split, shade in (("train", 10), ("val", 200)):
        write_png(tmp_path / split / "images" / "a.png", np.full((64, 96, 3), shade, np.uint8))
        write_png(tmp_path / split / "masks" / "a.png", disc((255, 0), 96)[:64])
    assert names(examined(tmp_path), Severity.WARNING) == set()


# --- resuming and processes ------------------------------------------------------------------------------------------


def outcome(report: Report) -> dict[str, Any]:
    return report.to_json() | {"seconds": 0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the samples that were examined, as it goes."""
    seen: list[str] = []
    examine = Part.examine

    def noting(part: Part, index: int) -> Facts:
        seen.append(f"{part.split}/{part.names[index]}")
        return examine(part, index)

    monkeypatch.setattr(Part, "examine", noting)
    return seen


def test_an_interrupted_check_goes_on_where_it_stopped(tmp_path: Path, asked: list[str]) -> None:
    root = write_dataset(tmp_path / "data", train=6, val=3)
    write_png(root / "train" / "masks" / "scene2.png", np.full((64, 96), 77, np.uint8))
    whole = outcome(check(surveyed(root), workers=0))
    del asked[:]

    def stop_at_5(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(surveyed(root), keep=tmp_path / "facts", workers=0, progress=stop_at_5)
    assert len(asked) == 5
    steps: list[int] = []
    report = check(surveyed(root), keep=tmp_path / "facts", workers=0, progress=steps.append)
    assert len(asked) == len(set(asked)) == 9
    assert (report.reused, steps) == (5, [5, 6, 7, 8, 9])
    assert outcome(report) == whole


def test_only_what_changed_is_read_again(tmp_path: Path, asked: list[str]) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=2)
    write_png(root / "train" / "masks" / "scene2.png", np.full((64, 96), 77, np.uint8))
    first = check(surveyed(root), keep=tmp_path / "facts", workers=0)
    assert names(first, Severity.FAULT) == {"unknown-value"}
    del asked[:]
    write_dataset(tmp_path / "again", train=4, val=2)
    shutil.copy(tmp_path / "again" / "train" / "masks" / "scene2.png", root / "train" / "masks" / "scene2.png")
    second = check(surveyed(root), keep=tmp_path / "facts", workers=0)
    assert asked == ["train/scene2"]
    assert second.faults == []
    del asked[:]
    table = json.loads((root / "classes.json").read_text())
    (root / "classes.json").write_text(json.dumps({**table, "void": [255, 77]}))
    check(surveyed(root), keep=tmp_path / "facts", workers=0)
    assert len(asked) == 6


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=5, val=3)
    (root / "train" / "images" / "scene1.png").write_bytes(b"")
    assert outcome(check(surveyed(root), workers=2)) == outcome(check(surveyed(root), workers=0))


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_dataset(tmp_path / "data", train=3, val=0)
    monkeypatch.setattr(Part, "examine", lambda part, index: os._exit(9))
    with pytest.raises(DataError, match=r"a process that read files died: .*data \(.*exited unexpectedly"):
        check(surveyed(root), workers=1)


# --- terminal, page, JSON --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with something of each severity, and names that HTML and UTF-8 could stumble over."""
    root = write_dataset(tmp_path_factory.mktemp("spoilt") / "data", train=6, val=3)
    train = root / "train"
    write_png(train / "masks" / "scene0.png", np.where(disc((1, 0), 96)[:64] > 0, 77, 1).astype(np.uint8))
    (train / "images" / "scene1.png").write_bytes(b"")
    (train / "masks" / "scene2.png").unlink()
    write_png(train / "masks" / "scene3.png", np.zeros((64, 96), np.uint8))
    for part in ("images", "masks"):
        (train / part / "scene4.png").rename(train / part / "<b>&ä\udcff.png")
    write_png(train / "masks" / "<b>&ä\udcff.png", np.full((64, 96), 5, np.uint8))
    return root


def test_the_text_fits_80_columns_and_ends_with_the_verdict(spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(examined(spoilt), Console(width=80))
    text = capsys.readouterr().out.encode("utf-8", "replace").decode()
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines[1:]) <= 80  # The first is the folder's path.
    assert lines[1].startswith("8 samples (train 5, val 3) in ")
    assert lines[-1] == "3 faults, 1 warning, no notes. Mend the faults first."
    assert "FAULT  unknown-value  pixel values that the class table does not know: 2" in lines
    assert "  - train/scene0: unknown: 77" in lines
    assert "  - train/scene1: the file is empty (0 bytes)" in lines
    assert "  - scene2.png" in lines
    assert re.search(r"^77 +unknown +\d[\d,]* +1$", text, re.M)


class Balanced(HTMLParser):
    """Complains of tags that are not closed in their order; collects addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(spoilt: Path) -> None:
    page = report_html(examined(spoilt))
    parsed = Balanced(page)
    assert len(parsed.addresses) >= 6
    assert all(address.startswith("data:image/") for address in parsed.addresses)
    assert "<script" not in page
    assert "<b>&ä" not in page
    assert "&lt;b&gt;&amp;ä" in page
    page.encode()
    for name in ("unknown-value", "orphan-image", "unreadable-image", "empty-mask"):
        assert f'<code class="quiet">{name}</code>' in page


def test_the_page_shows_photo_mask_and_what_is_strange(spoilt: Path) -> None:
    page = report_html(examined(spoilt))
    card = page[page.index("<p>train/scene0") :]
    images = re.findall(r'src="data:image/\w+;base64,([^"]+)" alt="([^"]+)"', card)
    assert [alt for _, alt in images[:3]] == ["scene0.png", "scene0.png", "enlarged"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[1][0]))).convert("RGB"))
    assert mask.shape == (64, 96, 3)
    assert mask[32, 48].tolist() == [255, 0, 220]
    enlarged = Image.open(io.BytesIO(base64.b64decode(images[2][0])))
    assert enlarged.size == (288, 288)


Command = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def everymask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, str, str]]:

    def command(*arguments: object) -> tuple[Any, str, str]:
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        found = capsys.readouterr()
        return code, found.out, found.err

    monkeypatch.setenv("COLUMNS", "80")
    return command


def test_the_verb_writes_everything_and_exits_with_1(spoilt: Path, tmp_path: Path, everymask: Command) -> None:
    before = {path: path.read_bytes() for path in spoilt.rglob("*") if path.is_file()}
    code, out, _ = everymask("check", spoilt, "--out", tmp_path / "out", "--json", tmp_path / "x.json", "--workers", 0)
    assert code == 1
    assert out.rstrip().endswith("Mend the faults first.")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.facts", "index.html", "report.json"]
    data = json.loads((tmp_path / "x.json").read_text())
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == data
    assert (data["faults"], data["warnings"], data["notes"]) == (3, 1, 0)
    assert data["samples"] == {"train": 5, "val": 3}
    first = data["findings"][0]
    assert (first["name"], first["severity"], first["count"]) == ("orphan-image", "fault", 1)
    assert first["examples"] == [{"name": "scene2.png", "files": ["train/images/scene2.png"], "detail": ""}]
    assert {path: path.read_bytes() for path in spoilt.rglob("*") if path.is_file()} == before
    _, again, _ = everymask("check", spoilt, "--out", tmp_path / "out")
    assert "8 of them known from before" in again


def test_a_clean_set_exits_with_0(tmp_path: Path, everymask: Command) -> None:
    root = write_dataset(tmp_path / "data", train=2, val=1)
    code, out, _ = everymask("check", root, "--workers", 0)
    assert code == 0
    assert out.rstrip().endswith("No faults, no warnings, no notes.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_nothing_is_written_into_the_data_folder(tmp_path: Path, everymask: Command) -> None:
    root = write_dataset(tmp_path / "data", train=2, val=0)
    before = sorted(root.rglob("*"))
    for option in ("--json", "--html", "--out", "--quarantine"):
        code, _, err = everymask("check", root, option, root / "x")
        assert code == 1
        assert "the report would lie in the data folder: " in " ".join(err.split())
        assert "Give a place outside of it." in " ".join(err.split())
    assert sorted(root.rglob("*")) == before


def test_an_unknown_layout_is_one_clear_message(tmp_path: Path, everymask: Command) -> None:
    code, _, err = everymask("check", tmp_path)
    assert code == 1
    assert err.startswith("everymask: the layout of a data folder is not known: ")


# --- quarantine ------------------------------------------------------------------------------------------------------


def test_training_leaves_out_what_is_in_quarantine(
    spoilt: Path, tmp_path: Path, everymask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    everymask("check", spoilt, "--quarantine", tmp_path / "q.json", "--workers", 0)
    folders = find_folders([spoilt])
    with pytest.raises(DataError, match="files without a partner"):
        folders[0].open("train")
    (folder,) = leave_out(folders, tmp_path / "q.json")
    train = folder.open("train")
    assert list(train.names) == ["scene3", "scene5"]
    assert (left_out(train), left_out(folder.open("val")), left_out(None)) == (3, 0, 0)
    assert len(list(train)) == 2

    trained: list[str] = []
    module = importlib.import_module("everymask.train")  # As an attribute, it would be the function.
    monkeypatch.setattr(module, "train", lambda model, data, *_, **__: trained.extend(data.names) or {})
    command = ("train", "hybrid", spoilt, "--out", tmp_path / "run", "--preset", "tiny", "--quarantine")
    code, out, err = everymask(*command, tmp_path / "q.json")
    assert code == 0, err
    assert "3 training images and 0 for validation left out" in " ".join(out.split())
    assert trained == ["scene3", "scene5"]


def test_names_that_two_splits_share_are_told_apart(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=2, val=2)
    for part in ("images", "masks"):
        for n in range(2):
            (root / "val" / part / f"scene{100 + n}.png").rename(root / "val" / part / f"scene{n}.png")
    (root / "val" / "images" / "scene0.png").write_bytes(b"")
    quarantine = examined(root).quarantine()
    assert dict(quarantine.samples) == {("scene0", "val/images/scene0.png"): ["unreadable-image"]}
    (folder,) = find_folders([root])
    assert quarantine.without(folder.open("train")).names == ["scene0", "scene1"]
    assert quarantine.without(folder.open("val")).names == ["scene1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read a file as JSON: "),
        ("[]", "not a quarantine list: .*q.json .*Write it by: everymask check DATA --quarantine F."),
        ('{"folders": [{"data": "/elsewhere", "samples": [], "orphans": []}]}',
         r"a quarantine list of other data: .*q.json \(it is of /elsewhere\). Check this data folder first."),
    ],
)  # fmt: skip
def test_a_bad_quarantine_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = write_dataset(tmp_path / "data", train=1, val=0)
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(EverymaskError, match=message):
        leave_out(find_folders([root]), tmp_path / "q.json")


def test_faults_of_the_whole_set_put_nothing_into_quarantine(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=3, val=0)
    (root / "classes.json").write_text("{")
    report = examined(root)
    assert names(report, Severity.FAULT) == {"layout"}
    assert report.quarantine().samples == {}


# --- odd files -------------------------------------------------------------------------------------------------------


def test_a_photo_that_claims_to_be_huge_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=2, val=0)
    path = root / "train" / "images" / "scene0.png"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 90_000, 90_000)
    path.write_bytes(data)
    (finding,) = examined(root).findings
    assert finding.kind.name == "unreadable-image"


def test_masks_of_one_row_or_pixel_are_looked_at(tmp_path: Path) -> None:
    for shape in ((1, 1), (1, 7), (7, 1), (2, 2)):
        photo, mask = tmp_path / f"{shape}.png", tmp_path / f"{shape}m.png"
        write_png(photo, np.zeros((*shape, 3), np.uint8))
        write_png(mask, np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape))
        facts = examine_pair(photo, mask, None)
        assert facts.signs == []
        assert facts.size == shape


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (doctor_sets.write_panoptic, "annotations/panoptic_train2017.json"),
        (doctor_sets.write_coco, "annotations/instances_train.json"),
        (doctor_sets.write_labelme, "photo0.json"),
    ],
)
def test_no_annotation_file_makes_the_doctor_stumble(write: Any, name: str, tmp_path: Path) -> None:
    write(tmp_path, doctor_sets.street_pairs(None))
    path = tmp_path / name
    data = json.loads(path.read_text())
    for key in ("images", "annotations"):
        del data.get(key, [])[2:]
    (folder,) = find_folders([tmp_path])
    faults = 0
    for content in json_mutations(data, seed=3, count=20):
        path.write_bytes(content)
        report = check(survey(folder), workers=0)
        faults += bool(report.faults)
        json.dumps(report.to_json())
    assert faults > 10


# --- real data -------------------------------------------------------------------------------------------------------

REAL = {
    "camvid": set(),
    "coco_panoptic_mini": set(),
    "oxford_pet_700": set(),
    "dsb2018_he": set(),
    "feral_cat": set(),
    # Its classes.json lists six colours, five of which are in no mask.
    "dubai_aerial": {"wrong-colors"},
}


def thinned(found: Survey, most: int) -> Survey:
    """At most so many samples of each split, spread over it."""
    for part in found.parts:
        keep = range(0, len(part), max(1, len(part) // most))
        part.names = [part.names[n] for n in keep]
        if part.pairs is not None:
            part.pairs = [part.pairs[n] for n in keep]
        elif part.dataset:
            part.dataset = Subset(part.dataset, keep)
    return Survey(found.folder, found.parts)


@pytest.mark.parametrize(("name", "faults"), REAL.items(), ids=list(REAL))
def test_real_data_have_no_fault_but_real_ones(data: Callable[[str], Path], name: str, faults: set[str]) -> None:
    report = check(thinned(surveyed(data(name)), 3 if name == "dubai_aerial" else 8), workers=0)
    assert names(report, Severity.FAULT) == faults


@pytest.mark.slow
@pytest.mark.parametrize(("name", "faults"), REAL.items(), ids=list(REAL))
def test_whole_real_data_have_no_fault_but_real_ones(data: Callable[[str], Path], name: str, faults: set[str]) -> None:
    report = check(surveyed(data(name)))
    assert names(report, Severity.FAULT) == faults
    assert sum(report.splits.values()) == sum(len(part) for part in report.survey.parts) > 50


@pytest.mark.slow
def test_the_doctor_names_both_colour_lists_of_the_aerial_images(data: Callable[[str], Path]) -> None:
    (finding,) = check(surveyed(data("dubai_aerial"))).faults
    assert finding.count == 63
    for color in ("#8429F6", "#E2A929", "#3C1098", "#FEDD3A", "#6EC1E4", "#9B9B9B"):
        assert color in finding.summary.splitlines()[0]
    for text in ("#50E3C2 Water", "#F5A623 Land (unpaved area)", "#DE597F Road", "#D0021B Building"):
        assert text in finding.summary.splitlines()[1]


def test_every_kind_has_its_words_and_its_line_in_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "check.md").read_text()
    for name, kind in KINDS.items():
        assert re.fullmatch("[a-z]+(-[a-z]+)*", name)
        assert kind.hurts.endswith(".")
        assert kind.mend.endswith(".")
        assert f"| `{name}` | {kind.severity.name.lower()} | {kind.title} | {kind.mend} |" in page
    assert len(re.findall(r"^\| `", page, re.M)) == len(KINDS)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    for folder in ("train", "val", "test"):
        write_jpeg(tmp_path / "camvid" / folder / "a.jpg", scene().image)
        write_png(tmp_path / "camvid" / f"{folder}annot" / "a.png", np.full((64, 96), 3, np.uint8))
    run = benchmark._run(benchmark.linked(tmp_path / "camvid", tmp_path / "linked", 4), workers=0)
    assert run.pairs == 12
    assert run.memory > 0
    assert benchmark.rows(tmp_path / "nowhere") == []
