"""Loads the encoder in this folder; needs torch, numpy, Pillow and safetensors, and nothing else.

The encoder is a stack of plain 3x3 convolutions, each with batch normalisation, and the average of the last map; config.json has
its widths and strides, and how pictures are prepared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Encoder(nn.Module):
    """Normalised images [B, C, S, S] -> features [B, F]."""

    def __init__(self, in_channels: int, widths: list[int], strides: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for width, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        self.body = nn.Sequential(*layers)
        self.num_features = before

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F]."""
        features: Tensor = self.body(images).mean((2, 3))
        return features


def read_config(folder: str | Path = HERE) -> dict[str, Any]:
    """What config.json says."""
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config


def load(folder: str | Path = HERE) -> Encoder:
    """The encoder with its weights, in evaluation mode."""
    config = read_config(folder)
    net = Encoder(config["in_channels"], config["widths"], config["strides"])
    net.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return net.eval()


def prepare(picture: Image.Image, folder: str | Path = HERE) -> Tensor:
    """A picture as the encoder takes it, [1, C, S, S]: its centre, resized and normalised."""
    config = read_config(folder)
    size, channels = config["size"], config["in_channels"]
    picture = ImageOps.fit(
        picture.convert(MODES[channels]), (size, size), Image.Resampling.BILINEAR, bleed=(1 - config["crop_pct"]) / 2
    )
    pixels = np.asarray(picture, np.float32).reshape(1, size, size, channels) / 255
    return torch.from_numpy((pixels - config["mean"]) / config["std"]).permute(0, 3, 1, 2).float().contiguous()
