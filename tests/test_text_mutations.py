"""Broken YOLO, LabelMe and image files: a legal reading with nothing lost, or an error of ours that names the file.

Any other exception, any warning and any hang fails; so does an object that is neither read nor refused. Some of each
kind are always tried, all of them in the slow run.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from everymask.datasets import open_dataset
from everymask.errors import EverymaskError
from everymask.image import read_image, read_mask, read_palette, read_size
from everymask.types import Sample
from tests.conftest import REPOSITORY
from tests.folders import CROSS, write, write_mask, write_photo, write_table
from tests.mutate import json_mutations, mutations, outcome
from tests.test_text_readers import box, shape, small_mask, write_labelme, write_yolo


def some_and_all(some: int, all: int) -> pytest.MarkDecorator:
    """Run a test with the first `some` mutations, in the slow run with all of them."""
    return pytest.mark.parametrize("count", [some, pytest.param(all, marks=pytest.mark.slow)])


def read_or_refuse(read: Callable[[Path], Any], path: Path) -> Any:
    """What `read` gives, or None if it refused the file by name."""
    try:
        return read(path)
    except EverymaskError as error:
        refusal = str(error)
    assert str(path) in refusal
    return None


# --- text ------------------------------------------------------------------------------------------------------------

OUTLINES = """0 0.1 0.1 0.5 0.1 0.5 0.4 0.1 0.4
2 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75

1 0.0 0.5 0.125 0.5 1 1.0 0.0 1.0
"""


@some_and_all(150, 1000)
def test_broken_label_files(tmp_path: Path, count: int) -> None:
    root = write_yolo(tmp_path, {"a": OUTLINES})
    path, read = root / "labels" / "a.txt", 0
    dataset = open_dataset(root)
    for broken in mutations(OUTLINES.encode(), 1, count):
        path.write_bytes(broken)
        samples = outcome(lambda: dataset, path)
        if samples is not None:
            read += 1
            lines = [line for line in broken.decode("utf-8-sig").replace("\r", "\n").split("\n") if line.strip()]
            numbers = [dataset.labels[k].source_id for k in samples[0].segments.classes.tolist()]
            assert numbers == [int(line.split()[0]) for line in lines]
    assert 0 < read < count


@some_and_all(100, 600)
def test_broken_class_names(tmp_path: Path, count: int) -> None:
    root = write_yolo(tmp_path, {"a": "0 0 0 1 0 1 1"})
    path = root / "data.yaml"
    text = b"nc: 2\nnames:\n  0: cat\n  1: 'dog'\npath: ../x # here\n"
    for broken in mutations(text, 2, count):
        path.write_bytes(broken)
        labels = read_or_refuse(lambda _: open_dataset(root).labels, path)
        assert labels is None or all(label.source_id is not None and label.name.strip() for label in labels)


SHAPES = [
    shape("car", [[0.5, 0], [9, 1], [11.5, 7], [3, 6]]),
    shape("man", box(3, 3, 8, 7), "rectangle", group_id=1),
    shape("man", [[6, 4], [8, 4]], "circle", group_id=1),
    shape("car", box(1, 2, 3, 3), "mask", mask=small_mask([[1, 0, 1], [1, 1, 0]])),
    shape("__ignore__", box(10, 6, 12, 8), "rectangle"),
    shape("_background_", [[0, 0], [2, 0], [0, 2]]),
]


def check_nothing_lost(samples: list[Sample], broken: bytes) -> None:
    rows = [row for row in json.loads(broken)["shapes"] if row["label"] not in ("__ignore__", "_background_")]
    alone = sum(row.get("group_id") is None for row in rows)
    groups = {(row["label"], row["group_id"]) for row in rows if row.get("group_id") is not None}
    assert len(samples[0].segments) == alone + len(groups)


@pytest.mark.parametrize("inside", [False, True], ids=["image beside", "image inside"])
@some_and_all(100, 500)
def test_broken_files_of_shapes(tmp_path: Path, count: int, inside: bool) -> None:
    root = write_labelme(tmp_path, {"a": SHAPES}, (12, 8))
    (root / "labels.txt").write_text("__ignore__\n_background_\ncar\nman\n")
    path, read = root / "a.json", 0
    sound = json.loads(path.read_text())
    if inside:
        sound["imageData"] = base64.b64encode((root / "a.jpg").read_bytes()).decode()
        (root / "a.jpg").unlink()
    half = count // 2
    for broken in [*json_mutations(sound, 3, half), *mutations(json.dumps(sound).encode(), 4, count - half)]:
        path.write_bytes(broken)
        samples = outcome(lambda: open_dataset(root, format="labelme"), path)
        if samples is not None:
            read += 1
            check_nothing_lost(samples, broken)
    assert 0 < read < count


# --- images ----------------------------------------------------------------------------------------------------------

PHOTO = REPOSITORY / "src" / "everymask" / "samples" / "photos" / "Ragdoll_100.jpg"
TRIMAPS = REPOSITORY / "src" / "everymask" / "samples" / "overfit" / "trimaps"
SIZE = (40, 30)


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def photos() -> dict[str, bytes]:
    """A real photo, small, in every way to store one."""
    with Image.open(PHOTO) as picture:
        small = picture.convert("RGB").resize(SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "a.png": encoded(small, "PNG"),
        "b.png": encoded(small.quantize(16), "PNG"),
        "c.png": encoded(small.convert("RGBA"), "PNG", exif=exif),
        "a.jpg": encoded(small, "JPEG", exif=exif),
        "b.jpg": encoded(small, "JPEG", progressive=True, quality=60),
        "c.jpg": encoded(small.convert("CMYK"), "JPEG"),
        "a.tif": encoded(small, "TIFF"),
        "b.tif": encoded(small, "TIFF", compression="tiff_lzw"),
        "c.tif": encoded(small, "TIFF", compression="jpeg"),
        "a.webp": encoded(small, "WEBP"),
        "b.webp": encoded(small, "WEBP", lossless=True),
        "a.bmp": encoded(small, "BMP"),
        "a.gif": encoded(small, "GIF"),
        "a.ppm": encoded(small, "PPM"),
    }


def masks() -> dict[str, bytes]:
    """A real mask, small, in every way to store one."""
    with Image.open(next(TRIMAPS.iterdir())) as picture:
        small = picture.resize(SIZE, Image.Resampling.NEAREST)
    assert small.mode == "L"
    values = np.array(small)
    palette = small.copy()
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return {
        "a.png": encoded(small, "PNG"),
        "b.png": encoded(palette, "PNG", bits=2),
        "c.png": encoded(Image.fromarray(values.astype(np.uint16) * 300), "PNG"),
        "d.png": encoded(Image.fromarray(values == 1), "PNG"),
        "e.png": encoded(palette.convert("RGB"), "PNG"),
        "a.tif": encoded(small, "TIFF", compression="tiff_adobe_deflate"),
        "b.tif": encoded(Image.fromarray(values.astype(np.int32) * 70000), "TIFF"),
        "c.tif": encoded(palette, "TIFF", compression="packbits"),
        "a.webp": encoded(palette.convert("RGB"), "WEBP", lossless=True),
        "a.bmp": encoded(palette, "BMP"),
        "a.gif": encoded(palette, "GIF"),
        "a.pgm": encoded(small, "PPM"),
    }


def broken_images(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Half of them broken anywhere, half in the first bytes: their sizes, depths and tables."""
    anywhere = mutations(data, seed, count - count // 2)
    return iter([*anywhere, *islice(headers(data, random.Random(seed)), count // 2)])


TELLING = (0, 1, 2, 4, 16, 127, 255, None)
"""Bytes that sizes, depths and tags are made of; None for any."""


def headers(data: bytes, chance: random.Random) -> Iterator[bytes]:
    while True:
        broken = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(8, min(len(data), 200))] = chance.choice(
                (0, 1, 2, 4, 16, 127, 255, chance.randrange(256))
            )
        if data.startswith(b"\x89PNG"):  # With the right checksum, so that somebody looks at what it says.
            broken[29:33] = struct.pack(">I", zlib.crc32(broken[12:29]))
        if broken != data:
            yield bytes(broken)


@some_and_all(4, 90)
@pytest.mark.parametrize("name", photos())
def test_broken_photos(tmp_path: Path, name: str, count: int) -> None:
    path = tmp_path / name
    for broken in broken_images(photos()[name], 5, count):
        path.write_bytes(broken)
        pixels, size = read_or_refuse(read_image, path), read_or_refuse(read_size, path)
        if pixels is not None:
            assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
            assert pixels.shape[:2] == size


@some_and_all(4, 90)
@pytest.mark.parametrize("name", masks())
def test_broken_masks(tmp_path: Path, name: str, count: int) -> None:
    path = tmp_path / name
    for broken in broken_images(masks()[name], 6, count):
        path.write_bytes(broken)
        values = read_or_refuse(read_mask, path)
        read_or_refuse(read_palette, path)
        if values is not None:
            assert values.dtype in (np.uint8, np.uint16, np.int32)
            assert values.ndim == 2 or (values.shape[2:] == (3,) and values.dtype == np.uint8)


@some_and_all(4, 50)
@pytest.mark.parametrize("side", ["images", "masks"])
@pytest.mark.parametrize("by_color", [False, True], ids=["values", "colours"])
def test_broken_files_of_a_folder(tmp_path: Path, side: str, by_color: bool, count: int) -> None:
    sources = photos() if side == "images" else masks()
    rows: list[dict[str, Any]] = [{"name": f"class{k}", "value": k} for k in range(256)]
    if by_color:
        rows = [{"name": "a", "color": "#FF0000"}, {"name": "b", "color": "#00FF00"}, {"name": "c", "color": "#0000FF"}]
    write_table(tmp_path, {"classes": rows, "void": []})
    write_photo(tmp_path / "images" / "x.png", SIZE)
    write_mask(tmp_path / "masks" / "x.png", np.zeros(SIZE[::-1], np.uint8), [255, 0, 0])
    (tmp_path / side / "x.png").unlink()
    for name, data in sources.items():
        path = tmp_path / side / f"x.{name.partition('.')[2]}"
        for broken in broken_images(data, 7, count):
            path.write_bytes(broken)
            outcome(lambda: open_dataset(tmp_path, format="folder"), path)
        path.unlink()


@some_and_all(20, 200)
def test_broken_instance_masks(tmp_path: Path, count: int) -> None:
    path = write(tmp_path, {"a": CROSS}, "instances") / "instances" / "a.png"
    numbers = np.array([[0, 1, 1, 300], [2, 2, 65535, 0], [0, 0, 0, 0]], np.uint16)
    for broken in broken_images(encoded(Image.fromarray(numbers), "PNG"), 8, count):
        path.write_bytes(broken)
        samples = outcome(lambda: open_dataset(tmp_path), path)
        if samples is not None:
            values = np.unique(read_mask(path))
            assert len(samples[0].segments) == (values > 0).sum()
