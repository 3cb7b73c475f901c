"""What SAM 2 remembers of earlier frames: the memory modules of `transformers`, assembled so that they train.

`Sam2VideoModel` runs one object at a time under inference mode; here all objects of a clip go together and gradients
flow through the memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoFeedForward,
    Sam2VideoMemoryAttention,
    Sam2VideoMemoryEncoder,
    get_1d_sine_pe,
)

from ..errors import UsageError
from .position import normalized_sine_position

MEMORY_DIM = 64
"""Width of memories, which `transformers` fixes."""

SCALE, BIAS = 20.0, -10.0
"""Masks enter the memory as 20 p - 10."""


@dataclass(frozen=True, eq=False)
class Memory:
    """Of one frame and O objects.

    Attributes:
        frame: its number.
        told: somebody prompted for the objects in this frame.
        features: [h * w, O, 64].
        pointers: [O, D], one vector an object.
    """

    frame: int
    told: bool
    features: Tensor
    pointers: Tensor

    def stored(self) -> Memory:
        """With the precision that SAM 2 keeps memories in."""
        return replace(self, features=self.features.bfloat16().to(self.features.dtype))


class FrameMemory(nn.Module):
    """From features and masks of a frame to a `Memory`, and from memories to features that know of them.

    Args:
        dim: width of features; a multiple of 64.
        hidden_dim: of the feed-forward layers.
        side: of the canvas in pixels: other sizes have no positions.
        slots: frames that are attended to besides those that were prompted, plus one.
        pointers: frames whose object pointers are attended to.
    """

    def __init__(self, dim: int, hidden_dim: int, side: int, slots: int = 7, pointers: int = 16) -> None:
        super().__init__()
        self.dim, self.cells, self.slots, self.most_pointers = dim, side // 16, slots, pointers
        config = Sam2VideoConfig(
            image_size=side,
            memory_attention_hidden_size=dim,
            memory_attention_feed_forward_hidden_size=hidden_dim,
            memory_attention_rope_feat_sizes=[self.cells, self.cells],
            memory_encoder_hidden_size=dim,
            memory_encoder_output_channels=MEMORY_DIM,
            mask_downsampler_embed_dim=dim,
            memory_fuser_embed_dim=dim,
            memory_fuser_intermediate_dim=4 * dim,
        )
        config._attn_implementation = "sdpa"
        self.memory_attention = Sam2VideoMemoryAttention(config)
        self.memory_encoder = Sam2VideoMemoryEncoder(config)
        self.register_buffer("no_memory_positional_encoding", torch.zeros(1, 1, dim))  # Published, and never used.
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(slots, 1, 1, MEMORY_DIM))
        self.no_object_pointer = nn.Parameter(torch.zeros(1, dim))
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.object_pointer_proj = Sam2VideoFeedForward(dim, dim, dim, 3)
        self.temporal_positional_encoding_projection_layer = nn.Linear(dim, MEMORY_DIM)
        self.occlusion_spatial_embedding_parameter = nn.Parameter(torch.zeros(1, MEMORY_DIM))

    def pointers(self, tokens: Tensor, present: Tensor) -> Tensor:
        """[O, D] from the mask tokens [O, D] of the chosen candidates; bool [O] whether the objects are there."""
        found = present.to(tokens.dtype)[:, None]
        return found * self.object_pointer_proj(tokens) + (1 - found) * self.no_object_pointer

    def remember(self, coarse: Tensor, logits: Tensor, present: Tensor, sharp: bool) -> Tensor:
        """Memory features [h * w, O, 64] of a frame.

        Args:
            coarse: its own features [1, D, h, w].
            logits: chosen masks [O, 4 h, 4 w].
            present: bool [O].
            sharp: masks count as 0 or 1, as SAM 2 takes those of prompted frames at inference.

        Raises:
            UsageError: the canvas is not that of the weights.
        """
        if coarse.shape[-1] != self.cells:
            why = f"{coarse.shape[-1] * 16} pixels, these weights have positions for {self.cells * 16}"
            raise UsageError("frames fill another canvas than the memory's", where="image_side", why=why)
        side = self.cells * 16
        full = F.interpolate(logits[:, None].float(), (side, side), mode="bilinear", align_corners=False)
        masks = (full > 0).to(coarse.dtype) if sharp else full.sigmoid().to(coarse.dtype)
        features, _ = self.memory_encoder(coarse.expand(len(masks), -1, -1, -1), masks * SCALE + BIAS)
        missing = (~present).to(features.dtype)[:, None, None, None]
        features = features + missing * self.occlusion_spatial_embedding_parameter[..., None, None]
        return features.flatten(2).permute(2, 0, 1)

    def recall(self, coarse: Tensor, bank: Sequence[Memory], frame: int, total: int) -> Tensor:
        """Features [O, D, h, w] of a frame that know of the frames in the bank.

        Args:
            coarse: its own features [1, D, h, w].
            frame: its number; those in the bank are smaller.
            total: frames of the clip.
        """
        count = bank[0].pointers.shape[0]
        spatial, where = self._spatial(bank, frame)
        pointers, when = self._pointers(bank, frame, min(total, self.most_pointers))
        position = normalized_sine_position(self.cells, self.cells, self.dim, device=coarse.device).to(coarse.dtype)
        own, place = (x.flatten(-2).T[:, None].expand(-1, count, -1) for x in (coarse[0], position))
        features = self.memory_attention(
            current_vision_features=own,
            current_vision_position_embeddings=place,
            memory=torch.cat([spatial, pointers]),
            memory_posision_embeddings=torch.cat([where, when]),
            num_object_pointer_tokens=len(pointers),
        )
        tokens = features.reshape(count, self.cells * self.cells, self.dim)
        return tokens.transpose(1, 2).unflatten(2, (self.cells, self.cells))

    def _spatial(self, bank: Sequence[Memory], frame: int) -> tuple[Tensor, Tensor]:
        """Memory features of prompted frames and of the last few others, and their positions in space and time."""
        chosen = [(0, memory) for memory in bank if memory.told]
        chosen += [(frame - m.frame, m) for m in bank if not m.told and frame - m.frame < self.slots]
        features = torch.cat([memory.features for _, memory in chosen])
        device = features.device
        space = normalized_sine_position(self.cells, self.cells, MEMORY_DIM, device=device).flatten(1).T[:, None]
        # Offset 0 takes the last row, as in SAM 2.
        places = [space + self.memory_temporal_positional_encoding[n - 1] for n, _ in chosen]
        return features, torch.cat(places).expand(-1, features.shape[1], -1).to(features.dtype)

    def _pointers(self, bank: Sequence[Memory], frame: int, most: int) -> tuple[Tensor, Tensor]:
        """Object pointers cut into tokens [S, O, 64], and their positions in time."""
        chosen = [(frame - m.frame, m) for m in bank if m.told or frame - m.frame < most]
        tokens = torch.stack([memory.pointers for _, memory in chosen])
        parts = self.dim // MEMORY_DIM
        cut = tokens.unflatten(2, (parts, MEMORY_DIM)).permute(0, 2, 1, 3).flatten(0, 1)
        times = torch.tensor([float(n) for n, _ in chosen], device=tokens.device) / max(1, most - 1)
        when = self.temporal_positional_encoding_projection_layer(get_1d_sine_pe(times, dim=self.dim).to(tokens.dtype))
        return cut, when[:, None].expand(-1, tokens.shape[1], -1).repeat_interleave(parts, dim=0)


NAMES = (
    *("memory_attention.", "memory_encoder.", "mask_downsample.", "object_pointer_proj."),
    *("no_memory_positional_encoding", "memory_temporal_positional_encoding", "no_object_pointer"),
    *("temporal_positional_encoding_projection_layer.", "occlusion_spatial_embedding_parameter"),
)
"""How names of these parts begin in the checkpoints of `transformers`."""
