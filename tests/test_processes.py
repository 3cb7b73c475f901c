"""Several processes train as one would that has all their images, and come back after one was killed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from everymask.datasets.loader import Batches
from everymask.errors import TrainingError, UsageError
from everymask.processes import Processes
from everymask.recipe import TrainConfig
from everymask.report import read_log
from tests.scenes import write_dataset
from tests.spoil import PLACES

SCRIPT = Path(__file__).with_name("together.py")
TWO = ["--standalone", "--nproc-per-node", "2"]
SYSTEMS = ["maskformer", "detr"]
# Without it restarted processes may wait for a store that went with the first ones.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(SCRIPT.parents[1]),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 scenes to train on and 3 for validation, which do not divide by 2."""
    return write_dataset(tmp_path_factory.mktemp("scenes"), train=8, val=3)


def start(arguments: list[str], *given: object) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments, str(SCRIPT), *map(str, given)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    return text


def torchrun(*given: object, restarts: int = 0) -> str:
    """Run the script in two processes."""
    return finish(start(["-m", "torch.distributed.run", *TWO, "--max-restarts", str(restarts)], *given))


def outcome(out: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"rank{rank}.json").read_text())
    return found


def losses(out: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in read_log(out) if row["kind"] == "train"])


# ---- as one ----


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_train_as_one_does(system: str, scenes: Path, tmp_path: Path) -> None:
    """20 steps of 2 x 2 images and of 4: losses and weights agree, in double precision, to rounding."""
    precise = ["precision=64-true", "targets=instance"]
    alone = start([], system, scenes, tmp_path / "one", "batch_size=4", *precise)
    torchrun(system, scenes, tmp_path / "two", "batch_size=2", *precise)
    finish(alone)
    assert len(losses(tmp_path / "two")) == 20
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5, atol=0)
    one, two = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-7)
    check_scores(tmp_path / "two")


def check_scores(out: Path) -> None:
    """Both processes have the same scores, and they are those of one process, to the bit."""
    first, second = (outcome(out, rank) for rank in (0, 1))
    for found in (first, second):
        assert json.dumps(found["together"]) == json.dumps(first["alone"])
    assert first["together"]["semantic"]["images"] == 3
    assert [row["kind"] for row in read_log(out)].count("validation") == 2


def test_weights_that_are_spread_train_the_same_and_load_whole(scenes: Path, tmp_path: Path) -> None:
    """FSDP2 on two processes is DDP to rounding; what it saved half-way, one process goes on with."""
    given = ("maskformer", scenes)
    alone = start([], *given, tmp_path / "one", "batch_size=4", "targets=instance")
    torchrun(*given, tmp_path / "two", "batch_size=2", "targets=instance", "strategy=fsdp")
    finish(alone)
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4, atol=0)
    check_scores(tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "00000020")
    finish(start([], *given, tmp_path / "two", "batch_size=4", "targets=instance"))
    assert [row["step"] for row in read_log(tmp_path / "two") if row["kind"] == "train"] == list(range(1, 21))
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_two_machines_of_one_process_each(scenes: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    given = ("maskformer", scenes, tmp_path / "two")
    nodes = [start(["-m", "torch.distributed.run", *meeting, "--node-rank", str(n)], *given) for n in (0, 1)]
    for node in nodes:
        finish(node)
    torchrun("maskformer", scenes, tmp_path / "one")
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


def weights(out: Path) -> bytes:
    return (out / "last" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_process_comes_back_and_changes_nothing(scenes: Path, tmp_path: Path) -> None:
    torchrun("maskformer", scenes, tmp_path / "whole")
    torchrun("maskformer", scenes, tmp_path / "killed", "kill=13", restarts=2)
    assert (tmp_path / "killed" / "killed").exists()
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert losses(tmp_path / "killed").tolist() == losses(tmp_path / "whole").tolist()


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_killed_processes_come_back_ten_times(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two killed before another step each time: ten of ten end with the weights of an uninterrupted run."""
    torchrun("maskformer", scenes, tmp_path / "whole")
    seconds = []
    for trial, step in enumerate(range(1, 20, 2)):
        out = tmp_path / str(trial)
        torchrun("maskformer", scenes, out, f"kill={step}", restarts=2)
        assert weights(out) == weights(tmp_path / "whole"), f"killed before step {step + 1}"
        seconds.append((out / "back").stat().st_mtime - (out / "killed").stat().st_mtime)
    with capsys.disabled():
        print(f"\nrank kill: 10 of 10 back, bit-equal; seconds until the next step: {[round(s, 1) for s in seconds]}")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_is_not_finite_stops_all_processes_before_the_step(
    place: str, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(["-m", "torch.distributed.run", *TWO], "maskformer", scenes, out, f"spoil={place}")
    text, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "not finite" in text or "finite costs" in text
    noted = out / ("failure.json" if place == "gradient" else "failure.1.json")  # Gradients are those of all.
    assert "images scene" in json.loads(noted.read_text())["why"]
    for rank in (0, 1):
        before, after = json.loads((out / f"spoilt{rank}.json").read_text())
        assert before == after, f"weights of rank {rank} moved"
    assert not (out / "last").exists()


# ---- parts ----


def test_every_step_is_split_into_parts() -> None:
    """Side by side, the parts are what one process with the sum of the batch sizes sees."""
    config = TrainConfig(steps=5, batch_size=6, accumulate=2)
    whole = list(Batches(10, config, 64, first=1))
    small = TrainConfig(steps=5, batch_size=2, accumulate=2)
    parts = [list(Batches(10, small, 64, 1, Processes(rank, 3))) for rank in range(3)]
    assert [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)] == whole


def test_what_torchrun_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Processes.of_environment()
    assert (alone.rank, alone.count, alone.local, alone.nodes, alone.is_first) == (0, 1, 1, 1, True)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    one = Processes.of_environment()
    assert (one.rank, one.count, one.local, one.nodes, one.is_first) == (5, 8, 4, 2, False)


def test_alone_nothing_is_exchanged() -> None:
    alone = Processes()
    assert (alone.by_first(lambda: 7), alone.gathered("a"), alone.agree(True), alone.agree(False)) == (
        *(7, ["a"]),
        *(True, False),
    )
    with pytest.raises(UsageError, match="refused"), alone.watched():
        alone.by_first(refuse)


def refuse() -> None:
    raise UsageError("refused")


@pytest.mark.parametrize("text", ["[gloo/transport] Connection closed by peer", "NCCL error: remote process exited"])
def test_another_process_that_ended_is_named(text: str) -> None:
    one = Processes(rank=1, count=2)
    with pytest.raises(TrainingError, match=r"another process of this run has ended: rank 1 .*check"), one.watched():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shape"), one.watched():
        raise RuntimeError("mat1 and mat2 have another shape")
