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


def _cross_entropy(positive: Tensor, negatives: Tensor, is_negative: Tensor | None) -> Tensor:
    """-log softmax of the positive: positive [B], negatives [B, K] as logits -> [B], in float32 whatever the input."""
    positive, negatives = positive.float(), negatives.float()
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
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    mask = None
    if negatives is None:
        similarity = query @ key.T  # [B, B]
        mask = ~torch.eye(len(query), dtype=torch.bool, device=query.device)
    elif negatives.shape[-1] != query.shape[-1] or negatives.dim() not in (2, 3):
        raise ValueError(f"negatives are {list(negatives.shape)}; wanted [K, {query.shape[1]}] or [B, K, {query.shape[1]}]")
    elif negatives.dim() == 2:
        similarity = query @ F.normalize(negatives, dim=-1).T  # [B, K]
    else:
        similarity = torch.einsum("bd,bkd->bk", query, F.normalize(negatives, dim=-1))
    if similarity.shape[1] == 0 or (negatives is None and len(query) < 2):
        raise ValueError("there are no negatives; wanted at least one per query")
    losses = _cross_entropy((query * key).sum(1) / temperature, similarity / temperature, mask)
    return losses.mean() if reduction == "mean" else losses


def nt_xent(z0: Tensor, z1: Tensor, *, temperature: float) -> Tensor:
    """NT-Xent of two views [B, D]: 2B queries, each with K = 2B - 2 negatives from both views; the mean, a scalar.

    Source: Chen et al., 2020, eq. 1.

    Example:
        >>> round(float(nt_xent(torch.eye(4), torch.eye(4), temperature=0.5)), 4)
        0.5944
    """
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
        online = F.normalize(embeddings.online, dim=-1)  # [V, B, D]
        target = F.normalize(embeddings.target, dim=-1)  # [L, B, D]
        bank = F.normalize(embeddings.bank, dim=-1).to(online.dtype)  # [M, D]
        losses = []
        logits = {v: online[v] @ bank.T / temperature for v in {v for v, _ in embeddings.pairs()}}  # [B, M] each
        for v, other in embeddings.pairs():
            positive = (online[v] * target[other]).sum(1) / temperature  # [B]
            losses.append(_cross_entropy(positive, logits[v], embeddings.is_negative).mean())
        return torch.stack(losses).mean()
