"""The last feature map of an encoder, before it is pooled to one row of features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smallview.errors import UsageError


def feature_map(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """What gives the last map with places of an encoder in evaluation mode: [B, C, S, S] -> [B, F, h, w].

    timm's networks are asked by `forward_features`; of any other, the last output of four axes counts. Not for several threads at once.

    Raises:
        UsageError: from the function, an encoder without such a map.

    Example:
        >>> from smallview.networks.dense_small import DenseSmall
        >>> feature_map(DenseSmall().eval())(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512, 4, 4])
    """

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        inner: Any = getattr(net, "forward_features", None)
        return _with_places(inner(images), net) if callable(inner) else _last_map(net, images)

    return features


def _with_places(out: Any, net: nn.Module) -> Tensor:
    width = getattr(net, "num_features", None)
    if isinstance(out, Tensor) and out.dim() == 4:
        last = out.shape[1] != width and out.shape[3] == width  # some networks keep their channels last
        return out.permute(0, 3, 1, 2) if last else out
    if isinstance(out, Tensor) and out.dim() == 3:
        tokens = out[:, int(getattr(net, "num_prefix_tokens", 0)) :]
        side = math.isqrt(tokens.shape[1])
        if side * side == tokens.shape[1]:
            return tokens.transpose(1, 2).reshape(len(out), -1, side, side)
    raise UsageError(f"{type(net).__name__} gives no feature map; wanted a convolutional encoder or a vision transformer")


def _last_map(net: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
            seen[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in net.modules() if module is not net]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UsageError(f"{type(net).__name__} gives no feature map; wanted a convolutional encoder or a vision transformer")
    return seen[0]
