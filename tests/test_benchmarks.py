"""The benchmarks at tiny sizes: that they run and what their rows hold, never how long they take."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import catseg, detr, mask_loss, measure, predict_share, sam2, startup, training
from benchmarks.measure import Row


def check_fields(rows: list[Row]) -> None:
    for row in rows:
        assert row.name
        assert row.unit in ("s", "MiB", "%")
        assert math.isfinite(row.ours)
        assert (row.bar == "") == (row.passed is None)
        assert (row.peer is None) == (row.ratio is None)


def test_rows_know_their_bars() -> None:
    assert Row("twice", 1.0, "s", 2.0, ratio_least=2).passed
    assert not Row("less", 1.0, "s", 1.9, ratio_least=2).passed
    assert Row("share", 71.0, "%", least=70).passed
    assert not Row("late", 0.5, "s", most=0.5).passed
    assert [Row("", 1.0, "s", **{name: 3.0}).bar for name in ("ratio_least", "least", "most")] == [
        ">= 3 x",
        ">= 3 s",
        "< 3 s",
    ]
    check_fields([Row("to read", 1.0, "s"), Row("both", 1.0, "MiB", 3.0, ratio_least=2)])


def test_steps_take_turns() -> None:
    turns: list[str] = []
    seconds = measure.alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=2)
    assert "".join(turns) == "abab" + "ba"
    assert list(seconds) == ["a", "b"]


def fill(mib: int) -> measure.Step:
    """Allocates this much and lets go of it."""
    return lambda: len(b"x" * (mib << 20))


def test_peak_memory_sees_what_a_step_allocates_and_no_more() -> None:
    kept = bytearray(b"x" * (300 << 20))  # A peak of this process, which its child must not take for its own.
    assert 60 <= measure.peak_memory(fill, 1, 64) < 80
    assert len(kept)


def test_mask_loss_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[object] = []

    def in_this_process(prepare: object, small: object, full: object) -> float:
        prepared.append(prepare)
        return 1.0

    # Its own test is above; processes that import all of `transformers` take too long here.
    monkeypatch.setattr(mask_loss, "peak_memory", in_this_process)
    rows = mask_loss.rows(mask_loss.SMALL, rounds=1)
    check_fields(rows)
    assert [row.unit for row in rows] == ["s", "MiB"] * 4
    assert all(row.peer is not None and row.peer > 0 for row in rows)
    assert prepared[0] is mask_loss.ours
    assert prepared[-1] is mask_loss.peer


def test_both_sides_of_the_mask_loss_do_the_same_work() -> None:
    ours, peer = mask_loss.ours(mask_loss.SMALL), mask_loss.peer(mask_loss.SMALL)
    losses = ours(), peer()
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    # Points against all pixels: not the same number, but of the same thing.
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
    assert (ours(), peer()) == losses
    several = dataclasses.replace(mask_loss.SMALL, layers=3)
    losses = mask_loss.ours(several)(), mask_loss.peer(several)()
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_the_truth_of_the_mask_loss_has_no_gaps() -> None:
    truth = mask_loss.make_inputs(mask_loss.SMALL).batch.truth()[0]
    dense = mask_loss.dense_masks(truth)
    assert len(truth) == mask_loss.SMALL.segments
    assert (dense.sum(0) == 1).all()
    assert (dense.sum((1, 2)) > 0).all()


def test_detr_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detr, "peak_memory", lambda prepare, small, full: 1.0)
    rows = detr.rows(detr.SMALL, rounds=1)
    check_fields(rows)
    assert [row.unit for row in rows] == ["s", "MiB", "%", "s", "s", "MiB", "s", "s", "MiB"]
    assert rows[2].ours == 100  # Of the pixels: both networks give the same logits.
    assert all(row.peer is not None and row.peer > 0 for row in rows if row.unit != "%")


def test_both_sides_of_detr_find_segments_and_train() -> None:
    assert detr.ours(detr.SMALL)() >= 1
    assert detr.peer(detr.SMALL)() >= 1
    kept = {name: step() for name, step in detr.after(detr.SMALL).items()}
    assert kept == {"ours": detr.SMALL.kept, "peer": detr.SMALL.kept}
    losses = detr.train_ours(detr.SMALL)(), detr.train_peer(detr.SMALL)()
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_catseg_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        catseg, "peak_memory", lambda prepare, small, full: {catseg.ours: 1.0, catseg.peer: 4.0}[prepare]
    )
    rows = catseg.rows(catseg.SMALL, few=3, rounds=1)
    check_fields(rows)
    assert [row.unit for row in rows] == ["s", "MiB", "s", "s", "%"]
    assert 0 < rows[-1].ours < 100


def test_both_sides_of_catseg_say_the_same() -> None:
    steps = catseg.second_photo(catseg.SMALL)  # Which raises if they do not.
    assert steps["ours"]().shape == steps["peer"]().shape == (5, 32, 32)
    assert catseg.ours(catseg.SMALL)().shape == catseg.peer(catseg.SMALL)().shape


def test_sam2_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam2, "peak_memory", lambda prepare, small, full: float(prepare(small)()))
    rows = sam2.rows(sam2.SMALL, rounds=1)
    check_fields(rows)
    assert [row.bar for row in rows] == [">= 10 x", ">= 2 x", "", ">= 5 x", "", "< 2048 MiB"]


def test_both_sides_of_sam2_answer_the_same() -> None:
    ours, peer = sam2.pair(sam2.SMALL)
    corners, batch = sam2.boxes(3, 64), sam2.photo(64)
    with torch.no_grad():
        found = ours.candidates(ours.encode(batch)[0], sam2.told(corners))
        pixels = ours.normalize(batch.images)
        expected = peer(pixel_values=pixels, input_boxes=corners[None], multimask_output=False).pred_masks
    torch.testing.assert_close(found.pick(found.trusted())[0], expected[0, :, 0], rtol=0, atol=1e-4)


def test_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes are slow to start: they are tested in tests/test_processes.py."""
    monkeypatch.setattr(training, "together", lambda folder, processes, config: 10.0 * processes)
    config = replace(training.CONFIG, steps=6, batch_size=2, image_side=64, log_every=2, workers=0)
    rows = training.rows(config, rounds=1, large=("maskformer", "tiny"))
    check_fields(rows)
    assert [row.unit for row in rows] == ["s", "%", "%", "%"]
    assert rows[-1].ours == 100


def test_predict_share_rows() -> None:
    rows = predict_share.rows(size=(96, 54), small=(32, 32), runs=1)
    check_fields(rows)
    shares = [row.ours for row in rows if row.unit == "%"]
    assert len(shares) == len(predict_share.TASKS)
    assert all(0 < share < 100 for share in shares)
    assert {row.name.strip() for row in rows} >= {"read", "fit", "model", "postprocess"}


def test_startup_rows() -> None:
    rows = startup.rows(processes=1)
    check_fields(rows)
    assert all(row.passed is not None for row in rows)


def test_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [Row("one thing", 1.0, "s", 6.0, ratio_least=5), Row("another", 0.3, "s", most=0.2)]
    monkeypatch.setattr(startup, "rows", lambda: made)
    command.main(["startup", "pack", "--json", str(tmp_path / "out.json"), "--data", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "6.00 x" in printed
    assert "1 of 2 bars met" in printed
    assert "pack: skipped" in printed
    assert max(map(len, printed.splitlines())) <= 80
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["passed"] for row in written["rows"]] == [True, False]
    assert {"python", "packages", "processor", "threads"} <= set(written["machine"])
    assert written["date"]


def test_command_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "mask_loss" in capsys.readouterr().err
