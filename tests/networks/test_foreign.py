"""Weights of others: found under any prefix, covered in full or refused with an account, and no code is run."""

from __future__ import annotations

import argparse
import collections
import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from smallview.errors import DataError, UsageError
from smallview.networks.encoders import build_encoder
from smallview.networks.foreign import fit_weights
from smallview.networks.weight_files import read_weights


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "state_dict.module.encoder_q.", "model.student.net."])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_any_prefix(tmp_path: Path, prefix: str, kind: str) -> None:
    source, target = net(1), net(2)
    tensors = {prefix + name: value for name, value in source.state_dict().items()} | {"head.weight": torch.ones(3, 3)}
    path = tmp_path / f"w.{kind}"
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    coverage = fit_weights(target, read_weights(path))
    assert coverage.covered == coverage.wanted == 8 and coverage.unused == (list(tensors)[-1],) and equal(source, target)
    assert not coverage.missing and not coverage.misshapen


def test_nested_checkpoints_of_torch(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    inner = {f"module.base.{name}": value for name, value in source.state_dict().items()}
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1).state_dict()
    torch.save({"epoch": 3, "arch": "x", "state_dict": inner, "optimizer": optimizer}, tmp_path / "c.ckpt")
    fit_weights(target, read_weights(tmp_path / "c.ckpt"))
    assert equal(source, target)


def test_whole_checkpoints_of_peers(tmp_path: Path) -> None:
    """Momentum encoders, heads, queues, settings as objects: lightly, solo-learn, MoCo v2 and v3, DINO, a compiled and a wrapped one."""
    source, target = net(1), net(2)

    def under(prefix: str, of: nn.Module = source) -> dict[str, torch.Tensor]:
        return {prefix + name: value for name, value in of.state_dict().items()}

    settings = argparse.Namespace(lr=0.1, out=Path("/x"), when=datetime.timedelta(1), best=np.float64(3), seen=np.arange(3))
    options = collections.defaultdict(dict, {"a": {1: 2}})
    checkpoints: dict[str, tuple[dict[str, object], str]] = {
        "lightly": ({"state_dict": under("backbone.") | {"projection_head.0.weight": torch.ones(3)}}, "state_dict.backbone"),
        "solo-learn": ({"state_dict": under("backbone.") | under("momentum_backbone.", target)}, "state_dict.backbone"),
        "moco v2": (
            {
                "state_dict": under("module.encoder_q.")
                | under("module.encoder_k.", target)
                | {"module.queue": torch.ones(2, 3)}
            },
            "state_dict.module.encoder_q",
        ),
        "moco v3": (
            {"state_dict": under("module.base_encoder.") | under("module.momentum_encoder.", target)},
            "state_dict.module.base_encoder",
        ),
        "dino": (
            {"student": under("module.backbone.", target), "teacher": under("backbone."), "args": settings},
            "teacher.backbone",
        ),
        "compiled": ({"model": under("_orig_mod.module."), "options": options}, "model.module"),
    }
    for name, (whole, prefix) in checkpoints.items():
        for zipped in (True, False):
            torch.save(whole, tmp_path / "peer", _use_new_zipfile_serialization=zipped)
            mine = net(3)
            coverage = fit_weights(mine, read_weights(tmp_path / "peer"))
            assert coverage.prefix == prefix and coverage.covered == 8 and equal(mine, source), name


def test_what_a_file_is_its_bytes_say(tmp_path: Path) -> None:
    save_file(net(1).state_dict(), tmp_path / "named.pth")
    torch.save(net(1).state_dict(), tmp_path / "named.safetensors")
    for name in ("named.pth", "named.safetensors"):
        mine = net(2)
        assert fit_weights(mine, read_weights(tmp_path / name)).covered == 8 and equal(mine, net(1))


def test_other_names_in_the_same_order(tmp_path: Path) -> None:
    """torchvision's MobileNetV2 in timm's, a ResNet that was cut into a Sequential: the same features, to the bit."""
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    ours, _ = build_encoder("mobilenetv2_100", size=64, stem="standard")
    coverage = fit_weights(ours, theirs.state_dict())
    assert coverage.by_order and coverage.unused == ("classifier.1.weight", "classifier.1.bias")
    assert "by their order, because the names are others" in coverage.sentence()
    theirs.classifier = nn.Identity()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs(pictures), ours.eval()(pictures))
    whole = torchvision.models.resnet18(weights=None)
    cut = {f"backbone.{name}": value for name, value in nn.Sequential(*list(whole.children())[:-1]).state_dict().items()}
    small, _ = build_encoder("resnet18", size=32)
    with pytest.raises(UsageError, match=r"99 of 100 tensors.*another stem.*--stem standard.*--weights-coverage 0.99 takes it"):
        fit_weights(small, cut)
    assert fit_weights(small, cut, least=0.99).by_order and torch.equal(
        small.layer4[1].conv2.weight, whole.layer4[1].conv2.weight
    )
    # a larger network is no other order, and is told as what it is
    larger = torchvision.models.resnet34(weights=None).state_dict()
    fitted, _ = build_encoder("resnet18", size=64, stem="standard")
    assert "the file's network is larger" in fit_weights(fitted, larger).sentence()


def test_a_share_that_cannot_be_meant_and_weights_that_went_astray() -> None:
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="weights_coverage is"):
            fit_weights(net(), net(1).state_dict(), least=share)
    broken = net(1).state_dict() | {"0.bias": torch.full((4,), float("nan"))}
    target = net(2)
    with pytest.raises(DataError, match=r"0.bias holds numbers that are not finite"):
        fit_weights(target, broken)
    assert equal(target, net(2))
    with pytest.raises(
        UsageError, match=r"0 of 8 tensors.*wanted 0.5 of them or more: the encoder, its stem or the file is another one$"
    ):
        fit_weights(target, {"else": torch.ones(1)}, least=0.5)


def test_later_protocols_and_whole_models_are_told_apart(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(DataError, match=r"is written by pickle's protocol 4.*save its state_dict anew"):
        read_weights(tmp_path / "w.pth")
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"holds code \(torch.nn.modules.*never run"):
        read_weights(tmp_path / "w.pth")


def test_the_online_network_is_taken_of_two(tmp_path: Path) -> None:
    online, target, mine = net(1), net(2), net(3)
    both = {f"online.{k}": v for k, v in online.state_dict().items()} | {
        f"target.{k}": v for k, v in target.state_dict().items()
    }
    assert fit_weights(mine, both).prefix == "online" and equal(mine, online)


def test_what_is_not_covered_is_refused_with_an_account_and_nothing_changed() -> None:
    source, target = net(1), net(2)
    tensors = {name: value for name, value in source.state_dict().items() if name in ("0.weight", "0.bias")}
    tensors["3.weight"] = torch.zeros(5, 4)
    with pytest.raises(
        UsageError,
        match=r"2 of 8 tensors.*missing: 1.weight.*of another shape: 3.weight \[5, 4\] for \[2, 4\].*--weights-coverage 0.25",
    ):
        fit_weights(target, tensors)
    assert equal(target, net(2))
    coverage = fit_weights(target, tensors, least=0.2)
    assert coverage.covered == 2 and torch.equal(target[0].weight, source[0].weight)
    assert torch.equal(target[3].weight, net(2)[3].weight)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(net().state_dict(), path)
    whole = path.read_bytes()
    random = torch.Generator().manual_seed(0)
    for n in range(60):
        content = bytearray(whole[: int(torch.randint(0, len(whole), (1,), generator=random))] if n % 2 else whole)
        for _ in range(5):
            if content:
                content[int(torch.randint(0, len(content), (1,), generator=random))] ^= 0xFF
        path.write_bytes(content)
        try:
            read_weights(path)
        except DataError as error:
            assert "\n" not in str(error)
    for text in (b"", b"hello", b"{}"):
        path.write_bytes(text)
        with pytest.raises(DataError, match=r"w.pth"):
            read_weights(path)
    with pytest.raises(DataError, match="no file of weights"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, path)
    with pytest.raises(DataError, match="no tensors"):
        read_weights(path)
