"""One table: every preset learns on two processes what it learns on one with the joined batch. A new preset is tested by being listed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from kill_server import Server
from torch import Tensor

from smallview.presets import PRESETS

WORKER = Path(__file__).with_name("presets_worker.py")
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
Results = dict[str, Any]


@pytest.fixture(scope="module")
def one() -> dict[str, Results]:
    spec = importlib.util.spec_from_file_location("presets_worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    results: dict[str, Results] = worker.results()
    return results


@pytest.fixture(scope="module")
def launched(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Results]]]:
    """What each of two processes found; one launch for all presets."""
    folder = tmp_path_factory.mktemp("processes")
    code, said = server.run(["--processes", "2", str(WORKER), str(folder)])
    assert code == 0, said[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def distance(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> float:
    """The largest difference of a parameter's gradient, in parts of its own norm, or of a thousandth of all where it is smaller."""
    assert wanted.keys() == got.keys()
    floor = 1e-3 * float(torch.stack([g.norm() for g in wanted.values()]).norm())
    assert floor > 0
    return max(float((got[name] - g).norm()) / max(float(g.norm()), floor) for name, g in wanted.items())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_averaged_gradients_are_those_of_one_process(
    one: dict[str, Results], launched: list[dict[str, dict[str, Results]]], name: str
) -> None:
    for process in launched:
        theirs, mine = process["results"][name], one[name]
        torch.testing.assert_close(theirs["loss"], mine["loss"], **CLOSE)
        torch.testing.assert_close(theirs["losses"], mine["losses"], **CLOSE)
        assert distance(mine["gradients"], theirs["gradients"]) < 1e-9


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_process_sees_the_whole_batch_and_the_same_negatives(
    one: dict[str, Results], launched: list[dict[str, dict[str, Results]]], name: str
) -> None:
    for process in launched:
        for part in ("online", "target", "candidates"):
            torch.testing.assert_close(process["results"][name][part], one[name][part], **CLOSE)
    assert one[name]["online"].shape[1] == one[name]["target"].shape[1] == 20


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_the_next_step_needs_is_the_same(
    one: dict[str, Results], launched: list[dict[str, dict[str, Results]]], name: str
) -> None:
    """The bank, and the running statistics of both sides."""
    for process in launched:
        torch.testing.assert_close(process["results"][name]["bank"], one[name]["bank"], **CLOSE)
        assert list(process["results"][name]["networks"]) == list(one[name]["networks"])
        torch.testing.assert_close(process["results"][name]["networks"], one[name]["networks"], **CLOSE)


@pytest.mark.parametrize(
    "mistake", ["gradient of the own rows alone", "keys without gradient", "nothing gathered", "plain BatchNorm"]
)
def test_a_mistake_is_seen(one: dict[str, Results], launched: list[dict[str, dict[str, Results]]], mistake: str) -> None:
    got = launched[0]["mistakes"][mistake]["gradients"]
    assert distance(one["simclr"]["gradients"], got) > 0.01


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_sum_in_place_of_the_mean_is_seen(
    one: dict[str, Results], launched: list[dict[str, dict[str, Results]]], name: str
) -> None:
    own = [process["results"][name]["own"] for process in launched]
    added = {parameter: own[0][parameter] + own[1][parameter] for parameter in own[0]}
    assert distance(one[name]["gradients"], added) > 0.9
