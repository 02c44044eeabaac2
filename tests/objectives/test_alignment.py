"""BYOL's regression loss against a slow loop, golden values and planted faults, and SimSiam as a value of the same term."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Networks, Shared
from smallview.objectives import Alignment, byol
from smallview.records import Embeddings, ViewBatch

few = settings(derandomize=True, max_examples=12, deadline=None, database=None)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(online: Tensor, target: Tensor) -> Embeddings:
    return Embeddings(online, target, None, tuple(range(len(online))), tuple(range(len(target))))


def slow(prediction: Tensor, target: Tensor) -> float:
    """Grill et al., 2020, eq. 2: the squared distance of unit vectors."""
    total = 0.0
    for p, t in zip(prediction.tolist(), target.tolist(), strict=True):
        p_norm, t_norm = math.hypot(*p), math.hypot(*t)
        total += sum((a / p_norm - b / t_norm) ** 2 for a, b in zip(p, t, strict=True))
    return total / len(prediction)


@few
@given(b=st.integers(1, 9), d=st.integers(1, 7), seed=st.integers(0, 99))
def test_byol_is_the_slow_loop(b: int, d: int, seed: int) -> None:
    prediction, target = draw(b, d, seed=seed), draw(b, d, seed=seed + 100)
    assert float(byol(prediction, target)) == pytest.approx(slow(prediction, target), abs=1e-12)
    torch.testing.assert_close(byol(3.0 * prediction, 0.2 * target), byol(prediction, target))
    # the opposite target is as far from 2 on the other side
    assert float(byol(prediction, -target)) == pytest.approx(4.0 - slow(prediction, target), abs=1e-12)


def test_byol_golden_sum() -> None:
    i, d = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)[None]
    q, k = (F.normalize(torch.sin(start + 3 * i + 0.7 * d + 0.11 * i * d), dim=1) for start in (1.0, 1.4))
    # two directions whose predictions are the embeddings themselves
    z = torch.stack([q, k])
    assert float(byol(q, k) + byol(k, q)) == pytest.approx(0.3100693483, abs=1e-9)
    assert float(Alignment()(seen(z, z), 0.0)) == pytest.approx(0.3100693483, abs=1e-9)


def test_equal_and_opposite_directions_are_the_ends() -> None:
    z = draw(5, 4)
    for target, wanted in ((z, 0.0), (-z, 4.0)):
        assert float(byol(z, target)) == pytest.approx(wanted, abs=1e-12)
    across = torch.eye(4, dtype=torch.float64)
    assert float(byol(across, across.roll(1, 0))) == pytest.approx(2.0, abs=1e-12)


@few
@given(views=st.integers(1, 4), targets=st.integers(2, 3), seed=st.integers(0, 99))
def test_the_term_sums_or_averages_the_pairs_and_leaves_out_a_views_own_target(views: int, targets: int, seed: int) -> None:
    online, target = draw(views, 5, 4, seed=seed), draw(targets, 5, 4, seed=seed + 100)
    each = [slow(online[v], target[t]) for v in range(views) for t in range(targets) if v != t]
    embeddings = seen(online, target)
    assert float(Alignment()(embeddings, 0.0)) == pytest.approx(sum(each), abs=1e-10)
    assert float(Alignment(directions="sum")(embeddings, 0.0)) == pytest.approx(sum(each), abs=1e-10)
    assert float(Alignment(directions="mean")(embeddings, 0.0)) == pytest.approx(sum(each) / len(each), abs=1e-10)


def test_the_gradient_turns_and_never_lengthens() -> None:
    prediction, target = draw(4, 6).requires_grad_(), draw(4, 6, seed=1)
    (gradient,) = torch.autograd.grad(byol(prediction, target), prediction)
    unit, to = F.normalize(prediction.detach(), dim=1), F.normalize(target, dim=1)
    # of 2 - 2 cos, by hand: what of the target lies across the prediction, over its length
    across = to - (unit * to).sum(1, keepdim=True) * unit
    torch.testing.assert_close(gradient, -2.0 * across / prediction.detach().norm(dim=1, keepdim=True) / 4)


def two_views() -> list[ViewBatch]:
    source = torch.Generator().manual_seed(3)
    return [ViewBatch(torch.randn(6, 3, 4, 4, generator=source)) for _ in range(2)]


def siamese(stop_gradient: bool) -> Networks:
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    return Networks(encoder, 5, Heads(MLP((8,), 4), MLP((8,), 4)), Shared(stop_gradient=stop_gradient))


def test_simsiam_is_the_mean_at_half_weight_less_one() -> None:
    """Chen and He, 2021, algorithm 1: D(p1, z2) / 2 + D(p2, z1) / 2, D the negative cosine with z detached."""
    networks, views = siamese(stop_gradient=True), two_views()
    networks.eval()
    embedded = networks(views)
    embeddings = Embeddings(embedded.online, embedded.target, None, embedded.online_views, embedded.target_views)
    loss = 0.5 * Alignment(directions="mean")(embeddings, 0.0) - 1.0
    weight = networks.online.encoder[1].weight
    (gradient,) = torch.autograd.grad(loss, weight)

    z = [networks.online(view.images) for view in views]
    p = [networks.predictor(x) for x in z]
    by_hand = sum(-F.cosine_similarity(a, b.detach(), dim=1).mean() / 2 for a, b in ((p[0], z[1]), (p[1], z[0])))
    torch.testing.assert_close(loss.detach(), by_hand.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, weight)[0])


def test_simsiam_without_its_stop_gradient_has_the_same_value_and_another_gradient() -> None:
    values, gradients = [], []
    for stop_gradient in (True, False):
        networks = siamese(stop_gradient)
        embedded = networks(two_views())
        assert embedded.target.requires_grad is not stop_gradient
        loss = Alignment(directions="mean")(
            Embeddings(embedded.online, embedded.target, None, embedded.online_views, embedded.target_views), 0.0
        )
        values.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, networks.online.encoder[1].weight)[0])
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert float((gradients[0] - gradients[1]).norm()) > 0.1 * float(gradients[0].norm())


def test_formats_and_gradient() -> None:
    prediction, target = draw(4, 6), draw(4, 6, seed=1)
    assert byol(prediction, target).dtype == torch.float64
    half = byol(prediction.bfloat16(), target.bfloat16())
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(slow(prediction.bfloat16().double(), target.bfloat16().double()), abs=1e-5)
    mixed = byol(prediction.float(), target.bfloat16())
    assert mixed.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        inside = byol(prediction.float(), target.float())
    assert float(inside) == pytest.approx(slow(prediction, target), abs=1e-5)
    assert torch.autograd.gradcheck(byol, (prediction.requires_grad_(), target.requires_grad_()))


@pytest.mark.parametrize(
    ("prediction", "target", "words"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), ["prediction is [2, 3]", "target [3, 3]", "wanted both [B, D]"]),
        (torch.ones(2, 3), torch.ones(2, 4), ["prediction is [2, 3]", "target [2, 4]", "wanted both [B, D]"]),
        (torch.ones(3), torch.ones(3), ["prediction is [3]", "wanted both [B, D]"]),
        (torch.ones(2, 1, 3), torch.ones(2, 1, 3), ["[2, 1, 3]", "wanted both [B, D]"]),
        (torch.tensor([[math.nan, 1.0], [1.0, 1.0]]), torch.ones(2, 2), ["prediction has 1 of 2 rows", "wanted finite"]),
        (torch.ones(2, 2), torch.full((2, 2), math.inf), ["target has 2 of 2 rows", "wanted finite", "upstream"]),
    ],
)
def test_refusals(prediction: Tensor, target: Tensor, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        byol(prediction, target)
    for word in words:
        assert word in str(caught.value)


def test_refused_directions() -> None:
    with pytest.raises(ValueError, match="directions is 'both'; wanted mean or sum"):
        Alignment(directions="both")
