"""Swin Transformer (Liu et al. 2021), thin over the backbone that `transformers` has for MaskFormer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Swin(nn.Module):
    """Four feature maps at strides 4, 8, 16, 32 (c2..c5), each with its own layer norm.

    Args:
        width: channels of c2; each stage doubles them. Swin-T and S: 96, B: 128, L: 192.
        depths: blocks a stage. Swin-T: 2, 2, 6, 2.
        heads: attention heads a stage. Swin-T: 3, 6, 12, 24.
        window: side of the attention windows: 7, or 12 of the weights trained at 384.
        drop_path: largest rate at which blocks are skipped in training.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self, width: int, depths: Sequence[int], heads: Sequence[int], window: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        # Inside, because it takes a second, which neither `everymask --help` nor other encoders should wait for.
        from transformers import MaskFormerSwinConfig
        from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinBackbone

        config = MaskFormerSwinConfig(
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            drop_path_rate=drop_path,
            out_features=["stage1", "stage2", "stage3", "stage4"],  # type: ignore[call-arg]
        )
        self.backbone = MaskFormerSwinBackbone(config)
        # A part of the classifier that no feature map passes through; kept for the published weights' sake.
        self.backbone.model.layernorm.requires_grad_(False)
        self.channels = tuple(width * 2**stage for stage in range(len(depths)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W], H and W multiples of 32 -> [B, channels[i], H/strides[i], W/strides[i]]."""
        return list(self.backbone(images).feature_maps)
