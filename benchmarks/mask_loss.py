"""Matching and mask loss from id maps at points, against `transformers`' MaskFormer on full masks.

    python -m benchmarks mask_loss

One decoder layer of a training step, or all six: from query and pixel embeddings, class logits and id maps to the loss
and the gradients of all three. Both sides get the same tensors and the same weights (class 1, focal 20, dice 1, no
object 0.1) and start where the model ends, so the peer's time includes the full mask logits, which ours never builds,
and the masks [N, H, W], which its users make from the id map. These are made in the fastest way we know, one
comparison.

Both matching and loss see 12,544 points an image, the number of the published recipes (Mask2Former, section 3.3):
`MaskCriterion(points=12544, oversample=1)` draws 12,544 candidates, which serve the matching, and keeps all of them for
the loss. The row "3 x candidates" is that recipe's importance sampling: the loss keeps 12,544 of 37,632 candidates, and
our matching sees all 37,632, three times what the recipe's does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from everymask.criterion import MaskCriterion
from everymask.layers.masks import PixelMap, QueryPixelMasks
from everymask.types import Batch, Letterbox, Prediction, Segments

from .measure import Row, Step, alternate, peak_memory

CLASS, FOCAL, DICE, NO_OBJECT = 1.0, 20.0, 1.0, 0.1


@dataclass(frozen=True)
class Sizes:
    """Of the inputs. `stride` is that of the pixel embeddings, `dim` their width, `layers` those of the decoder."""

    batch: int = 2
    queries: int = 100
    segments: int = 30
    classes: int = 133
    side: int = 800
    stride: int = 4
    dim: int = 256
    points: int = 12544
    layers: int = 1


SMALL = Sizes(batch=2, queries=8, segments=3, classes=5, side=64, dim=8, points=100)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model hands to its loss: leaves that collect gradients, and the truth. Queries and classes by layer."""

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
    heads = (sizes.layers, sizes.batch, sizes.queries)
    queries = torch.randn(*heads, sizes.dim, generator=chance) / sizes.dim**0.5
    pixels = torch.randn(sizes.batch, sizes.dim, cells, cells, generator=chance)
    class_logits = torch.randn(*heads, sizes.classes + 1, generator=chance)
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
        batch, pixels = inputs.batch, PixelMap(inputs.pixels)
        layers = [
            Prediction(logits, QueryPixelMasks(queries, pixels, batch.letterboxes, batch.size))
            for logits, queries in zip(inputs.class_logits, inputs.queries, strict=True)
        ]
        last = Prediction(layers[-1].class_logits, layers[-1].masks, aux=tuple(layers[:-1]))
        loss = torch.stack([*criterion(last, batch).values()]).sum()
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
        logits = torch.einsum("lbqc,bchw->lbqhw", inputs.queries, inputs.pixels)
        layers = [
            {"masks_queries_logits": masks, "class_queries_logits": classes}
            for masks, classes in zip(logits, inputs.class_logits, strict=True)
        ]
        terms = criterion(
            *layers[-1].values(), [dense_masks(s) for s in truth], [s.classes for s in truth], layers[:-1]
        )
        loss = torch.stack([weights[name.rstrip("_0123456789")] * term for name, term in terms.items()]).sum()
        loss.backward()
        return float(loss.detach())

    return step


def dense_masks(segments: Segments) -> Tensor:
    """float [N, H, W], the form in which `MaskFormerLoss` takes the truth: it cannot work on booleans."""
    return (segments.id_map == torch.arange(1, len(segments) + 1, dtype=torch.int32)[:, None, None]).float()


def rows(sizes: Sizes | None = None, rounds: int = 5) -> list[Row]:
    """One layer with the bars of the mask loss, and MaskFormer's six layers at 512 x 512."""
    one = compared(sizes or Sizes(), rounds, time_least=5, memory_least=8)
    six = replace(sizes, layers=2) if sizes else Sizes(side=512, layers=6)
    return one + compared(six, rounds, time_least=5, memory_least=2)


def compared(sizes: Sizes, rounds: int, time_least: float, memory_least: float) -> list[Row]:
    """Time of both sides in alternating runs, and peak memory of one run each in a process of its own."""
    sides: dict[str, Callable[[Sizes], Step]] = {"ours": ours, "three": partial(ours, oversample=3), "peer": peer}
    seconds = alternate({name: prepare(sizes) for name, prepare in sides.items()}, rounds)
    memory = {name: peak_memory(prepare, SMALL, sizes) for name, prepare in sides.items()}
    plain = f"{sizes.side}x{sizes.side}, {sizes.layers} layer{'s' * (sizes.layers > 1)}, {sizes.points:,} points"
    return [
        Row(f"{plain}: time", seconds["ours"], "s", seconds["peer"], ratio_least=time_least),
        Row(f"{plain}: memory", memory["ours"], "MiB", memory["peer"], ratio_least=memory_least),
        Row("  3 x candidates: time", seconds["three"], "s", seconds["peer"]),
        Row("  3 x candidates: memory", memory["three"], "MiB", memory["peer"]),
    ]
