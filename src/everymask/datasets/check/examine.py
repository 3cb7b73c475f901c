"""One sample: read its files, ask its reader, and where either refuses, find out why. Gives `Facts`, never raises."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import EverymaskError, ImageError
from ...image import read_image, read_mask, read_palette
from ...labels import LabelMap, packed
from ...maps import id_layers
from ...types import Segments
from ..base import Dataset, PairDataset
from ..classes import ClassTable
from ..semantic import hex_color
from . import kinds
from .facts import Facts
from .masks import Framing, binary_only, is_resampled, ramps, renumbered, shift_of, unknown_kind

KEPT_VALUES = 300
"""Different mask values that are counted one by one."""

VOID_SHARE = 0.95
"""A mask with more void than this teaches nearly nothing."""

BACKGROUND_ROW = -2
"""`Facts.classes` of background; void is -1."""


def examine_pair(image_path: Path, mask_path: Path, dataset: PairDataset | None) -> Facts:
    """Facts of a photo and its mask.

    Args:
        dataset: the reader; None where it refuses the data set as a whole.
    """
    facts = Facts()
    image = mask = None
    try:
        image = read_image(image_path)
        _look_at_image(facts, image)
    except ImageError as error:
        facts.sign(kinds.UNREADABLE_IMAGE, error.why)
    try:
        mask = read_mask(mask_path)
        _look_at_mask(facts, mask, mask_path, dataset)
    except ImageError as error:
        facts.sign(_mask_refusal(error), error.why)
    if image is not None and mask is not None:
        _compare_sizes(facts, image, mask, image_path, mask_path)
    return facts


def examine_sample(dataset: Dataset, index: int) -> Facts:
    """Facts of a sample whose reader takes more than a photo and a mask."""
    facts = Facts()
    try:
        sample = dataset[index]
        _look_at_image(facts, sample.image)
        facts.mask_digest = digest(sample.segments.id_map.numpy())
        _look_at_segments(facts, sample.segments)
    except EverymaskError as error:
        files = dataset.files(index)
        broken_image = isinstance(error, ImageError) and files and error.where == str(files[0])
        broken_mask = isinstance(error, ImageError) and not broken_image
        kind = kinds.UNREADABLE_IMAGE if broken_image else kinds.UNREADABLE_MASK if broken_mask else kinds.REFUSED
        facts.sign(kind, error.why if isinstance(error, ImageError) else error.message)
    return facts


def _mask_refusal(error: ImageError) -> kinds.Kind:
    known = {
        "lossy": kinds.LOSSY_MASK,
        "some pixels are transparent": kinds.TRANSPARENT_MASK,
        "pixels of mode": kinds.NOT_LABELS,
    }
    return next((kind for start, kind in known.items() if error.why.startswith(start)), kinds.UNREADABLE_MASK)


# --- the photo -------------------------------------------------------------------------------------------------------


def _look_at_image(facts: Facts, image: np.ndarray) -> None:
    facts.size = image.shape[0], image.shape[1]
    facts.digest = digest(image)
    facts.look = look(image)


def digest(pixels: np.ndarray) -> int:
    """64 bits of shape and pixels."""
    data = np.ascontiguousarray(pixels)
    hashed = hashlib.blake2b(data.data, digest_size=8, person=repr(data.shape).encode()[-16:])
    return int.from_bytes(hashed.digest(), "big")


def look(image: np.ndarray) -> int | None:
    """64 bits of a photo [H, W, 3]: whether it gets brighter from left to right in each field of an 8 x 8 grid.

    The difference hash of N. Krawetz ("Kind of like that", 2013). None for a picture of one plain colour.
    """
    picture = Image.fromarray(image)
    picture = picture.reduce(max(1, min(picture.size) // 32)).convert("L")
    grid = np.asarray(picture.resize((9, 8), Image.Resampling.BOX), np.int16)
    if np.ptp(grid) < 4:
        return None
    return int.from_bytes(np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes(), "big")


# --- the mask --------------------------------------------------------------------------------------------------------


def _look_at_mask(facts: Facts, mask: np.ndarray, path: Path, dataset: PairDataset | None) -> None:
    palette = np.array(read_palette(path) or [], np.uint8) if mask.ndim == 2 else np.empty(0, np.uint8)
    facts.holds = "colours" if mask.ndim == 3 else "palette" if len(palette) else "numbers"
    facts.mask_digest = digest(mask)
    table = dataset.mask_table(mask, path) if dataset else None
    pixels = _pixels(mask, palette, table)
    if dataset is None or (table and table.by_color == (pixels.ndim == 3)):
        _count_values(facts, pixels, palette, table)
    if dataset is None:
        return
    try:
        _look_at_segments(facts, dataset.segments(mask, path))
    except EverymaskError as error:
        facts.sign(*_explained(pixels, table, error))
        facts.shift = shift_of(facts.values, table.labels) if table and pixels.ndim == 2 else 0
    else:
        _look_for_resampling(facts, pixels, table)
    if table and facts.palette:
        _compare_palette(facts, table.labels)


def _pixels(mask: np.ndarray, palette: np.ndarray, table: ClassTable | None) -> np.ndarray:
    """What the table speaks of: the colours of a palette mask where colours are classes, else the mask itself."""
    through = table is not None and table.by_color and mask.ndim == 2 and mask.max(initial=0) < len(palette)
    return palette[mask] if through else mask


def _count_values(facts: Facts, pixels: np.ndarray, palette: np.ndarray, table: ClassTable | None) -> None:
    values, counts = _unique(pixels)
    order = np.argsort(-counts, kind="stable")[:KEPT_VALUES]
    facts.values = dict(zip(values[order].tolist(), counts[order].tolist(), strict=True))
    facts.other_values, facts.by_color = len(values) - len(order), pixels.ndim == 3
    if pixels.ndim == 2:
        facts.palette = {v: int(packed(palette[v])) for v in facts.values if v < len(palette)}
    if table:
        facts.meanings = {value: table.labels.meaning(value) for value in facts.values}
        facts.binary = binary_only(facts.values, table.labels)


def _unique(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different values of a mask, colours as one number, and how many pixels have each."""
    if mask.ndim == 3 or mask.dtype.itemsize > 2:
        return np.unique(packed(mask) if mask.ndim == 3 else mask, return_counts=True)
    counts = np.bincount(mask.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def _explained(pixels: np.ndarray, table: ClassTable | None, error: EverymaskError) -> tuple[kinds.Kind, str]:
    """Why a reader refuses a mask, and the particulars."""
    by_color = table is not None and table.by_color
    if pixels.ndim == 3 and not by_color:
        return kinds.RGB_MASK, "grey, in three equal channels" if _is_grey(pixels) else "coloured"
    if pixels.ndim == 2 and by_color:
        return kinds.INDEX_MASK, error.why
    if table is None:
        return kinds.REFUSED, error.message
    values = packed(pixels) if by_color else pixels
    unknown = ~np.isin(values, list(table.labels.pixel_classes()))
    if not unknown.any():
        return kinds.REFUSED, error.message
    if binary_only(np.unique(values).tolist(), table.labels):
        return kinds.BINARY_MASK, "only 0 and 255"
    return unknown_kind(pixels, unknown, ramps(pixels)), _listed(np.unique(values[unknown]).tolist(), by_color)


def _is_grey(mask: np.ndarray) -> bool:
    return bool((mask == mask[..., :1]).all())


def _listed(values: list[int], as_colours: bool) -> str:
    shown = ", ".join(hex_color(value) if as_colours else str(value) for value in values[:6])
    return f"{len(values)} unknown values: {shown}, ..." if len(values) > 6 else f"unknown: {shown}"


def _look_for_resampling(facts: Facts, pixels: np.ndarray, table: ClassTable | None) -> None:
    """What a reader cannot see: every value is known, and the labels are wrong all the same."""
    if table and pixels.ndim == 2 and len(facts.values) > 2:
        between = ramps(pixels)
        if is_resampled(pixels, between):
            facts.sign(kinds.RESAMPLED_LABELS, f"{int(between.sum()):,} pixels between two labels")


def _compare_palette(facts: Facts, table: LabelMap) -> None:
    used = {v: c for v, c in facts.palette.items() if 0 <= table.pixel_classes().get(v, -1) < len(table)}
    found = renumbered(used, table)
    said = [f"{value} is {table.meaning(value)} but has the colour of {name}" for value, name in found]
    if said:
        facts.sign(kinds.WRONG_PALETTE, "; ".join(said[:3]))


# --- what the reader makes of it -------------------------------------------------------------------------------------


def _look_at_segments(facts: Facts, segments: Segments) -> None:
    void, background, areas = _areas(segments)
    classes = segments.classes.tolist()
    facts.segments = len(classes)
    facts.classes = {-1: void, BACKGROUND_ROW: background}
    for k, area, thing, crowd in zip(
        classes, areas, segments.is_thing.tolist(), segments.is_crowd.tolist(), strict=True
    ):
        facts.classes[k] = facts.classes.get(k, 0) + area
        if thing and area and not crowd:
            sizes = facts.sizes.setdefault(k, {})
            power = area.bit_length() - 1
            sizes[power] = sizes.get(power, 0) + 1
    _look_at_coverage(facts, segments, void, background)


def _areas(segments: Segments) -> tuple[int, int, list[int]]:
    """Pixels of void, of background and of each segment."""
    ids = id_layers(segments)
    counts = np.bincount(ids.ravel() + 1, minlength=len(segments) + 2)
    if len(ids) == 1:
        return int(counts[0]), int(counts[1]), counts[2:].tolist()
    void = int(segments.void.sum())
    background = int((~segments.foreground & ~segments.void).sum())
    return void, background, counts[2:].tolist()


def _look_at_coverage(facts: Facts, segments: Segments, void: int, background: int) -> None:
    height, width = segments.size
    if void > VOID_SHARE * height * width:
        facts.sign(kinds.MOSTLY_VOID, f"{void / (height * width):.1%} void")
    elif not any(pixels for k, pixels in facts.classes.items() if k >= 0):
        facts.sign(kinds.EMPTY_MASK)
    elif background and len(set(segments.classes.tolist())) == 1:
        framing = Framing.of(segments.foreground.numpy(), ~segments.void.numpy())
        facts.framing = (framing.border, framing.centre) if framing else None


# --- photo against mask ----------------------------------------------------------------------------------------------


def _compare_sizes(facts: Facts, image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    here, there = _orientation(image_path), _orientation(mask_path)
    (height, width), other = image.shape[:2], mask.shape[:2]
    if (height, width) == other:
        # A quarter turn would have exchanged the sides, so only a mirrored, half turned or square photo is in doubt.
        if here != there and (max(here, there) < 5 or height == width):
            facts.sign(kinds.EXIF_UNCLEAR, f"orientation {here} of the photo, {there} of the mask")
    elif (width, height) == other and (here >= 5) != (there >= 5):
        facts.sign(kinds.EXIF_ONE_SIDE, f"photo {width} x {height} upright, mask {other[1]} x {other[0]}")
    else:
        facts.sign(kinds.SIZE_MISMATCH, f"photo {width} x {height}, mask {other[1]} x {other[0]}")


def _orientation(path: Path) -> int:
    """The EXIF orientation 1-8 of a file that was read before; 1 where there is none."""
    with suppress(Exception), Image.open(path) as picture:  # EXIF is broken in every way there is.
        value = Image.Image.getexif(picture).get(0x0112, 1)
        return value if value in range(1, 9) and picture.format != "TIFF" else 1
    return 1
