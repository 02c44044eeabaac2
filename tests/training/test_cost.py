"""What a run costs: seconds by clocks, multiplications by layers, memory at its peak."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from smallview.networks.encoders import build_encoder
from smallview.networks.heads import MLP
from smallview.networks.online_target import Branch
from smallview.presets import method, methods
from smallview.training.cost import Ledger, encoder_passes, forward_macs, peak_memory, training_flops


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


def test_macs_of_other_layers() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.volume = nn.Conv1d(8, 6, 3, groups=2), nn.Conv3d(1, 2, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            flat = self.line(images.flatten(2).repeat(1, 8, 1)).mean(2)
            return flat + self.volume(images[:, :, None].repeat(1, 1, 3, 1, 1)).mean((1, 2, 3, 4))[:, None]

    assert forward_macs(Volume(), 1, 4) == 6 * 14 * 4 * 3 + 2 * (2 * 3 * 3) * 8
    net, _ = build_encoder("vit_tiny_patch16_224", size=224)
    assert forward_macs(net, 3, 224) == pytest.approx(1.26e9, rel=0.02)  # 1.08 without the products of attention


class Windows(nn.Module):
    """One layer on each of four windows of a picture, which stand where a batch would."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(4, 16, 3)
        out: torch.Tensor = self.layer(flat).mean((0, 1))[None]
        return out


class Attention(nn.Module):
    """As timm's: one matrix for queries, keys and values, and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(3, 9), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out: torch.Tensor = self.proj((q @ k.mT).softmax(-1) @ v)
        return out


def test_every_window_of_a_picture_is_counted() -> None:
    assert forward_macs(Windows(nn.Linear(3, 5)), 3, 8) == 4 * 16 * 3 * 5
    # in each window: 16 queries with 16 keys, and as many weights with values
    assert forward_macs(Windows(Attention()), 3, 8) == 4 * (16 * 3 * 12 + 2 * 16 * 16 * 3)


def test_clocks_inside_others_are_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ledger = Ledger()
    with ledger.clock("train"):
        now[0] += 5.0
        with ledger.clock("save"):
            now[0] += 2.0
            assert ledger.seconds == {"train": 5.0, "save": 2.0}
        now[0] += 1.0
        with ledger.clock("watch"):
            now[0] += 0.5
    now[0] += 50.0
    assert ledger.seconds == {"train": 6.0, "save": 2.0, "watch": 0.5}
    assert ledger.shares() == pytest.approx({"train": 6 / 8.5, "save": 2 / 8.5, "watch": 0.5 / 8.5})
    later = Ledger()
    later.load(ledger.seconds)
    with pytest.raises(ValueError), later.clock("save"):
        now[0] += 3.0
        raise ValueError
    assert later.seconds == {"train": 6.0, "save": 5.0, "watch": 0.5}
    assert Ledger().shares() == {}


def test_operations_of_a_step_by_hand() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    branch = Branch(encoder, nn.Linear(4, 5))
    full = 64 * 4 * 27 + 20  # multiplications of one picture of 8 pixels
    # two views through one network, forward and twice that backward, two operations each
    assert training_flops(method("simclr"), branch, None, 3, 8) == 2 * 2 * 3 * full
    # each view once with gradient and once through the target; the predictor belongs to the online side
    predictor = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5))
    assert training_flops(method("byol"), branch, predictor, 3, 8) == 2 * 2 * ((3 + 1) * full + 3 * 70)


def test_a_view_that_only_the_momentum_target_sees_goes_forward_alone() -> None:
    branch = Branch(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Identity())
    full = 64 * 4 * 27
    byol = method("byol")
    first, second = byol.views
    split = replace(byol, views=(replace(first, seen_by="online"), replace(second, seen_by="target")))
    assert training_flops(split, branch, None, 3, 8) == 2 * (3 + 1) * full
    assert encoder_passes(split) == pytest.approx(4 / 3)
    shared = replace(method("simclr"), views=split.views)  # what both sides share goes backward for each
    assert training_flops(shared, branch, None, 3, 8) == 2 * (3 + 3) * full


@pytest.mark.parametrize("name", methods())
def test_operations_follow_the_passes_of_every_method(name: str) -> None:
    """At the size of 224 pixels, of which the passes are told, and without heads that count."""
    branch = Branch(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Identity())
    macs = forward_macs(branch, 3, 224)
    found = training_flops(method(name), branch, None, 3, 224)
    assert found == pytest.approx(6 * macs * encoder_passes(method(name)), rel=0.01)


def test_heads_are_counted() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    bare, headed = Branch(encoder, nn.Identity()), Branch(encoder, MLP((10,), 6).build(4))
    more = training_flops(method("simclr"), headed, None, 3, 8) - training_flops(method("simclr"), bare, None, 3, 8)
    assert more == 2 * 2 * 3 * (40 + 60)


def test_the_peak_of_memory_is_that_of_the_process() -> None:
    before = peak_memory(torch.device("cpu"))
    kept = torch.ones(80 * 2**20, dtype=torch.uint8)
    assert 20 * 2**20 < before <= peak_memory(torch.device("cpu")) < 2**40
    assert int(kept[-1]) == 1
