"""SAM 2 from frame to frame: parity with `transformers`, training through the memory, objects that come and go."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from everymask.frames import FrameBatch, nothing
from everymask.models.sam2 import PRESETS, Config, Model, convert
from everymask.types import Letterbox
from tests.scenes import LABELS
from tests.test_sam2 import asked, own_normalization, peer_config, spread

SMALL = dataclasses.replace(PRESETS["tiny"], dim=128, hidden_dim=64, memory=True)
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
    """Ours and theirs with the same weights, which find all objects in every frame or in hardly any."""
    peer = Sam2VideoModel(video_config()).eval()
    spread(peer)
    state = peer.state_dict()
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    state["mask_decoder.pred_obj_score_head.proj_out.bias"].fill_(request.param)
    peer.load_state_dict(state)
    ours = Model(SMALL, LABELS).eval()
    ours.load_state_dict(convert(peer.state_dict()) | own_normalization(ours))
    return ours, peer


def clip(count: int = 4, seed: int = 0, side: int = 64) -> FrameBatch:
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    box = Letterbox((side, side), (side, side), (side, side))
    return FrameBatch(images, (box,) * count, frames=tuple(range(count)))


def theirs(
    peer: Sam2VideoModel, ours: Model, frames: FrameBatch, told: dict[int, list[dict[str, Any]]]
) -> list[Tensor]:
    """Mask logits [O, h, w] of each frame; `told` has the inputs of each object by frame."""
    session = Sam2VideoInferenceSession(
        video=ours.normalize(frames.images), video_height=64, video_width=64, dtype=torch.float32
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


@pytest.mark.parametrize("kind", ["point", "points", "box"])
def test_parity_over_four_frames(pair: tuple[Model, Sam2VideoModel], kind: str) -> None:
    ours, peer = pair
    points, labels = {
        "point": ([[(12.0, 20.0)], [(40.0, 31.0)]], [[1], [1]]),
        "points": ([[(12.0, 20.0), (50.0, 50.0)], [(40.0, 31.0), (3.0, 3.0)]], [[1, 0], [1, 1]]),
        "box": ([[(3.0, 4.0), (30.0, 50.0)], [(20.0, 10.0), (60.0, 22.0)]], [[2, 3], [2, 3]]),
    }[kind]
    inputs = [{"points": torch.tensor(p), "labels": torch.tensor(k)} for p, k in zip(points, labels, strict=True)]
    expected = theirs(peer, ours, clip(), {0: inputs})
    frames = dataclasses.replace(clip(), prompts=(asked(points, labels), *[nothing()] * 3))
    found = ours.track(frames)
    for t in range(4):
        torch.testing.assert_close(found[t].logits(0), expected[t], **CLOSE)
    if ours.decoder.mask_decoder.pred_obj_score_head.proj_out.bias > 0:
        assert len({round(float(e.mean()), 3) for e in expected}) == 4
