"""SAM 2 (Ravi et al. 2024): masks of what somebody points at, in photos and from frame to frame.

    photo -> Hiera + FPN -> features at strides 4, 8, 16 ------------------------------+
                            (stride 16: attends to the memory of earlier frames)       |
    clicks, box, earlier mask -> prompt encoder -> tokens -> two-way transformer over it -> mask tokens x upsampled
                                                                              features -> 4 candidate masks, IoU of each

Photos are stretched to a square, as SAM 2 sees them. Training goes in rounds: a first prompt, then clicks where the
answer is wrong, each round with the mask of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..automatic import automatic
from ..clicks import correction_clicks, sampled_clicks
from ..criterion import mean_over_processes
from ..encoders.hiera import Hiera
from ..errors import UsageError
from ..feature_store import FeatureStore
from ..frames import FrameBatch, nothing
from ..labels import LabelMap
from ..layers.conv import keep_valid
from ..layers.lora import add_lora
from ..layers.memory import NAMES, FrameMemory, Memory
from ..layers.normalize import Normalize
from ..layers.param_groups import param_groups
from ..layers.prompt_decoder import STABLE, Candidates, PromptDecoder
from ..lessons import LessonPlan
from ..model import EncodeOnce
from ..prompt_criterion import Lesson, PromptCriterion, Terms, at_pixels
from ..prompted import OBJECT, PromptedMasks, Unprompted, prompted
from ..recipe import TrainConfig
from ..types import Batch, Letterbox, Prediction, Prompts, Segments, round_up

Levels = tuple[Tensor, Tensor, Tensor]
"""Features of one image [1, C, h, w] at strides 4, 8 and 16."""


@dataclass(frozen=True)
class Config:
    """Sizes of a SAM 2, and how it is trained.

    Attributes:
        image_side: of the square canvas.
        width, depths, heads, windows, global_blocks, background: of the `Hiera` encoder.
        dim, decoder_heads, hidden_dim: of the mask decoder.
        train: what learns. "decoder" keeps the image encoder and the prompt encoder, "lora" trains a detour of low rank
            in the image encoder besides both others, "full" trains everything.
        rank: of the detours.
        encoder_rate, layer_decay: learning rate of the image encoder as a share of the decoder's, and the factor from
            each of its blocks to the one before.
        by, least_area, objects, explicit, kinds: of the `LessonPlan`.
        only: names of the classes whose objects are asked for; all if empty.
        clicks: correction clicks after the first prompt, 0 to 7.
        compare: masks are compared with the truth at "pixels" of the canvas, as SAM 2 is trained, or at the decoder's
            "cells" of 4 x 4 pixels, which takes a sixteenth of the memory.
        noise: share of the correction clicks that are anywhere on the object instead.
        stable: where the one mask for a clear prompt is less stable than this, the best of the three for an ambiguous
            one takes its place, see `Candidates.trusted`; 0 never does, for models whose three have learnt little.
        memory: whether there are the parts that carry objects from frame to frame.
        train_memory: these learn too, whatever `train` says; for clips of several frames.
    """

    image_side: int = 1024
    width: int = 96
    depths: tuple[int, ...] = (1, 2, 7, 2)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    background: int = 7
    dim: int = 256
    decoder_heads: int = 8
    hidden_dim: int = 2048
    train: Literal["decoder", "decoder+prompts", "lora", "full"] = "decoder"
    rank: int = 8
    encoder_rate: float = 0.6
    layer_decay: float = 0.9
    by: Literal["segment", "class", "component"] = "segment"
    least_area: int = 16
    only: tuple[str, ...] = ()
    objects: int = 8
    explicit: float = 0.5
    kinds: tuple[str, ...] = ("box",)
    clicks: int = 7
    compare: Literal["pixels", "cells"] = "pixels"
    noise: float = 0.1
    stable: float = STABLE
    memory: bool = True
    train_memory: bool = False


PRESETS = {
    "hiera-t": Config(),
    "hiera-s": Config(depths=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "hiera-b+": Config(width=112, depths=(2, 3, 16, 3), heads=(2, 4, 8, 16), global_blocks=(12, 16, 20), background=14),
    "hiera-l": Config(
        width=144, depths=(2, 6, 36, 4), heads=(2, 4, 8, 16), windows=(8, 4, 16, 8), global_blocks=(23, 33, 43)
    ),
    "small": Config(
        image_side=256,
        width=32,
        depths=(1, 2, 4, 1),
        heads=(1, 2, 4, 8),
        windows=(8, 4, 8, 4),
        global_blocks=(4, 6),
        dim=64,
        decoder_heads=4,
        hidden_dim=256,
        train="full",
        encoder_rate=1.0,
        layer_decay=1.0,
        clicks=2,
        stable=0.0,
        memory=False,
    ),
    "tiny": Config(
        image_side=64,
        width=16,
        depths=(1, 1, 2, 1),
        heads=(1, 1, 2, 4),
        windows=(8, 4, 8, 4),
        global_blocks=(3,),
        dim=32,
        decoder_heads=2,
        hidden_dim=64,
        train="full",
        encoder_rate=1.0,
        layer_decay=1.0,
        clicks=1,
        stable=0.0,
        memory=False,
    ),
}

RECIPE = TrainConfig(
    steps=4000,
    batch_size=4,
    targets="instance",
    lr=1e-4,
    weight_decay=0.1,
    warmup=100,
    final_lr=0.1,
    clip=0.1,
    ema=0.0,
    scale=(1.0, 1.0),
    stretch=0.0,
    squash=True,
    color=0.1,
    task="prompted",
    monitor="dice",
)

LABELS = OBJECT
"""The class table of published weights, which know no classes."""

TASKS: dict[str, Callable[..., Segments]] = {"prompted": prompted, "automatic": automatic}


PREPARING = ("encoder.", "decoder.mask_decoder.conv_s0.", "decoder.mask_decoder.conv_s1.")
"""How names begin of the weights that make features, which prompts have no part in."""


class Model(EncodeOnce):
    """SAM 2. See the head of this file for the picture.

    Args:
        labels: the classes that prompted objects may have; SAM 2 itself knows none.

    Attributes:
        store: features on disk while the image encoder does not learn; None computes them.
    """

    takes_prompts = True
    store: FeatureStore | None = None

    def __init__(self, config: Config, labels: LabelMap) -> None:
        super().__init__(config, labels)
        check_settings(config)
        self.normalize = Normalize()
        self.encoder = Hiera(
            config.width,
            config.depths,
            config.heads,
            config.windows,
            config.global_blocks,
            config.background,
            config.dim,
        )
        self.decoder = PromptDecoder(config.dim, config.decoder_heads, config.hidden_dim)
        self.no_memory = nn.Parameter(torch.zeros(1, 1, config.dim))
        if config.memory:
            self.memory = FrameMemory(config.dim, config.hidden_dim, config.image_side)
        self.criterion = PromptCriterion(cells=config.compare == "cells")
        only = tuple(labels.index(name) for name in config.only)
        self.plan = LessonPlan(config.by, config.least_area, only, config.objects, config.explicit, config.kinds)
        self._choose_what_learns()

    def _choose_what_learns(self) -> None:
        """Set `requires_grad` by ``config.train``. What prepares features counts as the image encoder."""
        if self.config.memory:
            self.memory.requires_grad_(self.config.train_memory)
        if self.config.train == "full":
            return
        if self.config.train == "lora":
            add_lora(self.encoder.backbone, ("qkv",), self.config.rank)
        learns = {"decoder": ("decoder.mask_decoder.",)}.get(self.config.train, ("decoder.", "no_memory"))
        for name, parameter in self.named_parameters():
            if name.startswith("memory."):
                continue
            learning = name.startswith(learns) and not name.startswith(PREPARING)
            parameter.requires_grad = ".lora_" in name or learning

    def letterbox(self, source: tuple[int, int], side: int | None = None) -> Letterbox:
        """Stretched to a square, aspect ratio lost, as SAM 2 was trained."""
        length = round_up(side or self.config.image_side, 32)
        return Letterbox(source, (length, length), (length, length))

    # ---- inference ----

    def encode(self, batch: Batch) -> list[Levels]:
        """Features of each image on its own square, whose side is the content's longer one: padding changes nothing."""
        images = keep_valid(self.normalize(batch.images), batch.valid(multiple=1))
        found: dict[int, Levels] = {}
        for side, rows in own_squares(batch).items():
            own = images[rows, :, :side, :side]
            levels = self._levels(F.pad(own, (0, side - own.shape[-1], 0, side - own.shape[-2])))
            found |= {b: (levels[0][n, None], levels[1][n, None], levels[2][n, None]) for n, b in enumerate(rows)}
        return [found[b] for b in range(len(batch))]

    def _levels(self, images: Tensor) -> Levels:
        fine, middle, coarse = self.encoder(images)
        decoder = self.decoder.mask_decoder
        return decoder.conv_s0(fine), decoder.conv_s1(middle), coarse

    def answer(self, features: Sequence[Levels], batch: Batch) -> Prediction:
        """One query an object that is prompted for; without prompts, masks that only the task "automatic" takes."""
        nobody = batch.images.new_zeros(len(batch), 0, len(self.labels) + 1, dtype=torch.float32)
        if batch.prompts is None:
            return Prediction(nobody, Unprompted(lambda b, prompts: self.candidates(features[b], prompts)))
        if not all(prompts.count for prompts in batch.prompts):
            raise UsageError("there is no prompt at all", where="prompts", fix="Give a point or a box.")
        found = [self.candidates(own, prompts) for own, prompts in zip(features, batch.prompts, strict=True)]
        chosen = [own.trusted(self.config.stable) for own in found]
        masks = PromptedMasks(found, batch.letterboxes, [prompts.classes for prompts in batch.prompts], chosen)
        logits = nobody.new_full((len(batch), masks.count, len(self.labels) + 1), -10.0)
        scores = nobody.new_full((len(batch), masks.count), -10.0)
        for b, (own, prompts) in enumerate(zip(found, batch.prompts, strict=True)):
            classes = torch.zeros(len(own), dtype=torch.int64) if prompts.classes is None else prompts.classes
            logits[b, torch.arange(len(own)), classes] = 10.0
            logits[b, len(own) :, -1] = 10.0
            scores[b, : len(own)] = masks.ious(b).float().logit(1e-6)
        return Prediction(logits, masks, scores=scores)

    def candidates(self, levels: Levels, prompts: Prompts, ambiguous: Tensor | None = None) -> Candidates:
        """All that the decoder says of the prompted objects of one image.

        Args:
            ambiguous: bool [O], whose prompts may mean several things, instead of "at most one point".
        """
        check_labels(prompts.labels)
        points, labels = prompts.padded(prompts.count)
        found: Candidates = self.decoder(self._without_memory(levels), points, labels, prompts.masks, ambiguous)
        return found

    def _without_memory(self, levels: Levels) -> Levels:
        fine, middle, coarse = levels
        return fine, middle, coarse + self.no_memory.view(1, -1, 1, 1)

    # ---- frames ----

    @torch.no_grad()
    def track(self, clip: FrameBatch) -> list[PromptedMasks]:
        """The masks of all prompted objects in every frame.

        Args:
            clip: its first frame has prompts for all objects; prompts in later frames correct.

        Raises:
            UsageError: there are none in the first frame, or the weights have no memory.
        """
        told = clip.prompts or (nothing(),) * len(clip)
        if not told[0].count:
            raise UsageError("the first frame has no prompt", where="prompts", fix="Begin with a frame that has some.")
        bank, answers = list[Memory](), list[PromptedMasks]()
        for t, (levels, prompts, box) in enumerate(zip(self.encode(clip), told, clip.letterboxes, strict=True)):
            found = self.candidates(levels, prompts) if prompts.count else self._carried(levels, bank, t, len(clip))
            chosen = found.trusted(self.config.stable)
            answers.append(PromptedMasks([found.gated()], [box], [told[0].classes], [chosen]))
            prompted_here = bool(prompts.count)
            bank.append(self._memory(levels, found, chosen, t, told=prompted_here, sharp=prompted_here).stored())
        return answers

    def _carried(self, levels: Levels, bank: Sequence[Memory], t: int, total: int) -> Candidates:
        """What the decoder says of a frame without prompts, from the memory of the frames before."""
        fine, middle, coarse = levels
        seen = fine, middle, self._remembering().recall(coarse, bank, t, total)
        points = coarse.new_zeros(len(bank[0].pointers), 0, 2)
        found: Candidates = self.decoder(seen, points, points[..., 0].int())
        return found

    def _memory(
        self, levels: Levels, found: Candidates, chosen: Tensor, t: int, *, told: bool, sharp: bool = False
    ) -> Memory:
        """Of one frame, from what was said of it."""
        memory, present = self._remembering(), found.presence > 0
        logits, _, tokens = found.gated().pick(chosen)
        return Memory(t, told, memory.remember(levels[2], logits, present, sharp), memory.pointers(tokens, present))

    def _remembering(self) -> FrameMemory:
        if not self.config.memory:
            fix = "Take weights with a memory (facebook/sam2.1-hiera-tiny), or create the model with memory=True."
            raise UsageError("these weights have no memory of frames", where="sam2", fix=fix)
        return self.memory

    # ---- training ----

    def loss(self, batch: Batch) -> Terms:
        """Terms summed over rounds, a mean over objects: `mask`, `dice`, `iou` and `presence`."""
        if isinstance(batch, FrameBatch):
            return self._clip_loss(batch)
        features = self._learned_features(batch)
        lessons = [self.plan.lesson(batch, b) for b in range(len(batch))]
        count = mean_count([lesson.counts for lesson in lessons])
        pairs = zip(features, lessons, strict=True)
        terms = [self._rounds(self._without_memory(own), lesson)[0] for own, lesson in pairs]
        return {name: value / count for name, value in added(terms).items()}

    def _learned_features(self, batch: Batch) -> Sequence[Levels]:
        """`encode`, without gradients if nothing in it learns, and then perhaps from disk."""
        if any(p.requires_grad for name, p in self.named_parameters() if name.startswith(PREPARING)):
            return self.encode(batch)
        with torch.no_grad():
            return [_levels(maps) for maps in self.store.get(self, batch)] if self.store else self.encode(batch)

    def keep_features(self, folder: Path) -> None:
        """Keep what the image encoder gives in `folder`, as long as it does not learn."""
        self.store = FeatureStore(folder)

    def frozen_state(self) -> dict[str, Tensor]:
        """The weights that features depend on."""
        names = ("normalize.", *PREPARING)
        return {name: value for name, value in self.state_dict().items() if name.startswith(names)}

    def _clip_loss(self, clip: FrameBatch) -> Terms:
        """Terms summed over rounds of the first frame and over all other frames, a mean over objects."""
        features, first = self._learned_features(clip), self.plan.clip_lesson(clip)
        terms, found = self._rounds(self._without_memory(features[0]), first[0])
        bank, parts = list[Memory](), [terms]
        if len(clip) > 1:
            bank.append(self._memory(features[0], found, found.likely(), 0, told=True))
        for t, (levels, lesson) in enumerate(zip(features[1:], first[1:], strict=True), start=1):
            found = self._carried(levels, bank, t, len(clip))
            parts.append(self._terms(found, lesson))
            bank.append(self._memory(levels, found, found.likely(), t, told=False))
        count = mean_count([first[0].counts])
        return {name: value / count for name, value in added(parts).items()}

    def _rounds(self, levels: Levels, lesson: Lesson) -> tuple[Terms, Candidates]:
        """Terms of one image, summed over rounds, and what was said in the last one."""
        points, labels, terms, masks = lesson.points, lesson.labels, list[Terms](), None
        for turn in range(self.config.clicks + 1):
            found = self.decoder(levels, points, labels, masks)
            terms.append(self._terms(found, lesson))
            if turn < self.config.clicks:
                masks = found.pick(found.likely())[0].detach()
                spot, label = self._correction(masks, lesson)
                points, labels = torch.cat([points, spot[:, None]], 1), torch.cat([labels, label[:, None]], 1)
        return added(terms), found

    def _terms(self, found: Candidates, lesson: Lesson) -> Terms:
        """Of one round: the three candidates where the prompt is ambiguous, the one elsewhere."""
        terms = []
        for several, candidates in ((True, slice(1, None)), (False, slice(0, 1))):
            rows = torch.nonzero(found.ambiguous == several).flatten()
            if len(rows):
                logits, ious = found.logits[rows, candidates], found.ious[rows, candidates]
                terms.append(self.criterion(logits, ious, found.presence[rows], lesson, rows))
        return added(terms)

    @torch.no_grad()
    def _correction(self, logits: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """A click [O, 2] and label [O] where the masks [O, h, w] are wrong; one in ten anywhere on the object."""
        predicted = at_pixels(logits[:, None], lesson.known.shape)[:, 0] > 0
        points, labels = correction_clicks(predicted, lesson.truth, lesson.known)
        other, sign = sampled_clicks(lesson.truth)
        swap = (torch.rand(len(points), device=points.device) < self.config.noise) & (sign[:, 0] >= 0)
        return torch.where(swap[:, None], other[:, 0], points), torch.where(swap, sign[:, 0], labels)

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Every parameter that learns once; the image encoder slower, the more so the nearer to the image."""
        rates = self.encoder.layer_rates("encoder.", self.config.encoder_rate, self.config.layer_decay)
        return param_groups(self, lr, weight_decay, rates={} if self.config.train == "lora" else rates)


def mean_count(counts: Sequence[Tensor]) -> float:
    """Objects that a process learns on average; at least 1."""
    return mean_over_processes(sum(float(own.sum()) for own in counts), counts[0].device)


def check_settings(config: Config) -> None:
    """Raise `UsageError` for settings that `LessonPlan` does not check."""
    if not 0 <= config.clicks <= 7:
        raise UsageError("a setting is out of range", where="clicks", why=f"{config.clicks} is not in 0..7")
    for name in ("noise", "stable"):
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise UsageError("a setting is out of range", where=name, why=f"{value} is not in 0..1")


def check_labels(labels: Tensor) -> None:
    """Raise `UsageError` if a label of a point is none of -1 (padding), 0, 1 and the box corners 2 and 3."""
    odd = (labels < -1) | (labels > 3)
    if bool(odd.any()):
        fix = "1 is on the object, 0 beside it, 2 and 3 are corners of its box, -1 is padding."
        raise UsageError("no such label of a point", where="labels", why=str(int(labels[odd][0])), fix=fix)


def _levels(maps: Sequence[Tensor]) -> Levels:
    fine, middle, coarse = maps
    return fine, middle, coarse


def own_squares(batch: Batch) -> dict[int, list[int]]:
    """Images of the batch by the side of their own square: their content's longer side, rounded up to 32."""
    groups: dict[int, list[int]] = {}
    for b, box in enumerate(batch.letterboxes):
        groups.setdefault(round_up(max(box.content), 32), []).append(b)
    return groups


def added(terms: Sequence[Terms]) -> Terms:
    """Terms of equal names added up."""
    return {name: torch.stack([some[name] for some in terms]).sum() for name in terms[0]}


def published(config: dict[str, Any], preprocessor: dict[str, Any]) -> Config | None:
    """The configuration of a checkpoint in the layout of `transformers`, None if it is another system's."""
    if config.get("model_type") not in ("sam2", "sam2_video"):
        return None
    if config.get("enable_occlusion_spatial_embedding") is False:
        raise ValueError("these are weights of SAM 2.0; those of SAM 2.1 are read")
    vision = config.get("vision_config") or {}
    hiera, decoder = vision.get("backbone_config") or {}, config.get("mask_decoder_config") or {}
    prompts, own = config.get("prompt_encoder_config") or {}, Config()
    background = hiera.get("window_positional_embedding_background_size") or [own.background]
    return Config(
        image_side=prompts.get("image_size", own.image_side),
        width=(hiera.get("embed_dim_per_stage") or [own.width])[0],
        depths=tuple(hiera.get("blocks_per_stage") or own.depths),
        heads=tuple(hiera.get("num_attention_heads_per_stage") or own.heads),
        windows=tuple(hiera.get("window_size_per_stage") or own.windows),
        global_blocks=tuple(hiera.get("global_attention_blocks") or own.global_blocks),
        background=background[0],
        dim=vision.get("fpn_hidden_size", own.dim),
        decoder_heads=decoder.get("num_attention_heads", own.decoder_heads),
        hidden_dim=decoder.get("mlp_dim", own.hidden_dim),
        memory=config["model_type"] == "sam2_video",
    )


PUBLISHED_NAMES = {
    "vision_encoder.": "encoder.",
    "prompt_encoder.": "decoder.prompt_encoder.",
    "mask_decoder.": "decoder.mask_decoder.",
    "shared_image_embedding.": "decoder.position.",
    "no_memory_embedding": "no_memory",
    **{name: f"memory.{name}" for name in NAMES},
}
"""Beginnings of names in the checkpoints of `transformers`, and ours."""


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the layout of `transformers` to ours; ours are left alone."""
    if not any(name.startswith("vision_encoder.") for name in state_dict):
        return state_dict
    return {_own_name(name): value for name, value in state_dict.items()}


def _own_name(name: str) -> str:
    theirs = next((part for part in PUBLISHED_NAMES if name.startswith(part)), None)
    return PUBLISHED_NAMES[theirs] + name.removeprefix(theirs) if theirs else name
