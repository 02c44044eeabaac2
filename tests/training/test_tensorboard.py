"""TensorBoard's files: every number once, also where a run was stopped and went on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from smallview.errors import UsageError
from smallview.training.tensorboard import TensorBoardLog


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(name)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_a_run_killed_before_its_first_checkpoint_leaves_no_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for attempt in (1.0, 2.0):
        # files are told apart by the second in which they were opened
        monkeypatch.setattr(time, "time", lambda attempt=attempt: now + attempt)
        log = TensorBoardLog(tmp_path)
        log.begin({}, 0)
        for step in (10, 20):
            log.write({"step": step, "loss": attempt})  # and the first one never comes to its end
    log.end({})
    assert points(tmp_path, "loss") == [(10, 2.0), (20, 2.0)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_every_number_of_a_record_is_a_point_and_none_is_there_twice(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.begin({"batch_size": 4}, 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0 / step, "images": 4 * step, "verdict": "healthy", "nothing": None, "live": True})
    log.end({})
    again = TensorBoardLog(tmp_path)
    again.begin({}, 20)  # stopped after 30, and the checkpoint was one of 20
    for step in (30, 40):
        again.write({"step": step, "loss": 2.0 / step})
    again.end({})
    steps, values = zip(*points(tmp_path, "loss"), strict=True)
    assert steps == (10, 20, 30, 40) and values == pytest.approx((0.1, 0.05, 2 / 30, 0.05), rel=1e-6)
    assert points(tmp_path, "images") == [(10, 40.0), (20, 80.0)]


def test_without_the_package_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install smallview\[tensorboard\]"):
        TensorBoardLog(tmp_path)
