"""Margins as values: what is added to the logits of the negatives, so that their number does not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoMargin:
    """Every negative counts as it is: plain InfoNCE."""

    def shift(self, count: int | Tensor) -> float | Tensor:
        """What is added to the logits of `count` negatives: nothing."""
        return 0.0


@dataclass(frozen=True)
class EqCo:
    """The loss of `alpha` negatives, whatever their number K: log(alpha / K) is added to the logit of each.

    K is the number that is really in the denominator of a query, after masking and gathering. The same loss as the margin
    temperature * log(alpha / K) taken from the positive similarity. alpha = K is plain InfoNCE; the rule for a new framework is the
    number of negatives that its temperature was chosen for (65,536 for MoCo v2, 256 for SiMo).

    Source: Zhu et al., 2020 (EqCo), eq. 5.

    Raises:
        ValueError: alpha is not above 0.

    Example:
        >>> round(EqCo(256).shift(16), 4)
        2.7726
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < math.inf:
            raise ValueError(
                f"alpha is {self.alpha}; wanted a number above 0, such as 256: how many negatives it shall be worth"
            )

    def shift(self, count: int | Tensor) -> float | Tensor:
        """What is added to the logits of `count` negatives, a number or float [B]."""
        if isinstance(count, Tensor):
            return math.log(self.alpha) - torch.log(count)
        return math.log(self.alpha / count)


Margin = NoMargin | EqCo
