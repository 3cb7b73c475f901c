"""CAT-Seg against a plain implementation of the same maths with the same weights.

    python -m benchmarks catseg

SigLIP 2 B/16 sizes with random weights, photos of 384 x 384, 847 words. The plain implementation lies in this file: all
words at once, guidance repeated for every word, the image encoded window by window, the texts encoded at every call.

- **second photo, same words**: ours remembers what the words gave.
- **peak memory** of the same, beyond the weights: ours goes through the words in chunks.
- **other words, same photo**: against a new photo, 20 words whose text features are known from before. The next row has
  no bar: 20 words that were never asked for, whose texts take longer to encode than the photo.
- **matrix products**: their share of the aggregator's time, by PyTorch's profiler.

Both sides give the same logits, which is checked at every run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from everymask.encoders.published_catseg import aggregator_from_published
from everymask.features import FeatureMemory
from everymask.models.catseg import PRESETS, Config, Model
from everymask.predict import run
from everymask.types import Batch, Letterbox
from everymask.vocabulary import words

from .measure import Row, Step, alternate, peak_memory

CLOSE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """Of towers, photo and vocabulary."""

    config: Config
    words: int

    @property
    def names(self) -> list[str]:
        """Words that are all different."""
        return [f"word{n}" for n in range(self.words)]


def real() -> Sizes:
    """SigLIP 2 B/16 at 384; words by their hash, which costs no less than a tokenizer's ids."""
    return Sizes(replace(PRESETS["siglip2-b16-384"], image_side=384, tokenizer="hash", padding=256), 847)


SMALL = Sizes(replace(PRESETS["tiny"], image_side=64, resolution=64, window=4, padding=4), 5)


# --- the plain implementation ----------------------------------------------------------------------------------------


class DenseBlock(nn.Module):
    """A Swin block whose queries and keys are made of state and guidance side by side."""

    def __init__(self, dim: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.shift = heads, side, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        sizes = {"q": 2 * dim, "k": 2 * dim, "v": dim, "proj": dim}
        self.attn = nn.ModuleDict({name: nn.Linear(size, dim) for name, size in sizes.items()})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x, guidance [n, h, w, D]."""
        y = self.norm1(x)
        both = self._windows(torch.cat([y, guidance], dim=-1))
        q, k = (self._split(self.attn[name](both)) for name in "qk")
        v = self._split(self.attn["v"](self._windows(y)))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if self.shift:
            scores = scores + self._mask(x.shape[1], x.shape[2]).repeat(len(x), 1, 1)[:, None]
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
        x = x + self._image(self.attn["proj"](attended), x.shape)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))

    def _windows(self, x: Tensor) -> Tensor:
        """[n x windows, side x side, D]."""
        x = x.roll((-self.shift, -self.shift), (1, 2))
        cells = x.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))
        return cells.transpose(2, 3).reshape(-1, self.side * self.side, x.shape[-1])

    def _image(self, windows: Tensor, shape: torch.Size) -> Tensor:
        cells = windows.view(
            len(windows) * self.side**2 // (shape[1] * shape[2]),
            shape[1] // self.side,
            -1,
            self.side,
            self.side,
            shape[-1],
        )
        return cells.transpose(2, 3).reshape(shape).roll((self.shift, self.shift), (1, 2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _mask(self, height: int, width: int) -> Tensor:
        """[windows, n, n]: -100 between tokens that the shift has made neighbours."""
        rows, columns = (
            torch.bucketize(torch.arange(n), torch.tensor([n - self.side, n - self.shift]), right=True)
            for n in (height, width)
        )
        unshifted = (3 * rows[:, None] + columns).roll((self.shift, self.shift), (0, 1))
        region = self._windows(unshifted[None, :, :, None])[..., 0]
        return -100.0 * (region[:, :, None] != region[:, None]).float()


class DensePair(nn.Module):
    """In place, then shifted."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = DenseBlock(dim, heads, side, 0), DenseBlock(dim, heads, side, side // 2)
        self.guidance_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x [T, h, w, D], guidance [h, w, D]."""
        repeated = self.guidance_norm(guidance.expand(len(x), -1, -1, -1))
        return self.block_2(self.block_1(x, repeated), repeated)


class DenseWords(nn.Module):
    """Linear attention over words at each place, with words of padding written out."""

    def __init__(self, dim: int, heads: int, padding: int) -> None:
        super().__init__()
        self.heads, self.padding = heads, padding
        sizes = {"q": 2 * dim, "k": 2 * dim, "v": dim}
        self.attention = nn.ModuleDict({name: nn.Linear(size, dim) for name, size in sizes.items()})
        self.MLP = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.padding_guidance = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [T, h, w, D], text [T, D]."""
        missing = max(0, self.padding - len(x))
        states = x.flatten(1, 2).transpose(0, 1)
        states = torch.cat([states, self.padding_tokens.expand(len(states), missing, -1)], dim=1)
        guide = torch.cat([text[None], self.padding_guidance.expand(1, missing, -1)], dim=1).expand(len(states), -1, -1)
        y = self.norm1(states)
        both = torch.cat([y, guide], dim=-1)
        q, k = (F.elu(self.attention[name](both)).unflatten(-1, (self.heads, -1)) + 1 for name in "qk")
        v = self.attention["v"](y).unflatten(-1, (self.heads, -1))
        products = torch.einsum("nshd,nshv->nhdv", k, v)
        weight = torch.einsum("nlhd,nhd->nlh", q, k.sum(1)) + 1e-6
        states = states + (torch.einsum("nlhd,nhdv->nlhv", q, products) / weight[..., None]).flatten(-2)
        states = states + self.MLP(self.norm2(states))
        return x + states[:, : len(x)].transpose(0, 1).view(x.shape)


class DenseUp(nn.Module):
    """Transposed convolution, guidance beside it, two convolutions with group norm."""

    def __init__(self, in_channels: int, out_channels: int, guidance: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels - guidance, 2, 2)
        groups = max(1, out_channels // 16)
        self.conv = nn.Module()
        self.conv.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x [T, in, h, w], guidance [1, G, 2h, 2w]."""
        double_conv: nn.Module = self.conv.double_conv
        return double_conv(torch.cat([self.up(x), guidance.expand(len(x), -1, -1, -1)], dim=1))


class DenseAggregator(nn.Module):
    """The aggregator of one image with the names of the published weights."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, (fine, finer) = config.dim, config.decoder
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            layer = nn.Module()
            layer.swin_block = DensePair(dim, config.aggregation_heads, config.window)
            layer.attention = DenseWords(dim, config.aggregation_heads, config.padding)
            self.layers.append(layer)
        self.conv1 = nn.Conv2d(1, dim, 7, padding=3)
        self.guidance_projection = nn.Sequential(nn.Conv2d(config.space, dim, 3, padding=1), nn.ReLU())
        self.text_guidance_projection = nn.Sequential(nn.Linear(config.space, dim), nn.ReLU())
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU())
            for channels, out in ((4 * fine, dim // 4), (4 * finer, fine // 4))
        )
        self.decoder1, self.decoder2 = DenseUp(dim, fine, dim // 4), DenseUp(fine, finer, fine // 4)
        self.head = nn.Conv2d(finer, 1, 3, padding=1)
        self.upsample1 = nn.ConvTranspose2d(config.width, 4 * fine, 2, 2)
        self.upsample2 = nn.ConvTranspose2d(config.width, 4 * finer, 4, 4)

    def forward(self, aligned: Tensor, early: Tensor, middle: Tensor, text: Tensor) -> Tensor:
        """Maps [1, C, h, w] and text features [T, D] -> logits [T, 4h, 4w]."""
        text = F.normalize(text, dim=-1)
        cost = torch.einsum("dhw,td->thw", F.normalize(aligned, dim=1)[0], text)
        x = self.conv1(cost[:, None]).permute(0, 2, 3, 1)
        guidance = self.guidance_projection(aligned)[0].permute(1, 2, 0)
        words = self.text_guidance_projection(text)
        for layer in self.layers:
            x = layer.attention(layer.swin_block(x, guidance), words)
        maps = x.permute(0, 3, 1, 2)
        upsampled = self.upsample1(early), self.upsample2(middle)
        guides = [project(u) for project, u in zip(self.decoder_guidance_projection, upsampled, strict=True)]
        return self.head(self.decoder2(self.decoder1(maps, guides[0]), guides[1]))[:, 0]


class Dense:
    """The plain way from photo and words to logits, with the weights of a model of ours."""

    def __init__(self, model: Model, aggregator: DenseAggregator) -> None:
        self.model, self.aggregator = model, aggregator

    @torch.no_grad()
    def logits(self, photo: Tensor, names: Iterable[str]) -> Tensor:
        """Of a photo [3, H, W] that one window holds: [T, h, w]."""
        model = self.model
        labels = words(list(names))
        ids = model.words.tokenizer([model.words.texts(label)[0] for label in labels], model.config.text_length)
        text = torch.cat([model.encoder.texts(part) for part in ids.split(64)])
        found = model.encoder.images(model.normalize(photo[None]))
        return self.aggregator(found.aligned, found.early, found.middle, text)


def both(sizes: Sizes) -> tuple[Model, Dense]:
    """Ours and the plain implementation with the same random weights."""
    torch.manual_seed(0)
    model = Model(sizes.config, words(sizes.names)).eval()
    dense = DenseAggregator(sizes.config).eval()
    for parameter in dense.parameters():
        if parameter.ndim < 4:
            nn.init.normal_(parameter, std=0.1)
    model.aggregator.load_state_dict(aggregator_from_published(dense.state_dict()))
    return model, Dense(model, dense)


# --- what is measured ------------------------------------------------------------------------------------------------


def photos(side: int) -> Iterable[Tensor]:
    """Endless different photos [3, side, side]."""
    return (
        torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        for n in count()
    )


def ours_on(model: Model, photo: Tensor) -> Tensor:
    """Logits [T, h, w] of our model, whatever it remembers."""
    size = (photo.shape[1], photo.shape[2])
    return run(model, Batch(photo[None], (Letterbox(size, size, size),))).masks.decode(
        0, torch.arange(len(model.labels))
    )


def second_photo(sizes: Sizes) -> dict[str, Step]:
    """Ours, which has seen the words with another photo, and the plain way."""
    model, dense = both(sizes)
    source = iter(photos(sizes.config.image_side))
    photo = next(source)
    steps: dict[str, Step] = {
        "ours": lambda: ours_on(model, next(source)),
        "peer": partial(dense.logits, photo, sizes.names),
    }
    check_equal(ours_on(model, photo), steps["peer"]())
    return steps


def check_equal(ours: Tensor, peer: Tensor) -> None:
    """Raise `AssertionError` unless both sides say the same."""
    difference = float((ours - peer).abs().max() / peer.abs().max().clamp(min=1))
    assert difference < CLOSE, f"the two sides differ by {difference:.1e}"


def ours(sizes: Sizes) -> Step:
    """For memory: the words are known, the photo is not."""
    model, _ = both(sizes)
    with torch.no_grad():
        model.text_features()
    return partial(ours_on, model, next(iter(photos(sizes.config.image_side))))


def peer(sizes: Sizes) -> Step:
    """For memory: the plain way."""
    return partial(both(sizes)[1].logits, next(iter(photos(sizes.config.image_side))), sizes.names)


def other_words(sizes: Sizes) -> dict[str, Step]:
    """Other words on a photo seen before, known or unknown ones, and known words on a new one."""
    model, _ = both(replace(sizes, words=2 * sizes.words))
    names = model.labels.names
    lists = [model.with_classes(names[: sizes.words]), model.with_classes(names[sizes.words :])]
    source = iter(photos(sizes.config.image_side))
    seen = next(source)
    for one in lists:
        ours_on(one, seen)
    turn = count()

    def change_words() -> Tensor:
        return ours_on(lists[next(turn) % 2], seen)

    def ask_for_unknown() -> Tensor:
        n = next(turn)
        return ours_on(model.with_classes(f"unknown {n} {name}" for name in names[: sizes.words]), seen)

    def change_photo() -> Tensor:
        lists[0].features, kept = FeatureMemory(), lists[0].features
        try:
            return ours_on(lists[0], next(source))
        finally:
            lists[0].features = kept

    return {"ours": change_words, "unknown": ask_for_unknown, "peer": change_photo}


PRODUCTS = ("mm", "conv", "attention", "baddbmm", "mkldnn_linear")
"""Parts of the names of operators that are matrix products, attention and convolution included."""


@torch.no_grad()
def product_share(sizes: Sizes) -> float:
    """Percent of the aggregator's own time that goes into matrix products."""
    model, _ = both(sizes)
    features = model.encoder.images(model.normalize(next(iter(photos(sizes.config.image_side)))[None]))
    text = F.normalize(torch.randn(sizes.words, 1, sizes.config.space), dim=-1)
    model.aggregator(features, text)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        model.aggregator(features, text)
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    products = sum(time for name, time in times.items() if any(part in name for part in PRODUCTS))
    return 100 * products / sum(times.values())


def rows(sizes: Sizes | None = None, few: int = 20, rounds: int = 3) -> list[Row]:
    """Times in alternating runs; memory in a process of its own."""
    full = sizes or real()
    seconds = alternate(second_photo(full), rounds, warmup=0)
    words_changed = alternate(other_words(replace(full, words=min(few, full.words))), 3 * rounds)
    memory = {side: peak_memory(prepare, SMALL, full) for side, prepare in (("ours", ours), ("peer", peer))}
    name = f"{full.words} words at {full.config.image_side} px"
    return [
        Row(f"second photo, same words: {name}", seconds["ours"], "s", seconds["peer"], ratio_least=4),
        Row("  peak memory", memory["ours"], "MiB", memory["peer"], ratio_least=4),
        Row(f"other words ({few}), same photo", words_changed["ours"], "s", words_changed["peer"], ratio_least=2),
        Row("  words never asked for before", words_changed["unknown"], "s", words_changed["peer"]),
        Row(
            "matrix products in the aggregator", product_share(replace(full, words=min(100, full.words))), "%", least=70
        ),
    ]
