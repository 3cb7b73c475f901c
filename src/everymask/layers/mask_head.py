"""DETR's mask head: from a query's attention over the image to its mask, only for the queries that are asked for.

Published code gives every query its own copy of the image's features. Here what does not depend on the query is
computed once an image: convolutions are linear, so the one over [features, attention] is the sum of one over the
features and one over the attention, and the one over an added pyramid level is the sum of one over that level and one
over what the query has so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..types import Letterbox
from .attention_map import AttentionMap
from .conv import upsample_to
from .map_masks import MapMasks
from .masks import Size

MIB = 1 << 20

ATTENTION_GAIN = 1000.0
"""Of the first weights on attention, whose maps sum to 1 over all heads and cells. Without it, random weights do not
see what tells one query from the next, and masks of all queries stay alike for thousands of steps."""


class MaskBlock(nn.Module):
    """3x3 convolution, group norm, ReLU, where the image's share of the convolution is known before.

    Args:
        level: channels of the pyramid level that is added to the input; 0 for none.
    """

    def __init__(self, in_channels: int, out_channels: int, level: int = 0) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(level, in_channels, 1) if level else nn.Identity()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(min(8, out_channels), out_channels)

    def image_share(self, maps: Tensor) -> Tensor:
        """What the image's maps [1, C, h, w], the first channels of the input, contribute: [1, out, h, w]."""
        x = self.adapter(maps)
        return F.conv2d(x, self.conv.weight[:, : x.shape[1]], self.conv.bias, padding=1)

    def forward(self, x: Tensor, image_share: Tensor | None = None) -> Tensor:
        """x [q, in, h, w], or the last channels of it, which are the query's own -> [q, out, h, w]."""
        if image_share is None:
            x = self.conv(x)
        else:
            x = F.conv2d(x, self.conv.weight[:, -x.shape[1] :], padding=1).add_(image_share)
        # In place: these maps are what limits how many queries are decoded at once.
        return F.relu_(self.norm(x))


class MaskHead(nn.Module):
    """Five blocks, the image's pyramid added before each of the last three, then one channel.

    Args:
        dim: width of the transformer.
        heads: attention maps a query.
        channels: of the encoder's maps c2, c3, c4.
    """

    def __init__(self, dim: int, heads: int, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [dim + heads, dim + heads, dim // 2, dim // 4, dim // 8, dim // 16]
        levels = [0, 0, *reversed(channels)]
        self.blocks = nn.ModuleList(map(MaskBlock, widths[:-1], widths[1:], levels))
        self.output = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        first = self.get_parameter("blocks.0.conv.weight")
        first.data[:, dim:] *= ATTENTION_GAIN

    def image_shares(self, source: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """What the image contributes to the first and the last three blocks of every query.

        Args:
            source: [1, dim, h, w], what the transformer's encoder was given.
            features: c2, c3, c4 [1, ...].
        """
        first, _, *last = cast("list[MaskBlock]", list(self.blocks))
        shares = [block.image_share(maps) for block, maps in zip(last, reversed(features), strict=True)]
        return [first.image_share(source), *shares]

    def forward(self, attention: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """Attention maps [q, heads, h, w] -> mask logits [q, h, w] at the size of c2."""
        first, second, *last = self.blocks
        x = second(first(attention, shares[0]))
        for block, share in zip(last, shares[1:], strict=True):
            x = block(upsample_to(x, share), share)
        logits: Tensor = self.output(x)
        return logits[:, 0]


@dataclass(frozen=True, eq=False)
class MaskSource:
    """All that masks of a batch are made from, besides the queries: shared by the decoder's layers.

    Attributes:
        memory, source: what the transformer's encoder gave and was given [B, D, h, w].
        features: c2, c3, c4 of the batch.
        stride: of `memory`.
        budget: MiB that the largest maps of the queries decoded together may take.
        recompute: keep no intermediate maps for the backward pass, but compute them again there.
        shares: what the images contribute to their masks, made when a mask of theirs is first asked for.
    """

    memory: Tensor
    source: Tensor
    features: Sequence[Tensor]
    attention_map: AttentionMap
    mask_head: MaskHead
    stride: int
    budget: int
    recompute: bool = False
    shares: dict[int, list[Tensor]] = field(default_factory=dict)

    def attention(self, b: int, queries: Tensor, size: Size) -> Tensor:
        """[q, heads, h, w] of query states [q, D]; `size` is that of the content in cells of `stride`."""
        maps: Tensor = self.attention_map(queries, self.memory[b, :, : size[0], : size[1]])
        return maps

    def masks(self, b: int, attention: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Mask logits [q, h, w] of attention maps; `sizes` are those of the content in c2, c3, c4."""
        shares = self._of_image(b, sizes, (attention.shape[-2], attention.shape[-1]))
        step = self._queries_at_once(sizes[0])
        return torch.cat([self._decoded(part, shares) for part in attention.split(step)])

    def _of_image(self, b: int, sizes: Sequence[Size], coarse: Size) -> list[Tensor]:
        if b not in self.shares:
            features = [x[b : b + 1, :, :h, :w] for x, (h, w) in zip(self.features, sizes, strict=True)]
            source = self.source[b : b + 1, :, : coarse[0], : coarse[1]]
            self.shares[b] = self.mask_head.image_shares(source, features)
        return self.shares[b]

    def _queries_at_once(self, size: Size) -> int:
        """The last convolution takes and gives the largest maps: D/8 channels in, D/16 out, and again normalised."""
        channels = self.memory.shape[1] // 4
        query = size[0] * size[1] * channels * self.memory.element_size()
        return max(1, self.budget * MIB // query)

    def _decoded(self, attention: Tensor, shares: list[Tensor]) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            maps: Tensor = checkpoint(self.mask_head, attention, shares, use_reentrant=False)
        else:
            maps = self.mask_head(attention, shares)
        return maps


class AttentionMasks(MapMasks):
    """Masks of one decoder layer's queries [B, Q, D]."""

    def __init__(self, queries: Tensor, source: MaskSource, letterboxes: Sequence[Letterbox]) -> None:
        super().__init__(queries.shape[1], letterboxes)
        self.queries, self.source = queries, source

    def attention(self, b: int, queries: Tensor) -> Tensor:
        """Where queries [q] of image `b` look: [q, heads, h, w] over its content; the maps of each sum to 1."""
        return self.source.attention(b, self.queries[b, queries], self.cells(b, self.source.stride))

    def maps(self, b: int, queries: Tensor) -> Tensor:
        if len(queries) == 0:
            return self.queries.new_zeros(0, *self.cells(b))
        sizes = [self.cells(b, stride) for stride in (4, 8, 16)]
        return self.source.masks(b, self.attention(b, queries), sizes)

    @property
    def device(self) -> torch.device:
        return self.queries.device
