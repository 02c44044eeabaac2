"""Three ways to start from something other than one's own last checkpoint: anew, from a checkpoint of another run, from weights alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import smallview as sv
from smallview.errors import SmallviewError, StoppedError, UsageError
from smallview.joint_embedding import Term
from smallview.records import Embeddings
from smallview.settings import load_toml

pytestmark = pytest.mark.usefixtures("apart")
StopAfter = Callable[[pytest.MonkeyPatch, int], None]


def pictures(n: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 16, 16, 3), dtype=np.uint8)


def tiny(**more: Any) -> dict[str, Any]:
    return {
        "encoder": "dense_small:8-16-32",
        "batch_size": 16,
        "threads": 1,
        "quiet": True,
        "epochs": 2,
        "save_every": 1e-9,
        **more,
    }


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def half(tmp_path: Path, stop_after: StopAfter) -> Path:
    """A byol run that was stopped at step 5 of 8, with checkpoints of steps 4 and 5."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), "byol", out=tmp_path / "half", **tiny())
    return tmp_path / "half"


def test_resume_from_another_run_ends_where_that_run_would_have(half: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file() and path.name != ".lock"}
    for place in (half, half / "checkpoints" / "step-000004"):
        # its settings are taken over where none are given
        other = sv.pretrain(pictures(), out=tmp_path / f"from-{place.name}", resume_from=place, quiet=True)
        recorded = load_toml(other.path / "run.toml")["recorded"]
        assert recorded["resumed_from"] == f"step {4 if place != half else 5} of {half}"
        assert steps_logged(other.path) == [8]
    assert {path: path.read_bytes() for path in before} == before
    whole = sv.pretrain(pictures(), "byol", out=half, **tiny())
    assert weights(tmp_path / "from-half") == weights(tmp_path / "from-step-000004") == weights(whole.path)


def test_a_run_resumed_from_another_one_goes_on_with_its_own_checkpoints(
    half: Path, tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "other"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=out, resume_from=half / "checkpoints" / "step-000004", quiet=True)
    (half / "checkpoints" / "step-000004").rename(half / "gone")
    capsys.readouterr()
    run = sv.pretrain(pictures(), out=out, resume_from=half, quiet=False)
    assert "resuming at step 5 of 8" in capsys.readouterr().err
    whole = sv.pretrain(pictures(), "byol", out=half, **tiny())
    assert weights(run.path) == weights(whole.path)


def test_what_resume_from_refuses(half: Path, tmp_path: Path) -> None:
    def refused(words: str, kind: type[SmallviewError] = UsageError, **given: Any) -> None:
        out = tmp_path / "no"
        with pytest.raises(kind, match=words):
            sv.pretrain(given.pop("data", pictures()), **{"out": out, "quiet": True, **given})
        assert not out.exists()

    refused("there is no run in", resume_from=tmp_path / "nothing")
    refused("there is no run in", resume_from=half / "checkpoints")
    refused("wanted --out DIR, a new one", resume_from=half, out=None)
    refused("epochs: 2.0 -> 3.0", resume_from=half, epochs=3)
    refused("optimizer.lr", resume_from=half, sets={"optimizer.lr": 0.5})
    refused("the pictures changed since", SmallviewError, resume_from=half, data=pictures()[::-1].copy())
    refused("step 7", SmallviewError, resume_from=half / "checkpoints" / "step-000007")


def test_weights_from_takes_the_encoder_and_nothing_else(tmp_path: Path) -> None:
    first = sv.pretrain(pictures(), "byol", out=tmp_path / "first", **tiny())
    run = sv.pretrain(
        pictures(), "simclr", out=tmp_path / "warm", **tiny(weights_from=str(first.path), sets={"optimizer.lr": 1e-9})
    )
    cold = sv.pretrain(pictures(), "simclr", out=tmp_path / "cold", **tiny(sets={"optimizer.lr": 1e-9}))
    old, new, fresh = (dict(of.encoder.named_parameters()) for of in (first, run, cold))
    assert all(torch.allclose(old[name], new[name], atol=1e-5) for name in old)
    assert not all(torch.allclose(fresh[name], new[name], atol=1e-3) for name in old)
    tables = load_toml(run.path / "run.toml")
    assert tables["weights_from"] == str(first.path) and len(tables["recorded"]["weights_sha256"]) == 64
    assert load_toml(run.path / "run.toml")["steps"] == 8 and steps_logged(run.path)[-1] == 8
    # an encoder folder too, and the same bits
    again = sv.pretrain(
        pictures(),
        "simclr",
        out=tmp_path / "again",
        **tiny(weights_from=str(first.path / "encoder"), sets={"optimizer.lr": 1e-9}),
    )
    assert weights(again.path) == weights(run.path)


def test_weights_from_a_file_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sv.pretrain(pictures(), out=tmp_path / "first", **tiny(epochs=1))
    state = {f"module.encoder_q.{name}": value for name, value in sv.load(first.path).state_dict().items()}
    torch.save({"state_dict": state | {"module.queue": torch.ones(3, 3)}}, tmp_path / "peer.pth")
    still = {"sets": {"optimizer.lr": 1e-9}, "epochs": 1}
    folder = sv.pretrain(pictures(), out=tmp_path / "folder", **tiny(weights_from=str(first.path), **still))
    capsys.readouterr()
    told = tiny(weights_from=str(tmp_path / "peer.pth"), **still) | {"quiet": False}
    file = sv.pretrain(pictures(), out=tmp_path / "file", **told)
    said = capsys.readouterr().err
    assert "15 of 15 tensors of the encoder" in said and "1 others in the file are not used (state_dict.module.queue)" in said
    assert weights(file.path) == weights(folder.path)
    recorded = [load_toml(run.path / "run.toml")["recorded"] for run in (file, folder)]
    assert (
        recorded[0]["weights_sha256"] == recorded[1]["weights_sha256"] and recorded[0]["weights_covered"] == "15 of 15 tensors"
    )
    # a part only where that is said; stages take it in their first
    few = dict(list(state.items())[: len(state) // 2])
    torch.save(few, tmp_path / "few.pth")
    with pytest.raises(
        UsageError, match=r"weights_from: .*few.pth: \d+ of 15 tensors .*missing: .*--weights-coverage 0.\d+ takes it"
    ):
        sv.pretrain(pictures(), out=tmp_path / "no", **tiny(weights_from=str(tmp_path / "few.pth")))
    assert not (tmp_path / "no").exists()
    part = {"weights_from": str(tmp_path / "few.pth"), "weights_coverage": 0.4, "stages": "8x1,16x1"}
    run = sv.pretrain(pictures(), out=tmp_path / "part", **{**tiny(**part), "epochs": None})
    assert load_toml(run.path / "stages" / "1-8px" / "run.toml")["recorded"]["weights_covered"].endswith("of 15 tensors")
    with pytest.raises(UsageError, match="weights_coverage"):
        sv.pretrain(pictures(), out=tmp_path / "no", **tiny(weights_coverage=0.0))


def test_weights_that_changed_meanwhile_are_refused(
    tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sv.pretrain(pictures(), out=tmp_path / "first", **tiny(epochs=1))
    other = sv.pretrain(pictures(), out=tmp_path / "other", **tiny(epochs=1, seed=1))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=tmp_path / "run", **tiny(weights_from=str(first.path)))
    with pytest.raises(UsageError, match="weights_from"):
        sv.pretrain(pictures(), out=tmp_path / "run", **tiny())
    (first.path / "encoder" / "model.safetensors").write_bytes(weights(other.path))
    with pytest.raises(SmallviewError, match="are others than those that the run began with"):
        sv.pretrain(pictures(), out=tmp_path / "run", **tiny(weights_from=str(first.path)))


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    first = sv.pretrain(pictures(), out=tmp_path / "first", **tiny(epochs=1))
    with pytest.raises(UsageError, match="has architecture dense_small:8-16-32 and this run's has resnet10t"):
        sv.pretrain(pictures(), out=tmp_path / "no", **tiny(weights_from=str(first.path), encoder="resnet10t"))
    with pytest.raises(UsageError, match="no run or encoder folder"):
        sv.pretrain(pictures(), out=tmp_path / "no", **tiny(weights_from=str(tmp_path / "nothing")))
    assert not (tmp_path / "no").exists()


class Own(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(images).mean((2, 3))
        return out


def test_weights_of_a_module_of_ones_own(tmp_path: Path) -> None:
    first = sv.pretrain(pictures(), out=tmp_path / "first", **tiny(encoder=Own(), epochs=1))
    frozen = {"epochs": 1, "weights_from": str(first.path), "sets": {"optimizer.lr": 1e-9}}
    second = sv.pretrain(pictures(), out=tmp_path / "second", **tiny(encoder=Own(), **frozen))
    torch.testing.assert_close(second.encoder.body[0].weight, first.encoder.body[0].weight, rtol=0, atol=1e-5)
    with pytest.raises(SmallviewError, match="do not fit"):
        sv.pretrain(pictures(), out=tmp_path / "third", **tiny(encoder=Own(9), **frozen))


@dataclass(frozen=True)
class Even:
    """A term that this package does not have."""

    sharpness: float = 2.0

    def __call__(self, embeddings: Embeddings, progress: float) -> torch.Tensor:
        return embeddings.online.square().mean() * self.sharpness


def test_a_run_with_a_term_of_ones_own_goes_on_and_other_fields_of_it_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: StopAfter
) -> None:
    def go(sharpness: float, out: str) -> Path:
        base = sv.method("byol")
        mine = replace(base, objective={**base.objective, "even": Term(0.1, Even(sharpness))})
        return sv.pretrain(pictures(32), sets={"method": mine}, out=tmp_path / out, **tiny()).path

    go(2.0, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(StoppedError):
            go(2.0, "stopped")
    with pytest.raises(UsageError, match=r"method.objective.even.loss.sharpness: 2.0 -> 3.0"):
        go(3.0, "stopped")
    assert weights(go(2.0, "stopped")) == weights(tmp_path / "whole")
    with pytest.raises(UsageError, match='unknown kind "Even"'):
        sv.pretrain(pictures(32), method="byol", out=tmp_path / "whole", **tiny())
