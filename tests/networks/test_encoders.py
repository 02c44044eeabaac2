"""Encoders by name: stems by the rule, features right, saved and loaded to the bit, unknown names refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smallview.errors import SmallviewError, UsageError
from smallview.networks.encoders import build_encoder, count_features, describe, load_encoder, save_encoder, uses_depthwise

TIMM = {"resnet18": 512, "mobilenetv3_small_050": 1024, "efficientnet_b0": 1280, "vit_tiny_patch16_224": 192}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def final_side(net: nn.Module, size: int) -> int:
    """The side of the last map, measured."""
    with torch.no_grad():
        out: Tensor = net.forward_features(torch.zeros(1, 3, size, size))
    if out.dim() == 3:  # tokens, the class token first
        return round((out.shape[1] - 1) ** 0.5)
    return out.shape[-1]


@pytest.mark.parametrize("size", [32, 64, 112])
@pytest.mark.parametrize("name", list(TIMM))
def test_stems_by_the_rule(name: str, size: int) -> None:
    sides = {}
    for stem in ("standard", "small", "auto"):
        net, config = build_encoder(name, size=size, stem=stem)
        net.eval()
        sides[stem] = final_side(net, size)
        assert config.features == TIMM[name] and config.size == size and config.architecture == name
        assert config.stem == (stem if stem != "auto" else "small" if sides["standard"] < 4 else "standard")
        with torch.no_grad():
            assert net(torch.zeros(2, 3, size, size)).shape == (2, TIMM[name])
    assert sides["small"] >= 4 and sides["small"] > sides["standard"] - (name.startswith("vit") and size == 112)
    assert sides["auto"] == (sides["small"] if sides["standard"] < 4 else sides["standard"]) >= 4


@pytest.mark.parametrize(("size", "stem"), [(16, "small"), (32, "small"), (48, "small"), (64, "standard"), (112, "standard")])
def test_dense_small(size: int, stem: str) -> None:
    net, config = build_encoder("dense_small", size=size)
    assert (config.stem, config.features) == (stem, 512)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 512)
    if size >= 32:
        assert net.body(torch.zeros(2, 3, size, size)).shape[-1] >= 4


@pytest.mark.parametrize(
    ("name", "channels"), [*((name, c) for name in ("dense_small", *TIMM) for c in (1, 3)), ("mobilenetv3_small_050", 5)]
)
def test_saved_and_loaded_to_the_bit(name: str, channels: int, tmp_path: Path) -> None:
    net, config = build_encoder(name, in_channels=channels, size=32, seed=1)
    net(torch.randn(4, channels, 32, 32))  # statistics that are not the start's
    save_encoder(net, config, tmp_path / "a")
    save_encoder(net.to(memory_format=torch.channels_last), config, tmp_path / "b")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    loaded, again = load_encoder(tmp_path / "a")
    assert again == config and not loaded.training
    for (key, a), (other, b) in zip(net.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert key == other and torch.equal(a, b), key
    x = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), loaded(x), atol=1e-4, rtol=1e-4)  # another layout, other sums
    assert not [p for p in tmp_path.rglob("*.part")]


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    a, _ = build_encoder("resnet18", seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    b, _ = build_encoder("resnet18", seed=3)
    c, _ = build_encoder("resnet18", seed=4)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.conv1.weight, c.conv1.weight)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws are touched


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet19", 'did you mean "resnet1'),
        ("dense_smal", 'did you mean "dense_small"'),
        ("mobilenet_v3_small_050", 'did you mean "mobilenetv3_small_050"'),
        ("", "no encoder is called"),
        ("zzzzzzzz", "no encoder is called"),
        ("x" * 5000, "no encoder is called"),
        ("resnet18.no_such_tag", "resnet18.no_such_tag"),
        ("line\nbreak", "no encoder is called"),
    ],
)
def test_unknown_names_in_one_short_line(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_encoder(name)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize("name", ["convnext_atto", "densenet121"])
def test_a_small_stem_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--stem small is known for"):
        build_encoder(name, size=32, stem="small")


def test_an_unknown_stem_is_refused() -> None:
    with pytest.raises(UsageError, match="wanted auto, standard or small"):
        build_encoder("dense_small", stem="tiny")


def test_modules_of_ones_own(tmp_path: Path) -> None:
    mine = nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    config = describe(mine, in_channels=3, size=16)
    assert (config.architecture, config.features) == ("custom:Sequential", 7)
    assert mine.training
    save_encoder(mine, config, tmp_path)
    with pytest.raises(UsageError, match="into=module"):
        load_encoder(tmp_path)
    other = nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loaded, _ = load_encoder(tmp_path, into=other)
    assert torch.equal(loaded[0].weight, mine[0].weight)
    with pytest.raises(SmallviewError, match="do not fit"):
        load_encoder(tmp_path, into=nn.Sequential(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(7, 2), nn.Identity()])
def test_modules_that_give_no_features_are_refused_in_one_line(module: nn.Module) -> None:
    with pytest.raises(UsageError) as caught:
        count_features(module, 3, 8)
    assert "\n" not in str(caught.value)
    assert module.training


def test_damaged_and_missing_encoders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run or encoder folder at"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no encoder"):
        load_encoder(tmp_path)
    net, config = build_encoder("dense_small")
    save_encoder(net, config, tmp_path / "encoder")
    load_encoder(tmp_path)
    whole = (tmp_path / "encoder" / "model.safetensors").read_bytes()
    (tmp_path / "encoder" / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(SmallviewError, match="damaged"):
        load_encoder(tmp_path)
    (tmp_path / "encoder" / "model.safetensors").write_bytes(whole)
    for damaged in ("{", "[]", '{"architecture": 3}'):
        (tmp_path / "encoder" / "config.json").write_text(damaged)
        with pytest.raises(SmallviewError, match="damaged"):
            load_encoder(tmp_path)


def test_depthwise_is_seen() -> None:
    assert uses_depthwise(build_encoder("mobilenetv3_small_050")[0])
    assert not uses_depthwise(build_encoder("resnet18")[0])


def test_vit_takes_views_of_other_sizes() -> None:
    net, _ = build_encoder("vit_tiny_patch16_224", size=64)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 48, 48)).shape == net(torch.zeros(1, 3, 50, 50)).shape == (1, 192)
