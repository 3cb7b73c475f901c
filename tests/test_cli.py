"""The command line: what each verb writes and says, and that bad input ends with one clear message and no trace."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everymask import cli
from everymask.checkpoint import bundled_models, read_card, save
from everymask.cli import VERBS, main
from everymask.image import read_image, write_png
from everymask.models import create_model
from everymask.overfit import learn_step
from everymask.transforms import Geometry, collate
from tests.folders import write
from tests.scenes import LABELS, mask_values, scene, write_dataset

SCRIPT = Path(sys.executable).with_name("everymask")
SETTINGS = ("steps=2", "batch_size=2", "image_side=64", "workers=0")
QUICK = ["--preset", "tiny", *(text for setting in SETTINGS for text in ("--set", setting))]
RESULT_FILES = ["_classes.png", "_cutout.png", "_ids.png", "_mask.png", "_overlay.jpg", ".json"]


@dataclass(frozen=True)
class Done:
    code: object
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def everymask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in this process, on a terminal of 80 columns."""

    def command(*arguments: object) -> Done:
        code: object = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        found = capsys.readouterr()
        return Done(code, found.out, found.err)

    monkeypatch.setenv("COLUMNS", "80")
    return command


@pytest.fixture
def refused(everymask: Command, tmp_path: Path) -> Callable[..., str]:
    """Run a command line that must fail, leaving all files as they are; returns its message as one line."""

    def command(*arguments: object) -> str:
        before = listing(tmp_path)
        done = everymask(*arguments)
        assert done.code == 1, done
        assert "Traceback" not in done.err
        assert listing(tmp_path) == before
        *_, message = done.err.partition("everymask: ")
        return "everymask: " + " ".join(message.split())

    return command


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that finds the shapes of a scene."""
    torch.manual_seed(0)
    learner = create_model("hybrid", "tiny", classes=LABELS)
    optimizer = torch.optim.AdamW(learner.param_groups(2e-3))
    for _ in range(40):
        learn_step(learner, collate([scene()], [Geometry.fit((64, 96), 96)]), optimizer)
    return save(learner.eval(), tmp_path_factory.mktemp("models") / "tiny", extra={"licence": "CC0-1.0"})


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data folder, which no test may change."""
    return write_dataset(tmp_path_factory.mktemp("data") / "scenes", train=4, val=2)


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(root, tmp_path / "data"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    write_png(tmp_path / "photo.png", scene().image)
    return tmp_path / "photo.png"


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


# ---- help ----


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns(everymask: Command, verb: str) -> None:
    done = everymask(*filter(None, [verb]), "--help")
    assert done.code == 0
    # Terminals wrap the usage, which is one line whatever its length.
    assert max(map(len, done.out.splitlines()[1:])) <= 80
    assert (VERBS[verb].__doc__.split(".")[0] if verb else "Images in, masks out.").split()[0] in done.out


def test_help_lists_every_verb_and_option(everymask: Command) -> None:
    text = everymask("--help").out
    assert all(verb in text for verb in VERBS)
    options = everymask("train", "--help").out
    assert all(option in options for option in ("MODEL DATA...", "--out", "--preset", "--set", "--format", "--seed"))


@pytest.mark.parametrize(
    "statement", ["import everymask", "from everymask.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"]
)
def test_torch_is_not_imported_for_nothing(statement: str) -> None:
    code = f"import sys\n{statement}\nassert not {{'torch', 'numpy', 'PIL'}} & set(sys.modules), 'imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [[], ["paint"], ["predict"], ["models", "--loud"], ["train", "hybrid"]])
def test_wrong_usage_exits_with_2(everymask: Command, arguments: list[str]) -> None:
    assert everymask(*arguments).code == 2


def test_console_script(tmp_path: Path) -> None:
    """Installed, started from elsewhere: help, and an error with its exit code."""
    helped = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    failed = subprocess.run(
        [SCRIPT, "evaluate", "nonsense", "nowhere", "--json", "x.json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "everymask: no such data folder: nowhere. Check the path.\n"
    assert listing(tmp_path) == {}


# ---- each verb does its work ----


def test_models(everymask: Command) -> None:
    done = everymask("models")
    assert done.code == 0
    assert all(text in done.out for text in ("hybrid", "tiny", "base", "640", "cutout", *bundled_models()))
    assert max(map(len, done.out.splitlines())) <= 80


def test_predict_writes_all_files_of_each_photo(everymask: Command, model: Path, photo: Path) -> None:
    before, out = photo.read_bytes(), photo.parent / "out"
    done = everymask("predict", photo, "--model", model, "--out", out, "--side", 96)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("photo: disc 0.")
    assert sorted(listing(out)) == sorted(f"photo{end}" for end in RESULT_FILES)
    table = json.loads((out / "photo.json").read_text())
    assert (table["width"], table["height"]) == (96, 64)
    assert [row["label"] for row in table["segments"]] == ["disc", "square"]
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ["--task", "instance", "--threshold", "0.3"],
        ["--task", "cutout", "--classes", "disc", "--threshold", "0.5"],
        ["--task", "semantic", "--max-pixels", "10000"],
    ],
)
def test_predict_options(everymask: Command, model: Path, photo: Path, options: list[str]) -> None:
    out = photo.parent / "out"
    assert everymask("predict", photo, "--model", model, "--out", out, "--side", 96, *options).code == 0
    labels = [row["label"] for row in json.loads((out / "photo.json").read_text())["segments"]]
    assert labels == ["disc"] if "--classes" in options else set(labels) == {"disc", "square"}


def test_predict_takes_folders_and_keeps_equal_names_apart(
    everymask: Command, model: Path, photo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    write_png(folder / "one.png", scene().image)
    Image.fromarray(scene(seed=1).image).save(folder / "one.bmp")
    assert everymask("predict", folder, photo, photo, "--model", model, "--out", tmp_path / "out").code == 0
    names = sorted(name for name in listing(tmp_path / "out") if name.endswith(".json"))
    assert names == ["one.bmp.json", "one.png.json", "photo.png.json"]


def test_cutout_is_the_photo_with_alpha(everymask: Command, model: Path, photo: Path) -> None:
    done = everymask("cutout", photo, "--model", model, "--out", photo.parent / "out", "--side", 96)
    assert done.code == 0
    assert list(listing(photo.parent / "out")) == ["photo.png"]
    rgba = np.asarray(Image.open(photo.parent / "out" / "photo.png"))
    assert rgba.shape == (64, 96, 4)
    truth = np.isin(mask_values(scene()), (1, 2))
    assert rgba[truth][:, 3].mean() > 200
    assert rgba[~truth][:, 3].mean() < 40


def test_demo(everymask: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "DEFAULT_MODEL", str(model))
    done = everymask("demo", "--out", tmp_path / "demo")
    assert done.code == 0
    page = tmp_path / "demo" / "index.html"
    assert done.out.splitlines()[-1] == f"open {page}"
    linked = [name for name in listing(page.parent) if name != "index.html"]
    assert len(linked) >= len(RESULT_FILES) * 3
    assert all(name in page.read_text() for name in linked)


@pytest.mark.skipif("hybrid-pets" not in bundled_models(), reason="the bundled model is not part of this checkout")
def test_bundled_model_finds_the_pets(everymask: Command, tmp_path: Path) -> None:
    done = everymask("demo", "--out", tmp_path / "demo")
    assert done.code == 0
    assert "nothing found" not in done.out
    assert "hybrid-pets" in everymask("models").out


def test_train_then_resume_then_evaluate(everymask: Command, root: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "run", tmp_path / "scores.json"
    first = everymask("train", "hybrid", root, "--out", out, *QUICK)
    assert first.code == 0
    assert "4 training images, 2 for validation; disc, square" in first.out
    assert "step 2/2" in first.err
    weights = (out / "last" / "model.safetensors").read_bytes()
    again = everymask("train", "hybrid", root, "--out", out, *QUICK)
    assert again.out == first.out
    assert (out / "last" / "model.safetensors").read_bytes() == weights
    done = everymask("evaluate", out, root, "--split", "val", "--side", 64, "--json", scores)
    assert done.code == 0
    assert "foreground_iou" in done.out
    found = json.loads(scores.read_text(), parse_constant=pytest.fail)
    assert [row["name"] for row in found["per_image"]] == ["scene100", "scene101"]
    assert set(found["per_class"]) == {"disc", "square"}


def test_seed_may_be_given_both_ways(everymask: Command, root: Path, tmp_path: Path) -> None:
    for name, seed in (("a", ["--seed", "5"]), ("b", ["--set", "seed=5"])):
        assert everymask("train", "hybrid", root, "--out", tmp_path / name, *QUICK, "--set", "steps=1", *seed).code == 0
    weights = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert read_card(tmp_path / "a" / "last")["recipe"]["seed"] == 5


def test_instances_without_splits_train_and_score_on_what_is_held_out(everymask: Command, tmp_path: Path) -> None:
    numbers = np.kron(np.diag([1, 2, 3, 4]), np.ones((16, 16), int)).astype(np.uint8)
    root = write(tmp_path / "cells", {f"c{n}": numbers for n in range(9)}, kind="instances")
    settings = [*QUICK, "--set", "task=instance", "--set", "monitor=ap", "--set", "targets=instance"]
    out = tmp_path / "run"
    done = everymask("train", "maskformer", root, "--out", out, "--hold-out", 3, *settings)
    assert done.code == 0, done.err
    trained, held = map(int, re.search(r"(\d+) training images, (\d+) for validation", done.out).groups())  # type: ignore[union-attr]
    assert trained + held == 9
    scored = everymask("evaluate", out, root, "--task", "instance", "--hold-out", 3, "--side", 64)
    assert f"{held} images" in scored.out
    assert "pq_things" in scored.out


def test_evaluate_finds_the_split_to_score(everymask: Command, model: Path, root: Path) -> None:
    assert "2 images" in everymask("evaluate", model, root, "--side", 96).out
    assert "4 images" in everymask("evaluate", model, root, "--split", "train", "--side", 96).out


def test_overfit_learns_or_says_that_it_did_not(everymask: Command, tmp_path: Path) -> None:
    image, mask = np.full((64, 64, 3), 30, np.uint8), np.zeros((64, 64), np.uint8)
    image[16:48, 16:48], mask[16:48, 16:48] = 220, 255
    write_png(tmp_path / "images" / "box.png", image)
    write_png(tmp_path / "masks" / "box.png", mask)
    pair = [tmp_path / "images" / "box.png", tmp_path / "masks" / "box.png"]
    learnt = everymask("overfit", "hybrid", *pair, "--preset", "tiny", "--out", tmp_path / "out")
    assert (learnt.code, learnt.err) == (0, "")
    assert min(read_image(tmp_path / "out" / name).shape[0] for name in ("curve.png", "overfit.png")) > 100
    failed = everymask("overfit", "hybrid", *pair, "--preset", "tiny", "--steps", 1)
    assert failed.code == 1
    assert "did not learn one image: hybrid (IoU 0." in failed.err


def test_pack_then_train_on_it(everymask: Command, root: Path, tmp_path: Path) -> None:
    packed = everymask("pack", root, "--out", tmp_path / "pack", "--size", 64)
    found = f"{root}: folder (train, val with images/ and masks/), 4 images"
    assert (packed.code, packed.out) == (0, f"{found}\n{tmp_path / 'pack'}: 4 images\n")
    assert everymask("train", "hybrid", tmp_path / "pack", "--out", tmp_path / "run", *QUICK).code == 0


# ---- photos of all kinds ----


def huge_png() -> bytes:
    """A sound PNG header that claims 10,000 x 8,000 pixels, in 70 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 10_000, 8_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(kind: str, picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def colours() -> Image.Image:
    return Image.fromarray(scene(24, 40).image)


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", colours(), exif=exif)


PHOTOS: dict[str, tuple[bytes, tuple[int, int]]] = {
    "16-bit.png": (encoded("PNG", Image.fromarray(np.full((24, 40), 9999, np.uint16))), (24, 40)),
    "cmyk.jpg": (encoded("JPEG", colours().convert("CMYK")), (24, 40)),
    "palette.png": (encoded("PNG", colours().convert("P")), (24, 40)),
    "bilevel.png": (encoded("PNG", colours().convert("1")), (24, 40)),
    "la.png": (encoded("PNG", colours().convert("LA")), (24, 40)),
    "rgba.webp": (encoded("WEBP", colours().convert("RGBA")), (24, 40)),
    "animated.gif": (encoded("GIF", colours(), save_all=True, append_images=[colours().rotate(180)] * 3), (24, 40)),
    "row.png": (encoded("PNG", Image.new("RGB", (300, 1))), (1, 300)),
    "column.png": (encoded("PNG", Image.new("RGB", (1, 300))), (300, 1)),
    "dot.png": (encoded("PNG", Image.new("RGB", (1, 1))), (1, 1)),
    **{f"exif{n}.jpg": (rotated(n), (24, 40) if n < 5 else (40, 24)) for n in range(1, 9)},
}

BAD_PHOTOS: dict[str, tuple[bytes, str]] = {
    "text.jpg": (b"just words", "it begins with b'just words': no sound header"),
    "empty.png": (b"", "the file is empty (0 bytes)"),
    "cut.jpg": (encoded("JPEG", colours().resize((400, 240)))[:2000], "truncated or damaged"),
    "cut.png": (encoded("PNG", colours())[:-200], "truncated or damaged"),
    "huge.png": (huge_png(), "80,000,000 pixels (10000 x 8000), the limit is 40,000,000"),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_of_every_kind(everymask: Command, model: Path, tmp_path: Path, name: str) -> None:
    (content, size), path = PHOTOS[name], tmp_path / name
    path.write_bytes(content)
    done = everymask("predict", path, "--model", model, "--out", tmp_path / "out")
    assert done.code == 0, done
    table = json.loads((tmp_path / "out" / f"{path.stem}.json").read_text())
    assert (table["height"], table["width"]) == size
    assert read_image(tmp_path / "out" / f"{path.stem}_cutout.png").shape[:2] == size
    assert path.read_bytes() == content


@pytest.mark.parametrize("verb", ["predict", "cutout"])
@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_bad_photos(refused: Callable[..., str], model: Path, tmp_path: Path, name: str, verb: str) -> None:
    content, why = BAD_PHOTOS[name]
    (tmp_path / name).write_bytes(content)
    message = refused(verb, tmp_path / name, "--model", model, "--out", tmp_path / "out")
    assert message.startswith(f"everymask: Cannot read image: {tmp_path / name} ({why}")
    assert re.search(r"\)\. [A-Z].*\.$", message)  # After what, where and why: what to do.


def test_missing_photos(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    message = refused("predict", tmp_path / "no.jpg", "--model", model, "--out", tmp_path / "out")
    assert message.endswith("no.jpg (No such file or directory). Check the path and its permissions.")
    (tmp_path / "folder").mkdir()
    assert "no photo given" in refused("predict", "--model", model, "--out", tmp_path / "out")
    message = refused("predict", tmp_path / "folder", "--model", model, "--out", tmp_path / "out")
    assert "folder (no image file in it). Give a folder that holds images" in message


def test_same_file_names_in_two_folders(refused: Callable[..., str], model: Path, photo: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(photo, tmp_path / "data.png")).rename(tmp_path / "sub.png").parent / "sub"
    other.mkdir()
    shutil.copy(photo, other)
    message = refused("predict", photo, other, "--model", model, "--out", tmp_path / "out")
    assert f"same file name: {other / photo.name}. Give one folder at a time" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "panoptic"], "hybrid has no such task: panoptic (it has: semantic, instance, cutout)."),
        (["--classes", "disc"], "the task semantic has no such option: classes (it takes: "),
        (["--task", "cutout", "--classes", "cat"], "unknown class: cat (the table has: disc, square)."),
        (["--task", "instance", "--threshold", "7"], "a threshold must lie in 0..1: threshold (got 7.0)."),
        (["--side", "0"], "the canvas side is out of range: side (0 is not in 32..8192)."),
        (["--side", "1000000"], "the canvas side is out of range: side (1000000 is not in 32..8192)."),
        (["--max-pixels", "100"], "6,144 pixels (96 x 64), the limit is 100)."),
        (["--model", "nonsense"], "no model found: nonsense. Bundled: "),
    ],
)
def test_bad_options(refused: Callable[..., str], model: Path, photo: Path, options: list[str], message: str) -> None:
    assert message in refused("predict", photo, "--out", photo.parent / "out", "--model", model, *options)


# ---- data of all kinds ----


def no_mask(data: Path) -> None:
    (data / "train" / "masks" / "scene2.png").unlink()


def no_image(data: Path) -> None:
    (data / "train" / "images" / "scene2.png").unlink()


def other_size(data: Path) -> None:
    write_png(data / "train" / "masks" / "scene2.png", np.zeros((64, 95), np.uint8))


def other_value(data: Path) -> None:
    write_png(data / "train" / "masks" / "scene2.png", np.full((64, 96), 7, np.uint8))


def lossy_mask(data: Path) -> None:
    path = data / "train" / "masks" / "scene2.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()


def cut_image(data: Path) -> None:
    path = data / "train" / "images" / "scene2.png"
    path.write_bytes(path.read_bytes()[:3000])


def no_images_at_all(data: Path) -> None:
    shutil.rmtree(data / "train")
    (data / "train" / "images").mkdir(parents=True)
    (data / "train" / "masks").mkdir()


def nothing_known(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()
    (data / "notes.txt").touch()


def bad_table(data: Path) -> None:
    (data / "classes.json").write_text("{")


BAD_DATA: dict[Callable[[Path], None], str] = {
    no_mask: "files without a partner: {data}/train (1: images/scene2.png). Add the missing partner",
    no_image: "files without a partner: {data}/train (1: masks/scene2.png). Add the missing partner",
    other_size: "{data}/train/masks/scene2.png (scene2.png is 96x64, its mask 95x64). Export the mask",
    other_value: "unknown value in a mask: {data}/train/masks/scene2.png (found 7; this data set knows 0, 1, 2, 255)",
    lossy_mask: "Cannot read mask: {data}/train/masks/scene2.jpg (lossy JPEG compression",
    cut_image: "Cannot read image: {data}/train/images/scene2.png (truncated or damaged",
    no_images_at_all: "Cannot list images: {data}/train/images (no image file in it).",
    nothing_known: "the layout of a data folder is not known: {data} (it holds: notes.txt). Expected images/",
    bad_table: "cannot read a file as JSON: {data}/classes.json (Expecting property name",
}


@pytest.mark.parametrize("spoil", BAD_DATA)
def test_bad_data_for_evaluation(
    refused: Callable[..., str], model: Path, data: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(data)
    report = data.parent / "scores.json"
    found = refused("evaluate", model, data, "--split", "train", "--side", 64, "--json", report)
    assert BAD_DATA[spoil].format(data=data) in found


# Loader processes pass on errors of all kinds in one way: one case is enough.
@pytest.mark.parametrize(("spoil", "workers"), [*((spoil, 0) for spoil in BAD_DATA), (other_size, 1)])
def test_bad_data_for_training(
    everymask: Command, data: Path, tmp_path: Path, spoil: Callable[[Path], None], workers: int
) -> None:
    spoil(data)
    before = listing(data)
    options = [*QUICK, "--set", "batch_size=4", "--set", f"workers={workers}"]
    done = everymask("train", "hybrid", data, "--out", tmp_path / "run", *options)
    assert done.code == 1
    assert BAD_DATA[spoil].format(data=data) in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert set(listing(tmp_path / "run")) <= {"failure.json", "lock", "log.jsonl", "started.jsonl"}
    assert listing(data) == before


def test_bad_data_mended_the_same_command_trains(everymask: Command, data: Path, tmp_path: Path, root: Path) -> None:
    command = ["train", "hybrid", data, "--out", tmp_path / "run", *QUICK, "--set", "batch_size=4"]
    other_size(data)
    assert everymask(*command).code == 1
    shutil.copytree(root, data, dirs_exist_ok=True)
    assert everymask(*command).code == 0


def test_empty_masks_train_and_evaluate(everymask: Command, data: Path, tmp_path: Path) -> None:
    for path in data.glob("*/masks/*"):
        write_png(path, np.zeros((64, 96), np.uint8))
    assert everymask("train", "hybrid", data, "--out", tmp_path / "run", *QUICK).code == 0
    done = everymask("evaluate", tmp_path / "run", data, "--json", tmp_path / "scores.json")
    assert done.code == 0
    assert json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "unet", "{root}"], "unknown model: unet (there are: "),
        (["train", "hybrid", "{root}", "--preset", "giant"], "unknown preset of hybrid: giant (there are: base, "),
        (["train", "hybrid", "{root}", "--config", "queriez=3"], "no such setting: queriez (there are: image_side, "),
        (["train", "hybrid", "{root}", "--config", "queries=many"], "wrong type: queries ('many' is not int)."),
        (["train", "hybrid", "{root}", "--config", "queries"], "a setting is key=value: --config queries."),
        (["train", "hybrid", "{root}", "--set", "stepz=3"], "unknown setting: stepz=3 (expected key=value). Known"),
        (["train", "hybrid", "{root}", "--set", "steps=many"], "wrong type: steps=many (expected "),
        (["train", "hybrid", "{root}", "--set", "lr=-1"], "out of range: lr (-1.0 is below 0)."),
        (["train", "hybrid", "{root}", "--set", "lr=nan"], "out of range: lr (nan is below 0)."),
        (["train", "hybrid", "{root}", "--set", "image_side=50"], "out of range: image_side (50 is not n x 32)."),
        (["train", "hybrid", "{root}", "--set", "precision=9"], "unknown precision: 9 (there are: auto, 32-true"),
        (["train", "hybrid", "{root}", "--set", "monitor=iou"], "unknown score: monitor=iou (there are: miou"),
        (["train", "hybrid", "{root}", "--format", "coco9"], "unknown data format: coco9 (there are: pack"),
        (["train", "hybrid", "{root}/nowhere"], "no such data folder: {root}/nowhere. Check the path."),
    ],
)
def test_bad_training_commands(
    refused: Callable[..., str], root: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [argument.format(root=root) for argument in arguments]
    preset = [] if "--preset" in given else ["--preset", "tiny"]
    assert message.format(root=root) in refused(*given, *preset, "--out", tmp_path / "run")


def test_interrupted_by_hand(everymask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def models() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "models", models)
    assert everymask("models") == Done(130, "", "everymask: stopped\n")


def test_other_settings_in_the_same_folder(everymask: Command, root: Path, tmp_path: Path) -> None:
    command = ["train", "hybrid", root, "--out", tmp_path / "run", *QUICK, "--set", "steps=1"]
    assert everymask(*command).code == 0
    before = listing(tmp_path / "run")
    done = everymask(*command, "--set", "lr=0.5")
    assert done.code == 1
    assert "this folder holds another run" in done.err
    assert "lr: 0.001 -> 0.5" in done.err
    assert listing(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{model}", "{root}", "--split", "nope"], "no such split: {root} (asked for nope, there are: "),
        (
            ["evaluate", "{model}", "{root}", "--hold-out", "3"],
            "the data have splits of their own: --hold-out 3 (this is",
        ),
        (["evaluate", "nonsense", "{root}"], "no model found: nonsense."),
        (["overfit", "unet"], "unknown model: unet"),
        (["overfit", "hybrid", "one.png"], "overfit takes an image and its mask, or nothing: one.png."),
        (["overfit", "hybrid", "a.png", "b.png", "--preset", "tiny"], "a.png (No such file or directory)"),
        (["pack", "{root}", "--out", "{tmp}/p", "--dtype", "int3"], "int3"),
        (["pack", "{root}", "--out", "{tmp}/p", "--size", "0"], "0"),
    ],
)
def test_other_bad_commands(
    refused: Callable[..., str], model: Path, root: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"model": model, "root": root, "tmp": tmp_path}
    assert message.format(**places) in refused(*(argument.format(**places) for argument in arguments))


def test_classes_that_the_model_lacks(refused: Callable[..., str], model: Path, data: Path) -> None:
    rows = [{"name": "disc", "value": 1}, {"name": "ring", "value": 2}]
    (data / "classes.json").write_text(json.dumps({"classes": rows, "background": [0]}))
    message = refused("evaluate", model, data, "--split", "val")
    assert "different classes: evaluation data (the model has disc, square; the data also have ring)." in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "{photo}", "--model", "{model}"],
        ["cutout", "{photo}", "--model", "{model}"],
        ["train", "hybrid", "{root}", *QUICK],
        ["pack", "{root}"],
    ],
)
def test_output_folder_that_is_a_file(
    refused: Callable[..., str], model: Path, root: Path, photo: Path, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    given = [argument.format(photo=photo, model=model, root=root) for argument in arguments]
    assert "taken" in refused(*given, "--out", tmp_path / "taken")


def test_reader_of_the_output_may_go_away() -> None:
    """`everymask models | head -0`: no traceback."""
    if not hasattr(os, "pipe"):
        pytest.skip("no pipes here")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run([SCRIPT, "--help"], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in done.stderr
