"""Stages of encoders: in order, of the right width, and what they give out is what the network computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smallview.networks.encoders import build_encoder
from smallview.networks.stages import pooled, pooled_stages, stage_modules


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("dense_small", [32, 64, 128, 256, 512, 512]),
        ("resnet18", [64, 64, 128, 256, 512, 512]),
        ("mobilenetv3_small_050", None),
        ("vit_tiny_patch16_224", None),
    ],
)
def test_widths(name: str, widths: list[int] | None) -> None:
    net, config = build_encoder(name, size=32)
    net.eval()
    images = torch.randn(2, 3, 32, 32)
    out = pooled_stages(net)(images)
    assert list(out)[-1] == "features" and out["features"].shape == (2, config.features)
    torch.testing.assert_close(out["features"], net(images))
    if widths is not None:
        assert [value.shape[1] for value in out.values()] == widths
    else:
        assert len(out) > 3
    assert all(value.shape[0] == 2 and value.dim() == 2 for value in out.values())


def test_what_comes_later_does_not_write_into_it() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(2, 2))
    net.eval()
    images = torch.randn(3, 1, 1, 1)
    torch.testing.assert_close(pooled_stages(net)(images)["0"], net[0](images).flatten(1))


def test_the_projector_is_read_layer_by_layer() -> None:
    net, config = build_encoder("dense_small", size=16)
    projector = nn.Sequential(nn.Linear(config.features, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)).eval()
    out = pooled_stages(net.eval(), projector)(torch.randn(2, 3, 16, 16))
    assert [name for name in out if name.startswith("projector")] == ["projector.0", "projector.1", "projector.2"]
    torch.testing.assert_close(out["projector.2"], projector(out["features"]))
    assert float(out["projector.0"].min()) < 0.0 <= float(out["projector.1"].min())


def test_tokens_and_odd_outputs() -> None:
    assert pooled(torch.ones(2, 5, 3)).shape == (2, 3)
    assert pooled(torch.ones(2)) is None
    assert list(stage_modules(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))))) == ["0", "2"]
