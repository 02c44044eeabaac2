"""The dictionary against a slow loop, and the encoder on it as every other: fitted by the seed, seen in part by a projector, kept by a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import smallview as sv
from smallview.errors import UsageError
from smallview.evaluation.features import fresh_encoder
from smallview.networks import patches
from smallview.networks.encoders import build_encoder, load_encoder
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import First, projector_of
from smallview.networks.patches import SIDE, Dictionary, OnPatches, words_of
from smallview.networks.truncating import regrow, truncate


def noise(n: int, side: int = 16, seed: int = 0) -> Tensor:
    """Pictures with structure: blurred noise."""
    x = torch.randn(n, 3, side + 4, side + 4, generator=torch.Generator().manual_seed(seed))
    return 2.0 * torch.nn.functional.avg_pool2d(x, 5, 1)


def fitted(words: int = 8, stride: int = 1) -> Dictionary:
    dictionary = Dictionary(3, words, stride)
    dictionary.fit(noise(40), seed=1)
    return dictionary


@pytest.mark.parametrize("stride", [1, 2])
def test_maps_are_what_a_loop_over_patches_says(stride: int) -> None:
    dictionary, x = fitted(stride=stride), noise(2, 10, seed=3)
    got = dictionary(x)
    before = (SIDE - stride) // 2
    padded = torch.nn.functional.pad(x, (before, SIDE - stride - before) * 2, mode="replicate")
    assert got.shape == (2, 8, -(-10 // stride), -(-10 // stride))
    for b in range(2):
        for i in range(got.shape[2]):
            for j in range(got.shape[3]):
                top, left = i * stride, j * stride
                patch = padded[b, :, top : top + SIDE, left : left + SIDE].flatten()
                patch = patch - patch.mean()
                patch = patch / (patch.square().mean() + patches.CONTRAST).sqrt()
                likeness = dictionary.kernels.flatten(1) @ patch - dictionary.shift
                torch.testing.assert_close(got[b, :, i, j], torch.relu(likeness - patches.THRESHOLD), atol=2e-4, rtol=1e-3)


def test_words_are_whitened_directions_of_unit_length_that_patches_gather_at() -> None:
    stripes = torch.zeros(20, 3, 16, 16)
    stripes[:10, :, ::2], stripes[10:, :, :, ::2] = 2.0, 2.0  # two kinds of picture: rows and columns
    stripes = stripes - 1.0 + 0.05 * noise(20)
    dictionary = Dictionary(3, 4)
    dictionary.fit(stripes, seed=0)
    maps = dictionary(stripes)[:, :, 4:12, 4:12].mean((2, 3))
    chosen = maps.argmax(1)
    assert set(chosen[:10].tolist()).isdisjoint(chosen[10:].tolist())


def test_the_fit_is_a_function_of_the_seed_and_ignores_brightness() -> None:
    one, same, other = Dictionary(3, 8), Dictionary(3, 8), Dictionary(3, 8)
    x = noise(40)
    one.fit(x, 5)
    torch.manual_seed(9)
    same.fit(x, 5)
    other.fit(x, 6)
    assert torch.equal(one.kernels, same.kernels) and not torch.equal(one.kernels, other.kernels)
    torch.testing.assert_close(one(x[:2] + 0.7), one(x[:2]), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="5 pixels a side; wanted 6"):
        one.fit(noise(4, 5), 0)


def test_words_that_nobody_is_near_to_begin_anew() -> None:
    dictionary = Dictionary(3, 64)
    flat = torch.zeros(4, 3, 8, 8)
    flat[:2, :, 4:] = 1.0
    dictionary.fit(flat + 0.01 * noise(4, 8), 0)
    assert torch.isfinite(dictionary.kernels).all() and torch.isfinite(dictionary(flat)).all()


def test_features_are_the_trained_ones_then_the_quarters() -> None:
    net = OnPatches(widths=(8, 12, 10)).eval()
    net.fit(noise(40), 0)
    x = noise(6, 13, seed=4)
    features = net(x)
    assert features.shape == (6, 10 + 32) and (net.projected, net.num_features) == (10, 42)
    maps = net.dictionary(x)
    quarters = [maps[:, :, r, c].mean((2, 3)) for r in (slice(0, 7), slice(6, 13)) for c in (slice(0, 7), slice(6, 13))]
    torch.testing.assert_close(features[:, 10:], (torch.cat(quarters, 1) - net.mean) * net.scale)
    spread = net(noise(200)).detach()[:, 10:].square().mean().sqrt()
    assert 0.06 < float(spread) < 0.16
    net.train()
    loss = net(x).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in net.parameters()) and not any(
        "dictionary" in name for name, _ in net.named_parameters()
    )


def test_the_projector_sees_what_is_trained() -> None:
    net = OnPatches(widths=(8, 12, 10))
    heads = Heads(MLP(hidden=(16,), out=6))
    projector = projector_of(net, net.num_features, heads).eval()
    assert isinstance(next(projector.children()), First)
    x = torch.randn(4, 42)
    changed = x.clone()
    changed[:, 10:] += 5.0
    assert torch.equal(projector(x), projector(changed))
    plain, _ = build_encoder("dense_small:8-16", size=16)
    assert not any(isinstance(m, First) for m in projector_of(plain, 16, heads).modules())


@pytest.mark.parametrize("name", ["patches:8", "patches:0-8", "patches:8-", "patches:5000-8", "patches:8-9-9-9-9-9-9-9-9"])
def test_names_that_cannot_be_built(name: str) -> None:
    with pytest.raises(UsageError, match="wanted 2 to 8 numbers from 1 to 4096"):
        words_of(name)


def test_the_last_layers_can_be_dropped_and_come_back() -> None:
    full = OnPatches(widths=(8, 12, 10)).eval()
    full.fit(noise(40), 0)
    small, x = truncate(full, 1), noise(3)
    assert isinstance(small, OnPatches) and (small.projected, small.num_features) == (12, 44)
    assert torch.equal(small(x)[:, 12:], full(x)[:, 10:])
    again = OnPatches(widths=(8, 12, 10)).eval()
    fresh = regrow(small, again).fresh
    assert fresh and all(name.startswith(("body.3", "body.4")) for name in fresh)
    assert torch.equal(again(x)[:, 10:], full(x)[:, 10:])


def test_large_pictures_get_the_standard_stem() -> None:
    for size, stem in ((32, "small"), (64, "standard")):
        net, config = build_encoder("patches:4-6-8", size=size)
        assert config.stem == stem and net(torch.zeros(2, 3, size, size)).shape == (2, config.features)


def test_a_run_fits_it_keeps_it_and_judges_it_beside_the_same_dictionary(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = np.clip(random.normal(60 + 50 * y[:, None, None, None], 40, (60, 16, 16, 3)), 0, 255).astype(np.uint8)
    given = {"encoder": "patches:8-12-10", "batch_size": 20, "threads": 1, "quiet": True, "size": 16}
    run = sv.pretrain(x, epochs=2, out=tmp_path / "a", **given)
    net, config = load_encoder(run.path / "encoder")
    assert isinstance(net, OnPatches) and config.features == 42
    more = sv.pretrain(x, epochs=3, out=tmp_path / "b", **given)
    other, _ = load_encoder(more.path / "encoder")
    assert isinstance(other, OnPatches)
    assert torch.equal(net.dictionary.kernels, other.dictionary.kernels) and not torch.equal(
        net.body[0].weight, other.body[0].weight
    )
    floor = fresh_encoder(net, config, seed=0)
    assert isinstance(floor, OnPatches) and torch.equal(floor.dictionary.kernels, net.dictionary.kernels)
    assert torch.equal(floor.mean, net.mean) and not torch.equal(floor.body[0].weight, net.body[0].weight)
    rows = sv.evaluate(run.path, (x[:40], y[:40]), (x[40:], y[40:]), "knn,layers", leaks=False, threads=1)
    assert any("projector" in row.metric for row in rows)
    momentum = sv.pretrain(x, epochs=1, out=tmp_path / "c", method="byol", **given)
    assert json.loads((momentum.path / "summary.json").read_text())["cost"]["steps"] == 3
    with pytest.raises(UsageError, match="cannot be fitted: pictures have 4 pixels a side"):
        sv.pretrain(x, epochs=1, out=tmp_path / "d", **{**given, "size": 4})


def test_a_stage_with_fewer_layers_hands_its_dictionary_on(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), np.uint8)
    small = {"encoder": "patches:8-10-12", "size": 16, "batch_size": 8, "threads": 1, "quiet": True}
    run = sv.pretrain(pictures, stages="16x1,16x1", sets={"stages.0.depth": 1}, out=tmp_path / "run", **small)
    first, second = sorted((run.path / "stages").iterdir())
    before, after = sv.load(first), sv.load(second)
    assert before.num_features == 10 + 32 and after.num_features == 12 + 32
    for name in ("dictionary.kernels", "dictionary.shift", "mean", "scale"):
        assert torch.equal(before.state_dict()[name], after.state_dict()[name]), name


@pytest.mark.parametrize(("side", "stride"), [(32, 1), (13, 1), (33, 2)])
def test_averages_made_of_some_pictures_at_a_time_are_those_of_all_maps(
    side: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dictionary = Dictionary(3, 24, stride)
    images = torch.randn(23, 3, side, side)
    maps = dictionary(images)
    monkeypatch.setattr(patches, "IN_CACHE", 5 * side * side)  # 5 pictures at a time, and 3 at the end
    halved, quarters = dictionary.averaged(images)
    assert torch.equal(halved, torch.nn.functional.avg_pool2d(maps, 2, ceil_mode=True)) and len(quarters) == len(images)
    for i, (row, column) in enumerate((r, c) for r in (0, 1) for c in (0, 1)):
        high, wide = maps.shape[2:]
        rows = slice(0, (high + 1) // 2) if row == 0 else slice(high // 2, high)
        columns = slice(0, (wide + 1) // 2) if column == 0 else slice(wide // 2, wide)
        torch.testing.assert_close(
            quarters[:, 24 * i : 24 * (i + 1)], maps[:, :, rows, columns].mean((2, 3)), rtol=1e-5, atol=1e-6
        )
