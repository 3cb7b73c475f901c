"""Swin Transformer (Liu et al. 2021): attention within windows, shifted by half a window in every other block.

Our own rather than the one of `transformers`: the same numbers, but tokens are moved into windows and back by one
gather each, and queries, keys and values come from one product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.windows import Windows


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learnt bias by relative position (equation 4)."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_bias = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def forward(self, windows: Tensor, far: Tensor | None) -> Tensor:
        """windows [b, n, D], far [w, 1, n, n] with b a multiple of w -> [b, n, D]."""
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._bias()[None]
        if far is not None:
            bias = (bias + far).repeat(len(windows) // len(far), 1, 1, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).flatten(2))

    def _bias(self) -> Tensor:
        """[heads, n, n]."""
        place = torch.cartesian_prod(*[torch.arange(self.side, device=self.relative_bias.device)] * 2)
        offset = place[:, None] - place[None] + self.side - 1
        index = offset[..., 0] * (2 * self.side - 1) + offset[..., 1]
        return self.relative_bias[index].permute(2, 0, 1)


class SwinBlock(nn.Module):
    """Window attention and feed-forward, each after a layer norm. [B, h x w, D] -> the same."""

    def __init__(self, dim: int, heads: int, side: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, side)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        # Dropout of whole images along this path: stochastic depth.
        self.drop_path = nn.Dropout1d(drop_path)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        x = x + self._dropped(self._attended(self.norm1(x), windows))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _attended(self, x: Tensor, windows: Windows) -> Tensor:
        # One more token, zero, for the places beyond the map.
        tokens = F.pad(x, (0, 0, 0, 1)).index_select(1, windows.into)
        side = self.attention.side**2
        attended = self.attention(tokens.view(-1, side, x.shape[-1]), windows.far)
        return attended.view(len(x), -1, x.shape[-1]).index_select(1, windows.back)

    def _dropped(self, x: Tensor) -> Tensor:
        return self.drop_path(x.flatten(1)[None])[0].view(x.shape) if self.drop_path.p else x


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width. [B, h x w, D] -> [B, h/2 x w/2, 2 D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        cells = x.view(len(x), height // 2, 2, width // 2, 2, -1)
        # Column before row within each four, as the published weights have it.
        return self.reduction(self.norm(cells.permute(0, 1, 3, 4, 2, 5).reshape(len(x), -1, 4 * x.shape[-1])))


class Swin(nn.Module):
    """Four feature maps at strides 4, 8, 16, 32 (c2..c5), each with its own layer norm.

    Args:
        width: channels of c2; each stage doubles them. Swin-T and S: 96, B: 128, L: 192.
        depths: blocks a stage. Swin-T: 2, 2, 6, 2.
        heads: attention heads a stage. Swin-T: 3, 6, 12, 24.
        side: of the attention windows: 7, or 12 of the weights trained at 384.
        drop_path: largest rate at which blocks are skipped in training.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self, width: int, depths: Sequence[int], heads: Sequence[int], side: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.side = side
        self.channels = tuple(width * 2**stage for stage in range(len(depths)))
        self.patches = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.patch_norm = nn.LayerNorm(width)
        rates = iter([drop_path * n / max(1, sum(depths) - 1) for n in range(sum(depths))])
        self.stages = nn.ModuleList(
            nn.ModuleList(SwinBlock(dim, n, side, next(rates)) for _ in range(depth))
            for dim, depth, n in zip(self.channels, depths, heads, strict=True)
        )
        self.merging = nn.ModuleList(PatchMerging(dim) for dim in self.channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W], H and W multiples of 32 -> [B, channels[i], H/strides[i], W/strides[i]]."""
        patches = self.patches(images)
        height, width = patches.shape[-2:]
        x = self.patch_norm(patches.flatten(2).transpose(1, 2))
        features = []
        for n, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = self._stage(stage, x, height, width)
            features.append(norm(x).transpose(1, 2).unflatten(-1, (height, width)))
            if n < len(self.merging):
                x = self.merging[n](x, height, width)
                height, width = height // 2, width // 2
        return features

    def _stage(self, blocks: nn.Module, x: Tensor, height: int, width: int) -> Tensor:
        """Blocks take turns: windows in place, then shifted by half a window."""
        in_place, shifted = (Windows.of(height, width, self.side, shift, x.device) for shift in (0, self.side // 2))
        for n, block in enumerate(blocks.children()):
            x = block(x, shifted if n % 2 else in_place)
        return x


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the Swin in `transformers` under our names: query, key and value become one."""
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("relative_position_index") or name.startswith("model.layernorm."):
            continue  # Computed; and a part of the classifier that no feature map passes through.
        renamed = _own_name(name)
        if renamed.endswith((".query.weight", ".query.bias")):
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            own[renamed.replace("query", "qkv")] = torch.cat(parts)
        elif ".attention.key." not in renamed and ".attention.value." not in renamed:
            own[renamed] = value
    return own


def _own_name(name: str) -> str:
    if ".downsample." in name:
        stage, _, rest = name.removeprefix("model.encoder.layers.").partition(".downsample.")
        return f"merging.{stage}.{rest}"
    parts = {
        "model.embeddings.patch_embeddings.projection.": "patches.",
        "model.embeddings.norm.": "patch_norm.",
        "hidden_states_norms.": "norms.",
        "model.encoder.layers.": "stages.",
        ".blocks.": ".",
        ".layernorm_before.": ".norm1.",
        ".layernorm_after.": ".norm2.",
        ".attention.self.relative_position_bias_table": ".attention.relative_bias",
        ".attention.self.": ".attention.",
        ".attention.output.dense.": ".attention.proj.",
        ".intermediate.dense.": ".mlp.0.",
        ".output.dense.": ".mlp.2.",
    }
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name
