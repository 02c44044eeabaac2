"""EqCo: golden values, and the identities that make `alpha` the number of negatives, whatever K is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives import EqCo, InBatch, InfoNCE, NoMargin, Queue, info_nce, nt_xent
from smallview.records import Candidates, Embedded, Embeddings

CPU = torch.device("cpu")
ALPHAS = (16, 64, 256, 4096, 65536, None)  # the last column is plain InfoNCE
TABLE = {
    4: (1.3298892142, 2.4359260590, 3.7278092146, 6.4673758087, 9.2378329014, 0.5635913534),
    8: (1.2249786231, 2.3022416586, 3.5794431331, 6.3127731704, 9.0828031764, 0.8104914679),
    16: (0.8695766176, 1.8257802046, 3.0482269156, 5.7589701202, 8.5274568252, 0.8695766176),
    32: (0.5901670193, 1.4039333556, 2.5558280189, 5.2362572253, 8.0026368373, 0.9447434153),
    64: (0.4020456113, 1.0731714013, 2.1418061488, 4.7842966887, 7.5479920048, 1.0731714013),
}
SIMO = {
    (7, 7): (0.5687883416, 0.1532523237, 0.5619424180),
    (7, 256): (3.2466864911, 1.9540094674, 3.3526249126),
    (4, 256): (3.2538935204, 2.2992211923, 2.0147387429),
    (3, 256): (3.1410612077, 2.4147011275, 1.2562904579),
    (1, 256): (1.5483918506, 0.0563785016, 0.9637185565),
}


def the_first_others(b: int, k: int) -> Tensor:
    """The first k columns of each row without the diagonal, int64 [b, k]."""
    return torch.tensor([[j for j in range(b) if j != i][:k] for i in range(b)])


@pytest.mark.parametrize(("k", "column"), [(k, c) for k in TABLE for c in range(6)])
def test_golden_table(rows, k: int, column: int) -> None:
    query, key, bank, wanted = rows("query", 4), rows("key", 4), rows("negatives", k), TABLE[k][column]
    margin = NoMargin() if ALPHAS[column] is None else EqCo(ALPHAS[column])
    for negatives in (bank, bank.expand(4, -1, -1)):
        assert float(info_nce(query, key, negatives, temperature=0.2, margin=margin)) == pytest.approx(wanted, abs=6e-11)
        single = info_nce(query.float(), key.float(), negatives.float(), temperature=0.2, margin=margin)
        assert single.dtype == torch.float32
        assert float(single) == pytest.approx(wanted, abs=1e-5)
    term = InfoNCE(0.2, margin=margin)
    got = term(Embeddings(query[None], key[None], Candidates(bank), (0,), (1,)), 0.0)
    assert float(got) == pytest.approx(wanted, abs=6e-11)


def test_golden_losses_and_gradients_of_each_query(rows, by_similarity) -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", 16)
    losses = info_nce(query, key, bank, temperature=0.2, margin=EqCo(256), reduction="none")
    assert losses.tolist() == pytest.approx([1.8736922248, 3.3635912751, 3.3940912086, 3.5615329538], abs=6e-11)

    def on(alpha: float) -> tuple[Tensor, Tensor]:
        return by_similarity(
            lambda q, k, n: info_nce(q, k, n, temperature=0.2, margin=EqCo(alpha), reduction="none"), query, key, bank
        )

    positive, negative = on(256)
    assert positive.tolist() == pytest.approx([-4.2322217407, -4.8269463060, -4.8321447530, -4.8580236865], abs=6e-11)
    assert negative[0, :4].tolist() == pytest.approx([0.0014999375, 0.5035723237, 1.5335189833, 0.0091268914], abs=6e-11)
    torch.testing.assert_close(positive + negative.sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert on(16)[0].tolist() == pytest.approx([-1.2811967376, -3.1773762263, -3.2137901400, -3.4069184993], abs=6e-11)


@pytest.mark.parametrize(
    ("k", "alpha", "wanted"), [(16, 16, 0.6745299661), (16, 256, 1.2255571369), (64, 256, 1.2552545580), (4, 256, 1.4104208534)]
)
def test_golden_gradient_norm(rows, by_similarity, k: int, alpha: int, wanted: float) -> None:
    """The norm of d loss / d query as a free vector, of which the losses here keep the part that turns it."""
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", k)

    def loss(q: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return info_nce(q, p, n, temperature=0.2, margin=EqCo(alpha), reduction="none")

    positive, negative = by_similarity(loss, query, key, bank)
    free = (positive[:, None] * key + negative @ bank) / 4  # [B, D]
    assert float(free.norm()) == pytest.approx(wanted, abs=6e-11)
    turned = query.clone().requires_grad_()
    (got,) = torch.autograd.grad(loss(turned, key, bank).mean(), turned)
    torch.testing.assert_close(got, free - (free * query).sum(1, keepdim=True) * query, rtol=0, atol=1e-12)


def test_golden_at_another_temperature_and_with_two_views(rows) -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", 16)
    assert float(info_nce(query, key, bank, temperature=0.07, margin=EqCo(65536))) == pytest.approx(7.1640275159, abs=6e-11)
    # SimCLR with 8 pictures: 16 queries, 14 negatives
    for alpha, wanted in ((14, 0.9190791183), (256, 3.3101151569)):
        got = nt_xent(rows("query", 8), rows("key", 8), temperature=0.2, margin=EqCo(alpha))
        assert float(got) == pytest.approx(wanted, abs=6e-11)
    plain = nt_xent(rows("query", 8), rows("key", 8), temperature=0.2)
    assert float(plain) == pytest.approx(0.9190791183, abs=6e-11)


@pytest.mark.parametrize(("k", "alpha"), SIMO)
def test_golden_simo(rows, k: int, alpha: int) -> None:
    query, key, chosen = rows("query", 8), rows("key", 8), the_first_others(8, k)
    losses = info_nce(query, key, key[chosen], temperature=0.2, margin=EqCo(alpha), reduction="none")
    got = [float(losses.mean()), float(losses[0]), float(losses[7])]
    assert got == pytest.approx(list(SIMO[k, alpha]), abs=6e-11)
    if k == 7:  # all others, as the default has it
        others = info_nce(query, key, temperature=0.2, margin=EqCo(alpha), reduction="none")
        torch.testing.assert_close(others, losses, rtol=0, atol=1e-12)
    # the same through the term, whose bank is the whole batch and a mask
    is_negative = torch.zeros(8, 8, dtype=torch.bool).scatter(1, chosen, True)
    own = torch.arange(8)[:, None]
    candidates = Candidates(key[None], own, is_negative, chosen)
    term = InfoNCE(0.2, margin=EqCo(alpha))(Embeddings(query[None], key[None], candidates, (0,), (1,)), 0.0)
    assert float(term) == pytest.approx(SIMO[k, alpha][0], abs=6e-11)


def test_alpha_equal_to_k_is_info_nce_in_value_and_gradient(draw) -> None:
    for k in (1, 6, 33):
        parts = [draw(5, 8, seed=1), draw(5, 8, seed=2), draw(k, 8, seed=3)]
        out = []
        for margin in (EqCo(k), None):
            leaves = [x.clone().requires_grad_() for x in parts]
            loss = info_nce(*leaves, temperature=0.1, margin=margin)
            out.append((loss, torch.autograd.grad(loss, leaves)))
        torch.testing.assert_close(out[0], out[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_repeating_the_negatives_changes_nothing(draw, rows, times: int, temperature: float) -> None:
    key, bank = draw(5, 8, seed=2), draw(7, 8, seed=3)

    def value(negatives: Tensor, margin: EqCo | None) -> tuple[Tensor, Tensor]:
        query = draw(5, 8, seed=1).requires_grad_()
        loss = info_nce(query, key, negatives, temperature=temperature, margin=margin)
        return loss.detach(), torch.autograd.grad(loss, query)[0]

    for alpha in (3.0, 256.0):
        torch.testing.assert_close(value(bank.repeat(times, 1), EqCo(alpha)), value(bank, EqCo(alpha)), rtol=0, atol=1e-12)
    assert float(value(bank.repeat(times, 1), None)[0] - value(bank, None)[0]) > 0.01
    # alpha = times * K is plain InfoNCE on the repeated negatives
    torch.testing.assert_close(value(bank, EqCo(7 * times)), value(bank.repeat(times, 1), None), rtol=0, atol=1e-12)


def test_repeating_the_negatives_golden(rows) -> None:
    query, key, four_times = rows("query", 4), rows("key", 4), rows("negatives", 16).repeat(4, 1)
    assert float(info_nce(query, key, four_times, temperature=0.2, margin=EqCo(256))) == pytest.approx(3.0482269156, abs=6e-11)
    assert float(info_nce(query, key, four_times, temperature=0.2)) == pytest.approx(1.8257802046, abs=6e-11)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("k", [1, 7, 300])
@pytest.mark.parametrize(("alpha", "wanted"), [(256, 5.5490760849), (65536, 11.0903701476), (0.5, math.log(1.5))])
def test_equal_similarities_give_log_of_one_plus_alpha(k: int, temperature: float, alpha: float, wanted: float) -> None:
    same = F.normalize(torch.ones(3, 8, dtype=torch.float64), dim=1)
    got = info_nce(same, same, same[:1].expand(k, -1), temperature=temperature, margin=EqCo(alpha))
    assert float(got) == pytest.approx(wanted, abs=6e-11)
    collapsed = InfoNCE(temperature, margin=EqCo(alpha))
    embeddings = Embeddings(same[None], same[None], Candidates(same[:1].expand(k, -1)), (0,), (1,))
    assert float(collapsed(embeddings, 0.0)) == pytest.approx(wanted, abs=6e-11)


def test_margin_weight_and_shifted_logit_are_one_loss(draw) -> None:
    for k, alpha, temperature in ((5, 256.0, 0.2), (9, 4.0, 0.07), (16, 65536.0, 0.5)):
        parts = [F.normalize(draw(6, 8, seed=1), dim=1), F.normalize(draw(6, 8, seed=2), dim=1)]
        bank = F.normalize(draw(k, 8, seed=3), dim=1)

        def forms(
            q: Tensor, p: Tensor, bank: Tensor = bank, k: int = k, alpha: float = alpha, temperature: float = temperature
        ) -> list[Tensor]:
            q, p = F.normalize(q, dim=1), F.normalize(p, dim=1)
            s0, s = (q * p).sum(1), q @ bank.T
            margin = temperature * math.log(alpha / k)
            e0, e = torch.exp((s0 - margin) / temperature), torch.exp(s / temperature)
            weighted = torch.exp(s0 / temperature) / (torch.exp(s0 / temperature) + alpha / k * e.sum(1))
            logits = torch.cat([(s0 / temperature)[:, None], s / temperature + math.log(alpha / k)], 1)
            return [
                -torch.log(e0 / (e0 + e.sum(1))).mean(),
                -torch.log(weighted).mean(),
                F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64)),
                info_nce(q, p, bank, temperature=temperature, margin=EqCo(alpha)),
            ]

        leaves = [x.clone().requires_grad_() for x in parts]
        losses = forms(*leaves)
        gradients = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
        for loss, gradient in zip(losses[:3], gradients[:3], strict=True):
            torch.testing.assert_close((losses[3], gradients[3]), (loss, gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("k", "margin"), [(4, 0.8317766167), (8, 0.6931471806), (16, 0.5545177444), (32, 0.4158883083), (64, 0.2772588722)]
)
def test_the_margin_on_the_similarity(k: int, margin: float) -> None:
    assert 0.2 * EqCo(256).shift(k) == pytest.approx(margin, abs=6e-11)
    counts = EqCo(256).shift(torch.tensor([k, 256]))
    assert isinstance(counts, Tensor)
    assert (0.2 * counts).tolist() == pytest.approx([margin, 0.0], abs=1e-6)


def test_sign(draw) -> None:
    query, key, bank = draw(9, 8, seed=1), draw(9, 8, seed=2), draw(12, 8, seed=3)

    def loss(margin: EqCo | None) -> Tensor:
        return info_nce(query, key, bank, temperature=0.2, margin=margin, reduction="none")

    assert bool((loss(EqCo(13)) > loss(None)).all()) and bool((loss(EqCo(11)) < loss(None)).all())


def steady(at, k: int, alpha: float | None) -> Tensor:
    """|d loss / d positive similarity| of queries at .7, with K negatives uniform on the sphere in 128 dimensions."""
    n = min(4096, 2**20 // k)
    draws = np.random.default_rng(0)
    along = draws.standard_normal((n, k))
    # one coordinate of a uniform direction: the other 127 count by their length alone, whose square is chi-squared
    similarity = torch.from_numpy(along / np.sqrt(along**2 + draws.chisquare(127, (n, k))))
    query, key = at(torch.ones(n, dtype=torch.float64)), at(torch.full((n,), 0.7, dtype=torch.float64))
    margin = NoMargin() if alpha is None else EqCo(alpha)
    losses = info_nce(query, key, at(similarity), temperature=0.2, margin=margin, reduction="none")
    return -torch.expm1(-losses) / 0.2  # (1 - p0) / temperature


@pytest.mark.parametrize(
    ("k", "with_margin", "without"),
    [(1, 4.394, 0.161), (4, 4.452, 0.582), (16, 4.469, 1.732), (64, 4.474, 3.400), (256, 4.475, 4.475), (1024, 4.475, 4.858)],
)
def test_the_pull_is_steady_in_k_with_the_margin_and_not_without(at, k: int, with_margin: float, without: float) -> None:
    assert float(steady(at, k, 256.0).mean()) == pytest.approx(with_margin, rel=0.01)
    assert float(steady(at, k, None).mean()) == pytest.approx(without, rel=0.02 if k == 1 else 0.01)


@pytest.mark.parametrize(("k", "wanted"), [(16, 0.0544), (64, 0.0273), (256, 0.0135)])
def test_fewer_negatives_are_noisier_by_one_over_their_root(at, k: int, wanted: float) -> None:
    # the spread of 4,096 draws is itself known to about 1 part in 90
    assert float(steady(at, k, 256.0).std()) == pytest.approx(wanted, rel=0.06)


def test_limits_of_alpha(draw) -> None:
    query, key, bank = (F.normalize(draw(n, 8, seed=s), dim=1) for n, s in ((5, 1), (5, 2), (7, 3)))

    def loss(alpha: float) -> Tensor:
        return info_nce(query, key, bank, temperature=0.2, margin=EqCo(alpha), reduction="none")

    torch.testing.assert_close(loss(1e-12), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-8)
    mean = torch.exp(query @ bank.T / 0.2).mean(1).log()
    torch.testing.assert_close(loss(1e15) - math.log(1e15), mean - (query * key).sum(1) / 0.2, rtol=0, atol=1e-8)


def test_the_bound_on_information_has_a_ceiling_that_k_does_not_move(at) -> None:
    """log(1 + alpha) - loss: at most log(1 + alpha), and reached where the positive is as near and the negatives as far as can be."""
    one = torch.ones(2, dtype=torch.float64)
    for k in (1, 16, 300):
        negatives = at(-torch.ones(2, k, dtype=torch.float64))
        for margin, ceiling in ((EqCo(256.0), math.log(257.0)), (None, math.log(1.0 + k))):
            bound = ceiling - float(info_nce(at(one), at(one), negatives, temperature=0.05, margin=margin))
            assert ceiling - 1e-12 <= bound + 1e-9 and bound <= ceiling


@pytest.mark.parametrize(("b", "configured", "realised"), [(8, 256, 7), (8, 8, 7), (8, 4, 4), (2, 256, 1)])
def test_the_negatives_that_are_there_count_not_the_ones_asked_for(rows, b: int, configured: int, realised: int) -> None:
    query, key = rows("query", b)[None], rows("key", b)[None]
    seen = Embedded(query, key, (0,), (1,))
    negatives = InBatch(per_query=configured, views="positive")
    candidates, _ = negatives.draw(negatives.init(0, 8, CPU), seen, (0, 0))
    assert candidates is not None
    same = torch.ones_like(query)
    flat = Candidates(torch.ones_like(candidates.embeddings), candidates.own, candidates.is_negative, candidates.pictures)
    for alpha in (256.0, 3.0):
        got = InfoNCE(0.2, margin=EqCo(alpha))(Embeddings(same, same, flat, (0,), (1,)), 0.0)
        assert float(got) == pytest.approx(math.log(1 + alpha), abs=1e-10)
    plain = InfoNCE(0.2)(Embeddings(same, same, flat, (0,), (1,)), 0.0)
    assert float(plain) == pytest.approx(math.log(1 + realised), abs=1e-10)
    if realised == 7:
        got = InfoNCE(0.2, margin=EqCo(256))(Embeddings(query, key, candidates, (0,), (1,)), 0.0)
        assert float(got) == pytest.approx(SIMO[7, 256][0], abs=6e-11)


def test_rows_with_different_numbers_of_negatives_each_count_their_own(slow_one, draw) -> None:
    query, key, bank = draw(4, 8, seed=1), draw(4, 8, seed=2), draw(9, 8, seed=3)
    is_negative = torch.tensor([[j <= 2 * i for j in range(9)] for i in range(4)])
    got = InfoNCE(0.2, margin=EqCo(256))(
        Embeddings(query[None], key[None], Candidates(bank, None, is_negative), (0,), (1,)), 0.0
    )
    wanted = [slow_one(query[i].tolist(), key[i].tolist(), bank[is_negative[i]].tolist(), 0.2, alpha=256.0) for i in range(4)]
    assert float(got) == pytest.approx(sum(wanted) / 4, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [None, 256.0, 65536.0])
def test_half_formats_stay_finite_and_close_at_a_low_temperature(draw, dtype: torch.dtype, alpha: float | None) -> None:
    parts = [draw(64, 32, seed=1), 0.3 * draw(64, 32, seed=4) + draw(64, 32, seed=1), draw(50, 32, seed=3)]
    margin = NoMargin() if alpha is None else EqCo(alpha)
    halves = [x.to(dtype).requires_grad_() for x in parts]
    for negatives in (halves[2], None):
        loss = info_nce(halves[0], halves[1], negatives, temperature=0.05, margin=margin)
        loss.backward()
        assert all(x.grad is None or bool(torch.isfinite(x.grad).all()) for x in halves)
        assert halves[0].grad is not None and float(halves[0].grad.abs().max()) > 0
        exact = info_nce(parts[0], parts[1], None if negatives is None else parts[2], temperature=0.05, margin=margin)
        assert float(loss.detach()) == pytest.approx(float(exact), abs=1e-2)


def test_identical_pairs_at_a_temperature_that_overflows_raw_exponentials() -> None:
    same = F.normalize(torch.ones(4, 8), dim=1)
    got = info_nce(same.half(), same.half(), same.half(), temperature=0.005, margin=EqCo(256))
    assert float(got) == pytest.approx(math.log(257), abs=1e-2)


def test_no_gradient_reaches_momentum_keys_and_all_of_it_reaches_a_shared_networks(rows) -> None:
    query = rows("query", 8)[None].requires_grad_()
    free = rows("key", 8)[None].requires_grad_()
    for key in (free.detach(), free):
        seen = Embedded(query, key, (0,), (1,))
        negatives = InBatch(per_query=4, views="positive")
        candidates, _ = negatives.draw({}, seen, (0, 3))
        assert candidates is not None and candidates.embeddings.requires_grad == key.requires_grad
        loss = InfoNCE(0.2, margin=EqCo(256))(Embeddings(query, key, candidates, (0,), (1,)), 0.0)
        gradients = torch.autograd.grad(loss, [query, free], allow_unused=True)
        assert gradients[0] is not None and (gradients[1] is not None) == key.requires_grad
    queue = Queue(16)
    candidates, state = queue.draw(queue.init(0, 8, CPU), Embedded(query, free, (0,), (1,)), (0, 0))
    assert candidates is not None and not candidates.embeddings.requires_grad and not state["keys"].requires_grad


def test_all_other_pictures_of_the_batch_do_not_depend_on_the_permutation(rows) -> None:
    query, key = rows("query", 8)[None], rows("key", 8)[None]
    seen = Embedded(query, key, (0,), (1,))

    def loss(per_query: int, step: int) -> float:
        negatives = InBatch(per_query=per_query, views="positive")
        candidates, _ = negatives.draw({}, seen, (0, step))
        return float(InfoNCE(0.2, margin=EqCo(256))(Embeddings(query, key, candidates, (0,), (1,)), 0.0))

    assert {round(loss(7, step), 12) for step in range(6)} == {round(loss(7, 0), 12)}
    assert loss(7, 0) == pytest.approx(SIMO[7, 256][0], abs=6e-11)
    assert len({round(loss(3, step), 6) for step in range(6)}) > 1


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, -math.inf])
def test_refused_alpha(alpha: float) -> None:
    with pytest.raises(ValueError) as caught:
        EqCo(alpha)
    assert f"alpha is {alpha}" in str(caught.value) and "wanted" in str(caught.value) and "256" in str(caught.value)
