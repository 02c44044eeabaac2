"""What the positive is compared with: values by hand, and what each denominator is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smallview.objectives import Debiased, Decoupled, EqCo, Full, NearestSmoothing, UniformSmoothing, info_nce, nt_xent

ONE = torch.ones(1, dtype=torch.float64)


def loss_at(at, positive: float, negatives: list[float], temperature: float = 0.5, **choices: object) -> float:
    bank = at(torch.tensor([negatives], dtype=torch.float64))
    return float(info_nce(at(ONE), at(positive * ONE), bank, temperature=temperature, **choices))


def test_values_by_hand(at) -> None:
    """Positive .5, negatives 0 and -.2, temperature .5: logits 1, 0 and -.4."""
    e0, others = math.e, 1.0 + math.exp(-0.4)
    assert loss_at(at, 0.5, [0.0, -0.2]) == pytest.approx(math.log(e0 + others) - 1.0, abs=1e-12)
    assert loss_at(at, 0.5, [0.0, -0.2], denominator=Full()) == pytest.approx(math.log(e0 + others) - 1.0, abs=1e-12)
    assert loss_at(at, 0.5, [0.0, -0.2], denominator=Decoupled()) == pytest.approx(math.log(others) - 1.0, abs=1e-12)
    unbiased = (others / 2 - 0.1 * e0) / 0.9  # above the least, e^-2
    wanted = math.log(e0 + 2 * unbiased) - 1.0
    assert loss_at(at, 0.5, [0.0, -0.2], denominator=Debiased(0.1)) == pytest.approx(wanted, abs=1e-12)
    # so many of the query's own class that nothing would be left: the least
    wanted = math.log(e0 + 2 * math.exp(-2.0)) - 1.0
    assert loss_at(at, 0.5, [0.0, -0.2], denominator=Debiased(0.5)) == pytest.approx(wanted, abs=1e-12)
    # alpha takes the place of K in all of them
    choice = {"margin": EqCo(10.0)}
    assert loss_at(at, 0.5, [0.0, -0.2], **choice) == pytest.approx(math.log(e0 + 5 * others) - 1, abs=1e-12)
    got = loss_at(at, 0.5, [0.0, -0.2], denominator=Decoupled(), **choice)
    assert got == pytest.approx(math.log(5 * others) - 1, abs=1e-12)
    got = loss_at(at, 0.5, [0.0, -0.2], denominator=Debiased(0.1), **choice)
    assert got == pytest.approx(math.log(e0 + 10 * unbiased) - 1, abs=1e-12)
    got = loss_at(at, 0.5, [0.0, -0.2], denominator=Debiased(0.5), **choice)
    assert got == pytest.approx(math.log(e0 + 10 * math.exp(-2.0)) - 1, abs=1e-12)


@pytest.mark.parametrize("k", [1, 4, 30])
def test_equal_similarities(at, k: int) -> None:
    for similarity in (1.0, -0.3):
        negatives = [similarity] * k
        assert loss_at(at, similarity, negatives) == pytest.approx(math.log(1 + k), abs=1e-12)
        assert loss_at(at, similarity, negatives, denominator=Decoupled()) == pytest.approx(math.log(k), abs=1e-12)
        # the estimate of what is left is the same number, whatever the prior
        assert loss_at(at, similarity, negatives, denominator=Debiased(0.3)) == pytest.approx(math.log(1 + k), abs=1e-12)
        alpha = EqCo(256.0)
        got = [loss_at(at, similarity, negatives, denominator=x, margin=alpha) for x in (Decoupled(), Debiased(0.3))]
        assert got == pytest.approx([math.log(256), math.log(257)], abs=1e-12)


def test_the_decoupled_pull_is_the_same_for_every_positive(at, by_similarity, draw) -> None:
    """One over temperature, where the full one fades as the positive comes close; what the negatives get is a softmax of theirs."""
    similarity = torch.tensor([-0.5, 0.0, 0.9], dtype=torch.float64)
    bank = at(torch.tanh(draw(3, 6)))
    query, key = at(torch.ones(3, dtype=torch.float64)), at(similarity)

    def of(denominator: Full | Decoupled) -> tuple[Tensor, Tensor]:
        return by_similarity(
            lambda q, k, n: info_nce(q, k, n, temperature=0.2, denominator=denominator, reduction="none"), query, key, bank
        )

    positive, negative = of(Decoupled())
    torch.testing.assert_close(positive, torch.full((3,), -5.0, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(negative, 5.0 * torch.softmax(bank[..., 0] / 0.2, 1), rtol=0, atol=1e-10)
    full = of(Full())[0].abs()
    assert float(full[2]) < 0.7 * float(full[0]) < 3.5


def test_a_prior_of_zero_corrects_nothing(draw) -> None:
    query, key, bank = draw(5, 8, seed=1), draw(5, 8, seed=2), draw(9, 8, seed=3)
    for choice in ({}, {"margin": EqCo(77.0)}, {"soft_targets": UniformSmoothing(0.2)}):
        got = info_nce(query, key, bank, temperature=0.1, denominator=Debiased(0.0), **choice)
        torch.testing.assert_close(got, info_nce(query, key, bank, temperature=0.1, **choice), rtol=0, atol=1e-12)


def test_the_correction_takes_false_negatives_out(at) -> None:
    """3 of 10 negatives are the positive over again: with a prior of .3 the loss is that of the other 7, each worth 10 / 7."""
    true = [-0.4, -0.1, 0.0, 0.1, 0.2, -0.3, 0.05]
    got = loss_at(at, 0.6, [0.6] * 3 + true, denominator=Debiased(0.3))
    assert got == pytest.approx(loss_at(at, 0.6, true, margin=EqCo(10.0)), abs=1e-12)
    assert loss_at(at, 0.6, [0.6] * 3 + true) - got > 0.1


def test_at_the_least_no_gradient_reaches_the_negatives(at, by_similarity) -> None:
    query, key = at(ONE), at(0.99 * ONE)
    bank = at(torch.full((1, 4), -0.5, dtype=torch.float64))
    positive, negative = by_similarity(
        lambda q, k, n: info_nce(q, k, n, temperature=0.2, denominator=Debiased(0.5), reduction="none"), query, key, bank
    )
    assert float(negative.abs().max()) < 1e-12 < float(-positive[0])


@pytest.mark.parametrize("denominator", [Full(), Decoupled(), Debiased(0.1), Debiased(0.9)])
@pytest.mark.parametrize("soft", [None, UniformSmoothing(0.2), NearestSmoothing(0.2, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_temperatures_where_raw_exponentials_overflow(draw, denominator, soft, dtype: torch.dtype) -> None:
    z0 = draw(8, 16, seed=1).to(dtype)
    for z1 in (z0, -z0, draw(8, 16, seed=2).to(dtype)):
        query, key = z0.clone().requires_grad_(), z1.clone().requires_grad_()
        loss = nt_xent(query, key, temperature=0.005, denominator=denominator, soft_targets=soft, margin=EqCo(65536))
        loss.backward()
        assert bool(torch.isfinite(loss))
        assert query.grad is not None and key.grad is not None
        assert bool(torch.isfinite(query.grad).all()) and bool(torch.isfinite(key.grad).all())


@pytest.mark.parametrize("prior", [-0.1, 1.0, 2.0, math.nan])
def test_refused_priors(prior: float) -> None:
    with pytest.raises(ValueError) as caught:
        Debiased(prior)
    assert all(word in str(caught.value) for word in (f"prior is {prior}", "wanted", "1 / classes"))
