"""`dense_small`: this project's encoder for CPUs. Plain 3x3 convolutions, because CPUs run them at most of their peak."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from smallview.errors import UsageError

NAME = "dense_small"
WIDTHS = (32, 64, 128, 256, 512)
FEWEST, MOST, WIDEST = 2, 16, 4096


def widths_of(name: str) -> tuple[int, ...] | None:
    """The widths that an encoder's name says: `dense_small` alone, or with widths of one's own; None for any other name.

    Raises:
        UsageError: widths that cannot be read or built.

    Example:
        >>> widths_of("dense_small"), widths_of("dense_small:48-96-192"), widths_of("resnet18")
        ((32, 64, 128, 256, 512), (48, 96, 192), None)
    """
    head, colon, said = name.partition(":")
    if head != NAME:
        return None
    if not colon:
        return WIDTHS
    parts = said.split("-")
    if FEWEST <= len(parts) <= MOST and all(re.fullmatch("[1-9][0-9]{0,3}", part) and int(part) <= WIDEST for part in parts):
        return tuple(int(part) for part in parts)
    raise UsageError(
        f'the encoder "{NAME}:{said[:60]}" cannot be built; wanted {FEWEST} to {MOST} widths from 1 to {WIDEST}, as in {NAME}:48-96-192-512'
    )


def strides_of(stem: str, layers: int) -> tuple[int, ...]:
    """The strides of so many convolutions: three halvings after the first one, as far as there are layers, then none.

    Widths that begin as another network's do give the same strides there: the one is a truncation of the other.

    Example:
        >>> strides_of("small", 5), strides_of("standard", 3)
        ((1, 2, 2, 2, 1), (2, 2, 2))
    """
    return ((1 if stem == "small" else 2, 2, 2, 2) + (1,) * layers)[:layers]


class DenseSmall(nn.Module):
    """Dense 3x3 convolutions with batch normalisation, then the average of the last map: [B, C, S, S] -> [B, F].

    A second of CPU buys five to eight times more multiplications in dense convolutions than in depthwise ones. The first
    convolution keeps the size (`small` stem) or halves it (`standard`, where the final map still has 4x4); the next three halve it. Of
    the five widths that `dense_small` has, four double as sizes halve. F is the last width.

    Example:
        >>> import torch
        >>> DenseSmall(in_channels=3, stem="small")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """

    def __init__(self, in_channels: int = 3, stem: str = "small", widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for width, stride in zip(widths, strides_of(stem, len(widths)), strict=True):
            layers += [
                nn.Conv2d(before, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.num_features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Each convolution with its norm, in order."""
        modules: list[Any] = list(self.body)
        return list(zip(modules[0::3], modules[1::3], strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F] of images [B, C, S, S]."""
        features: Tensor = self.body(images).mean((2, 3))
        return features
