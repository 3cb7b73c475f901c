"""Segments made visible: overlays and cut-outs.

Everything is painted the same way: a small colour table, one gather over the id map, one blend. Nothing loops over
pixels or segments to paint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from .drawing import HATCH_DARK, HATCH_LIGHT, PAPER, Array, Color, Row, image_scale, percent, stripes, with_legend
from .errors import DataError, UsageError
from .maps import (
    class_colors,
    id_layers,
    segment_areas,
    segment_colors,
)
from .types import BACKGROUND, VOID, Segments

# ---- pictures ---------------------------------------------------------------------------------------------------


def overlay(
    photo: Array, segments: Segments, *, opacity: float = 0.5, outline: bool = True, legend: bool = True
) -> Image.Image:
    """The photo with coloured segments: class colours, a shade of its own for each instance, void hatched.

    Pixels of the background are exactly the photo's. Overlapping layers are painted in order.

    Args:
        photo: uint8 [H, W, 3].
        opacity: 0 leaves the photo as it is (but for outlines), 1 hides it under the segments.
        outline: opaque borders inside each segment, 2 pixels at 640 x 480 and in proportion elsewhere.
        legend: a strip below the photo with name, score or count, and area share of each class.

    Raises:
        DataError: photo and segments differ in size.
        UsageError: opacity is not in 0..1.
    """
    check_photo(photo, segments)
    if not 0 <= opacity <= 1:
        raise UsageError("cannot draw an overlay", where="opacity", why=f"{opacity} is not in 0..1", fix="Pass 0.5.")
    canvas, table = Image.fromarray(photo), _paint_table(segments, round(255 * opacity))
    border = max(1, round(3.5 * image_scale(segments.size))) if outline else 0
    for layer in id_layers(segments):
        _paint(canvas, layer, table, border)
    return with_legend(canvas, _legend_rows(segments)) if legend else canvas


def cutout(
    photo: Array, segments: Segments, *, classes: Sequence[str] | None = None, color: Color | None = None
) -> Image.Image:
    """RGBA photo of the foreground: its soft matte where there is one, else the hard masks.

    Half-transparent pixels keep the photo's own colour: mixing in black would show as a dark halo on any new ground.
    Where nothing is left to see the colour is 0, so that files compress.

    Args:
        photo: uint8 [H, W, 3].
        classes: names of the classes to keep, all by default.
        color: fill the ground with this RGB instead of making it transparent.

    Raises:
        DataError: a name is not in the class table (the message lists it), or sizes differ.
        UsageError: names without a class table.
    """
    check_photo(photo, segments)
    alpha = _cutout_alpha(segments, classes)
    if color is not None:
        ground = Image.new("RGB", alpha.shape[::-1], color)
        ground.paste(Image.fromarray(photo), mask=Image.fromarray(alpha))
        return ground.convert("RGBA")
    return Image.fromarray(np.dstack([photo * (alpha > 0)[..., None], alpha]))


def check_photo(photo: Array, segments: Segments) -> None:
    """Raise `DataError` unless the photo is uint8 RGB and exactly as large as the segments."""
    if photo.dtype != np.uint8 or photo.shape != (*segments.size, 3):
        why = f"the segments need uint8 {(*segments.size, 3)}, the photo is {photo.dtype} {photo.shape}"
        raise DataError("photo and segments do not fit", where="photo", why=why)


# ---- painting ---------------------------------------------------------------------------------------------------


def _paint_table(segments: Segments, veil: int) -> Array:
    """uint8 [3, N+2, 4]: RGBA by place (between the lines of a hatch, on a light one, on a dark one) and id + 1.

    Only void (row 0) and crowds change with the place; background (row 1) is clear everywhere.
    """
    table = np.zeros((3, len(segments) + 2, 4), np.uint8)
    table[:, 2:, :3], table[:, 2:, 3] = segment_colors(segments), veil
    crowd = 2 + np.flatnonzero(segments.is_crowd.cpu().numpy())
    table[0, crowd, 3] = 0
    table[1, 0], table[2, 0], table[2, crowd] = (*HATCH_LIGHT, veil), (*HATCH_DARK, veil), (*HATCH_DARK, veil)
    return table


def _paint(canvas: Image.Image, ids: Array, table: Array, border: int) -> None:
    """Blend the colours of one layer of ids into the canvas; `border` pixels along each edge are opaque."""
    rows = ids + 1
    has_crowd = (table[0, 2:] != table[1, 2:]).any()
    if has_crowd or (ids == VOID).any():
        period = max(6, round(14 * image_scale(ids.shape)))
        rows += stripes(ids.shape, period) * np.int32(table.shape[1])
    # Four bytes are gathered as one word, which is many times faster than rows of a table.
    pixels = table.view(np.uint32).ravel()[rows].view(np.uint8).reshape(*ids.shape, 4)
    if border:
        pixels[..., 3][_inner_border(ids, border)] = 255
    layer = Image.fromarray(pixels)
    canvas.paste(layer, mask=layer)


def _inner_border(ids: Array, width: int) -> Array:
    """bool [H, W]: pixels of segments that have another id `width` pixels to a side. The image's own rim is no edge."""
    edge = np.zeros(ids.shape, bool)
    for lines, marks in ((ids, edge), (ids.T, edge.T)):
        differs = lines[width:] != lines[:-width]
        marks[width:] |= differs
        marks[:-width] |= differs
    return edge & (ids > BACKGROUND)


def _cutout_alpha(segments: Segments, classes: Sequence[str] | None) -> Array:
    owned = segments.foreground.cpu().numpy()
    kept = owned if classes is None else _select(segments, classes)
    if segments.alpha is None:
        return kept.astype(np.uint8) * np.uint8(255)
    alpha: Array = segments.alpha.cpu().numpy()
    if classes is None:
        return alpha
    if not kept.any():
        return np.zeros_like(alpha)
    # A matte reaches beyond the masks (hair): out there a pixel goes with the nearest segment.
    nearest = ndimage.distance_transform_edt(~owned, return_distances=False, return_indices=True)
    return np.where(kept[tuple(nearest)], alpha, np.uint8(0))


def _select(segments: Segments, classes: Sequence[str]) -> Array:
    """bool [H, W]: pixels of segments whose class is named."""
    if segments.labels is None:
        fix = "Leave classes out, or give the segments their class table."
        raise UsageError("cannot choose classes by name", where="classes", why="there is no class table", fix=fix)
    names = [classes] if isinstance(classes, str) else classes
    wanted = np.isin(segments.classes.cpu().numpy(), [segments.labels.index(name) for name in names])
    hit: Array = np.concatenate([[False], wanted, [False]])[id_layers(segments)]
    return np.asarray(hit.any(0))


# ---- legend ----------------------------------------------------------------------------------------------------


def _legend_rows(segments: Segments) -> list[Row]:
    """One row a class, largest area first; crowds have their own; void comes last."""
    areas, colors, pixels = segment_areas(segments), class_colors(segments), math.prod(segments.size)
    groups: dict[tuple[int, bool], list[int]] = {}
    for n in np.flatnonzero(areas):
        groups.setdefault((int(segments.classes[n]), bool(segments.is_crowd[n])), []).append(int(n))
    ranked = sorted(groups.items(), key=lambda group: -areas[group[1]].sum())
    rows: list[Row] = []
    for (k, crowd), members in ranked:
        red, green, blue = colors[k].tolist()
        text = f"{_group_name(segments, members, crowd)} · {percent(areas[members].sum() / pixels)}"
        rows.append(((red, green, blue), crowd, text))
    if void := int((id_layers(segments) == VOID).any(0).sum()):
        rows.append((HATCH_LIGHT, True, f"void · {percent(void / pixels)}"))
    return rows or [(PAPER, False, "nothing found")]


def _group_name(segments: Segments, members: list[int], crowd: bool) -> str:
    name = segments[members[0]].label + " crowd" * crowd
    if len(members) > 1:
        return f"{name} x{len(members)}"
    return name if segments.scores is None else f"{name} {segments[members[0]].score:.2f}"
