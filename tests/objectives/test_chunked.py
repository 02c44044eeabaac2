"""The chunked form of the contrastive losses: the dense form's numbers and gradients, without its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smallview.objectives import (
    Debiased,
    Decoupled,
    EqCo,
    Full,
    InBatch,
    InfoNCE,
    NearestSmoothing,
    OneHot,
    UniformSmoothing,
    info_nce,
    nt_xent,
    reductions,
)
from smallview.objectives.reductions import contrast
from smallview.records import Candidates, Embedded, Embeddings

B, M, D = 11, 9, 6
SOFT = [OneHot(), UniformSmoothing(0.2), NearestSmoothing(0.2, 3), NearestSmoothing(0.2, 4, ((1, 0.5), (4, 0.5)))]
Parts = tuple[Tensor, ...]


class Largest(TorchDispatchMode):
    """The largest floating tensor that any operation makes while it is on, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.numel = max(self.numel, x.numel())
        return out


@pytest.fixture
def sizes(monkeypatch) -> Callable[[int | None, int], None]:
    def set_to(chunked_from: int | None, block: int) -> None:
        """Chunked from so many similarities on (None: never), in blocks of so many."""
        large = 2**60 if chunked_from is None else chunked_from
        monkeypatch.setattr(reductions, "CHUNKED_FROM", dict.fromkeys(reductions.CHUNKED_FROM, large))
        monkeypatch.setattr(reductions, "BLOCK", dict.fromkeys(reductions.BLOCK, block))
        monkeypatch.setattr(reductions, "FEWEST_ROWS", 1)

    return set_to


def masks(kind: str) -> dict[str, Tensor]:
    """What is no negative of whom, for B queries and M entries; at least 4 negatives are left to each."""
    own = torch.tensor([[i % M, (i + 3) % M] for i in range(B)])
    even = torch.tensor([[(i + j) % 3 != 0 for j in range(M)] for i in range(B)])
    uneven = torch.tensor([[j <= 4 + i % 5 for j in range(M)] for i in range(B)])
    return {
        "none": {},
        "own": {"own": own[:, :1]},
        "two own": {"own": own},
        "even mask": {"is_negative": even},
        "uneven mask": {"is_negative": uneven},
        "mask and own": {"is_negative": uneven | even, "own": own},
    }[kind]


def both_forms(parts: Parts, term: InfoNCE, needed: tuple[bool, ...] = (True, True, True), **mask: Tensor) -> list[Any]:
    """[(loss, gradients of the needed parts)] of the dense and of the chunked form; parts: query, positives, bank."""
    out = []
    for chunked in (False, True):
        leaves = [x.clone().requires_grad_(need) for x, need in zip(parts, needed, strict=True)]
        loss = contrast(*leaves, term.head(0.0), temperature=0.1, soft=term.soft(0.0), chunked=chunked, **mask)
        gradients = torch.autograd.grad(0.7 * loss, [x for x in leaves if x.requires_grad])
        out.append((loss.detach(), gradients))
    return out


def parts_of(draw, dtype: torch.dtype = torch.float64, positives: int = 1) -> Parts:
    query, key, bank = (
        F.normalize(draw(*shape, seed=s), dim=-1) for s, shape in ((1, (B, D)), (2, (positives, B, D)), (3, (M, D)))
    )
    return query.to(dtype), ((query * key).sum(-1).T / 0.1).to(dtype), bank.to(dtype)


@pytest.mark.parametrize("kind", ["none", "own", "two own", "even mask", "uneven mask", "mask and own"])
@pytest.mark.parametrize("soft", SOFT)
@pytest.mark.parametrize("rows", [1, 3, 4, 1000])
def test_values_and_gradients_are_the_dense_ones(draw, sizes, kind: str, soft: Any, rows: int) -> None:
    sizes(None, rows * M + 2)  # blocks of `rows` queries: 11 are not divided by 3 and 4
    for term in (InfoNCE(0.1, soft_targets=soft), InfoNCE(0.1, EqCo(64.0), soft, Debiased(0.1))):
        dense, chunked = both_forms(parts_of(draw), term, **masks(kind))
        torch.testing.assert_close(chunked, dense, rtol=1e-12, atol=1e-12)
        dense, chunked = both_forms(parts_of(draw, torch.float32), term, **masks(kind))
        assert chunked[0].dtype == torch.float32
        torch.testing.assert_close(chunked, dense, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("soft", SOFT)
@pytest.mark.parametrize("denominator", [Full(), Decoupled(), Debiased(0.1), Debiased(0.9)])
def test_every_denominator_and_several_positives(draw, sizes, soft: Any, denominator: Any) -> None:
    sizes(None, 3 * M)
    for margin in (EqCo(64.0), EqCo(0.5)):
        dense, chunked = both_forms(
            parts_of(draw, positives=3), InfoNCE(0.1, margin, soft, denominator), **masks("mask and own")
        )
        torch.testing.assert_close(chunked, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)])
@pytest.mark.parametrize("soft", SOFT)
def test_any_part_may_be_without_gradient(draw, sizes, soft: Any, needed: tuple[bool, ...]) -> None:
    sizes(None, 4 * M)
    dense, chunked = both_forms(parts_of(draw), InfoNCE(0.1, soft_targets=soft), needed, **masks("own"))
    assert len(chunked[1]) == sum(needed)
    torch.testing.assert_close(chunked, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("soft", SOFT)
def test_gradients_agree_with_differences(draw, sizes, soft: Any) -> None:
    sizes(None, 4 * M)
    term = InfoNCE(0.4, EqCo(9.0), soft)
    leaves = [x.requires_grad_() for x in parts_of(draw)]
    own = masks("own")["own"]
    assert torch.autograd.gradcheck(
        lambda *x: contrast(*x, term.head(0.0), temperature=0.4, own=own, soft=term.soft(0.0), chunked=True), leaves
    )


def test_no_gradient_where_none_is_asked_for_and_none_of_the_second_order(draw, sizes) -> None:
    sizes(1, 3 * M)
    query, key = draw(B, D, seed=1), draw(B, D, seed=2)
    with torch.no_grad():
        without = info_nce(query.requires_grad_(), key, temperature=0.1)
    assert not without.requires_grad
    loss = info_nce(query, key, temperature=0.1)
    assert float(loss.detach()) == pytest.approx(float(without), abs=1e-12)
    with pytest.raises(RuntimeError):  # said, not silently wrong
        torch.autograd.grad(torch.autograd.grad(loss, query, create_graph=True)[0].sum(), query)


@pytest.mark.parametrize("soft", SOFT)
def test_the_public_losses_do_not_change_with_the_form(draw, sizes, soft: Any) -> None:
    z = draw(2, B, D)
    candidates, _ = InBatch(views="positive").draw({}, Embedded(z, z, (0, 1), (0, 1)), (0, 0))
    choice = {"margin": EqCo(64.0), "soft_targets": soft}
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, b: info_nce(a, b, temperature=0.1, **choice),
        lambda a, b: info_nce(a, b, draw(M, D, seed=5), temperature=0.1, **choice),
        lambda a, b: info_nce(a, b, draw(B, M, D, seed=5), temperature=0.1, **choice),
        lambda a, b: nt_xent(a, b, temperature=0.1, **choice),
        lambda a, b: InfoNCE(0.1, **choice, same_view=True)(
            Embeddings(torch.stack([a, b]), torch.stack([a, b]), candidates, (0, 1), (0, 1)), 0.0
        ),
    ]
    for loss in losses:
        out = []
        for chunked_from in (None, 1):
            sizes(chunked_from, 4 * B)
            leaves = [z[0].clone().requires_grad_(), z[1].clone().requires_grad_()]
            value = loss(*leaves)
            out.append((value.detach(), torch.autograd.grad(value, leaves)))
        torch.testing.assert_close(out[1], out[0], rtol=1e-12, atol=1e-12)


def test_few_ranks_and_no_negatives_are_refused_in_both_forms(draw) -> None:
    parts = parts_of(draw)
    nobody = torch.ones(B, M, dtype=torch.bool)
    nobody[4] = False
    for chunked in (False, True):
        for soft, mask, words in (
            (OneHot(), {"is_negative": nobody}, ("no negatives", "wanted at least one")),
            (NearestSmoothing(0.2, M), {"own": masks("own")["own"]}, ("nearest is 9", "8 negatives", "wanted", "nearest=8")),
            (UniformSmoothing(0.2), {"own": torch.arange(M).expand(B, M)}, ("no negatives", "wanted at least one")),
        ):
            term = InfoNCE(0.1, soft_targets=soft)
            with pytest.raises(ValueError) as caught:
                contrast(*parts, term.head(0.0), temperature=0.1, soft=term.soft(0.0), chunked=chunked, **mask)
            assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("soft", [OneHot(), UniformSmoothing(0.2), NearestSmoothing(0.2, 20)])
def test_the_matrix_is_never_there(soft: Any, monkeypatch) -> None:
    """2,048 pictures: the dense form holds 4 million similarities at a time, the chunked one half of that at most."""
    n = 2048
    z = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0))

    def largest(loss: Callable[[Tensor, Tensor], Tensor]) -> int:
        query, key = (x.clone().requires_grad_() for x in z)
        with Largest() as seen:
            loss(query, key).backward()
        assert query.grad is not None and key.grad is not None and float(key.grad.abs().sum()) > 0
        return seen.numel

    def one_way(query: Tensor, key: Tensor) -> Tensor:
        return info_nce(query, key, temperature=0.1, soft_targets=soft)

    def queue(query: Tensor, key: Tensor) -> Tensor:
        embeddings = Embeddings(query[None], key[None], Candidates(z[1]), (0,), (1,))
        return InfoNCE(0.1, soft_targets=soft)(embeddings, 0.0)

    assert largest(one_way) <= n * n // 2
    assert largest(queue) <= n * n // 2
    # power: the dense form is seen
    monkeypatch.setattr(reductions, "CHUNKED_FROM", dict.fromkeys(reductions.CHUNKED_FROM, 2**60))
    assert largest(one_way) >= n * n


def test_equal_similarities_and_extremes_in_both_forms(sizes) -> None:
    same = F.normalize(torch.ones(B, D), dim=1).requires_grad_()
    for chunked_from in (None, 1):
        sizes(chunked_from, 3 * B)
        for temperature in (0.5, 0.005):
            loss = info_nce(same, same, temperature=temperature, margin=EqCo(256))
            assert float(loss.detach()) == pytest.approx(math.log(257), abs=1e-4)
            (gradient,) = torch.autograd.grad(info_nce(same, -same, temperature=temperature), same)
            assert bool(torch.isfinite(gradient).all())
