"""THE PAGE: a method is five choices, and one function computes the loss of any method.

Legend: V online views, L target views, B images, D embedding dimensions, M bank entries; progress in [0, 1]; key = (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smallview.networks.heads import Heads
from smallview.networks.online_target import Momentum, Networks, Shared
from smallview.objectives import Alignment, InBatch, InfoNCE, NoNegatives, Queue
from smallview.records import Embeddings, ViewBatch
from smallview.views.view import View

State = dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """One loss of the objective and its weight."""

    weight: float
    loss: InfoNCE | Alignment


@dataclass(frozen=True)
class Method:
    """A joint-embedding method: five choices, and nothing that changes while it runs.

    views: each with its crop, its disturbances, and who sees it. heads: projector and predictor. target: what the online network
    is compared with. negatives: what it is pushed away from. objective: name -> Term.

    Raises:
        ValueError: choices that contradict each other, named.
    """

    views: tuple[View, ...]
    heads: Heads
    target: Momentum | Shared
    negatives: InBatch | Queue | NoNegatives
    objective: dict[str, Term]

    def __post_init__(self) -> None:
        online = [v for v, view in enumerate(self.views) if view.seen_by != "target"]
        target = [v for v, view in enumerate(self.views) if view.seen_by != "online"]
        if not any(v != other for v in online for other in target):
            raise ValueError(
                f"{len(self.views)} view(s) make no pair of an online and another target view; wanted at least two views"
            )
        if not self.objective:
            raise ValueError("the objective has no term; wanted at least one")
        for name, term in self.objective.items():
            if isinstance(term.loss, InfoNCE) and isinstance(self.negatives, NoNegatives):
                raise ValueError(f"the term {name} is contrastive and there are no negatives; wanted InBatch() or Queue(size)")


def compute_loss(
    method: Method, networks: Networks, bank_state: State, views: Sequence[ViewBatch], progress: float, key: tuple[int, int]
) -> tuple[Tensor, dict[str, Tensor], State, Embeddings]:
    """The loss of any method: the weighted sum, each term by name, the bank's next state, and the embeddings for the watch."""
    seen = networks(views)  # online [V, B, D], target [L, B, D]
    bank, is_negative, bank_state = method.negatives.draw(bank_state, seen.target, key)  # [M, D], [B, M]
    embeddings = Embeddings(seen.online, seen.target, bank, is_negative, seen.online_views, seen.target_views)
    losses = {name: term.loss(embeddings, progress) for name, term in method.objective.items()}
    total = torch.stack([term.weight * losses[name] for name, term in method.objective.items()]).sum()
    return total, losses, bank_state, embeddings
