"""`--devices N`: one command, several processes, which start, stop, die and start again as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from smallview.training import supervise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8))
    return tmp_path


def command(desk: Path, out: str, devices: int, epochs: int = 6, *more: str) -> list[str]:
    text = f"pretrain array.npy --size 16 --batch-size 16 --epochs {epochs} --threads 1 --save-every 0.2 --out {out} --devices {devices}"
    return [sys.executable, "-m", "smallview", *text.split(), *more]


def environment(desk: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SMALLVIEW_CACHE": str(desk / "cache")}


def start(desk: Path, tokens: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(tokens, cwd=desk, env=environment(desk), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(desk: Path, tokens: list[str]) -> tuple[int, str, str]:
    process = start(desk, tokens)
    out, said = process.communicate(timeout=100)
    return process.returncode, out, said


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


def wait_until(true: object, process: subprocess.Popen[str]) -> None:
    assert callable(true)
    end = time.monotonic() + 60
    while not true():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def going(desk: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A long run of two processes that has saved a checkpoint, and the ids of the two."""
    process = start(desk, command(desk, "run", 2, 400))
    wait_until((desk / "run" / "checkpoints" / "latest").exists, process)
    yield process, children(process.pid)
    process.kill()
    process.communicate()


def test_two_processes_and_one_that_dies_end_with_the_same_bytes(desk: Path) -> None:
    """All that is checked on one pair of runs, because each start takes seconds."""
    code, out, said = run(desk, command(desk, "whole", 2))
    assert (code, out) == (0, "whole\n"), said
    assert said.count("finished: 24 steps") == 1 and "Traceback" not in said and "Warning" not in said
    summary = json.loads((desk / "whole" / "summary.json").read_text())
    assert summary["cost"]["processes"] == 2

    process = start(desk, command(desk, "hurt", 2))
    wait_until((desk / "hurt" / "checkpoints" / "latest").exists, process)
    victims = children(process.pid)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    out, said = process.communicate(timeout=100)
    assert process.returncode == 0 and "Traceback" not in said, said
    if "finished" not in said.split("died")[0]:  # else it was done before the signal came
        assert "process 1 died (signal 9); all start again from the last checkpoint (restart 1 of 3)" in said
        assert "resuming at step" in said
    assert weights(desk / "hurt") == weights(desk / "whole")
    assert losses(desk / "hurt") == losses(desk / "whole")


def test_sigterm_stops_all_and_one_process_goes_on(desk: Path, going: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = going
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "Traceback" not in said
    assert said.count("go on with: smallview pretrain array.npy") == 1 and "--devices 2" in said
    assert alive(pids) == []
    stopped = int((desk / "run" / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    alone = start(desk, command(desk, "run", 1, 400))
    assert alone.stderr is not None
    told: list[str] = []
    for line in alone.stderr:
        told.append(line)
        if "resuming" in line:
            break
    alone.send_signal(signal.SIGTERM)
    told.append(alone.communicate(timeout=60)[1])
    assert f"resuming at step {stopped:,} of 1,600" in "".join(told)
    assert "2 -> 1 processes: the same batches in the same order; rounding may differ" in "".join(told)


def test_a_killed_supervisor_leaves_no_process_behind(going: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = going
    process.kill()
    end = time.monotonic() + 20
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert alive(pids) == []


def test_a_wish_that_cannot_be_met_is_told_once(desk: Path) -> None:
    for given, words in (
        (
            "--batch-size 15 --devices 2",
            "batch_size is 15 for 2 processes; wanted a number of pictures that divides evenly: --batch-size 14",
        ),
        ("--encoder resnet81 --devices 2", 'no encoder is called "resnet81"'),
        ("--devices 0", "--devices is 0; wanted 1 to 64"),
        ("--fresh --devices 2", "--devices goes without --fresh"),
    ):
        tokens = [sys.executable, "-m", "smallview", "pretrain", "array.npy", "--out", "no", *given.split()]
        code, _, said = run(desk, tokens)
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


def test_stages_are_trained_by_several_processes_as_by_one(desk: Path) -> None:
    flags = ("--stages", "8x1,16x1", "--method", "moco_v2", "--subset", "75%", "--set", "dtype=float32")
    for out, devices in (("one", 1), ("two", 2)):
        tokens = command(desk, out, devices)
        kept = [token for i, token in enumerate(tokens) if "--epochs" not in tokens[max(0, i - 1) : i + 1]]
        code, _, said = run(desk, [*kept, *flags])
        assert code == 0, said
        assert "finished: 2 stages" in said
    for (step, one), (other, two) in zip(losses(desk / "one"), losses(desk / "two"), strict=True):
        assert step == other and abs(one - two) < 1e-3
    chosen = [json.loads((desk / out / "stages" / "2-16px" / "subset.json").read_text()) for out in ("one", "two")]
    assert chosen[0] == chosen[1] and len(chosen[0]["positions"]) == 48
