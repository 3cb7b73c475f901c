"""The files of a result: pictures, mask images, and a table that says what each value of each file means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import Array
from .files import write_json
from .heatmaps import HeatMaps
from .image import write_jpeg, write_png
from .maps import class_colors, class_map_image, id_layers, id_map_image, segment_areas, segment_boxes, void_value
from .types import VOID, Segments
from .visualize import cutout, overlay


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


def save_result(
    photo: Array,
    segments: Segments,
    folder: Path,
    name: str = "image",
    timings: Mapping[str, float] | None = None,
    heatmaps: HeatMaps | None = None,
) -> list[Path]:
    """Write all that is known of one photo into `folder` and return the files, each written in one step.

    `_overlay.jpg`, `_cutout.png`, `_ids.png` (a file a layer, `_ids_1.png` and on, where segments may overlap),
    `_classes.png`, `_mask.png` (foreground 255), `_heat_0_<class>.png` and on of heat maps, and, last, `<name>.json`
    that says what each value of each file means.

    Raises:
        EverymaskError: a file cannot be written.
    """
    # A name comes from a photo's file name, or from a caller: it must not lead out of the folder.
    stem = re.sub(r"[/\\:\x00-\x1f]", "_", name)
    overlay_file, cutout_file = f"{stem}_overlay.jpg", f"{stem}_cutout.png"
    write_jpeg(folder / overlay_file, np.asarray(overlay(photo, segments)))
    write_png(folder / cutout_file, np.asarray(cutout(photo, segments)))
    files: dict[str, dict[str, Any]] = {
        overlay_file: {"content": "photo with coloured segments, outlines and a legend"},
        cutout_file: {"content": "RGBA photo: alpha 255 is foreground, 0 is not"},
    }
    for suffix, (content, pixels, palette, values) in _mask_files(segments).items():
        write_png(folder / f"{stem}_{suffix}.png", pixels, palette)
        files[f"{stem}_{suffix}.png"] = {"content": content, "values": values}
    for suffix, label, pixels in heatmaps.files() if heatmaps else ():
        write_png(folder / f"{stem}_{suffix}.png", pixels)
        files[f"{stem}_{suffix}.png"] = {"content": f"probability of {label}: 255 is certain"}
    table = folder / f"{stem}.json"
    write_json(table, _summary(segments, name, timings or {}) | {"files": files})
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


def _summary(segments: Segments, name: str, timings: Mapping[str, float]) -> dict[str, Any]:
    height, width = segments.size
    classes = (
        segments.labels.to_json()["labels"] if segments.labels else [{"name": name} for name in _class_names(segments)]
    )
    return {
        "name": name,
        "width": width,
        "height": height,
        "classes": [{"index": k} | row for k, row in enumerate(classes)],
        "segments": segment_rows(segments),
        "void_area": int((id_layers(segments) == VOID).any(0).sum()),
        "seconds": {stage: _finite(value) for stage, value in timings.items()},
    }


def _finite(value: float) -> float | None:
    """Strict JSON has no NaN."""
    return round(value, 6) if math.isfinite(value) else None
