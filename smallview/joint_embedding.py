"""THE PAGE: a method is five choices, and one function computes the loss of any method.

Legend: V online views, L target views, B images, D embedding dimensions, M bank entries; progress in [0, 1]; key = (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smallview import collectives
from smallview.networks.heads import Heads
from smallview.networks.online_target import Momentum, Shared
from smallview.objectives import (
    Alignment,
    BarlowTwins,
    CentreInvariance,
    Covariance,
    Decoupled,
    EqCo,
    Fixed,
    InBatch,
    InfoNCE,
    MeanSquared,
    NoNegatives,
    Queue,
    Relational,
    RelicInvariance,
    SIGReg,
    Variance,
)
from smallview.records import Embedded, Embeddings, ViewBatch
from smallview.schedules import Schedule, over, resolve
from smallview.views.view import View

State = dict[str, Tensor]
Embed = Callable[[Sequence[ViewBatch], Tensor | None], Embedded]  # Networks, or what stands for them among processes


@dataclass(frozen=True)
class Term:
    """One loss of the objective and its weight, a number or a schedule.

    Raises:
        ValueError: a weight that is not finite.
    """

    weight: float | Schedule
    loss: (
        InfoNCE
        | Alignment
        | RelicInvariance
        | BarlowTwins
        | MeanSquared
        | Variance
        | Covariance
        | Relational
        | SIGReg
        | CentreInvariance
    )

    def __post_init__(self) -> None:
        if not all(math.isfinite(at) for at in over(self.weight)):
            raise ValueError(f"weight is {self.weight}; wanted a finite number")


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
    negatives: InBatch | Queue | Fixed | NoNegatives
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
            if isinstance(term.loss, (InfoNCE, Relational)) and isinstance(self.negatives, NoNegatives):
                raise ValueError(
                    f"the term {name} compares with negatives and there are none; wanted InBatch(), Queue(size) or Fixed(...)"
                )
            four = isinstance(term.loss, RelicInvariance) and term.loss.convention == "four_tensors"
            if four and sum(view.seen_by == "both" for view in self.views) < 2:
                raise ValueError(
                    f"the term {name} compares four tensors and fewer than two views are seen by both networks; wanted "
                    "convention one_matrix, or seen_by=both"
                )

    def idle(self) -> list[str]:
        """Settings that change nothing in this company, one sentence each; a run says them when it begins."""
        said = []
        losses = {name: term.loss for name, term in self.objective.items()}
        one_network = isinstance(self.target, Shared) and self.heads.predictor is None
        alone = isinstance(self.negatives, InBatch) and self.negatives.per_query and self.negatives.views == "all"
        if not isinstance(self.negatives, NoNegatives) and not any(
            isinstance(loss, (InfoNCE, Relational, RelicInvariance)) for loss in losses.values()
        ):
            said.append(f"no term looks at the negatives ({type(self.negatives).__name__})")
        for name, loss in losses.items():
            if isinstance(loss, InfoNCE) and isinstance(loss.margin, EqCo) and isinstance(loss.denominator, Decoupled):
                said.append(f"{name}: without the positive in the denominator a margin only adds a constant")
            if isinstance(loss, RelicInvariance) and alone:
                said.append(
                    f'{name}: per_query holds here only with InBatch(per_query, views="positive"); all pictures are compared'
                )
            if isinstance(loss, RelicInvariance) and loss.kl == "q||p" and (one_network or loss.convention == "four_tensors"):
                said.append(f"{name}: every pair comes in both orders, so that kl changes nothing")
            if isinstance(loss, (InfoNCE, RelicInvariance)) and loss.same_view and one_network:
                said.append(f"{name}: on one network a pair of one view compares an embedding with itself")
        return said

    def check_batch(self, batch_size: int) -> None:
        """Whether batches of so many pictures, over all processes, give every term the negatives that it needs.

        Raises:
            ValueError: no negatives, or a smoothing over more neighbours than a query has negatives.
        """
        count = self.negatives.count(batch_size, sum(view.seen_by != "online" for view in self.views))
        for name, term in self.objective.items():
            if isinstance(term.loss, (InfoNCE, Relational)) and count < 1:
                raise ValueError(f"the term {name} has no negatives in a batch of {batch_size}; wanted two pictures or more")
            if isinstance(term.loss, InfoNCE) and term.loss.soft_targets.least > count:
                least = term.loss.soft_targets.least
                raise ValueError(
                    f"the term {name} smooths over {least} nearest negatives and a query has {count}, with {batch_size:,} pictures in a "
                    f"batch; wanted nearest to be at most that: set method.objective.{name}.loss.soft_targets.nearest={count}, "
                    "or more negatives"
                )


def compute_loss(
    method: Method, networks: Embed, bank_state: State, views: Sequence[ViewBatch], progress: float, key: tuple[int, int]
) -> tuple[Tensor, dict[str, Tensor], State, Embeddings]:
    """The loss of any method: the weighted sum, each term by name, the bank's next state, and the embeddings for the watch.

    Every process computes the loss of the whole batch from gathered embeddings: averaged over processes, the parameters' gradients are
    those of one process, for every term and without its knowing.
    """
    images = method.negatives.images(bank_state)  # [M, C, S, S] or None
    seen = gathered(networks(views, images if collectives.rank() == 0 else None), images)  # online [V, B, D], target [L, B, D]
    candidates, bank_state = method.negatives.draw(bank_state, seen, key)
    embeddings = Embeddings(seen.online, seen.target, candidates, seen.online_views, seen.target_views, key, seen.features)
    losses = {name: term.loss(embeddings, progress) for name, term in method.objective.items()}
    total = torch.stack([resolve(term.weight, progress) * losses[name] for name, term in method.objective.items()]).sum()
    return total, losses, bank_state, embeddings


def gathered(seen: Embedded, images: Tensor | None) -> Embedded:
    """The embeddings of the whole batch, [V, B, D] and [L, B, D], on every process; the first one embeds the fixed pictures for all."""
    if collectives.world() == 1:
        return seen
    fixed = None
    if images is not None:
        fixed = collectives.first(seen.fixed, (len(images), seen.target.shape[-1]), like=seen.target)
    return replace(seen, online=collectives.gather(seen.online, 1), target=collectives.gather(seen.target, 1), fixed=fixed)
