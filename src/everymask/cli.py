"""The command line: one short function a verb over the public API.

Heavy imports happen inside the verbs, so that ``everymask --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .errors import EverymaskError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .result import Result

Images = Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="IMAGE...")]
Data = Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="DATA...")]
Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
Pair = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[IMAGE MASK]")]
Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]

DEFAULT_MODEL = "hybrid-pets"


def demo(out: Path = Path("demo")) -> None:
    """Segment the bundled photos with the bundled model; no network.

    Open OUT/index.html to look.

    Args:
        out: folder for overlays, cut-outs, masks and the page.
    """
    from .demo import run_demo

    page = run_demo(DEFAULT_MODEL, out, progress=print)
    print(f"open {page}")


def models() -> None:
    """List systems, presets, sizes and tasks, and the bundled weights."""
    from .tables import bundled_rows, print_table, system_rows

    print_table(["system", "preset", "parameters", "input", "tasks"], system_rows())
    print_table(["bundled weights", "system", "classes", "scores", "licence"], bundled_rows())


def predict(
    images: Images,
    /,
    out: Path,
    model: str = DEFAULT_MODEL,
    task: str | None = None,
    classes: str | None = None,
    threshold: float | None = None,
    side: int | None = None,
    max_pixels: int | None = None,
) -> None:
    """Segment photos: overlay, cut-out, masks and a JSON table for each.

    Args:
        images: files or folders.
        out: folder to write into.
        model: bundled name or checkpoint folder.
        task: semantic, instance, cutout, ... (the model's first if not given).
        classes: names to keep, separated by commas (task cutout).
        threshold: least score of a segment, for tasks that have one.
        side: input size in pixels instead of the model's own.
        max_pixels: largest photo accepted (default 40 megapixels).
    """
    options: dict[str, Any] = {"classes": classes.split(",")} if classes else {}
    if threshold is not None:
        options["threshold"] = threshold
    for result in _results(images, model, task, side, max_pixels, options):
        result.save(out)
        found = ", ".join(f"{s.label} {s.score:.2f}" for s in result.segments) or "nothing found"
        print(f"{result.name}: {found}")


def cutout(
    images: Images,
    /,
    out: Path,
    model: str = DEFAULT_MODEL,
    classes: str | None = None,
    threshold: float = 0.7,
    side: int | None = None,
    max_pixels: int | None = None,
) -> None:
    """Cut the foreground out of photos: RGBA PNG at full size with a soft edge.

    Args:
        images: files or folders.
        out: folder to write into.
        model: bundled name or checkpoint folder.
        classes: names to keep, separated by commas; all if not given.
        threshold: least probability that something is an object.
        side: input size in pixels instead of the model's own.
        max_pixels: largest photo accepted (default 40 megapixels).
    """
    import numpy as np

    from .image import write_png

    options = {"threshold": threshold, "classes": classes.split(",") if classes else None}
    for result in _results(images, model, "cutout", side, max_pixels, options):
        write_png(out / f"{result.name}.png", np.asarray(result.cutout()))
        print(f"{out / result.name}.png: {', '.join(s.label for s in result.segments) or 'nothing found'}")


def train(
    model: Name,
    data: Data,
    /,
    out: Path,
    preset: str = "small",
    weights: str | None = None,
    set: Repeated = (),
    format: str | None = None,
    seed: int = 0,
    allow_change: bool = False,
) -> None:
    """Train a model on folders of images and masks. The same command again resumes.

    Args:
        model: the system, see `everymask models`.
        data: one or more data folders; classes are joined by name.
        out: run folder: checkpoints, log, pictures.
        preset: size of the model.
        weights: bundled name or checkpoint folder to start from (fine-tuning); random weights if not given.
        set: a training setting as key=value, repeatable.
        format: data format, found by looking if not given.
        seed: of weights, order and augmentation.
        allow_change: resume although the settings differ from those the run was started with.
    """
    import torch

    from .checkpoint import transfer
    from .datasets import open_datasets, open_where_split
    from .models import create_model, model_module
    from .train import train as run

    config = model_module(model).RECIPE.with_settings([f"seed={seed}", *set])
    dataset = open_datasets(data, "train", format)
    val = open_where_split(data, "val", format)
    print(f"{len(dataset)} training images, {len(val) if val else 0} for validation; {', '.join(dataset.labels.names)}")
    torch.manual_seed(config.seed)
    created = create_model(model, preset, classes=dataset.labels)
    if weights:
        fresh = transfer(created, weights)
        print(f"starting from {weights}; new: {', '.join(fresh[:3]) or 'nothing'}{', ...' * (len(fresh) > 3)}")
    scores = run(created, dataset, config, out=out, val=val, allow_change=allow_change)
    print(f"{out}: " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float)))


def evaluate(
    model: Name,
    data: Data,
    /,
    split: str | None = None,
    format: str | None = None,
    side: int | None = None,
    json: Path | None = None,
) -> None:
    """Score a model on labelled data: a table by class.

    Args:
        model: bundled name or checkpoint folder.
        data: data folders.
        split: train, val or test; the first of test, val, all that exists if not given.
        format: data format, found by looking if not given.
        side: input size in pixels instead of the model's own.
        json: also write everything to this file, with a row for every image.
    """
    from .checkpoint import load
    from .datasets import open_datasets, open_where_split
    from .evaluate import evaluate as run
    from .files import write_json
    from .tables import print_scores

    wanted = [split] if split else ["test", "val"]
    dataset = next(filter(None, (open_where_split(data, name, format) for name in wanted)), None)
    scores = run(load(model), dataset or open_datasets(data, split or "", format), side=side)
    # The file first: whoever reads the table may stop reading.
    if json:
        write_json(json, scores)
    print_scores(scores)


def overfit(
    model: Name,
    files: Pair = (),
    /,
    preset: str = "small",
    steps: int = 120,
    out: Path | None = None,
) -> None:
    """Self-test: train on one image until the mask is learnt.

    Exit code 1 if IoU stays below 0.95.

    Args:
        model: the system, see `everymask models`.
        files: IMAGE and MASK; a bundled photo if not given.
        preset: size of the model.
        steps: optimizer steps at the most.
        out: folder for the curve and the prediction as pictures.
    """
    from .overfit import GOAL
    from .overfit import overfit as run

    if len(files) not in (0, 2):
        raise UsageError("overfit takes an image and its mask, or nothing", where=", ".join(map(str, files)))
    pair = (files[0], files[1]) if files else None
    history = run(model, preset, pair, steps=steps, out=out, progress=print)
    if history[-1].iou < GOAL:
        raise EverymaskError("the model did not learn one image", where=model, why=f"IoU {history[-1].iou:.3f}")


def pack(
    data: Data,
    /,
    out: Path,
    size: int = 640,
    dtype: str = "uint8",
    split: str = "",
    format: str | None = None,
) -> None:
    """Write a data set as memory-mapped files for fast training.

    The same command again goes on where it stopped.

    Args:
        data: data folders, joined by class name.
        out: folder to write into.
        size: longest side of the stored images.
        dtype: uint8, or fp16 as the original hybrid stored them.
        split: train, val or test.
        format: data format, found by looking if not given.
    """
    from .datasets import open_datasets
    from .datasets.pack import pack as run
    from .tables import progress_bar

    dataset = open_datasets(data, split, format)
    with progress_bar("packing", len(dataset)) as advance:
        packed = run(dataset, out, side=size, dtype=dtype, progress=lambda done, total: advance(done))
    print(f"{out}: {len(packed)} images")


def _results(
    images: list[Path], model: str, task: str | None, side: int | None, max_pixels: int | None, options: dict[str, Any]
) -> Iterator[Result]:
    """A `Result` for each photo of files and folders."""
    from .checkpoint import load
    from .image import MAX_PIXELS, list_images, read_image
    from .predict import predict as run

    if not images:
        raise UsageError("no photo given", where="IMAGE", fix="Give files or folders.")
    paths = [found for given in images for found in (list_images(given) if given.is_dir() else [given])]
    names = _result_names(list(dict.fromkeys(paths)))
    loaded = load(model)
    for path, name in names.items():
        photo = read_image(path, max_pixels=max_pixels or MAX_PIXELS)
        yield run(loaded, photo, task=task, side=side, name=name, **options)


def _result_names(paths: list[Path]) -> dict[Path, str]:
    """File stems, or whole file names where two stems are equal, so that no result overwrites another."""
    for names in ([path.stem for path in paths], [path.name for path in paths]):
        if len(set(names)) == len(names):
            return dict(zip(paths, names, strict=True))
    twice = next(path for n, path in enumerate(paths) if path.name in names[:n])
    fix = "Give one folder at a time, each its own --out."
    raise UsageError("two photos have the same file name", where=twice, fix=fix)


VERBS: dict[str, Any] = {
    "demo": demo,
    "models": models,
    "predict": predict,
    "cutout": cutout,
    "train": train,
    "evaluate": evaluate,
    "overfit": overfit,
    "pack": pack,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Errors of ours end with their text and exit code 1, without a traceback."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="everymask", description="Images in, masks out.", args=arguments, sort_subcommands=False
        )
    except EverymaskError as error:
        print(f"everymask: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("everymask: stopped", file=sys.stderr)
        sys.exit(130)  # As a shell reports the signal.
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
