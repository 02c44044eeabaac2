"""Denominators as values: what the positive is compared with, from the positive's logit and the sum over the negatives.

Every one takes positive [B], the positive's logit; log_sum [B], the logarithm of the summed exponentials of the negatives, margin
and all; log_count, the logarithm of the number of negatives that this sum stands for; and the temperature. It gives the
logarithm of the denominator, [B].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Full:
    """The positive and all negatives: InfoNCE."""

    def log(self, positive: Tensor, log_sum: Tensor, log_count: float | Tensor, temperature: float) -> Tensor:
        """The logarithm of the denominator, [B]."""
        return torch.logaddexp(positive, log_sum)


@dataclass(frozen=True)
class Decoupled:
    """The negatives alone: a positive that is already close does not shrink the gradient, so small batches learn faster.

    Source: Yeh et al., 2022 (DCL), eq. 5. The loss may fall below 0.
    """

    def log(self, positive: Tensor, log_sum: Tensor, log_count: float | Tensor, temperature: float) -> Tensor:
        """The logarithm of the denominator, [B]."""
        return log_sum


@dataclass(frozen=True)
class Debiased:
    """The negatives' sum corrected for those that are of the query's own class, a part `prior` of them; plus the positive.

    With K negatives the sum becomes K g, g = max((mean e^s_negative - prior e^s_positive) / (1 - prior), e^(-1 / temperature)).

    Source: Chuang et al., 2020, eq. 7 and 8 with one positive.

    Raises:
        ValueError: a prior outside [0, 1).
    """

    prior: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.prior < 1.0:
            raise ValueError(f"prior is {self.prior}; wanted the part of false negatives, from 0 to under 1 (1 / classes)")

    def log(self, positive: Tensor, log_sum: Tensor, log_count: float | Tensor, temperature: float) -> Tensor:
        """The logarithm of the denominator, [B]."""
        top = torch.maximum(positive, log_sum).detach()  # so that nothing overflows
        kept = torch.exp(log_sum - top) - self.prior * torch.exp(log_count + positive - top)
        least = torch.exp(log_count - 1.0 / temperature - top)
        corrected = torch.maximum(kept / (1.0 - self.prior), least.expand_as(kept))
        return top + torch.log(torch.exp(positive - top) + corrected)


Denominator = Full | Decoupled | Debiased


def log_of(count: int | Tensor) -> float | Tensor:
    """The logarithm of a count, a number or float [B]."""
    return torch.log(count) if isinstance(count, Tensor) else math.log(count)
