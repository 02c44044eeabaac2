"""`dense_small`: this project's encoder for CPUs. Plain 3x3 convolutions, because CPUs run them at most of their peak."""

from __future__ import annotations

from torch import Tensor, nn


class DenseSmall(nn.Module):
    """Four to five dense 3x3 convolutions with batch normalisation, then the average of the last map: [B, C, S, S] -> [B, F].

    A second of CPU buys five to eight times more multiplications in dense convolutions than in depthwise ones. The first
    convolution keeps the size (`small` stem) or halves it (`standard`, where the final map still has 4x4); widths double as sizes halve.

    Example:
        >>> import torch
        >>> DenseSmall(in_channels=3, stem="small")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """

    def __init__(self, in_channels: int = 3, stem: str = "small", widths: tuple[int, ...] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        strides = [1 if stem == "small" else 2, 2, 2, 2, 1]
        layers: list[nn.Module] = []
        before = in_channels
        for width, stride in zip(widths, strides, strict=True):
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

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F] of images [B, C, S, S]."""
        features: Tensor = self.body(images).mean((2, 3))
        return features
