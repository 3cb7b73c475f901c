"""Networks that see each photo on its own canvas, whatever the batch pads it to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Batch, round_up

Size = tuple[int, int]


def own_canvases(batch: Batch, multiple: int = 32) -> dict[Size, list[int]]:
    """Images of the batch by their own canvas: their content rounded up to `multiple`."""
    groups: dict[Size, list[int]] = {}
    for b, box in enumerate(batch.letterboxes):
        canvas = round_up(box.content[0], multiple), round_up(box.content[1], multiple)
        groups.setdefault(canvas, []).append(b)
    return groups


def by_canvas(
    network: Callable[[Tensor], Sequence[Tensor]], images: Tensor, batch: Batch, multiple: int = 32
) -> list[Tensor]:
    """Run `network` on the images of each canvas size together, and put its answers in the batch's order.

    Windows, group norms and convolutions at the border all look at padding. Cut away, it cannot change a thing: a
    batch gives what its images give alone. Photos of one size, the usual case, go through in one piece.

    Args:
        network: [b, 3, h, w] -> tensors [b, ...]; those of four axes are maps, which are padded to the batch's canvas.
        images: [B, 3, H, W] normalised.
    """
    groups = own_canvases(batch, multiple)
    answers = []
    for canvas, indices in groups.items():
        found = network(images[indices, :, : canvas[0], : canvas[1]])
        answers.append([_padded(x, canvas, batch.size) if x.ndim == 4 else x for x in found])
    order = torch.tensor([b for indices in groups.values() for b in indices], device=images.device).argsort()
    return [torch.cat(parts)[order] for parts in zip(*answers, strict=True)]


def _padded(maps: Tensor, canvas: Size, whole: Size) -> Tensor:
    """Maps [b, D, h, w] that cover `canvas`, with zeros at the right and bottom so that they cover `whole`."""
    height, width = (length * out // own for length, out, own in zip(maps.shape[-2:], whole, canvas, strict=True))
    return F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]))
