"""Geometry that moves image, id map, alpha and points together, in one resampling; batching; colour jitter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .types import VOID, Batch, Letterbox, Sample, Segments


@dataclass(frozen=True)
class Geometry:
    """Crop, resize to the letterbox's content, flip within it, pad to its canvas.

    Attributes:
        crop: (x0, y0, x1, y1) in photo pixels, x1 and y1 exclusive.
        letterbox: from the crop's size to the canvas.
        flip: mirrored left to right.
    """

    crop: tuple[int, int, int, int]
    letterbox: Letterbox
    flip: bool = False

    @classmethod
    def fit(cls, source: tuple[int, int], side: int, multiple: int = 32) -> Geometry:
        """The whole photo on the smallest canvas: what inference uses."""
        return cls((0, 0, source[1], source[0]), Letterbox.fit(source, side, multiple))

    def image(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> uint8 [3, canvas], antialiased bilinear, zeros beyond the content."""
        # A view in the photo's own memory order: PyTorch resizes uint8 pixels eight times as fast as Pillow this way.
        return self._resampled(torch.from_numpy(_writable(image)).permute(2, 0, 1))

    def alpha(self, alpha: Tensor) -> Tensor:
        """uint8 matte [H, W] -> [canvas], resampled like the image that it belongs to."""
        return self._resampled(alpha[None])[0]

    def _resampled(self, values: Tensor) -> Tensor:
        height, width = self.letterbox.content
        x0, y0, x1, y1 = self.crop
        cut = values[None, :, y0:y1, x0:x1]
        resized = F.interpolate(cut, size=(height, width), mode="bilinear", antialias=True)[0]
        canvas = values.new_zeros(len(values), *self.letterbox.canvas)
        canvas[:, :height, :width] = resized.flip(-1) if self.flip else resized
        return canvas

    def labels(self, values: Tensor, fill: int) -> Tensor:
        """Integer maps [..., H, W] -> [..., canvas] by nearest pixel, `fill` beyond the content."""
        height, width = self.letterbox.content
        x0, y0, x1, y1 = self.crop
        rows, columns = _nearest(y0, y1, height), _nearest(x0, x1, width)
        columns = columns.flip(0) if self.flip else columns
        canvas = values.new_full((*values.shape[:-2], *self.letterbox.canvas), fill)
        # One axis after the other: less than half the time of a two-dimensional gather.
        canvas[..., :height, :width] = values.index_select(-2, rows).index_select(-1, columns)
        return canvas

    def points(self, points: Tensor) -> Tensor:
        """Photo points [..., 2] -> canvas points."""
        moved = self.letterbox.to_canvas(points - points.new_tensor(self.crop[:2]))
        if self.flip:
            moved = torch.stack([self.letterbox.content[1] - 1 - moved[..., 0], moved[..., 1]], dim=-1)
        return moved

    def boxes(self, boxes: Tensor) -> Tensor:
        """Photo boxes [..., 4] (x0, y0, x1, y1), corners inclusive -> canvas boxes, corners in order."""
        # Edges move, not the centres of corner pixels: these have other edges at another scale.
        edges = self.points((boxes + boxes.new_tensor([-1, -1, 1, 1]) / 2).unflatten(-1, (2, 2)))
        low, high = edges.amin(-2), edges.amax(-2)
        half_pixel = ((high - low) / 2).clamp(max=0.5)
        return torch.cat([low + half_pixel, high - half_pixel], dim=-1)

    def segments(self, segments: Segments) -> Segments:
        """Truth on the canvas: void beyond the content; segments that fell outside are dropped and ids renumbered."""
        ids = self.labels(segments.id_map, fill=VOID)
        alpha = None if segments.alpha is None else self.alpha(segments.alpha)
        return drop_absent(replace(segments, id_map=ids, alpha=alpha))


def _writable(image: np.ndarray) -> np.ndarray:
    """The same array, or a copy of one that is read-only (a memory map): a tensor cannot promise not to write."""
    return image if image.flags.writeable else image.copy()


def _nearest(start: int, stop: int, count: int) -> Tensor:
    """Photo index under the centre of each of `count` pixels that cover [start, stop)."""
    return (start + (torch.arange(count) + 0.5) * ((stop - start) / count)).floor().long()


def drop_absent(segments: Segments) -> Segments:
    """Without the rows that no pixel belongs to; ids renumbered in order."""
    counts = torch.bincount(segments.id_map.flatten().clamp(min=0), minlength=len(segments) + 1)[1:]
    present = counts > 0
    if bool(present.all()):
        return segments
    new_ids = torch.cumsum(present, 0).to(torch.int32)
    # Ids -1 and 0 read the two last entries: void and background stay what they are.
    lookup = torch.cat([new_ids, torch.tensor([VOID, 0], dtype=torch.int32)])
    return replace(
        segments,
        id_map=lookup[segments.id_map.long() - 1],
        classes=segments.classes[present],
        is_thing=segments.is_thing[present],
        is_crowd=segments.is_crowd[present],
        scores=None if segments.scores is None else segments.scores[present],
    )


def random_geometry(
    source: tuple[int, int],
    side: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.0,
    stretch: float = 0.1,
) -> Geometry:
    """A random view on a square canvas: large-scale jitter (Ghiasi et al. 2021), slight stretch, flip.

    Args:
        scale: size of the photo relative to one that just fits; above 1 a random window is cut.
        stretch: the two axes differ by up to this factor.
    """
    low, high = np.log(scale[0]), np.log(scale[1])
    fitted = side / max(source) * np.exp(rng.uniform(low, high))
    ratio = np.exp(rng.uniform(-stretch, stretch) / 2)
    y0, y1, height = _window(source[0], fitted * ratio, side, rng)
    x0, x1, width = _window(source[1], fitted / ratio, side, rng)
    letterbox = Letterbox((y1 - y0, x1 - x0), (height, width), (side, side))
    return Geometry((x0, y0, x1, y1), letterbox, flip=bool(rng.random() < flip))


def _window(length: int, scale: float, side: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(start, stop) in photo pixels and the length on the canvas of one axis."""
    cut = min(length, max(1, round(side / scale)))
    start = int(rng.integers(0, length - cut + 1))
    return start, start + cut, min(side, max(1, round(cut * scale)))


def collate(samples: Sequence[Sample], geometries: Sequence[Geometry]) -> Batch:
    """Samples on one canvas, each padded right and bottom to the largest."""
    height = max(g.letterbox.canvas[0] for g in geometries)
    width = max(g.letterbox.canvas[1] for g in geometries)
    grown = [replace(g, letterbox=replace(g.letterbox, canvas=(height, width))) for g in geometries]
    images = torch.stack([g.image(s.image) for g, s in zip(grown, samples, strict=True)])
    segments = tuple(g.segments(s.segments) for g, s in zip(grown, samples, strict=True))
    return Batch(images, tuple(g.letterbox for g in grown), segments, tuple(s.name for s in samples))


def jitter_color(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Random brightness, contrast, saturation and, one in ten, grey, for each image.

    Kornia draws and applies them; its functions want 0..1. Hue is left alone: colour tells tissue and animals apart.

    Args:
        images: uint8 [B, 3, H, W].
        strength: factors are drawn from 1 - strength .. 1 + strength.

    Returns:
        float 0..255 [B, 3, H, W].
    """
    from kornia import enhance

    factors = 1 + strength * (2 * torch.rand(3, len(images), generator=generator) - 1)
    grey = torch.rand(len(images), generator=generator) < 0.1 * (strength > 0)
    factors[0][grey] = 0
    saturation, contrast, brightness = factors.to(images.device)
    x = enhance.adjust_saturation_with_gray_subtraction(images.float() / 255, saturation)
    x = enhance.adjust_contrast_with_mean_subtraction(x, contrast)
    return enhance.adjust_brightness_accumulative(x, brightness) * 255
