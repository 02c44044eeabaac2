"""Losses on the statistics of a batch: dimensions shall carry something (variance) and each something of its own (decorrelation).

Embeddings are taken as they are, not normalised. Legend: V online views, B images, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives.embeddings import check_pair, exact, full
from smallview.records import Embeddings

VARIANCE_EPSILON = 1e-4
WHITEN_EPSILON = 1e-5


def _variance(z: Tensor) -> Tensor:
    """The mean over dimensions of how much the standard deviation (unbiased) lies under 1; z [B, D] -> scalar."""
    return F.relu(1.0 - torch.sqrt(z.var(0) + VARIANCE_EPSILON)).mean()


def _covariance(z: Tensor) -> Tensor:
    """The sum of the squared covariances of different dimensions, over D; z [B, D] -> scalar."""
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)  # [D, D]
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


def _barlow(z0: Tensor, z1: Tensor, off_diagonal: float) -> Tensor:
    def whiten(z: Tensor) -> Tensor:
        return (z - z.mean(0)) * torch.rsqrt(z.var(0, correction=0) + WHITEN_EPSILON)

    correlation = whiten(z0).T @ whiten(z1) / len(z0)  # [D, D]
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1.0).square().sum() + off_diagonal * off


def vicreg(
    z0: Tensor, z1: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> dict[str, Tensor]:
    """VICReg of two views [B, D]: the weighted terms invariance, variance, covariance, and their total; scalars.

    variance is the mean of both views' hinges, so 25 means 12.5 each, as in the authors' code; some other codes add the two, which is
    another loss at the same number. covariance adds the two views.

    Source: Bardes et al., 2022, eq. 6.

    Raises:
        ValueError: shapes that do not fit, fewer than two pictures, or numbers that are not finite.

    Example:
        >>> terms = vicreg(torch.zeros(4, 2), torch.zeros(4, 2))
        >>> round(float(terms["variance"]), 2), float(terms["covariance"])
        (24.75, 0.0)
    """
    check_pair(z0, z1, "the first view", "the second", least=2)
    with exact(z0.device):
        z0, z1 = full(z0), full(z1)
        terms = {
            "invariance": invariance * F.mse_loss(z0, z1),
            "variance": variance * (_variance(z0) + _variance(z1)) / 2,
            "covariance": covariance * (_covariance(z0) + _covariance(z1)),
        }
    return {**terms, "total": torch.stack(list(terms.values())).sum()}


def barlow_twins(z0: Tensor, z1: Tensor, *, off_diagonal: float = 0.0051) -> Tensor:
    """Barlow Twins of two views [B, D]: their cross-correlation shall be the identity; a scalar.

    Source: Zbontar et al., 2021, eq. 1.

    Raises:
        ValueError: shapes that do not fit, fewer than two pictures, or numbers that are not finite.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> float(barlow_twins(z, z)) < 1e-8
        True
    """
    check_pair(z0, z1, "the first view", "the second", least=2)
    with exact(z0.device):
        return _barlow(full(z0), full(z1), off_diagonal)


@dataclass(frozen=True)
class BarlowTwins:
    """Barlow Twins as a term: the mean over pairs of an online and another target view."""

    off_diagonal: float = 0.0051

    def __post_init__(self) -> None:
        if not self.off_diagonal >= 0.0:
            raise ValueError(f"off_diagonal is {self.off_diagonal}; wanted a number of 0 or more")

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        with exact(embeddings.online.device):
            online, target = full(embeddings.online), full(embeddings.target)
            return torch.stack([_barlow(online[v], target[t], self.off_diagonal) for v, t in embeddings.pairs()]).mean()


@dataclass(frozen=True)
class MeanSquared:
    """VICReg's invariance as a term: the mean squared difference, mean over pairs of an online and another target view."""

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        online, target = full(embeddings.online), full(embeddings.target)
        return torch.stack([F.mse_loss(online[v], target[t]) for v, t in embeddings.pairs()]).mean()


@dataclass(frozen=True)
class Variance:
    """VICReg's variance as a term: the mean over online views, which is the authors' halved sum of two."""

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        with exact(embeddings.online.device):
            return torch.stack([_variance(full(z)) for z in embeddings.online]).mean()


@dataclass(frozen=True)
class Covariance:
    """VICReg's covariance as a term: twice the mean over online views, which is the authors' sum of two."""

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        with exact(embeddings.online.device):
            return 2.0 * torch.stack([_covariance(full(z)) for z in embeddings.online]).mean()
