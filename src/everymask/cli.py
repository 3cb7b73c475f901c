"""The command line: one short function a verb over the public API.

Heavy imports happen inside the verbs, so that ``everymask --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .cli_data import data_folders, held_out, opened
from .cli_photos import results, write_explanation
from .errors import EverymaskError, UsageError

Images = Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="IMAGE...")]
Data = Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="DATA...")]
Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
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
    background: float | None = None,
    heatmaps: bool = False,
    point: Repeated = (),
    box: Repeated = (),
    explain: bool = False,
    explain_at: tuple[float, float] | None = None,
) -> None:
    """Segment photos: overlay, cut-out, masks and a JSON table for each.

    Args:
        images: files or folders.
        out: folder to write into.
        model: bundled name or checkpoint folder.
        task: semantic, instance, cutout, ... (the model's first if not given).
        classes: names to keep, separated by commas (task cutout). A model of open vocabulary looks for any words:
            "sofa,cat", or with synonyms "sofa, couch; cat".
        threshold: least score of a segment, for tasks that have one.
        side: input size in pixels instead of the model's own.
        max_pixels: largest photo accepted (default 40 megapixels).
        background: least probability of a pixel's class; below, it has none (task semantic).
        heatmaps: also write how probable each class is at each pixel.
        point: a click on an object as x,y in pixels, or x,y,0 for one beside it; repeatable, all for one object.
        box: x0,y0,x1,y1 of an object, corners inclusive; repeatable.
        explain: also draw where the model looked, as a picture and as a page.
        explain_at: the pixel X Y that the encoder looks from in these, the middle if not given.
    """
    asked = {"classes": _words(classes), "threshold": threshold, "background": background, "heatmaps": heatmaps or None}
    options = {key: value for key, value in asked.items() if value is not None}
    if point or box:
        from .cli_prompts import prompt_options

        options |= prompt_options(point, box)
    for loaded, result in results(images, model, task, side, max_pixels, options):
        result.save(out)
        if explain or explain_at:
            write_explanation(loaded, result, out, explain_at, side, threshold)
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

    options = {"threshold": threshold, "classes": _words(classes)}
    for _, result in results(images, model, "cutout", side, max_pixels, options):
        write_png(out / f"{result.name}.png", np.asarray(result.cutout()))
        print(f"{out / result.name}.png: {', '.join(s.label for s in result.segments) or 'nothing found'}")


def train(
    model: Name,
    data: Data,
    /,
    out: Path,
    preset: str = "small",
    weights: str | None = None,
    config: Repeated = (),
    freeze: str | None = None,
    set: Repeated = (),
    format: str | None = None,
    option: Repeated = (),
    quarantine: Path | None = None,
    hold_out: int | None = None,
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
        config: a field of the model's configuration that differs from the preset, as key=value, repeatable.
        freeze: parts that do not learn, separated by commas: submodules, or a group that the system names (detector).
        set: a training setting as key=value, repeatable.
        format: data format, found by looking if not given.
        option: of the data's reader as key=value, repeatable; see docs/data.md.
        quarantine: list of samples to leave out, as `everymask check --quarantine` writes it.
        hold_out: for data without splits: keep about one sample in this many for validation, chosen by its name.
        seed: of weights, order and augmentation.
        allow_change: resume although the settings differ from those the run was started with.
    """
    import torch

    from .checkpoint import transfer
    from .datasets import join_split, leave_out
    from .datasets.quarantine import left_out
    from .models import create_model, model_module
    from .train import train as run

    parts = [f"freeze={freeze}"] if freeze else []
    settings = model_module(model).RECIPE.with_settings([f"seed={seed}", *parts, *set])
    changes = _model_settings(config)
    folders = data_folders(data, format, option)
    if quarantine:
        folders = leave_out(folders, quarantine)
    dataset, val = opened(folders, "train"), join_split(folders, "val")
    if hold_out is not None:
        dataset, val = held_out(dataset, hold_out)
    if quarantine:
        print(f"{quarantine}: {left_out(dataset)} training images and {left_out(val)} for validation left out")
    print(f"{len(dataset)} training images, {len(val) if val else 0} for validation; {', '.join(dataset.labels.names)}")
    torch.manual_seed(settings.seed)
    created = create_model(model, preset, classes=dataset.labels, **changes)
    if weights:
        fresh = transfer(created, weights)
        print(f"starting from {weights}; new: {', '.join(fresh[:3]) or 'nothing'}{', ...' * (len(fresh) > 3)}")
    scores = run(created, dataset, settings, out=out, val=val, allow_change=allow_change)
    print(f"{out}: " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float)))


def evaluate(
    model: Name,
    data: Data,
    /,
    task: Literal["semantic", "instance", "panoptic"] = "semantic",
    split: str | None = None,
    format: str | None = None,
    option: Repeated = (),
    hold_out: int | None = None,
    side: int | None = None,
    prompts: str | None = None,
    against: str | None = None,
    ask: Repeated = (),
    picture: Path | None = None,
    json: Path | None = None,
) -> None:
    """Score a model on labelled data: a table by class.

    Args:
        model: bundled name or checkpoint folder.
        data: data folders.
        task: semantic (mIoU, Dice, outlines, mattes), instance (mask AP and PQ) or panoptic (PQ).
        split: train, val or test; the first of test, val, all that exists if not given.
        format: data format, found by looking if not given.
        option: of the data's reader as key=value, repeatable; see docs/data.md.
        hold_out: score only the samples that `everymask train` with the same number held out.
        side: input size in pixels instead of the model's own.
        prompts: instead of a task, tell the model of every object: point, box, negatives, click1 to click8, separated
            by commas; see docs/sam2.md.
        against: other weights that answer the same prompts, shown beside these (with prompts).
        ask: which objects, as by=, least_area=, only= or seed=, repeatable (with prompts).
        picture: also draw the scores into this PNG (with prompts).
        json: also write everything to this file, with a row for every image.
    """
    from .checkpoint import load
    from .evaluate import describe_mapping
    from .evaluate import evaluate as run
    from .files import write_json
    from .predict import told
    from .tables import print_scores

    folders = data_folders(data, format, option)
    wanted = [split] if split else ["test", "val"]
    chosen = next((name for name in wanted if any(name in folder.splits for folder in folders)), split or "")
    dataset = opened([folder for folder in folders if chosen in folder.splits] or folders, chosen)
    if hold_out is not None:
        dataset = held_out(dataset, hold_out)[1]
    loaded = told(load(model), dataset.labels)
    if prompts is not None:
        from .cli_prompts import protocol_of, score_prompts

        protocol = protocol_of(prompts, ask)
        score_prompts(loaded, dataset, protocol, against=against, side=side, json=json, picture=picture)
        return
    if mapping := describe_mapping(loaded.labels, dataset.labels):
        print(mapping)
    scores = run(loaded, dataset, task=task, side=side)
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
    option: Repeated = (),
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
        option: of the data's reader as key=value, repeatable; see docs/data.md.
    """
    from .datasets.pack import pack as run
    from .tables import progress_bar

    dataset = opened(data_folders(data, format, option), split)
    with progress_bar("packing", len(dataset)) as advance:
        packed = run(dataset, out, side=size, dtype=dtype, progress=lambda done, total: advance(done))
    print(f"{out}: {len(packed)} images")


def prompts(
    data: Data,
    /,
    out: Path,
    kind: Repeated = (),
    count: int = 3,
    by: str = "segment",
    jitter: bool = False,
    least_area: int = 1,
    split: str = "",
    seed: int = 0,
    format: str | None = None,
    option: Repeated = (),
) -> None:
    """Write the explicit prompts of a data set, and a contact sheet of them.

    One line a sample. The same command gives the same file.

    Args:
        data: data folders, joined by class name.
        out: file to write, ending in .json; the contact sheet comes beside it as PNG.
        kind: box, center, uniform, boundary or negative, repeatable; box and center if not given.
        count: points of each of the kinds uniform, boundary and negative.
        by: what an object is: segment, class or component.
        jitter: move the corners of boxes at random, as SAM 2 is trained.
        least_area: objects of fewer pixels get no prompts.
        split: train, val or test.
        seed: of the random draws.
        format: data format, found by looking if not given.
        option: of the data's reader as key=value, repeatable; see docs/data.md.
    """
    from .prompt_files import save_prompts
    from .prompts import PromptSettings
    from .tables import progress_bar

    settings = PromptSettings(kind or ("box", "center"), count, by, jitter, least_area)
    dataset = opened(data_folders(data, format, option), split)
    with progress_bar("drawing", len(dataset)) as advance:
        objects, points = save_prompts(dataset, len(dataset), out, settings, seed=seed, progress=advance)
    print(f"{out}: {points} points for {objects} objects in {len(dataset)} images; see {out.with_suffix('.png')}")


def check(
    data: Folder,
    /,
    out: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
    quarantine: Path | None = None,
    format: str | None = None,
    option: Repeated = (),
    workers: int | None = None,
) -> None:
    """Data doctor: say in words what is wrong with images and masks.

    Nothing is changed. Exit code 1 on any fault.

    With OUT or a file to write, the next run reads only what has changed.

    Args:
        data: data folder.
        out: folder for index.html, report.json and what is kept for the next time.
        json: write the report to this file.
        html: write the report with pictures to this page.
        quarantine: write the list of samples at fault, for `everymask train --quarantine`.
        format: data format, found by looking if not given.
        option: of the data's reader as key=value, repeatable; see docs/data.md.
        workers: processes that read; all cores if not given.
    """
    from .datasets.check import check as run
    from .datasets.check import survey
    from .datasets.quarantine import write_quarantine
    from .doctor_page import report_html
    from .doctor_text import print_report
    from .files import write_json, write_text
    from .tables import progress_bar

    (folder,) = data_folders([data], format, option)
    pages = [path for path in (html, out and out / "index.html") if path]
    tables = [path for path in (json, out and out / "report.json") if path]
    keep = next((path.with_suffix(".facts") for path in (*pages[::-1], *tables)), None)
    _check_outside([*pages, *tables, *filter(None, [quarantine])], data)
    found = survey(folder)
    with progress_bar("checking", len(found)) as advance:
        report = run(found, keep=keep, workers=workers, progress=advance)
    for path in tables:
        write_json(path, report.to_json())
    for path in pages:
        write_text(path, report_html(report))
    if quarantine:
        write_quarantine(quarantine, data, report.quarantine())
    print_report(report)
    if report.faults:
        sys.exit(1)


def convert(
    model: Annotated[Name, tyro.conf.arg(metavar="SYSTEM")],
    upstream: Annotated[Name, tyro.conf.arg(metavar="WEIGHTS")],
    out: Annotated[Folder, tyro.conf.arg(metavar="OUT")],
    /,
    half: bool = False,
) -> None:
    """Write published weights as a checkpoint of ours.

    Args:
        model: the system, see `everymask models`.
        upstream: folder in the layout of transformers, a name of the Hugging Face Hub, or a file of the original code.
        out: folder to write.
        half: store matrices in half precision.
    """
    from .checkpoint import load, save
    from .models import model_module, model_name

    model_module(model)
    loaded = load(upstream)
    if model_name(loaded) != model:
        raise UsageError("these are weights of another system", where=upstream, why=f"they are of {model_name(loaded)}")
    save(loaded, out, extra=loaded.card, half=half)
    things = sum(label.is_thing for label in loaded.labels)
    print(f"{out}: {model}, {things} things and {len(loaded.labels) - things} classes of stuff")


def _check_outside(paths: list[Path], data: Path) -> None:
    """The doctor changes nothing in a data folder, and what it writes there might be taken for data."""
    inside = next((path for path in paths if path.resolve().is_relative_to(data.resolve())), None)
    if inside:
        raise UsageError("the report would lie in the data folder", where=inside, fix="Give a place outside of it.")


def _words(text: str | None) -> list[str] | None:
    """Class names: ``a,b``, or, where they have synonyms after commas, ``a, another name; b``."""
    return None if text is None else [part.strip() for part in text.split(";" if ";" in text else ",")]


def _model_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """key=value texts of the model's configuration; values are read as YAML, lists as tuples."""
    import yaml

    if odd := next((text for text in texts if "=" not in text), None):
        raise UsageError("a setting is key=value", where=f"--config {odd}")
    values = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in texts)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


VERBS: dict[str, Any] = {
    "demo": demo,
    "models": models,
    "predict": predict,
    "cutout": cutout,
    "train": train,
    "evaluate": evaluate,
    "overfit": overfit,
    "check": check,
    "pack": pack,
    "prompts": prompts,
    "convert": convert,
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
