"""Soft targets: light-moco's six strategies as values, and what a target distribution has to obey."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives import EqCo, InfoNCE, NearestSmoothing, OneHot, UniformSmoothing, info_nce
from smallview.records import Candidates, Embeddings
from smallview.schedules import Cosine, Delayed, Staircase

Soft = OneHot | UniformSmoothing | NearestSmoothing
THIRD = 1.0 / 3.0


def halves(*ends: int) -> tuple[tuple[int, float], ...]:
    """Three groups of ranks that get a half, a quarter and a quarter."""
    return tuple(zip(ends, (0.5, 0.25, 0.25), strict=True))


# Strategies 1 to 6 as settings. Strategy 3 puts .4 on the negatives, each rank half of the one before, the last twice.
HALVING = (*((rank, 2.0**-rank) for rank in range(1, 11)), (11, 2.0**-10))
STRATEGIES: list[tuple[Soft, float, float]] = [
    (OneHot(), 0.6833195726, 1.3657497481),
    (NearestSmoothing(0.2, 1), 0.8804471565, 1.6519233655),
    (NearestSmoothing(0.2, 5), 1.5103307167, 2.9707688583),
    (NearestSmoothing(0.2, 10), 1.8752697003, 3.6887308207),
    (NearestSmoothing(0.2, 20), 2.1503415317, 4.2692339914),
    (NearestSmoothing(0.1, 20), 1.4168305521, 2.8174918697),
    (NearestSmoothing(0.2, 5, halves(1, 3, 5)), 1.2741243816, 2.4762017985),
    (NearestSmoothing(0.2, 10, halves(1, 4, 10)), 1.3783335447, 2.6759539279),
    (NearestSmoothing(0.2, 20, halves(2, 8, 20)), 1.6402262743, 3.2342055590),
    (NearestSmoothing(0.2, 30, halves(3, 12, 30)), 1.8016242627, 3.5653603492),
    (NearestSmoothing(0.4, 11, HALVING), 1.7096799206, 3.2848357047),
    (NearestSmoothing(0.5, 1), 1.1761385325, 2.0811837917),
    (UniformSmoothing(0.2), 2.5424064029, 5.0845017762),
    (UniformSmoothing(0.1), 1.6128629877, 3.2251257621),
    (NearestSmoothing(0.2, 20, ((2, THIRD), (8, THIRD), (20, THIRD))), 1.8277339238, 3.6117050007),
]
GROUPS = NearestSmoothing(0.2, 20, halves(2, 8, 20))
KINDS: list[Soft] = [UniformSmoothing(0.2), NearestSmoothing(0.2, 1), NearestSmoothing(0.2, 20), GROUPS]


def losses_of(soft: Soft, temperature: float = 0.1, **choices: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, n: info_nce(q, k, n, temperature=temperature, soft_targets=soft, reduction="none", **choices)


def targets_of(
    by_similarity, soft: Soft, query: Tensor, key: Tensor, bank: Tensor, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The target distribution as the gradient tells it, p - temperature * d loss / d similarity: [B] and [B, K]."""
    positive, negative = by_similarity(losses_of(soft, temperature), query, key, bank)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1) / temperature
    share = torch.softmax(logits, 1)
    return share[:, 0] - temperature * positive, share[:, 1:] - temperature * negative


@pytest.mark.parametrize(("soft", "one_way", "both_ways"), STRATEGIES)
def test_golden_strategies(rows, soft: Soft, one_way: float, both_ways: float) -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", 40)
    for dtype, tolerance in ((torch.float64, 6e-11), (torch.float32, 1e-5)):
        q, k, n = query.to(dtype), key.to(dtype), bank.to(dtype)
        there = info_nce(q, k, n, temperature=0.1, soft_targets=soft)
        back = info_nce(k, q, n.expand(4, -1, -1), temperature=0.1, soft_targets=soft)
        assert [float(there), float(there + back)] == pytest.approx([one_way, both_ways], abs=tolerance)
        both = Embeddings(torch.stack([q, k]), torch.stack([q, k]), Candidates(n), (0, 1), (0, 1))
        assert float(InfoNCE(0.1, soft_targets=soft, directions="sum")(both, 0.0)) == pytest.approx(both_ways, abs=tolerance)
        assert float(InfoNCE(0.1, soft_targets=soft)(both, 0.0)) == pytest.approx(both_ways / 2, abs=tolerance)


def test_golden_losses_of_each_query(rows) -> None:
    got = losses_of(GROUPS)(rows("query", 4), rows("key", 4), rows("negatives", 40))
    assert got.tolist() == pytest.approx([1.3241255029, 1.9333730279, 1.7378904073, 1.5655161590], abs=6e-11)


def test_golden_targets_of_the_first_query(rows, by_similarity) -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", 40)
    positive, negative = targets_of(by_similarity, GROUPS, query, key, bank)
    assert float(positive[0]) == pytest.approx(0.8, abs=1e-12)
    ranks = negative[0].sort(descending=True)
    assert ranks.values.tolist() == pytest.approx(
        [0.05] * 2 + [0.2 * 0.25 / 6] * 6 + [0.2 * 0.25 / 12] * 12 + [0.0] * 20, abs=1e-12
    )
    assert set(ranks.indices[:2].tolist()) == {2, 5}
    assert set(ranks.indices[2:8].tolist()) == {1, 17, 20, 13, 9, 32}


@pytest.mark.parametrize("soft", [NearestSmoothing(0.2, 20), GROUPS, UniformSmoothing(0.2)])
def test_golden_gradient_on_the_positive_is_the_same_for_all_strategies(rows, by_similarity, soft: Soft) -> None:
    positive, _ = by_similarity(losses_of(soft), rows("query", 4), rows("key", 4), rows("negatives", 40))
    assert positive.tolist() == pytest.approx([1.7327551755, -4.3131781936, -3.9914158532, -3.4806771239], abs=6e-11)


@pytest.mark.parametrize("soft", [UniformSmoothing(0.0), NearestSmoothing(0.0, 5), NearestSmoothing(0.0, 5, ((5, 1.0),))])
def test_an_amount_of_zero_is_info_nce_to_the_bit(draw, soft: Soft) -> None:
    query, key, bank = draw(6, 8, seed=1), draw(6, 8, seed=2), draw(9, 8, seed=3)
    for choices in ({}, {"margin": EqCo(256)}):
        plain = info_nce(query, key, bank, temperature=0.1, reduction="none", **choices)
        assert torch.equal(losses_of(soft, **choices)(query, key, bank), plain)
    # and asks for no neighbours
    assert torch.equal(losses_of(soft)(query, key, bank[:2]), info_nce(query, key, bank[:2], temperature=0.1, reduction="none"))


@pytest.mark.parametrize("soft", [soft for soft, _, _ in STRATEGIES])
def test_targets_sum_to_one_and_lie_on_the_most_similar(rows, by_similarity, soft: Soft) -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", 40)
    positive, negative = targets_of(by_similarity, soft, query, key, bank)
    amount = float(soft.amount)
    torch.testing.assert_close(positive, torch.full((4,), 1.0 - amount, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(negative.sum(1), torch.full((4,), amount, dtype=torch.float64), rtol=0, atol=1e-12)
    if isinstance(soft, NearestSmoothing):
        most = (query @ bank.T).topk(soft.nearest, dim=1).indices
        for i in range(4):
            assert {j for j in range(40) if float(negative[i, j]) > 1e-9} == set(most[i].tolist())
    else:
        torch.testing.assert_close(negative, torch.full((4, 40), amount / 40, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("amount", [0.1, 0.45])
def test_uniform_smoothing_is_torchs_label_smoothing(draw, k: int, amount: float) -> None:
    query, key, bank = (F.normalize(draw(n, 8, seed=s), dim=1) for n, s in ((6, 1), (6, 2), (k, 3)))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1) / 0.1
    first = torch.zeros(6, dtype=torch.int64)
    wanted = F.cross_entropy(logits, first, reduction="none", label_smoothing=amount * (k + 1) / k)
    got = losses_of(UniformSmoothing(amount))(query, key, bank)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(losses_of(NearestSmoothing(amount, k))(query, key, bank), wanted, rtol=0, atol=1e-12)
    # with the margin too, which is part of the logits
    logits[:, 1:] += math.log(64.0 / k)
    wanted = F.cross_entropy(logits, first, reduction="none", label_smoothing=amount * (k + 1) / k)
    got = losses_of(UniformSmoothing(amount), margin=EqCo(64.0))(query, key, bank)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft", KINDS)
@pytest.mark.parametrize("alpha", [None, 4096.0])
def test_gradients_are_shares_minus_targets(draw, by_similarity, soft: Soft, alpha: float | None) -> None:
    query, key, bank = (F.normalize(draw(n, 8, seed=s), dim=1) for n, s in ((6, 1), (6, 2), (25, 3)))
    margin = None if alpha is None else EqCo(alpha)
    positive, negative = by_similarity(losses_of(soft, 0.1, margin=margin), query, key, bank)
    torch.testing.assert_close(positive + negative.sum(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-11)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1) / 0.1
    logits[:, 1:] += 0.0 if alpha is None else math.log(alpha / 25)
    share, (first, rest) = torch.softmax(logits, 1), targets_of(by_similarity, soft, query, key, bank)
    torch.testing.assert_close(positive, (share[:, 0] - first) / 0.1, rtol=0, atol=1e-10)
    torch.testing.assert_close(negative, (share[:, 1:] - rest) / 0.1, rtol=0, atol=1e-10)


@pytest.mark.parametrize("soft", [UniformSmoothing(0.2), NearestSmoothing(0.2, 3)])
def test_a_positive_that_holds_its_share_is_let_be_and_one_beyond_it_pushed_away(at, by_similarity, soft: Soft) -> None:
    """With equal negatives p0 = 1 / (1 + K e^(s - s0) / temperature): the sign flips where it is 1 - amount."""
    k, temperature = 5, 0.5
    fixed_point = temperature * math.log(0.8 / (0.2 / k))
    for beyond, sign in ((-0.05, -1.0), (0.0, 0.0), (0.05, 1.0)):
        similarity = torch.tensor([-0.9 + fixed_point + beyond], dtype=torch.float64)
        positive, _ = by_similarity(
            losses_of(soft, temperature),
            at(torch.ones(1, dtype=torch.float64)),
            at(similarity),
            at(torch.full((1, k), -0.9, dtype=torch.float64)),
        )
        assert float(positive[0]) * sign > 1e-3 if sign else abs(float(positive[0])) < 1e-12


@pytest.mark.parametrize(
    ("soft", "entropy"),
    [
        (NearestSmoothing(0.2, 20), 1.0995488782),
        (NearestSmoothing(0.2, 5), 0.8222900060),
        (NearestSmoothing(0.1, 20), 0.6246562007),
        (GROUPS, 0.9914946017),
        (UniformSmoothing(0.2), None),
    ],
)
def test_the_least_loss_is_the_entropy_of_the_target(at, rows, soft: Soft, entropy: float | None) -> None:
    k = getattr(soft, "nearest", 20)
    shares = {GROUPS: [0.05] * 2 + [0.05 / 6] * 6 + [0.05 / 12] * 12}.get(soft, [float(soft.amount) / k] * k)
    # similarities whose softmax is the target: nothing is left to learn
    target = torch.tensor([[1.0 - float(soft.amount), *shares]], dtype=torch.float64)
    similarity = 0.1 * (target.log() - target.log().max())  # the positive at 1 - 1 = 0
    query = at(torch.ones(1, dtype=torch.float64))
    bank = at(similarity[:, 1:]).requires_grad_()
    loss = losses_of(soft, 0.1)(query, at(similarity[:, 0]), bank)
    least = -float((target * target.log()).sum())
    assert float(loss.detach()) == pytest.approx(least, abs=1e-10)
    if entropy is not None:
        assert least == pytest.approx(entropy, abs=6e-11)
    assert float(torch.autograd.grad(loss.sum(), bank)[0].abs().max()) < 1e-10
    # and everything else costs more
    others = losses_of(soft)(rows("query", 4), rows("key", 4), rows("negatives", 20 if k == 20 else 40))
    assert float(others.min()) > least - 1e-12


@pytest.mark.parametrize("soft", [NearestSmoothing(0.2, 5), GROUPS])
def test_ranks_do_not_depend_on_temperature_or_margin(rows, by_similarity, soft: Soft) -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", 40)
    at_01, at_05 = (targets_of(by_similarity, soft, query, key, bank, t)[1] for t in (0.1, 0.5))
    torch.testing.assert_close(at_01, at_05, rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft", KINDS)
def test_targets_carry_no_gradient(draw, smooth, soft: Soft) -> None:
    """The gradient is that of the loss whose target was written down beforehand, with respect to all that goes in."""
    leaves = [F.normalize(draw(n, 8, seed=s), dim=1).requires_grad_() for n, s in ((5, 1), (5, 2), (22, 3))]
    query, key, bank = leaves
    got = torch.autograd.grad(losses_of(soft)(query, key, bank).sum(), leaves)
    reference = smooth(float(soft.amount), getattr(soft, "nearest", None), getattr(soft, "groups", None))
    target = torch.tensor([reference.targets((q @ bank.T).tolist()) for q in query.detach()], dtype=torch.float64)
    q, k, n = (F.normalize(x, dim=1) for x in leaves)
    log_share = torch.log_softmax(torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], 1) / 0.1, 1)
    wanted = -(1.0 - target.sum(1)) * log_share[:, 0] - (target * log_share[:, 1:]).sum(1)
    torch.testing.assert_close(got, torch.autograd.grad(wanted.sum(), leaves), rtol=0, atol=1e-11)


def test_ranks_come_from_the_query_and_not_from_the_key(at) -> None:
    """Two dimensions: the key leans to the negative that the query is farther from."""
    angle = torch.tensor([0.0, 40.0, -30.0, 45.0], dtype=torch.float64) * math.pi / 180  # query, key, two negatives
    query, key, near, far = torch.stack([angle.cos(), angle.sin()], 1)
    bank = torch.stack([near, far])
    got = losses_of(NearestSmoothing(0.3, 1), 0.5)(query[None], key[None], bank)
    logits = torch.stack([query @ key, query @ near, query @ far]) / 0.5
    target = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(got[0], -(target * logits.log_softmax(0)).sum(), rtol=0, atol=1e-12)
    assert float(key @ far) > float(key @ near)


def test_masked_entries_are_never_neighbours(draw, slow_one, smooth) -> None:
    query, key, bank = draw(3, 8, seed=1), draw(3, 8, seed=2), draw(12, 8, seed=3)
    best = (F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T).argsort(1, descending=True)[:, :2]
    for candidates in (
        Candidates(bank, own=best),
        Candidates(bank, is_negative=torch.ones(3, 12, dtype=torch.bool).scatter(1, best, False)),
    ):
        for soft, reference in ((NearestSmoothing(0.2, 4), smooth(0.2, 4)), (UniformSmoothing(0.2), smooth(0.2))):
            term = InfoNCE(0.1, soft_targets=soft)
            got = term(Embeddings(query[None], key[None], candidates, (0,), (1,)), 0.0)
            wanted = []
            for i in range(3):
                rest = [bank[j].tolist() for j in range(12) if j not in best[i]]
                wanted.append(slow_one(query[i].tolist(), key[i].tolist(), rest, 0.1, smooth=reference))
            assert float(got) == pytest.approx(sum(wanted) / 3, abs=1e-10)


def test_smoothing_is_off_while_warming_up_and_then_what_the_schedule_says(rows) -> None:
    q, k, n = rows("query", 4), rows("key", 4), rows("negatives", 40)
    embeddings = Embeddings(q[None], k[None], Candidates(n), (0,), (1,))
    amount = Delayed(Staircase(Cosine(0.0, 0.2), stairs=100), until=0.03)
    for soft in (UniformSmoothing(amount), NearestSmoothing(amount, 20)):
        term = InfoNCE(0.1, soft_targets=soft)
        for progress in (0.0, 0.02, 0.0299):
            assert torch.equal(term(embeddings, progress), InfoNCE(0.1)(embeddings, progress))
        assert not torch.equal(term(embeddings, 0.03), InfoNCE(0.1)(embeddings, 0.03))
    # epoch 50 of 100: half of it
    half = InfoNCE(0.1, soft_targets=NearestSmoothing(amount, 20))(embeddings, 0.505)
    assert float(half) == pytest.approx(1.4168305521, abs=6e-11)


@pytest.mark.parametrize("amount", [-0.1, 1.0, 1.5, math.nan, Cosine(0.0, 1.2)])
@pytest.mark.parametrize("make", [UniformSmoothing, lambda amount: NearestSmoothing(amount, 3)])
def test_refused_amounts(make, amount) -> None:
    with pytest.raises(ValueError) as caught:
        make(amount)
    assert f"amount is {amount}" in str(caught.value) and "wanted" in str(caught.value)


@pytest.mark.parametrize(
    ("nearest", "groups", "words"),
    [
        (0, None, ("nearest is 0", "wanted 1 or more")),
        (-3, None, ("nearest is -3", "wanted 1 or more")),
        (20, ((2, 0.5), (8, 0.5)), ("8", "20", "wanted", "nearest=8")),
        (5, ((2, 0.5), (8, 0.5)), ("8", "5", "wanted")),
        (8, ((2, 0.5), (8, 0.4)), ("0.9", "wanted", "sum to 1")),
        (8, ((2, 1.5), (8, -0.5)), ("wanted", "sum to 1")),
        (8, ((5, 0.5), (2, 0.25), (8, 0.25)), ("[5, 2, 8]", "wanted rising")),
        (8, ((0, 0.5), (8, 0.5)), ("[0, 8]", "wanted rising")),
        (8, ((2, 0.5), (2, 0.25), (8, 0.25)), ("[2, 2, 8]", "wanted rising")),
        (8, (), ("[]", "wanted")),
    ],
)
def test_refused_neighbours(nearest: int, groups: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        NearestSmoothing(0.2, nearest, groups)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_more_neighbours_than_negatives_are_refused(rows) -> None:
    with pytest.raises(ValueError) as caught:
        info_nce(rows("query", 4), rows("key", 4), rows("negatives", 4), temperature=0.1, soft_targets=NearestSmoothing(0.2, 5))
    assert all(word in str(caught.value) for word in ("nearest is 5", "4 negatives", "wanted", "nearest=4"))
