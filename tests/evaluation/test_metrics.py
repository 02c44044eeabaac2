"""Metrics against slow loops, scikit-learn and known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, balanced_accuracy_score, r2_score

from smallview.evaluation.metrics import figures, half_width, mean_average_precision, mean_class_accuracy, r_squared, t_factor


def test_mean_average_precision_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth = random.random((80, 5)) < 0.3
    scores = random.normal(size=(80, 5)).round(1)  # with ties
    wanted = 100 * np.mean([average_precision_score(truth[:, k], scores[:, k]) for k in range(5)])
    assert mean_average_precision(torch.from_numpy(scores), torch.from_numpy(truth)) == pytest.approx(wanted, abs=1e-3)
    # a label that no picture has is left out, and the order of equal scores plays no part
    more = np.concatenate([truth, np.zeros((80, 1), bool)], 1), np.concatenate([scores, scores[:, :1]], 1)
    assert mean_average_precision(torch.from_numpy(more[1]), torch.from_numpy(more[0])) == pytest.approx(wanted, abs=1e-3)
    order = random.permutation(80)
    shuffled = mean_average_precision(torch.from_numpy(scores[order]), torch.from_numpy(truth[order]))
    assert shuffled == pytest.approx(wanted, abs=1e-3)
    assert math.isnan(mean_average_precision(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)))


def test_mean_class_accuracy_and_r2_are_scikit_learns() -> None:
    random = np.random.default_rng(1)
    truth, predicted = random.integers(0, 4, 200), random.integers(0, 4, 200)
    wanted = 100 * balanced_accuracy_score(truth, predicted)
    assert mean_class_accuracy(torch.from_numpy(predicted), torch.from_numpy(truth)) == pytest.approx(wanted, abs=1e-3)
    numbers, guess = random.normal(size=(50, 2)), random.normal(size=(50, 2))
    assert r_squared(torch.from_numpy(guess), torch.from_numpy(numbers)) == pytest.approx(r2_score(numbers, guess), abs=1e-5)


@pytest.mark.parametrize(("percent", "n"), [(90.0, 100), (50.0, 1000), (0.0, 20), (100.0, 50)])
def test_the_interval_is_wilsons(percent: float, n: int) -> None:
    found = stats.binomtest(round(percent * n / 100), n).proportion_ci(0.95, "wilson")
    assert half_width(percent, n) == pytest.approx(50 * (found.high - found.low), abs=0.01)


def test_students_factor() -> None:
    assert (t_factor(1), round(t_factor(10_000), 2)) == (0.0, 1.96)


def test_uneven_classes_get_a_second_figure() -> None:
    truth = torch.tensor([0] * 8 + [1] * 2)
    told = figures("p", "knn", "classes", torch.zeros(10, dtype=torch.int64), truth, {})
    assert [(f.metric, f.value) for f in told] == [("knn top-1 %", 80.0), ("knn mean per class %", 50.0)]
    even = figures("p", "knn", "classes", torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1]), {})
    assert [f.metric for f in even] == ["knn top-1 %"]
