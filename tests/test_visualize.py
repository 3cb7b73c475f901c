"""Pictures are checked pixel by pixel on maps small enough to draw by hand; saved files are read back with Pillow."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from everymask.charts import curves, nice_step
from everymask.compare import ERRORS, comparison, error_map
from everymask.drawing import INK, PAPER, contact_sheet, percent, stripes, text_width, with_legend, write_text
from everymask.errors import DataError, UsageError, WriteError
from everymask.gallery import gallery_html
from everymask.labels import Label, LabelMap, distinct_color
from everymask.maps import class_colors, class_map_image, id_map_image, segment_areas, segment_boxes, segment_colors
from everymask.result import Result
from everymask.save import segment_rows
from everymask.types import BACKGROUND, VOID, Segments
from everymask.visualize import cutout, overlay

RED, GREEN = (200, 10, 20), (30, 180, 40)
LABELS = LabelMap((Label("cat", RED), Label("dog", GREEN), Label("sky", (0, 0, 0), is_thing=False)))
MAP = [
    [0, 0, 1, 1, 1, 1, 2, 2],
    [0, 0, 1, 1, 1, 1, 2, 2],
    [0, 0, 1, 1, 1, 1, 2, 2],
    [0, 0, 0, 0, -1, -1, 2, 2],
    [0, 0, 0, 0, -1, -1, 2, 2],
]


@pytest.fixture
def segments() -> Segments:
    return Segments.build(np.array(MAP, np.int32), [0, 1], labels=LABELS, scores=torch.tensor([0.9, 0.75]))


@pytest.fixture
def photo() -> np.ndarray:
    return picture(5, 8)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def plain(photo: np.ndarray, segments: Segments, opacity: float = 0.5, outline: bool = False) -> np.ndarray:
    return pixels(overlay(photo, segments, opacity=opacity, outline=outline, legend=False))


def instances(height: int, width: int, count: int) -> Segments:
    ids = np.arange(height * width, dtype=np.int32).reshape(height, width) % (count + 1)
    return Segments.build(ids, [n % 3 for n in range(count)], labels=LABELS)


OVERLAPPING = [[[1, 1, 0, 0]], [[0, 2, 2, -1]]]


def overlapping(**more: Any) -> Segments:
    return Segments.build(np.array(OVERLAPPING, np.int32), [0, 1], labels=LABELS, **more)


# --- overlay ---------------------------------------------------------------------------------------------------------


def test_opacity_zero_is_the_photo(photo: np.ndarray, segments: Segments) -> None:
    assert np.array_equal(plain(photo, segments, 0.0), photo)


def test_opacity_one_is_the_class_colors(photo: np.ndarray, segments: Segments) -> None:
    drawn, ids = plain(photo, segments, 1.0), np.array(MAP)
    assert (drawn[ids == 1] == RED).all()
    assert (drawn[ids == 2] == GREEN).all()


def test_half_opacity_blends(photo: np.ndarray, segments: Segments) -> None:
    drawn, hit = plain(photo, segments, 0.5), np.array(MAP) == 1
    expected = photo[hit] * (127 / 255) + np.array(RED) * (128 / 255)
    assert np.abs(drawn[hit] - expected).max() <= 1


@pytest.mark.parametrize("outline", [False, True])
@pytest.mark.parametrize("opacity", [0.0, 0.5, 1.0])
def test_background_is_untouched(photo: np.ndarray, segments: Segments, opacity: float, outline: bool) -> None:
    ground = np.array(MAP) == BACKGROUND
    assert np.array_equal(plain(photo, segments, opacity, outline)[ground], photo[ground])


def test_photo_is_not_written_to(photo: np.ndarray, segments: Segments) -> None:
    before = photo.copy()
    photo.flags.writeable = False
    overlay(photo, segments)
    cutout(photo, segments)
    assert np.array_equal(photo, before)


def test_void_is_hatched_and_visible_between_the_lines() -> None:
    photo, void = picture(40, 40), Segments.build(np.full((40, 40), VOID, np.int32), [])
    drawn, lines = plain(photo, void, 1.0), stripes((40, 40), 6)
    assert np.array_equal(drawn[lines == 0], photo[lines == 0])
    assert (drawn[lines == 1] == 235).all()
    assert (drawn[lines == 2] == 70).all()
    assert {0, 1, 2} == set(lines.ravel().tolist())


def test_crowd_is_hatched_in_its_color() -> None:
    photo = picture(40, 40)
    crowd = Segments.build(np.ones((40, 40), np.int32), [1], labels=LABELS, crowd=[True])
    drawn, lines = plain(photo, crowd, 1.0), stripes((40, 40), 6)
    assert np.array_equal(drawn[lines == 0], photo[lines == 0])
    assert (drawn[lines == 1] == GREEN).all()


def test_outline_lies_inside_the_segment_and_not_along_the_rim() -> None:
    ids = np.zeros((20, 20), np.int32)
    ids[5:15, 5:] = 1
    photo = picture(20, 20)
    drawn = plain(photo, Segments.build(ids, [0], labels=LABELS), 0.0, outline=True)
    edge = np.zeros((20, 20), bool)
    edge[[5, 14], 5:] = edge[5:15, 5] = True
    assert (drawn[edge] == RED).all()
    assert np.array_equal(drawn[~edge], photo[~edge])


def test_outline_grows_with_the_image() -> None:
    ids = np.zeros((480, 640), np.int32)
    ids[:, 320:] = 1
    photo = np.zeros((480, 640, 3), np.uint8)
    drawn = plain(photo, Segments.build(ids, [0], labels=LABELS), 0.0, outline=True)
    assert drawn.any(2).sum(1).tolist() == [2] * 480


def test_layers_are_painted_in_order() -> None:
    drawn = plain(picture(1, 4), overlapping(), 1.0)
    assert drawn[0, :3].tolist() == [list(RED), list(GREEN), list(GREEN)]


def test_legend_is_below_the_photo(photo: np.ndarray, segments: Segments) -> None:
    with_strip = overlay(photo, segments)
    bare = overlay(photo, segments, legend=False)
    assert with_strip.width == 200
    assert np.array_equal(pixels(with_strip)[:5, :8], pixels(bare))
    assert (pixels(with_strip)[:5, 8:] == PAPER).all()
    strip = pixels(with_strip)[5:].reshape(-1, 3).tolist()
    assert {RED, GREEN} < {tuple(color) for color in strip}


@pytest.mark.parametrize("size", [(150, 200), (1, 300), (300, 1), (60, 2000), (2000, 60), (1, 1)])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_legend_never_covers_the_photo(size: tuple[int, int], count: int) -> None:
    photo, labels = picture(*size), LabelMap.from_names([f"a rather long class name {n}" for n in range(40)])
    ids = np.arange(size[0] * size[1], dtype=np.int32).reshape(size) % (count + 1)
    segments = Segments.build(ids, range(count), labels=labels)
    drawn = pixels(overlay(photo, segments, opacity=0, outline=False))
    assert np.array_equal(drawn[: size[0], : size[1]], photo)
    assert drawn.shape[0] >= size[0] + 12
    assert drawn.shape[1] == max(200, size[1])


def legend_texts(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr("everymask.visualize.with_legend", lambda _, rows: seen.extend(text for *_, text in rows))
    overlay(np.zeros((*segments.size, 3), np.uint8), segments)
    return seen


def test_legend_names_score_and_share(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    assert legend_texts(segments, monkeypatch) == ["cat 0.90 · 30.0%", "dog 0.75 · 25.0%", "void · 10.0%"]


def test_legend_counts_instances_and_leaves_out_the_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.array([[1, 1, 2, 0], [3, 3, 3, 3]], np.int32)
    some = Segments.build(ids, [0, 0, 1, 2], labels=LABELS, crowd=[False, False, True, False])
    assert legend_texts(some, monkeypatch) == ["dog crowd · 50.0%", "cat x2 · 37.5%"]


def test_legend_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert legend_texts(Segments.build(np.zeros((3, 3), np.int32), []), monkeypatch) == ["nothing found"]


def test_long_legend_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("everymask.drawing.write_text", lambda *args, **_: seen.append(args[2]))
    with_legend(Image.new("RGB", (200, 100)), [(RED, False, f"a long class name {n}") for n in range(30)])
    assert len(seen) == 6
    assert seen[-1] == "and 25 more"


@pytest.mark.parametrize("opacity", [-0.1, 1.1, math.nan])
def test_bad_opacity(photo: np.ndarray, segments: Segments, opacity: float) -> None:
    with pytest.raises(UsageError, match=r"cannot draw an overlay: opacity \(.* is not in 0\.\.1\)"):
        overlay(photo, segments, opacity=opacity)


@pytest.mark.parametrize("bad", [picture(5, 9), picture(5, 8)[..., :2], picture(5, 8).astype(np.float32)])
def test_photo_that_does_not_fit(segments: Segments, bad: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"photo and segments do not fit: photo \(the segments need uint8 \(5, 8, 3\)"):
        overlay(bad, segments)
    with pytest.raises(DataError, match="do not fit"):
        cutout(bad, segments)


# --- colours and measures --------------------------------------------------------------------------------------------


def test_instances_of_a_class_get_shades() -> None:
    colors = segment_colors(Segments.build(np.zeros((1, 1), np.int32), [0, 1, 0, 0, 0, 1], labels=LABELS))
    assert colors[0].tolist() == list(RED)
    assert colors[1].tolist() == list(GREEN)
    cats = colors[[0, 2, 3, 4]].astype(int)
    assert min(np.abs(one - other).max() for n, one in enumerate(cats) for other in cats[:n]) > 20


def test_class_without_color_gets_one(segments: Segments) -> None:
    assert class_colors(segments).tolist() == [list(RED), list(GREEN), list(distinct_color(2))]
    unnamed = Segments.build(np.zeros((1, 1), np.int32), [1])
    assert class_colors(unnamed).tolist() == [list(distinct_color(0)), list(distinct_color(1))]


def test_measures_agree_with_each_segment(segments: Segments) -> None:
    empty = Segments.build(np.full((2, 2), VOID, np.int32), [])
    parts = Segments.build(np.array([[[0, 1, 0, 0]], [[1, 0, 0, 1]], [[0, 0, 1, 0]]], np.int32), [0])
    gone = replace(segments, id_map=segments.id_map * 0)
    for case in (segments, overlapping(), instances(9, 11, 5), parts, gone, empty):
        assert segment_areas(case).tolist() == [segment.area for segment in case]
        assert segment_boxes(case) == [segment.box for segment in case]


def test_rows_are_plain_json(segments: Segments) -> None:
    expected = {"id": 2, "label": "dog", "class_index": 1, "is_thing": True, "is_crowd": False, "score": 0.75}
    assert segment_rows(segments)[1] == expected | {"area": 10, "share": 0.25, "box": (6, 0, 7, 4)}
    json.dumps(segment_rows(segments), allow_nan=False)


# --- cut-out ---------------------------------------------------------------------------------------------------------


def test_cutout_of_hard_masks(photo: np.ndarray, segments: Segments) -> None:
    rgba = np.asarray(cutout(photo, segments))
    hit = np.array(MAP) > 0
    assert np.array_equal(rgba[..., 3], hit * 255)
    assert np.array_equal(rgba[hit, :3], photo[hit])
    assert not rgba[~hit].any()


def test_cutout_keeps_the_matte_and_the_colors_below_it(photo: np.ndarray, segments: Segments) -> None:
    alpha = np.arange(40, dtype=np.uint8).reshape(5, 8) * 6
    rgba = np.asarray(cutout(photo, replace(segments, alpha=torch.from_numpy(alpha))))
    assert np.array_equal(rgba[..., 3], alpha)
    assert np.array_equal(rgba[alpha > 0, :3], photo[alpha > 0])
    assert rgba[0, 0].tolist() == [0, 0, 0, 0]


def test_cutout_of_some_classes(photo: np.ndarray, segments: Segments) -> None:
    for names in (["dog"], ("dog", "sky"), "dog"):
        assert np.array_equal(np.asarray(cutout(photo, segments, classes=names))[..., 3], (np.array(MAP) == 2) * 255)
    assert not np.asarray(cutout(photo, segments, classes=["sky"])).any()
    assert np.asarray(cutout(picture(1, 4), overlapping(), classes=["cat"]))[0, :, 3].tolist() == [255, 255, 0, 0]


def test_soft_edge_goes_with_the_nearest_segment() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 2, 0]], dtype=torch.int32)
    alpha = torch.tensor([[9, 99, 255, 255, 99, 9, 99, 255, 99]], dtype=torch.uint8)
    soft = Segments.build(ids, [0, 1], labels=LABELS, alpha=alpha)
    cat, dog = (np.asarray(cutout(picture(1, 9), soft, classes=[name]))[0, :, 3] for name in ("cat", "dog"))
    assert cat[:5].tolist() == [9, 99, 255, 255, 99]
    assert dog[6:].tolist() == [99, 255, 99]
    assert (cat + dog).tolist() == alpha[0].tolist()
    assert not np.asarray(cutout(picture(1, 9), soft, classes=["sky"])).any()


def test_cutout_on_a_color(photo: np.ndarray, segments: Segments) -> None:
    image = cutout(photo, segments, color=(1, 2, 3))
    hit, rgba = np.array(MAP) > 0, np.asarray(image)
    assert image.mode == "RGBA"
    assert np.array_equal(rgba[hit, :3], photo[hit])
    assert (rgba[~hit] == [1, 2, 3, 255]).all()


def test_unknown_class_lists_the_table(photo: np.ndarray, segments: Segments) -> None:
    with pytest.raises(DataError, match=r"unknown class: horse \(the table has: cat, dog, sky\)"):
        cutout(photo, segments, classes=["cat", "horse"])
    with pytest.raises(UsageError, match="there is no class table"):
        cutout(photo, replace(segments, labels=None), classes=["cat"])


# --- values of mask files --------------------------------------------------------------------------------------------


def test_id_map_image(segments: Segments) -> None:
    image, palette = id_map_image(segments)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.where(np.array(MAP) == VOID, 255, MAP))
    assert palette is not None
    assert palette[:3].tolist() == [[0, 0, 0], list(RED), list(GREEN)]


@pytest.mark.parametrize(("count", "dtype"), [(254, np.uint8), (255, np.uint16), (300, np.uint16)])
def test_id_map_image_of_many(count: int, dtype: type) -> None:
    many = instances(30, 30, count)
    many.id_map[0, 0] = VOID
    image, palette = id_map_image(many)
    assert image.dtype == dtype
    assert (palette is None) == (dtype is np.uint16)
    assert image[0, 0] == np.iinfo(dtype).max
    assert np.array_equal(image.ravel()[1:], many.id_map.numpy().ravel()[1:])


def test_too_many_segments() -> None:
    with pytest.raises(DataError, match=r"65535 besides void, the limit is 65534"):
        id_map_image(Segments.build(np.zeros((1, 1), np.int32), [0] * 65535))


def test_overlapping_layers_do_not_fit_one_image() -> None:
    with pytest.raises(DataError, match=r"overlapping segments .*2 layers.*Write one image a layer"):
        id_map_image(overlapping())
    apart = Segments.build(np.array([[[1, 0, 0]], [[0, 2, -1]]], np.int32), [0, 1])
    assert id_map_image(apart)[0].tolist() == [[1, 2, 255]]


def test_class_map_image_tells_void_from_background(segments: Segments) -> None:
    image, palette = class_map_image(segments)
    assert np.array_equal(image, np.array([3, 0, 1, 255])[np.array(MAP)])
    assert palette is not None
    assert palette[:2].tolist() == [list(RED), list(GREEN)]


@pytest.mark.parametrize(("count", "dtype"), [(254, np.uint8), (255, np.uint16)])
def test_class_map_image_of_many_classes(count: int, dtype: type) -> None:
    labels = LabelMap.from_names(map(str, range(count)))
    image, _ = class_map_image(Segments.build(np.array([[1, 0, -1]], np.int32), [count - 1], labels=labels))
    assert image.dtype == dtype
    assert image[0].tolist() == [count - 1, count, np.iinfo(dtype).max]


# --- saved results ---------------------------------------------------------------------------------------------------


def raw(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_saved_files_read_back(photo: np.ndarray, segments: Segments, tmp_path: Path) -> None:
    files = Result(photo, segments, "a cat", {"model": 0.25, "read": math.nan}).save(tmp_path / "new" / "folder")
    ends = ["_overlay.jpg", "_cutout.png", "_ids.png", "_classes.png", "_mask.png", ".json"]
    assert [file.name for file in files] == [f"a cat{end}" for end in ends]
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())
    shown, cut, ids, classes, mask, table = files
    assert raw(shown).shape == pixels(overlay(photo, segments)).shape
    assert np.array_equal(raw(cut), np.asarray(cutout(photo, segments)))
    assert np.array_equal(raw(ids), np.where(np.array(MAP) == VOID, 255, MAP))
    assert np.array_equal(raw(mask), (np.array(MAP) > 0) * 255)
    text = json.loads(table.read_text("utf-8"))
    assert (text["name"], text["width"], text["height"], text["void_area"]) == ("a cat", 8, 5, 4)
    assert text["seconds"] == {"model": 0.25, "read": None}
    assert [row["name"] for row in text["classes"]] == ["cat", "dog", "sky"]
    assert [row["area"] for row in text["segments"]] == [12, 10]
    for file in (ids, classes, mask):
        values = text["files"][file.name]["values"]
        assert {str(value) for value in np.unique(raw(file))} <= set(values)
    meaning = np.vectorize(lambda value: text["files"][classes.name]["values"][str(value)])(raw(classes))
    assert np.array_equal(meaning, np.array(["background", "cat", "dog", "void"])[np.array(MAP)])


def test_palette_of_saved_files_shows_the_classes(photo: np.ndarray, segments: Segments, tmp_path: Path) -> None:
    Result(photo, segments).save(tmp_path)
    for name in ("ids", "classes"):
        with Image.open(tmp_path / f"image_{name}.png") as image:
            assert image.mode == "P"
            assert (pixels(image)[np.array(MAP) == 1] == RED).all()


def test_many_segments_are_saved_in_16_bits(tmp_path: Path) -> None:
    many = instances(20, 20, 300)
    Result(picture(20, 20), many, "many").save(tmp_path)
    assert np.array_equal(raw(tmp_path / "many_ids.png"), many.id_map.numpy())
    values = json.loads((tmp_path / "many.json").read_text("utf-8"))["files"]["many_ids.png"]["values"]
    assert (values["0"], values["300"], values["65535"], len(values)) == ("background", "sky", "void", 302)


def test_overlapping_layers_are_saved_one_by_one(tmp_path: Path) -> None:
    files = Result(picture(1, 4), overlapping(), "x").save(tmp_path)
    assert {"x_ids_1.png", "x_ids_2.png"} < {file.name for file in files}
    assert raw(tmp_path / "x_ids_1.png").tolist() == [[1, 1, 0, 0]]
    assert raw(tmp_path / "x_ids_2.png").tolist() == [[0, 2, 2, 255]]


def test_nothing_found_is_saved_too(tmp_path: Path) -> None:
    nothing = Segments.build(np.zeros((1, 30), np.int32), [])
    Result(picture(1, 30), nothing, "none").save(tmp_path)
    assert not raw(tmp_path / "none_cutout.png").any()
    assert json.loads((tmp_path / "none.json").read_text("utf-8"))["segments"] == []


@pytest.mark.parametrize("name", ["../../up", "/etc/x", "c:\\x", "a\0b", "a\nb", "..", "caf\udce9", "", "猫"])
def test_name_never_leads_out_of_the_folder(segments: Segments, photo: np.ndarray, name: str, tmp_path: Path) -> None:
    files = Result(photo, segments, name).save(tmp_path / "out")
    assert {file.parent for file in files} == {tmp_path / "out"}
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    assert json.loads(files[-1].read_text("utf-8"))["name"] == name


def test_folder_that_cannot_be_written(photo: np.ndarray, segments: Segments, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="file"):
        Result(photo, segments).save(tmp_path / "file")


# --- comparison ------------------------------------------------------------------------------------------------------


def test_error_map_colors() -> None:
    truth = Segments.build(np.array([[1, 1, 1, 0, 0, -1, 1]], np.int32), [0], labels=LABELS)
    found = Segments.build(np.array([[1, 0, 2, 2, 0, 1, -1]], np.int32), [0, 1], labels=LABELS)
    photo = np.full((1, 7, 3), 100, np.uint8)
    drawn = pixels(error_map(photo, truth, found, legend=False))[0].astype(int)
    correct, missed, alarm, wrong = (np.array(label.color) * 0.7 + 66 * 0.3 for label in ERRORS)
    for place, color in ((0, correct), (1, missed), (2, wrong), (3, alarm), (6, missed)):
        assert np.abs(drawn[place] - color).max() <= 1.5
    assert drawn[4].tolist() == [66, 66, 66]


def test_error_map_of_different_tables(photo: np.ndarray, segments: Segments) -> None:
    other = replace(segments, labels=LabelMap.from_names(["a", "b"]))
    with pytest.raises(DataError, match=r"truth has cat, dog, sky; the prediction has a, b"):
        error_map(photo, segments, other)


def test_comparison_has_four_columns_a_row(photo: np.ndarray, segments: Segments) -> None:
    one = comparison([("x", photo, segments, segments)], cell=200)
    two = comparison([("x", photo, segments, segments), ("y", picture(1, 4), overlapping(), overlapping())], cell=200)
    assert one.width == two.width >= 4 * 200
    assert two.height > one.height


def test_contact_sheet_shows_every_picture_whole() -> None:
    red, clear = Image.new("RGB", (30, 10), RED), Image.new("RGBA", (10, 30), (*GREEN, 0))
    clear.paste((*GREEN, 255), (0, 0, 5, 30))
    sheet = pixels(contact_sheet([red, np.full((20, 200, 3), 7, np.uint8), clear], ["a", "b" * 99, ""], 2, cell=100))
    assert (sheet == RED).all(2).sum() == 300
    assert (sheet == GREEN).all(2).sum() == 150
    assert (sheet == 7).all(2).sum() == 1000
    assert sheet.shape[1] == 2 * 100 + 3 * 6
    first = int(np.flatnonzero((sheet == RED).all(2).any(1))[0])
    assert (sheet[:first, :100] < 128).any(), "the caption stands above its picture"


@pytest.mark.parametrize(("images", "captions", "columns"), [([], [], 4), ([Image.new("L", (1, 1))], [], 4)])
def test_contact_sheet_needs_pictures(images: list[Image.Image], captions: list[str], columns: int) -> None:
    with pytest.raises(UsageError, match="one caption a picture"):
        contact_sheet(images, captions, columns)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["short", "much too long for the room there is", "Älg 猫 ж", "two\nlines", "", "W"])
@pytest.mark.parametrize("width", [3, 60])
def test_text_keeps_to_its_width(text: str, width: int) -> None:
    canvas = Image.new("RGB", (400, 30), PAPER)
    write_text(canvas, (0, 5), text, 14, width=width)
    columns = np.flatnonzero((pixels(canvas) != PAPER).any((0, 2)))
    assert columns.max(initial=0) <= width + 1


def test_text_that_fits_is_whole() -> None:
    canvas = Image.new("RGB", (200, 30), PAPER)
    write_text(canvas, (0, 5), "abc", 14, width=text_width("abc", 14))
    assert (pixels(canvas) == INK).all(2).any()


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0%"), (1e-6, "<0.1%"), (0.0006, "0.1%"), (0.254, "25.4%"), (1, "100.0%")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


# --- curves ----------------------------------------------------------------------------------------------------------

BLUE = (0, 114, 178)


def has_color(image: Image.Image, color: tuple[int, int, int], rows: slice) -> bool:
    return bool((np.abs(pixels(image)[rows].astype(int) - color).max(2) < 30).any())


CHART = slice(90, 490)


def test_curves_draw_lines_and_dots() -> None:
    assert has_color(curves({"a": [(0, 1), (5, 3)]}, "t"), BLUE, CHART)
    assert has_color(curves({"a": [(3, 0.5)]}, "t"), BLUE, CHART)
    assert curves({"a": [(0, 1), (5, 3)]}, "t", size=(400, 300)).size == (400, 300)


def test_curves_skip_what_is_not_finite() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, 1.5)]
    bad = [(0.5, math.nan), (math.inf, 1.0), (1.5, -math.inf), (math.nan, math.nan), (1.0, 1e300)]
    clean, dirty = curves({"a": points}, "t"), curves({"a": [*bad[:3], *points[:2], *bad[3:], points[2]]}, "t")
    assert np.array_equal(pixels(clean), pixels(dirty))


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(1.0, math.nan)]}])
def test_curves_without_points(series: dict[str, list[tuple[float, float]]]) -> None:
    assert not has_color(curves(series, "t"), BLUE, CHART)


@pytest.mark.parametrize(
    "points",
    [
        [(0, 5), (9, 5)],
        [(1e9, 1e9), (1e9 + 1, 1e9 + 2)],
        [(0, -1e-30), (1, 1e-30)],
        [(-1e99, 1e99), (1e99, -1e99)],
        [(0, 1e-320), (1e-320, 0)],
    ],
)
def test_curves_of_any_scale(points: list[tuple[float, float]]) -> None:
    assert has_color(curves({"a": points}, "t"), BLUE, CHART)


def test_curves_stay_in_their_frame() -> None:
    inside = pixels(curves({"a": [(0, 0.5), (10, 0.5)]}, "t", (0, 1)))
    beyond = pixels(curves({"a": [(0, 0.5), (5, 1e9), (10, 0.5)]}, "t", (0, 1)))
    assert np.array_equal(inside[:75], beyond[:75])
    assert np.array_equal(inside[-30:], beyond[-30:])


@pytest.mark.parametrize("y_range", [(1, 0), (1, 1), (0, math.inf), (math.nan, 1)])
def test_bad_range(y_range: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="y_range"):
        curves({"a": [(0, 1)]}, "t", y_range)


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0, 1, 0.2), (0, 2000, 500), (-3, 3, 1), (0, 1e-4, 2e-5), (0, 1.2, 0.2), (5, 17, 2)]
)
def test_ticks_are_round(low: float, high: float, step: float) -> None:
    assert nice_step(low, high, 6) == pytest.approx(step)


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, links and text of a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = "<script>alert('x')</script>&\""


def test_page_escapes_every_text(photo: np.ndarray, segments: Segments, tmp_path: Path) -> None:
    labels = LabelMap((Label(EVIL, RED), *LABELS.labels[1:]))
    result = Result(photo, replace(segments, labels=labels), EVIL, {EVIL: 0.5})
    text = gallery_html(EVIL, [(result, result.save(tmp_path))], EVIL)
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 5
    assert "alert('x')" not in text


def test_page_links_the_files(photo: np.ndarray, segments: Segments, tmp_path: Path) -> None:
    result = Result(photo, segments, "50% #1?", {"model": 0.0123})
    files = result.save(tmp_path)
    page = Page(gallery_html("t", [(result, files)], "n"))
    photo_data, *links = page.links
    assert photo_data.startswith("data:image/jpeg;base64,")
    assert {tmp_path / unquote(link) for link in links} == set(files)
    assert page.tags.count("img") == 3
    for part in ("cat", "0.90", "30.0%", "model 12 ms"):
        assert part in page.text


def test_page_shows_the_largest_of_many() -> None:
    many = instances(20, 20, 300)
    page = Page(gallery_html("t", [(Result(picture(20, 20), many), [])]))
    assert page.tags.count("tr") == 13
    assert "and 288 more segments" in page.text


def test_page_without_results_or_segments() -> None:
    assert "No results" in Page(gallery_html("t", [])).text
    nothing = Result(picture(2, 2), Segments.build(np.zeros((2, 2), np.int32), []), "caf\udce9")
    page = gallery_html("t", [(nothing, [Path("caf\udce9.json")])])
    assert "Nothing found" in Page(page).text
    page.encode("utf-8")
