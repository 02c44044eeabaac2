"""What the tests of the losses share: the inputs of the golden values, and slow loops written from the equations.

They come as fixtures, since files of the same folder cannot import one another in importlib mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Groups = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Smooth:
    """Soft targets of the slow loop: `amount` on all negatives alike, or on the `nearest` ones in groups of ranks."""

    amount: float = 0.0
    nearest: int | None = None
    groups: Groups | None = None

    def targets(self, similarities: Sequence[float]) -> list[float]:
        """One share per negative."""
        k = len(similarities)
        if self.nearest is None:
            return [self.amount / k] * k
        ranked = sorted(range(k), key=lambda j: -similarities[j])
        shares, begin = [0.0] * k, 0
        for end, part in self.groups or ((self.nearest, 1.0),):
            for rank in range(begin, end):
                shares[ranked[rank]] = self.amount * part / (end - begin)
            begin = end
        return shares


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def _one(
    query: Sequence[float],
    key: Sequence[float],
    negatives: Sequence[Sequence[float]],
    temperature: float,
    alpha: float | None = None,
    smooth: Smooth = Smooth(),
    denominator: str = "full",
    prior: float = 0.0,
) -> float:
    """The loss of one query: cross-entropy of (1 - amount, shares) and the softmax with log(alpha / K) on every negative."""
    similarities = [_cosine(query, n) for n in negatives]
    z0, z, k = _cosine(query, key) / temperature, [s / temperature for s in similarities], len(negatives)
    shift = 0.0 if alpha is None else math.log(alpha / k)
    if denominator == "debiased":  # Chuang et al., 2020, eq. 7 and 8, with K of them or alpha
        unbiased = (sum(math.exp(x) for x in z) / k - prior * math.exp(z0)) / (1.0 - prior)
        total = math.exp(z0) + math.exp(shift) * k * max(unbiased, math.exp(-1.0 / temperature))
    else:
        total = sum(math.exp(x + shift) for x in z) + (math.exp(z0) if denominator == "full" else 0.0)
    shares = smooth.targets(similarities)
    wanted = (1.0 - sum(shares)) * z0 + sum(t * (x + shift) for t, x in zip(shares, z, strict=True))
    return math.log(total) - wanted


def _slow(query: Tensor, key: Tensor, negatives: Tensor | None, temperature: float, **choices: Any) -> list[float]:
    """Per query; negatives [K, D], [B, K, D] or None, the other rows of key."""
    out = []
    for i in range(len(query)):
        if negatives is None:
            others = [key[j].tolist() for j in range(len(key)) if j != i]
        else:
            others = (negatives if negatives.dim() == 2 else negatives[i]).tolist()
        out.append(_one(query[i].tolist(), key[i].tolist(), others, temperature, **choices))
    return out


def _slow_nt_xent(z0: Tensor, z1: Tensor, temperature: float, **choices: Any) -> float:
    """Chen et al., 2020, eq. 1: every view of every picture against all views of the others."""
    z, b = torch.cat([z0, z1]).tolist(), len(z0)
    losses = []
    for i in range(2 * b):
        others = [z[k] for k in range(2 * b) if k % b != i % b]
        losses.append(_one(z[i], z[(i + b) % (2 * b)], others, temperature, **choices))
    return sum(losses) / len(losses)


def _rows(kind: str, n: int) -> Tensor:
    """Unit rows "query", "key" or "negatives", float64 [n, 8]."""
    i, d = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)[None]
    if kind == "negatives":
        raw = torch.cos(2.0 + 1.7 * i + 0.9 * d + 0.05 * i * d)
    else:
        raw = torch.sin({"query": 1.0, "key": 1.4}[kind] + 3 * i + 0.7 * d + 0.11 * i * d)
    return F.normalize(raw, dim=1)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _at(similarities: Tensor) -> Tensor:
    """Unit vectors [..., 2] with these similarities to (1, 0): a loss sees nothing else of them."""
    return torch.stack([similarities, (1.0 - similarities.square()).clamp(min=0.0).sqrt()], -1)


def _by_similarity(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], query: Tensor, key: Tensor, negatives: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the summed loss on the similarities, [B] of the positive and [B, K] of the negatives, float64.

    loss(query, key, negatives [B, K, D]) -> [B]. With unit rows, d loss / d n = g (q - s n), since the length does not count.
    """
    query = F.normalize(query.double(), dim=-1)
    key = F.normalize(key.double(), dim=-1).requires_grad_()
    bank = F.normalize(negatives.double().expand(len(query), -1, -1), dim=-1).clone().requires_grad_()
    on_key, on_bank = torch.autograd.grad(loss(query, key, bank).sum(), (key, bank))
    out = []
    for gradient, unit in ((on_key[:, None], key.detach()[:, None]), (on_bank, bank.detach())):
        away = query[:, None] - (query[:, None] * unit).sum(-1, keepdim=True) * unit
        out.append((gradient * away).sum(-1) / away.square().sum(-1))
    return out[0][:, 0], out[1]


@pytest.fixture(scope="session")
def smooth() -> type[Smooth]:
    return Smooth


@pytest.fixture(scope="session")
def slow() -> Callable[..., list[float]]:
    return _slow


@pytest.fixture(scope="session")
def slow_one() -> Callable[..., float]:
    return _one


@pytest.fixture(scope="session")
def slow_nt_xent() -> Callable[..., float]:
    return _slow_nt_xent


@pytest.fixture(scope="session")
def rows() -> Callable[[str, int], Tensor]:
    return _rows


@pytest.fixture(scope="session")
def draw() -> Callable[..., Tensor]:
    return _draw


@pytest.fixture(scope="session")
def at() -> Callable[[Tensor], Tensor]:
    return _at


@pytest.fixture(scope="session")
def by_similarity() -> Callable[..., tuple[Tensor, Tensor]]:
    return _by_similarity
