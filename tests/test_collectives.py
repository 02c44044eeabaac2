"""Two processes against one with the joined batch: collectives, their gradients, and BatchNorm over processes."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from kill_server import Server
from torch import Tensor, nn

from smallview import collectives
from smallview.networks.batch_norm import synchronize

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "distributed" / "collectives_worker.py"
EXACT = {"rtol": 1e-12, "atol": 1e-12}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
Results = dict[str, Any]


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("collectives_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(worker: ModuleType) -> Results:
    results: Results = worker.results()
    return results


@pytest.fixture(scope="module")
def two(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What each of two processes found; one launch for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    code, said = server.run(["--processes", "2", str(WORKER), str(folder)])
    assert code == 0, said[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def joined(two: list[Results], case: str, name: str, dim: int = 0) -> Tensor:
    return torch.cat([results[case][name] for results in two], dim)


def relative(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """How far two sets of gradients are from each other, in parts of the first."""
    return max(float((a[name] - b[name]).norm() / a[name].norm()) for name in a if float(a[name].norm()) > 1e-6)


def test_there_were_two_processes(two: list[Results]) -> None:
    assert [results["place"] for results in two] == [[0, 2], [1, 2]]


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gather_joins_in_the_order_of_ranks_and_sends_gradients_back(one: Results, two: list[Results], dim: int) -> None:
    case = f"gather {dim}"
    for results in two:
        torch.testing.assert_close(results[case]["joined"], one[case]["joined"], rtol=0, atol=0)
    assert float(one[case]["gradient"].abs().max()) > 0.01
    torch.testing.assert_close(joined(two, case, "gradient", dim), one[case]["gradient"], **EXACT)


def test_total_and_its_gradient(one: Results, two: list[Results]) -> None:
    for results in two:
        torch.testing.assert_close(results["total"]["total"], one["total"]["total"], **EXACT)
    assert float(one["total"]["gradient"].abs().max()) > 0.01
    torch.testing.assert_close(joined(two, "total", "gradient"), one["total"]["gradient"], **EXACT)


def test_first_gives_to_all_and_its_gradient_goes_to_process_0(one: Results, two: list[Results]) -> None:
    for results in two:
        torch.testing.assert_close(results["first"]["given"], one["first"]["given"], rtol=0, atol=0)
    assert float(one["first"]["gradient"].abs().max()) > 0.01
    torch.testing.assert_close(two[0]["first"]["gradient"], one["first"]["gradient"], **EXACT)
    torch.testing.assert_close(joined(two, "first", "rows"), one["first"]["rows"], **EXACT)


def test_what_has_no_gradient(one: Results, two: list[Results]) -> None:
    mine = one["without gradient"]
    for results in two:
        theirs = results["without gradient"]
        for name in ("bool", "int", "half", "total of int", "fixed", "transposed"):
            assert torch.equal(theirs[name], mine[name]) and theirs[name].dtype == mine[name].dtype, name
        torch.testing.assert_close(theirs["mean"], mine["mean"], **EXACT)
        assert theirs["asks for gradient"] == mine["asks for gradient"] == [False, False]


def test_disagreement_is_an_error_on_all_processes_and_not_a_wait(two: list[Results]) -> None:
    for results in two:
        refused = results["refused"]
        assert "[3, 2], [4, 2]" in refused["rows"] and "equally many pictures" in refused["rows"]
        assert "[3], [3, 2]" in refused["dimensions"]
        assert "dtypes: [3], [3]" in refused["dtype"]
        assert refused["nothing"].startswith("process 0 has nothing to give; wanted a tensor [3]")
        assert refused["shape"].startswith("process 0 has [4] to give; wanted a tensor [3]")
        assert refused["fine"].tolist() == [0, 1]


def test_mean_gradient_of_two_processes_is_that_of_one_with_the_joined_batch(one: Results, two: list[Results]) -> None:
    mine = one["trained"]
    for results in two:
        theirs = results["trained"]
        torch.testing.assert_close(theirs["loss"], mine["loss"], **CLOSE)
        torch.testing.assert_close(theirs["gradients"], mine["gradients"], **CLOSE)
        torch.testing.assert_close(theirs["evaluated"], mine["evaluated"], **CLOSE)
    moving = [g for name, g in mine["gradients"].items() if float(g.norm()) > 1e-3]
    assert len(moving) >= 8  # biases before a BatchNorm have none


def test_running_statistics_are_those_of_the_joined_batch(one: Results, two: list[Results]) -> None:
    mine = one["trained"]["state"]
    assert sum("running" in name for name in mine) == 6
    assert int(mine["body.1.num_batches_tracked"]) == 2
    for results in two:
        assert list(results["trained"]["state"]) == list(mine)
        torch.testing.assert_close(results["trained"]["state"], mine, **CLOSE)


@pytest.mark.parametrize("case", ["plain BatchNorm", "own rows"])
def test_the_usual_mistakes_are_seen(one: Results, two: list[Results], case: str) -> None:
    assert relative(one["trained"]["gradients"], two[0]["trained"]["gradients"]) < 1e-9
    assert relative(one["trained"]["gradients"], two[0][case]["gradients"]) > 0.05


def test_a_sum_in_place_of_the_mean_is_seen(one: Results, two: list[Results]) -> None:
    added = {name: two[0]["trained"]["own"][name] + two[1]["trained"]["own"][name] for name in one["trained"]["gradients"]}
    assert relative(one["trained"]["gradients"], added) > 0.9


@pytest.mark.parametrize("case", ["uneven [B, F]", "uneven [B, F, X]", "uneven [B, F, H, W]", "uneven [B, F, X, H, W]"])
def test_unequal_numbers_of_rows_are_weighted(one: Results, two: list[Results], case: str) -> None:
    assert [len(results[case]["out"]) for results in two] == [1, 5]
    for name in ("out", "x"):
        torch.testing.assert_close(joined(two, case, name), one[case][name], **CLOSE)
    for results in two:
        for name in ("weight", "bias", "state"):
            torch.testing.assert_close(results[case][name], one[case][name], **CLOSE)


def test_no_digits_are_lost_far_from_zero(worker: ModuleType, two: list[Results]) -> None:
    x = (1000.0 + 0.1 * worker.random(512, 3, seed=30)).float().double()
    wanted = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(joined(two, "narrow", "far").double(), wanted, rtol=0, atol=1e-3)
    moved = (two[0]["narrow"]["variance"].double() - 0.9) / 0.1
    torch.testing.assert_close(moved, x.var(0), rtol=1e-3, atol=0)
    # what the comparison is there for: squares minus a squared mean, in the same float32
    careless = x.float().square().mean(0) - x.float().mean(0).square()
    assert float((careless / x.float().var(0, correction=0) - 1).abs().max()) > 0.1


def test_bfloat16_stays_bfloat16(one: Results, two: list[Results]) -> None:
    assert two[0]["narrow"]["half"].dtype is torch.bfloat16
    torch.testing.assert_close(joined(two, "narrow", "half"), one["narrow"]["half"], rtol=0.01, atol=0.01)


# One process: all is the identity. Layers are prepared as for two, but nobody is asked anything.


@pytest.fixture
def as_if_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collectives, "world", lambda: 2)
    yield


def test_identity_on_one_process() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert collectives.gather(x, 1) is x and collectives.total(x) is x
    assert torch.equal(collectives.mean(x), x) and not collectives.mean(x).requires_grad
    given = collectives.first(x, (3, 2), x)
    given.sum().backward()
    assert torch.equal(given, x) and torch.equal(x.grad, torch.ones(3, 2))
    net = nn.Sequential(nn.BatchNorm1d(2))
    assert synchronize(net) is net and "forward" not in vars(net[0])
    with pytest.raises(ValueError, match="single number"):
        collectives.gather(torch.zeros(()))
    with pytest.raises(ValueError, match=r"nothing to give; wanted a tensor \[3\]"):
        collectives.first(None, (3,), x)
    with pytest.raises(ValueError, match=r"\[3, 2\] to give; wanted a tensor \[3\]"):
        collectives.first(x, (3,), x)


@pytest.mark.usefixtures("as_if_two")
def test_evaluation_names_and_class_stay() -> None:
    from timm.layers import BatchNormAct2d

    net = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    x, before, state = torch.randn(4, 3, 5, 5), copy.deepcopy(net), copy.deepcopy(net.state_dict())
    assert synchronize(net) is net
    assert torch.equal(net(x), before(x))
    assert list(net.state_dict()) == list(state) and all(torch.equal(net.state_dict()[name], state[name]) for name in state)
    assert [type(layer) for layer in net] == [type(layer) for layer in before]


@pytest.mark.usefixtures("as_if_two")
@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_a_copy_has_statistics_of_its_own(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    net = synchronize(nn.Sequential(nn.BatchNorm1d(2)))
    twin = copy.deepcopy(net) if way == "copied" else pickle.loads(pickle.dumps(net))
    asked = []
    # process 1 has no rows of its own here: nothing is added to what process 0 sends
    monkeypatch.setattr(collectives, "total", lambda x: asked.append(x) or x)
    twin(torch.randn(4, 2) + 5)
    assert len(asked) == 1
    assert int(twin[0].num_batches_tracked) == 1 and int(net[0].num_batches_tracked) == 0
    assert bool((twin[0].running_mean > 0.2).all()) and not bool(net[0].running_mean.any())


@pytest.mark.usefixtures("as_if_two")
def test_a_forward_pass_of_its_own_is_refused() -> None:
    class Split(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(TypeError, match="Split computes its own batch normalisation"):
        synchronize(nn.Sequential(Split(2)))
