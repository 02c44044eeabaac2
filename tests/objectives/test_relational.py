"""ReSSL's relational loss against a slow loop, where it is least, and what it may never move."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallview.objectives import InBatch, Queue, Relational, ressl
from smallview.records import Candidates, Embedded, Embeddings
from smallview.schedules import Cosine

few = settings(derandomize=True, max_examples=12, deadline=None, database=None)
T = {"temperature": 0.3, "target_temperature": 0.12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(online: Tensor, target: Tensor, candidates: Candidates | None) -> Embeddings:
    return Embeddings(online, target, candidates, tuple(range(len(online))), tuple(range(len(target))))


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def slow(
    online: Tensor,
    target: Tensor,
    bank: Tensor,
    temperature: float,
    target_temperature: float,
    among: list[list[int]] | None = None,
) -> float:
    """Zheng et al., 2021, eq. 4 to 6: the cross-entropy of the target's relations and the online view's."""
    entries, total = bank.tolist(), 0.0
    for i, (o, t) in enumerate(zip(online.tolist(), target.tolist(), strict=True)):
        chosen = [entries[m] for m in (range(len(entries)) if among is None else among[i])]
        label = [math.exp(cosine(t, n) / target_temperature) for n in chosen]
        share = [math.exp(cosine(o, n) / temperature) for n in chosen]
        total -= sum(a / sum(label) * math.log(b / sum(share)) for a, b in zip(label, share, strict=True))
    return total / len(online)


@few
@given(
    b=st.integers(1, 5),
    m=st.integers(1, 7),
    temperature=st.sampled_from([0.1, 0.5]),
    sharper=st.sampled_from([0.4, 1.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_ressl_is_the_slow_loop(b: int, m: int, temperature: float, sharper: float, seed: int) -> None:
    online, target, bank = draw(b, 4, seed=seed), draw(b, 4, seed=seed + 100), 3.0 * draw(m, 4, seed=seed + 200)
    wanted = slow(online, target, bank, temperature, sharper * temperature)
    got = ressl(online, target, bank, temperature=temperature, target_temperature=sharper * temperature)
    assert float(got) == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    scaled = ressl(4.0 * online, 0.3 * target, 2.0 * bank, temperature=temperature, target_temperature=sharper * temperature)
    torch.testing.assert_close(scaled, got)


@few
@given(b=st.integers(2, 5), views=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_term_is_the_mean_over_pairs_against_the_queue(b: int, views: int, seed: int) -> None:
    online, target = draw(views, b, 4, seed=seed), draw(2, b, 4, seed=seed + 100)
    queue = Queue(6)
    bank, _ = queue.draw(queue.init(seed, 4, torch.device("cpu")), Embedded(online, target, (0,), (1,)), (0, 0))
    assert bank is not None
    pairs = [(v, t) for v in range(views) for t in range(2) if v != t]
    wanted = sum(slow(online[v], target[t], bank.embeddings.double(), 0.1, 0.04) for v, t in pairs) / len(pairs)
    # the queue keeps float32
    assert float(Relational()(seen(online, target, bank), 0.0)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("views", ["all", "positive"])
@pytest.mark.parametrize("per_query", [None, 3])
def test_in_batch_entries_of_the_own_picture_have_no_share(views: str, per_query: int | None) -> None:
    online, target = draw(2, 5, 4), draw(2, 5, 4, seed=1)
    candidates, _ = InBatch(views=views, per_query=per_query).draw({}, Embedded(online, target, (0, 1), (0, 1)), (0, 3))
    assert candidates is not None
    wanted = 0.0
    for v, t in ((0, 1), (1, 0)):
        bank = candidates.of(t)
        mask = torch.ones(5, len(bank), dtype=torch.bool) if candidates.is_negative is None else candidates.is_negative
        if candidates.own is not None:
            mask = mask.scatter(1, candidates.own, False)
        among = [[m for m in range(len(bank)) if mask[i, m]] for i in range(5)]
        assert all(len(row) == (per_query or (8 if views == "all" else 4)) for row in among)
        # the own picture is the target itself here: were it in, it would be known by its similarity of 1
        for i, row in enumerate(among):
            assert not any(torch.equal(bank[m], target[other, i]) for m in row for other in (0, 1))
        wanted += slow(online[v], target[t], bank, **T, among=among) / 2
    assert float(Relational(**T)(seen(online, target, candidates), 0.0)) == pytest.approx(wanted, rel=1e-10)


def test_it_is_least_where_both_see_the_same_relations() -> None:
    target, bank = draw(5, 4, seed=1), draw(9, 4, seed=2)
    online = target.clone().requires_grad_()
    equal = ressl(online, target, bank, temperature=0.2, target_temperature=0.2)
    (gradient,) = torch.autograd.grad(equal, online)
    assert float(gradient.norm()) < 1e-12
    share = F.softmax(F.normalize(target) @ F.normalize(bank).T / 0.2, dim=1)
    assert float(equal.detach()) == pytest.approx(float(-(share * share.log()).sum(1).mean()), rel=1e-12)
    for seed in range(5):
        other = ressl(target + 0.3 * draw(5, 4, seed=seed + 9), target, bank, temperature=0.2, target_temperature=0.2)
        assert float(other) > float(equal.detach()) + 1e-3


def test_the_gradient_on_the_similarities_is_share_minus_label() -> None:
    """With a bank of unit axes the online row is its similarities; what lies along the row itself has no gradient."""
    online, target, bank = F.normalize(draw(3, 4)).requires_grad_(), draw(3, 4, seed=1), torch.eye(4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ressl(online, target, bank, **T), online)
    rows = online.detach()
    label = F.softmax(F.normalize(target) / T["target_temperature"], dim=1)
    on_logits = (F.softmax(rows / T["temperature"], dim=1) - label) / T["temperature"] / 3
    torch.testing.assert_close(gradient, on_logits - (on_logits * rows).sum(1, keepdim=True) * rows)


def test_no_gradient_reaches_target_or_bank() -> None:
    online, target, bank = (draw(4, 3, seed=s).requires_grad_() for s in (0, 1, 2))
    gradients = torch.autograd.grad(ressl(online, target, bank, **T), (online, target, bank), allow_unused=True)
    assert gradients[0] is not None and float(gradients[0].norm()) > 1e-3
    assert gradients[1] is None and gradients[2] is None
    views = torch.stack([online, target])
    for candidates in (Candidates(bank), InBatch().draw({}, Embedded(views, views, (0, 1), (0, 1)), (0, 0))[0]):
        loss = Relational(**T)(Embeddings(online[None], target[None], candidates, (0,), (1,)), 0.0)
        (of_target,) = torch.autograd.grad(loss, target, allow_unused=True, retain_graph=True)
        assert of_target is None or float(of_target.norm()) == 0.0
    # in-batch, the bank holds the online view as well: it may move as a query only
    held = InBatch().draw({}, Embedded(views.detach(), views.detach(), (0, 1), (0, 1)), (0, 0))[0]
    wanted = torch.autograd.grad(Relational(**T)(Embeddings(online[None], target[None], held, (0,), (1,)), 0.0), online)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, online)[0], wanted)


def test_a_lower_target_temperature_sharpens_the_label() -> None:
    target, bank = draw(5, 4, seed=1), draw(9, 4, seed=2)
    losses = [float(ressl(target, target, bank, temperature=0.2, target_temperature=t)) for t in (0.01, 0.05, 0.1, 0.2)]
    # with the online shares held, a sharper label moves to the entry with the largest share
    assert losses == sorted(losses) and losses[0] < losses[-1] - 0.1


def test_order_of_pictures_and_of_the_bank() -> None:
    online, target, bank = draw(5, 4), draw(5, 4, seed=1), draw(7, 4, seed=2)
    loss, order = ressl(online, target, bank, **T), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(ressl(online[order], target[order], bank, **T), loss)
    torch.testing.assert_close(ressl(online, target, bank.flip(0), **T), loss)
    assert abs(float(ressl(online[order], target, bank, **T) - loss)) > 1e-3


def test_temperatures_may_be_schedules() -> None:
    views = seen(draw(2, 4, 3), draw(2, 4, 3, seed=1), Candidates(draw(5, 3, seed=2)))
    term = Relational(Cosine(0.5, 0.1), Cosine(0.2, 0.04))
    torch.testing.assert_close(term(views, 0.0), Relational(0.5, 0.2)(views, 0.0))
    torch.testing.assert_close(term(views, 1.0), Relational(0.1, 0.04)(views, 0.0))
    torch.testing.assert_close(Relational()(views, 0.3), Relational(0.1, 0.04)(views, 0.3))


def test_number_formats() -> None:
    online, target, bank = draw(6, 16), draw(6, 16, seed=1), draw(20, 16, seed=2)
    rounded = ressl(*(x.bfloat16().double() for x in (online, target, bank)), **T)
    half = ressl(online.bfloat16(), target.bfloat16(), bank.bfloat16(), **T)
    assert rounded.dtype == torch.float64 and half.dtype == torch.float32
    assert float(half) == pytest.approx(float(rounded), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ressl(online.float(), target.float(), bank.float(), **T)
    assert float(inside) == pytest.approx(float(ressl(online, target, bank, **T)), abs=1e-5)
    # a float32 queue beside half embeddings
    queued = seen(
        online[None].bfloat16().expand(2, -1, -1), target[None].bfloat16().expand(2, -1, -1), Candidates(bank.float())
    )
    assert bool(torch.isfinite(Relational(**T)(queued, 0.0)))


def test_sharp_labels_stay_finite() -> None:
    online = torch.eye(4).requires_grad_()
    loss = ressl(online, -torch.eye(4), torch.eye(4), temperature=0.001, target_temperature=0.0005)
    loss.backward()
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(online.grad).all())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target": torch.ones(2, 4)}, ["online is [3, 4]", "target [2, 4]", "wanted both [B, D]"]),
        ({"online": torch.ones(4), "target": torch.ones(4)}, ["[4]", "wanted both [B, D]"]),
        ({"bank": torch.ones(5, 3)}, ["the bank is [5, 3]", "wanted [M, 4]"]),
        ({"bank": torch.ones(4)}, ["the bank is [4]", "wanted [M, 4]"]),
        ({"bank": torch.ones(0, 4)}, ["the bank is [0, 4]", "M of 1 or more"]),
        ({"online": torch.full((3, 4), math.nan)}, ["online has 3 of 3 rows", "wanted finite"]),
        ({"target": torch.full((3, 4), math.inf)}, ["target has 3 of 3 rows", "wanted finite"]),
        ({"bank": torch.full((5, 4), math.nan)}, ["the bank has 5 of 5 rows", "wanted finite"]),
        ({"temperature": -0.1}, ["temperature is -0.1", "wanted"]),
        ({"temperature": math.nan}, ["temperature is nan", "wanted"]),
        ({"target_temperature": 0.0}, ["temperature is 0.0", "wanted"]),
    ],
)
def test_refusals(changed: dict[str, object], words: list[str]) -> None:
    arguments = {"online": torch.ones(3, 4), "target": torch.ones(3, 4), "bank": torch.ones(5, 4)} | T | changed
    with pytest.raises(ValueError) as caught:
        ressl(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_the_term_wants_others_to_resemble() -> None:
    with pytest.raises(ValueError, match="wanted negatives=Queue"):
        Relational()(seen(draw(2, 3, 4), draw(2, 3, 4), None), 0.0)
