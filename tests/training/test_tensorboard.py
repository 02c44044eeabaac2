"""TensorBoard's files: every number once, also where a run was stopped and went on."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from smallview.errors import UsageError
from smallview.training.log import Guarded
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
    with pytest.raises(KeyError):
        points(tmp_path, "live")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
@pytest.mark.timeout(20)
def test_a_full_disk_costs_the_log_and_does_not_hold_up_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # its thread dies of it
    before = threading.enumerate()
    said: list[str] = []
    others = Guarded([TensorBoardLog(tmp_path)], said.append)
    others.begin({}, 0)
    others.write({"step": 10, "loss": 1.0})
    monkeypatch.setattr(RecordWriter, "write", full)
    for step in range(20, 60, 10):
        others.write({"step": step, **{f"loss/{i}": 1.0 for i in range(30)}})  # more than its queue holds
    others.end({})
    for thread in set(threading.enumerate()) - set(before):
        thread.join()
    assert said == ["TensorBoardLog is left out from here on: OSError: [Errno 28] No space left on device"]


def test_without_the_package_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install smallview\[tensorboard\]"):
        TensorBoardLog(tmp_path)
