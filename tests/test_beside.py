"""What is done beside the steps changes no bit of the run: the watch, labels, loggers, saves; and each is told and counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import smallview as sv
from smallview import beside
from smallview.errors import DataError, DivergedError, StoppedError

pytestmark = pytest.mark.usefixtures("apart")
StopAfter = Callable[[pytest.MonkeyPatch, int], None]


def pictures(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of two classes that differ in their colour."""
    source = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = source.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    images[labels == 1, ..., 0] += 120
    return images, labels


def tiny(**more: Any) -> dict[str, Any]:
    return {"encoder": "dense_small:16-32-64", "batch_size": 16, "threads": 1, "quiet": True, "epochs": 30, **more}


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def _newest(folder: Path) -> Path:
    return folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip() / "state.json"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 120 steps beside which nothing extra is done."""
    return sv.pretrain(pictures(), out=tmp_path_factory.mktemp("plain") / "run", **tiny()).path


class Kept:
    def __init__(self) -> None:
        self.begun: list[tuple[Mapping[str, Any], int]] = []
        self.records: list[Mapping[str, Any]] = []
        self.ended: list[Mapping[str, Any]] = []

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        self.begun.append((settings, step))

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def end(self, summary: Mapping[str, Any]) -> None:
        self.ended.append(summary)


class Failing(Kept):
    def write(self, record: Mapping[str, Any]) -> None:
        super().write(record)
        raise OSError("the server is gone")


def test_the_record_of_a_run_tells_figures_and_a_verdict(plain: Path) -> None:
    rows = {record["step"]: record for record in records(plain)}
    assert set(rows) == {*range(10, 121, 10), 25, 75}
    for step in (25, 50, 75, 100, 120):
        seen = {name for name in rows[step] if name.startswith("watch/")}
        assert {
            "watch/feature_rank",
            "watch/embedding_spread",
            "watch/alignment",
            "watch/uniformity",
            "watch/retrieval",
        } <= seen
    assert [step for step, row in rows.items() if "verdict" in row] == [100, 120]
    assert all(row["gradient"] > 0 and row["peak_memory_mib"] > 0 for row in rows.values())
    assert rows[120]["images"] == 120 * 16
    # forward and backward of two views, two operations for each multiplication
    summary = json.loads((plain / "summary.json").read_text())["cost"]
    least = 120 * 16 * 2 * 6 * summary["forward_mmacs"] * 1e6
    assert least < rows[120]["flops"] < 1.3 * least and rows[60]["flops"] == pytest.approx(rows[120]["flops"] / 2, rel=1e-3)
    assert set(summary["shares"]) >= {"watch", "save", "log"} and sum(summary["shares"].values()) == pytest.approx(1, abs=0.05)
    assert summary["flops"] == rows[120]["flops"] and summary["verdict"] == rows[120]["verdict"]


@pytest.mark.parametrize("more", [{"watch_every": 7}, {"online": "labels"}, {"online": "set"}, {"save_every": 1e-9}], ids=str)
def test_nothing_beside_the_steps_changes_the_run(
    more: dict[str, Any], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if more.get("online") == "set":
        images, labels = pictures(40)
        np.savez(tmp_path / "set.npz", images=images, labels=labels)
        more = {"online": str(tmp_path / "set.npz")}
    if "online" in more:  # 0.6 s in all, so that it is seen whether they count as training
        real = beside.online_of

        def slow(*given: Any) -> SimpleNamespace:
            judge = real(*given)
            return SimpleNamespace(step=lambda *step, **last: (time.sleep(0.005), judge.step(*step, **last))[1])

        monkeypatch.setattr(beside, "online_of", slow)
    run = sv.pretrain(pictures(), out=tmp_path / "run", **tiny(**more))
    assert weights(run.path) == weights(plain)
    theirs, mine = records(plain), {record["step"]: record for record in records(run.path)}
    assert all(mine[row["step"]]["loss"] == row["loss"] for row in theirs if row["step"] in mine)
    judged = [row for row in mine.values() if "online/ridge" in row]
    if "online" in more:
        assert [row["step"] for row in judged] == [100, 120]
        assert all(row["online/ridge"] >= 50 and row["online/pictures"] >= 12 for row in judged)
        cost = json.loads((run.path / "summary.json").read_text())["cost"]
        # what the run took, evaluation left out; the last save comes after the last record
        whole = sum(json.loads(_newest(run.path).read_text())["ledger"].values())
        assert mine[120]["seconds"] <= cost["train_seconds"] + 0.1 and mine[120]["seconds"] < whole - 0.3
    else:
        assert not judged


def test_labels_that_are_not_there_are_told_before_the_first_step(tmp_path: Path) -> None:
    for online, words in (("labels", "has none"), (str(tmp_path), "no pictures in")):
        with pytest.raises(DataError, match=words):
            sv.pretrain(pictures()[0], out=tmp_path / "run", **tiny(online=online))


def test_loggers_hear_of_everything_and_one_that_fails_stops_nothing(
    plain: Path, tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, failing = Kept(), Failing()
    with monkeypatch.context() as patch:
        stop_after(patch, 50)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=tmp_path / "run", loggers=[failing, kept], **tiny())
    assert [step for _, step in kept.begun] == [0] and kept.begun[0][0]["batch_size"] == 16
    assert [record["step"] for record in kept.records] == [10, 20, 25, 30, 40, 50] and len(failing.records) == 1
    assert "the server is gone" in capsys.readouterr().err
    run = sv.pretrain(pictures(), out=tmp_path / "run", loggers=[kept], **tiny())
    assert [step for _, step in kept.begun] == [0, 50] and kept.records[6]["step"] == 60
    assert kept.ended[-1]["flops"] > kept.ended[0]["flops"] and weights(run.path) == weights(plain)


class Constant(nn.Module):
    """An encoder that sees nothing after some passes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.after = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()), 110
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
        seen: torch.Tensor = self.body(images).mean((2, 3))
        return seen if int(self.calls) < self.after else 0.0 * seen + 1.0


def test_a_collapse_is_told_and_ends_the_run_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sv.pretrain(pictures(), out=tmp_path / "goes on", **tiny(encoder=Constant(), epochs=50))
    assert [row["verdict"] for row in records(run.path) if "verdict" in row][-1] == "collapsed"
    assert capsys.readouterr().err.count("collapsed") == 1
    with pytest.raises(DivergedError, match=r"collapsed.*stopped at step 1[0-9]+ of 200 and saved") as ended:
        sv.pretrain(pictures(), out=tmp_path / "stops", **tiny(encoder=Constant(), epochs=50, stop_on_collapse=True))
    assert ended.value.exit_code == 5
    assert (tmp_path / "stops" / "checkpoints" / "latest").exists() and not (tmp_path / "stops" / "encoder").exists()


def test_the_third_failed_save_in_a_row_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise sv.SmallviewError("cannot save step: 12 MB free, 45 MB needed; training goes on with no checkpoint yet")

    monkeypatch.setattr(beside.checkpoint, "save", full)
    with pytest.raises(sv.SmallviewError, match="45 MB needed; the third failure in a row, and training stops"):
        sv.pretrain(pictures(), out=tmp_path / "run", **tiny(save_every=1e-9))
    assert records(tmp_path / "run") == []


def test_clocks_and_verdicts_go_on_after_a_stop(tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sv.pretrain(pictures(), out=tmp_path / "whole", **tiny(epochs=50))
    with monkeypatch.context() as patch:
        stop_after(patch, 130)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=tmp_path / "parts", **tiny(epochs=50))
    before = records(tmp_path / "parts")[-1]["seconds"]
    parts = sv.pretrain(pictures(), out=tmp_path / "parts", **tiny(epochs=50))
    told = [(row["step"], row.get("verdict"), row.get("watch/feature_rank")) for row in records(parts.path)]
    assert told == [(row["step"], row.get("verdict"), row.get("watch/feature_rank")) for row in records(whole.path)]
    assert all(row["seconds"] > before for row in records(parts.path) if row["step"] > 130)
    remembered = [json.loads(_newest(run.path).read_text())["watch"] for run in (parts, whole)]
    for watch in remembered:
        watch["steps"] = [values[:2] for values in watch["steps"]]  # the loss and the gradient; the others are seconds
    assert remembered[0] == remembered[1] and len(remembered[0]["steps"]) == 150
