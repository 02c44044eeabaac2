"""SIGReg against a double loop and a closed form, its power against what is not Gaussian, and LeJEPA's centre."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallview.objectives import CentreInvariance, SIGReg, sigreg
from smallview.objectives.gaussian import _directions
from smallview.records import Embeddings

few = settings(derandomize=True, max_examples=10, deadline=None, database=None)
POINTS, LAST = 17, 3.0


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(online: Tensor, target: Tensor | None = None, key: tuple[int, int] = (0, 0)) -> Embeddings:
    target = online if target is None else target
    return Embeddings(online, target, None, tuple(range(len(online))), tuple(range(len(target))), key)


def slow_epps_pulley(x: list[float]) -> float:
    """N times the integral of |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2): trapezoids on [0, 3], twice, for it is even in t."""
    step, heights = LAST / (POINTS - 1), []
    for point in range(POINTS):
        t = point * step
        phi = sum(cmath.exp(1j * t * value) for value in x) / len(x)
        heights.append(abs(phi - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))
    integral = sum((heights[k] + heights[k + 1]) / 2 * step for k in range(POINTS - 1))
    return len(x) * 2 * integral


def slow_sigreg(z: Tensor, directions: Tensor) -> float:
    statistics = []
    for direction in directions.T.tolist():
        seen_from = [sum(a * b for a, b in zip(row, direction, strict=True)) for row in z.tolist()]
        statistics.append(slow_epps_pulley(seen_from))
    return sum(statistics) / len(statistics)


@few
@given(b=st.integers(2, 9), scale=st.sampled_from([0.1, 1.0, 2.0]), seed=st.integers(0, 99))
def test_one_dimension_has_one_direction(b: int, scale: float, seed: int) -> None:
    """The statistic is even, so it knows nothing of what was drawn: the loop needs none of the module's directions."""
    z = scale * draw(b, 1, seed=seed) + 0.5
    wanted = slow_epps_pulley(z[:, 0].tolist())
    assert float(sigreg(z, slices=3, key=(seed, 5))) == pytest.approx(wanted, rel=1e-10, abs=1e-12)


@few
@given(b=st.integers(2, 7), d=st.integers(2, 5), slices=st.integers(1, 6), seed=st.integers(0, 99))
def test_sigreg_is_the_double_loop(b: int, d: int, slices: int, seed: int) -> None:
    z, key = draw(b, d, seed=seed), (seed, seed + 1)
    directions = _directions(d, slices, key, z)
    assert directions.shape == (d, slices)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(slices, dtype=torch.float64))
    wanted = slow_sigreg(z, directions)
    assert float(sigreg(z, slices=slices, key=key)) == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    assert float(SIGReg(slices)(seen(z[None], key=key), 0.0)) == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_the_integral_is_near_its_closed_form() -> None:
    """Over the whole line it is a sum over pairs; what lies past 3 and between the points is a hundredth of it."""
    for seed, scale in ((0, 1.0), (1, 2.0), (2, 0.3)):
        x = scale * draw(40, 1, seed=seed)
        pairs = torch.exp(-0.5 * (x - x.T).square()).mean()
        single = torch.exp(-0.25 * x.square()).mean()
        exact = 40 * math.sqrt(2 * math.pi) * (pairs - 2 * single / math.sqrt(2) + 1 / math.sqrt(3))
        assert float(sigreg(x, slices=1)) == pytest.approx(float(exact), rel=0.02, abs=0.01)


def test_a_gaussian_gives_what_theory_says() -> None:
    """E|phi_N - phi|^2 is (1 - exp(-t^2)) / N at every t, whatever N and D."""
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    for b, d in ((16, 4), (64, 16), (256, 8)):
        values = [float(sigreg(draw(b, d, seed=seed), slices=32, key=(0, seed))) for seed in range(40)]
        assert sum(values) / len(values) == pytest.approx(expected, abs=0.15)
        assert max(values) < 3.0


def clusters(seed: int) -> Tensor:
    side = torch.sign(draw(256, 1, seed=seed + 50))
    return 0.9 * side + math.sqrt(1 - 0.9**2) * draw(256, 8, seed=seed)


def low_rank(seed: int) -> Tensor:
    """Two dimensions spread over eight, as wide as a Gaussian in all."""
    z = draw(256, 2, seed=seed) @ draw(2, 8, seed=seed + 50)
    return z * math.sqrt(8) / z.square().sum(1).mean().sqrt()


FAULTS: dict[str, Callable[[int], Tensor]] = {
    "collapsed to 0": lambda seed: 1e-3 * draw(256, 8, seed=seed),
    "collapsed elsewhere": lambda seed: 1.0 + 1e-3 * draw(256, 8, seed=seed),
    "too wide": lambda seed: 2.0 * draw(256, 8, seed=seed),
    "too narrow": lambda seed: 0.5 * draw(256, 8, seed=seed),
    "off centre": lambda seed: 0.5 + draw(256, 8, seed=seed),
    "two clusters": clusters,
    "low rank": low_rank,
    "a dead dimension": lambda seed: draw(256, 8, seed=seed) * torch.tensor([0.0] + 7 * [1.0], dtype=torch.float64),
    "a duplicated dimension": lambda seed: draw(256, 4, seed=seed).repeat(1, 2),
}
LEAST = {"a dead dimension": 1.3}


@pytest.mark.parametrize("fault", FAULTS)
def test_power(fault: str) -> None:
    for seed in range(3):
        null = [float(sigreg(draw(256, 8, seed=100 + s), slices=64, key=(1, seed))) for s in range(5)]
        statistic = float(sigreg(FAULTS[fault](seed), slices=64, key=(1, seed)))
        assert statistic > LEAST.get(fault, 3.0) * max(null), (fault, statistic, null)


def test_descending_it_undoes_two_clusters() -> None:
    z = clusters(0)[:64, :2].clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    first = float(sigreg(z.detach()))
    for step in range(60):
        optimizer.zero_grad()
        sigreg(z, slices=16, key=(0, step)).backward()
        optimizer.step()
    assert first > 5.0 and float(sigreg(z.detach())) < 0.1 * first


def test_directions_are_fixed_by_seed_and_step() -> None:
    z = draw(16, 6)
    torch.manual_seed(1)
    once = sigreg(z, slices=8, key=(3, 4))
    torch.manual_seed(2)
    assert torch.equal(sigreg(z, slices=8, key=(3, 4)), once)
    for key in ((3, 5), (4, 4), (4, 3)):
        assert abs(float(sigreg(z, slices=8, key=key) - once)) > 1e-6, key
    # drawing leaves the reader's own generator alone
    torch.manual_seed(7)
    sigreg(z)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))


def test_the_directions_point_everywhere() -> None:
    directions = _directions(4, 4000, (0, 0), draw(1, 1))
    torch.testing.assert_close(directions @ directions.T / 4000, torch.eye(4, dtype=torch.float64) / 4, rtol=0, atol=0.02)
    assert float(directions.mean(1).norm()) < 0.05


def test_the_term_is_the_mean_over_online_views_from_one_set_of_directions() -> None:
    online = draw(3, 10, 4)
    wanted = sum(sigreg(z, slices=8, key=(2, 9)) for z in online) / 3
    torch.testing.assert_close(SIGReg(8)(seen(online, draw(2, 10, 4, seed=1), key=(2, 9)), 0.0), wanted)


def test_the_number_of_slices_defaults_to_256() -> None:
    z = draw(8, 4)
    assert torch.equal(sigreg(z), sigreg(z, slices=256)) and SIGReg() == SIGReg(256)
    assert abs(float(sigreg(z) - sigreg(z, slices=255))) > 0.0


@few
@given(views=st.integers(1, 4), targets=st.integers(1, 3), b=st.integers(1, 5), seed=st.integers(0, 99))
def test_centre_invariance_is_the_slow_loop(views: int, targets: int, b: int, seed: int) -> None:
    online, target = draw(views, b, 4, seed=seed), draw(targets, b, 4, seed=seed + 100)
    total = 0.0
    for v in range(views):
        for i in range(b):
            for j in range(4):
                centre = sum(float(target[t, i, j]) for t in range(targets)) / targets
                total += (centre - float(online[v, i, j])) ** 2
    got = float(CentreInvariance()(seen(online, target), 0.0))
    assert got == pytest.approx(total / (views * b * 4), rel=1e-10)


def test_centre_invariance_of_two_views_is_a_quarter_of_their_distance() -> None:
    z = draw(2, 6, 4)
    assert float(CentreInvariance()(seen(z), 0.0)) == pytest.approx(float((z[0] - z[1]).square().mean()) / 4, rel=1e-12)
    assert float(CentreInvariance()(seen(z[:1].expand(3, -1, -1)), 0.0)) == pytest.approx(0.0, abs=1e-30)


def test_gradients_agree_with_differences() -> None:
    z = draw(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sigreg(x, slices=4), (z,))


def test_number_formats() -> None:
    z = draw(32, 8)
    rounded = sigreg(z.bfloat16().double())
    half = sigreg(z.bfloat16())
    assert sigreg(z).dtype == torch.float64 and half.dtype == torch.float32
    assert float(half) == pytest.approx(float(rounded), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigreg(z.float())
        term = SIGReg()(seen(z.float()[None]), 0.0)
    assert float(inside) == pytest.approx(float(sigreg(z)), rel=1e-4)
    assert float(term) == pytest.approx(float(sigreg(z)), rel=1e-4)


@pytest.mark.parametrize(
    ("z", "words"),
    [
        (torch.ones(1, 4), ["z has 1 row;", "wanted 2 or more", "statistics"]),
        (torch.ones(4), ["[4]", "wanted", "[B, D]"]),
        (torch.ones(2, 3, 4), ["[2, 3, 4]", "wanted", "[B, D]"]),
        (torch.tensor([[math.nan, 1.0], [1.0, 1.0]]), ["z has 1 of 2 rows", "wanted finite", "upstream"]),
    ],
)
def test_refusals(z: Tensor, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        sigreg(z)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("slices", [0, -3])
def test_refused_slices(slices: int) -> None:
    for refused in (lambda: SIGReg(slices), lambda: sigreg(torch.eye(3), slices=slices)):
        with pytest.raises(ValueError, match=f"slices is {slices}; wanted 1 or more"):
            refused()
