"""SAM 2 from frame to frame: parity with `transformers`, training through the memory, objects that come and go."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video import modeling_sam2_video

from benchmarks.sam2 import peer_config
from everymask.checkpoint import load
from everymask.errors import UsageError
from everymask.frames import FrameBatch, collate_frames, nothing
from everymask.layers.memory import Memory
from everymask.layers.prompt_decoder import STABLE
from everymask.models import create_model
from everymask.models.sam2 import PRESETS, Config, Model, convert, published
from everymask.overfit import learn_step
from everymask.prompt_criterion import at_cells
from everymask.prompts import PromptSettings, draw_prompts
from everymask.transforms import Geometry
from everymask.types import Batch, Letterbox, Sample, Segments
from tests.scenes import LABELS
from tests.test_sam2 import asked, own_normalization, spread

SMALL = dataclasses.replace(PRESETS["tiny"], dim=128, hidden_dim=64, memory=True, stable=STABLE)
CLOSE = {"rtol": 0.0, "atol": 1e-4}


def video_config(config: Config = SMALL) -> Sam2VideoConfig:
    """The same sizes in the words of `transformers`."""
    still = peer_config(config).to_dict()
    prompts = still["prompt_encoder_config"] | {"model_type": "sam2_video_prompt_encoder"}
    return Sam2VideoConfig(
        vision_config=still["vision_config"],
        prompt_encoder_config={k: v for k, v in prompts.items() if k in ("hidden_size", "image_size")},
        mask_decoder_config={
            name: still["mask_decoder_config"][name]
            for name in ("hidden_size", "mlp_dim", "num_attention_heads", "iou_head_hidden_dim")
        },
        image_size=config.image_side,
        memory_attention_hidden_size=config.dim,
        memory_attention_feed_forward_hidden_size=config.hidden_dim,
        memory_attention_rope_feat_sizes=[config.image_side // 16] * 2,
        memory_encoder_hidden_size=config.dim,
        mask_downsampler_embed_dim=config.dim,
        memory_fuser_embed_dim=config.dim,
        memory_fuser_intermediate_dim=4 * config.dim,
    )


@pytest.fixture(scope="module", params=[30.0, -3.0], ids=["present", "absent"])
def pair(request: pytest.FixtureRequest) -> tuple[Model, Sam2VideoModel]:
    """Ours and theirs with the same weights, which find all objects in every frame or in hardly any.

    In float64: masks are cut at zero on their way into the memory, and an error of float32 would turn pixels over.
    """
    torch.manual_seed(0)  # Positional embeddings are random too, and no parameters.
    peer = Sam2VideoModel(video_config()).eval()
    spread(peer)
    state = peer.state_dict()
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    state["mask_decoder.pred_obj_score_head.proj_out.bias"].fill_(request.param)
    peer.load_state_dict(state)
    ours = Model(SMALL, LABELS).eval()
    ours.load_state_dict(convert(peer.state_dict()) | own_normalization(ours))
    return ours.double(), peer.double()


def clip(count: int = 4, seed: int = 0, side: int = 64) -> FrameBatch:
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    box = Letterbox((side, side), (side, side), (side, side))
    return FrameBatch(images, (box,) * count, frames=tuple(range(count)))


def theirs(
    peer: Sam2VideoModel, ours: Model, frames: FrameBatch, told: dict[int, list[dict[str, Any]]]
) -> list[Tensor]:
    """Mask logits [O, h, w] of each frame; `told` has the inputs of each object by frame."""
    session = modeling_sam2_video.Sam2VideoInferenceSession(
        video=ours.normalize(frames.images), video_height=64, video_width=64, dtype=torch.float64
    )
    found = []
    for t in range(len(frames)):
        for n, inputs in enumerate(told.get(t, [])):
            index = session.obj_id_to_idx(n + 1)
            points = {"point_coords": inputs["points"][None, None], "point_labels": inputs["labels"][None, None]}
            session.add_point_inputs(index, t, points)
            session.obj_with_new_inputs.append(n + 1)
        found.append(peer(session, frame_idx=t).pred_masks.clone()[:, 0])
    return found


class FullPrecision:
    """The torch module for code that would round to bfloat16."""

    bfloat16 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides keep memories as they are: a small error may turn a rounding over, and that is no fault of either."""
    monkeypatch.setattr(modeling_sam2_video, "torch", FullPrecision())
    monkeypatch.setattr(Memory, "stored", lambda self: self)


KINDS = {
    "point": ([[(12.0, 20.0)], [(40.0, 31.0)]], [[1], [1]]),
    "points": ([[(12.0, 20.0), (50.0, 50.0)], [(40.0, 31.0), (3.0, 3.0)]], [[1, 0], [1, 1]]),
    "box": ([[(3.0, 4.0), (30.0, 50.0)], [(20.0, 10.0), (60.0, 22.0)]], [[2, 3], [2, 3]]),
}


def both(pair: tuple[Model, Sam2VideoModel], told: dict[int, Any]) -> list[tuple[Tensor, Tensor]]:
    """Mask logits of our four frames and theirs; `told` has points and labels by frame."""
    ours, peer = pair
    inputs = {
        t: [{"points": torch.tensor(p), "labels": torch.tensor(k)} for p, k in zip(*some, strict=True)]
        for t, some in told.items()
    }
    prompts = tuple(asked(*told[t]) if t in told else nothing() for t in range(4))
    found = ours.track(dataclasses.replace(clip(), prompts=prompts))
    return list(zip([masks.logits(0) for masks in found], theirs(peer, ours, clip(), inputs), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("unrounded")
def test_parity_over_four_frames(pair: tuple[Model, Sam2VideoModel], kind: str) -> None:
    answers = both(pair, {0: KINDS[kind]})
    for own, expected in answers:
        torch.testing.assert_close(own, expected, **CLOSE)
    if pair[0].decoder.mask_decoder.pred_obj_score_head.proj_out.bias > 0:
        assert len({round(float(expected.mean()), 3) for _, expected in answers}) == 4


def test_parity_as_memories_are_stored(pair: tuple[Model, Sam2VideoModel]) -> None:
    for own, expected in both(pair, {0: KINDS["points"]}):
        torch.testing.assert_close(own, expected, rtol=0, atol=0.02)


@pytest.mark.usefixtures("unrounded")
def test_corrections_in_later_frames(pair: tuple[Model, Sam2VideoModel]) -> None:
    """A click in the third frame, after two: theirs is told when it gets there."""
    later = [[(20.0, 20.0)], [(30.0, 50.0)]], [[1], [0]]
    for own, expected in both(pair, {0: KINDS["point"], 2: later}):
        torch.testing.assert_close(own, expected, **CLOSE)


@pytest.mark.usefixtures("unrounded")
def test_objects_are_tracked_alone_as_together(pair: tuple[Model, Sam2VideoModel]) -> None:
    ours, _ = pair
    points, labels = [[(12.0, 20.0)], [(40.0, 31.0)], [(3.0, 3.0)]], [[1], [1], [1]]
    together = ours.track(dataclasses.replace(clip(), prompts=(asked(points, labels), *[nothing()] * 3)))
    for n in range(3):
        alone = asked(points[n : n + 1], labels[n : n + 1])
        own = ours.track(dataclasses.replace(clip(), prompts=(alone, *[nothing()] * 3)))
        for t in range(4):
            torch.testing.assert_close(own[t].logits(0)[0], together[t].logits(0)[n], **CLOSE)


def test_the_first_frame_needs_prompts() -> None:
    model = Model(SMALL, LABELS).eval()
    with pytest.raises(UsageError) as error:
        model.track(clip())
    assert str(error.value) == "the first frame has no prompt: prompts. Begin with a frame that has some."
    still = Model(dataclasses.replace(SMALL, memory=False), LABELS).eval()
    with pytest.raises(UsageError, match="these weights have no memory of frames"):
        still.track(dataclasses.replace(clip(), prompts=(asked([[(3.0, 3.0)]], [[1]]), *[nothing()] * 3)))


def test_the_canvas_is_that_of_the_memory() -> None:
    model = Model(SMALL, LABELS).eval()
    told = asked([[(3.0, 3.0)]], [[1]])
    with pytest.raises(UsageError) as error:
        model.track(dataclasses.replace(clip(2, side=96), prompts=(told, nothing())))
    text = "frames fill another canvas than the memory's: image_side (96 pixels, these weights have positions for 64)."
    assert str(error.value) == text


def test_weights_of_the_first_sam2_are_refused() -> None:
    config = video_config().to_dict() | {"enable_occlusion_spatial_embedding": False}
    with pytest.raises(ValueError, match=r"these are weights of SAM 2\.0"):
        published(config, {})


def test_a_published_video_folder_loads_as_it_is(pair: tuple[Model, Sam2VideoModel], tmp_path: Path) -> None:
    ours, peer = pair
    peer.save_pretrained(tmp_path / "sam2")
    loaded = load(tmp_path / "sam2")
    assert loaded.config.memory
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


@pytest.mark.parametrize(
    ("preset", "millions"), [("hiera-t", 38.9), ("hiera-s", 46.0), ("hiera-b+", 80.8), ("hiera-l", 224.4)]
)
def test_the_presets_are_the_published_sizes(preset: str, millions: float) -> None:
    """By the parameters that SAM 2.1's own table gives, and by every name and shape of `transformers`."""
    with torch.device("meta"):
        ours = create_model("sam2", preset, classes=["object"])
        peer = Sam2VideoModel(video_config(ours.config))
    shapes = {name: value.shape for name, value in ours.state_dict().items() if not name.startswith("normalize.")}
    assert shapes == {name: value.shape for name, value in convert(peer.state_dict()).items()}
    assert sum(p.numel() for p in ours.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    own = {field.name: getattr(ours.config, field.name) for field in dataclasses.fields(Config)}
    assert published(peer.config.to_dict(), {}) == Config(**own)


# ---- training --------------------------------------------------------------------------------------------------------


def moving(count: int = 3, leaves: bool = False) -> FrameBatch:
    """A bright square that goes right over dark noise, above one that stays; the first may leave in the last frame."""
    rng, samples = np.random.default_rng(0), []
    for t in range(count):
        ids = np.zeros((64, 64), np.int32)
        ids[8:24, 4 + 12 * t : 20 + 12 * t] = 1
        ids[40:56, 20:36] = 2
        if leaves and t == count - 1:
            ids[ids == 1] = 0
        image = rng.integers(0, 50, (64, 64, 3)).astype(np.uint8)
        image[ids == 1] += np.array([180, 20, 20], np.uint8)
        image[ids == 2] += np.array([20, 20, 180], np.uint8)
        samples.append(Sample(image, Segments.build(ids, [0, 1], labels=LABELS), f"a/{t}"))
    return collate_frames(samples, [Geometry.fit((64, 64), 64)] * count)


def test_a_clip_trains_through_its_memory() -> None:
    """Gradients reach all that is used of the memory, and the loss counts every round and frame."""
    torch.manual_seed(0)
    model = Model(dataclasses.replace(SMALL, train_memory=True, clicks=1, explicit=1.0), LABELS).train()
    terms = model.loss(moving())
    assert set(terms) == {"mask", "dice", "iou", "presence"}
    torch.stack(list(terms.values())).sum().backward()
    memory = {name: p.grad for name, p in model.memory.named_parameters() if p.requires_grad}
    still = [name for name, grad in memory.items() if grad is None or not grad.any()]
    # Masks are no prompts here, and every object is thought to be there.
    assert {name.split(".")[0] for name in still} <= {
        "mask_downsample",
        "no_object_pointer",
        "occlusion_spatial_embedding_parameter",
    }
    assert all(bool(torch.isfinite(grad).all()) for grad in memory.values() if grad is not None)


def test_a_clip_of_one_frame_is_a_photo() -> None:
    torch.manual_seed(0)
    model = Model(dataclasses.replace(SMALL, clicks=1), LABELS).train()
    clip_of_one, losses = moving(1), []
    for batch in (clip_of_one, Batch(clip_of_one.images, clip_of_one.letterboxes, clip_of_one.segments)):
        torch.manual_seed(1)
        losses.append(model.loss(batch))
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name])


def test_an_object_that_leaves_counts_for_its_presence_alone() -> None:
    torch.manual_seed(0)
    model = Model(dataclasses.replace(SMALL, clicks=0, explicit=1.0), LABELS).train()
    lessons = model.plan.clip_lesson(moving(2, leaves=True))
    assert [lesson.truth.flatten(1).any(1).tolist() for lesson in lessons] == [[True, True], [False, True]]
    found = model.decoder(model.encode(moving(1))[0], torch.zeros(2, 1, 2), torch.ones(2, 1).int())
    only = dataclasses.replace(lessons[1], counts=torch.tensor([1.0, 0.0]))
    terms = model._terms(found, only)
    assert {name: bool(value > 0) for name, value in terms.items()} == {
        "mask": False,
        "dice": False,
        "iou": False,
        "presence": True,
    }


def test_clips_without_objects_train() -> None:
    model = Model(dataclasses.replace(SMALL, train_memory=True), LABELS).train()
    empty = moving()
    nobody = [dataclasses.replace(s, id_map=torch.zeros_like(s.id_map)) for s in empty.truth()]
    terms = model.loss(dataclasses.replace(empty, segments=tuple(nobody)))
    assert {float(value.detach()) for value in terms.values()} == {0.0}
    torch.stack(list(terms.values())).sum().backward()


@pytest.mark.slow
def test_a_moving_object_is_learnt() -> None:
    """One clip by heart: told in the first frame, found in the last."""
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, train_memory=True, clicks=0, explicit=1.0, train="full")
    model, video = Model(config, LABELS), moving()
    optimizer = torch.optim.AdamW(model.param_groups(1e-3), weight_decay=0.0)
    for _ in range(250):
        learn_step(model, video, optimizer)
    boxes = draw_prompts(video.truth()[0], PromptSettings(("box",)))
    found = model.eval().track(dataclasses.replace(video, prompts=(boxes, nothing(), nothing())))
    truth = at_cells(video.masks()[2], found[2].logits(0))
    predicted = found[2].logits(0) > 0
    iou = (predicted & truth).flatten(1).sum(1) / (predicted | truth).flatten(1).sum(1)
    assert (iou > 0.8).all()
