"""Target distributions as values: how much of the target lies on the positive, and where among the negatives the rest lies.

A value says its `amount`, the part of the target that the negatives get, and `shares`, how it is spread: the weights within the
negatives of each query, which sum to 1 and carry no gradient. Legend: B queries, M bank entries, K negatives of a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smallview.schedules import Schedule, over


def _check_amount(amount: float | Schedule) -> None:
    if not all(0.0 <= at < 1.0 for at in over(amount)):
        raise ValueError(
            f"amount is {amount}; wanted a number from 0 to under 1 all the way: the part of the target that the negatives get"
        )


@dataclass(frozen=True)
class OneHot:
    """All of the target lies on the positive."""

    amount: ClassVar[float] = 0.0

    @property
    def least(self) -> int:
        """How many negatives a query needs."""
        return 1

    def soft_sum(self, logits: Tensor, count: Tensor | int) -> Tensor:
        """Never asked for: the amount is 0."""
        return logits.new_zeros(len(logits))

    def spread_(self, out: Tensor, logits: Tensor, count: Tensor | int, weight: Tensor) -> None:
        """Never asked for: the amount is 0."""


@dataclass(frozen=True)
class UniformSmoothing:
    """`amount` of the target is spread evenly over all negatives: label smoothing on the instance task.

    Equal to torch's label_smoothing with amount * (K + 1) / K.

    Raises:
        ValueError: an amount outside [0, 1).
    """

    amount: float | Schedule

    def __post_init__(self) -> None:
        _check_amount(self.amount)

    @property
    def least(self) -> int:
        """How many negatives a query needs."""
        return 1

    def soft_sum(self, logits: Tensor, count: Tensor | int) -> Tensor:
        """The mean logit of the negatives, [B]; logits [B, M] are -inf where an entry is none."""
        return torch.where(torch.isneginf(logits), 0.0, logits).sum(1) / count

    def spread_(self, out: Tensor, logits: Tensor, count: Tensor | int, weight: Tensor) -> None:
        """Add weight [B] times the shares to out [B, M], in place."""
        out.add_(torch.where(torch.isneginf(logits), 0.0, (weight / count)[:, None]))


@dataclass(frozen=True)
class NearestSmoothing:
    """`amount` of the target is spread over the `nearest` negatives that are most similar to the query.

    groups: (last rank, share) pairs in rank order: ((2, .5), (8, .25), (20, .25)) gives ranks 1 and 2 together half of `amount`, 3
    to 8 a quarter, 9 to 20 a quarter; the last rank equals `nearest`, the shares sum to 1. None: all ranks alike. Ranks come from
    the similarity to the query, before any margin, and no gradient flows through them.

    Source: Lin et al., 2022 (light-moco), whose six strategies it can say; which of them the paper's figures used is not known.

    Raises:
        ValueError: an amount outside [0, 1), fewer than one neighbour, or groups that do not cover `nearest`.
    """

    amount: float | Schedule
    nearest: int
    groups: tuple[tuple[int, float], ...] | None = None

    def __post_init__(self) -> None:
        _check_amount(self.amount)
        if self.nearest < 1:
            raise ValueError(f"nearest is {self.nearest}; wanted 1 or more neighbours")
        if self.groups is None:
            return
        ends = [end for end, _ in self.groups]
        if not ends or ends != sorted(set(ends)) or ends[0] < 1:
            raise ValueError(f"the groups end at ranks {ends}; wanted rising ranks from 1 on")
        if ends[-1] != self.nearest:
            raise ValueError(
                f"the groups end at rank {ends[-1]} and nearest is {self.nearest}; wanted both alike: end the last group at "
                f"{self.nearest} or set nearest={ends[-1]}"
            )
        total = sum(share for _, share in self.groups)
        if any(share < 0 for _, share in self.groups) or abs(total - 1.0) > 1e-6:
            raise ValueError(f"the groups' shares sum to {total:g}; wanted shares of 0 or more that sum to 1")

    @property
    def least(self) -> int:
        """How many negatives a query needs."""
        return self.nearest

    def rank_shares(self, like: Tensor) -> Tensor:
        """The share of each rank, [nearest], in the kind of `like`.

        Example:
            >>> NearestSmoothing(0.2, 4, groups=((1, 0.5), (4, 0.5))).rank_shares(torch.zeros(1)).tolist()
            [0.5, 0.1666666716337204, 0.1666666716337204, 0.1666666716337204]
        """
        if self.groups is None:
            return like.new_full((self.nearest,), 1.0 / self.nearest)
        shares, begin = like.new_empty(self.nearest), 0
        for end, share in self.groups:
            shares[begin:end] = share / (end - begin)
            begin = end
        return shares

    def soft_sum(self, logits: Tensor, count: Tensor | int) -> Tensor:
        """The share-weighted logit of the nearest negatives, [B]; logits [B, M] are -inf where an entry is none."""
        return logits.topk(self.nearest, dim=1).values @ self.rank_shares(logits)

    def spread_(self, out: Tensor, logits: Tensor, count: Tensor | int, weight: Tensor) -> None:
        """Add weight [B] times the shares to out [B, M], in place."""
        ranks = logits.topk(self.nearest, dim=1).indices
        out.scatter_add_(1, ranks, weight[:, None] * self.rank_shares(out)[None, :])


SoftTargets = OneHot | UniformSmoothing | NearestSmoothing
