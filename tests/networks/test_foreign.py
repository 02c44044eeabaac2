"""Weights of others: found under any prefix, covered in full or refused with an account, and no code is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smallview.errors import DataError, UsageError
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


class Gadget:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(pickle.dumps({"state_dict": Gadget()}, protocol=protocol))
    with pytest.raises(DataError, match=r"w.pth is (refused|damaged)"):
        read_weights("w.pth")
    torch.save({"a": torch.ones(1), "b": Gadget()}, "z.pth", pickle_protocol=max(2, protocol))
    with pytest.raises(DataError, match="refused"):
        read_weights("z.pth")
    assert not Path("owned").exists()


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
