"""The probe's figures against slow ones by hand, what each of them detects, and that looking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Networks
from smallview.training.probe import Look, effective_rank, look, uniformity


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Restless(nn.Module):
    """An encoder with all that a look might disturb: statistics, dropout, a frozen layer, and draws in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.frozen = nn.Linear(27, 10), nn.BatchNorm1d(10), nn.BatchNorm1d(10)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.drop(self.frozen(self.norm(self.layer(images.flatten(1)))).relu())
        return hidden + 1e-6 * torch.rand(())


def networks(predictor: bool = True) -> Networks:
    torch.manual_seed(0)
    head = MLP(hidden=(12,), out=8)
    made = Networks(Restless(), 10, Heads(head, head if predictor else None), Momentum()).train()
    made.online.encoder.frozen.eval()
    return made


def views(n: int = 20, apart: float = 0.3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    pictures = torch.randn(n, 3, 3, 3, generator=source)
    one, two = (pictures + apart * torch.randn(n, 3, 3, 3, generator=source) for _ in range(2))
    return one, two


def test_figures_are_those_of_slow_loops() -> None:
    net, (one, two) = networks(), views()
    seen = look(net, (one, two), 25, nullcontext())
    net.eval()
    with torch.no_grad():
        f = net.online.encoder(one)
        e, other = net.online.projector(f).double().numpy(), net.online.projector(net.online.encoder(two)).double().numpy()
        predicted = torch.cat([net.predictor(torch.from_numpy(x).float()) for x in (e, other)]).double().numpy()

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    n = len(e)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    for kind, raw in (("feature", f.double().numpy()), ("embedding", e)):
        x = unit(raw)
        assert getattr(seen, f"{kind}_spread") == pytest.approx(x.std(0).mean() * math.sqrt(x.shape[1]), abs=1e-4)
        assert getattr(seen, f"{kind}_cosine") == pytest.approx(np.mean([x[i] @ x[j] for i, j in pairs]), abs=1e-4)
        values = np.linalg.svd(x - x.mean(0), compute_uv=False)
        shares = values / values.sum()
        shares = shares[shares > 1e-12]
        assert getattr(seen, f"{kind}_rank") == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), abs=1e-2)
    x, y = unit(e), unit(other)
    assert seen.alignment == pytest.approx(np.mean([((x[i] - y[i]) ** 2).sum() for i in range(n)]), abs=1e-4)
    near = [math.exp(-2.0 * ((x[i] - x[j]) ** 2).sum()) for i, j in pairs]
    assert seen.uniformity == pytest.approx(math.log(np.mean(near)), abs=1e-4)
    assert seen.retrieval == pytest.approx(
        np.mean([np.argmax([x[i] @ y[j] for j in range(n)]) == i for i in range(n)]), abs=1e-6
    )
    both = unit(np.concatenate([e, other]))
    assert seen.prediction == pytest.approx((both * unit(predicted)).sum(1).mean(), abs=1e-4)
    matrices = [p.detach().numpy() for p in net.online.parameters() if p.dim() > 1]
    assert seen.weights == pytest.approx(math.sqrt(sum((m.astype(float) ** 2).sum() for m in matrices)), rel=1e-5)
    assert seen.step == 25 and set(seen.as_dict()) == set(Look.__dataclass_fields__)


def test_looking_changes_nothing() -> None:
    net, both = networks(), views()
    for parameter in net.online.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    look(net, both, 25, nullcontext())
    assert [module.training for module in net.modules()] == modes and True in modes and False in modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is not None and bool((parameter.grad == 1).all()) for parameter in net.online.parameters())


def test_a_look_in_half_precision_is_the_same_to_its_digits() -> None:
    net, both = networks(), views()
    exact = look(net, both, 0, nullcontext()).as_dict()
    half = look(net, both, 0, torch.autocast("cpu", torch.bfloat16)).as_dict()
    assert half == pytest.approx(exact, rel=0.1, abs=0.1)
    assert all(p.grad is None for p in net.parameters()) and half["weights"] == exact["weights"]


class Point(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 10)


def test_one_point_for_all_is_seen_in_every_figure_even_behind_batch_norm() -> None:
    net = networks(predictor=False)
    net.online.encoder = Point()
    seen = look(net, views(), 1, nullcontext())
    assert seen.feature_spread == seen.embedding_spread == pytest.approx(0.0, abs=1e-3)
    assert seen.feature_cosine == seen.embedding_cosine == pytest.approx(1.0, abs=1e-4)
    assert seen.feature_rank == pytest.approx(1.0) and seen.alignment == pytest.approx(0.0, abs=1e-4)
    assert seen.uniformity == pytest.approx(0.0, abs=1e-3) and seen.prediction == pytest.approx(1.0)


def test_networks_that_are_not_finite_show_and_do_not_stop_the_look() -> None:
    net = networks()
    with torch.no_grad():
        net.online.encoder.layer.weight[0, 0] = math.nan
    seen = look(net, views(), 1, nullcontext())
    assert all(math.isnan(value) for name, value in seen.as_dict().items() if name not in ("step", "retrieval"))


@pytest.mark.parametrize("directions", [1, 2, 5, 9])
def test_rank_counts_directions(directions: int) -> None:
    axes = torch.eye(16)[:directions]
    assert float(effective_rank(torch.cat([axes, -axes]))) == pytest.approx(directions, rel=1e-6)
    # size and place do not matter; a further direction that is weak counts a little
    assert float(effective_rank(1e-3 * torch.cat([axes, -axes]) + 5.0)) == pytest.approx(directions, rel=1e-3)
    weak = 0.01 * torch.eye(16)[15:]
    assert directions < float(effective_rank(torch.cat([axes, -axes, weak, -weak]))) < directions + 0.5


def test_uniformity_of_random_directions_is_that_of_the_formula() -> None:
    # exp(-2 |x - y|^2) = exp(-4 + 4 x.y), and x.y is near a Gaussian of variance 1/D
    x = nn.functional.normalize(torch.randn(600, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    assert float(uniformity(x)) == pytest.approx(-4.0 + 8.0 / 128, abs=0.01)
