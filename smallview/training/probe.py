"""What the watch sees: figures of the embeddings of a few fixed pictures, two views of each.

The networks are looked at as they would be used: in evaluation mode, by their running statistics. In training mode BatchNorm spreads
whatever comes, and a collapse behind it cannot be seen.

Legend: n pictures, C channels, S side, F features, D embedding dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.networks.modes import evaluating
from smallview.networks.online_target import Networks


@dataclass(frozen=True)
class Look:
    """The figures of one look; of features (the encoder's output) and of embeddings (the projector's).

    spread: the mean standard deviation of a dimension of unit vectors times sqrt(dimensions), 1 evenly around the sphere, 0 in one
    point. cosine: the mean similarity of two different pictures. rank: the effective rank, see `effective_rank`. alignment: the mean
    squared distance of a picture's two embeddings, 0 to 4. uniformity: see `uniformity`. retrieval: the share of pictures whose
    second view is nearest to their first. prediction: the mean similarity of an embedding and the predictor's output for it, 1 where
    there is no predictor. weights: the Euclidean norm of all matrices and kernels. Not finite where the networks are not.
    """

    step: int
    feature_spread: float
    feature_cosine: float
    feature_rank: float
    embedding_spread: float
    embedding_cosine: float
    embedding_rank: float
    alignment: float
    uniformity: float
    retrieval: float
    prediction: float
    weights: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name, and the step."""
        return asdict(self)


@torch.no_grad()
def look(networks: Networks, views: tuple[Tensor, Tensor], step: int, autocast: AbstractContextManager[object]) -> Look:
    """Look at the online encoder and projector through two views [n, C, S, S] of the same n pictures, in the run's layout.

    One forward pass of all views. Nothing is changed by it: no mode, no buffer, no random state. Costs about 2 n pictures forward.

    Source: Wang and Isola, 2020, for alignment and uniformity; Roy and Vetterli, 2007, for the effective rank.

    Example:
        >>> from contextlib import nullcontext
        >>> from smallview.networks.heads import MLP, Heads
        >>> from smallview.networks.online_target import Shared
        >>> networks = Networks(torch.nn.Flatten(), 16, Heads(MLP(out=8)), Shared())
        >>> views = torch.randn(2, 20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> seen = look(networks, (views[0], views[0]), 25, nullcontext())
        >>> seen.alignment, seen.retrieval, 9 < seen.feature_rank < 16
        (0.0, 1.0, True)
    """
    n = len(views[0])
    online = networks.online
    with evaluating(networks), _same_random(views[0].device), autocast:
        features = online.encoder(torch.cat(views))  # [2n, F]
        embeddings = online.projector(features)  # [2n, D]
        predicted = embeddings if networks.predictor is None else networks.predictor(embeddings)
    # so few numbers are looked at faster here than on a device, which is waited for once
    features, embeddings, predicted = (x.float().cpu() for x in (features, embeddings, predicted))
    first, second = F.normalize(embeddings, dim=1).split(n)  # [n, D] each
    prediction = F.cosine_similarity(embeddings, predicted)
    matrices: list[Tensor] = [p for p in networks.online.parameters() if p.dim() > 1]
    similar = first @ second.T  # [n, n]
    figures = torch.stack(
        [
            *_shape(features[:n]),
            *_shape(embeddings[:n]),
            (first - second).square().sum(1).mean(),
            uniformity(first),
            (similar.argmax(1) == torch.arange(n)).float().mean(),
            prediction.mean(),
            torch.stack(torch._foreach_norm(matrices)).square().sum().sqrt().cpu(),
        ]
    ).tolist()
    return Look(step, *(round(x, 6) if math.isfinite(x) else x for x in figures))


def _shape(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(spread, cosine, rank) of vectors [n, F]; their lengths do not matter to any."""
    x = F.normalize(x, dim=1)
    n = len(x)
    spread = x.std(0, correction=0).mean() * math.sqrt(x.shape[1])
    cosine = (x.sum(0).square().sum() - x.square().sum()) / (n * (n - 1))
    return spread, cosine, effective_rank(x)


def effective_rank(x: Tensor) -> Tensor:
    """How many directions vectors [n, F] take up around their mean, a scalar: the exponential of the entropy of the shares that
    the singular values have in their sum. From 1, all on one line, to the lesser of n - 1 and F; 1 where all are one point.

    From the products of the n vectors, [n, n], which is cheap for a few.

    Source: Roy and Vetterli, 2007; Garrido et al., 2023 (RankMe), who do not take the mean away.

    Example:
        >>> round(float(effective_rank(torch.eye(5))), 3), round(float(effective_rank(torch.ones(5, 3))), 3)
        (4.0, 1.0)
    """
    device, x = x.device, x.detach().double().cpu()
    x = x - x.mean(0)
    gram = x @ x.T  # [n, n]
    if not bool(torch.isfinite(gram).all()):
        return torch.tensor(math.nan, device=device)
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    total = values.sum()
    if float(total) < 1e-9:
        return torch.tensor(1.0, device=device)
    shares = values / total
    return torch.exp(-torch.xlogy(shares, shares).sum()).float().to(device)


def uniformity(x: Tensor) -> Tensor:
    """How evenly unit vectors [n, D] lie on the sphere, a scalar: log of the mean over pairs of exp(-2 distance^2).

    0 where all are one point; about -4 for directions at random in many dimensions.

    Source: Wang and Isola, 2020, eq. 5 with t = 2.

    Example:
        >>> round(float(uniformity(torch.ones(3, 1))), 3), round(float(uniformity(torch.eye(3))), 3)
        (0.0, -4.0)
    """
    n = len(x)
    kernel = torch.exp(-2.0 * (2.0 - 2.0 * x @ x.T).clamp_min(0.0))
    return torch.log((kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1)))


@contextmanager
def _same_random(device: torch.device) -> Iterator[None]:
    """An encoder that draws in evaluation mode too does not change what training draws."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
