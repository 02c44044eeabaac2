"""Loads the encoder in this folder; needs torch, numpy, Pillow and safetensors, and nothing else.

The encoder is a stack of plain 3x3 convolutions, each with batch normalisation, and the average of the last map; or such a stack on the maps
of a dictionary of patches, whose averages over the quarters of the picture stand behind. config.json has its widths and strides, and
how pictures are prepared.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def stack(before: int, widths: list[int], strides: list[int]) -> nn.Sequential:
    """Convolutions of 3x3, each with batch normalisation."""
    layers: list[nn.Module] = []
    for width, stride in zip(widths, strides, strict=True):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Normalised images [B, C, S, S] -> features [B, F]."""

    def __init__(self, in_channels: int, widths: list[int], strides: list[int]) -> None:
        super().__init__()
        self.body = stack(in_channels, widths, strides)
        self.num_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F]."""
        features: Tensor = self.body(images).mean((2, 3))
        return features


class Dictionary(nn.Module):
    """Images [B, C, S, S] -> how much the patch at each place is like each of K words, [B, K, S', S']."""

    kernels: Tensor
    shift: Tensor

    def __init__(self, in_channels: int, words: int, stride: int, side: int, contrast: float, threshold: float) -> None:
        super().__init__()
        self.stride, self.side, self.contrast, self.threshold = stride, side, contrast, threshold
        self.register_buffer("kernels", torch.zeros(words, in_channels, side, side))
        self.register_buffer("shift", torch.zeros(words))

    def forward(self, images: Tensor) -> Tensor:
        """Maps [B, K, S', S']."""
        before = (self.side - self.stride) // 2
        after = self.side - self.stride - before
        padded = F.pad(images, (before, after, before, after), mode="replicate")
        moments = padded.mean(1, keepdim=True), padded.square().mean(1, keepdim=True)
        mean, square = (F.avg_pool2d(x, self.side, self.stride) for x in moments)
        spread = ((square - mean.square()).clamp(min=0.0) + self.contrast).rsqrt()
        likeness = F.conv2d(padded, self.kernels, stride=self.stride)
        return torch.relu(likeness * spread - (self.shift + self.threshold)[:, None, None])


class PatchEncoder(nn.Module):
    """Normalised images [B, C, S, S] -> features [B, F + 4 K]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, in_channels: int, words: int, widths: list[int], strides: list[int], **dictionary: Any) -> None:
        super().__init__()
        self.dictionary = Dictionary(in_channels, words, **dictionary)
        self.norm = nn.BatchNorm2d(words, affine=False)
        self.body = stack(words, widths, strides)
        self.num_features = widths[-1] + 4 * words
        self.register_buffer("mean", torch.zeros(4 * words))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F + 4 K]."""
        maps = self.dictionary(images)
        trained = self.body(self.norm(F.avg_pool2d(maps, 2, ceil_mode=True))).mean((2, 3))
        high, wide = maps.shape[2], maps.shape[3]
        rows, columns = (slice((high + 1) // 2), slice(high // 2, high)), (slice((wide + 1) // 2), slice(wide // 2, wide))
        quarters = torch.cat([maps[:, :, row, column].mean((2, 3)) for row in rows for column in columns], 1)
        return torch.cat([trained, (quarters - self.mean) * self.scale], 1)


def read_config(folder: str | Path = HERE) -> dict[str, Any]:
    """What config.json says."""
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config


def load(folder: str | Path = HERE) -> nn.Module:
    """The encoder with its weights, in evaluation mode."""
    config = read_config(folder)
    shape = config["in_channels"], config["widths"], config["strides"]
    words = config.get("words")
    net = Encoder(*shape) if words is None else PatchEncoder(shape[0], words, *shape[1:], **config["dictionary"])
    net.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return net.eval()


def prepare(picture: Image.Image, folder: str | Path = HERE) -> Tensor:
    """A picture as the encoder takes it, [1, C, S, S]: turned upright, made smaller, its centre cut out, resized and normalised."""
    config = read_config(folder)
    size, channels, part = config["size"], config["in_channels"], config["crop_pct"]
    picture = ImageOps.exif_transpose(picture).convert(MODES[channels])
    side = math.ceil(size / part)
    if part < 1 and min(picture.size) > side:  # as it was when the encoder was trained and judged
        picture = ImageOps.cover(picture, (side, side), Image.Resampling.BILINEAR)
    picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR, bleed=(1 - part) / 2)
    pixels = np.asarray(picture, np.float32).reshape(1, size, size, channels) / 255
    return torch.from_numpy((pixels - config["mean"]) / config["std"]).permute(0, 3, 1, 2).float().contiguous()
