"""The ridge probe against scikit-learn, a loop, and itself: both forms, shifted and scaled features, features that do not vary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from smallview.evaluation.ridge import fit_ridge


def blobs(n: int, width: int, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    return centres[y] + torch.randn(n, width, generator=source), y


@pytest.mark.parametrize(("n", "width"), [(60, 8), (20, 50)])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_scores_are_those_of_scikit_learn(n: int, width: int, penalty: float) -> None:
    x, y = blobs(n, width)
    z, _ = blobs(200, width, seed=1)
    probe = fit_ridge(x, y, 3, penalty)
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    theirs = RidgeClassifier(alpha=n * penalty).fit(((x.double() - mean) / std).numpy(), y.numpy())
    wanted = theirs.decision_function(((z.double() - mean) / std).numpy())
    # their classes are -1 and 1, ours 0 and 1
    mine = ((z.double() - probe.mean) / probe.std) @ probe.weight + probe.bias
    np.testing.assert_allclose(2 * mine.numpy() - 1, wanted, atol=1e-9)
    assert probe.predict(z).tolist() == theirs.predict(((z.double() - mean) / std).numpy()).tolist()


def test_the_weights_minimise_what_they_should() -> None:
    """Numerically: no small step away from them is better."""
    x, y = blobs(30, 5)
    probe = fit_ridge(x, y, 3, 0.3)
    one_hot = torch.nn.functional.one_hot(y, 3).double()
    standard = (x.double() - probe.mean) / probe.std

    def cost(weight: torch.Tensor, bias: torch.Tensor) -> float:
        return float((standard @ weight + bias - one_hot).square().sum(1).mean() + 0.3 * weight.square().sum())

    best = cost(probe.weight, probe.bias)
    source = torch.Generator().manual_seed(3)
    for _ in range(50):
        step = 1e-3 * torch.randn(5, 3, generator=source, dtype=torch.float64)
        shift = 1e-3 * torch.randn(3, generator=source, dtype=torch.float64)
        assert cost(probe.weight + step, probe.bias) > best and cost(probe.weight, probe.bias + shift) > best


def test_scale_shift_and_dead_features_change_nothing() -> None:
    x, y = blobs(60, 8)
    z, _ = blobs(100, 8, seed=1)
    plain = fit_ridge(x, y, 3).predict(z)
    assert torch.equal(fit_ridge(1e4 * x + 1e3, y, 3).predict(1e4 * z + 1e3), plain)
    dead = torch.cat([x, torch.full((60, 2), 7.0)], 1)
    assert torch.equal(fit_ridge(dead, y, 3).predict(torch.cat([z, torch.full((100, 2), 7.0)], 1)), plain)
    assert fit_ridge(torch.zeros(9, 4), torch.arange(9) % 3, 3).predict(torch.zeros(2, 4)).shape == (2,)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_none_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match="wanted a number above 0"):
        fit_ridge(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), 2, penalty)
