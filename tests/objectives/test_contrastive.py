"""The contrastive losses against slow loops with every combination of choices, golden values and identities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallview.objectives import (
    Debiased,
    Decoupled,
    EqCo,
    Fixed,
    Full,
    InBatch,
    InfoNCE,
    NearestSmoothing,
    NoMargin,
    OneHot,
    Queue,
    UniformSmoothing,
    info_nce,
    nt_xent,
)
from smallview.records import Candidates, Embedded, Embeddings
from smallview.schedules import Constant, Cosine

D = 8
CPU = torch.device("cpu")
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SIZES = st.integers(1, 6), st.integers(1, 12), st.sampled_from([0.05, 0.1, 0.2, 0.5, 1.0, 3.0])


@st.composite
def choices(draw, smooth, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(choices of the loss, the same for the slow loop) for K negatives."""
    alpha = draw(st.sampled_from([None, 0.5, 3.0, 256.0, 65536.0]))
    kind = draw(st.sampled_from(["one hot", "uniform", "nearest", "groups"]))
    amount = draw(st.sampled_from([0.05, 0.2, 0.6]))
    nearest = draw(st.integers(1, k))
    end = draw(st.integers(1, nearest))
    groups = ((end, 0.6), (nearest, 0.4)) if end < nearest else ((nearest, 1.0),)
    soft, soft_slow = {
        "one hot": (OneHot(), smooth()),
        "uniform": (UniformSmoothing(amount), smooth(amount)),
        "nearest": (NearestSmoothing(amount, nearest), smooth(amount, nearest)),
        "groups": (NearestSmoothing(amount, nearest, groups), smooth(amount, nearest, groups)),
    }[kind]
    prior = draw(st.sampled_from([0.0, 0.1, 0.5]))
    denominator, name = draw(st.sampled_from([(Full(), "full"), (Decoupled(), "decoupled"), (Debiased(prior), "debiased")]))
    margin = NoMargin() if alpha is None else EqCo(alpha)
    return (
        {"margin": margin, "soft_targets": soft, "denominator": denominator},
        {"alpha": alpha, "smooth": soft_slow, "denominator": name, "prior": prior},
    )


@FEW
@given(data=st.data(), b=SIZES[0], k=SIZES[1], temperature=SIZES[2], seed=st.integers(0, 99))
def test_info_nce_is_the_slow_loop_with_every_choice(slow, smooth, draw, data, b, k, temperature, seed) -> None:
    ours, theirs = data.draw(choices(smooth, k))
    query, key = draw(b, D, seed=seed), draw(b, D, seed=seed + 1)
    for negatives in (draw(k, D, seed=seed + 2), draw(b, k, D, seed=seed + 3)):
        got = info_nce(query, key, negatives, temperature=temperature, reduction="none", **ours)
        wanted = torch.tensor(slow(query, key, negatives, temperature, **theirs), dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(info_nce(query, key, negatives, temperature=temperature, **ours), wanted.mean())


@FEW
@given(data=st.data(), b=st.integers(2, 7), temperature=SIZES[2], seed=st.integers(0, 99))
def test_in_batch_losses_are_the_slow_loop_with_every_choice(
    slow, slow_nt_xent, smooth, draw, data, b, temperature, seed
) -> None:
    z0, z1 = draw(b, D, seed=seed), draw(b, D, seed=seed + 1)
    ours, theirs = data.draw(choices(smooth, b - 1))
    got = info_nce(z0, z1, temperature=temperature, reduction="none", **ours)
    wanted = torch.tensor(slow(z0, z1, None, temperature, **theirs), dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    both = float(nt_xent(z0, z1, temperature=temperature, **ours))
    assert both == pytest.approx(slow_nt_xent(z0, z1, temperature, **theirs), abs=1e-10, rel=1e-10)


def slow_term(
    slow_one,
    embeddings: Embeddings,
    others: list[list[list[tuple[int, int]]]],
    bank: Tensor | None,
    temperature: float,
    directions: str,
    same_view: bool,
    theirs: dict[str, Any],
) -> float:
    """others[l][i]: (target view, picture) of what picture i is pushed away from where its positive is in view l; bank instead."""
    total = []
    for v, source in enumerate(embeddings.online_views):
        for l, other in enumerate(embeddings.target_views):  # noqa: E741
            if source == other and not same_view:
                continue
            losses = []
            for i in range(embeddings.online.shape[1]):
                negatives = [embeddings.target[t, j].tolist() for t, j in others[l][i]] if bank is None else bank.tolist()
                losses.append(
                    slow_one(
                        embeddings.online[v, i].tolist(), embeddings.target[l, i].tolist(), negatives, temperature, **theirs
                    )
                )
            total.append(sum(losses) / len(losses))
    return sum(total) / (len(total) if directions == "mean" else 1)


@FEW
@given(
    data=st.data(),
    b=st.integers(2, 5),
    online_views=st.sampled_from([(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]),
    target_views=st.sampled_from([(1,), (0, 1), (1, 2, 3)]),
    temperature=SIZES[2],
    source=st.sampled_from(["all", "positive", "queue", "fixed"]),
    directions=st.sampled_from(["mean", "sum"]),
    same_view=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_term_is_the_slow_loop_over_views_negatives_and_choices(
    slow_one, smooth, draw, data, b, online_views, target_views, temperature, source, directions, same_view, seed
) -> None:
    v, n_target = len(online_views), len(target_views)
    online, target = draw(v, b, D, seed=seed), draw(n_target, b, D, seed=seed + 1)
    fixed = draw(3, D, seed=seed + 2)
    seen = Embedded(online, target, online_views, target_views, fixed)
    others, bank = [], None
    if source in ("all", "positive"):
        negatives = InBatch(views=source)
        for l in range(n_target):  # noqa: E741
            views = range(n_target) if source == "all" else [l]
            others.append([[(t, j) for t in views for j in range(b) if j != i] for i in range(b)])
        state = negatives.init(0, D, CPU)
        k = len(others[0][0])
    elif source == "queue":
        negatives = Queue(5)
        state = {name: value.double() if name == "keys" else value for name, value in negatives.init(0, D, CPU).items()}
        bank, k = (
            F.normalize(state["keys"], dim=1),
            5,
        )  # in float32 lengths are one to 1e-7 only, and how they round hangs on the CPU
    else:
        negatives = Fixed((0, 4, 2))
        state = negatives.init(0, D, CPU, lambda pictures, patches, scale: torch.zeros(3, 3, 4, 4))
        bank, k = fixed, 3
    ours, theirs = data.draw(choices(smooth, k))
    candidates, _ = negatives.draw(state, seen, (seed, 0))
    embeddings = Embeddings(online, target, candidates, online_views, target_views, (seed, 0))
    term = InfoNCE(temperature, directions=directions, same_view=same_view, **ours)
    wanted = slow_term(slow_one, embeddings, others, bank, temperature, directions, same_view, theirs)
    assert float(term(embeddings, 0.0)) == pytest.approx(wanted, abs=1e-9, rel=1e-9)


@FEW
@given(
    data=st.data(),
    b=st.integers(2, 6),
    per_query=st.integers(1, 12),
    views=st.sampled_from(["all", "positive"]),
    temperature=SIZES[2],
    seed=st.integers(0, 99),
)
def test_the_term_with_few_negatives_is_the_slow_loop_over_one_permutation(
    slow_one, smooth, draw, data, b, per_query, views, temperature, seed
) -> None:
    """Which pictures were drawn is read off the gradient: entries of the other online network's targets that got some."""
    online, target = draw(2, b, D, seed=seed), draw(2, b, D, seed=seed + 1)
    negatives = InBatch(views=views, per_query=per_query)
    candidates, _ = negatives.draw({}, Embedded(online, target, (0, 1), (0, 1)), (seed, 4))
    assert candidates is not None
    others: list[list[list[tuple[int, int]]]] = []
    for l in range(2):  # noqa: E741
        of_view = []
        for i in range(b):
            counts = torch.ones(len(candidates.of(l)), dtype=torch.bool)
            if candidates.own is not None:
                counts[candidates.own[i]] = False
            if candidates.is_negative is not None:
                counts &= candidates.is_negative[i]
            entries = candidates.of(l)[counts]
            # the rows of the targets that these entries are copies of
            equal = (entries[:, None] == target.flatten(0, 1)[None]).all(-1)
            of_view.append([divmod(int(j), b) for j in equal.nonzero()[:, 1]])
            available = (b - 1) * (2 if views == "all" else 1)
            assert len(set(of_view[-1])) == len(of_view[-1]) == min(per_query, available)
            assert all(j != i and (views == "all" or t == l) for t, j in of_view[-1])
        others.append(of_view)
    ours, theirs = data.draw(choices(smooth, len(others[0][0])))
    embeddings = Embeddings(online, target, candidates, (0, 1), (0, 1), (seed, 4))
    wanted = slow_term(slow_one, embeddings, others, None, temperature, "mean", False, theirs)
    assert float(InfoNCE(temperature, **ours)(embeddings, 0.0)) == pytest.approx(wanted, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("soft", [OneHot(), UniformSmoothing(0.2), NearestSmoothing(0.2, 3)])
@pytest.mark.parametrize("denominator", [Full(), Decoupled(), Debiased(0.1)])
def test_rows_with_masks_of_their_own_are_the_slow_loop(slow_one, smooth, draw, soft, denominator) -> None:
    """own and is_negative together, and rows that have more negatives than others."""
    query, key, bank = draw(4, D, seed=1), draw(4, D, seed=2), draw(10, D, seed=3)
    own = torch.tensor([[i, 9 - i] for i in range(4)])
    is_negative = torch.tensor([[j != 5 and j <= 6 + i for j in range(10)] for i in range(4)])
    name = {"Full": "full", "Decoupled": "decoupled", "Debiased": "debiased"}[type(denominator).__name__]
    reference = smooth(float(soft.amount), getattr(soft, "nearest", None))
    for alpha in (None, 256.0):
        margin = NoMargin() if alpha is None else EqCo(alpha)
        term = InfoNCE(0.2, margin=margin, soft_targets=soft, denominator=denominator)
        got = term(Embeddings(query[None], key[None], Candidates(bank, own, is_negative), (0,), (1,)), 0.0)
        wanted = []
        for i in range(4):
            rest = [bank[j].tolist() for j in range(10) if bool(is_negative[i, j]) and j not in own[i].tolist()]
            wanted.append(
                slow_one(
                    query[i].tolist(), key[i].tolist(), rest, 0.2, alpha=alpha, smooth=reference, denominator=name, prior=0.1
                )
            )
        assert float(got) == pytest.approx(sum(wanted) / 4, abs=1e-10)


@pytest.mark.parametrize(
    ("temperature", "scale", "wanted"),
    [(0.1, 1.0, 0.5881489672), (0.1, 0.1 / 0.07, 0.8402128103), (0.5, 1.0, 1.4859592730)],
)
def test_nt_xent_golden(rows, temperature: float, scale: float, wanted: float) -> None:
    """The second is the scale of S3L's SimCLR, a weight of the term."""
    got = scale * nt_xent(rows("query", 8), rows("key", 8), temperature=temperature)
    assert float(got) == pytest.approx(wanted, abs=6e-11)
    single = scale * nt_xent(rows("query", 8).float(), rows("key", 8).float(), temperature=temperature)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("b", [2, 3, 7])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_nt_xent_is_no_faulty_one(draw, slow, slow_nt_xent, b: int, temperature: float) -> None:
    z0, z1 = draw(b, D), draw(b, D, seed=1)
    got = float(nt_xent(z0, z1, temperature=temperature))
    own_not_masked = sum(slow(z0, z1, torch.stack([torch.cat([z0, z1[torch.arange(b) != i]]) for i in range(b)]), temperature))
    one_view_only = (sum(slow(z0, z1, None, temperature)) + sum(slow(z1, z0, None, temperature))) / (2 * b)
    for fault in (own_not_masked / b, one_view_only, slow_nt_xent(z0, z1, 1.1 * temperature)):
        assert abs(got - fault) > 1e-4


def test_nt_xent_is_the_term_with_a_shared_network_and_the_batch(draw) -> None:
    z = draw(2, 6, D)
    candidates, _ = InBatch().draw({}, Embedded(z, z, (0, 1), (0, 1)), (0, 0))
    for choice in ({}, {"margin": EqCo(99.0), "soft_targets": NearestSmoothing(0.2, 4), "denominator": Debiased(0.1)}):
        term = InfoNCE(0.3, **choice)(Embeddings(z, z, candidates, (0, 1), (0, 1)), 0.0)
        torch.testing.assert_close(term, nt_xent(z[0], z[1], temperature=0.3, **choice), rtol=0, atol=1e-12)


def test_the_term_with_a_queue_is_moco(draw) -> None:
    online, target, bank = draw(1, 5, D), draw(1, 5, D, seed=1), draw(11, D, seed=2)
    term = InfoNCE(0.2)(Embeddings(online, target, Candidates(bank), (0,), (1,)), 0.0)
    torch.testing.assert_close(term, info_nce(online[0], target[0], bank, temperature=0.2))


def test_order_and_length_of_rows_do_not_matter(draw) -> None:
    z0, z1 = draw(6, D), draw(6, D, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for choice in ({}, {"margin": EqCo(99.0), "soft_targets": NearestSmoothing(0.2, 4), "denominator": Debiased(0.1)}):
        loss = nt_xent(z0, z1, temperature=0.2, **choice)
        torch.testing.assert_close(nt_xent(z0[order], z1[order], temperature=0.2, **choice), loss)
        torch.testing.assert_close(nt_xent(z1, z0, temperature=0.2, **choice), loss)
        torch.testing.assert_close(nt_xent(7.0 * z0, 0.1 * z1, temperature=0.2, **choice), loss)
        assert abs(float(nt_xent(z0[order], z1, temperature=0.2, **choice) - loss)) > 1e-3
    bank = draw(6, D, seed=2)
    loss = info_nce(z0, z1, bank, temperature=0.2)
    torch.testing.assert_close(info_nce(z0, 3.0 * z1, 0.5 * bank[order], temperature=0.2), loss)


def test_equal_similarities_give_log_of_one_plus_k() -> None:
    same = torch.ones(5, D, dtype=torch.float64)
    assert float(info_nce(same, same, temperature=0.1)) == pytest.approx(math.log(5))
    assert float(info_nce(same, same, same[:3], temperature=0.1)) == pytest.approx(math.log(4))
    assert float(nt_xent(same, same, temperature=0.1)) == pytest.approx(math.log(1 + 8))


def test_number_formats(draw) -> None:
    z0, z1 = draw(8, 32), draw(8, 32, seed=1)
    exact = nt_xent(z0, z1, temperature=0.1)
    assert exact.dtype == torch.float64
    half = nt_xent(z0.bfloat16(), z1.bfloat16(), temperature=0.1)
    rounded = nt_xent(z0.bfloat16().double(), z1.bfloat16().double(), temperature=0.1)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(rounded), abs=1e-5)  # only the input is rounded, nothing within
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(z0.float(), z1.float(), temperature=0.1)
        other = info_nce(z0.float(), z1.float(), temperature=0.1)
        large = info_nce(z0.float().repeat(200, 1), z1.float().repeat(200, 1), temperature=0.1)
    assert float(inside) == pytest.approx(float(exact), abs=1e-5)
    assert float(other) == pytest.approx(float(info_nce(z0, z1, temperature=0.1)), abs=1e-5)
    assert float(large) == pytest.approx(float(info_nce(z0.repeat(200, 1), z1.repeat(200, 1), temperature=0.1)), abs=1e-5)


def test_a_queue_bank_of_another_format_is_taken(draw) -> None:
    for dtype, result in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        online = draw(1, 4, D).to(dtype)
        queue = Queue(6)
        candidates, _ = queue.draw(queue.init(0, D, CPU), Embedded(online, online, (0,), (1,)), (0, 0))
        loss = InfoNCE(0.2)(Embeddings(online, online, candidates, (0,), (1,)), 0.0)
        assert loss.dtype == result and bool(torch.isfinite(loss))


def test_temperature_and_amount_may_be_schedules(draw) -> None:
    z = draw(2, 4, D)
    candidates, _ = InBatch().draw({}, Embedded(z, z, (0, 1), (0, 1)), (0, 0))
    embeddings = Embeddings(z, z, candidates, (0, 1), (0, 1))
    term = InfoNCE(Cosine(0.5, 0.1), soft_targets=UniformSmoothing(Cosine(0.0, 0.2)))
    torch.testing.assert_close(term(embeddings, 0.0), InfoNCE(0.5)(embeddings, 0.0))
    torch.testing.assert_close(term(embeddings, 1.0), InfoNCE(0.1, soft_targets=UniformSmoothing(0.2))(embeddings, 0.0))
    torch.testing.assert_close(
        term(embeddings, 0.5), InfoNCE(0.3, soft_targets=NearestSmoothing(Constant(0.1), 6))(embeddings, 0.5)
    )


@pytest.mark.parametrize("denominator", [Full(), Decoupled(), Debiased(0.1)])
@pytest.mark.parametrize("soft", [OneHot(), UniformSmoothing(0.2), NearestSmoothing(0.2, 3)])
def test_gradients_reach_the_negatives_and_agree_with_differences(draw, soft, denominator) -> None:
    query, key, bank = (draw(n, 4, seed=s).requires_grad_() for n, s in ((3, 1), (3, 2), (5, 3)))
    choice = {"margin": EqCo(9.0), "soft_targets": soft, "denominator": denominator}
    assert torch.autograd.gradcheck(lambda q, k, n: info_nce(q, k, n, temperature=0.4, **choice), (query, key, bank))
    z0, z1 = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.4, **choice), (z0, z1))


NAN = torch.full((3, 4), math.nan)


@pytest.mark.parametrize(
    ("query", "key", "negatives", "temperature", "words"),
    [
        ((3, 4), (2, 4), None, 0.1, ("[3, 4]", "[2, 4]", "wanted both [B, D]")),
        ((4,), (4,), None, 0.1, ("[4]", "wanted both [B, D]")),
        ((2, 3, 4), (2, 3, 4), None, 0.1, ("[2, 3, 4]", "wanted both [B, D]")),
        ((3, 4), (3, 4), (5, 3), 0.1, ("[5, 3]", "wanted [K, 4]")),
        ((3, 4), (3, 4), (2, 5, 4), 0.1, ("[2, 5, 4]", "[3, K, 4]")),
        ((3, 4), (3, 4), (4,), 0.1, ("[4]", "wanted [K, 4]")),
        ((1, 4), (1, 4), None, 0.1, ("no negatives", "wanted at least two pictures")),
        ((3, 4), (3, 4), (0, 4), 0.1, ("no negatives", "[0, 4]", "wanted")),
        ((3, 4), (3, 4), (3, 0, 4), 0.1, ("no negatives", "[3, 0, 4]", "wanted")),
        ((3, 4), (3, 4), None, 0.0, ("temperature is 0.0", "wanted a number above 0", "0.2")),
        ((3, 4), (3, 4), None, -0.1, ("temperature is -0.1", "wanted a number above 0", "0.2")),
        ((3, 4), (3, 4), None, math.nan, ("temperature is nan", "wanted a number above 0", "0.2")),
        (NAN, (3, 4), None, 0.1, ("query", "3 of 3 rows", "not finite", "wanted finite", "look for")),
        ((3, 4), NAN, None, 0.1, ("key", "3 of 3 rows", "not finite", "wanted finite", "look for")),
        ((3, 4), (3, 4), NAN, 0.1, ("negatives", "not finite", "wanted finite", "look for")),
        ((3, 4), (3, 4), NAN + math.inf, 0.1, ("negatives", "not finite", "wanted finite", "look for")),
    ],
)
def test_refusals(query, key, negatives, temperature, words) -> None:
    query, key, negatives = (torch.ones(x) if isinstance(x, tuple) else x for x in (query, key, negatives))
    with pytest.raises(ValueError) as caught:
        info_nce(query, key, negatives, temperature=temperature)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("z0", "z1", "temperature", "words"),
    [
        ((1, 4), (1, 4), 0.1, ("no negatives", "wanted at least two pictures")),
        ((3, 4), (2, 4), 0.1, ("[3, 4]", "[2, 4]", "wanted both")),
        ((4,), (4,), 0.1, ("[4]", "wanted both")),
        ((3, 4), (3, 4), -1.0, ("temperature is -1.0", "wanted")),
        (NAN, (3, 4), 0.1, ("first view", "not finite", "wanted finite")),
        ((3, 4), NAN, 0.1, ("second", "not finite", "wanted finite")),
    ],
)
def test_refusals_of_two_views(z0, z1, temperature, words) -> None:
    z0, z1 = (torch.ones(x) if isinstance(x, tuple) else x for x in (z0, z1))
    with pytest.raises(ValueError) as caught:
        nt_xent(z0, z1, temperature=temperature)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_refusals_of_the_term() -> None:
    one = torch.ones(1, 3, 4)
    nobody = torch.tensor([[True], [True], [False]]).expand(3, 5)
    for candidates, words in (
        (None, ("no negatives", "wanted negatives=")),
        (Candidates(torch.ones(5, 4), None, nobody), ("no negatives", "wanted at least one")),
        (Candidates(torch.ones(2, 4), torch.tensor([[0, 1]] * 3)), ("no negatives", "wanted at least one")),
    ):
        with pytest.raises(ValueError) as caught:
            InfoNCE()(Embeddings(one, one, candidates, (0,), (1,)), 0.0)
        assert all(word in str(caught.value) for word in words), str(caught.value)
    for temperature in (0.0, -0.2, math.nan, Cosine(0.2, 0.0)):
        with pytest.raises(ValueError, match=r"temperature is .*; wanted"):
            InfoNCE(temperature)
    with pytest.raises(ValueError, match=r"directions is 'both'; wanted mean or sum"):
        InfoNCE(directions="both")
    with pytest.raises(ValueError, match=r"reduction is \"sum\"; wanted mean or none"):
        info_nce(one[0], one[0], temperature=0.1, reduction="sum")


def test_a_plain_function_wants_numbers_and_one_width(draw) -> None:
    from smallview.objectives import UniformSmoothing, relic, ressl
    from smallview.schedules import Constant, Ramp

    a, b = draw(4, D), draw(4, D, seed=1)
    for call, words in (
        (lambda: info_nce(a, b, temperature=Constant(0.2)), "temperature is a Constant; wanted a number"),  # type: ignore[arg-type]
        (lambda: nt_xent(a, b, temperature=torch.tensor(0.2)), "temperature is a Tensor; wanted a number"),  # type: ignore[arg-type]
        (lambda: info_nce(a, b, temperature=0.2, soft_targets=UniformSmoothing(Ramp(0.0, 0.5))), "smoothing is a Ramp"),
        (lambda: relic(a, b, temperature=Constant(0.2)), "wanted a number"),  # type: ignore[arg-type]
        (lambda: ressl(a, b, a, temperature=0.2, target_temperature=Constant(0.1)), "wanted a number"),  # type: ignore[arg-type]
        (lambda: info_nce(a, b.float(), temperature=0.2), "query is torch.float64 and key torch.float32"),
        (lambda: relic(a.long(), b.long(), temperature=0.2), "online is torch.int64"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    # what autocast brings about is no mistake
    torch.testing.assert_close(
        info_nce(a.bfloat16(), a.float(), temperature=0.2),
        info_nce(a.float(), a.float(), temperature=0.2),
        rtol=0.05,
        atol=0.02,
    )
