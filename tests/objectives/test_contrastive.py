"""The contrastive losses against slow loops, identities and golden values, and with planted faults."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives import InBatch, InfoNCE, Queue, info_nce, nt_xent
from smallview.records import Embeddings
from smallview.schedules import Cosine

D = 8


def rows(kind: str, n: int) -> Tensor:
    """The inputs of the golden values, float64 [n, 8]."""
    i, d = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(D, dtype=torch.float64)[None]
    if kind == "negatives":
        raw = torch.cos(2.0 + 1.7 * i + 0.9 * d + 0.05 * i * d)
    else:
        raw = torch.sin((1.0 if kind == "query" else 1.4) + 3 * i + 0.7 * d + 0.11 * i * d)
    return F.normalize(raw, dim=1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / (float(a.norm()) * float(b.norm()))


def slow_info_nce(query: Tensor, key: Tensor, negatives: Tensor | None, temperature: float) -> list[float]:
    out = []
    for i in range(len(query)):
        others = [key[j] for j in range(len(key)) if j != i]
        if negatives is not None:
            others = list(negatives if negatives.dim() == 2 else negatives[i])
        positive = math.exp(cosine(query[i], key[i]) / temperature)
        out.append(-math.log(positive / (positive + sum(math.exp(cosine(query[i], n) / temperature) for n in others))))
    return out


def slow_nt_xent(z0: Tensor, z1: Tensor, temperature: float, *, own_masked: bool = True, both_views: bool = True) -> float:
    """Chen et al., 2020, eq. 1, with faults to plant."""
    z, b = torch.cat([z0, z1]), len(z0)
    total = []
    for i in range(2 * b):
        positive = (i + b) % (2 * b)
        denominator = 0.0
        for k in range(2 * b):
            dropped = not both_views and (k < b) == (i < b)
            if (k != i or not own_masked) and (k == positive or not dropped):
                denominator += math.exp(cosine(z[i], z[k]) / temperature)
        total.append(-math.log(math.exp(cosine(z[i], z[positive]) / temperature) / denominator))
    return sum(total) / len(total)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("b", "k"), [(2, 1), (5, 3), (4, 9)])
def test_info_nce_is_the_slow_loop(b: int, k: int, temperature: float) -> None:
    query, key = draw(b, D), draw(b, D, seed=1)
    for negatives in (None, draw(k, D, seed=2), draw(b, k, D, seed=3)):
        got = info_nce(query, key, negatives, temperature=temperature, reduction="none")
        wanted = torch.tensor(slow_info_nce(query, key, negatives, temperature), dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(info_nce(query, key, negatives, temperature=temperature), wanted.mean())


@pytest.mark.parametrize(
    ("k", "wanted"), [(4, 0.5635913534), (8, 0.8104914679), (16, 0.8695766176), (32, 0.9447434153), (64, 1.0731714013)]
)
def test_info_nce_golden(k: int, wanted: float) -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", k)
    assert float(info_nce(query, key, bank, temperature=0.2)) == pytest.approx(wanted, abs=1e-9)
    assert float(info_nce(query, key, bank.expand(4, -1, -1), temperature=0.2)) == pytest.approx(wanted, abs=1e-9)
    assert float(info_nce(query.float(), key.float(), bank.float(), temperature=0.2)) == pytest.approx(wanted, abs=2e-6)
    assert float(info_nce(query, key, bank, temperature=0.21)) != pytest.approx(wanted, abs=1e-3)


def test_info_nce_golden_in_batch_and_its_gradient() -> None:
    losses = info_nce(rows("query", 8), rows("key", 8), temperature=0.2, reduction="none")
    assert [float(losses.mean()), float(losses[0]), float(losses[7])] == pytest.approx(
        [0.5687883416, 0.1532523237, 0.5619424180], abs=1e-9
    )
    # the gradient on the positive similarity is (p - 1) / temperature
    shares = (-info_nce(rows("query", 4), rows("key", 4), rows("negatives", 16), temperature=0.2, reduction="none")).exp()
    assert ((shares - 1) / 0.2).tolist() == pytest.approx(
        [-1.2811967376, -3.1773762263, -3.2137901400, -3.4069184993], abs=1e-9
    )


def test_smoothing_free_golden_and_its_symmetric_sum() -> None:
    query, key, bank = rows("query", 4), rows("key", 4), rows("negatives", 40)
    there, back = info_nce(query, key, bank, temperature=0.1), info_nce(key, query, bank, temperature=0.1)
    assert [float(there), float(there + back)] == pytest.approx([0.6833195726, 1.3657497481], abs=1e-9)


@pytest.mark.parametrize(("temperature", "wanted"), [(0.1, 0.5881489672), (0.5, 1.4859592730)])
def test_nt_xent_golden(temperature: float, wanted: float) -> None:
    assert float(nt_xent(rows("query", 8), rows("key", 8), temperature=temperature)) == pytest.approx(wanted, abs=1e-9)
    single = nt_xent(rows("query", 8).float(), rows("key", 8).float(), temperature=temperature)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("b", [2, 3, 7])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_nt_xent_is_the_slow_loop_and_no_faulty_one(b: int, temperature: float) -> None:
    z0, z1 = draw(b, D), draw(b, D, seed=1)
    got = float(nt_xent(z0, z1, temperature=temperature))
    assert got == pytest.approx(slow_nt_xent(z0, z1, temperature), abs=1e-10)
    for fault in (
        slow_nt_xent(z0, z1, temperature, own_masked=False),
        slow_nt_xent(z0, z1, temperature, both_views=False),
        slow_nt_xent(z0, z1, 1.1 * temperature),
    ):
        assert abs(got - fault) > 1e-4


def test_nt_xent_is_the_term_with_a_shared_network_and_the_batch() -> None:
    z = draw(2, 6, D)
    bank, is_negative, _ = InBatch().draw({}, z, (0, 0))
    term = InfoNCE(0.3)(Embeddings(z, z, bank, is_negative, (0, 1), (0, 1)), 0.0)
    torch.testing.assert_close(term, nt_xent(z[0], z[1], temperature=0.3))


def test_the_term_with_a_queue_is_moco() -> None:
    online, target, bank = draw(1, 5, D), draw(1, 5, D, seed=1), draw(11, D, seed=2)
    everything = torch.ones(5, 11, dtype=torch.bool)
    term = InfoNCE(0.2)(Embeddings(online, target, bank, everything, (0,), (1,)), 0.0)
    torch.testing.assert_close(term, info_nce(online[0], target[0], bank, temperature=0.2))


def test_three_views_of_which_one_is_online_only() -> None:
    """Every online view against every target view of another kind; negatives: the other pictures in both target views."""
    z = draw(3, 4, D)
    bank, is_negative, _ = InBatch().draw({}, z[:2], (0, 0))
    got = InfoNCE(0.5)(Embeddings(z, z[:2], bank, is_negative, (0, 1, 2), (0, 1)), 0.0)
    losses = []
    for v, other in [(0, 1), (1, 0), (2, 0), (2, 1)]:
        for i in range(4):
            positive = math.exp(cosine(z[v, i], z[other, i]) / 0.5)
            rest = sum(math.exp(cosine(z[v, i], z[t, j]) / 0.5) for t in (0, 1) for j in range(4) if j != i)
            losses.append(-math.log(positive / (positive + rest)))
    assert float(got) == pytest.approx(sum(losses) / len(losses), abs=1e-10)


def test_order_and_length_of_rows_do_not_matter() -> None:
    z0, z1 = draw(6, D), draw(6, D, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    loss = nt_xent(z0, z1, temperature=0.2)
    torch.testing.assert_close(nt_xent(z0[order], z1[order], temperature=0.2), loss)
    torch.testing.assert_close(nt_xent(z1, z0, temperature=0.2), loss)
    torch.testing.assert_close(nt_xent(7.0 * z0, 0.1 * z1, temperature=0.2), loss)
    assert abs(float(nt_xent(z0[order], z1, temperature=0.2) - loss)) > 1e-3


def test_equal_similarities_give_log_of_one_plus_k() -> None:
    same = torch.ones(5, D, dtype=torch.float64)
    assert float(info_nce(same, same, temperature=0.1)) == pytest.approx(math.log(5))
    assert float(info_nce(same, same, same[:3], temperature=0.1)) == pytest.approx(math.log(4))
    assert float(nt_xent(same, same, temperature=0.1)) == pytest.approx(math.log(1 + 8))


def test_number_formats() -> None:
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
    assert float(inside) == pytest.approx(float(exact), abs=1e-5)
    assert float(other) == pytest.approx(float(info_nce(z0, z1, temperature=0.1)), abs=1e-5)


def test_temperature_may_be_a_schedule() -> None:
    z = draw(2, 4, D)
    bank, is_negative, _ = InBatch().draw({}, z, (0, 0))
    embeddings = Embeddings(z, z, bank, is_negative, (0, 1), (0, 1))
    term = InfoNCE(Cosine(0.5, 0.1))
    torch.testing.assert_close(term(embeddings, 0.0), InfoNCE(0.5)(embeddings, 0.0))
    torch.testing.assert_close(term(embeddings, 1.0), InfoNCE(0.1)(embeddings, 0.0))


def test_gradients_reach_the_negatives_and_agree_with_differences() -> None:
    query, key, bank = (draw(3, 4, seed=s).requires_grad_() for s in (1, 2, 3))
    assert torch.autograd.gradcheck(lambda q, k, n: info_nce(q, k, n, temperature=0.4), (query, key, bank))
    z0, z1 = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.4), (z0, z1))


@pytest.mark.parametrize(
    ("query", "key", "negatives", "temperature", "words"),
    [
        ((3, 4), (2, 4), None, 0.1, "wanted both"),
        ((3, 4), (3, 4), (5, 3), 0.1, "wanted [K, 4]"),
        ((3, 4), (3, 4), (2, 5, 4), 0.1, "[3, K, 4]"),
        ((3, 4), (3, 4), (4,), 0.1, "wanted [K, 4]"),
        ((1, 4), (1, 4), None, 0.1, "no negatives"),
        ((3, 4), (3, 4), (0, 4), 0.1, "no negatives"),
        ((3, 4), (3, 4), (3, 0, 4), 0.1, "no negatives"),
        ((3, 4), (3, 4), None, 0.0, "temperature"),
        ((3, 4), (3, 4), None, math.nan, "temperature"),
    ],
)
def test_refusals(query, key, negatives, temperature, words) -> None:
    with pytest.raises(ValueError) as caught:
        info_nce(
            torch.ones(query), torch.ones(key), None if negatives is None else torch.ones(negatives), temperature=temperature
        )
    assert words in str(caught.value)


def test_more_refusals() -> None:
    for z0, z1 in ((torch.ones(1, 4), torch.ones(1, 4)), (torch.ones(3, 4), torch.ones(2, 4)), (torch.ones(4), torch.ones(4))):
        with pytest.raises(ValueError, match="wanted"):
            nt_xent(z0, z1, temperature=0.1)
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(torch.ones(3, 4), torch.ones(3, 4), temperature=-1.0)
    with pytest.raises(ValueError, match="no negatives"):
        InfoNCE()(Embeddings(torch.ones(1, 3, 4), torch.ones(1, 3, 4), None, None, (0,), (1,)), 0.0)


@pytest.mark.parametrize("size", [3, 8, 40])
def test_own_picture_unmasked_would_be_seen(size: int) -> None:
    """Power: the in-batch mask with the own picture left in gives another loss, at every batch size."""
    z = draw(2, size, D)
    bank, is_negative, _ = InBatch().draw({}, z, (0, 0))
    right = InfoNCE(0.2)(Embeddings(z, z, bank, is_negative, (0, 1), (0, 1)), 0.0)
    wrong = InfoNCE(0.2)(Embeddings(z, z, bank, torch.ones_like(is_negative), (0, 1), (0, 1)), 0.0)
    assert float(right) == pytest.approx(slow_nt_xent(z[0], z[1], 0.2), abs=1e-10)
    assert float(wrong - right) > 1e-3


def test_a_queue_bank_of_another_format_is_taken() -> None:
    online = draw(1, 4, D).bfloat16()
    state = Queue(6).init(0, D, torch.device("cpu"))
    bank, is_negative, _ = Queue(6).draw(state, online, (0, 0))
    assert torch.isfinite(InfoNCE(0.1)(Embeddings(online, online, bank, is_negative, (0,), (1,)), 0.0))
