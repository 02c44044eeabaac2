"""A clock that jumps, back or on, changes nothing but the times of day that are told."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smallview as sv
from smallview.data import pack_folders
from smallview.errors import StoppedError
from smallview.training.launch import lock_folder

pytestmark = pytest.mark.usefixtures("apart")
HOUR, DAY = 3600.0, 86400.0
StopAfter = Callable[[pytest.MonkeyPatch, int], None]


def jump(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Lets every reading of the time of day be off by another of these."""
    real, real_ns, off = time.time, time.time_ns, itertools.cycle(seconds)
    monkeypatch.setattr(time, "time", lambda: real() + next(off))
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(next(off) * 1e9))


def train(out: Path, **more: Any) -> sv.Run:
    pictures = np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8)
    settings = {
        "encoder": "dense_small:8-16",
        "batch_size": 16,
        "threads": 1,
        "epochs": 3,
        "save_every": 1e-9,
        "quiet": True,
        **more,
    }
    return sv.pretrain(pictures, out=out, **settings)


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def test_a_run_has_sane_times_and_the_same_bytes(
    tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(StoppedError):
            train(tmp_path / "run")
    with monkeypatch.context() as patch:
        jump(patch, 0.0, -HOUR, DAY, -400 * DAY)
        run = train(tmp_path / "run")
    spent = time.monotonic() - begun
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds) and seconds[0] > 0.0 and seconds[-1] <= spent
    assert all(record["images_per_second"] > 0.0 and 0.0 <= record["waiting"] <= 1.0 for record in records)
    cost = json.loads((run.path / "summary.json").read_text())["cost"]
    assert 0.0 <= cost["train_seconds"] <= spent + 0.1 and all(0.0 <= share <= 1.0 for share in cost["shares"].values())
    assert weights(run.path) == weights(train(tmp_path / "whole").path)


def test_minutes_are_measured_by_a_clock_that_does_not_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jump(monkeypatch, 0.0, DAY, -DAY)
    pictures = np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8)
    run = sv.pretrain(
        pictures, out=tmp_path / "run", encoder="dense_small:8-16", batch_size=16, threads=1, minutes=0.005, quiet=True
    )
    assert 1 <= json.loads((run.path / "summary.json").read_text())["cost"]["steps"] < 10_000


def test_what_a_living_process_builds_stays_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building = tmp_path / ".building-x"
    building.mkdir()
    (building / "lock").write_bytes(b"")
    held = pack_folders.try_lock(building)
    assert held is not None
    with held:
        for seconds in (-HOUR, DAY, 400 * DAY):
            with monkeypatch.context() as patch:
                jump(patch, seconds)
                pack_folders._remove_dead(building)
            assert (building / "lock").exists()
    pack_folders._remove_dead(building)  # with its holder gone
    assert not building.exists()


@pytest.mark.parametrize("seconds", [-HOUR, DAY])
def test_who_holds_a_folder_is_told_by_any_clock(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"):
        jump(monkeypatch, seconds)
        with (
            pytest.raises(sv.SmallviewError, match=f"in use by pid {os.getpid()} on host"),
            lock_folder(tmp_path / "run", wait_s=0.3),
        ):
            pass


def test_time_zones_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[bytes] = []
    for zone in ("UTC", "Pacific/Kiritimati"):
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            came.append(weights(train(tmp_path / str(len(came)), epochs=1).path))
    time.tzset()
    assert came[0] == came[1]
