"""The loop of lightly's SimCLR tutorial, for so many minutes, to stand beside a ladder's steps; lightly comes with the extra `bench`."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smallview.networks.encoders import build_encoder
from smallview.training.cost import forward_macs

BATCH, LR, MOMENTUM, DECAY, TEMPERATURE, HIDDEN, OUT = 256, 0.06, 0.9, 5e-4, 0.5, 512, 128
HALF = 0.5, 0.25  # the mean and the deviation that `evaluate` brings a module's pictures to


class Shifted(nn.Module):
    """An encoder that was trained on pictures of another mean and deviation than those that it is shown."""

    def __init__(self, encoder: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F]."""
        out: Tensor = self.encoder((images * HALF[1] + HALF[0] - self.mean) / self.std)
        return out


def lightly(pictures: Any, encoder: str, minutes: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """(the encoder, what it cost): SGD with momentum, a rate that falls to zero by a cosine of the time, two workers.

    Raises:
        ImportError: lightly is not installed.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from pipelines import MEAN, STD, in_pillow, lightly_transform

    size, batch = pictures.shape[1], min(BATCH, len(pictures))
    torch.manual_seed(seed)
    net, config = build_encoder(encoder, size=size, seed=seed)
    head = SimCLRProjectionHead(config.features, HIDDEN, OUT)
    criterion = NTXentLoss(temperature=TEMPERATURE)
    weights = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(weights, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    colour = pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], 3, 3)
    data = Views(in_pillow(colour), lightly_transform(size))
    loader: Any = torch.utils.data.DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    begun, steps, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        for first, second in loader:
            progress = (time.monotonic() - begun) / (60.0 * minutes)
            if progress >= 1.0:
                break
            for group in optimizer.param_groups:
                group["lr"] = LR * 0.5 * (1.0 + math.cos(math.pi * progress))
            loss = criterion(head(net(first)), head(net(second)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    cost = {
        "train_seconds": round(time.monotonic() - begun, 1),
        "steps": steps,
        "epochs": round(steps * batch / len(pictures), 2),
        "flops": 2.0 * 3.0 * 2.0 * steps * batch * forward_macs(net, 3, size),
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    return Shifted(net.eval(), MEAN, STD), cost


class Views(torch.utils.data.Dataset[Any]):
    """Two views of each picture."""

    def __init__(self, pictures: Any, transform: Any) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        first, second = self.transform(self.pictures[i])
        return first, second
