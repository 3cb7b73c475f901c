"""Cost aggregation (CAT-Seg, Cho et al. 2024): from similarities of image and words to one map of logits a word.

    similarities -> 7x7 -> 2 x [windowed attention over the image, linear attention over the words] -> 4x upsampling

Same numbers as the published code, less work: what guides queries and keys is the same for all words (or for all
places) and is projected once, and words go through in chunks. Attention over the words is linear, so that all it needs
of the other words is a sum: chunks are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .windows import FAR, Windows

KEPT_BYTES = 512 << 20
"""Most memory for the states of words between layers; of words beyond it, states are computed anew when needed."""

CHUNK_BYTES = 3 << 20
"""Size of the states of the words that go through a layer together: about what a processor's cache holds."""

RARE = -2.0
"""The logit that every word begins with everywhere: a probability of 0.12."""


@dataclass(frozen=True, eq=False)
class DenseFeatures:
    """What a tower makes of images, as maps with one cell a patch.

    Attributes:
        aligned: [B, D, h, w] in the space of the texts.
        early, middle: [B, C, h, w] from one and two thirds of the way through the tower.
    """

    aligned: Tensor
    early: Tensor
    middle: Tensor

    def __len__(self) -> int:
        return len(self.aligned)

    def __getitem__(self, some: slice) -> DenseFeatures:
        return DenseFeatures(self.aligned[some], self.early[some], self.middle[some])

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.aligned.shape[-2], self.aligned.shape[-1]


class GuidedBlock(nn.Module):
    """A Swin block whose queries and keys also see the image. [B, T, h x w, D] -> the same."""

    def __init__(self, dim: int, guidance: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.places = heads, side * side
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.guide = nn.Linear(guidance, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def prepared(self, guidance: Tensor, windows: Windows) -> Tensor:
        """What is the same for all words: guidance [B, h x w, G] -> [B, places, 2 D] of the windows."""
        return _arranged(self.guide(guidance), windows.into)

    def forward(self, x: Tensor, guide: Tensor, windows: Windows) -> Tensor:
        """`guide` is what `prepared` gives."""
        x = plus_linear(x, self._attended(self.norm1(x), guide, windows), self.proj)
        return plus_linear(x, self.mlp[:2](self.norm2(x)), self.mlp[2])

    def _attended(self, x: Tensor, guide: Tensor, windows: Windows) -> Tensor:
        qkv = self.qkv(_arranged(x.flatten(0, 1), windows.into)).view(*x.shape[:2], len(windows.into), -1)
        qkv[..., : guide.shape[-1]] += guide[:, None]
        q, k, v = qkv.view(-1, self.places, 3, self.heads, x.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if windows.far is None else windows.far.repeat(len(q) // len(windows.far), 1, 1, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        tokens = attended.transpose(1, 2).reshape(-1, len(windows.into), x.shape[-1])
        return tokens.index_select(1, windows.back).view(x.shape)


def plus_linear(x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    """x + layer(y) for a linear layer with a bias.

    Without gradients the product is accumulated onto the sum of the other two: on processors, where such layers wait
    for memory, that saves one of three passes over it.
    """
    assert isinstance(layer, nn.Linear)
    if torch.is_grad_enabled() or not x.dtype == y.dtype == layer.weight.dtype:
        return x + layer(y)
    total = (x + layer.bias).flatten(0, -2)
    return total.addmm_(y.flatten(0, -2), layer.weight.T).view(x.shape)


def _arranged(tokens: Tensor, into: Tensor) -> Tensor:
    """Tokens [b, n, D] at the places `into`, zero where there is none."""
    if len(into) != tokens.shape[1]:
        tokens = F.pad(tokens, (0, 0, 0, 1))
    return tokens.index_select(1, into)


def token_windows(grid: tuple[int, int], side: int, shift: int, device: torch.device) -> Windows:
    """Windows over a map; places beyond it are hidden, and a map that fits into one window is not shifted."""
    windows = Windows.of(*grid, side, shift if max(grid) > side else 0, device)
    beyond = (windows.into == grid[0] * grid[1]).view(-1, 1, 1, side * side)
    if not bool(beyond.any()):
        return windows
    hidden = (FAR * beyond.float()).expand(-1, -1, side * side, -1)
    return Windows(windows.into, windows.back, hidden if windows.far is None else hidden + windows.far)


Prepared = list[tuple[Tensor, Windows]]


class SpatialAggregation(nn.Module):
    """Two guided blocks, the second with its windows shifted by half. [B, T, h x w, D] -> the same."""

    def __init__(self, dim: int, guidance: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(guidance)
        self.blocks = nn.ModuleList(GuidedBlock(dim, guidance, heads, side) for _ in range(2))

    def prepared(self, guidance: Tensor, grid: tuple[int, int]) -> Prepared:
        """What is the same for all words: guidance [B, h x w, G] and windows of each block."""
        guidance = self.norm(guidance)
        windows = [token_windows(grid, self.side, shift, guidance.device) for shift in (0, self.side // 2)]
        return [(block.prepared(guidance, own), own) for block, own in zip(self._blocks, windows, strict=True)]

    def forward(self, x: Tensor, prepared: Prepared) -> Tensor:
        """`prepared` is what the method of that name gives."""
        for block, (guide, windows) in zip(self._blocks, prepared, strict=True):
            x = block(x, guide, windows)
        return x

    @property
    def _blocks(self) -> list[GuidedBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class KeySums:
    """All that linear attention needs to know of the keys and values, at each place.

    Attributes:
        products: [B, n, heads, d, d], keys x values.
        keys: [B, n, heads, d].
    """

    products: Tensor
    keys: Tensor

    def __add__(self, other: KeySums) -> KeySums:
        return KeySums(self.products + other.products, self.keys + other.keys)


class ClassAggregation(nn.Module):
    """Linear attention over the words at each place, guided by their text features (Katharopoulos et al. 2020).

    Without positions, so that the order of the words means nothing. The published models were trained with words
    filled up to `padding` by a learnt one: as all of these are equal, one of them is computed, times their number.
    """

    def __init__(self, dim: int, guidance: int, heads: int, padding: int) -> None:
        super().__init__()
        self.heads, self.padding = heads, padding
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.guide = nn.Linear(guidance, 2 * dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(inplace=True), nn.Linear(4 * dim, dim))
        if padding:
            self.padding_state = nn.Parameter(torch.zeros(dim))
            self.padding_words = nn.Parameter(torch.zeros(guidance))

    def sums(self, x: Tensor, guide: Tensor) -> KeySums:
        """Of words with states x [B, T, n, D].

        Args:
            guide: [T, 2 D], what the layer of that name makes of their text features.
        """
        k, v = self.kv(self.norm1(x)).chunk(2, dim=-1)
        keys, values = self._positive(k, guide[:, k.shape[-1] :]), self._split(v)
        return KeySums(keys.permute(0, 2, 3, 4, 1) @ values.permute(0, 2, 3, 1, 4), keys.sum(1))

    def padding_sums(self, count: int) -> KeySums:
        """Of `count` words of padding, the same at each place."""
        one = self.sums(self.padding_state.view(1, 1, 1, -1), self.guide(self.padding_words[None]))
        return KeySums(one.products * count, one.keys * count)

    def forward(self, x: Tensor, guide: Tensor, sums: KeySums) -> Tensor:
        """x [B, T, n, D] -> what is to be added to it; `guide` as for `sums`."""
        queries = self._positive(self.q(self.norm1(x)), guide[:, : x.shape[-1]]).permute(0, 2, 3, 1, 4)
        weight = queries @ sums.keys[..., None] + 1e-6
        found = (queries @ sums.products).div_(weight).permute(0, 3, 1, 2, 4)
        x = x + found.flatten(-2)
        return plus_linear(x, self.mlp[:2](self.norm2(x)), self.mlp[2])

    def _positive(self, x: Tensor, guide: Tensor) -> Tensor:
        """The feature map of linear attention, elu + 1: x [B, T, n, D], guide [T, D] -> [B, T, n, heads, d]."""
        return self._split(F.elu(x + guide[:, None], inplace=True) + 1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class AggregationLayer(nn.Module):
    """Over the image, then over the words."""

    def __init__(self, dim: int, guidance: int, heads: int, side: int, padding: int) -> None:
        super().__init__()
        self.spatial = SpatialAggregation(dim, guidance, heads, side)
        self.classes = ClassAggregation(dim, guidance, heads, padding)


class GuidedUpsample(nn.Module):
    """Twice the size, then two 3x3 convolutions, the first of which also sees the image.

    Args:
        guidance: channels of a map of the tower; `projected` of what is made of it.
    """

    def __init__(self, in_channels: int, out_channels: int, guidance: int, projected: int) -> None:
        super().__init__()
        own = in_channels - projected
        self.project = nn.Sequential(nn.Conv2d(guidance, projected, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(in_channels, own, kernel_size=2, stride=2)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        groups = max(1, out_channels // 16)
        self.norm1, self.norm2 = nn.GroupNorm(groups, out_channels), nn.GroupNorm(groups, out_channels)

    def guide(self, features: Tensor) -> Tensor:
        """The part of the first convolution that is the same for all words: [B, guidance, 2h, 2w] -> [B, out, ...]."""
        guide = F.conv2d(self.project(features), self.conv1.weight[:, self.up.out_channels :], padding=1)
        return guide.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """x [B x T, in, h, w] -> [B x T, out, 2h, 2w]."""
        x = F.conv2d(self.up(x), self.conv1.weight[:, : self.up.out_channels], padding=1)
        x = x.unflatten(0, (len(guide), -1)).add_(guide[:, None]).flatten(0, 1)
        x = F.relu(self.norm1(x), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class Aggregator(nn.Module):
    """From dense image features and text features to logits at four times the features' resolution.

    Args:
        text: width of the text space.
        tower: channels of `DenseFeatures.early` and `middle`.
        channels: similarities of a word: one, or one a prompt template.
        dim, heads, layers, side, padding: of the two kinds of aggregation.
        decoder: channels after each upsampling.
    """

    def __init__(
        self,
        text: int,
        tower: int,
        *,
        channels: int = 1,
        dim: int = 128,
        heads: int = 4,
        layers: int = 2,
        side: int = 12,
        padding: int = 256,
        decoder: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        fine, finer = decoder
        self.embed = nn.Conv2d(channels, dim, kernel_size=7, padding=3)
        self.appearance = nn.Sequential(nn.Conv2d(text, dim, 3, padding=1), nn.ReLU())
        self.words = nn.Sequential(nn.Linear(text, dim), nn.ReLU())
        self.layers = nn.ModuleList(AggregationLayer(dim, dim, heads, side, padding) for _ in range(layers))
        self.up_early = nn.ConvTranspose2d(tower, 4 * fine, kernel_size=2, stride=2)
        self.up_middle = nn.ConvTranspose2d(tower, 4 * finer, kernel_size=4, stride=4)
        self.up1 = GuidedUpsample(dim, fine, 4 * fine, dim // 4)
        self.up2 = GuidedUpsample(fine, finer, 4 * finer, fine // 4)
        self.head = nn.Conv2d(finer, 1, kernel_size=3, padding=1)
        # Nearly every word is absent from nearly every pixel (the prior of RetinaNet, Lin et al. 2017, section 4.1).
        # `everymask overfit catseg` takes 40 steps with it, and without it does not succeed in 120.
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, RARE)

    def forward(self, features: DenseFeatures, text: Tensor, pooling: int = 1) -> Tensor:
        """Logits [B, T, 4h, 4w] of words with text features [T, P, D].

        Args:
            pooling: attention over the words takes place at the mean of so many cells in either direction.
        """
        return torch.cat([logits for _, logits in self.stream(features, text, pooling)], dim=1)

    def stream(self, features: DenseFeatures, text: Tensor, pooling: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """`forward` by chunks of words, as [B, t, 4h, 4w] and which of the words these are."""
        walk = _Walk(self, features, text, pooling)
        guides = self.up1.guide(self.up_early(features.early)), self.up2.guide(self.up_middle(features.middle))
        for part in walk.parts:
            yield part, self._decoded(walk.result(part), features.grid, guides)

    def in_parts(self, features: DenseFeatures, count: int) -> Iterator[tuple[int, DenseFeatures]]:
        """Features in parts whose states for `count` words need not be computed twice, and where each part starts."""
        height, width = features.grid
        image = 4 * count * height * width * self.embed.out_channels
        size = len(features) if torch.is_grad_enabled() else max(1, KEPT_BYTES // image)
        yield from ((start, features[start : start + size]) for start in range(0, len(features), size))

    def similarities(self, features: DenseFeatures, text: Tensor) -> Tensor:
        """Cosines [B, T, P, h, w]."""
        return torch.einsum("bdhw,tpd->btphw", F.normalize(features.aligned, dim=1), F.normalize(text, dim=-1))

    def _decoded(self, x: Tensor, grid: tuple[int, int], guides: tuple[Tensor, Tensor]) -> Tensor:
        """States [B, T, h x w, D] to logits [B, T, 4h, 4w]."""
        maps = x.flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2)
        logits = self.head(self.up2(self.up1(maps, guides[0]), guides[1]))
        return logits.view(*x.shape[:2], *logits.shape[-2:])


class _Walk:
    """The way of all words through the layers, a chunk at a time."""

    def __init__(self, aggregator: Aggregator, features: DenseFeatures, text: Tensor, pooling: int) -> None:
        self.aggregator, self.features, self.text, self.pooling = aggregator, features, text, pooling
        appearance = aggregator.appearance(features.aligned).flatten(2).transpose(1, 2)
        words = aggregator.words(F.normalize(F.normalize(text, dim=-1).mean(1), dim=-1))
        self.layers = [layer for layer in aggregator.layers if isinstance(layer, AggregationLayer)]
        self.prepared = [layer.spatial.prepared(appearance, features.grid) for layer in self.layers]
        self.guides: list[Tensor] = [layer.classes.guide(words) for layer in self.layers]
        self.sums: list[KeySums] = []
        self.kept: dict[int, Tensor] = {}
        bytes_a_word = appearance.numel() * appearance.element_size()
        # With gradients, everything is kept anyway.
        size = len(text) if torch.is_grad_enabled() else max(1, CHUNK_BYTES // bytes_a_word)
        self.parts = [slice(start, start + size) for start in range(0, len(text), size)]
        self.room = max(1, KEPT_BYTES // (size * bytes_a_word))
        for level in range(len(self.layers)):
            self._sum(level)

    def result(self, part: slice) -> Tensor:
        """[B, t, h x w, D] after the last layer."""
        last = len(self.layers) - 1
        return self._attended(last, part, self._spatial(last, part))

    def _sum(self, level: int) -> None:
        """What the attention over words needs to know of all of them, at one layer."""
        layer = self.layers[level]
        missing = layer.classes.padding - len(self.text)
        total = [layer.classes.padding_sums(missing)] if missing > 0 else []
        for number, part in enumerate(self.parts):
            x = self._spatial(level, part)
            sums = layer.classes.sums(self._pooled(x), self.guides[level][part])
            total = [total[0] + sums] if total else [sums]
            if number < self.room:
                self.kept[part.start] = x
        self.sums += total

    def _spatial(self, level: int, part: slice) -> Tensor:
        """State of a chunk after the attention over the image at layer `level`."""
        kept = self.kept.get(part.start)
        if level == len(self.sums) - 1 and kept is not None:
            return kept
        if level == 0:
            x = self._embedded(part)
        else:
            x = self._attended(level - 1, part, self._spatial(level - 1, part))
        spatial: Tensor = self.layers[level].spatial(x, self.prepared[level])
        return spatial

    def _embedded(self, part: slice) -> Tensor:
        """[B, t, h x w, D]."""
        similar = self.aggregator.similarities(self.features, self.text[part])
        tokens = self.aggregator.embed(similar.flatten(0, 1)).flatten(2).transpose(1, 2)
        return tokens.unflatten(0, similar.shape[:2]).contiguous()

    def _attended(self, level: int, part: slice, x: Tensor) -> Tensor:
        pooled = self.layers[level].classes(self._pooled(x), self.guides[level][part], self.sums[level])
        if self.pooling == 1:
            return pooled.add_(x)
        maps = pooled.flatten(0, 1).unflatten(1, self._coarse).permute(0, 3, 1, 2)
        finer = F.interpolate(maps, self.features.grid, mode="bilinear", align_corners=True)
        return x + finer.flatten(2).transpose(1, 2).view(x.shape)

    def _pooled(self, x: Tensor) -> Tensor:
        """[B, t, h x w, D] -> the same with the means of `pooling` x `pooling` cells."""
        if self.pooling == 1:
            return x
        maps = x.flatten(0, 1).unflatten(1, self.features.grid).permute(0, 3, 1, 2)
        coarse = F.avg_pool2d(maps, self.pooling, ceil_mode=True, count_include_pad=False)
        return coarse.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])

    @property
    def _coarse(self) -> tuple[int, int]:
        height, width = self.features.grid
        return -(-height // self.pooling), -(-width // self.pooling)
