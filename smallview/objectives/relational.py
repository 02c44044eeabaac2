"""ReSSL: an online view shall resemble the bank's entries as its weakly disturbed target view does.

Legend: V online views, L target views, B images, D dimensions, M bank entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives.embeddings import check_number, check_pair, check_temperature, exact, unit
from smallview.records import Candidates, Embeddings
from smallview.schedules import Schedule, resolve


def ressl(online: Tensor, target: Tensor, bank: Tensor, *, temperature: float, target_temperature: float) -> Tensor:
    """ReSSL for one online and one target view [B, D] and a bank [M, D]: cross-entropy of two softmax distributions; a scalar.

    The target's similarities to the bank, at their lower temperature, are the soft label of the online view's; no positive takes
    part, and no gradient reaches target or bank. L2-normalises inside.

    Source: Zheng et al., 2021, eq. 4 to 6.

    Raises:
        ValueError: shapes that do not fit, an empty bank, numbers that are not finite, or a temperature that is not positive.

    Example:
        >>> z = torch.eye(4)
        >>> bool(ressl(z, z, z, temperature=0.1, target_temperature=0.04) < 0.01)
        True
    """
    check_pair(online, target, "online", "target")
    if bank.dim() != 2 or bank.shape[1] != online.shape[1] or len(bank) == 0:
        raise ValueError(f"the bank is {list(bank.shape)}; wanted [M, {online.shape[1]}] with M of 1 or more")
    check_pair(bank, bank, "the bank", "itself")
    check_number(temperature, "temperature")
    check_number(target_temperature, "target_temperature")
    term = Relational(temperature, target_temperature)
    with exact(online.device):
        return term.of(unit(online), unit(target), Candidates(unit(bank).to(unit(online).dtype)), 0, 0.0)


@dataclass(frozen=True)
class Relational:
    """ReSSL as a term: the mean over pairs of an online and another target view, against the method's negatives."""

    temperature: float | Schedule = 0.1
    target_temperature: float | Schedule = 0.04

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_temperature(self.target_temperature)

    def of(self, online: Tensor, target: Tensor, bank: Candidates, target_view: int, progress: float) -> Tensor:
        """The loss of one pair, rows of unit length; a scalar."""
        entries = bank.of(target_view).detach()

        def logits(rows: Tensor, temperature: float | Schedule) -> Tensor:
            similar = rows @ entries.T / resolve(temperature, progress)  # [B, M]
            if bank.own is not None:
                similar = similar.scatter(1, bank.own, -math.inf)
            return similar if bank.is_negative is None else similar.masked_fill(~bank.is_negative, -math.inf)

        label = F.softmax(logits(target.detach(), self.target_temperature), dim=1)
        log_share = F.log_softmax(logits(online, self.temperature), dim=1)
        return -(label * log_share.masked_fill(torch.isneginf(log_share), 0.0)).sum(1).mean()

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        if embeddings.candidates is None:
            raise ValueError("ReSSL needs others to resemble; wanted negatives=Queue(size) or InBatch() in the method")
        with exact(embeddings.online.device):
            online, target = unit(embeddings.online), unit(embeddings.target)  # [V, B, D], [L, B, D]
            c = embeddings.candidates
            bank = Candidates(unit(c.embeddings).to(online.dtype), c.own, c.is_negative, c.pictures)
            return torch.stack([self.of(online[v], target[t], bank, t, progress) for v, t in embeddings.pairs()]).mean()
