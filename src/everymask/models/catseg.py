"""CAT-Seg (Cho et al. 2024) on SigLIP 2, SigLIP or CLIP: segments any list of words.

    words -> prompts -> text tower -> text features --+
    photo -> windows and the whole -> image tower     | cosines -> aggregation over image and words -> logits a word
                                      dense features -+                  |
                                      middle layers -> upsampling decoder -> blended -> one map a word

Query t is class t: no matching, and what a pixel is not is learnt by binary cross entropy for each word. So a pixel can
be none of the words (`background`). Image features and text features are kept: other words for the same photo cost no
encoding, and neither does another photo for the same words.

`compat="original"` is the system as first published: photos squashed to a square, windows blended by probability, the
first synonym alone, the 256 most similar words of more, and void trained as "none of the words".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import postprocess, vocabulary
from ..class_criterion import ClassCriterion
from ..datasets import coco_classes
from ..encoders import clip, siglip
from ..encoders.published_catseg import from_published, is_published, prefixed, published_settings
from ..encoders.tokenize import FolderTokenizer, HashTokenizer, Tokenizer, has_tokenizer
from ..encoders.towers import Kind, TowerSizes, Trained, choose_trained
from ..encoders.words import Ensemble, WordEncoder
from ..labels import LabelMap
from ..layers.aggregation import Aggregator, DenseFeatures
from ..layers.class_maps import ClassMaps
from ..layers.normalize import Normalize
from ..layers.param_groups import param_groups
from ..layers.views import Mosaic, View, by_grid, patches, pixels, plan, stretched
from ..model import EncodeOnce
from ..recipe import TrainConfig
from ..types import Batch, Letterbox, Prediction

HASH, FOLDER = "hash", "."
"""Tokenizers without files, and in the checkpoint's own folder."""


@dataclass(frozen=True)
class Config:
    """Sizes of a CAT-Seg.

    Attributes:
        image_side: longest side of the photo on its canvas at inference.
        resolution: longest side in pixels of what the image tower sees at once; a larger canvas is seen in windows.
        kind, patch, positions, width, depth, heads, hidden, text_width, text_depth, text_heads, text_hidden,
            text_length, tokens, space: of the towers, see `TowerSizes`.
        tokenizer: name on the Hub or folder; a checkpoint that holds one uses that. "hash" needs none,
            "." is the checkpoint's.
        templates: prompt templates: "single", "imagenet" or texts with ``{}``.
        ensemble: what becomes of many templates: the "mean" of their text features, or a channel of similarity each.
        dim, aggregation_heads, layers, window, padding, decoder: of the `Aggregator`; the window is in patches.
        pooling: in training, attention over words takes place at the mean of so many cells in either direction.
        train_towers: "attention" trains the query and value projections, "lora" updates of `rank` to them.
        tower_rate: the towers' learning rate relative to the others'.
        points, train_words: points an image and words that the loss sees, 0 for all; words in the batch come first.
        background: pixels whose best word has less probability than this are none of the words; None, as in the paper,
            gives every pixel one.
    """

    image_side: int = 640
    resolution: int = 384
    kind: Kind = "siglip"
    patch: int = 16
    positions: int = 24
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_length: int = 64
    tokens: int = 256_000
    space: int = 768
    tokenizer: str = "google/siglip2-base-patch16-384"
    templates: tuple[str, ...] = ("single",)
    ensemble: Ensemble = "mean"
    dim: int = 128
    aggregation_heads: int = 4
    layers: int = 2
    window: int = 12
    padding: int = 256
    decoder: tuple[int, ...] = (64, 32)
    pooling: int = 2
    train_towers: Trained = "attention"
    rank: int = 8
    tower_rate: float = 0.01
    points: int = 12544
    train_words: int = 0
    background: float | None = None
    compat: Literal["default", "original"] = "default"

    @property
    def towers(self) -> TowerSizes:
        """The sizes of the towers."""
        return TowerSizes(**{field.name: getattr(self, field.name) for field in fields(TowerSizes)})

    @property
    def grid(self) -> int:
        """Patches a side of the largest view."""
        return max(1, self.resolution // self.patch)


_B384 = Config()
_L: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096}
_SO: dict[str, Any] = {"width": 1152, "depth": 27, "heads": 16, "hidden": 4304}


def _siglip2(name: str, resolution: int, **sizes: Any) -> Config:
    """SigLIP 2 with towers of equal size."""
    own = sizes | {f"text_{key}": value for key, value in sizes.items()} | {"space": sizes.get("width", 768)}
    own |= _seen(resolution, resolution // 16) | {"positions": resolution // 16}
    return replace(_B384, **own, tokenizer=f"google/siglip2-{name}")


def _seen(resolution: int, grid: int) -> dict[str, Any]:
    """Sides for a tower that sees `grid` patches a side: canvas as 640 to 384, windows of half or a third."""
    window = next((grid // parts for parts in (2, 3) if grid % parts == 0), 12)
    return {"image_side": resolution * 5 // 3 // 32 * 32, "resolution": resolution, "window": window}


_CLIP_B = replace(
    _B384,
    kind="clip",
    positions=14,
    text_width=512,
    text_heads=8,
    text_hidden=2048,
    text_length=77,
    tokens=49408,
    space=512,
    tokenizer="openai/clip-vit-base-patch16",
    compat="original",
)
_CLIP_L = replace(
    _CLIP_B,
    **_L,
    image_side=560,
    resolution=336,
    patch=14,
    positions=24,
    text_width=768,
    text_heads=12,
    text_hidden=3072,
    space=768,
    tokenizer="openai/clip-vit-large-patch14-336",
)
_SMALL = Config(
    image_side=256,
    resolution=256,
    kind="siglip",
    patch=16,
    positions=16,
    width=192,
    depth=4,
    heads=3,
    hidden=384,
    text_width=64,
    text_depth=1,
    text_heads=2,
    text_hidden=128,
    text_length=16,
    tokens=4096,
    space=192,
    tokenizer=HASH,
    templates=("{}",),
    dim=32,
    aggregation_heads=2,
    layers=1,
    window=8,
    padding=0,
    decoder=(32, 16),
    train_towers="full",
    tower_rate=1.0,
    points=4096,
    train_words=24,
    background=0.5,
)

PRESETS = {
    "siglip2-b16-224": _siglip2("base-patch16-224", 224),
    "siglip2-b16-384": _B384,
    "siglip2-b16-512": _siglip2("base-patch16-512", 512),
    "siglip2-l16-384": _siglip2("large-patch16-384", 384, **_L),
    "siglip2-so400m-384": _siglip2("so400m-patch16-384", 384, **_SO),
    "siglip2-naflex-b16": replace(_B384, kind="naflex", positions=16, tokenizer="google/siglip2-base-patch16-naflex"),
    "clip-b16": _CLIP_B,
    "clip-l14": _CLIP_L,
    "small": _SMALL,
    "tiny": replace(
        _SMALL,
        image_side=96,
        resolution=96,
        patch=8,
        positions=12,
        width=32,
        depth=3,
        heads=2,
        hidden=64,
        text_width=32,
        text_hidden=64,
        space=32,
        text_length=16,
        tokens=512,
        window=6,
        padding=4,
        points=2048,
        pooling=1,
    ),
}

_RATES: dict[str, Any] = {"lr": 2e-4, "weight_decay": 1e-4, "warmup": 0, "final_lr": 0.0, "clip": 0.01, "ema": 0.0}
# The shortest side of a photo becomes that of the crop, which for photos of 4:3 is 4/3 of one that is fitted.
_VIEWS: dict[str, Any] = {"image_side": 384, "scale": (4 / 3, 4 / 3), "stretch": 0.0, "photometric": True}
RECIPE = TrainConfig(
    steps=80_000, batch_size=4, **_RATES, **_VIEWS, validate_side=640, validate_every=5000, max_val=500
)

TASKS = {
    "semantic": partial(postprocess.semantic, reduce="max"),
    "cutout": postprocess.cutout,
}

LABELS = coco_classes.STUFF
"""The classes of a published tower, which names none itself: those CAT-Seg is trained with."""

FRESH = ("aggregator.",)
"""What a published tower does not have, and begins with random weights."""

MOST_VIEWS = 8
"""Views of equal size that go through the image tower together at inference."""

CELLS = 4
"""Cells a side that the decoder makes of each patch."""

BEST, LEFT_OUT = 256, -100.0
"""Words kept in the published way, and the logit of all others."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Views of equal size, and their features in the same order."""

    views: list[View]
    features: DenseFeatures


class Model(EncodeOnce):
    """CAT-Seg. See the head of this file for the picture.

    Args:
        labels: the words, until others are given: `with_classes`.

    Attributes:
        words: makes text features of the words.
    """

    open_vocabulary = True

    def __init__(self, config: Config, labels: LabelMap) -> None:
        super().__init__(config, labels)
        family = clip if config.kind == "clip" else siglip
        self.normalize = Normalize(family.MEAN, family.STD)
        self.encoder = family.Towers(config.towers)
        self.aggregator = aggregator_of(config)
        choose_trained(self.encoder, config.train_towers, config.rank)
        self.words = self._word_encoder(config.tokenizer)
        void = "negative" if self.is_original else "ignored"
        self.criterion = ClassCriterion(config.points, void, config.train_words)

    @property
    def is_original(self) -> bool:
        """Whether it does as the published code does."""
        return bool(self.config.compat == "original")

    def _word_encoder(self, source: str | Path) -> WordEncoder:
        """Made anew for another tokenizer, so that it remembers nothing of the one before."""
        own = self.config
        tokenizer: Tokenizer = (
            HashTokenizer(own.tokens) if source == HASH else FolderTokenizer(source, self.encoder.lowercase)
        )
        return WordEncoder(own.templates, own.ensemble, own.text_length, tokenizer, self.is_original)

    # ---- words ----

    def with_classes(self, classes: LabelMap | Iterable[str]) -> Model:
        """The same model with other words: weights and what was encoded are shared.

        Args:
            classes: words, each a class, synonyms after commas (``"sofa, couch"``); or lists by name, see
                `everymask.vocabulary`.

        Raises:
            UsageError: no word, an empty one, or the same twice.
        """
        other = super().with_classes(vocabulary.words(classes))
        assert isinstance(other, Model)
        return other

    def read_extras(self, folder: Path) -> None:
        """Take the tokenizer of a checkpoint folder."""
        if self.config.tokenizer == FOLDER or (self.config.tokenizer != HASH and has_tokenizer(folder)):
            self.words = self._word_encoder(folder)

    def write_extras(self, folder: Path) -> None:
        """Let the tokenizer travel with the weights."""
        self.words.tokenizer.save(folder)

    def text_features(self) -> Tensor:
        """[T, P, D] of the words, of unit length."""
        return self.words.features(self.encoder, self.labels, self.normalize.mean.device)

    # ---- photo ----

    def letterbox(self, source: tuple[int, int], side: int | None = None) -> Letterbox:
        if not self.is_original:
            return super().letterbox(source, side)
        square = (side or self.config.image_side,) * 2
        return Letterbox(source, square, square)

    def task_options(self, task: str) -> dict[str, Any]:
        return {"background": self.config.background} if task == "semantic" else {}

    def encode(self, batch: Batch) -> list[Encoded]:
        """Views of all images, by their size, with their features."""
        images = self.normalize(batch.images)
        parts = [
            stretched(image[:, : box.content[0], : box.content[1]], self._pixels(box))
            for image, box in zip(images, batch.letterboxes, strict=True)
        ]
        views = [view for b, box in enumerate(batch.letterboxes) for view in self._views(b, box)]
        most = len(views) if torch.is_grad_enabled() else MOST_VIEWS
        groups = by_grid(views, most)
        return [Encoded(group, self._features(group, parts)) for group in groups]

    def _features(self, views: Sequence[View], images: Sequence[Tensor]) -> DenseFeatures:
        seen = [pixels(images[view.image], view, self.config.patch, not self.is_original) for view in views]
        features: DenseFeatures = self.encoder.images(torch.stack(seen))
        return features

    def _views(self, b: int, box: Letterbox) -> list[View]:
        window = self.config.grid
        return plan(b, patches(box.content, self.config.patch), window, max(1, round(window * 2 / 3)))

    def _pixels(self, box: Letterbox) -> tuple[int, int]:
        """The size of an image as whole patches."""
        height, width = patches(box.content, self.config.patch)
        return height * self.config.patch, width * self.config.patch

    # ---- both ----

    def answer(self, features: list[Encoded], batch: Batch, pooling: int = 1) -> Prediction:
        """Query t is class t.

        Args:
            pooling: as in `Aggregator.forward`.
        """
        text = self.text_features()
        views = [view for group in features for view in group.views]
        mosaics = [self._mosaic(b, box, views, len(text)) for b, box in enumerate(batch.letterboxes)]
        for group in features:
            for start, some in self.aggregator.in_parts(group.features, len(text)):
                for part, logits in self._logits(some, text, pooling):
                    for own, view in zip(logits, group.views[start:], strict=False):
                        mosaics[view.image].add(part, own, view)
        maps = ClassMaps([mosaic.finish() for mosaic in mosaics], batch.letterboxes)
        return Prediction(certain(len(mosaics), len(text), text), maps, by_class=True)

    def _mosaic(self, b: int, box: Letterbox, views: Sequence[View], count: int) -> Mosaic:
        own = [view for view in views if view.image == b]
        grid = patches(box.content, self.config.patch)
        if self.is_original:
            return Mosaic(count, grid, own, self.config.patch, "probabilities", self.normalize.mean)
        return Mosaic(count, grid, own, CELLS, "logits", self.normalize.mean)

    def _logits(self, features: DenseFeatures, text: Tensor, pooling: int) -> Iterator[tuple[slice, Tensor]]:
        """Logits [b, t, h, w] by chunks of words."""
        if self.is_original and len(text) > BEST:
            yield from self._best(features, text, pooling)
        else:
            yield from self.aggregator.stream(features, text, pooling)

    def _best(self, features: DenseFeatures, text: Tensor, pooling: int) -> Iterator[tuple[slice, Tensor]]:
        """The published way with many words: the most similar ones of each view, all others excluded."""
        height, width = features.grid
        logits = text.new_full((len(features), len(text), CELLS * height, CELLS * width), LEFT_OUT)
        for v in range(len(features)):
            one = features[v : v + 1]
            kept = self.aggregator.similarities(one, text)[0].flatten(1).amax(1).topk(BEST).indices
            logits[v, kept] = self.aggregator(one, text[kept], pooling)[0]
        yield slice(0, len(text)), logits

    # ---- training ----

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross entropy of every word at points whose truth is known."""
        chosen = self.criterion.chosen(batch, len(self.labels))
        asked = self.with_classes(LabelMap(tuple(self.labels[k] for k in chosen.tolist())))
        prediction = asked.answer(self.encode(batch), batch, self.config.pooling)
        return self.criterion(prediction, batch, chosen)

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Every trained parameter once; the towers learn slowly."""
        return param_groups(self, lr, weight_decay, rates={"encoder": self.config.tower_rate})


def aggregator_of(config: Config) -> Aggregator:
    """The aggregator of these sizes, with random weights."""
    return Aggregator(
        config.space,
        config.width,
        channels=1 if config.ensemble == "mean" else len(vocabulary.templates(config.templates)),
        dim=config.dim,
        heads=config.aggregation_heads,
        layers=config.layers,
        side=config.window,
        padding=config.padding,
        decoder=config.decoder,
    )


def certain(images: int, count: int, like: Tensor) -> Tensor:
    """Class logits [B, T, T+1] that say what is so: query t is class t."""
    return torch.eye(count, count + 1, device=like.device, dtype=like.dtype).mul_(30).expand(images, -1, -1)


# ---- published weights ----


def published(config: dict[str, Any], preprocessor: dict[str, Any]) -> Config | None:
    """A CAT-Seg on the towers of a checkpoint in the layout of `transformers`, None if these are no such towers.

    Args:
        config: its ``config.json``.
        preprocessor: its ``preprocessor_config.json``, empty if there is none.
    """
    kind = config.get("model_type")
    if kind not in ("siglip", "siglip2", "clip"):
        return None
    sizes = (clip if kind == "clip" else siglip).published_sizes(config)
    grid = 24 if sizes.kind == "naflex" else sizes.positions
    return Config(**vars(sizes), **_seen(grid * sizes.patch, grid), tokenizer=FOLDER)


def original(state_dict: dict[str, Tensor], name: str) -> Config | None:
    """The configuration of a published CAT-Seg (``model_base.pth``), None if the weights are others'."""
    if not is_published(state_dict):
        return None
    own = replace(_CLIP_B, **published_settings(state_dict))
    tokenizer = _CLIP_B.tokenizer if own.patch == _CLIP_B.patch else _CLIP_L.tokenizer
    return replace(own, image_side=40 * own.patch, resolution=24 * own.patch, tokenizer=tokenizer)


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of towers in the layout of `transformers`, or of a published CAT-Seg, to ours; ours are left alone."""
    if is_published(state_dict):
        return from_published(state_dict)
    if not any(name.startswith("vision_model.") for name in state_dict):
        return state_dict
    family = clip if "visual_projection.weight" in state_dict else siglip
    return prefixed("encoder.", family.from_transformers(state_dict))
