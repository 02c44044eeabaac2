"""ReLIC: who a picture resembles must not depend on its disturbance. The invariance is a divergence of two softmax distributions.

Legend: V online views, L target views, B images, D dimensions, K negatives per picture; the index set of picture i is i and its K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives.embeddings import check_number, check_pair, check_temperature, exact, unit
from smallview.records import Embeddings
from smallview.schedules import Schedule, resolve

Direction = Literal["p||q", "q||p"]
StopGradient = Literal["none", "entropy", "p", "q"]


def _restricted(similarity: Tensor, index_set: Tensor | None) -> Tensor:
    """Log softmax over each row's index set: similarity [B, B] -> [B, 1 + K], the picture itself first if there is a set."""
    return F.log_softmax(similarity if index_set is None else similarity.gather(1, index_set), dim=1)


def divergence(log_p: Tensor, log_q: Tensor, kl: Direction, stop_gradient: StopGradient) -> Tensor:
    """The mean over rows of KL(P || Q), or of KL(Q || P), from log probabilities [B, N]; a scalar.

    stop_gradient never changes the value: "p" and "q" hold one distribution; "entropy" holds the first's own entropy, so that the
    cross-entropy alone has a gradient (which also sharpens the first).
    """
    log_p = log_p.detach() if stop_gradient == "p" else log_p
    log_q = log_q.detach() if stop_gradient == "q" else log_q
    first, second = (log_p, log_q) if kl == "p||q" else (log_q, log_p)
    entropy = (first.exp() * first).sum(1)
    cross = (first.exp() * second).sum(1)
    return ((entropy.detach() if stop_gradient == "entropy" else entropy) - cross).mean()


def _index_set(negatives: Tensor | None, b: int, device: torch.device) -> Tensor | None:
    if negatives is None:
        return None
    return torch.cat([torch.arange(b, device=device)[:, None], negatives.to(device)], 1)


def relic(
    online: Tensor,
    target: Tensor,
    *,
    temperature: float,
    negatives: Tensor | None = None,
    kl: Direction = "p||q",
    stop_gradient: StopGradient = "none",
) -> tuple[Tensor, Tensor]:
    """ReLIC's two terms for one online and one target view [B, D]: (InfoNCE, divergence), unweighted means; L2-normalises inside.

    With S the similarities over temperature, P_i is the softmax of row i and Q_i of column i over picture i and its negatives.
    negatives: int64 [B, K], rows of the batch, without i in row i; None: all others. A row that is named twice counts twice.

    Source: Mitrovic et al., 2020; Tomasev et al., 2022, whose loss of a pair takes one online and one target embedding.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, negatives that are no other rows of the batch, or a
            temperature that is not positive.

    Example:
        >>> nll, kl = relic(torch.eye(4), torch.eye(4), temperature=1.0)
        >>> round(float(nll), 4), float(kl)
        (0.7437, 0.0)
    """
    check_pair(online, target, "online", "target")
    check_number(temperature, "temperature")
    settings = RelicInvariance(temperature, kl, stop_gradient)
    b = len(online)
    if negatives is not None:
        if negatives.dim() != 2 or len(negatives) != b or negatives.dtype != torch.int64:
            raise ValueError(f"negatives are {list(negatives.shape)} of {negatives.dtype}; wanted whole numbers [{b}, K]")
        if negatives.shape[1] and not 0 <= int(negatives.min()) <= int(negatives.max()) < b:
            raise ValueError(f"negatives name rows {int(negatives.min())} to {int(negatives.max())}; wanted 0 to {b - 1}")
        if bool((negatives == torch.arange(b, device=negatives.device)[:, None]).any()):
            raise ValueError("a picture is among its own negatives; wanted other rows of the batch only")
    if (b - 1 if negatives is None else negatives.shape[1]) < 1:
        raise ValueError(f"there are no negatives for {b} picture{'s' * (b != 1)}; wanted at least one each")
    index_set = _index_set(negatives, b, online.device)
    with exact(online.device):
        similarity = unit(online) @ unit(target).T / temperature  # [B, B]
        log_p, log_q = _restricted(similarity, index_set), _restricted(similarity.T, index_set)
        nll = -(log_p.diagonal() if index_set is None else log_p[:, 0]).mean()
        return nll, divergence(log_p, log_q, settings.kl, settings.stop_gradient)


@dataclass(frozen=True)
class RelicInvariance:
    """The explicit invariance of ReLIC as a term: the mean over pairs of an online and a target view.

    convention: "one_matrix" takes P from the rows and Q from the columns of one similarity matrix, so that small views, which have
    no target, can take part; "four_tensors" takes P from (online a, target b) and Q from (online b, target a). With four tensors, or
    one network on both sides, every pair comes in both orders and the mean is symmetric: `kl` then changes nothing. same_view: also
    pairs of one view, as ReLICv2 counts them. The index set is the one that `InBatch(per_query, views="positive")` drew, or the whole
    batch.

    Source: Mitrovic et al., 2020, eq. 5; Tomasev et al., 2022.
    """

    temperature: float | Schedule = 0.2
    kl: Direction = "p||q"
    stop_gradient: StopGradient = "none"
    convention: Literal["one_matrix", "four_tensors"] = "one_matrix"
    same_view: bool = False

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        for name, known in (
            ("kl", ("p||q", "q||p")),
            ("stop_gradient", ("none", "entropy", "p", "q")),
            ("convention", ("one_matrix", "four_tensors")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted {', '.join(known)}")
        if self.same_view and self.convention == "four_tensors":
            raise ValueError("four_tensors compares two different views; wanted same_view=False, or convention one_matrix")

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        temperature = resolve(self.temperature, progress)
        drawn = None if embeddings.candidates is None else embeddings.candidates.pictures
        index_set = _index_set(drawn, embeddings.online.shape[1], embeddings.online.device)
        losses = []
        with exact(embeddings.online.device):
            online, target = unit(embeddings.online), unit(embeddings.target)  # [V, B, D], [L, B, D]
            for v, t in embeddings.pairs(self.same_view):
                forth = online[v] @ target[t].T / temperature  # [B, B]
                if self.convention == "one_matrix":
                    back = forth.T
                else:
                    try:
                        a = embeddings.online_views.index(embeddings.target_views[t])
                        b = embeddings.target_views.index(embeddings.online_views[v])
                    except ValueError:
                        continue
                    back = online[a] @ target[b].T / temperature
                log_p, log_q = _restricted(forth, index_set), _restricted(back, index_set)
                losses.append(divergence(log_p, log_q, self.kl, self.stop_gradient))
        if not losses:
            raise ValueError("no two views are seen by both networks; four_tensors wants that, convention one_matrix does not")
        return torch.stack(losses).mean()
