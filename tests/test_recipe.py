"""The training configuration: texts from the command line, files, ranges, and the schedule of canvas sides."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everymask.errors import UsageError
from everymask.recipe import TrainConfig

# --- texts -----------------------------------------------------------------------------------------------------------

SETTINGS = [
    ("steps=500", "steps", 500),
    ("seed=-3", "seed", -3),
    ("lr=3e-4", "lr", 3e-4),
    ("lr=1", "lr", 1.0),
    ("tensorboard=true", "tensorboard", True),
    ("tensorboard=False", "tensorboard", False),
    ("tensorboard=1", "tensorboard", True),
    ("tensorboard=0", "tensorboard", False),
    ("precision=bf16-mixed", "precision", "bf16-mixed"),
    ("monitor=a=b", "monitor", "a=b"),
    ("targets=instance", "targets", "instance"),
    ("scale=0.5,2", "scale", (0.5, 2.0)),
    ("scale=(0.5, 2.0)", "scale", (0.5, 2.0)),
]


@pytest.mark.parametrize(("text", "name", "value"), SETTINGS)
def test_settings_are_read_as_their_type(text: str, name: str, value: Any) -> None:
    changed = TrainConfig().with_settings([text])
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    # All else stays.
    others = [f.name for f in fields(TrainConfig) if f.name != name]
    assert all(getattr(changed, other) == getattr(TrainConfig(), other) for other in others)


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig)])
def test_every_field_can_be_set_by_text(name: str) -> None:
    config = TrainConfig(start_side=64, tensorboard=True)
    text = str(config.to_json()[name]).strip("[]")
    assert TrainConfig().with_settings([f"{name}={text}"]).to_json()[name] == config.to_json()[name]


def test_the_last_of_two_settings_counts_and_the_original_stays() -> None:
    config = TrainConfig()
    assert config.with_settings(["steps=3", "lr=1", "steps=4"]).steps == 4
    assert config.with_settings([]) == config == TrainConfig()


UNREADABLE = [
    ("stepz=3", "unknown setting: stepz=3 (expected key=value). Known keys: steps, batch_size,"),
    ("steps", "unknown setting: steps (expected key=value). Known keys: steps,"),
    ("=3", "unknown setting: =3 (expected key=value). Known keys: steps,"),
    ("with_settings=3", "unknown setting: with_settings=3 (expected key=value)."),
    ("steps=1.5", "a setting has the wrong type: steps=1.5 (expected int)."),
    ("steps=", "a setting has the wrong type: steps= (expected int)."),
    ("lr=fast", "a setting has the wrong type: lr=fast (expected float)."),
    ("tensorboard=yes", "a setting has the wrong type: tensorboard=yes (expected bool)."),
    ("scale=0.5", "a setting has the wrong type: scale=0.5 (expected tuple[float, float])."),
    ("scale=1,2,3", "a setting has the wrong type: scale=1,2,3 (expected tuple[float, float])."),
    ("scale=a,b", "a setting has the wrong type: scale=a,b (expected tuple[float, float])."),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE)
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig().with_settings([text])
    assert str(error.value).startswith(message)


# --- ranges ----------------------------------------------------------------------------------------------------------

OUT_OF_RANGE = [
    *[({name: 0}, f"{name} (0 is below 1)") for name in ("steps", "batch_size", "accumulate", "keep")],
    ({"log_every": -5}, "log_every (-5 is below 1)"),
    *[({name: 1.5}, f"{name} (1.5 is not in 0..1)") for name in ("flip", "color", "grow_until", "final_lr", "ema")],
    *[
        ({name: -1}, f"{name} (-1 is below 0)")
        for name in ("lr", "weight_decay", "warmup", "clip", "patience", "validate_every")
    ],
    *[({name: -32}, f"{name} (-32 is below 0)") for name in ("image_side", "start_side", "max_val", "threads")],
    ({"flip": -0.1}, "flip (-0.1 is not in 0..1)"),
    ({"color": math.nan}, "color (nan is not in 0..1)"),
    ({"scale": (0.0, 1.0)}, "scale ((0.0, 1.0) is not 0 < low <= high)"),
    ({"scale": (2.0, 1.0)}, "scale ((2.0, 1.0) is not 0 < low <= high)"),
    ({"start_side": 100}, "start_side (100 is not n x 32)"),
]


@pytest.mark.parametrize(("settings", "message"), OUT_OF_RANGE)
def test_values_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert str(error.value) == f"a setting is out of range: {message}."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rates_are_finite(value: float) -> None:
    with pytest.raises(UsageError, match=r"^a setting is out of range: lr "):
        TrainConfig(lr=value)


def test_unknown_targets() -> None:
    with pytest.raises(UsageError, match=r"^a setting is unknown: targets \(panoptic\)\. semantic or instance\.$"):
        TrainConfig().with_settings(["targets=panoptic"])


@pytest.mark.parametrize("name", ["flip", "color", "grow_until", "final_lr", "ema"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ends_of_ranges(name: str, value: float) -> None:
    assert getattr(TrainConfig(**{name: value}), name) == value


# --- files -----------------------------------------------------------------------------------------------------------

CONFIGS = st.builds(
    TrainConfig,
    steps=st.integers(1, 10**6),
    lr=st.floats(0, 1),
    scale=st.tuples(st.floats(0.1, 1), st.floats(1, 3)),
    targets=st.sampled_from(["semantic", "instance"]),
    tensorboard=st.booleans(),
    monitor=st.sampled_from(["miou", "cat=1", "größe", ""]),
)


@given(CONFIGS)
def test_json_round_trip(config: TrainConfig) -> None:
    again = TrainConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert list(config.to_json()) == [f.name for f in fields(TrainConfig)]


def test_json_of_an_older_version_takes_today_s_defaults() -> None:
    assert TrainConfig.from_json({"steps": 7}) == TrainConfig(steps=7)


def test_json_of_a_newer_version_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^unknown setting: momentum, nesterov\. Known: steps, .*, tensorboard\.$"):
        TrainConfig.from_json({"nesterov": True, "momentum": 0.9, "steps": 7})


def test_ranges_hold_for_files_too() -> None:
    with pytest.raises(UsageError, match="below 1"):
        TrainConfig.from_json({"steps": 0})


# --- canvas sides ----------------------------------------------------------------------------------------------------


def test_without_a_start_side_it_never_changes() -> None:
    assert {TrainConfig(steps=100).side_at(step, 384) for step in range(101)} == {384}
    assert {TrainConfig(steps=100, image_side=512).side_at(step, 384) for step in range(101)} == {512}


def test_sides_grow_over_the_first_part_of_the_run() -> None:
    config = TrainConfig(steps=1000, image_side=384, start_side=192, grow_until=0.6)
    sides = [config.side_at(step, 640) for step in range(1000)]
    assert sorted(set(sides)) == [192, 224, 256, 288, 320, 352, 384]
    assert sides == sorted(sides)
    assert (sides[0], sides[300], sides[599], sides[600], sides[-1]) == (192, 288, 384, 384, 384)
    # Full size is reached within half a stage of the end of growth, stages in between are equally long.
    assert [sides.index(side) for side in (224, 256, 288, 320, 352, 384)] == pytest.approx(
        [50, 150, 250, 350, 450, 550], abs=1
    )


@pytest.mark.parametrize("start", [384, 640])
def test_a_start_side_beyond_the_full_one_is_ignored(start: int) -> None:
    assert TrainConfig(start_side=start).side_at(0, 384) == 384


@given(st.integers(1, 20), st.integers(33, 900), st.integers(1, 500), st.floats(0, 1))
def test_sides_are_multiples_of_32_that_end_at_the_full_side(start: int, full: int, steps: int, until: float) -> None:
    config = TrainConfig(steps=steps, start_side=start * 32, grow_until=until)
    sides = [config.side_at(step, full) for step in range(steps + 1)]
    assert sides[-1] == full
    assert all(side % 32 == 0 or side == full for side in sides)
    assert all(side <= full for side in sides)
    assert sides == sorted(sides)


# --- imports ---------------------------------------------------------------------------------------------------------


def test_importing_the_configuration_does_not_import_torch() -> None:
    code = "import sys, everymask.recipe; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
