"""Schedules and learning rates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from smallview.optimizers import SGD, AdamW, parameter_groups, scaled_lr
from smallview.schedules import Constant, Cosine, Delayed, Product, Ramp, Staircase, Steps, WarmupCosine, resolve


def test_cosine_is_its_formula() -> None:
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert Cosine(0.98, 1.0).at(p) == pytest.approx(1.0 - 0.02 * (math.cos(math.pi * p) + 1) / 2, abs=1e-15)
    assert (Cosine(0.98, 1.0).at(0.0), Cosine(0.98, 1.0).at(1.0)) == (0.98, 1.0)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.999])
def test_warmup_then_down_to_zero(warmup: float) -> None:
    s = WarmupCosine(0.4, warmup)
    values = [s.at(i / 1000) for i in range(1001)]
    assert values[-1] == pytest.approx(0.0, abs=1e-12) and max(values) == pytest.approx(0.4)
    top = math.ceil(1000 * warmup)
    assert values[: top + 1] == sorted(values[: top + 1]) and values[top:] == sorted(values[top:], reverse=True)
    assert values[0] == (0.0 if warmup else 0.4)
    assert s.at(warmup / 2) == pytest.approx(0.2 if warmup else 0.4)


def test_published_rates() -> None:
    assert WarmupCosine(0.1).at(60 / 120) == pytest.approx(0.05)
    assert WarmupCosine(0.1).at(119.5 / 120) == pytest.approx(0.0000042836, abs=1e-10)
    assert WarmupCosine(0.03).at(100 / 200) == pytest.approx(0.015)
    assert WarmupCosine(0.03).at(199 / 200) == pytest.approx(0.0000018505, abs=1e-10)


def test_resolve() -> None:
    assert resolve(3, 0.5) == 3 and resolve(Constant(0.2), 0.9) == 0.2 and resolve(Cosine(1.0, 0.0), 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("value", [SGD(lr=0.1, weight_decay=0.01), AdamW(lr=0.1, weight_decay=0.01)])
def test_groups_and_fused(value: SGD | AdamW) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    optimizer = value.build(net, torch.device("cpu"))
    groups = [(g["weight_decay"], {tuple(p.shape) for p in g["params"]}) for g in optimizer.param_groups]
    assert groups == [(0.01, {(4, 3, 3, 3), (2, 4)}), (0.0, {(4,), (2,)})]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 5
    assert all(g["fused"] for g in optimizer.param_groups)
    if isinstance(value, AdamW):
        assert optimizer.defaults["betas"] == (0.9, 0.999)
    else:
        assert optimizer.defaults["momentum"] == 0.9 and optimizer.defaults["nesterov"]
        assert not SGD(momentum=0.0).build(net, torch.device("cpu")).defaults["nesterov"]
    assert len(parameter_groups(nn.BatchNorm1d(3), 0.1)) == 1


def test_rate_grows_with_the_batch() -> None:
    assert [scaled_lr(0.1, b) for b in (256, 128, 1024)] == pytest.approx([0.1, 0.05, 0.4])


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (SGD, {"lr": 0.0}),
        (SGD, {"lr": float("nan")}),
        (SGD, {"momentum": 1.0}),
        (SGD, {"weight_decay": -1.0}),
        (SGD, {"warmup": 1.0}),
        (AdamW, {"beta_1": 1.0}),
        (AdamW, {"beta_2": -0.1}),
        (AdamW, {"lr": -1.0}),
    ],
)
def test_refused_numbers(cls: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        cls(**wrong)


def test_light_mocos_rate_by_epoch() -> None:
    # 3 epochs of warm-up over the cosine of the 97 that follow, set once per epoch
    rate = Staircase(Product(Ramp(0.25, 1.0, until=0.03), Cosine(0.12, 0.0, begin=0.03)), stairs=100)
    wanted = {0: 0.0299292513, 1: 0.0599370848, 2: 0.0899764006, 3: 0.12, 4: 0.1199685341, 50: 0.0629137333, 99: 0.0000314659}
    for epoch, value in wanted.items():
        assert rate.at(epoch / 100) == rate.at((epoch + 0.99) / 100) == pytest.approx(value, abs=6e-11)


def test_the_other_schedules_are_what_they_say() -> None:
    ramp = Ramp(112.0, 224.0, until=0.5)
    assert [ramp.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == [112.0, 168.0, 224.0, 224.0]
    assert Ramp(1.0, 2.0, until=0.0).at(0.0) == 2.0
    steps = Steps((1.0, 0.1, 0.01), (0.6, 0.8))
    assert [steps.at(p) for p in (0.0, 0.59, 0.6, 0.79, 0.8, 1.0)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert Delayed(0.2, until=0.3).at(0.29) == 0.0 and Delayed(0.2, until=0.3).at(0.3) == 0.2
    assert Product(0.5, Ramp(0.0, 1.0)).at(0.5) == 0.25
    stairs = Staircase(Ramp(0.0, 1.0), stairs=10)
    assert [round(stairs.at(p), 12) for p in (0.0, 0.099, 0.1, 0.3, 0.999, 1.0)] == [0.0, 0.0, 0.1, 0.3, 0.9, 0.9]


def test_schedules_refuse_what_they_cannot_be() -> None:
    for make, words in (
        (lambda: Steps((1.0, 0.1), (0.5, 0.8)), "2 values with 2 places"),
        (lambda: Steps((1.0, 0.1, 0.2), (0.8, 0.5)), "wanted them rising"),
        (lambda: Cosine(1.0, 0.0, begin=1.0), "begin is 1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
