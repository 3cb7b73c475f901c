"""Hiera with the feature pyramid of SAM 2, from the modules of `transformers` (Ryali et al. 2023; Ravi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel, Sam2VisionNeck


class Hiera(nn.Module):
    """Window attention in four stages, some blocks global; then one width for all maps, the coarsest added to the next.

    Parts and weights are those of `Sam2VisionModel`; what it computes besides (a position map for every level) is not.

    Args:
        width: channels of the first stage, doubled at each of the next.
        depths, heads, windows: blocks, attention heads and window side of each stage.
        global_blocks: numbers of the blocks that attend to the whole map.
        background: side of the position map that is stretched over the image.
        dim: channels of the pyramid.
    """

    strides = (4, 8, 16)

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        windows: Sequence[int],
        global_blocks: Sequence[int],
        background: int,
        dim: int,
    ) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(len(depths))]
        config = Sam2HieraDetConfig(
            hidden_size=width,
            num_attention_heads=heads[0],
            window_positional_embedding_background_size=[background, background],
            blocks_per_stage=list(depths),
            embed_dim_per_stage=widths,
            num_attention_heads_per_stage=list(heads),
            window_size_per_stage=list(windows),
            global_attention_blocks=list(global_blocks),
        )
        self.channels = (dim, dim, dim)
        self.depth = sum(depths)
        self.stage_ends = [end - 1 for end in accumulate(depths)]
        self.backbone = Sam2HieraDetModel(config)
        self.neck = Sam2VisionNeck(
            Sam2VisionConfig(backbone_config=config, backbone_channel_list=widths[::-1], fpn_hidden_size=dim)
        )
        # Last, because the parts above set it to nothing: attention that does not keep all its weights.
        config._attn_implementation = "sdpa"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W], H and W multiples of 32 -> [B, dim, H/s, W/s] for s in `strides`."""
        stages = self.backbone(images).intermediate_hidden_states
        first, second, third, fourth = (
            lateral(stage.permute(0, 3, 1, 2)) for stage, lateral in zip(stages, reversed(self.neck.convs), strict=True)
        )
        return [first, second, third + F.interpolate(fourth, scale_factor=2.0, mode="nearest")]

    def layer_rates(self, prefix: str, rate: float, decay: float) -> dict[str, float]:
        """Factors on the learning rate by the beginning of parameter names: less the nearer to the image."""
        blocks = {f"{prefix}backbone.blocks.{n}.": rate * decay ** (self.depth - n) for n in range(self.depth)}
        return {prefix: rate, f"{prefix}backbone.": rate * decay ** (self.depth + 1), **blocks}
