"""MaskFormer: the contract, and the numbers of `transformers` with the same weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    ResNetConfig,
    SwinConfig,
)
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerForInstanceSegmentationOutput,
    MaskFormerHungarianMatcher,
    MaskFormerLoss,
)

from everymask import postprocess
from everymask.checkpoint import load
from everymask.criterion import MaskCriterion
from everymask.errors import TrainingError
from everymask.labels import LabelMap
from everymask.layers.masks import QueryPixelMasks
from everymask.model import SegmentationModel
from everymask.models.maskformer import PRESETS, Model
from everymask.types import Batch, Letterbox, Prediction, Segments
from tests.contract import ModelContract, batch_of, gradient_faults, total
from tests.scenes import LABELS, scene


class TestMaskFormer(ModelContract):
    system = "maskformer"
    # Queries enter the first layer as zeros: there, all of them have the same value to attend to.
    never_reached = tuple(
        f"decoder.0.self_attention.{name}"
        for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight")
    )


class TestPerPixelBaseline(ModelContract):
    system = "maskformer"

    @classmethod
    def create(cls) -> SegmentationModel:
        torch.manual_seed(0)
        return Model(replace(PRESETS["tiny"], head="per-pixel"), LABELS)


class TestSwinEncoder(ModelContract):
    system = "maskformer"
    never_reached = TestMaskFormer.never_reached

    @classmethod
    def create(cls) -> SegmentationModel:
        torch.manual_seed(0)
        swin = {"encoder": "swin", "width": 16, "depths": (1, 1, 2, 1), "heads": (1, 2, 2, 4), "window": 4}
        return Model(replace(PRESETS["tiny"], **swin, drop_path=0.0, encoder_layers=1), LABELS)


# --- published weights -----------------------------------------------------------------------------------------------

ENCODERS = {
    "r50": ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
    "swin-t": SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7),
}
NAMES = {0: "wall", 1: "sky", 2: "tree", 3: "car", 4: "cat"}
TABLE = LabelMap.from_names(NAMES.values())
ALL_SEGMENTS = {"threshold": 0.6, "overlap_mask_area_threshold": 0.0, "label_ids_to_fuse": set()}
OWN_ALL_SEGMENTS = {"threshold": 0.6, "overlap": 0.0, "merge_stuff": False, "covered_only": False}
PROCESSOR = MaskFormerImageProcessor()
SIZES = ((96, 160), (128, 64), (64, 64))


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def reference(request: pytest.FixtureRequest) -> MaskFormerForInstanceSegmentation:
    """The network of `transformers` with random weights, and with batch statistics that do something."""
    torch.manual_seed(0)
    config = MaskFormerConfig(backbone_config=ENCODERS[request.param], id2label=NAMES)
    model = MaskFormerForInstanceSegmentation(config).eval()
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def spread(model: MaskFormerForInstanceSegmentation) -> None:
    """Make queries differ. With random weights all of them say nearly the same: nothing to segment."""
    states = model.model(pixel_values(photo(*SIZES[0])))
    queries, pixels = states.transformer_decoder_last_hidden_state[0], states.pixel_decoder_last_hidden_state[0]
    predictor = model.class_predictor
    predictor.weight.div_(predictor(queries).std(0, keepdim=True).T / 4)
    predictor.bias.sub_(predictor(queries).mean(0))
    last = model.get_submodule("mask_embedder.2.0")
    last.weight.mul_(4 / model.mask_embedder(queries).std(0).mean())
    last.bias.sub_(model.mask_embedder(queries).mean(0))
    projection = model.model.pixel_level_module.decoder.mask_projection
    projection.bias.sub_(pixels.mean((1, 2)))


@pytest.fixture(scope="module")
def ours(reference: MaskFormerForInstanceSegmentation, tmp_path_factory: pytest.TempPathFactory) -> SegmentationModel:
    return published(reference, tmp_path_factory.mktemp("published"))


def published(model: MaskFormerForInstanceSegmentation, folder: Path) -> SegmentationModel:
    """Saved by `transformers`, loaded by us."""
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 256}
    text = {"size": size, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(text))
    return load(folder)


def photo(height: int, width: int) -> np.ndarray:
    """Coloured blobs, so that not all queries see the same."""
    rng = np.random.default_rng(height)
    small = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def pixel_values(image: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))
    return ((torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 - mean) / std)[None]


def batch_of_photos(sizes: Sequence[tuple[int, int]]) -> Batch:
    """Photos at their own size on one canvas."""
    canvas = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.zeros(len(sizes), 3, *canvas, dtype=torch.uint8)
    for image, size in zip(images, sizes, strict=True):
        image[:, : size[0], : size[1]] = torch.from_numpy(photo(*size).copy()).permute(2, 0, 1)
    return Batch(images, tuple(Letterbox(size, size, canvas) for size in sizes))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def test_logits_of_a_padded_batch_are_those_of_transformers_on_each_image(
    reference: MaskFormerForInstanceSegmentation, ours: SegmentationModel
) -> None:
    together = ours(batch_of_photos(SIZES))
    for b, size in enumerate(SIZES):
        expected = reference(pixel_values(photo(*size)))
        masks = together.masks.decode(b, torch.arange(100))
        assert relative(together.class_logits[b], expected.class_queries_logits[0]) < 1e-4
        assert relative(masks, expected.masks_queries_logits[0]) < 1e-4


@torch.inference_mode()
def test_with_padding_taken_for_image_too(
    reference: MaskFormerForInstanceSegmentation, ours: SegmentationModel
) -> None:
    """`transformers` lets padding take part. Told that all of the canvas is photo, so does ours."""
    batch = batch_of_photos(SIZES)
    whole = replace(batch, letterboxes=(Letterbox(batch.size, batch.size, batch.size),) * 3)
    expected = reference(torch.cat([pixel_values(image.permute(1, 2, 0).numpy()) for image in batch.images]))
    found = ours(whole)
    assert relative(found.class_logits, expected.class_queries_logits) < 1e-4
    for b in range(3):
        masks = found.masks.decode(b, torch.arange(100))
        assert relative(masks, expected.masks_queries_logits[b]) < 1e-4


def same_logits(outputs: MaskFormerForInstanceSegmentationOutput, box: Letterbox) -> Prediction:
    """Logits of `transformers` as a prediction of ours."""
    masks = outputs.masks_queries_logits
    queries = torch.eye(masks.shape[1])[None]
    return Prediction(outputs.class_queries_logits, QueryPixelMasks(queries, masks, (box,), box.canvas))


def agreement(found: Segments, wanted: Tensor) -> float:
    """Share of pixels that have the same class."""
    return float((found.class_map(len(NAMES)) == wanted).float().mean())


def smooth(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Random maps [count, h, w] with large blobs."""
    coarse = torch.randn(1, count, 4, 5, generator=torch.Generator().manual_seed(seed))
    return 4 * F.interpolate(coarse, size, mode="bicubic")[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_semantic_results_are_those_of_transformers(size: tuple[int, int], seed: int) -> None:
    outputs = random_outputs(size, seed)
    source = (size[0] * 2, size[1] * 3)
    wanted = PROCESSOR.post_process_semantic_segmentation(outputs, target_sizes=[source])[0]
    assert len(wanted.unique()) >= 3
    box = Letterbox(source, size, size)
    assert agreement(postprocess.semantic(same_logits(outputs, box), box, TABLE), wanted) > 0.9999


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_panoptic_results_are_those_of_transformers(size: tuple[int, int], seed: int) -> None:
    """Without fusing, which `transformers` does wrongly, and with any overlap, which it measures on weighted masks."""
    outputs = random_outputs(size, seed)
    source = (size[0] * 3, size[1] * 2)
    wanted = PROCESSOR.post_process_panoptic_segmentation(outputs, **ALL_SEGMENTS, target_sizes=[source])[0]
    assert len(wanted["segments_info"]) >= 5
    box = Letterbox(source, size, size)
    found = postprocess.panoptic(same_logits(outputs, box), box, TABLE, **OWN_ALL_SEGMENTS)
    rows = [(info["label_id"], pytest.approx(info["score"], abs=1e-5)) for info in wanted["segments_info"]]
    assert [(s.class_index, s.score) for s in found] == rows
    assert (found.id_map == wanted["segmentation"]).float().mean() > 0.9999


def random_outputs(size: tuple[int, int], seed: int) -> MaskFormerForInstanceSegmentationOutput:
    """Twenty queries with scores between 0.5 and 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(1, 20, len(NAMES) + 1, generator=generator)
    masks = smooth(20, (size[0] // 4, size[1] // 4), seed)[None]
    return MaskFormerForInstanceSegmentationOutput(class_queries_logits=logits, masks_queries_logits=masks)


@torch.inference_mode()
def test_from_photo_to_result(reference: MaskFormerForInstanceSegmentation, tmp_path: Path) -> None:
    """With queries that differ, which magnifies the rounding of random weights: nearly all pixels are equal."""
    decisive = copy.deepcopy(reference)
    spread(decisive)
    model = published(decisive, tmp_path)
    size = SIZES[0]
    outputs = decisive(pixel_values(photo(*size)))
    semantic = PROCESSOR.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
    panoptic = PROCESSOR.post_process_panoptic_segmentation(outputs, **ALL_SEGMENTS, target_sizes=[size])[0]
    assert len(semantic.unique()) >= 3
    assert len(panoptic["segments_info"]) >= 3
    batch = batch_of_photos([size])
    box = batch.letterboxes[0]
    found = postprocess.semantic(model(batch), box, model.labels)
    assert agreement(found, semantic) > 0.99
    found = postprocess.panoptic(model(batch), box, model.labels, **OWN_ALL_SEGMENTS)
    assert [s.class_index for s in found] == [info["label_id"] for info in panoptic["segments_info"]]
    assert (found.id_map == panoptic["segmentation"]).float().mean() > 0.99


def test_the_preprocessing_comes_with_the_weights(ours: SegmentationModel) -> None:
    assert ours.labels.names == tuple(NAMES.values())
    assert ours.letterbox((100, 200)) == Letterbox((100, 200), (64, 128), (64, 128))
    assert ours.letterbox((100, 900)) == Letterbox((100, 900), (28, 256), (32, 256))
    assert ours.normalize.mean.flatten().tolist() == pytest.approx([127.5, 102, 76.5])


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_exact_losses_are_those_of_transformers(seed: int) -> None:
    """Every pixel, no void, the masks at their own resolution so that both match on the same pixels."""
    generator = torch.Generator().manual_seed(seed)
    size, counts = (24, 32), (5, 3)
    class_logits = torch.randn(2, 12, len(NAMES) + 1, generator=generator)
    mask_logits = torch.stack([smooth(12, size, seed + b) for b in range(2)])
    truth = [blocks(count, size, generator) for count in counts]
    matcher = MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    reference = MaskFormerLoss(len(NAMES), matcher, weight_dict={}, eos_coef=0.1)
    masks = [torch.stack([s.mask for s in segments]).float() for segments in truth]
    expected = reference(mask_logits, class_logits, masks, [segments.classes for segments in truth])
    box = Letterbox(size, size, size)
    decoder = QueryPixelMasks(torch.eye(12).expand(2, -1, -1), mask_logits, (box, box), size)
    batch = Batch(torch.zeros(2, 3, *size), (box, box), tuple(truth))
    criterion = MaskCriterion(1.0, 20.0, 1.0, no_object_weight=0.1, focal=True, points=0)
    found = criterion(Prediction(class_logits, decoder), batch)
    assert float(found["class"]) == pytest.approx(float(expected["loss_cross_entropy"]), rel=1e-5)
    assert float(found["mask"]) == pytest.approx(20 * float(expected["loss_mask"]), rel=1e-5)
    assert float(found["dice"]) == pytest.approx(float(expected["loss_dice"]), rel=1e-5)


def blocks(count: int, size: tuple[int, int], generator: torch.Generator) -> Segments:
    """Segments in vertical stripes of random width, classes at random."""
    edges = torch.randperm(size[1] - 1, generator=generator)[: count - 1].sort().values + 1
    columns = (torch.arange(size[1])[:, None] >= edges).sum(1) + 1
    classes = torch.randint(len(NAMES), (count,), generator=generator)
    return Segments.build(columns.expand(size).int(), classes, labels=TABLE)


def test_exact_losses_train_too() -> None:
    torch.manual_seed(0)
    model = Model(replace(PRESETS["tiny"], points=0), LABELS).train()
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    total(model.loss(batch)).backward()
    assert gradient_faults(model) == []


def test_one_weight_not_a_number_is_named_before_the_optimizer_moves() -> None:
    model = Model(PRESETS["tiny"], LABELS)
    model.class_head.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="matching needs finite costs"):
        model.loss(batch_of([scene(64, 96)], 96))
