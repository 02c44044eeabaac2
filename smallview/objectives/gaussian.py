"""LeJEPA: embeddings shall be distributed as a standard Gaussian, seen from random directions; and views shall meet at their centre.

Legend: V online views, L target views, B images, D dimensions, T directions (slices), Q integration points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives.embeddings import check_pair, exact, full
from smallview.records import Embeddings
from smallview.seeds import derive

POINTS = 17
LAST_POINT = 3.0


def _directions(d: int, slices: int, key: tuple[int, int], like: Tensor) -> Tensor:
    """Random unit vectors, [D, T], the same on every process."""
    source = torch.Generator().manual_seed(derive(key[0], "slices", key[1]))
    return F.normalize(torch.randn(d, slices, generator=source, dtype=torch.float64), dim=0).to(like)


def _epps_pulley(x: Tensor) -> Tensor:
    """The Epps-Pulley statistic of every column of x [B, T] against N(0, 1), -> [T].

    B times the integral over t of |mean e^(itx) - e^(-t^2/2)|^2 e^(-t^2/2), by the trapezoid rule on [0, 3], doubled for symmetry.
    """
    t = torch.linspace(0.0, LAST_POINT, POINTS, dtype=x.dtype, device=x.device)  # [Q]
    step = LAST_POINT / (POINTS - 1)
    rule = torch.full_like(t, 2.0 * step)
    rule[0] = rule[-1] = step
    gauss = torch.exp(-0.5 * t.square())
    angles = x[:, :, None] * t  # [B, T, Q]
    error = (angles.cos().mean(0) - gauss).square() + angles.sin().mean(0).square()  # [T, Q]
    return len(x) * (error @ (rule * gauss))


def sigreg(z: Tensor, *, slices: int = 256, key: tuple[int, int] = (0, 0)) -> Tensor:
    """SIGReg of embeddings z [B, D]: the mean Epps-Pulley statistic over random directions; a scalar, near 1 for Gaussian ones.

    key: (seed, step), which the directions are drawn from.

    Source: Balestriero and LeCun, 2025 (LeJEPA).

    Raises:
        ValueError: z is not [B, D] with two rows or more, or holds numbers that are not finite.

    Example:
        >>> z = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
        >>> bool(sigreg(z) < sigreg(2.0 * z))
        True
    """
    check_pair(z, z, "z", "itself", least=2)
    with exact(z.device):
        return SIGReg(slices).of(full(z), key)


@dataclass(frozen=True)
class SIGReg:
    """SIGReg as a term: the mean over online views.

    slices: random directions per step.
    """

    slices: int = 256

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise ValueError(f"slices is {self.slices}; wanted 1 or more random directions")

    def of(self, z: Tensor, key: tuple[int, int]) -> Tensor:
        """The statistic of z [B, D], a scalar."""
        return _epps_pulley(z @ _directions(z.shape[1], self.slices, key, z)).mean()

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        with exact(embeddings.online.device):
            return torch.stack([self.of(full(z), embeddings.key) for z in embeddings.online]).mean()


@dataclass(frozen=True)
class CentreInvariance:
    """Every online view towards the centre of the target views: the mean squared distance; a scalar.

    Source: Balestriero and LeCun, 2025 (LeJEPA).
    """

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        return (full(embeddings.online) - full(embeddings.target).mean(0)).square().mean()
