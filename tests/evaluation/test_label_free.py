"""Label-free scores against slow loops written from their papers, and against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from smallview.evaluation import label_free as module
from smallview.evaluation.label_free import (
    alignment,
    alpha_req,
    clid,
    cluster_learnability,
    effective_rank,
    intrinsic_dimension,
    lidar,
    neighbour_stability,
    nesum,
    rank_me,
    spearman,
    uniformity,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(f: int) -> Tensor:
    return torch.linalg.qr(noise(f, f, seed=9))[0]


def entropy_rank(values: np.ndarray) -> float:
    share = values / values.sum()
    return math.exp(-sum(p * math.log(p + 1e-7) for p in share))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_rank_me_is_the_papers(shape: tuple[int, int]) -> None:
    x = noise(*shape) * torch.linspace(0.1, 3, shape[1])
    assert rank_me(x) == pytest.approx(entropy_rank(np.linalg.svd(x.numpy().astype(np.float64))[1]), rel=1e-4)
    assert rank_me(7.0 * x @ rotation(shape[1])) == pytest.approx(rank_me(x), rel=1e-4)


def test_known_ranks() -> None:
    assert rank_me(noise(4000, 16)) == pytest.approx(16, abs=0.1)
    line = noise(50, 1) @ noise(1, 20, seed=1)
    assert rank_me(line) == pytest.approx(1.0, abs=1e-2) and nesum(line) == pytest.approx(1.0, abs=1e-6)
    assert nesum(noise(20_000, 8)) == pytest.approx(8.0, abs=0.3)
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0, abs=1e-4)


def test_spectra_are_the_papers() -> None:
    x = noise(60, 10) * torch.arange(1, 11)
    values = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().astype(np.float64).T)))[::-1]
    assert nesum(x) == pytest.approx(values.sum() / values[0], rel=1e-6)
    slope = np.polyfit(np.log(np.arange(3, 11)), np.log(values[2:10]), 1)[0]
    assert alpha_req(x) == pytest.approx(-slope, rel=1e-6)
    wide = noise(8, 30)
    dual = np.sort(np.linalg.eigvalsh(np.cov(wide.numpy().astype(np.float64).T)))[::-1][:7]
    np.testing.assert_allclose(module.covariance_spectrum(wide)[:7].numpy(), dual, rtol=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_planted_power_is_found(power: float) -> None:
    scale = torch.arange(1, 65, dtype=torch.float64) ** (-power / 2)
    x = torch.linalg.qr(noise(500, 64).double() - noise(500, 64).double().mean(0))[0] * scale
    assert alpha_req(x) == pytest.approx(power, abs=0.03)
    assert alpha_req(noise(20_000, 64)) < 0.1
    with pytest.raises(ValueError, match="three or more"):
        alpha_req(noise(50, 1) @ noise(1, 20, seed=1))


def test_lidar_is_the_papers() -> None:
    centres = noise(30, 6) * torch.arange(1, 7)
    views = centres + 0.5 * noise(5, 30, 6, seed=1)
    x = views.numpy().astype(np.float64)
    mu = x.mean((0, 1))
    within, between = np.zeros((6, 6)), np.zeros((6, 6))
    for i in range(30):
        own = x[:, i].mean(0)
        between += np.outer(own - mu, own - mu) / 29
        for q in range(5):
            within += np.outer(x[q, i] - own, x[q, i] - own) / (30 * 4)
    values, vectors = np.linalg.eigh(within + 1e-4 * np.eye(6))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    spectrum = np.linalg.eigvalsh(root @ between @ root)
    assert lidar(views) == pytest.approx(entropy_rank(spectrum), rel=1e-6)
    assert lidar(views @ rotation(6)) == pytest.approx(lidar(views), rel=1e-4)
    few = views[:, :5]  # fewer pictures than features: the other of both matrices
    assert 1.0 <= lidar(few) <= 4.01


def test_lidar_counts_directions_that_tell_pictures_apart() -> None:
    told = torch.zeros(10)
    told[:3] = 1.0
    views = 10.0 * noise(400, 10) * told + noise(8, 400, 10, seed=1)
    assert lidar(views) == pytest.approx(3.0, abs=0.3)
    # RankMe counts the scatter of views as well: this is what LiDAR is for
    loud = 3.0 * noise(400, 10) * told + 3.0 * noise(8, 400, 10, seed=1) * (1 - told) + 0.1 * noise(8, 400, 10, seed=2)
    assert rank_me(loud[0]) > 8.0 and lidar(loud) < 3.5
    with pytest.raises(ValueError, match="two views"):
        lidar(views[:1])


def test_alignment_and_uniformity_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    views = noise(4, 20, 5)
    unit = torch.nn.functional.normalize(views.double(), dim=2)
    pairs = [(unit[a] - unit[b]).square().sum(1).mean() for a in range(4) for b in range(4) if a < b]
    assert alignment(views) == pytest.approx(float(sum(pairs) / len(pairs)), rel=1e-9)
    x = unit[0]
    slow = np.mean([math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(20) for j in range(20) if i != j])
    assert uniformity(views[0]) == pytest.approx(math.log(slow), rel=1e-9)
    monkeypatch.setattr(module, "PIECE", 7)
    assert uniformity(views[0]) == pytest.approx(math.log(slow), rel=1e-9)
    assert uniformity(torch.ones(6, 3)) == pytest.approx(0.0, abs=1e-9) and uniformity(noise(500, 64)) < -3.5


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_planted_dimensions_are_found(dimension: int) -> None:
    flat = torch.rand(3000, dimension, generator=torch.Generator().manual_seed(0))
    bent = torch.cat([torch.sin(flat), flat, flat.square()], 1) @ rotation(3 * dimension)
    assert intrinsic_dimension(bent) == pytest.approx(dimension, rel=0.15)
    assert intrinsic_dimension(torch.cat([bent, bent[:100]])) == pytest.approx(intrinsic_dimension(bent), rel=1e-6)


def test_two_nn_is_the_papers() -> None:
    x = noise(120, 3).double()
    distance = np.sort(np.linalg.norm(x[:, None].numpy() - x[None].numpy(), axis=2), 1)
    mu = np.sort(distance[:, 2] / distance[:, 1])[: math.ceil(0.9 * 120)]
    level = -np.log(1 - np.arange(1, len(mu) + 1) / 120)
    slope = np.linalg.lstsq(np.log(mu)[:, None], level, rcond=None)[0][0]
    assert intrinsic_dimension(x) == pytest.approx(slope, rel=1e-9)


def test_planted_clusters_are_learnable_and_noise_is_less() -> None:
    centres = 20.0 * noise(5, 16)
    planted = centres[torch.arange(400) % 5] + noise(400, 16, seed=1)
    assert cluster_learnability(planted, clusters=5) > 0.99
    assert cluster_learnability(noise(400, 64), clusters=20) < 0.8
    with pytest.raises(ValueError, match="clusters is 400"):
        cluster_learnability(planted, clusters=400)
    both = clid([0.9, 0.5, 0.7], [10.0, 20.0, 15.0])
    np.testing.assert_allclose(both, 0.0, atol=1e-9)
    assert clid([0.9, 0.5], [20.0, 10.0])[0] > clid([0.9, 0.5], [20.0, 10.0])[1]


def test_neighbours_that_stay() -> None:
    x = noise(60, 8)
    assert neighbour_stability(x, 3.0 * x @ rotation(8)) == 1.0
    assert neighbour_stability(x, noise(60, 8, seed=3), k=5) < 0.3
    near = [
        sorted(range(60), key=lambda j: (i == j, -float(torch.cosine_similarity(x[i], x[j], dim=0))))[:3] for i in range(60)
    ]
    y = x + 0.3 * noise(60, 8, seed=4)
    other = [
        sorted(range(60), key=lambda j: (i == j, -float(torch.cosine_similarity(y[i], y[j], dim=0))))[:3] for i in range(60)
    ]
    slow = np.mean([len(set(a) & set(b)) / 3 for a, b in zip(near, other, strict=True)])
    assert neighbour_stability(x, y, k=3) == pytest.approx(slow)
    with pytest.raises(ValueError, match="k is 60"):
        neighbour_stability(x, x, k=60)


def test_spearman_is_scipys_with_ties() -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, 6, 40)
    b = a + random.normal(size=40).round(0)
    found = spearman(a, b)
    assert found.value == pytest.approx(stats.spearmanr(a, b).statistic) and found.n == 40
    assert found.low < found.value < found.high and found.high - found.low < 0.6
    assert spearman(a, b) == found
    wide = spearman(a[:8], b[:8])
    assert wide.high - wide.low > found.high - found.low
    with pytest.raises(ValueError, match="four or more"):
        spearman([1, 2], [1, 2])


@pytest.mark.parametrize("score", [rank_me, nesum, uniformity, intrinsic_dimension, cluster_learnability])
def test_what_cannot_be_scored_is_refused(score: object) -> None:
    with pytest.raises(ValueError, match="wanted"):
        score(noise(1, 4))  # type: ignore[operator]
    broken = noise(30, 4)
    broken[3, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        score(broken)  # type: ignore[operator]


def test_rows_of_zeros_lie_at_one_point() -> None:
    assert uniformity(torch.zeros(20, 4)) == pytest.approx(0.0) and alignment(torch.zeros(3, 20, 4)) == pytest.approx(0.0)
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    slow = np.mean(
        [math.exp(-2 * float((a - b).square().sum())) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    )
    assert uniformity(rows) == pytest.approx(math.log(slow))
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), t=20) == pytest.approx(-80.0)


@pytest.mark.parametrize("n", [3, 5, 9, 10])
def test_few_rows_have_a_finite_dimension(n: int) -> None:
    assert 0.0 < intrinsic_dimension(noise(n, 4)) < 100.0


def test_a_grid_has_no_dimension_to_read() -> None:
    with pytest.raises(ValueError, match="equally near"):
        intrinsic_dimension(torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)))


@pytest.mark.parametrize("k", [0, 50, 1000])
def test_learnability_refuses_more_neighbours_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k} for 50"):
        cluster_learnability(noise(50, 8), clusters=5, k=k)
    with pytest.raises(ValueError, match="clusters is 0"):
        cluster_learnability(noise(50, 8), clusters=0)


@pytest.mark.timeout(20)  # a bootstrap of equal values once redrew without end
@pytest.mark.parametrize("x", [[1, 1, 1, 1, 1], [1, 2, math.nan, 4, 5]])
def test_spearman_refuses_what_has_no_ranks(x: list[float]) -> None:
    for pair in ((x, [1, 2, 3, 4, 5]), ([1, 2, 3, 4, 5], x)):
        with pytest.raises(ValueError, match="not all equal"):
            spearman(*pair)


def test_clid_wants_both_halves_of_each() -> None:
    with pytest.raises(ValueError, match="2 learnabilities and 1"):
        clid([0.9, 0.5], [20.0])
