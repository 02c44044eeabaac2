"""The online and the target side: who sees which view, how often the encoder runs, how the target follows."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Networks, Shared
from smallview.records import SeenBy, ViewBatch
from smallview.schedules import Cosine


class Counting(nn.Module):
    """A small encoder that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.calls: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((images.shape[0], images.shape[-1]))
        out: Tensor = self.norm(self.convolution(images)).relu().mean((2, 3))
        return out


HEADS = Heads(projector=MLP(hidden=(8,), out=5))
PREDICTING = Heads(projector=MLP(hidden=(8,), out=5), predictor=MLP(hidden=(7,), out=5))


def build(target: Shared | Momentum, heads: Heads = HEADS) -> Networks:
    torch.manual_seed(0)
    return Networks(Counting(), 6, heads, target).train()


def views(*described: tuple[int, SeenBy], b: int = 4) -> list[ViewBatch]:
    source = torch.Generator().manual_seed(1)
    return [ViewBatch(torch.randn(b, 3, size, size, generator=source), seen_by) for size, seen_by in described]


def calls(networks: Networks) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    target = networks.target.encoder.calls if networks.target is not None else []
    return networks.online.encoder.calls, target


def test_one_call_per_crop_size_and_no_wasted_pass() -> None:
    mixed = views((8, "both"), (8, "both"), (6, "online"), (6, "online"), (8, "target"))
    shared = build(Shared())
    seen = shared(mixed)
    assert calls(shared) == ([(12, 8), (8, 6)], [])
    assert (seen.online.shape, seen.online_views) == ((4, 4, 5), (0, 1, 2, 3))
    assert (seen.target.shape, seen.target_views) == ((3, 4, 5), (0, 1, 4))
    momentum = build(Momentum())
    momentum(mixed)
    assert calls(momentum) == ([(8, 8), (8, 6)], [(12, 8)])
    moco = build(Momentum())
    moco(views((8, "online"), (8, "target")))
    assert calls(moco) == ([(4, 8)], [(4, 8)])


def test_embeddings_are_those_of_their_views() -> None:
    mixed = views((8, "online"), (6, "both"), (8, "target"), (6, "online"))
    for rule in (Shared(), Momentum()):
        networks = build(rule).eval()
        seen = networks(mixed)
        for row, v in enumerate(seen.online_views):
            torch.testing.assert_close(seen.online[row], networks.online(mixed[v].images), atol=1e-6, rtol=1e-5)
        side = networks.online if networks.target is None else networks.target
        for row, v in enumerate(seen.target_views):
            torch.testing.assert_close(seen.target[row], side(mixed[v].images), atol=1e-6, rtol=1e-5)


def test_the_predictor_is_for_the_online_side_only() -> None:
    networks = build(Shared(), PREDICTING).eval()
    pair = views((8, "both"), (8, "both"))
    seen = networks(pair)
    assert networks.predictor is not None
    for v in range(2):
        projected = networks.online(pair[v].images)
        torch.testing.assert_close(seen.target[v], projected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(seen.online[v], networks.predictor(projected), atol=1e-6, rtol=1e-5)


def test_where_gradients_flow() -> None:
    pair = views((8, "online"), (8, "target"))

    def target_gradient(rule: Shared | Momentum) -> tuple[bool, list[Tensor | None]]:
        networks = build(rule)
        seen = networks(pair)
        if seen.target.requires_grad:
            seen.target.sum().backward()
        return seen.target.requires_grad, [p.grad for p in networks.parameters()]

    flows, gradients = target_gradient(Shared())
    assert flows and any(g is not None and bool(g.any()) for g in gradients)
    assert target_gradient(Shared(stop_gradient=True))[0] is False
    assert target_gradient(Momentum())[0] is False
    networks = build(Momentum(), PREDICTING)
    seen = networks(pair)
    (seen.online.square().sum() + seen.target.sum()).backward()
    assert networks.target is not None and networks.predictor is not None
    assert all(p.grad is None and not p.requires_grad for p in networks.target.parameters())
    assert all(p.grad is not None for p in [*networks.online.parameters(), *networks.predictor.parameters()])


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_follow_is_the_formula(momentum: float) -> None:
    networks = build(Momentum(momentum))
    assert networks.target is not None
    with torch.no_grad():
        for p in networks.online.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    before = [p.clone() for p in networks.target.parameters()]
    online = [p.clone() for p in networks.online.parameters()]
    networks.follow(0.5, 100)
    for mine, old, theirs, now in zip(networks.target.parameters(), before, online, networks.online.parameters(), strict=True):
        torch.testing.assert_close(mine, momentum * old + (1 - momentum) * theirs)
        assert torch.equal(theirs, now)


def test_follow_resolves_its_schedule() -> None:
    networks = build(Momentum(Cosine(0.5, 1.0)))
    assert networks.target is not None
    with torch.no_grad():
        networks.online.encoder.convolution.weight.add_(1.0)
    weight = networks.target.encoder.convolution.weight
    before = weight.clone()
    networks.follow(1.0, 100)
    assert torch.equal(weight, before)
    networks.follow(0.0, 100)
    torch.testing.assert_close(weight, before + 0.5)


def test_a_shared_target_has_nothing_to_follow() -> None:
    networks = build(Shared())
    before = copy.deepcopy(networks.state_dict())
    networks.follow(0.5, 100)
    assert all(torch.equal(value, before[name]) for name, value in networks.state_dict().items())


@pytest.mark.parametrize("buffers", ["own", "copy", "average"])
def test_where_the_targets_statistics_come_from(buffers: Literal["own", "copy", "average"]) -> None:
    """Online and target see differently bright views, so that each choice leaves other numbers."""
    networks = build(Momentum(0.9, buffers))
    assert networks.target is not None
    mine, theirs = networks.target.encoder.norm, networks.online.encoder.norm
    dark, bright = views((8, "online"), (8, "target"))
    own, average = torch.zeros(6), torch.zeros(6)
    for _ in range(3):
        with torch.no_grad():
            seen = networks.target.encoder.convolution(3.0 + bright.images)
        networks([dark, ViewBatch(3.0 + bright.images, "target")])
        networks.follow(0.0, 100)
        own = 0.9 * own + 0.1 * seen.mean((0, 2, 3))
        average = 0.9 * average + 0.1 * theirs.running_mean
    wanted = {"own": own, "copy": theirs.running_mean, "average": average}
    for name, value in wanted.items():
        distance = float((mine.running_mean - value).abs().max())
        assert distance < 1e-5 if name == buffers else distance > 1e-2, (name, distance)
    assert int(mine.num_batches_tracked) == 3


def test_the_target_starts_as_a_copy_of_its_own() -> None:
    networks = build(Momentum())
    assert networks.target is not None
    for a, b in zip(networks.online.state_dict().values(), networks.target.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("wrong", [1.5, -0.1, Cosine(0.9, 1.1)])
def test_refused_momentum(wrong: float | Cosine) -> None:
    with pytest.raises(ValueError, match="momentum"):
        Momentum(wrong)


def test_refused_buffers_and_widths() -> None:
    with pytest.raises(ValueError, match="wanted own, copy or average"):
        Momentum(0.9, "mine")
    with pytest.raises(ValueError, match="wanted equally many"):
        Heads(projector=MLP(out=8), predictor=MLP(out=9))
    with pytest.raises(ValueError, match="wanted 1 or more"):
        MLP(hidden=(0,))


@pytest.mark.parametrize("hidden", [(), (7,), (7, 9)])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("last_batch_norm", [True, False])
def test_heads_are_what_they_say(hidden: tuple[int, ...], batch_norm: bool, last_batch_norm: bool) -> None:
    net = MLP(hidden, 5, batch_norm, last_batch_norm).build(4)
    assert net(torch.randn(3, 4)).shape == (3, 5)
    linears = [m for m in net if isinstance(m, nn.Linear)]
    norms = [m for m in net if isinstance(m, nn.BatchNorm1d)]
    assert [m.out_features for m in linears] == [*hidden, 5]
    assert len(norms) == batch_norm * len(hidden) + last_batch_norm
    assert all((m.bias is None) == batch_norm for m in linears[:-1]) and (linears[-1].bias is None) == last_batch_norm
    assert isinstance(net[-1], nn.BatchNorm1d) == last_batch_norm


def test_the_targets_memory_is_the_same_part_of_a_shorter_training() -> None:
    published, rule = 0.999, Momentum(0.999, reference_steps=10_000)
    for steps in (100, 10_000, 40_000):
        # what a weight of the beginning still counts at the end
        assert rule.at(0.0, steps) ** steps == pytest.approx(published**10_000, rel=1e-9)
    assert Momentum(0.999).at(0.3, 7) == 0.999
    networks = build(Momentum(0.5, reference_steps=100))
    with torch.no_grad():
        for p in networks.online.parameters():
            p.fill_(1.0)
        assert networks.target is not None
        for p in networks.target.parameters():
            p.fill_(0.0)
    networks.follow(0.5, 25)
    assert all(torch.allclose(p, torch.full_like(p, 1.0 - 0.5**4)) for p in networks.target.parameters())
    with pytest.raises(ValueError, match="reference_steps is 0"):
        Momentum(0.99, reference_steps=0)


def test_fixed_pictures_go_through_with_the_views() -> None:
    networks = build(Shared())
    views = (ViewBatch(torch.randn(4, 3, 12, 12)), ViewBatch(torch.randn(4, 3, 12, 12)))
    patches = torch.randn(2, 3, 12, 12)
    seen = networks(views, patches)
    assert seen.fixed is not None and len(seen.fixed) == 2 and seen.fixed.requires_grad
    together = networks.online(torch.cat([views[0].images, views[1].images, patches]))
    torch.testing.assert_close(seen.fixed, together[8:])
    assert networks(views).fixed is None
    other_size = networks(views, torch.randn(2, 3, 20, 20)).fixed
    assert other_size is not None and other_size.shape == seen.fixed.shape
    for rule in (Momentum(), Shared(stop_gradient=True)):
        held = build(rule)(views, patches).fixed
        assert held is not None and not held.requires_grad
