"""Optimizers as values, their parameter groups, and the learning-rate rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class SGD:
    """SGD with momentum. lr is per 256 pictures and grows with the batch; warmup is a part of the training.

    Weight decay acts on matrices and kernels, not on biases and BatchNorm's scale and shift.
    """

    lr: float = 0.06
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay, self.warmup)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum is {self.momentum}; wanted a number from 0 to under 1")

    def build(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """The fused optimizer over the module's trainable parameters; the learning rate is set at each step."""
        import torch

        groups = parameter_groups(module, self.weight_decay)
        fused = device.type in ("cpu", "cuda", "mps")
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0, fused=fused)


@dataclass(frozen=True)
class AdamW:
    """AdamW. lr is per 256 pictures and grows with the batch; warmup is a part of the training."""

    lr: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    weight_decay: float = 0.05
    warmup: float = 0.05

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay, self.warmup)
        if not (0.0 <= self.beta_1 < 1.0 and 0.0 <= self.beta_2 < 1.0):
            raise ValueError(f"betas are {self.beta_1}, {self.beta_2}; wanted numbers from 0 to under 1")

    def build(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """The fused optimizer over the module's trainable parameters; the learning rate is set at each step."""
        import torch

        groups = parameter_groups(module, self.weight_decay)
        fused = device.type in ("cpu", "cuda", "mps")
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta_1, self.beta_2), fused=fused)


Optimizer = SGD | AdamW


def _check(lr: float, weight_decay: float, warmup: float) -> None:
    if not 0.0 < lr <= 1000.0:
        raise ValueError(f"lr is {lr}; wanted a number above 0")
    if not 0.0 <= weight_decay <= 10.0:
        raise ValueError(f"weight_decay is {weight_decay}; wanted a number of 0 or more")
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warmup is {warmup}; wanted a part of the training, from 0 to under 1")


def scaled_lr(lr: float, batch_size: int) -> float:
    """The learning rate for a batch: linear in the number of pictures, 256 being the unit (Goyal et al., 2017).

    Example:
        >>> scaled_lr(0.06, 512)
        0.12
    """
    return lr * batch_size / 256


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and kernels with weight decay; biases, scales and shifts without."""
    trainable: Iterable[nn.Parameter] = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.dim() > 1]
    plain = [p for p in trainable if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
