"""`--devices N`: one command, several processes, which start, stop, die and start again as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kill_server import Server

from smallview.training import supervise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8))
    return tmp_path


def command(desk: Path, out: str, devices: int, epochs: int = 6, *more: str) -> list[str]:
    text = f"--encoder dense_small:8-16 --size 16 --batch-size 16 --epochs {epochs} --threads 1 --save-every 0.2 --devices {devices}"
    return ["pretrain", str(desk / "array.npy"), "--out", str(desk / out), *text.split(), *more]


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def losses(folder: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records]


def children(pid: int) -> list[int]:
    """The processes that a supervisor has started, in the order of their ranks."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return sorted(int(line) for line in found.split())


def alive(pids: list[int]) -> list[int]:
    def lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if lives(pid)]


def wait_until(true: Callable[[], bool], server: Server) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, server.said.read_text()
        time.sleep(0.02)


@pytest.fixture
def going(desk: Path, server: Server) -> Iterator[tuple[int, list[int]]]:
    """A long run of two processes that has saved a checkpoint, and the ids of the two."""
    process = server.start(command(desk, "run", 2, 400))
    wait_until((desk / "run" / "checkpoints" / "latest").exists, server)
    yield process, children(process)
    server.clear()


def test_two_processes_and_one_that_dies_end_with_the_same_bytes(desk: Path, server: Server) -> None:
    """The run that nobody hurts is started from nothing, as a user's; what is true of the others' starts is seen by the same bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "smallview", *command(desk, "whole", 2)],
        cwd=desk,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{desk / 'whole'}\n"), done.stderr
    assert done.stderr.count("finished: 24 steps") == 1 and "Traceback" not in done.stderr and "Warning" not in done.stderr
    summary = json.loads((desk / "whole" / "summary.json").read_text())
    assert summary["cost"]["processes"] == 2

    process = server.start(command(desk, "hurt", 2))
    wait_until((desk / "hurt" / "checkpoints" / "latest").exists, server)
    victims = children(process)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    code, said = server.end()
    assert code == 0 and "Traceback" not in said, said
    if "finished" not in said.split("died")[0]:  # else it was done before the signal came
        assert "process 1 died (signal 9); all start again from the last checkpoint (restart 1 of 3)" in said
        assert "resuming at step" in said
    assert weights(desk / "hurt") == weights(desk / "whole")
    assert losses(desk / "hurt") == losses(desk / "whole")


def test_sigterm_stops_all_and_one_process_goes_on(desk: Path, server: Server, going: tuple[int, list[int]]) -> None:
    process, pids = going
    os.kill(process, signal.SIGTERM)
    code, said = server.end()
    assert code == 75, said
    assert "Traceback" not in said
    assert said.count(f"go on with: smallview pretrain {desk / 'array.npy'}") == 1 and "--devices 2" in said
    assert alive(pids) == []
    stopped = int((desk / "run" / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    alone = server.start(command(desk, "run", 1, 400))
    wait_until(lambda: "resuming" in server.said.read_text(), server)
    os.kill(alone, signal.SIGTERM)
    _, told = server.end()
    assert f"resuming at step {stopped:,} of 1,600" in told
    assert "2 -> 1 processes: the same batches in the same order; rounding may differ" in told


def test_a_killed_supervisor_leaves_no_process_behind(server: Server, going: tuple[int, list[int]]) -> None:
    _, pids = going
    assert len(pids) == 2 == len(alive(pids))
    server.clear()
    end = time.monotonic() + 20
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert alive(pids) == []


def test_a_wish_that_cannot_be_met_is_told_once(desk: Path, server: Server) -> None:
    for given, words in (
        (
            "--batch-size 15 --devices 2",
            "batch_size is 15 for 2 processes; wanted a number of pictures that divides evenly: --batch-size 14",
        ),
        ("--encoder resnet81 --devices 2", 'no encoder is called "resnet81"'),
        ("--devices 0", "--devices is 0; wanted 1 to 64"),
        ("--fresh --devices 2", "--devices goes without --fresh"),
    ):
        code, said = server.run(["pretrain", str(desk / "array.npy"), "--out", str(desk / "no"), *given.split()])
        assert code == 2 and said.count(words) == 1, said
        assert "Traceback" not in said and len(said.splitlines()) == 1, said
    assert not (desk / "no").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_process_is_there_stops_it_too(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = supervise._free_port, []
    monkeypatch.setattr(supervise, "_free_port", lambda: (os.kill(os.getpid(), number), real())[1])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = signal.getsignal(number)
    assert supervise.supervise(["methods"], 1, said.append) == 75
    assert "before any process had begun" in said[0] and signal.getsignal(number) == before


def test_stages_are_trained_by_several_processes_as_by_one(desk: Path, server: Server) -> None:
    flags = ("--stages", "8x1,16x1", "--method", "moco_v2", "--subset", "75%", "--set", "dtype=float32")
    for out, devices in (("one", 1), ("two", 2)):
        tokens = command(desk, out, devices)
        kept = [token for i, token in enumerate(tokens) if "--epochs" not in tokens[max(0, i - 1) : i + 1]]
        code, said = server.run([*kept, *flags])
        assert code == 0, said
        assert "finished: 2 stages" in said
    for (step, one), (other, two) in zip(losses(desk / "one"), losses(desk / "two"), strict=True):
        assert step == other and abs(one - two) < 1e-3
    chosen = [json.loads((desk / out / "stages" / "2-16px" / "subset.json").read_text()) for out in ("one", "two")]
    assert chosen[0] == chosen[1] and len(chosen[0]["positions"]) == 48
