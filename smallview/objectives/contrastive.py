"""The contrastive core: one positive against a bank of negatives, as a plain function and as a term.

Legend: V online views, L target views, B images, D dimensions, K negatives, M bank entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.records import Embeddings
from smallview.schedules import Schedule, resolve


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length; half formats become float32 first, wider ones stay what they are."""
    return F.normalize(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, dim=-1)


def _exact(device: torch.device) -> torch.autocast:
    """No autocast: a similarity in bfloat16 is off by up to 1/256, and the temperature multiplies that by 5 to 20."""
    return torch.autocast(device.type, enabled=False)


def _cross_entropy(positive: Tensor, negatives: Tensor, is_negative: Tensor | None) -> Tensor:
    """-log softmax of the positive: positive [B], negatives [B, K] as logits -> [B]."""
    if is_negative is not None:
        negatives = negatives.masked_fill(~is_negative, float("-inf"))
    return torch.logsumexp(torch.cat([positive[:, None], negatives], 1), 1) - positive


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """InfoNCE: minus the log share of the positive among itself and its negatives; L2-normalises inside.

    query, key [B, D]; negatives [K, D] for all, [B, K, D] per query, or None: the other B - 1 rows of key. -> scalar, or [B].

    Source: van den Oord et al., 2018; He et al., 2020, eq. 1.

    Raises:
        ValueError: shapes that do not fit, no negatives, or a temperature that is not positive.

    Example:
        >>> z = torch.eye(4)
        >>> round(float(info_nce(z, z, temperature=1.0)), 4)
        0.7437
    """
    if query.dim() != 2 or query.shape != key.shape:
        raise ValueError(f"query is {list(query.shape)} and key {list(key.shape)}; wanted both [B, D]")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; wanted a number above 0")
    b, d = query.shape
    if negatives is not None and (
        negatives.dim() not in (2, 3) or negatives.shape[-1] != d or (negatives.dim() == 3 and len(negatives) != b)
    ):
        raise ValueError(f"negatives are {list(negatives.shape)}; wanted [K, {d}] or [{b}, K, {d}]")
    if (b < 2) if negatives is None else (negatives.shape[-2] == 0):
        raise ValueError("there are no negatives; wanted at least one per query")
    mask = None
    with _exact(query.device):
        query, key = _unit(query), _unit(key)
        if negatives is None:
            similarity = query @ key.T  # [B, B]
            mask = ~torch.eye(b, dtype=torch.bool, device=query.device)
        else:
            bank = _unit(negatives).to(query.dtype)
            similarity = query @ bank.T if bank.dim() == 2 else torch.einsum("bd,bkd->bk", query, bank)  # [B, K]
        losses = _cross_entropy((query * key).sum(1) / temperature, similarity / temperature, mask)
    return losses.mean() if reduction == "mean" else losses


def nt_xent(z0: Tensor, z1: Tensor, *, temperature: float) -> Tensor:
    """NT-Xent of two views [B, D]: 2B queries, each with K = 2B - 2 negatives from both views; the mean, a scalar.

    Source: Chen et al., 2020, eq. 1.

    Raises:
        ValueError: shapes that do not fit, a single picture, or a temperature that is not positive.

    Example:
        >>> round(float(nt_xent(torch.eye(4), torch.eye(4), temperature=0.5)), 4)
        0.5944
    """
    if z0.dim() != 2 or z0.shape != z1.shape:
        raise ValueError(f"the views are {list(z0.shape)} and {list(z1.shape)}; wanted both [B, D]")
    if len(z0) < 2:
        raise ValueError("there are no negatives; wanted at least two pictures")
    target = torch.stack([z0, z1])
    other = ~torch.eye(len(z0), dtype=torch.bool, device=z0.device)
    both = Embeddings(target, target, target.flatten(0, 1), other.repeat(1, 2), (0, 1), (0, 1))
    return InfoNCE(temperature)(both, 0.0)


@dataclass(frozen=True)
class InfoNCE:
    """InfoNCE as a term: every online view against every target view of another kind, with the method's negatives.

    The mean over pairs of views and over pictures. With `InBatch` and a shared network it is NT-Xent; with `Queue`, MoCo's loss.
    """

    temperature: float | Schedule = 0.2

    def __post_init__(self) -> None:
        if not all(resolve(self.temperature, p) > 0 for p in (0.0, 1.0)):
            raise ValueError(f"temperature is {self.temperature}; wanted numbers above 0")

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        if embeddings.bank is None:
            raise ValueError("InfoNCE has no negatives; wanted negatives=InBatch() or Queue(size) in the method")
        temperature = resolve(self.temperature, progress)
        losses = []
        with _exact(embeddings.online.device):
            online, target = _unit(embeddings.online), _unit(embeddings.target)  # [V, B, D], [L, B, D]
            bank = _unit(embeddings.bank).to(online.dtype)  # [M, D]
            logits = {v: online[v] @ bank.T / temperature for v in {v for v, _ in embeddings.pairs()}}  # [B, M] each
            for v, other in embeddings.pairs():
                positive = (online[v] * target[other]).sum(1) / temperature  # [B]
                losses.append(_cross_entropy(positive, logits[v], embeddings.is_negative).mean())
        return torch.stack(losses).mean()
