"""Random draws for training: the view of a photo (geometry), and the colours of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .affine import Box
from .transforms import Geometry
from .types import VOID, Letterbox, Segments

TRIES = 10
"""Views drawn in search of one that does not show too much of one class, as in Detectron2."""


def random_geometry(
    source: tuple[int, int],
    side: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.0,
    stretch: float = 0.1,
    squash: bool = False,
    flip_vertical: float = 0.0,
    rotate90: float = 0.0,
    angle: float = 0.0,
    shear: float = 0.0,
    category_limit: float = 1.0,
    segments: Segments | None = None,
) -> Geometry:
    """A random view on a square canvas: large-scale jitter (Ghiasi et al. 2021), slight stretch, flips, turns.

    Args:
        scale: size of the photo relative to one that just fits; above 1 a random window is cut.
        flip: probability of a flip left to right.
        stretch: the two axes differ by up to this factor.
        squash: a photo that just fits fills the canvas, whatever its aspect ratio.
        flip_vertical: probability of a flip upside down.
        rotate90: probability of one to three quarter turns.
        angle: largest turn besides, to either side, in degrees.
        shear: largest shear, to either side, in degrees.
        category_limit: while one class, or the background, has more than this share of the known pixels in view, the
            view is drawn again; the tenth stays whatever it shows.
        segments: truth of the photo, for a `category_limit` below 1.
    """
    limited = segments is not None and category_limit < 1
    for _ in range(TRIES if limited else 1):
        quarters = int(rng.integers(1, 4)) if rotate90 and rng.random() < rotate90 else 0
        # Draws that are switched off take no random numbers: a new option leaves the views of old settings alone.
        turn, tilt = (rng.uniform(-most, most) if most else 0.0 for most in (angle, shear))
        size = source[::-1] if quarters % 2 else source
        fitted = (side / size[0], side / size[1]) if squash else (side / max(size),) * 2
        window, content = _random_window(size, fitted, side, rng, scale, stretch)
        mirrored = bool(rng.random() < flip)
        upside_down = bool(flip_vertical and rng.random() < flip_vertical)
        if quarters or turn or tilt or upside_down:
            view = _turned_view(source, quarters, turn, tilt, window, content)
            geometry = _on_canvas(view, side, mirrored, upside_down)
        else:
            box = Letterbox((window[3] - window[1], window[2] - window[0]), content, (side, side))
            geometry = Geometry(window, box, flip=mirrored)
        if not limited or segments is None or largest_share(segments, geometry) <= category_limit:
            break
    return geometry


def _random_window(
    size: tuple[int, int],
    fitted: tuple[float, float],
    side: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    stretch: float,
) -> tuple[Box, tuple[int, int]]:
    """A window of a photo of `size` (H, W), and its (H, W) on the canvas. `fitted`: scales (y, x) at which it fits."""
    zoom = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1])))
    ratio = np.exp(rng.uniform(-stretch, stretch) / 2)
    y0, y1, height = _span(size[0], fitted[0] * zoom * ratio, side, rng)
    x0, x1, width = _span(size[1], fitted[1] * zoom / ratio, side, rng)
    return (x0, y0, x1, y1), (height, width)


def _span(length: int, scale: float, side: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(start, stop) in photo pixels and the length on the canvas of one axis."""
    cut = min(length, max(1, round(side / scale)))
    start = int(rng.integers(0, length - cut + 1))
    return start, start + cut, min(side, max(1, round(cut * scale)))


def _turned_view(
    source: tuple[int, int], quarters: int, turn: float, tilt: float, window: Box, content: tuple[int, int]
) -> Geometry:
    """A window of the turned photo. The photo turns under the window, so that the corners show more of it, not void."""
    view = Geometry.whole(source).turned(quarters)
    if turn or tilt:
        x0, y0, x1, y1 = window
        view = view.warped(turn, shear=tilt, center=((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2))
    return view.cropped(window).resized(content)


def _on_canvas(view: Geometry, side: int, mirrored: bool, upside_down: bool) -> Geometry:
    for asked, vertical in ((mirrored, False), (upside_down, True)):
        view = view.flipped(vertical=vertical) if asked else view
    height, width = view.letterbox.canvas
    return view.padded(right=side - width, bottom=side - height)


def largest_share(segments: Segments, geometry: Geometry) -> float:
    """Share of the known pixels in view that the most frequent class, or the background, has; 0 where none is known."""
    ids = geometry.labels(segments.id_map, VOID)
    flat = ids if ids.ndim == 2 else Segments.flatten_layers(ids)
    # In the order of ids: void, background, rows.
    areas = torch.bincount(flat.flatten() + 1, minlength=len(segments) + 2)[1:]
    known = torch.cat([areas[:1], areas[1:].masked_fill(segments.is_crowd, 0)])
    owners = torch.cat([torch.zeros(1, dtype=torch.int64), segments.classes + 1])
    shares = torch.zeros(int(owners.max()) + 1, dtype=torch.int64).index_add(0, owners, known)
    return float(shares.max() / shares.sum()) if shares.any() else 0.0


# ---- colour ----------------------------------------------------------------------------------------------------------


def jitter_color(images: Tensor, strength: float, chance: Sequence[torch.Generator]) -> Tensor:
    """Random brightness, contrast, saturation and, one in ten, grey, for each image.

    Kornia draws and applies them; its functions want 0..1. Hue is left alone: colour tells tissue and animals apart.

    Args:
        images: uint8 [B, 3, H, W].
        strength: factors are drawn from 1 - strength .. 1 + strength.
        chance: a generator for each image.

    Returns:
        float 0..255 [B, 3, H, W].
    """
    from kornia import enhance

    drawn = torch.stack([torch.rand(4, generator=own) for own in chance], dim=1)
    factors, grey = 1 + strength * (2 * drawn[:3] - 1), drawn[3] < 0.1 * (strength > 0)
    factors[0][grey] = 0
    saturation, contrast, brightness = factors.to(images.device)
    x = enhance.adjust_saturation_with_gray_subtraction(images.float() / 255, saturation)
    x = enhance.adjust_contrast_with_mean_subtraction(x, contrast)
    return enhance.adjust_brightness_accumulative(x, brightness) * 255


def photometric_distortion(images: Tensor, chance: Sequence[torch.Generator]) -> Tensor:
    """The distortion of SSD (Liu et al. 2016) with which MaskFormer and CAT-Seg are trained, for each image.

    Brightness, contrast, saturation and hue, each with probability 1/2; contrast comes before saturation and hue or, as
    often, after them. The hue turns by up to 36 degrees: 18 steps of the half degrees that 8-bit images have it in.
    Contrast and brightness are those of SSD, about black: padding must be blackened again afterwards, as brightness
    lifts it.

    Args:
        images: uint8 [B, 3, H, W].
        chance: a generator for each image.

    Returns:
        float 0..255 [B, 3, H, W].
    """
    from kornia import color, enhance

    drawn = torch.stack([torch.rand(9, generator=own) for own in chance], dim=1)
    happens, amount = drawn[:5] < 0.5, 2 * drawn[5:] - 1
    # Each becomes neutral where it is not drawn.
    brightness, contrast, saturation, hue = (amount * happens[:4]).to(images.device)
    early = happens[4].to(images.device)
    x = enhance.adjust_brightness(images.float() / 255, brightness * 32 / 255)
    x = enhance.adjust_contrast(x, 1 + contrast / 2 * early)
    x = enhance.adjust_saturation_raw(color.rgb_to_hsv(x), 1 + saturation / 2)
    x = color.hsv_to_rgb(enhance.adjust_hue_raw(x, hue * math.radians(36)))
    return enhance.adjust_contrast(x, 1 + contrast / 2 * ~early) * 255
