"""Numbers that are not finite: no update comes of them, nothing saved holds one, and their pictures are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import smallview as sv
from smallview.beside import Beside
from smallview.cli import main
from smallview.parts import Parts
from smallview.training import loop

pytestmark = pytest.mark.usefixtures("apart")
NAN = float("nan")
Break = Callable[[pytest.MonkeyPatch, tuple[int, ...]], None]


def in_the_loss(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    real = loop.compute_loss

    def broken(method: Any, model: Any, bank: Any, views: Any, progress: float, draws: tuple[int, int]) -> Any:
        loss, *others = real(method, model, bank, views, progress, draws)
        return (loss * NAN if draws[1] in steps else loss, *others)

    monkeypatch.setattr(loop, "compute_loss", broken)


def in_one_pixel(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    real = Parts.feed

    def broken(self: Parts, *span: Any) -> Iterator[Any]:
        for batch, views in real(self, *span):
            images = views[0].images.clone()
            if batch.step in steps:
                images[2, 1, 3, 3] = NAN
            yield batch, (replace(views[0], images=images), *views[1:])

    monkeypatch.setattr(Parts, "feed", broken)


def in_one_weight(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    """Before the first of the steps, when what came before is saved; it goes back after the last one, as no weight does."""
    real, kept = Beside.on_step, []

    def broken(self: Beside, report: loop.StepReport) -> bool:
        stop = real(self, report)
        weight = next(p for p in self.state.networks.online.parameters() if p.requires_grad and p.ndim > 1)
        with torch.no_grad():
            if report.step == steps[0]:
                kept.append(weight[0].clone())
                weight[(0,) * weight.ndim] = NAN
            elif report.step == steps[-1] + 1:
                weight[0] = kept.pop()
        return stop

    monkeypatch.setattr(Beside, "on_step", broken)


PLACES = pytest.mark.parametrize("broken", [in_the_loss, in_one_pixel, in_one_weight])


@pytest.fixture
def updates() -> Iterator[list[bool]]:
    """Of each update, whether all its gradients were finite."""
    seen: list[bool] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None))

    hook = register_optimizer_step_pre_hook(look)
    yield seen
    hook.remove()


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 8, 8, 3), dtype=np.uint8)


def settings(**more: Any) -> dict[str, Any]:
    return {
        "method": "moco_v2",
        "encoder": "dense_small:8-16",
        "batch_size": 8,
        "threads": 1,
        "epochs": 2,
        "quiet": True,
        **more,
    }


def all_finite(folder: Path) -> bool:
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return all(bool(t.isfinite().all()) for file in files for t in load_file(file).values() if t.is_floating_point())


def named(folder: Path) -> dict[int, list[str]]:
    """The pictures named for each skipped step."""
    return {int(p.stem[-6:]): json.loads(p.read_text())["pictures"] for p in sorted(folder.glob("skipped-step-*.json"))}


@PLACES
def test_two_steps_that_are_not_finite_are_skipped(
    broken: Break, tmp_path: Path, updates: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, (4, 5))
    run = sv.pretrain(pictures(), out=tmp_path / "run", **settings())
    assert len(updates) == 12 - 2 and all(updates)
    assert all_finite(run.path)
    assert list(named(run.path)) == [5, 6] and all(len(names) == 8 for names in named(run.path).values())


@PLACES
def test_the_third_that_is_not_finite_ends_it_and_the_same_command_goes_on(
    broken: Break,
    tmp_path: Path,
    updates: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(tmp_path / "array.npy", pictures())
    words = f"pretrain {tmp_path / 'array.npy'} --out {tmp_path / 'run'} --method moco_v2 --batch-size 8 --epochs 2 --threads 1"
    line = [*words.split(), "--encoder", "dense_small:8-16", "--save-every", "1e-9"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        broken(patch, (4, 5, 6))
        main(line)
    said = capsys.readouterr().err
    assert ended.value.code == 5 and "Traceback" not in said
    assert said.count("batch skipped") == 3 and "batch skipped (3/3)" in said
    assert said.splitlines()[-1].startswith(
        "smallview: step 7: the loss was not finite 3 times in a row; the last good checkpoint"
    )
    assert len(updates) == 4 and all(updates) and all_finite(tmp_path / "run")
    names = named(tmp_path / "run")
    assert list(names) == [5, 6, 7] and len({name for group in names.values() for name in group}) > 8
    main(line)
    assert "resuming at step 4 of 12" in capsys.readouterr().err
    whole = sv.pretrain(pictures(), out=tmp_path / "whole", **settings())
    assert all_finite(tmp_path / "run")
    assert (tmp_path / "run" / "encoder" / "model.safetensors").read_bytes() == (
        whole.path / "encoder" / "model.safetensors"
    ).read_bytes()


def test_weights_that_overflow_in_a_finite_step_are_not_saved(tmp_path: Path) -> None:
    wild = {"optimizer.lr": 1e3, "optimizer.warmup": 0.0, "optimizer.weight_decay": 1.0}
    with pytest.raises(sv.SmallviewError) as ended:
        sv.pretrain(pictures(), out=tmp_path / "run", **settings(epochs=10, save_every=1e-9, sets=wild))
    assert ended.value.exit_code == 5
    assert all_finite(tmp_path / "run")
