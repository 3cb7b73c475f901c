"""The data doctor against injected faults: each test spoils a copy of a clean set in one way and wants it named.

A fault must be found under its own name, and nothing else may be called a fault: a doctor who cries wolf is not asked
again. The clean sets are of real photos where these are at hand, else drawn.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from everymask.datasets import find_folders
from everymask.datasets.check import KINDS, Report, Severity, check, survey
from everymask.image import read_image, read_mask, write_jpeg, write_png
from tests import doctor_sets as sets

Array = np.ndarray[Any, np.dtype[Any]]
Sets = dict[str, Path]


def examined(root: Path) -> Report:
    return check(survey(find_folders([root])[0]), workers=0)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Sets:
    """A folder of each clean set."""
    root = tmp_path_factory.mktemp("clean")
    shared = sets.shared_folder()
    street, pets = sets.street_pairs(shared), sets.pet_pairs(shared)
    write = {"street": sets.write_street, "colors": sets.write_colors, "panoptic": sets.write_panoptic,
             "coco": sets.write_coco, "yolo": sets.write_yolo, "labelme": sets.write_labelme}  # fmt: skip
    for name, writer in write.items():
        writer(root / name, street)
    sets.write_pets(root / "pets", pets)
    return {path.name: path for path in root.iterdir()}


# --- ways to spoil a set ---------------------------------------------------------------------------------------------


def photo(root: Path, number: int = 1, split: str = "train") -> Path:
    return root / split / "images" / f"photo{number}.jpg"


def mask(root: Path, number: int = 1, split: str = "train") -> Path:
    return root / split / "masks" / f"photo{number}.png"


def masks(root: Path) -> list[Path]:
    return sorted(root.glob("*/masks/*.png"))


def repainted(path: Path, change: Callable[[Array], Array], palette: Array | None = None) -> None:
    write_png(path, change(read_mask(path)).astype(np.uint8), palette)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_orientation(path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    with Image.open(path) as picture:
        picture.save(path, exif=exif, quality=95)


def smoothed(values: Array) -> Array:
    """As if shrunk and enlarged again by a filter that averages."""
    picture = Image.fromarray(values.astype(np.uint8))
    small = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))


def through_jpeg(values: Array) -> Array:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def with_block(values: Array, value: object) -> Array:
    changed = values.copy()
    changed[20:60, 30:90] = value
    return changed


def renumbered(path: Path) -> None:
    """The same picture with another order of palette entries, as a drawing program saves it."""
    order = np.roll(np.arange(12), 3)
    repainted(path, lambda m: np.argsort(order)[m], sets.PALETTE[order])


def edited(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def panoptic(root: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the segments of the second photo."""
    path = root / "annotations" / "panoptic_train2017.json"
    edited(path, lambda data: change(data["annotations"][1]["segments_info"]))


def coco(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the second annotation."""
    edited(root / "annotations" / "instances_train.json", lambda data: change(data["annotations"][1]))


def yolo(root: Path, line: str) -> None:
    with (root / "labels" / "photo1.txt").open("a") as file:
        file.write(line + "\n")


def copied(root: Path, name: str, number: int = 1, split: str = "train") -> None:
    """A photo of `train` once more, with its mask."""
    shutil.copy(photo(root, number), root / split / "images" / f"{name}.jpg")
    shutil.copy(mask(root, number), root / split / "masks" / f"{name}.png")


# --- the faults ------------------------------------------------------------------------------------------------------


def orphan_image(root: Path) -> None:
    mask(root).unlink()


def orphan_mask(root: Path) -> None:
    photo(root).unlink()


def cropped_photo(root: Path) -> None:
    write_jpeg(photo(root), read_image(photo(root))[:-8])


def truncated_photo(root: Path) -> None:
    truncated(photo(root))


def empty_photo(root: Path) -> None:
    photo(root).write_bytes(b"")


def text_as_photo(root: Path) -> None:
    photo(root).write_text("<html>404 Not Found</html>")


def truncated_mask(root: Path) -> None:
    truncated(mask(root))


def exif_of_photo_alone(root: Path) -> None:
    with_orientation(photo(root), 6)


def exif_half_turn(root: Path) -> None:
    with_orientation(photo(root), 3)


def coloured_mask(root: Path) -> None:
    repainted(mask(root), lambda m: sets.PALETTE[m])


def grey_in_three_channels(root: Path) -> None:
    repainted(mask(root), lambda m: np.stack([m, m, m], -1))


def jpeg_mask(root: Path) -> None:
    write_jpeg(mask(root).with_suffix(".jpg"), read_mask(mask(root)))
    mask(root).unlink()


def jpeg_saved_as_png(root: Path) -> None:
    repainted(mask(root), through_jpeg)


def antialiased(root: Path) -> None:
    repainted(mask(root), smoothed)


def antialiased_by_drawing(root: Path) -> None:
    big = Image.new("L", (960, 720))
    big.paste(255, (200, 100, 700, 600), Image.new("L", (500, 500), 255).rotate(30))
    repainted(mask(root), lambda m: np.asarray(big.resize(m.shape[::-1], Image.Resampling.LANCZOS)))


def antialiased_colors(root: Path) -> None:
    repainted(mask(root), smoothed)


def resampled_one(root: Path) -> None:
    repainted(mask(root), smoothed)


def resampled_all(root: Path) -> None:
    for path in masks(root):
        repainted(path, smoothed)


def binary_one(root: Path) -> None:
    repainted(mask(root), lambda m: np.where(m == 8, 255, 0))


def binary_all_with_void_255(root: Path) -> None:
    sets.write_table(root, {**sets.TABLE, "void": [255]})
    for path in masks(root):
        repainted(path, lambda m: np.where(m == 3, 255, 0))


def one_too_high(root: Path) -> None:
    for path in masks(root):
        repainted(path, lambda m: m + 1)


def table_one_too_high(root: Path) -> None:
    rows = [{**row, "value": int(row["value"]) + 1} for row in sets.CLASSES]
    sets.write_table(root, {"classes": rows, "void": [255]})
    for path in masks(root):
        repainted(path, lambda m: np.where(m == 11, 255, m))


def inverted_all(root: Path) -> None:
    for path in masks(root):
        repainted(path, lambda m: 255 - m)


def inverted_table(root: Path) -> None:
    sets.write_table(root, {"classes": [{"name": "pet", "value": 0}], "background": [255]})


def inverted_one(root: Path) -> None:
    repainted(mask(root, 2), lambda m: 255 - m)


def unknown_value(root: Path) -> None:
    repainted(mask(root), lambda m: with_block(m, 77))


def class_missing_in_table(root: Path) -> None:
    sets.write_table(root, {**sets.TABLE, "classes": sets.CLASSES[:-1]})


def unknown_color(root: Path) -> None:
    repainted(mask(root), lambda m: with_block(m, (1, 2, 3)))


def numbers_among_colors(root: Path) -> None:
    repainted(mask(root), lambda m: m[..., 0])


def wrong_palette(root: Path) -> None:
    renumbered(mask(root))


def palettes_differ(root: Path) -> None:
    rows = [{"name": row["name"], "value": row["value"]} for row in sets.CLASSES]
    sets.write_table(root, {"classes": rows, "void": [11]})
    renumbered(mask(root))


def wrong_colors(root: Path) -> None:
    rows = [{"name": row["name"], "color": [v ^ 85 for v in map(int, row["color"])]} for row in sets.CLASSES]  # type: ignore[call-overload]
    sets.write_table(root, {"classes": rows, "void": [[1, 1, 1]]})


def mostly_void(root: Path) -> None:
    repainted(mask(root), lambda m: np.where(np.arange(m.size).reshape(m.shape) < 100, 3, 11))


def empty_mask(root: Path) -> None:
    repainted(mask(root), lambda m: m * 0)


def no_labels(root: Path) -> None:
    for path in masks(root):
        repainted(path, lambda m: m * 0)


def leaked(root: Path) -> None:
    copied(root, "other", split="val")


def leaked_under_another_suffix(root: Path) -> None:
    write_png(root / "val" / "images" / "other.png", read_image(photo(root)))
    shutil.copy(mask(root), root / "val" / "masks" / "other.png")


def leaked_resaved(root: Path) -> None:
    copied(root, "other", split="val")
    write_jpeg(root / "val" / "images" / "other.jpg", read_image(photo(root)), quality=50)


def doubled(root: Path) -> None:
    copied(root, "other")


def doubled_with_another_mask(root: Path) -> None:
    copied(root, "other")
    shutil.copy(mask(root, 3), mask(root).with_name("other.png"))


def half_transparent_mask(root: Path) -> None:
    values = read_mask(mask(root))
    alpha = ndimage.gaussian_filter(np.where(values == 8, 0, 255).astype(np.uint8), 2)
    write_png(mask(root), np.dstack([values, values, values, alpha]))


def float_mask(root: Path) -> None:
    Image.fromarray(read_mask(mask(root)).astype(np.float32)).save(mask(root).with_suffix(".tif"))
    mask(root).unlink()


def broken_table(root: Path) -> None:
    (root / "classes.json").write_text('{"classes": [')


def equal_stems(root: Path) -> None:
    write_png(photo(root).with_suffix(".png"), read_image(photo(root)))


def segment_not_listed(root: Path) -> None:
    panoptic(root, lambda rows: rows.pop())


def segment_without_pixels(root: Path) -> None:
    panoptic(root, lambda rows: rows.append({**rows[0], "id": 9999}))


def duplicate_segment(root: Path) -> None:
    panoptic(root, lambda rows: rows.append(dict(rows[0])))


def wrong_area(root: Path) -> None:
    panoptic(root, lambda rows: rows[0].update(area=rows[0]["area"] + 1))


def wrong_box(root: Path) -> None:
    panoptic(root, lambda rows: rows[0].update(bbox=[*rows[0]["bbox"][:2], 5, 5]))


def unknown_category(root: Path) -> None:
    panoptic(root, lambda rows: rows[0].update(category_id=77))


def missing_png(root: Path) -> None:
    (root / "annotations" / "panoptic_train2017" / "photo1.png").unlink()


def outside_coco(root: Path) -> None:
    coco(root, lambda row: row.update(segmentation=[[x + 150 for x in sets.POLYGON]]))


def two_points_coco(root: Path) -> None:
    coco(root, lambda row: row["segmentation"].append([10.0, 10.0, 90.0, 90.0]))


def unknown_category_coco(root: Path) -> None:
    coco(root, lambda row: row.update(category_id=4))


def outside_yolo(root: Path) -> None:
    yolo(root, "0 0.5 0.5 1.4 0.5 0.9 0.9")


def two_points_yolo(root: Path) -> None:
    yolo(root, "0 0.5 0.5 0.6 0.6 0.5 0.5")


def unknown_category_yolo(root: Path) -> None:
    yolo(root, "7 0.1 0.1 0.6 0.1 0.6 0.6")


def outside_labelme(root: Path) -> None:
    edited(root / "photo1.json", lambda data: data["shapes"][0].update(points=[[10, 10], [500, 20], [60, 90]]))


def unused_class(root: Path) -> None:
    rows = [*sets.CLASSES, {"name": "submarine", "value": 30}]
    sets.write_table(root, {**sets.TABLE, "classes": rows})


@dataclass(frozen=True)
class Fault:
    """A way to spoil a set and the finding it must lead to."""

    name: str
    of: str
    inject: Callable[[Path], None]
    count: int | None = 1


FAULTS = [
    Fault("orphan-image", "street", orphan_image),
    Fault("orphan-mask", "street", orphan_mask),
    Fault("size-mismatch", "street", cropped_photo),
    Fault("unreadable-image", "street", truncated_photo),
    Fault("unreadable-image", "street", empty_photo),
    Fault("unreadable-image", "pets", text_as_photo),
    Fault("unreadable-mask", "street", truncated_mask),
    Fault("exif-one-side", "street", exif_of_photo_alone),
    Fault("exif-unclear", "street", exif_half_turn),
    Fault("rgb-mask", "street", coloured_mask),
    Fault("rgb-mask", "pets", grey_in_three_channels),
    Fault("lossy-mask", "street", jpeg_mask),
    Fault("lossy-mask", "pets", jpeg_saved_as_png),
    Fault("antialiased-mask", "pets", antialiased),
    Fault("antialiased-mask", "pets", antialiased_by_drawing),
    Fault("antialiased-mask", "colors", antialiased_colors),
    Fault("resampled-labels", "street", resampled_one),
    Fault("resampled-labels", "street", resampled_all, 9),
    Fault("binary-mask", "street", binary_one),
    Fault("binary-mask", "street", binary_all_with_void_255, 9),
    Fault("off-by-one", "street", one_too_high, None),
    Fault("off-by-one", "street", table_one_too_high, None),
    Fault("inverted-mask", "pets", inverted_all, None),
    Fault("inverted-mask", "pets", inverted_table, None),
    Fault("mixed-polarity", "pets", inverted_one),
    Fault("unknown-value", "street", unknown_value),
    Fault("unknown-value", "street", class_missing_in_table, None),
    Fault("unknown-value", "colors", unknown_color),
    Fault("index-mask", "colors", numbers_among_colors),
    Fault("wrong-palette", "street", wrong_palette),
    Fault("palettes-differ", "street", palettes_differ, None),
    Fault("wrong-colors", "colors", wrong_colors, 9),
    Fault("mostly-void", "street", mostly_void),
    Fault("empty-mask", "pets", empty_mask),
    Fault("no-labels", "pets", no_labels, 9),
    Fault("leaked-image", "street", leaked),
    Fault("leaked-image", "street", leaked_under_another_suffix),
    Fault("leaked-near-duplicate", "street", leaked_resaved),
    Fault("duplicate-image", "street", doubled),
    Fault("contradicting-masks", "street", doubled_with_another_mask),
    Fault("transparent-mask", "street", half_transparent_mask),
    Fault("not-labels", "street", float_mask),
    Fault("layout", "street", broken_table),
    Fault("layout", "street", equal_stems),
    Fault("segment-not-listed", "panoptic", segment_not_listed),
    Fault("segment-without-pixels", "panoptic", segment_without_pixels),
    Fault("duplicate-segment", "panoptic", duplicate_segment),
    Fault("wrong-area", "panoptic", wrong_area),
    Fault("wrong-box", "panoptic", wrong_box),
    Fault("unknown-category", "panoptic", unknown_category),
    Fault("missing-file", "panoptic", missing_png),
    Fault("polygon-outside", "coco", outside_coco),
    Fault("polygon-degenerate", "coco", two_points_coco),
    Fault("unknown-category", "coco", unknown_category_coco),
    Fault("polygon-outside", "yolo", outside_yolo),
    Fault("polygon-degenerate", "yolo", two_points_yolo),
    Fault("unknown-category", "yolo", unknown_category_yolo),
    Fault("polygon-outside", "labelme", outside_labelme),
    Fault("unused-class", "street", unused_class),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}-{fault.inject.__name__}")
def test_an_injected_fault_is_named(fault: Fault, clean: Sets, tmp_path: Path) -> None:
    root = shutil.copytree(clean[fault.of], tmp_path / "data")
    fault.inject(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report = examined(root)
    found = {finding.kind.name: finding for finding in report.findings}
    assert fault.name in found, told(report)
    others = [name for name in found if name != fault.name and KINDS[name].severity == Severity.FAULT]
    assert others == [], told(report)
    if fault.count is not None:
        assert found[fault.name].count == fault.count, told(report)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def told(report: Report) -> list[tuple[str, int, str, list[str]]]:
    """What to read when a test fails."""
    return [(f.kind.name, f.count, f.summary, [f"{e.name}: {e.detail}" for e in f.examples]) for f in report.findings]


@pytest.mark.parametrize("name", ["street", "pets", "colors", "panoptic", "coco", "yolo", "labelme"])
def test_a_clean_set_has_no_fault_and_no_warning(name: str, clean: Sets) -> None:
    report = examined(clean[name])
    assert [f for f in report.findings if f.kind.severity < Severity.NOTE] == [], told(report)


def test_the_faults_are_many_and_all_kinds_of_fault_have_one() -> None:
    named = {fault.name for fault in FAULTS}
    assert len(named) >= 24
    # These need a set that no reader opens, or a reader's own complaint.
    assert {name for name, kind in KINDS.items() if kind.severity == Severity.FAULT} - named == {
        "refused",
        "mixed-masks",
    }
