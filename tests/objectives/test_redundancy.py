"""VICReg and Barlow Twins against slow loops, term by term, and what each statistic is there to notice."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallview.objectives import BarlowTwins, Covariance, MeanSquared, Variance, barlow_twins, vicreg
from smallview.records import Embeddings

few = settings(derandomize=True, max_examples=12, deadline=None, database=None)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(online: Tensor, target: Tensor | None = None) -> Embeddings:
    target = online if target is None else target
    return Embeddings(online, target, None, tuple(range(len(online))), tuple(range(len(target))))


def columns(z: Tensor) -> list[list[float]]:
    return [list(column) for column in zip(*z.tolist(), strict=True)]


def covariance(a: list[float], b: list[float], lost: int = 1) -> float:
    n, mean_a, mean_b = len(a), sum(a) / len(a), sum(b) / len(b)
    return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / (n - lost)


def slow_invariance(z0: Tensor, z1: Tensor) -> float:
    """Bardes et al., 2022, eq. 5, over dimensions as well, as the authors' code has it."""
    pairs = [(x, y) for row in range(len(z0)) for x, y in zip(z0[row].tolist(), z1[row].tolist(), strict=True)]
    return sum((x - y) ** 2 for x, y in pairs) / len(pairs)


def slow_variance(z: Tensor) -> float:
    """Bardes et al., 2022, eq. 1 and 2: target 1, epsilon 1e-4 under the root, the unbiased variance."""
    return sum(max(0.0, 1.0 - math.sqrt(covariance(c, c) + 1e-4)) for c in columns(z)) / z.shape[1]


def slow_covariance(z: Tensor) -> float:
    """Bardes et al., 2022, eq. 3 and 4."""
    c = columns(z)
    return sum(covariance(c[i], c[j]) ** 2 for i in range(len(c)) for j in range(len(c)) if i != j) / len(c)


def slow_barlow(z0: Tensor, z1: Tensor, off_diagonal: float) -> float:
    """Zbontar et al., 2021, eq. 1 and 2, with BatchNorm's biased variance and epsilon."""
    a, b = columns(z0), columns(z1)
    total = 0.0
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            length = math.sqrt((covariance(x, x, 0) + 1e-5) * (covariance(y, y, 0) + 1e-5))
            c = covariance(x, y, 0) / length
            total += (1.0 - c) ** 2 if i == j else off_diagonal * c**2
    return total


@few
@given(b=st.integers(2, 7), d=st.integers(1, 5), scale=st.sampled_from([0.1, 1.0, 3.0]), seed=st.integers(0, 99))
def test_vicreg_is_the_slow_loop_term_by_term(b: int, d: int, scale: float, seed: int) -> None:
    z0, z1 = scale * draw(b, d, seed=seed), scale * draw(b, d, seed=seed + 100) + 1.0
    wanted = {
        "invariance": slow_invariance(z0, z1),
        "variance": (slow_variance(z0) + slow_variance(z1)) / 2,
        "covariance": slow_covariance(z0) + slow_covariance(z1),
    }
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}
    got, default = vicreg(z0, z1, **weights), vicreg(z0, z1)
    for name, value in wanted.items():
        assert float(got[name]) == pytest.approx(weights[name] * value, rel=1e-10, abs=1e-10)
        assert float(default[name]) == pytest.approx({"covariance": 1.0}.get(name, 25.0) * value, rel=1e-10, abs=1e-10)
    assert float(got["total"]) == pytest.approx(sum(weights[n] * wanted[n] for n in wanted), rel=1e-10)
    views = seen(torch.stack([z0, z1]))
    for name, term in (("invariance", MeanSquared()), ("variance", Variance()), ("covariance", Covariance())):
        assert float(term(views, 0.0)) == pytest.approx(wanted[name], rel=1e-10, abs=1e-10)


@few
@given(b=st.integers(2, 7), d=st.integers(1, 5), off_diagonal=st.sampled_from([0.0, 0.0051, 1.0]), seed=st.integers(0, 99))
def test_barlow_twins_is_the_slow_loop(b: int, d: int, off_diagonal: float, seed: int) -> None:
    z0, z1 = draw(b, d, seed=seed), draw(b, d, seed=seed) + 0.5 * draw(b, d, seed=seed + 100)
    wanted = slow_barlow(z0, z1, off_diagonal)
    assert float(barlow_twins(z0, z1, off_diagonal=off_diagonal)) == pytest.approx(wanted, rel=1e-9, abs=1e-10)
    term = BarlowTwins(off_diagonal)(seen(torch.stack([z0, z1])), 0.0)
    assert float(term) == pytest.approx(wanted, rel=1e-9, abs=1e-10)
    if off_diagonal == 0.0051:
        assert float(barlow_twins(z0, z1)) == pytest.approx(wanted, rel=1e-9, abs=1e-10)


def test_the_terms_average_over_many_views() -> None:
    online, target = draw(3, 5, 4), draw(2, 5, 4, seed=1)
    views = seen(online, target)
    pairs = [(online[v], target[t]) for v, t in ((0, 1), (1, 0), (2, 0), (2, 1))]
    for term, wanted in (
        (MeanSquared(), sum(slow_invariance(a, b) for a, b in pairs) / 4),
        (BarlowTwins(0.3), sum(slow_barlow(a, b, 0.3) for a, b in pairs) / 4),
        (Variance(), sum(slow_variance(z) for z in online) / 3),
        (Covariance(), 2.0 * sum(slow_covariance(z) for z in online) / 3),
    ):
        assert float(term(views, 0.0)) == pytest.approx(wanted, rel=1e-10), term


def test_identities() -> None:
    z0, z1 = draw(6, 4), draw(6, 4, seed=1)
    moved = vicreg(z0 + 3.0, z1 + 3.0)
    for name, value in vicreg(z0, z1).items():
        torch.testing.assert_close(moved[name], value, msg=name)
    # Barlow Twins looks at correlations: each dimension's own length and place do not count, but for epsilon
    length = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(barlow_twins(length * z0 + 1.0, z1), barlow_twins(z0, z1), rtol=1e-4, atol=0)
    # variance has its hinge at 1: nothing is asked of what is wide enough
    wide = draw(64, 4) * 3.0
    assert float(vicreg(wide, wide)["variance"]) == 0.0
    # a dimension alone covaries with none
    assert float(vicreg(z0[:, :1], z1[:, :1])["covariance"]) == pytest.approx(0.0, abs=1e-15)


def healthy() -> Tensor:
    return draw(256, 8)


def collapsed() -> Tensor:
    return draw(1, 8, seed=1) + 1e-3 * draw(256, 8, seed=2)


def duplicated() -> Tensor:
    half = draw(256, 4)
    return torch.cat([half, half], 1)


def test_variance_notices_collapse_and_covariance_does_not() -> None:
    variance = {f: float(Variance()(seen(f()[None]), 0.0)) for f in (healthy, collapsed, duplicated)}
    covariances = {f: float(Covariance()(seen(f()[None]), 0.0)) for f in (healthy, collapsed, duplicated)}
    assert variance[collapsed] > 0.95 and variance[healthy] < 0.05 and variance[duplicated] < 0.05
    assert covariances[duplicated] > 20 * covariances[healthy] and covariances[collapsed] < 1e-6


@pytest.mark.parametrize("bad", [collapsed, duplicated])
def test_barlow_twins_notices_both(bad: Callable[[], Tensor]) -> None:
    def loss(z: Tensor, off_diagonal: float) -> float:
        return float(barlow_twins(z + 0.01 * draw(256, 8, seed=7), z + 0.01 * draw(256, 8, seed=8), off_diagonal=off_diagonal))

    assert loss(healthy(), 1.0) < 0.5
    assert loss(bad(), 1.0) > 5.0
    # which of the two parts it is that speaks
    if bad is collapsed:
        assert loss(bad(), 0.0) > 5.0
    else:
        assert loss(bad(), 0.0) < 0.01


def test_descending_vicreg_undoes_a_collapse() -> None:
    z = (0.1 * draw(2, 32, 3)).requires_grad_()
    optimizer = torch.optim.SGD([z], lr=0.5)
    first = float(vicreg(z[0], z[1])["variance"].detach())
    for _ in range(60):
        optimizer.zero_grad()
        vicreg(z[0], z[1])["total"].backward()
        optimizer.step()
    end = vicreg(z[0].detach(), z[1].detach())
    assert float(end["variance"]) < 0.1 * first and float(end["total"]) < 0.2 * first


def test_gradients_agree_with_differences() -> None:
    z0, z1 = (0.5 * draw(4, 3)).requires_grad_(), (0.5 * draw(4, 3, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: torch.stack(list(vicreg(a, b).values())), (z0, z1))
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins(a, b, off_diagonal=0.5), (z0, z1))


def test_number_formats() -> None:
    z0, z1 = draw(8, 16), draw(8, 16, seed=1)
    for loss in (lambda a, b: vicreg(a, b)["total"], barlow_twins):
        rounded = loss(z0.bfloat16().double(), z1.bfloat16().double())
        half = loss(z0.bfloat16(), z1.bfloat16())
        assert rounded.dtype == torch.float64 and half.dtype == torch.float32
        assert float(half) == pytest.approx(float(rounded), rel=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss(z0.float(), z1.float())
        assert float(inside) == pytest.approx(float(loss(z0, z1)), rel=1e-5)


@pytest.mark.parametrize("loss", [vicreg, barlow_twins])
@pytest.mark.parametrize(
    ("z0", "z1", "words"),
    [
        (torch.ones(3, 4), torch.ones(2, 4), ["the first view is [3, 4]", "the second [2, 4]", "wanted both [B, D]"]),
        (torch.ones(3, 4), torch.ones(3, 5), ["[3, 4]", "[3, 5]", "wanted both [B, D]"]),
        (torch.ones(3), torch.ones(3), ["[3]", "wanted both [B, D]"]),
        (torch.ones(1, 4), torch.ones(1, 4), ["has 1 row;", "wanted 2 or more", "statistics"]),
        (torch.ones(0, 4), torch.ones(0, 4), ["has 0 rows;", "wanted 2 or more"]),
        (torch.full((3, 4), math.nan), torch.ones(3, 4), ["the first view has 3 of 3 rows", "wanted finite", "upstream"]),
        (torch.ones(3, 4), torch.full((3, 4), -math.inf), ["the second has 3 of 3 rows", "wanted finite"]),
    ],
)
def test_refusals(loss: Callable[[Tensor, Tensor], object], z0: Tensor, z1: Tensor, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        loss(z0, z1)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("off_diagonal", [-0.1, math.nan])
def test_refused_weight(off_diagonal: float) -> None:
    with pytest.raises(ValueError, match=r"off_diagonal is .*wanted"):
        BarlowTwins(off_diagonal)
