"""Few labels: the same draws for all, and leave-one-out by formula against leaving one out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from smallview.evaluation import lowshot as module
from smallview.evaluation.lowshot import Ridge, choose_penalty, draw_labels, lowshot


def draw(n: int, f: int, seed: int = 0) -> Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed))


def test_draws_are_a_function_of_labels_and_number_alone() -> None:
    labels = torch.tensor([0, 1, 2] * 20)
    chosen = draw_labels(labels, 4, seed=0, which=3)
    assert len(set(chosen.tolist())) == 12
    assert torch.bincount(labels[chosen]).tolist() == [4, 4, 4]
    torch.manual_seed(5)
    np.testing.assert_array_equal(chosen, draw_labels(labels, 4, seed=0, which=3))
    for other in ({"seed": 1, "which": 3}, {"seed": 0, "which": 4}):
        assert set(draw_labels(labels, 4, **other).tolist()) != set(chosen.tolist())
    with pytest.raises(ValueError, match="class 2 has 20"):
        draw_labels(torch.tensor([0] * 30 + [1] * 30 + [2] * 20), 21, 0, 0)


def test_all_contestants_get_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    original = module.draw_labels

    def spy(*args: object) -> np.ndarray:
        chosen = original(*args)
        seen.append(chosen.tolist())
        return chosen

    monkeypatch.setattr(module, "draw_labels", spy)
    labels = torch.arange(60) % 3
    for features in (draw(60, 5), draw(60, 50, seed=1)):
        lowshot(features, labels, features, labels, per_class=3, draws=4, seed=0, classes=3)
    assert len(seen) == 8 and seen[:4] == seen[4:] and len({tuple(s) for s in seen}) == 4


def fitted_by_hand(x: Tensor, y: Tensor, strength: float) -> Callable[[Tensor], Tensor]:
    """Ridge with an intercept, from these pictures and nothing else."""
    mean, shift = x.mean(0), y.mean(0)
    a = x - mean
    weight = torch.linalg.solve(a.T @ a + strength * torch.eye(x.shape[1], dtype=x.dtype), a.T @ (y - shift))
    return lambda z: (z - mean) @ weight + shift


def case(n: int, f: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of mean zero around three centres, their labels, and others' features."""
    labels = torch.arange(n) % 3
    x = (draw(n, f, seed) + 1.5 * draw(3, f, seed + 100)[labels]).double()
    return x - x.mean(0), labels, draw(4, f, seed + 200).double()


@pytest.mark.parametrize(("n", "f"), [(6, 3), (6, 40), (12, 12), (12, 11), (30, 5)])
def test_leave_one_out_by_formula_is_leaving_one_out(n: int, f: int) -> None:
    x, labels, z = case(n, f, 0)
    x[1] = x[4]  # twins: a direction of no weight besides the constant
    x = x - x.mean(0)
    y = torch.nn.functional.one_hot(labels, 3).double()
    ridge = Ridge(x, labels, 3)
    scale = float(x.square().sum()) / n
    for penalty in module.RIDGE_PENALTIES:
        others = [[j for j in range(n) if j != i] for i in range(n)]
        by_hand = torch.stack([fitted_by_hand(x[o], y[o], penalty * scale)(x[i]) for i, o in enumerate(others)])
        torch.testing.assert_close(ridge.left_out(penalty), by_hand, atol=1e-8, rtol=1e-7)
        torch.testing.assert_close(ridge.scores(z, penalty), fitted_by_hand(x, y, penalty * scale)(z), atol=1e-8, rtol=1e-7)


def chosen_by_hand(ridge: Ridge, labels: list[int], voting: list[int]) -> set[float]:
    """The penalties that a reader of the rule would call right, in plain loops."""
    losses: dict[float, list[float]] = {}
    for penalty in module.RIDGE_PENALTIES:
        scores = ridge.left_out(penalty).tolist()
        for sharpness in module.SHARPNESS:
            each = [math.log(sum(math.exp(sharpness * (s - scores[i][labels[i]])) for s in scores[i])) for i in voting]
            if penalty not in losses or sum(each) < sum(losses[penalty]):
                losses[penalty] = each
    least = min(losses.values(), key=sum)
    near = {}
    for penalty, each in losses.items():
        worse = [a - b for a, b in zip(each, least, strict=True)]
        if statistics.mean(worse) <= statistics.stdev(worse) / len(worse) ** 0.5 + 1e-6:
            near[penalty] = abs(math.log(penalty / module.RIDGE_PENALTY))
    return {penalty for penalty, far in near.items() if far <= min(near.values()) + 1e-9}


def test_the_penalty_is_the_one_that_names_the_left_out_best() -> None:
    chosen = set()
    for seed in range(16):
        n = (30, 90)[seed % 2]
        x, labels, _ = case(n, (4, 40, 160)[seed % 3], seed)
        ridge = Ridge(x, labels, 3)
        got = choose_penalty(ridge, labels)
        assert got in chosen_by_hand(ridge, labels.tolist(), list(range(n)))
        chosen.add(got)
    assert len(chosen) > 3


def test_a_class_of_one_picture_has_no_vote() -> None:
    x, _, _ = case(6, 20, 0)
    assert choose_penalty(Ridge(x, torch.arange(6), 6), torch.arange(6)) == module.RIDGE_PENALTY
    lonely = torch.tensor([0] * 8 + [1] * 8 + [2])
    seen = []
    for seed in range(6):
        x = draw(17, 20, seed).double() + 3 * lonely[:, None]
        ridge = Ridge(x - x.mean(0), lonely, 3)
        assert choose_penalty(ridge, lonely) in chosen_by_hand(ridge, lonely.tolist(), list(range(16)))
        seen.append(
            chosen_by_hand(ridge, lonely.tolist(), list(range(16))) != chosen_by_hand(ridge, lonely.tolist(), list(range(17)))
        )
    assert any(seen)  # or the test could not tell


def test_few_labels_are_made_the_most_of() -> None:
    random = draw(2000, 30, 1)
    labels = torch.arange(2000) % 5
    x = random + 2.0 * draw(5, 30, 2)[labels] * (torch.arange(30) < 6)  # classes in six features, noise in the others
    few = lowshot(x[:1000], labels[:1000], x[1000:], labels[1000:], per_class=2, draws=10, seed=0, classes=5).mean
    fixed = []
    for which in range(10):
        drawn = torch.from_numpy(draw_labels(labels[:1000], 2, 0, which))
        mean = x[drawn].mean(0)
        ridge = Ridge((x[drawn] - mean).double(), labels[drawn], 5)
        z = (x[1000:] - mean).double()
        fixed.append(
            [100.0 * float((ridge.scores(z, p).argmax(1) == labels[1000:]).double().mean()) for p in module.RIDGE_PENALTIES]
        )
    assert few > torch.tensor(fixed).mean(0).max() - 5.0


def test_accuracy_is_right_where_the_answer_is_known() -> None:
    labels = torch.arange(90) % 3
    centres = 10 * torch.eye(3)
    train, test = centres[labels] + 0.1 * draw(90, 3), centres[labels] + 0.1 * draw(90, 3, seed=1)
    result = lowshot(train, labels, test, labels, per_class=1, draws=5, seed=0, classes=3)
    assert (result.mean, result.std, result.interval, result.draws) == (100.0, 0.0, 0.0, 5)
    blind = lowshot(draw(90, 3, seed=2), labels, draw(90, 3, seed=3), labels, per_class=2, draws=20, seed=0, classes=3)
    assert 20 < blind.mean < 47 and blind.std > 0
    assert blind.interval == pytest.approx(2.0930 * blind.std / 20**0.5, rel=1e-4)  # Student's, for 20 draws
    assert lowshot(train, labels, test, labels, per_class=1, draws=1, seed=0, classes=3).std == 0.0
