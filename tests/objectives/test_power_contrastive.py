"""Planted faults: the public mistakes of contrastive code, each of which a check must see.

A check takes the thing it judges, passes on ours, and must fail on a copy with one fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives import EqCo, InBatch, InfoNCE, NearestSmoothing, OneHot, Queue, UniformSmoothing, info_nce, reductions
from smallview.records import Candidates, Embedded, Embeddings

CPU = torch.device("cpu")
Loss = Callable[..., Tensor]


def shares_of(soft: Any, similarity: Tensor) -> Tensor:
    """The target on the negatives, [B, K]."""
    b, k = similarity.shape
    if not isinstance(soft, NearestSmoothing):
        return similarity.new_full((b, k), soft.amount / k)
    each = torch.cat(
        [
            similarity.new_full((end - begin,), part / (end - begin))
            for begin, (end, part) in zip(
                (0, *(end for end, _ in soft.groups or ())), soft.groups or ((soft.nearest, 1.0),), strict=False
            )
        ]
    )
    ranks = similarity.argsort(1, descending=True)[:, : soft.nearest]
    return torch.zeros_like(similarity).scatter(1, ranks, soft.amount * each.expand(b, -1))


def copy_with(fault: str | None) -> Loss:
    """A second info_nce, written as the equations stand; with one fault."""

    def loss(
        query: Tensor, key: Tensor, negatives: Tensor, *, temperature: float, margin: Any = None, soft_targets: Any = None
    ) -> Tensor:
        soft = soft_targets or OneHot()
        query, key, bank = (F.normalize(x, dim=1) for x in (query, key, negatives))
        positive, similarity = (query * key).sum(1, keepdim=True), query @ bank.T
        b, k = similarity.shape
        shift = 0.0
        if margin is not None:
            alpha = margin.alpha
            shift = {
                "margin dropped": 0.0,
                "margin's sign": -math.log(alpha / k),
                "margin not multiplied by temperature": math.log(alpha / k) / temperature,
                "margin multiplied twice": math.log(alpha / k) * temperature,
                "margin without the logarithm": min(alpha / k, 500.0),
                "batch size for K": math.log(alpha / b),
                "K + 1 for K": math.log(alpha / (k + 1)),
                "configured K": math.log(alpha / 32),
            }.get(fault or "", math.log(alpha / k))
        logits = torch.cat(
            [positive / (1.0 if fault == "temperature not on the positive" else temperature), similarity / temperature + shift],
            1,
        )
        log_share = logits.log_softmax(1)
        ranked_by = (
            key @ bank.T
            if fault == "ranked by the key"
            else logits[:, 1:]
            if fault == "ranked with the positive"
            else similarity
        )
        shares = shares_of(soft, ranked_by.detach())
        if fault == "uniform over K + 1":
            shares = torch.full_like(shares, soft.amount / (k + 1)) if isinstance(soft, UniformSmoothing) else shares
        if fault == "farthest for nearest":
            shares = shares_of(soft, -similarity.detach())
        target = torch.cat([1.0 - shares.sum(1, keepdim=True), shares], 1)
        if fault == "targets with gradient":
            target = target * (logits / logits.detach())  # the same value
        if fault == "targets on top of a whole positive":
            target = torch.cat([torch.ones_like(positive), shares], 1)
        if fault == "probabilities for their logarithms":
            log_share = log_share.exp()
        return -(target * log_share).sum(1).mean()

    return loss


@dataclass(frozen=True)
class Checks:
    """The suite's checks of a loss, in short: true where it passes."""

    rows: Any
    draw: Any
    slow: Any
    smooth: Any

    def golden_margin(self, loss: Loss) -> bool:
        wanted = {(4, 256): 3.7278092146, (16, 16): 0.8695766176, (16, 256): 3.0482269156, (64, 65536): 7.5479920048}
        query, key = self.rows("query", 4), self.rows("key", 4)
        return all(
            abs(float(loss(query, key, self.rows("negatives", k), temperature=0.2, margin=EqCo(alpha))) - value) < 1e-9
            for (k, alpha), value in wanted.items()
        )

    def golden_smoothing(self, loss: Loss) -> bool:
        wanted = [
            (UniformSmoothing(0.2), 2.5424064029),
            (NearestSmoothing(0.2, 20), 2.1503415317),
            (NearestSmoothing(0.2, 20, ((2, 0.5), (8, 0.25), (20, 0.25))), 1.6402262743),
        ]
        query, key, bank = self.rows("query", 4), self.rows("key", 4), self.rows("negatives", 40)
        return all(
            abs(float(loss(query, key, bank, temperature=0.1, soft_targets=soft)) - value) < 1e-9 for soft, value in wanted
        )

    def golden_plain(self, loss: Loss) -> bool:
        return (
            abs(
                float(loss(self.rows("query", 4), self.rows("key", 4), self.rows("negatives", 16), temperature=0.2))
                - 0.8695766176
            )
            < 1e-9
        )

    def repeated_negatives(self, loss: Loss) -> bool:
        query, key, bank = (self.draw(n, 8, seed=s) for n, s in ((5, 1), (5, 2), (7, 3)))
        once, thrice = (loss(query, key, x, temperature=0.2, margin=EqCo(256.0)) for x in (bank, bank.repeat(3, 1)))
        return abs(float(once - thrice)) < 1e-12

    def collapse(self, loss: Loss) -> bool:
        same = torch.ones(3, 8, dtype=torch.float64)
        return all(
            abs(float(loss(same, same, same[:1].expand(k, -1), temperature=t, margin=EqCo(256.0))) - 5.5490760849) < 1e-9
            for k in (1, 7, 300)
            for t in (0.05, 1.0)
        )

    def slow_loop(self, loss: Loss) -> bool:
        """With the query, the key and the negatives far apart, so that ranks differ between query and key."""
        query, key, bank = (self.draw(n, 8, seed=s) for n, s in ((5, 1), (5, 2), (9, 3)))
        soft = NearestSmoothing(0.2, 3)
        got = float(loss(query, key, bank, temperature=0.2, margin=EqCo(64.0), soft_targets=soft))
        losses = self.slow(query, key, bank, 0.2, alpha=64.0, smooth=self.smooth(0.2, 3))
        return abs(got - sum(losses) / 5) < 1e-10

    def constant_targets(self, loss: Loss) -> bool:
        """The gradient is (p - t) / temperature, seen from the negatives: their similarities' slopes sum to that of the positive."""
        query, key, bank = (F.normalize(self.draw(n, 8, seed=s), dim=1) for n, s in ((5, 1), (5, 2), (9, 3)))
        for soft in (UniformSmoothing(0.2), NearestSmoothing(0.2, 3)):
            leaf = query.clone().requires_grad_()
            (got,) = torch.autograd.grad(loss(leaf, key, bank, temperature=0.2, soft_targets=soft), leaf)
            similarity = query @ bank.T
            logits = torch.cat([(query * key).sum(1, keepdim=True), similarity], 1) / 0.2
            target = torch.cat([torch.full((5, 1), 0.8, dtype=torch.float64), shares_of(soft, similarity)], 1)
            slopes = (logits.softmax(1) - target) / 0.2 / 5
            free = slopes[:, :1] * key + slopes[:, 1:] @ bank
            if float((got - free + (free * query).sum(1, keepdim=True) * query).abs().max()) > 1e-10:
                return False
        return True


NAMES = ("golden_margin", "golden_smoothing", "golden_plain", "repeated_negatives", "collapse", "slow_loop", "constant_targets")
SEEN_BY: dict[str, set[str]] = {
    "margin dropped": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "margin's sign": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "margin not multiplied by temperature": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "margin multiplied twice": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "margin without the logarithm": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "batch size for K": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "K + 1 for K": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "configured K": {"golden_margin", "repeated_negatives", "collapse", "slow_loop"},
    "temperature not on the positive": {
        "golden_margin",
        "golden_smoothing",
        "golden_plain",
        "collapse",
        "slow_loop",
        "constant_targets",
    },
    "ranked by the key": {"golden_smoothing", "slow_loop", "constant_targets"},
    "farthest for nearest": {"golden_smoothing", "slow_loop", "constant_targets"},
    "uniform over K + 1": {"golden_smoothing", "constant_targets"},
    "targets with gradient": {"constant_targets"},
    "targets on top of a whole positive": {"golden_smoothing", "slow_loop", "constant_targets"},
    "probabilities for their logarithms": set(NAMES) - {"repeated_negatives"},
}


@pytest.fixture(scope="module")
def checks(rows, draw, slow, smooth) -> Checks:
    return Checks(rows, draw, slow, smooth)


@pytest.mark.parametrize("loss", [info_nce, copy_with(None)], ids=["ours", "second copy"])
@pytest.mark.parametrize("name", NAMES)
def test_a_right_loss_passes_every_check(checks: Checks, name: str, loss: Loss) -> None:
    assert getattr(checks, name)(loss)


@pytest.mark.parametrize("fault", SEEN_BY)
def test_a_planted_fault_is_seen_by_the_checks_that_are_for_it(checks: Checks, fault: str) -> None:
    assert {name for name in NAMES if not getattr(checks, name)(copy_with(fault))} >= SEEN_BY[fault]


def test_a_margin_that_counts_the_configured_negatives_is_seen(rows) -> None:
    """256 are asked for and 7 are there; of equal embeddings the loss is log(1 + alpha) in the right form only."""

    class Configured(EqCo):
        def shift(self, count: int | Tensor) -> float:
            return math.log(self.alpha / 256)

    def passes(margin: EqCo) -> bool:
        target = rows("key", 8)[None]
        candidates, _ = InBatch(per_query=256, views="positive").draw({}, Embedded(target, target, (0,), (1,)), (0, 0))
        assert candidates is not None
        embeddings = Embeddings(rows("query", 8)[None], target, candidates, (0,), (1,))
        return abs(float(InfoNCE(0.2, margin)(embeddings, 0.0)) - 3.2466864911) < 1e-9

    assert passes(EqCo(256.0)) and not passes(Configured(256.0))


class Stuck(Queue):
    """Keys never come in."""

    def draw(self, state: Any, seen: Any, key: Any) -> Any:
        return super().draw(state, seen, key)[0], state


class NoStep(Queue):
    """Keys come in, always at the same place."""

    def draw(self, state: Any, seen: Any, key: Any) -> Any:
        candidates, after = super().draw(state, seen, key)
        return candidates, {**after, "position": state["position"]}


class Early(Queue):
    """This step's keys come in before the loss has seen the queue: the positive is among the negatives."""

    def draw(self, state: Any, seen: Any, key: Any) -> Any:
        _, after = super().draw(state, seen, key)
        return Candidates(after["keys"]), after


class AllEqual(Queue):
    """Every key is the same vector, at the start and ever after."""

    def init(self, seed: int, dimensions: int, device: torch.device, cut: Any = None) -> Any:
        state = super().init(seed, dimensions, device)
        return {**state, "keys": torch.ones_like(state["keys"]) / math.sqrt(dimensions)}

    def draw(self, state: Any, seen: Any, key: Any) -> Any:
        return super().draw(state, seen, key)[0], state


def life_of(queue: Queue, draw: Any, steps: int = 6) -> tuple[list[float], list[bool]]:
    """Losses of a queue of 6, whose online network has found the target, and which steps the bank was what had come in so far."""
    state = queue.init(0, 8, CPU)
    remembered = list(state["keys"])
    losses, right = [], []
    for step in range(steps):
        target = F.normalize(draw(1, 2, 8, seed=step).float(), dim=-1)
        candidates, after = queue.draw(state, Embedded(target, target, (0,), (1,)), (0, step))
        bank = torch.roll(candidates.embeddings, -2 * step % 6, 0)
        right.append(torch.equal(bank, torch.stack(remembered)))
        losses.append(float(InfoNCE(0.2)(Embeddings(target, target, candidates, (0,), (1,)), 0.0)))
        remembered, state = (remembered + list(F.normalize(target[0], dim=1)))[-6:], after
    return losses, right


@pytest.mark.parametrize("broken", [Stuck, NoStep, Early, AllEqual])
def test_a_broken_queue_is_seen_and_a_healthy_one_passes(draw, broken: type[Queue]) -> None:
    assert all(life_of(Queue(6), draw)[1])
    right = life_of(broken(6), draw)[1]
    assert not all(right[1:])


def test_the_loss_of_a_stuck_and_collapsed_queue_stays_at_its_logarithm(draw) -> None:
    """The sign of the bug in the wild: log(1 + K) from the first step to the last."""
    queue = AllEqual(6)
    state = queue.init(0, 8, CPU)
    for step in range(4):
        flat = torch.ones(1, 2, 8)
        candidates, state = queue.draw(state, Embedded(flat, flat, (0,), (1,)), (0, step))
        loss = InfoNCE(0.2)(Embeddings(flat, flat, candidates, (0,), (1,)), 0.0)
        assert float(loss) == pytest.approx(math.log(7), abs=1e-5)
    healthy, _ = life_of(Queue(6), draw)
    assert all(abs(loss - math.log(7)) > 0.5 for loss in healthy) and len({round(loss, 4) for loss in healthy}) == 6


@pytest.mark.parametrize("fault", ["nobody is masked", "the next picture is masked", "one view only is masked"])
@pytest.mark.parametrize("b", [3, 8, 40])
def test_a_wrong_own_mask_is_seen_at_every_batch_size(draw, slow_nt_xent, b: int, fault: str) -> None:
    z = draw(2, b, 8)
    candidates, _ = InBatch().draw({}, Embedded(z, z, (0, 1), (0, 1)), (0, 0))
    assert candidates is not None and candidates.own is not None
    own = {
        "nobody is masked": None,
        "the next picture is masked": candidates.own.roll(1, 0),
        "one view only is masked": candidates.own[:, :1],
    }[fault]
    right, wrong = (
        float(InfoNCE(0.2)(Embeddings(z, z, Candidates(candidates.embeddings, mask), (0, 1), (0, 1)), 0.0))
        for mask in (candidates.own, own)
    )
    wanted = slow_nt_xent(z[0], z[1], 0.2)
    assert right == pytest.approx(wanted, abs=1e-10)
    assert abs(wrong - wanted) > 1e-3


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_chunked_gradient_that_lacks_a_part_is_seen(draw, monkeypatch, part: int) -> None:
    """0 the query, 1 the positive, 2 the bank."""
    z = draw(2, 7, 8)

    def agrees() -> bool:
        out = []
        for chunked_from in (2**60, 1):
            monkeypatch.setattr(reductions, "CHUNKED_FROM", dict.fromkeys(reductions.CHUNKED_FROM, chunked_from))
            leaves = [z[0].clone().requires_grad_(), z[1].clone().requires_grad_()]
            out.append(torch.autograd.grad(info_nce(*leaves, temperature=0.2), leaves))
        return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*out, strict=True))

    assert agrees()
    whole = reductions._Chunked.backward

    def lacking(ctx: Any, upstream: Tensor) -> Any:
        gradients = list(whole(ctx, upstream))
        gradients[part] = None
        return tuple(gradients)

    monkeypatch.setattr(reductions._Chunked, "backward", staticmethod(lacking))
    assert not agrees()
