"""The fixed rule of layouts and number formats, and that a run records and keeps what it took."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smallview.errors import SmallviewError
from smallview.networks.encoders import build_encoder
from smallview.run import pretrain
from smallview.settings import load_toml
from smallview.training.precision import WORKSPACE, Precision, fixed_rule, nondeterministic, numerics, starved

CPU = torch.device("cpu")
RULE = [
    ("dense_small", (), "channels_last", "float32"),
    ("dense_small", ("avx512_bf16",), "channels_last", "bfloat16"),
    ("resnet18", (), "channels_first", "float32"),
    ("resnet18", ("avx2", "avx512_bf16"), "channels_last", "bfloat16"),
    ("resnet18", ("amx_bf16",), "channels_last", "bfloat16"),
    ("regnety_002", ("avx512_bf16",), "channels_last", "bfloat16"),  # groups of several channels are no depthwise convolutions
    ("mobilenetv3_small_050", (), "channels_last", "float32"),
    ("mobilenetv3_small_050", ("amx_bf16", "avx512_bf16"), "channels_last", "float32"),
    ("vit_tiny_patch16_224", (), "channels_first", "float32"),
    ("vit_tiny_patch16_224", ("avx512_bf16",), "channels_first", "bfloat16"),
]


@pytest.mark.parametrize(("name", "flags", "layout", "dtype"), RULE)
def test_the_rule(name: str, flags: tuple[str, ...], layout: str, dtype: str) -> None:
    net, _ = build_encoder(name, size=32)
    found = fixed_rule(net, CPU, frozenset(flags))
    assert (found.layout, found.dtype) == (layout, dtype)
    assert dtype in found.reason and layout in found.reason
    assert isinstance(found, Precision) and fixed_rule(net, CPU, frozenset(flags)) == found


def test_a_run_keeps_the_format_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    for flags, expected in ((frozenset({"avx512_bf16"}), "bfloat16"), (frozenset[str](), "float32")):
        monkeypatch.setattr("smallview.parts.cpu_flags", lambda flags=flags: flags)
        out = tmp_path / expected
        pretrain(pictures, epochs=1, batch_size=8, out=out, quiet=True)
        stored = load_toml(out / "run.toml")
        assert stored["dtype"] == expected and expected in stored["recorded"]["precision"]


def switches() -> tuple[object, ...]:
    """What `numerics` sets, as torch's newer names have it, which can always be read."""
    backends = torch.backends
    effective = (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision)
    cut = tuple(precision == "tf32" for precision in effective)
    return (*cut, torch.are_deterministic_algorithms_enabled(), backends.cudnn.benchmark, os.environ.get(WORKSPACE))


@pytest.fixture
def torchs_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before
    torch.backends.fp32_precision = "none"
    for place in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        place.fp32_precision = "none"
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("names", ["torch's default", "older", "newer"])
@pytest.mark.usefixtures("torchs_own")
def test_switches_are_as_asked_for_inside_and_as_before_afterwards(tf32: bool, deterministic: bool, names: str) -> None:
    torch.backends.cudnn.benchmark = True
    if names == "older":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif names == "newer":
        torch.backends.fp32_precision = "tf32"
    before = switches()
    with numerics(tf32, deterministic):
        assert switches() == (tf32, tf32, tf32, deterministic, not deterministic, ":4096:8" if deterministic else None)
        if names != "newer":  # torch's compiler reads these
            assert torch.backends.cuda.matmul.allow_tf32 is tf32 and torch.backends.cudnn.allow_tf32 is tf32
    assert switches() == before


@pytest.mark.usefixtures("torchs_own")
def test_a_workspace_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with numerics(False, True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


@pytest.mark.usefixtures("torchs_own")
def test_an_operation_without_a_deterministic_kernel_is_one_line_of_advice() -> None:
    before = switches()
    with pytest.raises(SmallviewError) as told, numerics(False, True):
        # no operation of the CPU lacks one; these are torch's words for one of CUDA
        raise RuntimeError(
            "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
        )
    line = "deterministic is true, and adaptive_max_pool2d_backward_cuda has no deterministic kernel here; use --set deterministic=false"
    assert str(told.value) == line
    assert switches() == before
    with pytest.raises(RuntimeError, match="some other"), numerics(False, True):
        raise RuntimeError("some other")
    with pytest.raises(RuntimeError, match="does not have"), numerics(False, False):
        raise RuntimeError("x does not have a deterministic implementation")
    assert switches() == before
    assert "set CUBLAS_WORKSPACE_CONFIG=:4096:8 before starting" in str(nondeterministic(RuntimeError(f"set {WORKSPACE}=...")))


@pytest.mark.gpu
@pytest.mark.usefixtures("torchs_own")
def test_float32_means_24_bits_in_products_and_convolutions() -> None:
    a, b = torch.randn(2, 512, 512, device="cuda", dtype=torch.float64)
    x, w = torch.randn(4, 64, 16, 16, device="cuda", dtype=torch.float64), torch.randn(64, 64, 3, 3, device="cuda").double()
    works = ((torch.matmul, a, b), (torch.nn.functional.conv2d, x, w))
    for tf32 in (False, True):
        with numerics(tf32, True):
            for work, one, other in works:
                exact = work(one, other)
                far = float((work(one.float(), other.float()).double() - exact).norm() / exact.norm())
                assert (1e-5 < far < 1e-2) if tf32 else far < 2e-6, (work, tf32, far)


@pytest.mark.parametrize(
    ("name", "side", "so"),
    [("dense_small", 4, True), ("dense_small", 6, False), ("dense_small", 8, False), ("resnet18", 8, True)],
)
def test_strided_convolutions_of_a_single_place_are_found(name: str, side: int, so: bool) -> None:
    net, _ = build_encoder(name, size=max(side, 8), stem="small" if name == "dense_small" else "standard")
    assert starved(net, 3, side) == so
    assert net.training


def test_small_views_are_trained_in_float32_for_bfloat16_has_gradients_from_memory_that_nobody_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8)
    given: dict[str, Any] = {"epochs": 1, "batch_size": 20, "threads": 1, "sets": {"dtype": "bfloat16"}}
    small = pretrain(pictures, out=tmp_path / "small", resolution="0.5", **given).path
    assert "float32: views of 4 px" in capsys.readouterr().err
    assert load_toml(small / "run.toml")["dtype"] == "float32"
    plain = pretrain(pictures, out=tmp_path / "plain", **given).path
    assert load_toml(plain / "run.toml")["dtype"] == "bfloat16"
