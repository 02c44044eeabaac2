"""BYOL's regression loss against a slow loop, golden values and planted faults."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives import Alignment, byol
from smallview.records import Embeddings


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(prediction: Tensor, target: Tensor) -> float:
    """Grill et al., 2020, eq. 2: the squared distance of unit vectors."""
    total = 0.0
    for p, t in zip(prediction.tolist(), target.tolist(), strict=True):
        p_norm, t_norm = math.hypot(*p), math.hypot(*t)
        total += sum((a / p_norm - b / t_norm) ** 2 for a, b in zip(p, t, strict=True))
    return total / len(prediction)


@pytest.mark.parametrize(("b", "d"), [(1, 2), (4, 7), (9, 3)])
def test_byol_is_the_slow_loop(b: int, d: int) -> None:
    prediction, target = draw(b, d), draw(b, d, seed=1)
    assert float(byol(prediction, target)) == pytest.approx(slow(prediction, target), abs=1e-12)
    assert abs(float(byol(prediction, -target)) - slow(prediction, target)) > 1e-3
    torch.testing.assert_close(byol(3.0 * prediction, 0.2 * target), byol(prediction, target))


def test_byol_golden_sum() -> None:
    i, d = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)[None]
    q, k = (F.normalize(torch.sin(start + 3 * i + 0.7 * d + 0.11 * i * d), dim=1) for start in (1.0, 1.4))
    # two directions whose predictions are the embeddings themselves
    z = torch.stack([q, k])
    assert float(byol(q, k) + byol(k, q)) == pytest.approx(0.3100693483, abs=1e-9)
    assert float(Alignment()(Embeddings(z, z, None, None, (0, 1), (0, 1)), 0.0)) == pytest.approx(0.3100693483, abs=1e-9)


def test_the_term_sums_the_pairs_and_leaves_out_a_views_own_target() -> None:
    online, target = draw(3, 5, 4), draw(2, 5, 4, seed=1)
    got = float(Alignment()(Embeddings(online, target, None, None, (0, 1, 2), (0, 1)), 0.0))
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]
    assert got == pytest.approx(sum(slow(online[v], target[t]) for v, t in pairs), abs=1e-10)
    assert abs(got - sum(slow(online[v], target[t]) for v in range(3) for t in range(2))) > 1e-2


def test_formats_and_gradient() -> None:
    prediction, target = draw(4, 6), draw(4, 6, seed=1)
    assert byol(prediction, target).dtype == torch.float64
    half = byol(prediction.bfloat16(), target.bfloat16())
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(slow(prediction.bfloat16().double(), target.bfloat16().double()), abs=1e-5)
    assert torch.autograd.gradcheck(byol, (prediction.requires_grad_(), target.requires_grad_()))


def test_refusals() -> None:
    for a, b in (((2, 3), (3, 3)), ((3,), (3,))):
        with pytest.raises(ValueError, match="wanted both"):
            byol(torch.ones(a), torch.ones(b))
