"""The contrastive core: one positive against a bank of negatives, as plain functions and as a term.

Every choice is a value in a slot: the margin, the target distribution, the denominator. With logits z, the denominator Z and the
target t, each query's loss is log Z - sum_j t_j z_j, where the margin is part of the negatives' logits.

Legend: V online views, L target views, B images, D dimensions, K negatives, M bank entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from smallview.objectives.denominators import Debiased, Decoupled, Denominator, Full, log_of
from smallview.objectives.embeddings import check_number, check_pair, check_temperature, exact, unit
from smallview.objectives.margins import EqCo, Margin, NoMargin
from smallview.objectives.reductions import Head, against, contrast
from smallview.objectives.soft_targets import NearestSmoothing, OneHot, SoftTargets, UniformSmoothing
from smallview.records import Candidates, Embeddings
from smallview.schedules import Schedule, resolve


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float,
    margin: Margin | None = None,
    soft_targets: SoftTargets | None = None,
    denominator: Denominator | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """InfoNCE: minus the log share of the positive among itself and its negatives; L2-normalises inside.

    query, key [B, D]; negatives [K, D] for all, [B, K, D] per query, or None: the other B - 1 rows of key. -> scalar, or [B].
    margin: NoMargin() or EqCo(alpha). soft_targets: OneHot(), UniformSmoothing or NearestSmoothing with a number as amount.
    denominator: Full(), Decoupled() or Debiased(prior). From 2^20 similarities on (2^26 on CUDA) the mean is computed in blocks,
    which have no second derivative; `reduction="none"` is dense at any size.

    Source: van den Oord et al., 2018; He et al., 2020, eq. 1; Zhu et al., 2020; Lin et al., 2022.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, no negatives, fewer than smoothing needs, or a temperature
            that is not positive.

    Example:
        >>> z = torch.eye(4)
        >>> round(float(info_nce(z, z, temperature=1.0)), 4)
        0.7437
        >>> round(float(info_nce(z, z, temperature=1.0, margin=EqCo(3))), 4)
        0.7437
    """
    check_pair(query, key, "query", "key")
    check_number(temperature, "temperature")
    check_number((soft_targets or OneHot()).amount, "the amount of smoothing")
    term = InfoNCE(temperature, margin or NoMargin(), soft_targets or OneHot(), denominator or Full())
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction is "{reduction}"; wanted mean or none')
    b, d = query.shape
    if negatives is None and b < 2:
        raise ValueError("there are no negatives; wanted at least two pictures, or negatives of their own")
    if negatives is not None:
        if negatives.dim() not in (2, 3) or negatives.shape[-1] != d or (negatives.dim() == 3 and len(negatives) != b):
            raise ValueError(f"negatives are {list(negatives.shape)}; wanted [K, {d}] or [{b}, K, {d}]")
        if negatives.shape[-2] == 0:
            raise ValueError(f"there are no negatives: {list(negatives.shape)}; wanted K of 1 or more")
        if not bool(torch.isfinite(negatives).all()):
            raise ValueError("negatives hold numbers that are not finite; wanted finite ones: look for the NaN upstream")
    with exact(query.device):
        query, key = unit(query), unit(key)
        bank = key if negatives is None else unit(negatives).to(query.dtype)
        own = torch.arange(b, device=query.device)[:, None] if negatives is None else None
        positive = (query * key).sum(1, keepdim=True) / temperature  # [B, 1]
        head, soft = term.head(0.0), term.soft(0.0)
        if reduction == "mean":
            return contrast(query, positive, bank, head, temperature=temperature, own=own, soft=soft) / b
        return head(positive, *against(query, bank, temperature=temperature, own=own, soft=soft))


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float,
    margin: Margin | None = None,
    soft_targets: SoftTargets | None = None,
    denominator: Denominator | None = None,
) -> Tensor:
    """NT-Xent of two views [B, D]: 2B queries, each with K = 2B - 2 negatives from both views; the mean, a scalar.

    Source: Chen et al., 2020, eq. 1.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, a single picture, or a temperature that is not positive.

    Example:
        >>> round(float(nt_xent(torch.eye(4), torch.eye(4), temperature=0.5)), 4)
        0.5944
    """
    check_pair(z0, z1, "the first view", "the second")
    check_number(temperature, "temperature")
    check_number((soft_targets or OneHot()).amount, "the amount of smoothing")
    if len(z0) < 2:
        raise ValueError("there are no negatives; wanted at least two pictures")
    b = len(z0)
    views = torch.stack([z0, z1])
    own = torch.arange(b, device=z0.device)[:, None] + torch.tensor([0, b], device=z0.device)
    both = Embeddings(views, views, Candidates(views.flatten(0, 1), own), (0, 1), (0, 1))
    return InfoNCE(temperature, margin or NoMargin(), soft_targets or OneHot(), denominator or Full())(both, 0.0)


@dataclass(frozen=True)
class InfoNCE:
    """InfoNCE as a term: every online view against every target view of another kind, with the method's negatives.

    directions: the mean over pairs of an online and a target view, or their sum, as published learning rates presume; always the
    mean over pictures. same_view: also pairs of one view (ReLICv2). With `InBatch` and a shared network it is NT-Xent; with
    `Queue`, MoCo's loss; `margin`, `soft_targets` and `denominator` combine as they like.
    """

    temperature: float | Schedule = 0.2
    margin: NoMargin | EqCo = NoMargin()
    soft_targets: OneHot | UniformSmoothing | NearestSmoothing = OneHot()
    denominator: Full | Decoupled | Debiased = Full()
    directions: Literal["mean", "sum"] = "mean"
    same_view: bool = False

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.directions not in ("mean", "sum"):
            raise ValueError(f"directions is {self.directions!r}; wanted mean or sum")

    def head(self, progress: float) -> Head:
        """What makes a loss of each query's sums: log Z - sum_j t_j z_j, summed over its positives."""
        temperature, amount = resolve(self.temperature, progress), resolve(self.soft_targets.amount, progress)

        def head(positives: Tensor, log_sum: Tensor, soft_sum: Tensor | None, count: int | Tensor) -> Tensor:
            count = count.to(log_sum.dtype) if isinstance(count, Tensor) else count
            shift = self.margin.shift(count)
            log_count = log_of(count) + shift
            losses = []
            for positive in positives.unbind(1):
                log_z = self.denominator.log(positive, log_sum + shift, log_count, temperature)
                if soft_sum is None:
                    losses.append(log_z - positive)
                else:
                    losses.append(log_z - (1.0 - amount) * positive - amount * (soft_sum + shift))
            return torch.stack(losses).sum(0)

        return head

    def soft(self, progress: float) -> SoftTargets | None:
        """The soft targets where they have an amount at `progress`, None where all lies on the positive."""
        return self.soft_targets if resolve(self.soft_targets.amount, progress) > 0.0 else None

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        candidates = embeddings.candidates
        if candidates is None:
            raise ValueError("InfoNCE has no negatives; wanted negatives=InBatch(), Queue(size) or Fixed(...) in the method")
        pairs = embeddings.pairs(self.same_view)
        temperature, head, soft = resolve(self.temperature, progress), self.head(progress), self.soft(progress)
        with exact(embeddings.online.device):
            online, target = unit(embeddings.online), unit(embeddings.target)  # [V, B, D], [L, B, D]
            bank = replace(candidates, embeddings=unit(candidates.embeddings).to(online.dtype))
            one_bank = bank.embeddings.dim() == 2
            # pairs of one query and one bank look at it together, each with its own positive
            groups: dict[tuple[int, int], list[int]] = {}
            for v, other in pairs:
                groups.setdefault((v, 0 if one_bank else other), []).append(other)
            total = (
                torch.stack(
                    [
                        contrast(
                            online[v],
                            torch.stack([(online[v] * target[other]).sum(1) for other in others], 1) / temperature,  # [B, P]
                            bank.of(others[0]),
                            head,
                            temperature=temperature,
                            own=bank.own,
                            is_negative=bank.is_negative,
                            soft=soft,
                        )
                        for (v, _), others in groups.items()
                    ]
                ).sum()
                / online.shape[1]
            )
        return total / len(pairs) if self.directions == "mean" else total
