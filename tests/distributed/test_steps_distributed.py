"""One table: every preset trains on two and four processes as on one: the same pictures in the same steps, the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kill_server import Server

from smallview.presets import PRESETS

WORKER = Path(__file__).with_name("steps_worker.py")
Results = dict[str, Any]


def launch(server: Server, folder: Path, world: int) -> list[dict[str, Any]]:
    code, said = server.run(["--processes", str(world), str(WORKER), str(folder)])
    assert code == 0, said[-3000:]
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


def differences(one: Results, process: Results, first: Results) -> list[str]:
    """In what a process differs from the run on one process, and from process 0 of its own run."""
    found = []
    if process["served"] != one["served"]:
        found.append("other pictures or views")
    off = float((process["losses"] - one["losses"]).abs().max())
    if not off <= 1e-6:
        found.append(f"a loss is off by {off:.1e}")
    if not torch.allclose(process["gradients"], one["gradients"], rtol=1e-6, atol=1e-6):
        found.append("other gradients")
    if process["state"].keys() != one["state"].keys():
        found.append("other state")
    # what process 0 saves is what every other one would have saved
    if not all(torch.equal(value, first["state"][name]) for name, value in process["state"].items()):
        found.append("other bits than on process 0")
    return found


# One test for all presets: a launch takes seconds, and tests that share one may run in different workers.
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_preset_trains_on_several_processes_as_on_one(world: int, server: Server, tmp_path: Path) -> None:
    one = launch(server, tmp_path, 1)[0]["results"]
    several = launch(server, tmp_path, world)
    assert set(one) == set(PRESETS)
    assert all(len(of["losses"]) == 10 and float(of["losses"].std()) > 0 for of in one.values())
    found = {
        f"{name} on process {rank}": told
        for name in PRESETS
        for rank, process in enumerate(several)
        if (told := differences(one[name], process["results"][name], several[0]["results"][name]))
    }
    assert not found, found
    assert differences(one["simclr"], several[0]["plain BatchNorm"], several[0]["plain BatchNorm"])
