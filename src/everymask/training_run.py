"""The state of one training run: weights, averaged weights, optimizer, step and best scores.

Each step seeds the random numbers from (seed, step), and what is drawn for a sample from (seed, epoch, index), so
nothing else needs saving: a run that goes on from a checkpoint ends as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn

from .augment import jitter_color, photometric_distortion
from .chance import COLOR, generators
from .checkpoint import load_training, model_json, save_model_files, save_training
from .errors import TrainingError, UsageError
from .model import SegmentationModel
from .processes import Processes
from .recipe import TrainConfig
from .run_folder import RunFolder
from .sharding import WeightAverage, as_spread, same_everywhere, shard, whole
from .types import Batch

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


class Objective(nn.Module):
    """A model's loss as the forward pass, which is what data-parallel wrappers look after.

    They also go through its inputs to convert them and would take a `Batch` apart: so it comes in a function.
    """

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Callable[[], Batch]) -> dict[str, Tensor]:
        """The weighted terms."""
        return self.model.loss(batch())


class Run:
    """State of one training, the same in each of its processes."""

    def __init__(
        self,
        model: SegmentationModel,
        config: TrainConfig,
        out: Path,
        processes: Processes | None = None,
        samples: int = 1,
    ) -> None:
        self.config, self.out, self.processes = config, out, processes or Processes()
        self.samples = samples  # In the training data.
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.freeze:
            model.freeze(config.freeze.split(","))
        self.fabric = connected(self.processes, config)
        # The faster order of convolutions; FSDP takes the usual one alone.
        order = torch.contiguous_format if self.spread else torch.channels_last
        self.model = model.to(self.fabric.device, memory_format=order)  # type: ignore[call-overload]
        same_everywhere(self.model)
        self.average = WeightAverage(self.model, config.ema)  # A model whose weights are spread cannot be copied.
        self.wrapped = self.fabric.setup_module(Objective(self.model))
        self.average.follow(self.model)
        groups = self.model.param_groups(config.lr, config.weight_decay)
        self.optimizer: Any = self.fabric.setup_optimizers(torch.optim.AdamW(groups))
        self.rates: list[float] = [group["lr"] for group in groups]
        self.folder = RunFolder(out, config.keep)
        self.step, self.validated, self.waited, self.improved = 0, 0, 0, False
        self.pieces = 1  # That each batch is cut into for want of memory.
        self.complaints: list[str] = []
        self.best: dict[str, Any] = {}
        self.loss, self._began = math.nan, time.perf_counter()

    @property
    def epoch(self) -> int:
        """How often the data were gone through."""
        return self.step * self._images // self.samples

    @property
    def _images(self) -> int:
        """Of one step, in all processes."""
        return self.config.batch_size * self.config.accumulate * self.processes.count

    @property
    def spread(self) -> bool:
        """Whether each process has a part of the weights alone."""
        return self.processes.count > 1 and self.config.strategy == "fsdp"

    @property
    def stale(self) -> bool:
        """Whether `patience` validations went by without a better score."""
        return 0 < self.config.patience <= self.waited

    def train_step(self, parts: list[Batch]) -> dict[str, float]:
        """One optimizer step over accumulated batches; returns the loss terms, the gradient norm and the rate.

        Raises:
            TrainingError: a number is not finite, or memory does not suffice; the weights are as they were.
        """
        try:
            return self._step([piece for batch in parts for piece in batch.split(self.pieces)])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.cut(error)
        return self.train_step(parts)

    def cut(self, error: RuntimeError) -> None:
        """From now on every batch comes in twice as many pieces.

        Raises:
            TrainingError: that is not wanted, or a piece is one image already.
        """
        self.optimizer.zero_grad(set_to_none=True)
        config, cutting = self.config, self.config.split and self.processes.count == self.config.frames == 1
        if not cutting or self.pieces >= config.batch_size:
            why = f"{config.batch_size} images in {self.pieces}, {str(error).splitlines()[0][:150]}"
            fix = (
                "Halve batch_size and double accumulate (or set split=true): each step sees the same images. "
                "Or lower image_side, or take a smaller preset."
            )
            raise TrainingError("out of memory", where=f"step {self.step}", why=why, fix=fix) from error
        self.pieces *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _step(self, parts: list[Batch]) -> dict[str, float]:
        self.wrapped.train()
        torch.manual_seed(_mix(self.config.seed, self.step) + self.processes.rank)
        rate = self._set_rates()
        terms: dict[str, float] = {}
        total = sum(map(len, parts))
        for n, batch in enumerate(parts, start=1):
            share = len(batch) / total
            with self.fabric.no_backward_sync(self.wrapped, enabled=n < len(parts)):
                losses = self._losses(self._augmented(batch))
                self.fabric.backward(torch.stack(list(losses.values())).sum() * share)
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach()) * share
        norm = self._clip([name for batch in parts for name in batch.names])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        self.step += 1
        terms = self.processes.averaged(terms)
        self.loss = sum(terms.values())
        return {"loss": self.loss, **terms, "gradient": norm, "lr": rate}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        try:
            losses: dict[str, Tensor] = self.wrapped(lambda: batch)
        except TrainingError as error:
            why = f"{error.why}; images {', '.join(batch.names)}"
            raise TrainingError(error.what, where=error.where, why=why, fix=error.fix) from error
        check_finite(losses, batch)
        return losses

    def _augmented(self, batch: Batch) -> Batch:
        batch = batch.to(self.fabric.device)
        images = batch.images
        if self.config.color or self.config.photometric:
            images = self._distorted(images, generators(batch.seeds, len(batch), COLOR))
            # Padding stays as black as inference has it.
            content = batch.valid(multiple=1)
            images = images if content is None else images * content
        return replace(batch, images=images.contiguous(memory_format=torch.channels_last))

    def _distorted(self, images: Tensor, chance: list[torch.Generator]) -> Tensor:
        """Other colours, by the one of two ways that the configuration names."""
        if self.config.photometric:
            return photometric_distortion(images, chance)
        return jitter_color(images, self.config.color, chance)

    def _set_rates(self) -> float:
        factor = rate_factor(self.step, self.config)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return self.config.lr * factor

    def _clip(self, names: list[str]) -> float:
        limit = self.config.clip or math.inf
        clipped = self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        norm = math.nan if clipped is None else float(whole(clipped))
        if not math.isfinite(norm):
            why, fix = f"images {', '.join(names)}", "Look at these images, lower lr, or set precision=32-true."
            raise TrainingError("the gradient is not finite", where=f"step {self.step}", why=why, fix=fix)
        return norm

    def judge(self, scores: dict[str, Any]) -> None:
        """Remember whether these validation scores are the best so far."""
        before = self.best.get(self.config.monitor, math.nan)
        self.improved = math.isnan(before) or scores[self.config.monitor] > before
        self.waited = 0 if self.improved else self.waited + 1
        if self.improved:
            numbers = {k: v for k, v in scores.items() if isinstance(v, (int, float)) and math.isfinite(v)}
            self.best = {"step": self.step} | numbers

    @property
    def unvalidated(self) -> bool:
        """Whether a validation is due after this step and has not been."""
        every = self.config.validate_every or math.ceil(self.samples / self._images)
        due = self.step % every == 0 or self.step == self.config.steps
        return due and self.validated < self.step

    def save(self) -> None:
        """The first process writes a checkpoint; `best` points to it after an improvement, and `last` in any case.

        Stopped in between, resuming from this checkpoint makes up for it.
        """
        model, tensors = self.average.gather(), self._tensors()
        self.processes.by_first(lambda: self._write(model, tensors))
        self.improved = False

    def _write(self, model: SegmentationModel, tensors: dict[str, Tensor]) -> None:
        extra = {"step": self.step, "recipe": self.config.to_json(), "metrics": self.best}

        def fill(folder: Path) -> None:
            save_model_files(model, folder, extra)
            save_training(folder, tensors, self._progress())

        checkpoint = self.folder.write(self.step, fill, {"configuration": configuration_hash(self.config, self.model)})
        self._point(checkpoint, is_best=self.improved)
        self.folder.prune()

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "seconds": round(time.perf_counter() - self._began, 1),
            "validated": self.validated,
            "best": self.best,
            "waited": self.waited,
            "pieces": self.pieces,
            "config": self.config.to_json(),
            "model": model_json(self.model),
        }

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that is trained or averaged, whole, for `training.safetensors`."""
        state = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        state |= {f"average.{name}": t for name, t in self.average.state.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        found = {name: whole(tensor) for name, tensor in state.items()}
        return found | {"averaged_steps": torch.tensor(self.average.count)}

    def resume(self, allow_change: bool = False) -> list[str]:
        """Go on from the newest checkpoint that is whole, if there is one; `complaints` says what is wrong with others.

        Returns:
            what differs from the configuration it was made with; empty unless `allow_change`.

        Raises:
            TrainingError: it was made with another configuration; the message shows what differs.
        """
        folder, self.complaints = self.processes.by_first(self.folder.newest)
        if folder is None:
            return []
        tensors, progress = load_training(folder)
        # Through `TrainConfig`, so that settings which a run is older than have their defaults.
        changed = differences(TrainConfig.from_json(progress["config"]).to_json(), self.config.to_json())
        if not allow_change:
            refuse(changed, folder)
        # As it will be read back: JSON knows no tuples.
        refuse(differences(progress["model"], json.loads(json.dumps(model_json(self.model)))), folder)
        own = self.model.state_dict()
        self.model.load_state_dict({name: as_spread(t, own[name]) for name, t in _strip(tensors, "model.").items()})
        self.average.load(_strip(tensors, "average."), int(tensors["averaged_steps"]))
        self._load_optimizer(_optimizer_slots(tensors))
        self.step, self.validated = progress["step"], progress["validated"]
        self.best, self.waited = progress["best"], progress["waited"]
        self.pieces = progress.get("pieces", 1)  # Older runs were never cut, and did not say how long they took.
        self._began = time.perf_counter() - progress.get("seconds", 0.0)
        if self.processes.is_first:
            self._point(folder, is_best=self.best.get("step") == self.step)
        return changed

    def _load_optimizer(self, slots: dict[int, dict[str, Tensor]]) -> None:
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for index, own in slots.items():
            for name, value in own.items():
                own[name] = as_spread(value, weights[index]) if value.ndim else value
        state = self.optimizer.state_dict()
        state["state"] = slots
        self.optimizer.load_state_dict(state)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other run uses the folder meanwhile."""
        with ExitStack() as held:
            self.processes.by_first(lambda: held.enter_context(self.folder.locked()))
            yield

    def _point(self, checkpoint: Path, *, is_best: bool) -> None:
        if is_best:
            self.folder.point("best", checkpoint)
        self.folder.point("last", checkpoint)


def connected(processes: Processes, config: TrainConfig) -> lightning_fabric.Fabric:
    """Fabric on this process's device, in touch with the other processes."""
    strategy: Any = "auto"
    if processes.count > 1:
        fsdp = ModelParallelStrategy(lambda module, mesh: shard(module, mesh["data_parallel"]), processes.count, 1)
        strategy = fsdp if config.strategy == "fsdp" else "ddp"
    fabric = lightning_fabric.Fabric(
        devices=processes.local,
        num_nodes=processes.nodes,
        strategy=strategy,
        precision=precision(config.precision),
    )
    fabric.launch()
    processes.device = fabric.device
    return fabric


def configuration_hash(config: TrainConfig, model: SegmentationModel) -> str:
    """SHA-256 of all settings of training and model: two runs that have the same do the same."""
    settings = {"training": config.to_json(), "model": model_json(model)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine from 1 to `final_lr`, or one step down."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.drop:
        return 1.0 if step < config.drop * config.steps else config.final_lr
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def precision(name: str) -> Any:
    """Fabric's name of a precision; "auto" is bf16 where a GPU computes in it, else float32.

    Raises:
        UsageError: Fabric has no such precision.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError("unknown precision", where=name, why=f"there are: auto, {', '.join(PRECISIONS)}")
        return name
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def check_finite(losses: dict[str, Tensor], batch: Batch) -> None:
    """Raise `TrainingError` that names the term and the images, before the optimizer moves."""
    bad = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
    if bad:
        fix = "Look at these images, lower lr, or set precision=32-true."
        raise TrainingError(
            "the loss is not finite", where=", ".join(bad), why=f"images {', '.join(batch.names)}", fix=fix
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch could not get memory: on a GPU a type of its own, on a CPU a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """ "name: before -> now" for each entry that differs."""
    return [
        f"{k}: {_shown(before.get(k))} -> {_shown(now.get(k))}"
        for k in {**before, **now}
        if before.get(k) != now.get(k)
    ]


def _shown(value: Any) -> str:
    """A class table by its names, all else as it is."""
    names = [row["name"] for row in value["labels"]] if isinstance(value, dict) and "labels" in value else value
    return repr(names)


def refuse(changed: list[str], folder: Path) -> None:
    """Raise `TrainingError` that shows what differs between a run's configuration and today's, if anything does."""
    if changed:
        fix = "Give the same settings to resume, another --out for a new run, or --allow-change."
        raise TrainingError("this folder holds another run", where=folder, why="; ".join(changed)[:500], fix=fix)


def _mix(seed: int, step: int) -> int:
    """One number from two, far apart for neighbours (the constants of splitmix64)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2**63


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _optimizer_slots(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _strip(tensors, "optimizer.").items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    return slots
