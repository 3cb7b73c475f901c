"""Reading and writing image files: formats and modes, orientation, limits, damage, atomic writes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import resource
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from everymask.errors import ImageError, WriteError
from everymask.image import (
    IMAGE_SUFFIXES,
    encode_png,
    is_image_file,
    list_images,
    read_image,
    read_mask,
    read_palette,
    read_size,
    write_jpeg,
    write_png,
)

HEIGHT, WIDTH = 11, 17
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(RGB).resize((160, 96), Image.Resampling.BICUBIC))
LABELS = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)


def saved(array: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file of Pillow's format `kind`."""
    buffer = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes, late: bytes = b"") -> bytes:
    """A PNG built by hand, for what Pillow cannot write. `rows` carry their filter bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + late + chunk(b"IEND")


def raw_png16(array: np.ndarray, *extra: bytes) -> bytes:
    """A 16-bit grey `[H, W]` or RGB `[H, W, 3]` PNG."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return raw_png(array.shape[1], array.shape[0], 16, 2 if array.ndim == 3 else 0, rows, *extra)


def raw_tiff(width: int, height: int, bits: int, data: bytes, *, order: str = "<", **tags: int) -> bytes:
    """An uncompressed one-strip grey TIFF built by hand."""
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(data)}
    entries |= {int(name.removeprefix("tag")): value for name, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    mark = b"II*\0" if order == "<" else b"MM\0*"
    table = b"".join(struct.pack(order + "HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return mark + struct.pack(order + "IH", 8, len(entries)) + table + b"\0\0\0\0" + data


def white_under(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def with_alpha(values: np.ndarray, alpha: int | np.ndarray = 255) -> np.ndarray:
    return np.dstack([values, np.broadcast_to(np.uint8(alpha), values.shape[:2])]).astype(np.uint8)


# ---- photos: formats and modes


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_deflate"}, 0),
        ("TIFF", {"compression": "jpeg", "quality": 98}, 60),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 60),
        ("JPEG", {"quality": 98}, 40),
        ("JPEG", {"quality": 98, "progressive": True}, 40),
        ("JPEG", {"quality": 98, "keep_rgb": True}, 40),
    ],
)
def test_read_rgb_of_every_format(tmp_path: Path, kind: str, options: dict, tolerance: int) -> None:
    path = tmp_path / "picture"
    path.write_bytes(saved(SMOOTH, kind, **options))
    digest = hashlib.sha256(path.read_bytes()).digest()
    pixels = read_image(path)
    assert (pixels.shape, pixels.dtype) == (SMOOTH.shape, np.uint8)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.abs(pixels.astype(int) - SMOOTH).max() <= tolerance
    assert read_size(path) == SMOOTH.shape[:2]
    assert hashlib.sha256(path.read_bytes()).digest() == digest


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG"])
def test_read_grey_as_three_equal_channels(kind: str) -> None:
    pixels = read_image(saved(SMOOTH[..., 0], kind))
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].astype(int) - SMOOTH[..., 0]).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_read_bilevel(kind: str) -> None:
    bits = LABELS % 3 == 0
    assert (read_image(saved(bits, kind)) == np.where(bits, 255, 0)[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_read_palette_photo(kind: str) -> None:
    picture = Image.fromarray(LABELS % 5, "L")
    colours = np.random.default_rng(1).integers(0, 256, (5, 3), dtype=np.uint8)
    picture.putpalette(colours.tobytes())
    assert (read_image(saved(picture, kind)) == colours[LABELS % 5]).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_as_pillow_does(kind: str) -> None:
    data = saved(Image.fromarray(SMOOTH).convert("CMYK"), kind)
    assert (read_image(data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
    assert np.abs(read_image(data).astype(int) - SMOOTH).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(kind: str) -> None:
    rgba = with_alpha(RGB, LABELS)
    rgba[0, :3, 3] = 0, 255, 128
    pixels = read_image(saved(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert np.abs(pixels - white_under(rgba)).max() <= 1
    assert (pixels[0, 0] == 255).all()
    assert (pixels[0, 1] == RGB[0, 1]).all()


def test_other_transparency_is_composited_over_white() -> None:
    grey = with_alpha(LABELS, LABELS[::-1])
    expected = white_under(grey[..., [0, 0, 0, 1]])
    assert np.abs(read_image(saved(Image.fromarray(grey), "PNG")) - expected).max() <= 1
    for transparency in (1, b"\xff\x00\xff"):
        picture = Image.fromarray(LABELS % 3, "L")
        picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        pixels = read_image(saved(picture, "PNG", transparency=transparency))
        assert (pixels[LABELS % 3 == 1] == 255).all()
        assert (pixels[LABELS % 3 == 2] == (70, 80, 90)).all()
    key = tuple(int(v) for v in RGB[2, 3])
    pixels = read_image(saved(RGB, "PNG", transparency=key))
    assert (pixels[2, 3] == 255).all()
    assert (pixels[2, 4] == RGB[2, 4]).all()


VALUES16 = np.array([[0, 1, 255, 256, 257], [300, 32768, 65279, 65280, 65535]], np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        saved(VALUES16, "PNG"),
        saved(VALUES16, "TIFF"),
        saved(VALUES16, "TIFF", compression="tiff_lzw"),
        saved(VALUES16, "PPM"),
        saved(VALUES16.astype(np.int32), "TIFF"),
        raw_png16(np.dstack([VALUES16] * 3)),
        raw_tiff(5, 2, 16, VALUES16.astype(">u2").tobytes(), order=">"),
    ],
    ids=["png", "tiff", "tiff-lzw", "pgm", "tiff-int32", "png-rgb", "tiff-big-endian"],
)
def test_sixteen_bits_keep_their_high_byte(data: bytes) -> None:
    assert (read_image(data) == (VALUES16 >> 8)[..., None]).all()


def test_eight_bit_values_survive_a_round_trip_through_sixteen_bits() -> None:
    assert (read_image(saved(LABELS.astype(np.uint16) * 257, "PNG"))[..., 0] == LABELS).all()


def test_sixteen_bit_transparent_grey_becomes_white() -> None:
    pixels = read_image(raw_png16(VALUES16, chunk(b"tRNS", struct.pack(">H", 300))))
    assert pixels[..., 0].tolist() == [[0, 0, 0, 1, 1], [255, 128, 254, 255, 255]]


def test_twelve_bit_tiff_uses_its_own_range() -> None:
    values = np.array([[0, 16, 2048, 4095]])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    assert read_image(raw_tiff(4, 1, 12, packed))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("low", [-1, 0])
def test_wide_integers_and_floats_are_refused(low: int) -> None:
    with pytest.raises(ImageError, match=rf"32-bit values {low}\.\.70000 have no agreed white"):
        read_image(saved(np.array([[low, 70000]], np.int32), "TIFF"))
    with pytest.raises(ImageError, match="floating-point pixels have no agreed white"):
        read_image(saved(np.full((2, 2), low, np.float32), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (read_image(data) == (255, 0, 0)).all()
    assert read_size(data) == (6, 9)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_thin_pictures(kind: str, size: tuple[int, int]) -> None:
    data = saved(np.full((*size, 3), 255, np.uint8), kind)
    assert read_image(data).shape == (*size, 3)
    assert read_size(data) == size


# ---- photos: sources


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(RGB, "PNG"))
    with Image.open(path) as picture:
        for source in (path, str(path), path.read_bytes(), Image.fromarray(RGB), picture, RGB):
            assert (read_image(source) == RGB).all()
        assert picture.getpixel((0, 0)) == tuple(RGB[0, 0])  # still the caller's, still open
    assert read_image(RGB) is RGB
    assert (read_image(LABELS) == LABELS[..., None]).all()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (RGB.astype(np.float32), "float32"),
        (np.moveaxis(RGB, 2, 0), r"uint8 \[3, 11, 17\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        (np.zeros(4, np.uint8), r"uint8 \[4\]"),
        (np.array(3, np.uint8), r"uint8 \[\]"),
        ([[1, 2]], "a list is no image"),
        (0, "an? int is no image"),
        (None, "a NoneType is no image"),
    ],
)
def test_sources_that_are_no_image(source: object, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        read_image(source)  # type: ignore[arg-type]


def test_fast_jpeg_equals_pillow_on_real_photos(data: Callable[[str], Path]) -> None:
    for path in sorted(data("coco_panoptic_mini").rglob("*.jpg"))[:5]:
        with Image.open(path) as picture:
            expected = np.asarray(picture.convert("RGB")).astype(int)
        assert np.abs(read_image(path) - expected).max() <= 2
        assert read_size(path) == expected.shape[:2]


@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
def test_min_side_decodes_jpeg_smaller_but_not_too_small(colours: str) -> None:
    data = saved(Image.fromarray(SMOOTH).resize((640, 400)).convert(colours), "JPEG")
    small = read_image(data, min_side=100)
    assert small.shape == (100, 160, 3)
    reference = np.asarray(Image.fromarray(read_image(data)).reduce(4)).astype(int)
    assert np.abs(small - reference).mean() < 3
    for least in (101, 399, 400, 5000):
        assert min(400, least) <= min(read_image(data, min_side=least).shape[:2]) <= 400
    turned = saved(Image.fromarray(SMOOTH).resize((640, 400)), "JPEG", exif=exif(6))
    assert read_image(turned, min_side=100).shape == (160, 100, 3)


def test_min_side_leaves_other_sources_alone() -> None:
    assert (read_image(saved(RGB, "PNG"), min_side=2) == RGB).all()
    picture = Image.open(io.BytesIO(saved(SMOOTH, "JPEG")))
    assert read_image(picture, min_side=8).shape == SMOOTH.shape


def test_harmless_jpeg_oddities_are_read_and_still_checked_for_truncation() -> None:
    data = saved(SMOOTH, "JPEG")
    assert b"JFIF\0\1\1" in data
    odd = data.replace(b"JFIF\0\1\1", b"JFIF\0\3\1")
    assert np.abs(read_image(odd).astype(int) - read_image(data)).max() <= 2
    with pytest.raises(ImageError, match="truncated"):
        read_image(odd[: len(odd) // 2])


# ---- orientation


def exif(orientation: object) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"save_all": True} if kind == "MPO" else {}
    if kind == "MPO":
        options["append_images"] = [Image.fromarray(SMOOTH)]
    data = saved(SMOOTH, kind, exif=exif(orientation), **options)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        from_picture = read_image(picture)
    assert np.abs(read_image(data).astype(int) - expected).max() <= (2 if kind in ("JPEG", "MPO") else 0)
    assert (from_picture == expected).all()
    assert read_size(data) == expected.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_turn_like_photos(orientation: int) -> None:
    for kind in ("PNG", "TIFF"):
        mask = read_mask(saved(LABELS, kind, exif=exif(orientation)))
        photo = read_image(saved(LABELS, kind, exif=exif(orientation)))
        assert (mask == photo[..., 0]).all()


@pytest.mark.parametrize("late", [False, True])
def test_png_exif_before_or_after_the_pixels(late: bool) -> None:
    block = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    rows = b"".join(b"\0" + row.tobytes() for row in LABELS)
    extra, after = ((), block) if late else ((block,), b"")
    data = raw_png(WIDTH, HEIGHT, 8, 0, rows, *extra, late=after)
    assert read_size(data) == (WIDTH, HEIGHT)
    assert (read_mask(data) == np.rot90(LABELS, -1)).all()


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_meaningless_orientation_is_none(value: int) -> None:
    assert read_image(saved(SMOOTH, "JPEG", exif=exif(value))).shape == SMOOTH.shape


def test_broken_exif_does_not_cost_the_picture() -> None:
    for block in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        assert read_image(saved(SMOOTH, "JPEG", exif=block)).shape == SMOOTH.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_size_is_read_without_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    data = saved(SMOOTH, kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    assert read_size(data) == SMOOTH.shape[:2]


# ---- limits


def test_the_bomb_is_refused_from_its_header() -> None:
    bomb = raw_png(10_000, 8_000, 8, 2, bytes(100_000))
    assert len(bomb) < 10_000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(ImageError) as error:
        read_image(bomb)
    assert str(error.value) == (
        "Cannot read image: bytes in memory (80,000,000 pixels (10000 x 8000), the limit is 40,000,000). "
        "Resize or tile it; if you trust it, pass a larger max_pixels (and set PIL.Image.MAX_IMAGE_PIXELS)."
    )
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KB
    assert read_size(bomb) == (8_000, 10_000)
    for reader in (read_mask, read_palette):
        with pytest.raises(ImageError, match="the limit is 40,000,000"):
            reader(bomb)


@pytest.mark.parametrize("side", [10_000, 30_000])  # 100 MP makes Pillow warn, 900 MP makes it refuse.
def test_pillows_own_bomb_check_comes_out_as_image_error(side: int) -> None:
    with pytest.raises(ImageError, match="pixels") as error:
        read_image(raw_png(side, side, 8, 2, b""))
    assert "max_pixels" in error.value.fix


def test_max_pixels_is_inclusive_and_holds_for_every_source() -> None:
    data = saved(RGB, "PNG")
    assert read_image(data, max_pixels=RGB[..., 0].size).shape == RGB.shape
    for source in (data, RGB, Image.fromarray(RGB), saved(RGB, "JPEG"), saved(RGB, "TIFF"), saved(RGB, "WEBP")):
        with pytest.raises(ImageError, match=r"187 pixels \(17 x 11\), the limit is 186"):
            read_image(source, max_pixels=RGB[..., 0].size - 1)


def test_a_jpeg_with_two_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The size that was checked is the one Pillow saw; the pixels would be decoded by another parser.
    monkeypatch.setattr("simplejpeg.decode_jpeg_header", lambda data: (9000, 9000, "YCbCr", "444"))
    with pytest.raises(ImageError, match="two headers with different sizes"):
        read_image(saved(SMOOTH, "JPEG"))


def test_a_small_tiff_in_huge_tiles_is_refused() -> None:
    data = raw_tiff(4, 4, 8, bytes(16), tag322=60_000, tag323=60_000, tag324=8, tag325=16)
    with pytest.raises(ImageError, match="3,600,000,000 pixels"):
        read_image(data)


def test_other_formats_are_never_opened(tmp_path: Path) -> None:
    for kind, suffix in (("TGA", "tga"), ("ICO", "ico"), ("PCX", "pcx"), ("PDF", "jpg")):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(RGB).save(path, kind)
        with pytest.raises(ImageError, match="no sound header of JPEG, PNG, WEBP, BMP, TIFF, GIF, PPM"):
            read_image(path)


# ---- files that are wrong

READERS = [read_image, read_mask, read_size, read_palette]


@pytest.mark.parametrize("reader", READERS)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, reader: Callable) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in {
        "gone.png": "No such file or directory",
        "": "it is a folder",
        "pipe.png": "it is not a regular file",
        "empty.png": "the file is empty (0 bytes)",
        "text.png": "it begins with b'version https://': no sound header of JPEG, PNG, WEBP, BMP, TIFF, GIF, PPM",
        "text.png/a.png": "Not a directory",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(ImageError) as error:
            reader(tmp_path / name)
        assert error.value.where == str(tmp_path / name)
        assert error.value.why == why
        assert error.value.fix


def test_error_text(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / "empty.png")
    assert str(error.value) == (
        f"Cannot read image: {tmp_path}/empty.png (the file is empty (0 bytes)). Get the file again."
    )
    with pytest.raises(ImageError) as error:
        read_mask(tmp_path / "gone.png")
    assert str(error.value) == (
        f"Cannot read mask: {tmp_path}/gone.png (No such file or directory). Check the path and its permissions."
    )


@pytest.mark.parametrize("source", ["a\0b", Path("a\0b")])
def test_impossible_names(source: object) -> None:
    with pytest.raises(ImageError):
        read_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": exif(6)}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("PPM", {}),
    ],
)
def test_truncation_is_never_silent(kind: str, options: dict) -> None:
    data = saved(SMOOTH, kind, **options)
    # The end of a GIF holds no pixels, nor does the table that Pillow puts behind those of a TIFF.
    last = len(data) - (1 if kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM") else 8)
    for length in np.linspace(1, last, 10).astype(int):
        with pytest.raises(ImageError):
            read_image(data[:length])
        if kind == "PNG":
            with pytest.raises(ImageError):
                read_mask(data[:length])


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four bytes changed, or a piece cut out, doubled or filled with 255."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        # Headers are where parsers break: half of the changes go there.
        at = rng.randrange(min(64, len(changed)) if rng.random() < 0.5 else len(changed))
        piece = slice(at, at + rng.randint(1, 12))
        action = rng.randrange(5)
        if action <= 1:
            changed[at] = rng.randrange(256)
        elif action == 2:
            changed[at] ^= 1 << rng.randrange(8)
        elif action == 3:
            changed[piece] = b"\xff" * len(changed[piece])
        else:
            changed[piece] = changed[piece] * rng.randrange(3)
    return bytes(changed)


FUZZED = {
    "jpeg": saved(RGB, "JPEG", exif=exif(6)),
    "jpeg-cmyk": saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "png": saved(RGB, "PNG", exif=exif(6)),
    "png-palette": encode_png(LABELS % 4, [(0, 0, 0), (9, 9, 9), (8, 8, 8), (7, 7, 7)]),
    "apng": saved(RGB, "PNG", save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
    "gif": saved(LABELS, "GIF"),
    "webp": saved(RGB, "WEBP", exif=exif(6)),
    "webp-lossless": saved(with_alpha(RGB, LABELS), "WEBP", lossless=True),
    "tiff": saved(RGB, "TIFF", exif=exif(6)),
    "tiff-lzw": saved(LABELS, "TIFF", compression="tiff_lzw"),
    "bmp": saved(RGB, "BMP"),
    "ppm": saved(RGB, "PPM"),
}


@pytest.mark.parametrize("name", FUZZED)
def test_mutated_files_give_pixels_or_image_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(f"image {name}")
    for _ in range(300):
        data = mutated(FUZZED[name], rng)
        for reader in READERS:
            with contextlib.suppress(ImageError):
                result = reader(data, max_pixels=10_000) if reader in (read_image, read_mask) else reader(data)
                assert reader is not read_image or (result.dtype == np.uint8 and result.shape[2] == 3)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "" or name.startswith("tiff")  # libtiff prints past Python.


def test_warnings_of_pillow_are_muted_in_all_threads_and_only_while_reading() -> None:
    # A description that lies behind the end of the EXIF block: Pillow warns that it is truncated.
    block = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 270, 2, 1000, 5000, 0)
    data = saved(SMOOTH, "JPEG", exif=block)
    with pytest.warns(UserWarning, match="Truncated File Read"):
        Image.open(io.BytesIO(data))
    filters = list(warnings.filters)
    shapes: list[tuple[int, ...]] = []

    def read_many() -> None:
        shapes.extend(read_image(data).shape for _ in range(50))

    threads = [threading.Thread(target=read_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [SMOOTH.shape] * 400
    assert warnings.filters == filters
    with pytest.warns(UserWarning, match="Truncated File Read"):
        Image.open(io.BytesIO(data))


# ---- masks


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette_indices_are_kept(kind: str) -> None:
    picture = Image.fromarray(LABELS % 7, "L")
    colours = [(200, 0, 0), (0, 200, 0), (1, 2, 3), (1, 2, 3), (9, 9, 9), (0, 0, 0), (255, 255, 255)]
    picture.putpalette(sum(colours, ()))
    data = saved(picture, kind)
    mask = read_mask(data)
    assert mask.dtype == np.uint8
    assert (mask == LABELS % 7).all()
    assert (read_palette(data) or [])[:7] == colours


def test_palette_indices_of_real_masks(data: Callable[[str], Path]) -> None:
    paths = sorted(data("bcss_masks_only").rglob("*.png"))
    assert paths
    for path in paths:
        with Image.open(path) as picture:
            expected = np.asarray(picture)
        mask = read_mask(path)
        assert mask.dtype == np.uint8
        assert (mask == expected).all()
        assert mask.max() < 22


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_and_bilevel_masks(kind: str) -> None:
    assert (read_mask(saved(LABELS, kind)) == LABELS).all()
    assert read_palette(saved(LABELS, "PNG")) is None
    bits = LABELS % 3 == 0
    mask = read_mask(saved(bits, kind))
    assert mask.dtype == np.uint8
    assert (mask > 0).tolist() == bits.tolist()
    assert kind == "GIF" or mask.max() == 1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_are_labels_not_shades(depth: int) -> None:
    values = np.arange(8, dtype=np.uint8).reshape(1, 8) % (1 << depth)
    bits = np.unpackbits(values[..., None], axis=2)[..., -depth:].reshape(1, -1)
    packed = np.packbits(bits).tobytes()
    for colour, extra in ((0, ()), (3, (chunk(b"PLTE", bytes(range(3 << depth))),))):
        assert (read_mask(raw_png(8, 1, depth, colour, b"\0" + packed, *extra)) == values).all()
    assert (read_mask(raw_tiff(8, 1, depth, packed)) == values).all()


@pytest.mark.parametrize("top", [1, 20, 255, 256, 1000, 65535])
def test_pgm_labels_are_not_stretched(top: int) -> None:
    values = np.unique(np.linspace(0, top, 50).astype(int))
    stored = values.astype(">u2" if top > 255 else "u1").tobytes()
    for data in (
        b"P5 %d 1 %d\n" % (len(values), top) + stored,
        b"P2 %d 1 %d\n" % (len(values), top) + b" ".join(b"%d" % v for v in values) + b"\n",
    ):
        assert (read_mask(data)[0] == values).all()
        assert read_image(data).max() == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_masks(kind: str) -> None:
    mask = read_mask(saved(VALUES16, kind))
    assert mask.dtype == (np.int32 if kind == "PPM" else np.uint16)
    assert mask.tolist() == VALUES16.tolist()


def test_big_endian_and_wide_masks() -> None:
    mask = read_mask(raw_tiff(5, 2, 16, VALUES16.astype(">u2").tobytes(), order=">"))
    assert mask.dtype == np.dtype(np.uint16)
    assert mask.tolist() == VALUES16.tolist()
    wide = np.array([[-1, 0, 70_000, 2**31 - 1]], np.int32)
    assert read_mask(saved(wide, "TIFF")).tolist() == wide.tolist()
    with pytest.raises(ImageError, match="are no labels"):
        read_mask(raw_tiff(1, 1, 32, b"\xff\xff\xff\xff", tag339=1))


def test_colour_masks_and_opaque_alpha() -> None:
    assert (read_mask(saved(RGB, "PNG")) == RGB).all()
    assert (read_mask(saved(RGB, "WEBP", lossless=True)) == RGB).all()
    assert (read_mask(saved(with_alpha(RGB), "PNG")) == RGB).all()
    assert (read_mask(saved(with_alpha(LABELS), "PNG")) == LABELS).all()
    alpha = np.full((HEIGHT, WIDTH), 255)
    alpha[4, 5] = 254
    for values in (RGB, LABELS):
        with pytest.raises(ImageError, match="some pixels are transparent: the mask is antialiased"):
            read_mask(saved(with_alpha(values, alpha), "PNG"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (saved(RGB, "JPEG"), "lossy JPEG compression puts wrong values between labels"),
        (saved(RGB, "WEBP"), "lossy WEBP compression"),
        (saved(RGB, "TIFF", compression="jpeg"), "lossy TIFF compression"),
        (saved(LABELS.astype(np.float32), "TIFF"), "pixels of mode F;32F are no labels"),
        (saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "pixels of mode CMYK are no labels"),
        (raw_png16(np.dstack([VALUES16] * 3)), "pixels of mode RGB;16B are no labels"),
    ],
)
def test_files_that_hold_no_exact_labels(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        read_mask(data)


# ---- writing


@pytest.mark.parametrize("array", [LABELS, RGB, with_alpha(RGB, LABELS), VALUES16, RGB[::-1, ::2], LABELS.T])
def test_png_round_trip(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "new" / "folder" / "a.png"
    write_png(path, array)
    with Image.open(path) as picture:
        assert (np.asarray(picture) == array).all()
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    if array.ndim == 2:
        assert (read_mask(path) == array).all()


@pytest.mark.parametrize("colours", [1, 2, 3, 4, 5, 16, 17, 256])
def test_palette_round_trip(colours: int) -> None:
    palette = np.random.default_rng(colours).integers(0, 256, (colours, 3)).tolist()
    labels = (LABELS.astype(int) % colours).astype(np.uint8)
    for given in (palette, np.array(palette), tuple(tuple(c) for c in palette)):
        data = encode_png(labels, given)
        assert (read_mask(data) == labels).all()
        assert (read_palette(data) or [])[:colours] == [tuple(c) for c in palette]
        assert (read_image(data) == np.array(palette)[labels]).all()


@pytest.mark.parametrize(
    ("array", "palette"),
    [
        (LABELS.astype(bool), None),
        (LABELS.astype(np.int64), None),
        (RGB.astype(np.float32), None),
        (RGB.astype(np.uint16), None),
        (RGB[..., :2], None),
        (RGB[None], None),
        (RGB[:0], None),
        (LABELS, []),
        (LABELS, [(0, 0, 0)] * 257),
        (LABELS, [(0, 0, 0)] * int(LABELS.max())),
        (LABELS, [(0, 0, 256)] * 256),
        (LABELS, [(0, 0, -1)] * 256),
        (LABELS, [(0.5, 0.5, 0.5)] * 256),
        (LABELS, [(0, 0, 0, 255)] * 256),
        (LABELS, [(0, 0), (0, 0, 0)]),
        (LABELS, "red"),
        (RGB, [(0, 0, 0)] * 256),
        (VALUES16, [(0, 0, 0)] * 256),
    ],
)
def test_what_png_cannot_hold(tmp_path: Path, array: np.ndarray, palette: list | None) -> None:
    with pytest.raises(ImageError, match=r"Cannot encode PNG: (array|palette)"):
        write_png(tmp_path / "a.png", array, palette)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("array", [SMOOTH, SMOOTH[..., 0]])
def test_jpeg_round_trip(tmp_path: Path, array: np.ndarray) -> None:
    write_jpeg(tmp_path / "a.jpg", array, quality=98)
    pixels = read_image(tmp_path / "a.jpg")
    assert np.abs(pixels.astype(int) - (array if array.ndim == 3 else array[..., None])).max() <= 12


@pytest.mark.parametrize("array", [with_alpha(RGB), VALUES16, RGB.astype(float), np.zeros((1, 70_000), np.uint8)])
def test_what_jpeg_cannot_hold(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="Cannot encode JPEG"):
        write_jpeg(tmp_path / "a.jpg", array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    target = tmp_path / "a.png"
    write_png(target, LABELS)
    before = target.read_bytes()

    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise failure

    def fail(*_: object) -> None:
        raise failure

    if step == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", fail)
    for path in (target, tmp_path / "b.png"):
        with pytest.raises(WriteError if isinstance(failure, OSError) else KeyboardInterrupt) as error:
            write_png(path, RGB)
        if isinstance(failure, OSError):
            assert str(error.value) == (
                f"cannot write a file: {path} (No space left on device). "
                "Check the folder, its permissions and the free space."
            )
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == before


def test_impossible_targets(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(WriteError, match="cannot write a file"):
            write_png(path, LABELS)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_png(tmp_path / "a.png", LABELS)
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---- folders


def test_list_images(tmp_path: Path) -> None:
    names = ["img10.png", "img2.PNG", "Img1.jpg", "b/x.tif", "b2/y.gif", "b10/z.webp", "note.txt", "._img3.jpg"]
    for name in (*names, ".cache/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["Img1.jpg", "img2.PNG", "img10.png"]
    found = [p.relative_to(tmp_path).as_posix() for p in list_images(str(tmp_path), recursive=True)]
    assert found == ["b/x.tif", "b2/y.gif", "b10/z.webp", "Img1.jpg", "img2.PNG", "img10.png"]


def test_list_images_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path, "no image file in it"),
        (tmp_path / "file", "it is a file"),
        (tmp_path / "x", "no such"),
    ):
        with pytest.raises(ImageError, match=why):
            list_images(path)


def test_suffixes() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
    assert is_image_file("a/B.JPeG")
    assert is_image_file(Path("mask.png"))
    assert not is_image_file("a.txt")
    assert not is_image_file("png")
