"""MaskFormer against `transformers` with the same weights.

    python -m benchmarks maskformer

- **image to panoptic result**: a 640x640 photo, Swin-T, 133 classes, the score threshold set so that 15 queries are
  kept. Both sides resize, normalise, run and post-process; weights are random, with heads spread so that queries
  differ (the time of the network does not depend on them).
- **post-processing alone**, from the same class and mask logits.
- **a 4096x4096 image, 100 kept segments**: what post-processing takes beyond its inputs.

The loss and matching of a training step: `python -m benchmarks mask_loss`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import everymask
from everymask import postprocess
from everymask.checkpoint import load
from everymask.labels import LabelMap
from everymask.layers.masks import QueryPixelMasks
from everymask.types import Letterbox, Prediction

from .measure import Row, Step, alternate, peak_memory

CLASSES, KEPT = 133, 15


@dataclass(frozen=True)
class Sizes:
    """Of the inputs of post-processing."""

    side: int = 640
    queries: int = 100
    kept: int = KEPT


def logits(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Class logits [Q, K+1], of which `kept` are confident, and mask logits [Q, h, w] at stride 4.

    The confident queries share the image among them: each has the pixels that are nearest to its place.
    """
    chance = torch.Generator().manual_seed(0)
    classes = torch.randn(sizes.queries, CLASSES + 1, generator=chance)
    classes[torch.arange(sizes.kept), torch.randint(CLASSES, (sizes.kept,), generator=chance)] += 14
    side = sizes.side // 4
    coarse = torch.randn(1, sizes.queries, 7, 7, generator=chance)
    masks = 6 * F.interpolate(coarse, (side, side), mode="bicubic")[0]
    masks[: sizes.kept] = nearest_place(torch.rand(sizes.kept, 2, generator=chance) * side, side)
    return classes, masks


def nearest_place(places: Tensor, side: int) -> Tensor:
    """Mask logits [n, side, side]: above zero where a place [n, 2] is nearer than all others."""
    line = torch.arange(side, dtype=torch.float32)
    maps = torch.empty(len(places), side, side)
    for logit, (x, y) in zip(maps, places.tolist(), strict=True):
        logit.copy_(-((line - y).square()[:, None] + (line - x).square()).sqrt())
    first, second = maps.topk(2, dim=0).values
    for logit in maps:
        logit.sub_(torch.where(logit == first, second, first))
    return maps


def labels() -> LabelMap:
    """133 classes, all of them things: nothing is merged on either side."""
    return LabelMap.from_names(f"class {k}" for k in range(CLASSES))


def ours(sizes: Sizes) -> Step:
    """Panoptic post-processing to a photo of `side` x `side`."""
    classes, masks = logits(sizes)
    size = (sizes.side, sizes.side)
    box, table = Letterbox(size, size, size), labels()
    decoder = QueryPixelMasks(torch.eye(sizes.queries)[None], masks[None], (box,), size)
    prediction = Prediction(classes[None], decoder)

    def step() -> int:
        return len(postprocess.panoptic(prediction, box, table, threshold=0.5, covered_only=False))

    return step


def peer(sizes: Sizes) -> Step:
    """`post_process_panoptic_segmentation` on the same logits."""
    from transformers import MaskFormerImageProcessor
    from transformers.models.maskformer.modeling_maskformer import MaskFormerForInstanceSegmentationOutput

    classes, masks = logits(sizes)
    outputs = MaskFormerForInstanceSegmentationOutput(
        class_queries_logits=classes[None], masks_queries_logits=masks[None]
    )
    processor = MaskFormerImageProcessor()

    def step() -> int:
        found = processor.post_process_panoptic_segmentation(
            outputs,
            threshold=0.5,
            label_ids_to_fuse=set(),
            target_sizes=[(sizes.side, sizes.side)],
        )
        return len(found[0]["segments_info"])

    return step


def whole_way(folder: Path) -> dict[str, Step]:
    """From image file to panoptic result, ours and the peer's, with one set of weights."""
    from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation, MaskFormerImageProcessor, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    config = MaskFormerConfig(backbone_config=backbone, id2label=dict(enumerate(labels().names)))
    model = MaskFormerForInstanceSegmentation(config).eval()
    processor = MaskFormerImageProcessor(size={"shortest_edge": 640, "longest_edge": 1333})
    photo = write_photo(folder / "photo.jpg", 640)
    threshold = spread(model, processor, photo)
    model.save_pretrained(folder / "weights")
    processor.save_pretrained(folder / "weights")
    loaded = load(folder / "weights")
    options: dict[str, Any] = {"threshold": threshold, "overlap": 0.0, "covered_only": False}

    def run_ours() -> int:
        return len(everymask.predict(loaded, photo, task="panoptic", **options).segments)

    def run_peer() -> int:
        image = Image.open(photo)
        with torch.inference_mode():
            outputs = model(**processor(image, return_tensors="pt"))
        found = processor.post_process_panoptic_segmentation(
            outputs,
            threshold=threshold,
            overlap_mask_area_threshold=0.0,
            label_ids_to_fuse=set(),
            target_sizes=[image.size[::-1]],
        )
        return len(found[0]["segments_info"])

    return {"ours": run_ours, "peer": run_peer}


def write_photo(path: Path, side: int) -> Path:
    """A bundled photo as a square JPEG."""
    source = sorted((Path(everymask.__file__).parent / "samples" / "photos").glob("*.jpg"))[0]
    Image.open(source).convert("RGB").resize((side, side), Image.Resampling.LANCZOS).save(path, quality=90)
    return path


@torch.inference_mode()
def spread(model: Any, processor: Any, photo: Path) -> float:
    """Make the queries of random weights differ; returns the score that `KEPT` of them exceed."""
    inputs = processor(Image.open(photo), return_tensors="pt")
    states = model.model(**inputs)
    queries, pixels = states.transformer_decoder_last_hidden_state[0], states.pixel_decoder_last_hidden_state[0]
    model.class_predictor.weight.div_(model.class_predictor(queries).std(0, keepdim=True).T / 4)
    model.class_predictor.bias.sub_(model.class_predictor(queries).mean(0))
    last = model.get_submodule("mask_embedder.2.0")
    last.weight.mul_(4 / model.mask_embedder(queries).std(0).mean())
    last.bias.sub_(model.mask_embedder(queries).mean(0))
    model.model.pixel_level_module.decoder.mask_projection.bias.sub_(pixels.mean((1, 2)))
    scores, classes = model(**inputs).class_queries_logits[0].softmax(-1).max(-1)
    ranked = scores[classes < CLASSES].sort(descending=True).values
    return float(ranked[KEPT - 1 : KEPT + 1].mean())


def rows(sizes: Sizes | None = None, large: Sizes | None = None, rounds: int = 5) -> list[Row]:
    """Times in alternating runs; memory in a process of its own."""
    sizes, large = sizes or Sizes(), large or Sizes(side=4096, kept=100)
    with tempfile.TemporaryDirectory() as scratch:
        steps = whole_way(Path(scratch))
        found = {name: step() for name, step in steps.items()}
        whole = alternate(steps, rounds)
    both = {"ours": ours(sizes), "peer": peer(sizes)}
    kept = {name: step() for name, step in both.items()}
    after = alternate(both, rounds * 3)
    prepare: Callable[[Sizes], Step] = ours
    memory = peak_memory(prepare, Sizes(side=64, queries=8, kept=3), large)
    name = f"image to panoptic, 640x640, {found['ours']} segments ({found['peer']})"
    return [
        Row(name, whole["ours"], "s", whole["peer"], ratio_least=1.5),
        Row(
            f"  post-processing, {kept['ours']} segments ({kept['peer']})",
            after["ours"],
            "s",
            after["peer"],
            ratio_least=5,
        ),
        Row(f"post-processing {large.side}x{large.side}, {large.kept} kept", memory, "MiB", most=1536),
    ]
