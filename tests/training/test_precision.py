"""The fixed rule of layouts and number formats, and that a run records and keeps what it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from smallview.networks.encoders import build_encoder
from smallview.run import pretrain
from smallview.settings import load_toml
from smallview.training.precision import Precision, fixed_rule

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
