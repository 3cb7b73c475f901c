"""Segments made visible: overlays, cut-outs, and the files of a saved result.

Everything is painted the same way: a small colour table, one gather over the id map, one blend. Nothing loops over
pixels or segments to paint.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from .drawing import HATCH_DARK, HATCH_LIGHT, PAPER, Array, Color, Row, image_scale, percent, stripes, with_legend
from .errors import DataError, ImageError, UsageError
from .image import write_jpeg, write_png
from .maps import (
    class_colors,
    class_map_image,
    id_layers,
    id_map_image,
    segment_areas,
    segment_boxes,
    segment_colors,
    void_value,
)
from .types import BACKGROUND, VOID, Result, Segments

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


# ---- files ------------------------------------------------------------------------------------------------------


def segment_rows(segments: Segments) -> list[dict[str, Any]]:
    """One plain dictionary a segment, in order of id: what `Segment` knows, measured in one pass for all of them.

    `share` is the part of the image, `box` (x0, y0, x1, y1) with inclusive corners or None, `score` None for truth.
    """
    areas, boxes, pixels = segment_areas(segments).tolist(), segment_boxes(segments), math.prod(segments.size)
    return [
        {
            "id": segment.id,
            "label": segment.label,
            "class_index": segment.class_index,
            "is_thing": segment.is_thing,
            "is_crowd": segment.is_crowd,
            "score": None if segments.scores is None else _finite(segment.score),
            "area": area,
            "share": round(area / pixels, 6),
            "box": box,
        }
        for segment, area, box in zip(segments, areas, boxes, strict=True)
    ]


def save_result(result: Result, folder: Path) -> list[Path]:
    """Write all that is known of one photo into `folder` and return the files, each written in one step.

    `_overlay.jpg`, `_cutout.png`, `_ids.png` (a file a layer, `_ids_1.png` and on, where segments may overlap),
    `_classes.png`, `_mask.png` (foreground 255) and, last, `<name>.json` that says what each value of each file means.

    Raises:
        ImageError: a file cannot be written.
    """
    # A name comes from a photo's file name, or from a caller: it must not lead out of the folder.
    stem = re.sub(r"[/\\:\x00-\x1f]", "_", result.name)
    overlay_file, cutout_file = f"{stem}_overlay.jpg", f"{stem}_cutout.png"
    write_jpeg(folder / overlay_file, np.asarray(overlay(result.photo, result.segments)))
    write_png(folder / cutout_file, np.asarray(cutout(result.photo, result.segments)))
    files: dict[str, dict[str, Any]] = {
        overlay_file: {"content": "photo with coloured segments, outlines and a legend"},
        cutout_file: {"content": "RGBA photo: alpha 255 is foreground, 0 is not"},
    }
    for suffix, (content, pixels, palette, values) in _mask_files(result.segments).items():
        write_png(folder / f"{stem}_{suffix}.png", pixels, palette)
        files[f"{stem}_{suffix}.png"] = {"content": content, "values": values}
    table = folder / f"{stem}.json"
    _write_json(table, _summary(result) | {"files": files})
    return [*(folder / name for name in files), table]


MaskFile = tuple[str, Array, Array | None, dict[int, str]]
"""What it holds, pixels, palette, meaning of each value."""


def _mask_files(segments: Segments) -> dict[str, MaskFile]:
    """By suffix of the file name."""
    mask = segments.foreground.cpu().numpy().astype(np.uint8) * np.uint8(255)
    files = {suffix: _id_file(layer) for suffix, layer in _separate_layers(segments)}
    files["classes"] = _class_file(segments)
    files["mask"] = "foreground", mask, None, {0: "background or void", 255: "any segment"}
    return files


def _id_file(segments: Segments) -> MaskFile:
    pixels, palette = id_map_image(segments)
    labels = (segment.label for segment in segments)
    return "segment ids", pixels, palette, {0: "background", **dict(enumerate(labels, 1)), void_value(pixels): "void"}


def _class_file(segments: Segments) -> MaskFile:
    pixels, palette = class_map_image(segments)
    values = dict(enumerate([*_class_names(segments), "background"])) | {void_value(pixels): "void"}
    return "class indices", pixels, palette, values


def _separate_layers(segments: Segments) -> list[tuple[str, Segments]]:
    layers = segments.id_map if segments.id_map.ndim == 3 else segments.id_map[None]
    if len(layers) == 1:
        return [("ids", replace(segments, id_map=layers[0]))]
    return [(f"ids_{n}", replace(segments, id_map=layer)) for n, layer in enumerate(layers, 1)]


def _class_names(segments: Segments) -> list[str]:
    return list(segments.labels.names) if segments.labels else [str(k) for k in range(len(class_colors(segments)))]


def _summary(result: Result) -> dict[str, Any]:
    segments, (height, width) = result.segments, result.segments.size
    classes = segments.labels.to_json() if segments.labels else [{"name": name} for name in _class_names(segments)]
    return {
        "name": result.name,
        "width": width,
        "height": height,
        "classes": [{"index": k} | row for k, row in enumerate(classes)],
        "segments": segment_rows(segments),
        "void_area": int((id_layers(segments) == VOID).any(0).sum()),
        "seconds": {stage: _finite(value) for stage, value in result.timings.items()},
    }


def _finite(value: float) -> float | None:
    """Strict JSON has no NaN."""
    return round(value, 6) if math.isfinite(value) else None


def _write_json(path: Path, table: dict[str, Any]) -> None:
    """In one step, like the images: a reader never meets half a table."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        # File names that are no valid text come out as JSON escapes.
        partial.write_text(json.dumps(table, indent=1, ensure_ascii=False), "utf-8", errors="backslashreplace")
        os.replace(partial, path)
    except OSError as error:
        raise ImageError("cannot write the table of a result", where=path, why=error.strerror or str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


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
