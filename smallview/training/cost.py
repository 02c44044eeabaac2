"""What a run costs: a method in passes through its encoder, an encoder in multiplications, counted at the layers themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smallview.joint_embedding import Method
from smallview.networks.modes import evaluating
from smallview.networks.online_target import Momentum
from smallview.views.view import pixels


@torch.no_grad()
def forward_macs(module: nn.Module, in_channels: int, size: int) -> int:
    """Multiply-accumulates of one picture's forward pass through the convolutions and linear layers.

    A training view costs three times that (forward, and backward to inputs and to weights), two floating-point operations each.
    Grouped convolutions are counted as they are: counters that ignore groups overstate depthwise nets several times.

    Example:
        >>> forward_macs(nn.Conv2d(3, 8, 3, padding=1, bias=False), 3, 4)
        3456
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output[0].numel() * layer.in_features

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    try:
        like = next(module.parameters(), torch.zeros(1))
        with evaluating(module):
            module(torch.zeros(1, in_channels, size, size, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def encoder_passes(method: Method) -> float:
    """What a picture costs in the encoder: forward and backward of one full view is 1, forward alone 1/3, a smaller view its area.

    A schedule of sizes counts with its mean.

    Example:
        >>> from smallview.presets import method
        >>> round(encoder_passes(method("simclr")), 3), round(encoder_passes(method("moco_v2")), 3)
        (2.0, 1.333)
    """
    grid, run_size = 32, 224
    total = 0.0
    for view in method.views:
        areas = [(pixels(view.size, run_size, (i + 0.5) / grid) / run_size) ** 2 for i in range(grid)]
        passes = 1.0  # through a shared network everything goes backward, if only by BatchNorm's statistics
        if isinstance(method.target, Momentum):
            passes = (view.seen_by != "target") + (view.seen_by != "online") / 3.0
        total += passes * sum(areas) / grid
    return total
