"""The last feature map of encoders: the one whose mean is the encoder's output, where the encoder pools by the mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smallview.errors import UsageError
from smallview.networks.encoders import build_encoder
from smallview.networks.feature_maps import feature_map


@pytest.mark.parametrize(("name", "side"), [("dense_small", 6), ("resnet10t", 3)])
def test_the_mean_of_the_map_is_the_output(name: str, side: int) -> None:
    net, config = build_encoder(name, size=48, stem="auto" if name == "dense_small" else "standard")
    images = torch.rand(2, 3, 48, 48) if name == "dense_small" else torch.rand(2, 3, 96, 96)
    maps = feature_map(net.eval())(images)
    assert maps.shape == (2, config.features, side, side) and not maps.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(maps.mean((2, 3)), net(images))


def test_tokens_come_back_in_their_places() -> None:
    net, config = build_encoder("vit_tiny_patch16_224", size=32)
    maps = feature_map(net.eval())(torch.rand(1, 3, 32, 32))
    with torch.no_grad():
        tokens = net.forward_features(torch.zeros(1, 3, 32, 32))  # type: ignore[operator]
        places = feature_map(net)(torch.zeros(1, 3, 32, 32))
    assert maps.shape == (1, config.features, 8, 8)
    torch.testing.assert_close(places[0, :, 1, 2], tokens[0, 1 + 8 + 2])


def test_channels_that_come_last_are_brought_first() -> None:
    class Last(nn.Module):
        num_features = 5

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(1)[:, :3, :4, None].expand(-1, -1, -1, 5)

    assert feature_map(Last())(torch.rand(2, 3, 8, 8)).shape == (2, 5, 3, 4)


def test_an_encoder_without_a_map_is_told() -> None:
    with pytest.raises(
        UsageError, match="Sequential gives no feature map; wanted a convolutional encoder or a vision transformer"
    ):
        feature_map(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))(torch.zeros(2, 3, 2, 2))
