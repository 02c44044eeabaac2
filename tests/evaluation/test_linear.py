"""The linear probe against scikit-learn, and what may choose its penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from smallview.evaluation import linear as module
from smallview.evaluation.linear import PENALTIES, fit_linear, fit_logistic, held_out


def problem(n: int = 240, f: int = 10, classes: int = 4, noise: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, f, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + noise * torch.randn(n, f, generator=source), labels


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> float:
    scores = x.double() @ weight.double() + bias.double()
    return float(torch.nn.functional.cross_entropy(scores, y) + 0.5 * penalty * weight.double().square().sum())


@pytest.mark.parametrize("penalty", [1e-3, 1e-1, 1.0])
def test_the_minimum_is_scikit_learns(penalty: float) -> None:
    x, y = problem()
    weight, bias = fit_logistic(x, y, 4, penalty)
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    best = objective(x, y, torch.from_numpy(theirs.coef_.T.copy()), torch.from_numpy(theirs.intercept_), penalty)
    assert objective(x, y, weight, bias, penalty) == pytest.approx(best, abs=2e-5)
    np.testing.assert_allclose(weight.numpy(), theirs.coef_.T, atol=0.02)
    # power: the minimum at another penalty is not as good
    other = fit_logistic(x, y, 4, 3 * penalty)
    assert objective(x, y, *other, penalty) > best + 1e-4


def test_where_one_starts_does_not_matter() -> None:
    x, y = problem()
    cold, warm = fit_logistic(x, y, 4, 0.01), fit_logistic(x, y, 4, 0.01, fit_logistic(x, y, 4, 1.0))
    assert objective(x, y, *warm, 0.01) == pytest.approx(objective(x, y, *cold, 0.01), abs=2e-5)


def test_the_penalty_is_chosen_among_the_given_on_the_held_out_tenth() -> None:
    x, y = problem(n=120, f=60, noise=3.0)
    probe = fit_linear(x, y, 4, seed=0)
    assert probe.penalty in PENALTIES
    mean, std = x.mean(0), x.std(0, correction=0)
    z = (x - mean) / std
    rest, held = held_out(y, 0.1, 0)
    scores = {}
    for penalty in PENALTIES:
        weight, bias = fit_logistic(z[rest], y[rest], 4, penalty)
        scores[penalty] = float(((z[held] @ weight + bias).argmax(1) == y[held]).float().mean())
    assert scores[probe.penalty] == pytest.approx(max(scores.values()), abs=1.5 / len(held))
    again, _ = fit_logistic(z, y, 4, probe.penalty)
    torch.testing.assert_close(probe.weight, again, atol=1e-4, rtol=1e-3)


def test_deterministic_and_a_function_of_the_training_part_alone() -> None:
    x, y = problem()
    a, b = fit_linear(x, y, 4, seed=0), fit_linear(x.clone(), y.clone(), 4, seed=0)
    for name in ("weight", "bias", "mean", "std"):
        assert torch.equal(getattr(a, name), getattr(b, name))


def test_held_out_takes_a_part_of_every_class_that_can_spare_it() -> None:
    labels = torch.tensor([0] * 30 + [1] * 2 + [2] * 1 + [5] * 10)
    rest, held = held_out(labels, 0.1, seed=0)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(43))
    assert torch.bincount(labels[held], minlength=6).tolist() == [3, 1, 0, 0, 0, 1]
    assert torch.equal(held, held_out(labels, 0.1, seed=0)[1])
    assert not torch.equal(held, held_out(labels, 0.1, seed=1)[1])


def test_constant_columns_and_missing_classes() -> None:
    x, y = problem(classes=3)
    wide = torch.cat([x, torch.full((len(x), 1), 7.0), torch.zeros(len(x), 1)], 1)
    probe = fit_linear(wide, y * 2, 6, seed=0)  # classes 1, 3 and 5 have no picture
    assert bool(torch.isfinite(probe.weight).all()) and bool(torch.isfinite(probe.bias).all())
    plain = fit_linear(x, y, 3, seed=0)
    predicted = probe.predict(wide)
    assert set(predicted.tolist()) <= {0, 2, 4}
    assert float((predicted // 2 == plain.predict(x)).float().mean()) > 0.97
    moved = wide.clone()
    moved[:, -2] += 1.0  # never seen to vary: it must not decide anything
    assert torch.equal(probe.predict(moved), predicted)


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1e4, 0.0), (1.0, 100.0)])
def test_scale_and_shift_of_the_features_do_not_matter(scale: float, shift: float) -> None:
    x, y = problem()
    plain, moved = fit_linear(x, y, 4, seed=0), fit_linear(scale * x + shift, y, 4, seed=0)
    assert float((plain.predict(x) == moved.predict(scale * x + shift)).float().mean()) > 0.98


@pytest.mark.parametrize("n", [2, 3, 8])
def test_very_few_pictures(n: int) -> None:
    x, y = problem(n=n, classes=2)
    assert bool(torch.isfinite(fit_linear(x, y, 2, seed=0).weight).all())


def test_groups_are_held_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = torch.arange(30).repeat_interleave(5)
    rest, held = module._held_groups(owners, 0.1, 0)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(150)) and len(held) == 15
    assert not set(owners[rest].tolist()) & set(owners[held].tolist())
    # noise whose rows repeat within a group: only what is told on other groups counts, so the strongest penalty is right
    base, labels = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    assert fit_linear(base[owners], labels[owners], 3, seed=0, groups=owners).penalty == max(PENALTIES)
