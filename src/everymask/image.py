"""Files to pixels and back: photos as uint8 RGB, masks as raw label values, PNG and JPEG written atomically.

Readers look at the header first: no format but `FORMATS` is ever opened, the size is checked before a pixel is decoded,
and EXIF orientation is applied. Whatever is wrong with a file comes out as one `ImageError`.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from .errors import ImageError
from .files import write_bytes

MAX_PIXELS = 40_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # No other decoder of Pillow is ever reached.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# What sound files of some cameras are warned about; any other warning of the decoder means damage.
HARMLESS_JPEG_WARNINGS = ("Invalid SOS parameters", "unknown JFIF revision", "Unknown Adobe color transform")
TOO_LARGE_FIX = "Resize or tile it; if you trust it, pass a larger max_pixels (and set PIL.Image.MAX_IMAGE_PIXELS)."

PathLike = str | os.PathLike[str]
Array = np.ndarray[Any, np.dtype[Any]]
Palette = Sequence[Sequence[int]] | Array


def read_image(
    source: PathLike | bytes | Image.Image | Array, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None
) -> Array:
    """Read a photo as uint8 RGB `[H, W, 3]`, turned upright by its EXIF orientation.

    16-bit values keep their high byte (65535 -> 255); transparency is composited over white; of an animation or a
    multi-page file the first frame counts; colour profiles are not applied; unreadable EXIF counts as none.

    Args:
        source: a path, the bytes of a file, a `PIL.Image`, a uint8 array `[H, W, 3]` (returned as it is) or `[H, W]`.
        max_pixels: refuse anything larger, before it is decoded.
        min_side: a JPEG file may come out smaller (much faster) as long as its shorter side keeps this many pixels.

    Raises:
        ImageError: missing, empty, truncated, damaged, too large or not an accepted kind of image.
    """
    with _opened(source, "Cannot read image", max_pixels) as picture:
        if isinstance(picture, np.ndarray):
            return _array_to_rgb(picture)
        own = picture is not source  # A `PIL.Image` belongs to the caller: it is never closed or scaled.
        pixels = _decode_plain_jpeg(picture, min_side or 0) if own else None
        if pixels is None:
            if own and min_side:
                picture.draft(None, (min_side, min_side))  # Pillow's scaled decoding; other formats ignore it.
            picture.load()
            pixels = _to_rgb(picture)
        return _orient(pixels, _orientation(picture))


def read_size(path: PathLike | bytes) -> tuple[int, int]:
    """The upright size `(H, W)` of an image or mask file, from its header alone. Raises `ImageError`."""
    with _opened(path, "Cannot read image size") as picture:
        width, height = picture.size
        return (width, height) if _orientation(picture) >= 5 else (height, width)


def read_mask(path: PathLike | bytes, *, max_pixels: int = MAX_PIXELS) -> Array:
    """Read the label values that a mask file stores, never converted through its palette, upright by EXIF.

    Returns:
        uint8 `[H, W]` (bilevel as 0/1, grey, palette indices), uint16 or int32 `[H, W]` (16- and 32-bit grey), or uint8
        `[H, W, 3]` (colours, for the caller to map). An alpha channel that is 255 everywhere is dropped.

    Raises:
        ImageError: as `read_image`, and for lossy, transparent or floating-point files: they hold no exact labels.
    """
    with _opened(path, "Cannot read mask", max_pixels) as picture:
        _refuse_lossy(picture)
        rawmode, top = _storage(picture)  # Loading forgets them.
        picture.load()
        labels = _labels(picture, rawmode)
        if top:  # Pillow has stretched 0..top to the full range.
            labels = np.rint(labels * (top / (255 if labels.dtype == np.uint8 else 65535))).astype(labels.dtype)
        return _orient(labels, _orientation(picture))


def read_palette(path: PathLike | bytes) -> list[tuple[int, int, int]] | None:
    """The colours `(r, g, b)` of a palette file in index order; None for a file without one. Raises `ImageError`."""
    with _opened(path, "Cannot read palette", MAX_PIXELS) as picture:
        picture.load()
        flat = picture.getpalette("RGB")
        return flat and list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def encode_png(array: Array, palette: Palette | None = None) -> bytes:
    """PNG bytes of uint8 `[H, W]`, `[H, W, 3]`, `[H, W, 4]` or uint16 `[H, W]`; `ImageError` for anything else.

    With `palette` (1 to 256 colours, one for every value that occurs) uint8 `[H, W]` are the indices of a palette PNG.
    """
    return _encode(array, "PNG", ("uint8 [H, W]", "uint8 [H, W, 3]", "uint8 [H, W, 4]", "uint16 [H, W]"), palette)


def write_png(path: PathLike, array: Array, palette: Palette | None = None) -> None:
    """Write `encode_png(array, palette)` in one step: on failure the target stays as it was. Raises `ImageError`."""
    write_bytes(Path(path), encode_png(array, palette))


def write_jpeg(path: PathLike, array: Array, quality: int = 90) -> None:
    """Write uint8 `[H, W]` or `[H, W, 3]` as JPEG in one step, as `write_png` does. Raises `ImageError`."""
    kinds = ("uint8 [H, W]", "uint8 [H, W, 3]")
    write_bytes(Path(path), _encode(array, "JPEG", kinds, quality=quality, subsampling=0))


def is_image_file(path: PathLike) -> bool:
    """Whether the suffix is one that `read_image` accepts; the file itself is not looked at."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: PathLike, recursive: bool = False) -> list[Path]:
    """The image files of a folder, `img2` before `img10`, without hidden ones (sidecars of macOS).

    Raises `ImageError` where the folder is missing, is a file or holds no image.
    """
    root = Path(folder)
    found = [p.relative_to(root) for p in root.glob("**/*" if recursive else "*") if is_image_file(p) and p.is_file()]
    shown = [name for name in found if not any(part.startswith(".") for part in name.parts)]
    if not shown:
        why = "no image file in it" if root.is_dir() else "it is a file" if root.exists() else "no such folder"
        hint = "" if recursive else " or pass recursive=True"
        fix = f"Give a folder that holds images{hint}; accepted are {' '.join(sorted(IMAGE_SUFFIXES))}."
        raise ImageError("Cannot list images", where=root, why=why, fix=fix)
    return [root / name for name in sorted(shown, key=lambda name: ([_numbers_apart(p) for p in name.parts], name))]


def _numbers_apart(name: str) -> list[str | int]:
    # Every second piece is a number, so that the pieces of two names can be compared.
    return [int(piece) if piece.isdecimal() else piece.casefold() for piece in re.split(r"(\d+)", name)]


class _Refusal(Exception):
    """`(why, fix)` of a file that is refused; `_opened` adds what and where and makes it an `ImageError`."""


class _MutedPillow:
    """Mutes what Pillow warns about in the metadata of files that read well, while any thread is reading."""

    # `catch_warnings` swaps a list of the whole process: overlapping threads would put back filters in the wrong order.
    # So the first thread in enters it and the last one out leaves it.
    lock, inside, filters = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.filters.__exit__(None, None, None)


_muted_pillow = _MutedPillow()


@contextmanager
def _opened(source: Any, what: str, max_pixels: int | None = None) -> Iterator[Any]:
    """Parse the header, check the size, and turn whatever goes wrong until the block ends into one `ImageError`."""
    where = source if isinstance(source, str | os.PathLike) else f"{type(source).__name__} in memory"
    try:
        with ExitStack() as stack:
            stack.enter_context(_muted_pillow)
            if not isinstance(source, Image.Image | np.ndarray):
                source = _parse(stack.enter_context(_open_file(source)))
            _check_size(source, max_pixels)
            yield source
    except _Refusal as refusal:
        raise ImageError(what, where=where, why=refusal.args[0], fix=refusal.args[1]) from refusal.__cause__
    except Exception as error:  # On damaged files decoders raise nearly every built-in type there is.
        why, fix = f"truncated or damaged: {error or type(error).__name__}", "Get the file again or save it anew."
        raise ImageError(what, where=where, why=why, fix=fix) from error


def _open_file(source: PathLike | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise _Refusal(f"a {type(source).__name__} is no image", "Pass a path, bytes, PIL.Image or uint8 array.")
    try:
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode):  # Opening a pipe would wait for ever.
            why = "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file"
            raise _Refusal(why, "Give one image file, or go through list_images(folder).")
        return open(source, "rb")
    except OSError as error:
        raise _Refusal(error.strerror, "Check the path and its permissions.") from error


def _parse(file: IO[bytes]) -> Image.Image:
    head = file.read(16)
    if not head:
        raise _Refusal("the file is empty (0 bytes)", "Get the file again.")
    exif = _scan_png(file) if head.startswith(b"\x89PNG\r\n\x1a\n") else {}
    try:
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        why = f"it begins with {head!r}: no sound header of {', '.join(FORMATS)}"
        raise _Refusal(why, "Give an image file; convert other formats to PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        raise _Refusal(str(error), TOO_LARGE_FIX) from error
    picture.info.update(exif)
    return picture


def _scan_png(file: IO[bytes]) -> dict[str, bytes]:
    """Walk to the end marker without decoding, and return the EXIF block, which some tools put after the pixels.

    Pillow would decode the whole picture to find that, and takes a file that ends before its marker for complete.
    """
    exif: dict[str, bytes] = {}
    position, end = 8, file.seek(0, os.SEEK_END)
    while position + 12 <= end:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IEND":
            return exif
        if kind == b"eXIf":
            exif = {"exif": file.read(length)}
        position += length + 12
    raise _Refusal("truncated or damaged: the PNG has no end marker", "Get the file again.")


def _check_size(picture: Image.Image | Array, max_pixels: int | None) -> None:
    width, height = picture.size if isinstance(picture, Image.Image) else (*picture.shape[1::-1], 0, 0)[:2]
    # A small TIFF may consist of one tile far larger than itself, which would be decoded whole.
    tags = getattr(picture, "tag_v2", {})
    pixels = max(width * height, tags.get(322, 0) * tags.get(323, 0))
    if max_pixels is not None and pixels > max_pixels:
        raise _Refusal(f"{pixels:,} pixels ({width} x {height}), the limit is {max_pixels:,}", TOO_LARGE_FIX)


def _decode_plain_jpeg(picture: Any, min_side: int) -> Array | None:
    """Decode by simplejpeg, faster and stricter than Pillow; None for a file that should go to Pillow after all."""
    if picture.format not in ("JPEG", "MPO") or picture.mode not in ("L", "RGB") or "adobe" in picture.info:
        return None
    picture.fp.seek(0)
    data = picture.fp.read()
    try:
        if simplejpeg.decode_jpeg_header(data)[1::-1] != picture.size:  # Then another size than ours was checked.
            raise _Refusal("damaged: two headers with different sizes", "Get the file again.")
        pixels: Array = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side)
        return pixels
    except ValueError as error:
        if any(text in str(error) for text in HARMLESS_JPEG_WARNINGS):
            return None
        raise


def _to_rgb(picture: Image.Image) -> Array:
    if picture.mode == "F":
        raise _Refusal("floating-point pixels have no agreed white", "Scale it to 0..255 and save it as 8-bit PNG.")
    if picture.mode.startswith("I"):
        return _high_byte(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size, "white")
        picture.paste(rgba, mask=rgba)
    return np.array(picture.convert("RGB"))


def _high_byte(picture: Any) -> Array:
    """16-bit grey to RGB as Pillow does for 16-bit colour; its own conversion of grey would clip at 255."""
    values = np.asarray(picture)
    if not 0 <= values.min() <= values.max() <= 65535:
        why = f"32-bit values {values.min()}..{values.max()} have no agreed white"
        raise _Refusal(why, "Scale it to 0..255 and save it as 8-bit PNG.")
    bits = 12 if 12 in getattr(picture, "tag_v2", {}).get(258, ()) else 16
    grey = (values >> (bits - 8)).astype(np.uint8)
    grey[values == picture.info.get("transparency", -1)] = 255
    return _array_to_rgb(grey)


def _array_to_rgb(array: Array) -> Array:
    if _kind(array) not in ("uint8 [H, W]", "uint8 [H, W, 3]"):
        why = f"{array.dtype} {list(array.shape)} is neither uint8 [H, W, 3] nor [H, W]"
        raise _Refusal(why, "Scale to 0..255, put colours last, drop alpha, then array.astype(np.uint8).")
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def _refuse_lossy(picture: Any) -> None:
    picture.fp.seek(0)
    lossy_webp = picture.format == "WEBP" and b"VP8L" not in picture.fp.read()  # The name of its lossless chunk.
    lossy_tiff = picture.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    if lossy_webp or lossy_tiff or picture.format in ("JPEG", "MPO"):
        why = f"lossy {picture.format} compression puts wrong values between labels"
        raise _Refusal(why, "Export the mask again from its source, as PNG.")


def _storage(picture: Any) -> tuple[str, int]:
    """Pillow's name of the stored pixels, and their maximum if Pillow stretches it to 255 or 65535 (else 0)."""
    args = picture.tile[0].args if picture.tile else ""
    rawmode, *rest = (args,) if isinstance(args, str) else args
    if picture.format == "PPM" and rest and picture.tile[0].codec_name != "raw":
        return rawmode, rest[0]
    return str(rawmode), {"L;2": 3, "L;4": 15}.get(str(rawmode)[:3], 0)


def _labels(picture: Image.Image, rawmode: str) -> Array:
    mode, values = picture.mode, np.array(picture)
    if mode in ("1", "L", "P"):
        return values.astype(np.uint8)
    if mode.startswith("I") and not (rawmode == "I;32N" and values.min() < 0):  # Unsigned and over 2^31.
        return values.astype(np.int32 if mode == "I" else np.uint16)
    if mode in ("RGB", "RGBA", "LA", "PA") and ";16" not in rawmode:
        if mode == "RGB":
            return values
        if (values[..., -1] == 255).all():
            return values[..., :3] if mode == "RGBA" else values[..., 0]
        raise _Refusal("some pixels are transparent: the mask is antialiased", "Save it without alpha or smooth edges.")
    raise _Refusal(f"pixels of mode {rawmode or mode} are no labels", "Save it as 8- or 16-bit grey or palette PNG.")


def _orientation(picture: Any) -> int:
    """The EXIF orientation 1-8 that is still to be applied; 1 where there is none or it cannot be read."""
    value = 1
    with suppress(Exception):  # EXIF is broken in every way there is; the picture is good all the same.
        value = Image.Image.getexif(picture).get(0x0112, 1)  # picture.getexif() would decode a PNG.
    return value if value in range(1, 9) and picture.format != "TIFF" else 1  # Pillow turns TIFF files by itself.


def _orient(pixels: Array, orientation: int) -> Array:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _kind(array: Array) -> str:
    depth = f", {array.shape[2]}" if array.ndim == 3 else ""
    return f"{array.dtype} [H, W{depth}]" if array.ndim in (2, 3) and array.size else "empty or of another rank"


def _encode(array: Array, name: str, kinds: Sequence[str], palette: Palette | None = None, **options: int) -> bytes:
    what, buffer = f"Cannot encode {name}", io.BytesIO()
    if _kind(array) not in kinds:
        why, fix = f"{array.dtype} {list(array.shape)}", f"Pass one of: {'; '.join(kinds)}."
        raise ImageError(what, where="array", why=why, fix=fix)
    try:
        picture = Image.fromarray(np.ascontiguousarray(array))
        if palette is not None:
            picture.putpalette(_checked_palette(palette, array).tobytes())
        picture.save(buffer, name, **options)
    except _Refusal as refusal:
        raise ImageError(what, where="palette", why=refusal.args[0], fix=refusal.args[1]) from None
    except Exception as error:  # A side over 65,500 for JPEG, for example.
        raise ImageError(what, where="array", why=str(error), fix="Use PNG, or make it smaller.") from error
    return buffer.getvalue()


def _checked_palette(palette: Palette, array: Array) -> Array:
    colours = np.asarray(palette)
    whole = colours.dtype.kind in "iu" and colours.shape[1:] == (3,) and 1 <= len(colours) <= 256
    if not whole or colours.min() < 0 or colours.max() > 255:
        raise _Refusal("it is not 1 to 256 colours of three numbers 0..255", "Pass [(r, g, b), ...].")
    if _kind(array) != "uint8 [H, W]" or array.max() >= len(colours):
        why = f"{array.dtype} values up to {array.max()} do not index {len(colours)} colours"
        raise _Refusal(why, "Pass uint8 [H, W] and a colour for every value that occurs.")
    return colours.astype(np.uint8)
