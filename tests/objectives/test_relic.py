"""ReLIC's two terms against slow loops: both conventions, both divergences, chosen negatives, and what stop-gradients do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallview.objectives import InBatch, InfoNCE, RelicInvariance, info_nce, relic
from smallview.objectives.relic import divergence
from smallview.records import Candidates, Embedded, Embeddings
from smallview.schedules import Cosine

STOPS = ("none", "entropy", "p", "q")
few = settings(derandomize=True, max_examples=12, deadline=None, database=None)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def others(b: int, k: int, seed: int = 0) -> Tensor:
    """For every row k other rows, int64 [B, K]."""
    source = torch.Generator().manual_seed(seed)
    rows = [[j for j in torch.randperm(b, generator=source).tolist() if j != i][:k] for i in range(b)]
    return torch.tensor(rows, dtype=torch.int64).reshape(b, k)


def cosines(online: Tensor, target: Tensor) -> list[list[float]]:
    o, t = online.tolist(), target.tolist()
    return [[sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)) for b in t] for a in o]


def shares(similar: list[list[float]], index_sets: list[list[int]], temperature: float) -> list[list[float]]:
    """Row i: the softmax over its index set, itself first."""
    out = []
    for i, among in enumerate(index_sets):
        weights = [math.exp(similar[i][j] / temperature) for j in among]
        out.append([w / sum(weights) for w in weights])
    return out


def kl(p: list[list[float]], q: list[list[float]]) -> float:
    total = 0.0
    for row_p, row_q in zip(p, q, strict=True):
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(row_p, row_q, strict=True))
    return total / len(p)


def sets(b: int, negatives: Tensor | None) -> list[list[int]]:
    rest = [[j for j in range(b) if j != i] for i in range(b)] if negatives is None else negatives.tolist()
    return [[i, *rest[i]] for i in range(b)]


def slow(online: Tensor, target: Tensor, temperature: float, negatives: Tensor | None) -> tuple[float, float, float]:
    """One matrix: (nll, KL(P || Q), KL(Q || P)), where Q_i is the softmax of column i."""
    s, among = cosines(online, target), sets(len(online), negatives)
    p, q = shares(s, among, temperature), shares([list(column) for column in zip(*s, strict=True)], among, temperature)
    return -sum(math.log(row[0]) for row in p) / len(p), kl(p, q), kl(q, p)


def slow_four(a: Tensor, ta: Tensor, b: Tensor, tb: Tensor, temperature: float, negatives: Tensor | None) -> float:
    """Four tensors: KL(P || Q), P from (online a, target b), Q from (online b, target a)."""
    among = sets(len(a), negatives)
    return kl(shares(cosines(a, tb), among, temperature), shares(cosines(b, ta), among, temperature))


def seen(online: Tensor, target: Tensor, negatives: Tensor | None = None) -> Embeddings:
    candidates = None if negatives is None else Candidates(target, pictures=negatives)
    return Embeddings(online, target, candidates, tuple(range(len(online))), tuple(range(len(target))))


@few
@given(
    b=st.integers(2, 6),
    d=st.integers(1, 5),
    k=st.integers(0, 5),
    temperature=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_relic_is_the_slow_loop(b: int, d: int, k: int, temperature: float, seed: int) -> None:
    online, target = draw(b, d, seed=seed), draw(b, d, seed=seed + 100)
    # 0 stands for all others
    negatives = None if k == 0 else others(b, min(k, b - 1), seed)
    nll, forth, back = slow(online, target, temperature, negatives)
    for direction, wanted in (("p||q", forth), ("q||p", back)):
        got = relic(online, target, temperature=temperature, negatives=negatives, kl=direction)
        assert float(got[0]) == pytest.approx(nll, abs=1e-10)
        assert float(got[1]) == pytest.approx(wanted, abs=1e-10)
        assert float(got[1]) >= -1e-12


@few
@given(b=st.integers(2, 5), views=st.integers(2, 3), k=st.integers(0, 3), seed=st.integers(0, 99))
def test_the_term_is_the_mean_over_pairs(b: int, views: int, k: int, seed: int) -> None:
    online, target = draw(views, b, 4, seed=seed), draw(2, b, 4, seed=seed + 100)
    negatives = None if k == 0 else others(b, min(k, b - 1), seed)
    for same_view in (True, False):
        pairs = [(v, t) for v in range(views) for t in range(2) if same_view or v != t]
        for place, direction in ((1, "p||q"), (2, "q||p")):
            wanted = sum(slow(online[v], target[t], 0.3, negatives)[place] for v, t in pairs) / len(pairs)
            got = RelicInvariance(0.3, kl=direction, same_view=same_view)(seen(online, target, negatives), 0.0)
            assert float(got) == pytest.approx(wanted, abs=1e-10)


@few
@given(b=st.integers(2, 5), k=st.integers(0, 3), seed=st.integers(0, 99))
def test_four_tensors_take_both_distributions_from_different_pairs(b: int, k: int, seed: int) -> None:
    online, target = draw(3, b, 4, seed=seed), draw(2, b, 4, seed=seed + 100)
    negatives = None if k == 0 else others(b, min(k, b - 1), seed)
    # the third view is small: no target has seen it, so it has no pair to be compared with
    pairs = [(0, 1), (1, 0)]
    wanted = sum(slow_four(online[v], target[v], online[t], target[t], 0.3, negatives) for v, t in pairs) / 2
    views = seen(online, target, negatives)
    got = RelicInvariance(0.3, convention="four_tensors")(views, 0.0)
    assert float(got) == pytest.approx(wanted, abs=1e-10)
    if b > 2 and k != 1:
        assert abs(float(RelicInvariance(0.3)(views, 0.0) - got)) > 1e-6


def test_views_are_known_by_their_numbers_and_not_by_their_places() -> None:
    online, target = draw(2, 5, 4), draw(2, 5, 4, seed=1)
    views = seen(online, target)
    turned = replace(views, target=target.flip(0), target_views=(1, 0))
    for convention in ("one_matrix", "four_tensors"):
        term = RelicInvariance(0.3, convention=convention)
        torch.testing.assert_close(term(turned, 0.0), term(views, 0.0))
        assert abs(float(term(replace(views, target=target.flip(0)), 0.0) - term(views, 0.0))) > 1e-4


@pytest.mark.parametrize("per_query", [None, 1, 3])
def test_the_term_contrasts_with_what_in_batch_drew(per_query: int | None) -> None:
    online, target = draw(2, 6, 4), draw(2, 6, 4, seed=1)
    candidates, _ = InBatch(views="positive", per_query=per_query).draw({}, Embedded(online, target, (0, 1), (0, 1)), (3, 4))
    views = Embeddings(online, target, candidates, (0, 1), (0, 1))
    assert candidates is not None and (candidates.pictures is None) == (per_query is None)
    pairs = [relic(online[v], target[1 - v], temperature=0.3, negatives=candidates.pictures) for v in (0, 1)]
    torch.testing.assert_close(RelicInvariance(0.3)(views, 0.0), (pairs[0][1] + pairs[1][1]) / 2)
    # the other term of the method looks at the same pictures
    torch.testing.assert_close(InfoNCE(0.3)(views, 0.0), (pairs[0][0] + pairs[1][0]) / 2)


def test_naming_all_others_in_any_order_is_naming_none() -> None:
    online, target = draw(5, 4), draw(5, 4, seed=1)
    wanted = relic(online, target, temperature=0.2)
    got = relic(online, target, temperature=0.2, negatives=others(5, 4, seed=2))
    torch.testing.assert_close(torch.stack(got), torch.stack(wanted))
    fewer = relic(online, target, temperature=0.2, negatives=others(5, 3, seed=2))
    assert float(fewer[0]) < float(wanted[0])


def test_the_likelihood_is_info_nce_in_value_and_gradient() -> None:
    online, target = draw(6, 4).requires_grad_(), draw(6, 4, seed=1)
    nll, kl_ = relic(online, target, temperature=0.2)
    torch.testing.assert_close(nll, info_nce(online, target, temperature=0.2))
    (without,) = torch.autograd.grad(nll + 0.0 * kl_, online, retain_graph=True)
    (plain,) = torch.autograd.grad(info_nce(online, target, temperature=0.2), online)
    torch.testing.assert_close(without, plain)
    (with_kl,) = torch.autograd.grad(nll + kl_, online)
    assert float((with_kl - plain).norm()) > 1e-3


def test_the_invariance_is_zero_where_who_resembles_whom_is_symmetric() -> None:
    z, moved = draw(6, 4), draw(6, 4, seed=1)
    assert abs(float(relic(z, z, temperature=0.2)[1])) < 1e-12
    assert abs(float(relic(z, z, temperature=0.2, negatives=others(6, 2))[1])) < 1e-12
    four = RelicInvariance(0.2, convention="four_tensors")
    assert abs(float(four(seen(torch.stack([z, z]), torch.stack([moved, moved])), 0.0))) < 1e-12
    assert float(relic(z, z + 0.3 * moved, temperature=0.2)[1]) > 1e-3


def test_it_grows_with_the_disturbance_of_one_view() -> None:
    z, noise = draw(32, 8), draw(32, 8, seed=1)
    kls = [float(relic(z, z + amount * noise, temperature=0.2)[1]) for amount in (0.0, 0.1, 0.3, 1.0)]
    assert kls == sorted(kls) and kls[1] > 1e-4 and kls[3] > 10 * kls[1]


@pytest.mark.parametrize("convention", ["one_matrix", "four_tensors"])
@pytest.mark.parametrize("direction", ["p||q", "q||p"])
def test_stop_gradients_change_no_value_and_split_the_gradient(convention: str, direction: str) -> None:
    online, target = draw(2, 5, 4).requires_grad_(), draw(2, 5, 4, seed=1)
    value, gradient = {}, {}
    for stop in STOPS:
        term = RelicInvariance(0.3, kl=direction, stop_gradient=stop, convention=convention)
        loss = term(seen(online, target), 0.0)
        value[stop] = float(loss.detach())
        (gradient[stop],) = torch.autograd.grad(loss, online)
    assert all(v == pytest.approx(value["none"], abs=1e-12) for v in value.values())
    # a function of two things: the gradient is the sum of the gradients with either held
    torch.testing.assert_close(gradient["p"] + gradient["q"], gradient["none"])
    for a, b in (("none", "p"), ("none", "q"), ("none", "entropy"), ("p", "q")):
        assert float((gradient[a] - gradient[b]).norm()) > 1e-4, (a, b)


@pytest.mark.parametrize("direction", ["p||q", "q||p"])
def test_what_each_stop_gradient_holds(direction: str) -> None:
    p, q = (draw(4, 3, seed=s).log_softmax(1).requires_grad_() for s in (0, 1))

    def reference(p: Tensor, q: Tensor, held: Tensor | None = None) -> Tensor:
        first, second = (p, q) if direction == "p||q" else (q, p)
        entropy = (first.exp() * first).sum(1) if held is None else held
        return (entropy - (first.exp() * second).sum(1)).mean()

    fixed = torch.zeros(4, dtype=torch.float64)
    for stop, wanted in (
        ("none", reference(p, q)),
        ("entropy", reference(p, q, fixed)),
        ("p", reference(p.detach(), q)),
        ("q", reference(p, q.detach())),
    ):
        got = divergence(p, q, direction, stop)
        torch.testing.assert_close(got, reference(p, q))
        for a, b in zip(
            torch.autograd.grad(got, (p, q), materialize_grads=True),
            torch.autograd.grad(wanted, (p, q), materialize_grads=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_gradients_agree_with_differences() -> None:
    online, target = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    for negatives in (None, others(4, 2)):
        for direction in ("p||q", "q||p"):
            assert torch.autograd.gradcheck(
                lambda o, t, n=negatives, kl=direction: torch.stack(relic(o, t, temperature=0.5, negatives=n, kl=kl)),
                (online, target),
            )


def test_order_length_and_place_of_rows_do_not_matter() -> None:
    online, target, order = draw(6, 4), draw(6, 4, seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    wanted = torch.stack(relic(online, target, temperature=0.2))
    torch.testing.assert_close(torch.stack(relic(online[order], target[order], temperature=0.2)), wanted)
    torch.testing.assert_close(torch.stack(relic(5.0 * online, 0.1 * target, temperature=0.2)), wanted)
    # the other direction is the other divergence, for the matrix is the transposed one
    there, back = relic(online, target, temperature=0.2, kl="q||p")[1], relic(target, online, temperature=0.2)[1]
    torch.testing.assert_close(there, back)


def test_number_formats() -> None:
    online, target = draw(8, 16), draw(8, 16, seed=1)
    exact = torch.stack(relic(online, target, temperature=0.2))
    rounded = torch.stack(relic(online.bfloat16().double(), target.bfloat16().double(), temperature=0.2))
    half = torch.stack(relic(online.bfloat16(), target.bfloat16(), temperature=0.2))
    assert exact.dtype == torch.float64 and half.dtype == torch.float32
    torch.testing.assert_close(half.double(), rounded, rtol=0, atol=1e-5)
    views = seen(torch.stack([online, target]).float(), torch.stack([online, target]).float())
    plain = RelicInvariance(0.2, same_view=True)(views, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = RelicInvariance(0.2, same_view=True)(views, 0.0)
        torch.testing.assert_close(torch.stack(relic(online.float(), target.float(), temperature=0.2)).double(), exact)
    torch.testing.assert_close(inside, plain, rtol=0, atol=1e-6)


def test_sharp_distributions_stay_finite() -> None:
    z = torch.eye(4).requires_grad_()
    nll, kl_ = relic(z, -torch.eye(4).roll(1, 0), temperature=0.001)
    (nll + kl_).backward()
    assert bool(torch.isfinite(nll + kl_)) and bool(torch.isfinite(z.grad).all())


def test_temperature_may_be_a_schedule() -> None:
    views = seen(draw(2, 4, 3), draw(2, 4, 3, seed=1))
    term = RelicInvariance(Cosine(0.5, 0.1))
    torch.testing.assert_close(term(views, 0.0), RelicInvariance(0.5)(views, 0.0))
    torch.testing.assert_close(term(views, 1.0), RelicInvariance(0.1)(views, 0.0))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target": torch.ones(2, 4)}, ["[3, 4]", "[2, 4]", "wanted both"]),
        ({"online": torch.ones(3), "target": torch.ones(3)}, ["[3]", "wanted both"]),
        ({"online": torch.full((3, 4), math.nan)}, ["3 of 3 rows", "wanted finite"]),
        ({"target": torch.tensor([[math.inf, 1.0], [0.0, 1.0]]), "online": torch.ones(2, 2)}, ["1 of 2 rows", "wanted finite"]),
        ({"online": torch.ones(1, 4), "target": torch.ones(1, 4)}, ["no negatives", "1 picture;", "wanted at least one"]),
        ({"temperature": 0.0}, ["temperature is 0.0", "wanted"]),
        ({"temperature": -0.2}, ["temperature is -0.2", "wanted"]),
        ({"temperature": math.nan}, ["temperature is nan", "wanted"]),
        ({"negatives": torch.tensor([[1], [2], [3]])}, ["1 to 3", "wanted 0 to 2"]),
        ({"negatives": torch.tensor([[1], [2], [-1]])}, ["-1 to 2", "wanted 0 to 2"]),
        ({"negatives": torch.tensor([[1], [1], [0]])}, ["its own negatives", "wanted other rows"]),
        ({"negatives": torch.tensor([[1], [2]])}, ["[2, 1]", "wanted whole numbers [3, K]"]),
        ({"negatives": torch.tensor([1, 2, 0])}, ["[3]", "wanted whole numbers [3, K]"]),
        ({"negatives": torch.ones(3, 1)}, ["float32", "wanted whole numbers"]),
        ({"negatives": torch.ones(3, 0, dtype=torch.int64)}, ["no negatives", "wanted at least one"]),
        ({"kl": "p|q"}, ["p|q", "wanted p||q, q||p"]),
        ({"stop_gradient": "all"}, ["all", "wanted none, entropy, p, q"]),
    ],
)
def test_refusals(changed: dict[str, object], words: list[str]) -> None:
    arguments = {"online": torch.ones(3, 4), "target": torch.ones(3, 4), "temperature": 0.2} | changed
    with pytest.raises(ValueError) as caught:
        relic(arguments.pop("online"), arguments.pop("target"), **arguments)
    for word in words:
        assert word in str(caught.value)


def test_refusals_of_the_term() -> None:
    for changed in ({"temperature": 0.0}, {"kl": "pq"}, {"stop_gradient": "x"}, {"convention": "two"}):
        with pytest.raises(ValueError, match="wanted"):
            RelicInvariance(**changed)
    with pytest.raises(ValueError, match="wanted same_view=False, or convention one_matrix"):
        RelicInvariance(same_view=True, convention="four_tensors")
    one_sided = Embeddings(draw(1, 3, 4), draw(1, 3, 4), None, (0,), (1,))
    with pytest.raises(ValueError, match="seen by both"):
        RelicInvariance(convention="four_tensors")(one_sided, 0.0)
    assert float(RelicInvariance()(one_sided, 0.0)) >= 0.0
