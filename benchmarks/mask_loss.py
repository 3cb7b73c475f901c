"""Matching and mask loss from id maps at points, against `transformers`' MaskFormer on full masks.

    python -m benchmarks mask_loss

One decoder layer of a training step: from query and pixel embeddings, class logits and id maps to the loss and the
gradients of all three. Both sides get the same tensors and the same weights (class 1, focal 20, dice 1, no object 0.1)
and start where the model ends, so the peer's time includes the full mask logits, which ours never builds, and the
masks [N, H, W], which its users make from the id map. These are made in the fastest way we know, one comparison.

Both matching and loss see 12,544 points an image, the number of the published recipes (Mask2Former, section 3.3):
`MaskCriterion(points=12544, oversample=1)` draws 12,544 candidates, which serve the matching, and keeps all of them for
the loss. The row "3 x candidates" is that recipe's importance sampling: the loss keeps 12,544 of 37,632 candidates, and
our matching sees all 37,632, three times what the recipe's does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from everymask.criterion import MaskCriterion
from everymask.layers.masks import QueryPixelMasks
from everymask.types import Batch, Letterbox, Prediction, Segments

from .measure import Row, Step, alternate, peak_memory

CLASS, FOCAL, DICE, NO_OBJECT = 1.0, 20.0, 1.0, 0.1


@dataclass(frozen=True)
class Sizes:
    """Of the inputs. `stride` is that of the pixel embeddings, `dim` their width."""

    batch: int = 2
    queries: int = 100
    segments: int = 30
    classes: int = 133
    side: int = 800
    stride: int = 4
    dim: int = 256
    points: int = 12544


SMALL = Sizes(batch=2, queries=8, segments=3, classes=5, side=64, dim=8, points=100)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model hands to its loss: leaves that collect gradients, and the truth."""

    queries: Tensor
    pixels: Tensor
    class_logits: Tensor
    batch: Batch

    def forget_gradients(self) -> None:
        """As `optimizer.zero_grad()` does between steps."""
        self.queries.grad = self.pixels.grad = self.class_logits.grad = None


def make_inputs(sizes: Sizes, seed: int = 0) -> Inputs:
    """Random but fixed; mask logits have a standard deviation of 1."""
    chance = torch.Generator().manual_seed(seed)
    cells = sizes.side // sizes.stride
    queries = torch.randn(sizes.batch, sizes.queries, sizes.dim, generator=chance) / sizes.dim**0.5
    pixels = torch.randn(sizes.batch, sizes.dim, cells, cells, generator=chance)
    class_logits = torch.randn(sizes.batch, sizes.queries, sizes.classes + 1, generator=chance)
    size = (sizes.side, sizes.side)
    batch = Batch(
        torch.zeros(sizes.batch, 3, *size, dtype=torch.uint8),
        (Letterbox(size, size, size),) * sizes.batch,
        tuple(make_truth(sizes, chance) for _ in range(sizes.batch)),
    )
    return Inputs(queries.requires_grad_(), pixels.requires_grad_(), class_logits.requires_grad_(), batch)


def make_truth(sizes: Sizes, chance: torch.Generator) -> Segments:
    """Segments without gaps: each pixel belongs to the nearest of some random places."""
    places = torch.rand(sizes.segments, 2, generator=chance) * sizes.side
    line = torch.arange(sizes.side, dtype=torch.float32)
    id_map = torch.zeros(sizes.side, sizes.side, dtype=torch.int32)
    nearest = torch.full((sizes.side, sizes.side), torch.inf)
    for n, (x, y) in enumerate(places.tolist(), start=1):
        distance = (line - y).square()[:, None] + (line - x).square()
        id_map[distance < nearest] = n
        nearest = torch.minimum(nearest, distance)
    return Segments.build(id_map, torch.randint(sizes.classes, (sizes.segments,), generator=chance))


def ours(sizes: Sizes, oversample: int = 1) -> Step:
    """A step of `MaskCriterion` that returns the loss."""
    inputs = make_inputs(sizes)
    criterion = MaskCriterion(CLASS, FOCAL, DICE, NO_OBJECT, focal=True, points=sizes.points, oversample=oversample)

    def step() -> float:
        torch.manual_seed(0)  # The criterion draws its points from the global generator.
        inputs.forget_gradients()
        batch = inputs.batch
        masks = QueryPixelMasks(inputs.queries, inputs.pixels, batch.letterboxes, batch.size)
        loss = torch.stack([*criterion(Prediction(inputs.class_logits, masks), batch).values()]).sum()
        loss.backward()
        return float(loss.detach())

    return step


def peer(sizes: Sizes) -> Step:
    """A step of `MaskFormerLoss` that returns the loss, as `MaskFormerForInstanceSegmentation` calls it."""
    # Here, so that measuring the memory of ours does not import it.
    from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher, MaskFormerLoss

    inputs = make_inputs(sizes)
    weights = {"loss_cross_entropy": CLASS, "loss_mask": FOCAL, "loss_dice": DICE}
    matcher = MaskFormerHungarianMatcher(cost_class=CLASS, cost_mask=FOCAL, cost_dice=DICE)
    criterion = MaskFormerLoss(sizes.classes, matcher, weights, NO_OBJECT)

    def step() -> float:
        inputs.forget_gradients()
        truth = inputs.batch.truth()
        logits = torch.einsum("bqc,bchw->bqhw", inputs.queries, inputs.pixels)
        terms = criterion(logits, inputs.class_logits, [dense_masks(s) for s in truth], [s.classes for s in truth])
        loss = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        loss.backward()
        return float(loss.detach())

    return step


def dense_masks(segments: Segments) -> Tensor:
    """float [N, H, W], the form in which `MaskFormerLoss` takes the truth: it cannot work on booleans."""
    return (segments.id_map == torch.arange(1, len(segments) + 1, dtype=torch.int32)[:, None, None]).float()


def rows(sizes: Sizes | None = None, rounds: int = 5) -> list[Row]:
    """Time of both sides in alternating runs, and peak memory of one run each in a process of its own."""
    sizes = sizes or Sizes()
    sides: dict[str, Callable[[Sizes], Step]] = {"ours": ours, "three": partial(ours, oversample=3), "peer": peer}
    seconds = alternate({name: prepare(sizes) for name, prepare in sides.items()}, rounds)
    memory = {name: peak_memory(prepare, SMALL, sizes) for name, prepare in sides.items()}
    plain = f"loss at {sizes.points:,} points"
    return [
        Row(f"{plain}: time", seconds["ours"], "s", seconds["peer"], ratio_least=5),
        Row(f"{plain}: memory", memory["ours"], "MiB", memory["peer"], ratio_least=8),
        Row("  3 x candidates: time", seconds["three"], "s", seconds["peer"]),
        Row("  3 x candidates: memory", memory["three"], "MiB", memory["peer"]),
    ]
