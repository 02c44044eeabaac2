"""Collapse and numbers that are not finite, seen and said once; the cost of a forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from smallview.networks.encoders import build_encoder
from smallview.training.cost import forward_macs
from smallview.training.watch import Watch, feature_spread, gradient_size


def test_spread_of_even_directions_is_one_and_of_one_point_is_zero() -> None:
    source = torch.Generator().manual_seed(0)
    even = torch.randn(20_000, 16, generator=source)
    assert feature_spread(even) == pytest.approx(1.0, abs=0.01)
    assert feature_spread(7.0 * even) == pytest.approx(feature_spread(even), abs=1e-5)
    assert feature_spread(torch.ones(8, 16)) == pytest.approx(0.0, abs=1e-5)
    near = torch.ones(500, 16) + 0.01 * torch.randn(500, 16, generator=source)
    assert 0 < feature_spread(near) < 0.1
    assert feature_spread(even.bfloat16()) == pytest.approx(1.0, abs=0.02)
    assert math.isnan(feature_spread(torch.full((4, 3), float("nan"))))


def test_collapse_is_said_once_after_patience() -> None:
    watch = Watch(patience=3)
    said = [watch.look(spread, step) for step, spread in enumerate([0.5, 0.05, 0.05, 0.2, 0.05, 0.05, 0.05, 0.05, 0.01])]
    assert [s is not None for s in said] == [False] * 6 + [True, False, False]
    assert said[6] is not None and "step 6" in said[6] and "0.050" in said[6] and "\n" not in said[6]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_size_of_all(bad: float) -> None:
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert float(gradient_size(layers.parameters())) == 0.0  # none at all
    layers(torch.ones(2, 3)).sum().backward()
    assert 0.0 < float(gradient_size(layers.parameters())) < 100.0
    assert layers[1].bias.grad is not None
    layers[1].bias.grad[1] = bad
    assert not math.isfinite(float(gradient_size(layers.parameters())))


def test_macs_of_resnet18_are_the_published_ones() -> None:
    net, _ = build_encoder("resnet18", size=224)
    assert forward_macs(net, 3, 224) == pytest.approx(1.814e9, rel=0.005)


def test_macs_by_hand() -> None:
    assert forward_macs(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), 4, 8) == 4 * 4 * 8 * 9
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 5)).train()
    assert forward_macs(net, 1, 8) == 36 * 2 * 9 + 72 * 5
    assert net.training and not any(m._forward_hooks for m in net.modules())
    norm = nn.BatchNorm2d(3)
    forward_macs(norm, 3, 8)
    assert int(norm.num_batches_tracked) == 0  # counting is not training
    with pytest.raises(RuntimeError):
        forward_macs(net, 3, 8)
    assert not any(m._forward_hooks for m in net.modules())
