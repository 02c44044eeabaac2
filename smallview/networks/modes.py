"""Training and evaluation mode, changed for a while and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode afterwards: a BatchNorm that was frozen stays frozen.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
        >>> _ = net[1].eval()
        >>> with evaluating(net):
        ...     inside = net.training
        >>> inside, net[0].training, net[1].training
        (False, True, False)
    """
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training
