"""Random views and colours: what is drawn, how often, and that settings that are off change nothing."""

from __future__ import annotations

import colorsys
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import loader
from everymask.augment import TRIES, jitter_color, largest_share, photometric_distortion, random_geometry
from everymask.chance import COLOR, generators
from everymask.datasets import Dataset, open_dataset
from everymask.datasets.loader import training_batches
from everymask.manifest import write_manifest
from everymask.models import create_model
from everymask.recipe import TrainConfig
from everymask.train import train
from everymask.training_run import Run
from everymask.transforms import Geometry
from everymask.types import VOID, Segments
from tests.scenes import write_dataset

Array = np.ndarray[Any, Any]
Size = tuple[int, int]

PINNED = [
    ((14, 0, 390, 300), (221, 256), True),
    ((0, 0, 400, 300), (161, 199), True),
    ((11, 9, 318, 298), (256, 256), True),
]
"""Crop, content and flip of the first views of 300 x 400 at 256 from seed 7."""


def views(count: int, seed: int = 0, source: Size = (30, 40), side: int = 32, **settings: Any) -> list[Geometry]:
    rng = np.random.default_rng(seed)
    return [random_geometry(source, side, rng, **settings) for _ in range(count)]


def turned_by(geometry: Geometry) -> float:
    """Degrees counter-clockwise by which the photo's x axis is turned, -180..180."""
    return math.degrees(math.atan2(-geometry.to_canvas.d, geometry.to_canvas.a))


# --- views -----------------------------------------------------------------------------------------------------------


def test_settings_that_are_off_leave_the_views_of_before() -> None:
    """Drawn by version 0.1.0, which had none of them."""
    shown = [(v.crop, v.letterbox.content, v.flip) for v in views(3, 7, (300, 400), 256, scale=(0.6, 1.6), flip=0.5)]
    assert shown == PINNED
    assert all(v.matrix is None for v in views(20, scale=(0.6, 1.6), flip=0.5, angle=0.0, rotate90=0.0))


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 10**6),
    st.floats(0.1, 2),
    st.floats(0, 180),
    st.floats(0, 40),
)
def test_every_view_is_a_square_with_void_beyond_its_content(
    source: Size, seed: int, scale: float, angle: float, shear: float
) -> None:
    settings = {"flip": 0.5, "flip_vertical": 0.5, "rotate90": 0.5, "angle": angle, "shear": shear}
    (geometry,) = views(1, seed, source, scale=(scale, 2 * scale), **settings)
    assert geometry.letterbox.canvas == (32, 32)
    height, width = geometry.letterbox.content
    shown = geometry.labels(torch.ones(source, dtype=torch.int32), fill=VOID)
    assert (shown[height:] == VOID).all()
    assert (shown[:, width:] == VOID).all()
    # The middle of the window stays where it is; of a photo a few pixels wide that may fall between two pixels.
    assert min(source) < 10 or scale < 0.5 or (shown == 1).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_vertical_flips_and_quarter_turns_come_as_often_as_asked(share: float) -> None:
    upside_down = [v.to_canvas.e < 0 for v in views(1000, flip_vertical=share)]
    assert np.mean(upside_down) == pytest.approx(share, abs=0.05)
    turns = np.array([round(turned_by(v) / 90) % 4 for v in views(1000, rotate90=share)])
    assert np.bincount(turns, minlength=4)[1:] / 1000 == pytest.approx(np.full(3, share / 3), abs=0.05)


def test_straight_views_stay_on_the_fast_way() -> None:
    found = views(50, scale=(0.6, 1.6), flip=0.5, flip_vertical=0.5, rotate90=0.9)
    assert all(v.placement for v in found)
    assert all(not v.edges for v in found)


def test_angles_are_even_up_to_the_largest() -> None:
    angles = np.array([turned_by(v) for v in views(1000, angle=20.0, stretch=0.0)])
    assert -20 <= angles.min() < -19
    assert 19 < angles.max() <= 20
    assert np.abs(angles).mean() == pytest.approx(10, abs=0.6)


def test_shear_slants_the_other_axis() -> None:
    slants = [math.degrees(math.atan2(v.to_canvas.b, v.to_canvas.e)) for v in views(500, shear=15.0, stretch=0.0)]
    assert -15 <= min(slants) < -14
    assert 14 < max(slants) <= 15
    assert {round(turned_by(v), 6) for v in views(20, shear=15.0)} == {0.0}


def test_the_photo_turns_under_the_window() -> None:
    """So the corners of a window in its middle show more of the photo, and no void."""
    found = views(40, source=(300, 400), side=64, scale=(4.0, 4.0), angle=10.0)
    middle = torch.tensor([[32.0, 32.0]])
    inner = [v for v in found if v.to_source(middle)[0].sub(torch.tensor([200, 150])).abs().max() < 60]
    assert len(inner) > 5
    for view in inner:
        height, width = view.letterbox.content
        assert (view.labels(torch.ones(300, 400, dtype=torch.int32), VOID)[:height, :width] == 1).all()


# --- category limit --------------------------------------------------------------------------------------------------


def halves(right: float = 0.5) -> Segments:
    """Class 3 at the left, class 5 at the right."""
    ids = np.ones((100, 100), np.int32)
    ids[:, round(100 * (1 - right)) :] = 2
    return Segments.build(ids, [3, 5])


def test_the_largest_share_is_that_of_a_class_among_known_pixels() -> None:
    whole = Geometry.whole((2, 6))
    ids = np.array([[1, 2, 3, 0, -1, 4], [1, 2, 3, 0, -1, 4]], np.int32)
    truth = Segments.build(ids, [7, 9, 7, 7], crowd=[False, False, False, True])
    # Segments 1 and 3 are one class, 4 is a crowd and so unknown: 4 of 8.
    assert largest_share(truth, whole) == 0.5
    assert largest_share(truth, whole.cropped((3, 0, 5, 2))) == 1.0
    assert largest_share(truth, whole.cropped((4, 0, 6, 2))) == 0.0
    assert largest_share(Segments.build(np.zeros((2, 2)), []), Geometry.whole((2, 2))) == 1.0


def test_views_of_one_class_are_drawn_again() -> None:
    truth, limit = halves(), 0.6
    settings: dict[str, Any] = {"source": (100, 100), "scale": (3.0, 3.0), "segments": truth}
    free, limited = views(300, **settings), views(300, **settings, category_limit=limit)
    exceeding = [np.mean([largest_share(truth, v) > limit for v in some]) for some in (free, limited)]
    assert exceeding[0] > 0.7
    assert exceeding[1] == pytest.approx(exceeding[0] ** TRIES, abs=0.06)


def test_after_the_last_try_any_view_will_do() -> None:
    truth = Segments.build(np.ones((100, 100)), [0])
    found = views(5, source=(100, 100), scale=(3.0, 3.0), segments=truth, category_limit=0.5)
    rng = np.random.default_rng(0)
    every = [random_geometry((100, 100), 32, rng, scale=(3.0, 3.0)) for _ in range(5 * TRIES)]
    assert found == every[TRIES - 1 :: TRIES]


# --- training --------------------------------------------------------------------------------------------------------

TURNING = TrainConfig(
    steps=3,
    batch_size=3,
    workers=0,
    scale=(0.5, 2.0),
    flip_vertical=0.5,
    rotate90=0.5,
    angle=15.0,
    category_limit=0.7,
)


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    return open_dataset(write_dataset(tmp_path, val=0), "train")


@pytest.mark.parametrize("workers", [1, 2])
def test_turned_batches_do_not_depend_on_the_number_of_workers(scenes: Dataset, workers: int) -> None:
    one, other = (
        list(training_batches(scenes, replace(TURNING, workers=n), scenes.labels, 64, 0)) for n in (0, workers)
    )
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.letterboxes == b.letterboxes
        for s, t in zip(a.truth(), b.truth(), strict=True):
            assert torch.equal(s.id_map, t.id_map)
            assert torch.equal(s.classes, t.classes)


def test_settings_of_the_recipe_reach_the_views(scenes: Dataset) -> None:
    def images(**settings: Any) -> torch.Tensor:
        off = {"flip_vertical": 0.0, "rotate90": 0.0, "angle": 0.0, "category_limit": 1.0}
        config = replace(TURNING, **{**off, **settings})
        return torch.cat([b.images for b in training_batches(scenes, config, scenes.labels, 64, 0)])

    plain = images()
    for settings in (
        {"flip_vertical": 1.0},
        {"rotate90": 1.0},
        {"angle": 30.0},
        {"shear": 30.0},
        {"category_limit": 0.1},
    ):
        assert not torch.equal(plain, images(**settings)), settings


def test_a_run_from_before_these_settings_goes_on(scenes: Dataset, tmp_path: Path) -> None:
    config = TrainConfig(steps=1, batch_size=2, image_side=64, workers=0)
    train(create_model("hybrid", "tiny", classes=scenes.labels), scenes, config, out=tmp_path / "run")
    checkpoint = tmp_path / "run" / "last"
    state = checkpoint / "training.json"
    older = json.loads(state.read_text())
    for name in ("flip_vertical", "rotate90", "angle", "shear", "photometric", "category_limit"):
        del older["config"][name]
    state.write_text(json.dumps(older))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, {"step": 1})
    train(create_model("hybrid", "tiny", classes=scenes.labels), scenes, config, out=tmp_path / "run")


def test_training_distorts_colours_as_asked_and_keeps_padding_black(scenes: Dataset, tmp_path: Path) -> None:
    def images(**settings: Any) -> torch.Tensor:
        config = TrainConfig(batch_size=2, image_side=64, scale=(0.5, 0.5), workers=0, **settings)
        run = Run(create_model("hybrid", "tiny", classes=scenes.labels), config, tmp_path)
        batch = next(training_batches(scenes, config, scenes.labels, 64, 0))
        torch.manual_seed(0)
        changed = run._augmented(batch).images.float()
        assert not changed.masked_select(~batch.valid(multiple=1).expand_as(changed)).any()
        return changed

    plain, jitter, photometric = images(color=0.0), images(color=0.4), images(photometric=True)
    assert not torch.equal(plain, jitter)
    assert not torch.equal(plain, photometric)
    assert not torch.equal(jitter, photometric)


def test_the_benchmark_of_the_loader_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loader.rows(tmp_path) == []
    write_dataset(tmp_path / loader.NAME, train=4, val=0)
    rows = loader.rows(tmp_path, side=32, stored=[64], batches=2)
    assert [row.unit for row in rows] == ["images/s", "s"]
    assert all(row.ours > 0 for row in rows)
    loader.main(["--data", str(tmp_path), "--side", "32", "--stored", "48", "--batches", "2", "--workers", "1"])
    assert "32 from 48, 1 worker: " in capsys.readouterr().out


# --- colour ----------------------------------------------------------------------------------------------------------


def jittered(strength: float, seed: int, count: int = 6) -> torch.Tensor:
    images = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return jitter_color(images.expand(count, -1, -1, -1), strength, generators(range(seed, seed + count), count, COLOR))


def test_jitter_of_no_strength_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    result = jitter_color(images, 0.0, generators((), 4, COLOR))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, images.float(), atol=2e-3, rtol=0)


def test_jitter_follows_its_generator() -> None:
    assert torch.equal(jittered(0.4, 1), jittered(0.4, 1))
    assert not torch.equal(jittered(0.4, 1), jittered(0.4, 2))


def test_jitter_draws_for_each_image_and_stays_in_range() -> None:
    result = jittered(1.0, 0, count=60)
    assert result.min() >= 0
    assert result.max() <= 255
    assert len(torch.unique(result.mean((1, 2, 3)))) == 60


def test_one_image_in_ten_turns_grey() -> None:
    # Brightness 0..2 can also turn an image black, which is grey as well.
    result = jittered(0.3, 0, count=600)
    grey = (result.amax(1) - result.amin(1)).amax((1, 2)) < 1e-2
    assert grey.float().mean() == pytest.approx(0.1, abs=0.04)


def distorted(images: torch.Tensor, seed: int) -> torch.Tensor:
    return photometric_distortion(images, generators(range(seed, seed + len(images)), len(images), COLOR))


def by_hand(pixel: list[float], brightness: float, before: float, saturation: float, hue: float, after: float) -> Array:
    """SSD's distortion of one RGB pixel 0..255, by the standard library."""
    values = np.clip(np.array(pixel) + brightness, 0, 255)
    h, s, v = colorsys.rgb_to_hsv(*np.clip(values * before, 0, 255) / 255)
    rgb = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1.0, s * saturation), v)
    return np.clip(np.array(rgb) * 255 * after, 0, 255)


def test_photometric_distortion_is_that_of_ssd() -> None:
    images = torch.randint(0, 256, (40, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    draws = torch.stack([torch.rand(9, generator=own) for own in generators(range(5, 45), 40, COLOR)], dim=1)
    chance, amount = draws[:5] < 0.5, 2 * draws[5:] - 1
    result = distorted(images, 5)
    for b in range(40):
        brightness, contrast, saturation, hue = (amount[:, b] * chance[:4, b]).tolist()
        factors = (1 + contrast / 2, 1.0) if chance[4, b] else (1.0, 1 + contrast / 2)
        for pixel, shown in zip(images[b].flatten(1).T.tolist(), result[b].flatten(1).T.tolist(), strict=True):
            expected = by_hand(pixel, 32 * brightness, factors[0], 1 + saturation / 2, 36 * hue, factors[1])
            np.testing.assert_allclose(shown, expected, atol=0.01)


def test_photometric_distortion_draws_for_each_image() -> None:
    images = torch.full((400, 3, 1, 1), 100, dtype=torch.uint8)
    images[:, 0], images[:, 2] = 180, 60
    result = distorted(images, 0)
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 255
    assert torch.equal(result, distorted(images, 0))
    assert not torch.equal(result, distorted(images, 1))
    # One in sixteen is drawn none of the four.
    same = ((result - images).abs().amax((1, 2, 3)) < 0.01).float().mean()
    assert same == pytest.approx(1 / 16, abs=0.03)


def test_grey_stays_grey_and_black_stays_black_without_brightness() -> None:
    grey = torch.arange(0, 250, 10, dtype=torch.uint8).expand(30, 3, 1, 25)
    result = distorted(grey, 3)
    assert (result.amax(1) - result.amin(1)).max() < 0.01
    lifted = result[:, 0, 0, 0]
    assert (lifted < 0.01).float().mean() > 0.5
    assert lifted.max() <= 32 * 1.5
