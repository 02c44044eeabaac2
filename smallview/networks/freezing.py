"""Parts of a network that training leaves as they are, with their batch statistics moving or fixed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from smallview.errors import UsageError, suggest


def freeze(net: nn.Module, names: Iterable[str], batch_norm: Literal["moves", "fixed"] = "moves") -> list[str]:
    """Leave the named parameters of a network as they are from now on, weight decay included; -> the names of those parameters.

    names: of parameters and buffers, as in a state dict. batch_norm is about the BatchNorm layers all of whose parameters are named:
    "moves", they follow `train()`, normalise by the batch, and their running statistics move (as in S3L's code); "fixed", they
    normalise by their running statistics and keep them, whatever mode the network is put into. Copies of the network keep that.

    Raises:
        UsageError: a name that the network does not have, or another word for batch_norm.

    Source: S3L (arXiv 2103.13559): conv1 to conv4 are frozen while conv5 warms up.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        >>> freeze(net, ["0.weight", "0.bias", "1.weight", "1.bias"], "fixed")
        ['0.weight', '0.bias', '1.weight', '1.bias']
        >>> _ = net.train()
        >>> net[1].training, net[2].training, net[0].weight.requires_grad
        (False, True, False)
    """
    if batch_norm not in ("moves", "fixed"):
        raise UsageError(f"batch_norm is {batch_norm!r}; wanted moves or fixed")
    wanted, known = set(names), set(net.state_dict())
    if wanted - known:
        name = min(wanted - known)
        raise UsageError(f'the network has no tensor "{name}"{suggest(name, known).split("; there are")[0]}')
    frozen = [(name, p) for name, p in net.named_parameters() if name in wanted]
    for _, p in frozen:
        p.requires_grad_(False)
        p.grad = None  # a gradient of the step before would be followed once more
    for name, layer in net.named_modules():
        if batch_norm == "fixed" and isinstance(layer, _BatchNorm) and _named(name, layer, wanted):
            # a partial and not a subclass: the class stays what others look for, and the layer can be copied and pickled
            vars(layer)["train"] = partial(_stay, layer)
            layer.eval()
    return [name for name, _ in frozen]


def unfreeze(net: nn.Module, names: Iterable[str]) -> None:
    """Let training move the named parameters again, and the statistics of their BatchNorm layers, in the mode that the network is in.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> unfreeze(net, freeze(net, net.state_dict(), "fixed"))
        >>> net[0].weight.requires_grad, net[1].training
        (True, True)
    """
    wanted = set(names)
    for name, p in net.named_parameters():
        if name in wanted:
            p.requires_grad_(True)
    for name, layer in net.named_modules():
        if isinstance(layer, _BatchNorm) and _named(name, layer, wanted) and vars(layer).pop("train", None):
            layer.train(net.training)


def _named(name: str, layer: _BatchNorm, wanted: set[str]) -> bool:
    own = [key for key, _ in layer.named_parameters(name)] or [key for key, _ in layer.named_buffers(name)]
    return bool(own) and wanted.issuperset(own)


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:
    layer.training = False
    return layer
