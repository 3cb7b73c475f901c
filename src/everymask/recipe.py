"""Training configuration: one frozen dataclass, standard library only, so that the command line starts fast."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_type_hints

from .errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run besides model and data. `--set key=value` changes one field.

    Attributes:
        steps: optimizer steps.
        batch_size: images a step on each device, before accumulation.
        accumulate: batches added up before one optimizer step.
        image_side: training canvas side in pixels; 0 takes the model's own.
        start_side: side at step 0; it grows to `image_side` over the first `grow_until` of the run. 0 is constant.
        grow_until: share of the run at which the full side is reached.
        targets: "semantic" merges the instances of a class into one segment, "instance" keeps them.
        freeze: parts of the model that do not learn, separated by commas: submodules, or a group that the system names
            ("detector").
        lr: peak learning rate; the model's `param_groups` scales it by part.
        weight_decay: AdamW, not on norms, biases and embeddings.
        warmup: steps of linear warm-up; then cosine to `final_lr` x lr.
        drop: share of the run after which the rate falls to `final_lr` x lr at once; 0 is the cosine.
        clip: largest gradient norm, 0 for none.
        ema: decay of the averaged weights that are validated and shipped, 0 for none.
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        rotate90: probability of one to three quarter turns.
        angle: largest turn besides, to either side, in degrees.
        shear: largest shear, to either side, in degrees.
        category_limit: a view of which one class has more than this share is drawn anew, up to 10 times; 1 is off.
        scale: smallest and largest size of the photo relative to a fitted canvas.
        stretch: the two axes of a view differ by up to this factor.
        squash: a fitted photo fills the square canvas, its aspect ratio lost, as SAM 2 sees photos.
        prompts: file of explicit prompts, as `everymask prompts` writes it, for systems that take them.
        frames: consecutive frames of one video that are one clip; 1 takes photos, or frames as photos.
        views: different views of each photo, which then repeat, so that features of a frozen encoder can be kept on
            disk; 0 draws a new one every time.
        color: strength 0..1 of brightness, contrast, saturation and grey jitter.
        photometric: in place of it the distortion of SSD, hue included, as MaskFormer and CAT-Seg are trained.
        seed: with step and sample number it decides every random draw.
        workers: loader processes; -1 chooses from the cores.
        loader_timeout: seconds without a batch after which a loader process is taken to hang, 0 for never.
        skip: samples that may be left out because they cannot be read; each is named, and another is seen in its place.
        split: where memory does not suffice, go on with batches in halves, accumulated: the same images a step.
        threads: compute threads, 0 for the default.
        strategy: of several processes: "ddp" keeps the whole model in each, "fsdp" spreads weights, gradients and
            optimizer over them (FSDP2), for models that one device cannot hold.
        precision: Fabric's name ("32-true", "bf16-mixed", ...); "auto" is bf16 where the device has it.
        validate_every: steps between validations, each with a checkpoint; 0 is once through the data.
        validate_side: side of validation images; 0 takes `image_side`. Larger where training sees crops.
        task: what validation scores: "semantic", "instance", "panoptic" or, of systems that are told by clicks and
            boxes, "prompted".
        monitor: the validation score that decides what is best ("miou", "foreground_iou", "ap", "pq", ...).
        keep: newest checkpoints that stay on the disk, besides the best.
        patience: validations without a better score before an early stop, 0 for none.
        max_val: validation images used, spread over the set, 0 for all.
        log_every: steps between log lines.
        tensorboard: also write TensorBoard events (extra `track`).
    """

    steps: int = 2000
    batch_size: int = 16
    accumulate: int = 1
    image_side: int = 0
    start_side: int = 0
    grow_until: float = 0.6
    targets: Literal["semantic", "instance"] = "semantic"
    freeze: str = ""
    lr: float = 1e-4
    weight_decay: float = 1e-4
    warmup: int = 200
    drop: float = 0.0
    final_lr: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    flip: float = 0.5
    flip_vertical: float = 0.0
    rotate90: float = 0.0
    angle: float = 0.0
    shear: float = 0.0
    category_limit: float = 1.0
    scale: tuple[float, float] = (0.6, 1.6)
    stretch: float = 0.1
    squash: bool = False
    prompts: str = ""
    frames: int = 1
    views: int = 0
    color: float = 0.4
    photometric: bool = False
    seed: int = 0
    workers: int = -1
    loader_timeout: float = 600.0
    skip: int = 0
    split: bool = False
    threads: int = 0
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: str = "auto"
    validate_every: int = 500
    validate_side: int = 0
    task: Literal["semantic", "instance", "panoptic", "prompted"] = "semantic"
    monitor: str = "miou"
    keep: int = 2
    patience: int = 0
    max_val: int = 0
    log_every: int = 20
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "frames", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError("a setting is out of range", where=name, why=f"{getattr(self, name)} is below 1")
        for name in (
            "image_side",
            "start_side",
            "validate_side",
            "lr",
            "weight_decay",
            "warmup",
            "clip",
            "patience",
            "max_val",
            "threads",
            "loader_timeout",
            "skip",
            "stretch",
            "views",
            "validate_every",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError("a setting is out of range", where=name, why=f"{getattr(self, name)} is below 0")
        for name in (
            "flip",
            "flip_vertical",
            "rotate90",
            "category_limit",
            "color",
            "grow_until",
            "drop",
            "final_lr",
            "ema",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError("a setting is out of range", where=name, why=f"{getattr(self, name)} is not in 0..1")
        for name, most in (("angle", 180), ("shear", 80)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise UsageError("a setting is out of range", where=name, why=f"{value} is not in 0..{most} degrees")
        if self.start_side % 32:
            raise UsageError("a setting is out of range", where="start_side", why=f"{self.start_side} is not n x 32")
        if self.prompts and self.targets != "instance":
            raise UsageError("prompts are for single objects", where="prompts", fix="Set targets=instance.")
        if self.frames > 1 and (self.batch_size > 1 or self.targets != "instance" or self.prompts):
            fix = "Set batch_size=1 (and accumulate more), targets=instance and no prompts."
            raise UsageError("a batch is one clip", where="frames", why=f"batch_size={self.batch_size}", fix=fix)
        if self.views and (self.color or self.photometric):
            why, fix = f"color={self.color}", "Set color=0 and photometric=false, or views=0."
            raise UsageError("views that repeat have colours that do", where="views", why=why, fix=fix)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError("a setting is out of range", where="scale", why=f"{self.scale} is not 0 < low <= high")
        tasks = ("semantic", "instance", "panoptic", "prompted")
        choices = {"targets": ("semantic", "instance"), "strategy": ("ddp", "fsdp"), "task": tasks}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UsageError("a setting is unknown", where=name, why=value, fix=f"{' or '.join(known)}.")

    def with_settings(self, settings: list[str]) -> TrainConfig:
        """A copy with ``key=value`` texts applied, each read as its field's type."""
        hints = get_type_hints(TrainConfig)
        changes = dict(_parse(text, hints) for text in settings)
        return replace(self, **changes)

    def side_at(self, step: int, model_side: int) -> int:
        """Canvas side of a step: progressive resizing in multiples of 32."""
        full = self.image_side or model_side
        if not self.start_side or self.start_side >= full:
            return full
        progress = min(1.0, step / max(1.0, self.grow_until * self.steps))
        grown = self.start_side + round((full - self.start_side) * progress / 32) * 32
        return full if progress == 1 else min(full, grown)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, in field order."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_json`; unknown keys are refused.

        Raises:
            UsageError: a key that this version does not know.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise UsageError("unknown setting", where=", ".join(unknown), fix=f"Known: {_known()}.")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)


def _known() -> str:
    return ", ".join(f.name for f in fields(TrainConfig))


def _parse(text: str, hints: dict[str, Any]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name not in hints:
        raise UsageError("unknown setting", where=text, why="expected key=value", fix=f"Known keys: {_known()}.")
    kind = hints[name]
    try:
        if kind is bool:
            return name, {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if name == "scale":
            low, high = value.strip("()").split(",")
            return name, (float(low), float(high))
        return name, kind(value) if kind in (int, float) else value
    except (KeyError, ValueError) as error:
        expected = kind.__name__ if isinstance(kind, type) else kind
        raise UsageError("a setting has the wrong type", where=text, why=f"expected {expected}") from error
