"""What is looked at while training runs: whether the numbers are finite and the embeddings still spread."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

COLLAPSED = 0.1


@torch.no_grad()
def feature_spread(embeddings: Tensor) -> float:
    """How spread L2-normalised embeddings [B, D] are: the mean standard deviation of a dimension times sqrt(D).

    1 for directions that fill the sphere evenly, 0 when all pictures have one embedding (collapse).

    Source: Chen and He, 2021, section 4.1.

    Example:
        >>> feature_spread(torch.ones(8, 4))
        0.0
    """
    z = F.normalize(embeddings.float(), dim=1)
    return round(float(z.std(0, correction=0).mean()) * math.sqrt(z.shape[1]), 6)


@torch.no_grad()
def gradient_size(parameters: Iterable[Tensor], device: torch.device | None = None) -> Tensor:
    """The sum of every gradient's Euclidean norm, a scalar on their device; not finite where any of them is not."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)).sum() if grads else torch.zeros((), device=device)


@dataclass
class Watch:
    """Remembers the spread and says once, in one line, when the embeddings collapse."""

    low_steps: int = 0
    warned: bool = False
    patience: int = 20
    last: float = field(default=1.0)

    def look(self, spread: float, step: int) -> str | None:
        """A warning, the first time the spread has stayed under 0.1 for `patience` looks."""
        self.last = spread
        self.low_steps = self.low_steps + 1 if spread < COLLAPSED else 0
        if self.low_steps < self.patience or self.warned:
            return None
        self.warned = True
        return (
            f"step {step:,}: the embeddings have collapsed (spread {spread:.3f}; 1 is healthy, 0 is one point for all pictures); "
            "stop and try a lower --set optimizer.lr, a larger --batch-size, or --method simclr"
        )
