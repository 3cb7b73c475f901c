"""DETR panoptic against `transformers` with the same weights.

    python -m benchmarks detr

- **image to panoptic result**: a 480x640 photo, which both sides resize to 800x1066, ResNet-50, 100 queries, the score
  threshold set so that 20 are kept, then so low that all are. Both sides resize, normalise, run and
  post-process. Weights are random, with heads spread so that queries differ (the time of the network does not depend on
  them).
- **identical segments**: the same post-processing on the logits of both networks.
- **mask head alone**: from query states and feature maps to mask logits; of 20 queries here, of all 100 there, which
  cannot do fewer.
- **post-processing alone**, from the same class and mask logits.
- **a training step** with masks, forward and backward: one image of 600x800 with 15 segments, losses at every decoder
  layer.

The peer takes up to 12 GB of memory and the best part of a minute a run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import everymask
from everymask import postprocess
from everymask.labels import LabelMap
from everymask.layers.map_masks import MapMasks
from everymask.models import detr
from everymask.predict import fit, run
from everymask.types import Batch, Letterbox, Prediction, Segments

from .maskformer import nearest_place
from .measure import Row, Step, alternate, peak_memory


@dataclass(frozen=True)
class Sizes:
    """Of the network and its inputs. `cells` is the size of mask logits in post-processing."""

    photo: tuple[int, int] = (480, 640)
    shortest: int = 800
    train: tuple[int, int] = (600, 800)
    grid: tuple[int, int] = (3, 5)
    cells: tuple[int, int] = (200, 267)
    queries: int = 100
    kept: int = 20
    classes: int = 133
    width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    dim: int = 256
    layers: int = 6


SMALL = Sizes((48, 64), 64, (48, 64), (2, 2), (16, 22), 12, 4, 5, 8, (1, 1, 1, 1), 64, 1)


def peer_network(sizes: Sizes) -> Any:
    """`DetrForSegmentation` with random but fixed weights, and heads under which queries differ."""
    from transformers import DetrConfig, DetrForSegmentation, ResNetConfig

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    widths = [4 * sizes.width * 2**stage for stage in range(4)]
    encoder: dict[str, Any] = {"embedding_size": sizes.width, "hidden_sizes": widths, "depths": list(sizes.depths)} | {
        "out_features": stages
    }
    settings: dict[str, Any] = {
        "backbone_config": ResNetConfig(**encoder),
        "use_timm_backbone": False,
        "num_queries": sizes.queries,
        "d_model": sizes.dim,
        "encoder_layers": sizes.layers,
        "decoder_layers": sizes.layers,
        "id2label": {k: f"class {k}" for k in range(sizes.classes)},
        "auxiliary_loss": True,
        "architectures": ["DetrForSegmentation"],
    }
    config = DetrConfig(**settings)
    model = DetrForSegmentation(config).eval()
    sharpen(model)
    # As published, and as ours do it: all of the encoder but its start learns.
    for name, parameter in model.detr.model.backbone.named_parameters():
        parameter.requires_grad_("embedder" not in name and "stages.0" not in name)
    return model


@torch.no_grad()
def sharpen(model: Any) -> None:
    """Random weights look everywhere alike, and all queries give one mask: make them look at places of their own."""
    torch.nn.init.normal_(model.detr.model.query_position_embeddings.weight)
    for attention in (*(layer.encoder_attn for layer in model.detr.model.decoder.layers), model.bbox_attention):
        attention.q_proj.weight *= 30
    model.mask_head.conv1.conv.weight[:, model.config.d_model :] *= 20_000


def own_network(peer: Any, sizes: Sizes) -> Any:
    """Our model with the peer's weights."""
    config = detr.published(peer.config.to_dict(), {"size": {"shortest_edge": sizes.shortest, "longest_edge": 1333}})
    assert config is not None
    model = detr.Model(config, LabelMap.from_names(f"class {k}" for k in range(sizes.classes)))
    model.load_state_dict(model.state_dict() | detr.convert(dict(peer.state_dict())))
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


@torch.no_grad()
def spread(peer: Any, images: Tensor, kept: int) -> float:
    """Make the queries of random weights differ; returns the score that `kept` of them exceed."""
    found = peer.detr(images)
    queries, head = found.last_hidden_state[0], peer.detr.class_labels_classifier
    head.weight.div_(head(queries).std(0, keepdim=True).T / 4)
    head.bias.sub_(head(queries).mean(0))
    scores, classes = head(queries).softmax(-1).max(-1)
    ranked = scores[classes < head.out_features - 1].sort(descending=True).values
    return float(ranked[kept - 1 : kept + 1].mean()) if kept < len(ranked) else 0.0


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo, both networks, and the threshold under which `kept` queries are kept."""

    photo: Path
    peer: Any
    own: Any
    threshold: float

    @classmethod
    def of(cls, sizes: Sizes, folder: Path) -> Scene:
        """Writes the photo into `folder`."""
        source = sorted((Path(everymask.__file__).parent / "samples" / "photos").glob("*.jpg"))[0]
        photo, peer = folder / "photo.jpg", peer_network(sizes)
        Image.open(source).convert("RGB").resize(sizes.photo[::-1], Image.Resampling.LANCZOS).save(photo, quality=90)
        threshold = spread(peer, processor(sizes)(Image.open(photo), return_tensors="pt")["pixel_values"], sizes.kept)
        return cls(photo, peer, own_network(peer, sizes), threshold)


def processor(sizes: Sizes) -> Any:
    """The peer's, which resizes as published."""
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    return DetrImageProcessorPil(size={"shortest_edge": sizes.shortest, "longest_edge": 1333})


def ours(sizes: Sizes) -> Step:
    """From image file to panoptic result."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.of(sizes, Path(folder))
        content = scene.photo.read_bytes()
    model, threshold = scene.own, scene.threshold
    return lambda: len(everymask.predict(model, content, task="panoptic", threshold=threshold).segments)


def peer(sizes: Sizes) -> Step:
    """The same, with the post-processing of `transformers`."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.of(sizes, Path(folder))
        photo = Image.open(scene.photo)
        photo.load()
    prepare = processor(sizes)

    def step() -> int:
        with torch.inference_mode():
            outputs = scene.peer(**prepare(photo, return_tensors="pt"))
        return len(their_panoptic(prepare, outputs, scene.threshold, sizes.photo))

    return step


def their_panoptic(prepare: Any, outputs: Any, threshold: float, size: tuple[int, int]) -> list[Any]:
    """The segments that the peer's post-processing finds."""
    found = prepare.post_process_panoptic_segmentation(
        outputs, threshold=threshold, label_ids_to_fuse=set(), target_sizes=[size]
    )
    segments: list[Any] = found[0]["segments_info"]
    return segments


class GivenMasks(MapMasks):
    """Mask logits [1, Q, h, w] at stride 4 that are there already."""

    def __init__(self, logits: Tensor, letterbox: Letterbox) -> None:
        super().__init__(logits.shape[1], (letterbox,))
        self.logits = logits

    def maps(self, b: int, queries: Tensor) -> Tensor:
        return self.logits[b, queries]

    @property
    def device(self) -> torch.device:
        return self.logits.device


@torch.no_grad()
def same_segments(sizes: Sizes) -> float:
    """Percent of pixels that get the same segment from the logits of both.

    In double precision, because masks of random weights are so alike that rounding decides a pixel in 400; on a smaller
    photo, because the peer needs twice the memory for it.
    """
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.of(replace(sizes, shortest=sizes.shortest // 2), Path(folder))
        photo = everymask.read_image(scene.photo)
    own, peer = scene.own.double(), scene.peer.double()
    batch = fit(photo, own.letterbox(sizes.photo))
    box, content = batch.letterboxes[0], batch.letterboxes[0].content
    with torch.no_grad():
        outputs = peer(own.normalize(batch.images[..., : content[0], : content[1]]))
        theirs = Prediction(outputs.logits, GivenMasks(outputs.pred_masks, box))
        results = [
            postprocess.panoptic_of_logits(found, box, own.labels, threshold=scene.threshold)
            for found in (run(own, batch), theirs)
        ]
    return 100 * float((results[0].id_map == results[1].id_map).float().mean()) if same_table(*results) else 0.0


def heads(sizes: Sizes) -> dict[str, Step]:
    """The mask head of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.of(sizes, Path(folder))
        photo = everymask.read_image(scene.photo)
    batch = fit(photo, scene.own.letterbox(sizes.photo))
    content = batch.letterboxes[0].content
    prediction = run(scene.own, batch)
    images = scene.own.normalize(batch.images[..., : content[0], : content[1]])
    inputs: dict[str, Any] = {}
    keep = peer_hooks(scene.peer, inputs)
    scene.peer(images)
    for hook in keep:
        hook.remove()
    scores, classes = prediction.class_logits[0].softmax(-1).max(-1)
    kept = torch.nonzero((classes < sizes.classes) & (scores > scene.threshold)).flatten()

    def run_ours() -> Tensor:
        with torch.no_grad():
            return replace_source(prediction).decode(0, kept)

    def run_peer() -> Tensor:
        with torch.no_grad():
            attention = scene.peer.bbox_attention(*inputs["attention"])
            maps: Tensor = scene.peer.mask_head(attention_masks=attention, **inputs["head"])
            return maps

    return {"ours": run_ours, "peer": run_peer}


def replace_source(prediction: Prediction) -> Any:
    """The masks of a prediction with nothing decoded yet."""
    masks: Any = prediction.masks
    return type(masks)(masks.queries, replace(masks.source, shares={}), masks.letterboxes)


def peer_hooks(model: Any, inputs: dict[str, Any]) -> list[Any]:
    """Keep what the peer's mask head is given."""

    def attention(module: Any, args: Any, kwargs: Any) -> None:
        inputs["attention"] = args

    def head(module: Any, args: Any, kwargs: Any) -> None:
        inputs["head"] = {name: value for name, value in kwargs.items() if name != "attention_masks"}

    return [
        model.bbox_attention.register_forward_pre_hook(attention, with_kwargs=True),
        model.mask_head.register_forward_pre_hook(head, with_kwargs=True),
    ]


def same_table(one: Segments, other: Segments) -> bool:
    """Whether both found the same segments, whatever their pixels."""
    return one.classes.tolist() == other.classes.tolist()


def after(sizes: Sizes) -> dict[str, Step]:
    """Panoptic post-processing of both sides from the same logits: `kept` queries share the photo among them."""
    from transformers.models.detr.modeling_detr import DetrSegmentationOutput

    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(1, sizes.queries, sizes.classes + 1, generator=chance)
    classes = torch.randint(sizes.classes, (sizes.kept,), generator=chance)
    logits[0, torch.arange(sizes.kept), classes] += 14
    height, width = sizes.cells
    places = torch.rand(sizes.kept, 2, generator=chance) * torch.tensor([width, height])
    masks = torch.randn(1, sizes.queries, height, width, generator=chance)
    masks[0, : sizes.kept] = nearest_place(places, max(sizes.cells))[:, :height, :width]
    size = (4 * height, 4 * width - 2)
    box, table = Letterbox(size, size, size), LabelMap.from_names(f"class {k}" for k in range(sizes.classes))
    prediction = Prediction(logits, GivenMasks(masks, box))
    outputs, prepare = DetrSegmentationOutput(logits=logits, pred_masks=masks), processor(sizes)
    return {
        "ours": lambda: len(postprocess.panoptic_of_logits(prediction, box, table)),
        "peer": lambda: len(their_panoptic(prepare, outputs, 0.85, size)),
    }


def make_truth(sizes: Sizes) -> Segments:
    """Blocks that leave no gap."""
    (height, width), (rows, columns) = sizes.train, sizes.grid
    y, x = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    ids = (y[:, None] * columns + x + 1).int()
    return Segments.build(ids, [n % sizes.classes for n in range(rows * columns)])


def train_ours(sizes: Sizes) -> Step:
    """Forward and backward of one image; returns the loss."""
    model = own_network(peer_network(sizes), sizes).train()
    image = torch.randint(0, 255, (1, 3, *sizes.train), dtype=torch.uint8)
    box = Letterbox(sizes.train, sizes.train, sizes.train)
    batch = Batch(image, (box,), (make_truth(sizes),))

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = torch.stack(list(model.loss(batch).values())).sum()
        loss.backward()
        return float(loss.detach())

    return step


def train_peer(sizes: Sizes) -> Step:
    """The same of `DetrForSegmentation`."""
    from everymask.criterion import BoxTruth

    model = peer_network(sizes).train()
    image = torch.randn(1, 3, *sizes.train)
    truth, box = make_truth(sizes), Letterbox(sizes.train, sizes.train, sizes.train)
    masks = (truth.id_map == torch.arange(1, len(truth) + 1)[:, None, None]).float()
    labels = [{"class_labels": truth.classes, "boxes": BoxTruth.of(truth, box).boxes, "masks": masks}]

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(image, labels=labels).loss
        loss.backward()
        return float(loss.detach())

    return step


def rows(sizes: Sizes | None = None, rounds: int = 3) -> list[Row]:
    """Times in alternating runs without a warm-up, because the peer takes so long; memory in processes of their own."""
    sizes = sizes or Sizes()
    every = replace(sizes, kept=sizes.queries)
    found: list[Row] = []
    name = f"image to panoptic, {sizes.shortest} px"
    found += both(f"{name}, {sizes.kept} kept", ours, peer, sizes, rounds, (8, 6))
    seconds = alternate(heads(sizes), rounds, warmup=0)
    found += [
        Row("  same segments from logits of both", same_segments(sizes), "%", least=99.99),
        Row("  mask head alone", seconds["ours"], "s", seconds["peer"], ratio_least=30),
    ]
    found += both(f"{name}, all {sizes.queries} kept", ours, peer, every, rounds, (3, 6))
    seconds = alternate(after(sizes), 5 * rounds)
    found.append(
        Row(f"post-processing, {sizes.kept} kept", seconds["ours"], "s", seconds["peer"], ratio_least=10),
    )
    return found + both("training step, {}x{}".format(*sizes.train), train_ours, train_peer, sizes, rounds, (3, 3))


def both(
    name: str,
    own: Callable[[Sizes], Step],
    other: Callable[[Sizes], Step],
    sizes: Sizes,
    rounds: int,
    bars: tuple[float, float],
) -> list[Row]:
    """Time and memory of two sides."""
    seconds = alternate({"ours": own(sizes), "peer": other(sizes)}, rounds, warmup=0)
    memory = {side: peak_memory(prepare, SMALL, sizes) for side, prepare in (("ours", own), ("peer", other))}
    return [
        Row(f"{name}: time", seconds["ours"], "s", seconds["peer"], ratio_least=bars[0]),
        Row(f"{name}: memory", memory["ours"], "MiB", memory["peer"], ratio_least=bars[1]),
    ]
