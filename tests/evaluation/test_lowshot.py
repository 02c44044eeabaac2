"""Few labels: the same draws for all, and leave-one-out by formula against leaving one out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from smallview.evaluation import lowshot as module
from smallview.evaluation.lowshot import draw_labels, lowshot, ridge_scores


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


@pytest.mark.parametrize(("n", "f"), [(6, 3), (6, 40), (12, 12)])
def test_leave_one_out_by_formula_is_leaving_one_out(n: int, f: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(n, f)
    x = x - x.mean(0)
    y = torch.nn.functional.one_hot(torch.arange(n) % 3, 3).float()
    z = draw(4, f, seed=1)
    shift = y.mean(0).double()
    kernel = x.double() @ x.double().T
    scale = float(torch.linalg.eigvalsh(kernel).clamp(min=0).mean())
    errors, scores = {}, {}
    for penalty in module.PENALTIES:
        strength = penalty * scale * torch.eye(f, dtype=torch.float64)

        def refit(keep: list[int], strength: Tensor = strength) -> Tensor:
            a = x[keep].double()
            return torch.linalg.solve(a.T @ a + strength, a.T @ (y[keep].double() - shift))

        out = [y[i].double() - shift - x[i].double() @ refit([j for j in range(n) if j != i]) for i in range(n)]
        errors[penalty] = float(torch.stack(out).square().mean())
        scores[penalty] = z.double() @ refit(list(range(n))) + shift
    best = min(errors, key=lambda p: (errors[p], -p))
    chosen, got = ridge_scores(x, y, z)
    assert errors[chosen] == pytest.approx(errors[best], rel=1e-4)
    torch.testing.assert_close(got.double(), scores[chosen], atol=1e-3, rtol=1e-3)
    for penalty in module.PENALTIES:  # each fixed penalty, too
        monkeypatch.setattr(module, "PENALTIES", (penalty,))
        torch.testing.assert_close(ridge_scores(x, y, z)[1].double(), scores[penalty], atol=2e-3, rtol=2e-3)


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
