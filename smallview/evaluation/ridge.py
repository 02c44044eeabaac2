"""A linear probe in closed form: ridge regression on one-hot classes, for figures that must cost next to nothing.

Legend: N training pictures, Q queries, F features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.evaluation.linear import standardisation


@dataclass(frozen=True)
class RidgeProbe:
    """Weight [F, K] and bias [K] on features standardised by mean and std [F]."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Classes int64 [Q] of features [Q, F]."""
        scores: Tensor = ((features.double() - self.mean) / self.std) @ self.weight + self.bias
        return scores.argmax(1)


@torch.no_grad()
def fit_ridge(features: Tensor, labels: Tensor, classes: int, penalty: float = 0.1) -> RidgeProbe:
    """The probe that minimises the mean squared error to the one-hot classes plus penalty * |weight|^2; bias not penalised.

    features [N, F], labels int64 [N]. Solved in float64, by the smaller of the systems [F, F] and [N, N].

    Source: Hoerl and Kennard, 1970; the dual form Saunders et al., 1998.

    Raises:
        ValueError: a penalty that is not above 0.

    Example:
        >>> probe = fit_ridge(torch.tensor([[-1.0], [-0.9], [1.0], [0.9]]), torch.tensor([0, 0, 1, 1]), 2)
        >>> probe.predict(torch.tensor([[-2.0], [2.0]])).tolist()
        [0, 1]
    """
    if not penalty > 0.0:
        raise ValueError(f"penalty is {penalty}; wanted a number above 0")
    wide = features.double()
    mean, std = standardisation(wide)
    x = (wide - mean) / std
    y = F.one_hot(labels, classes).double()
    bias = y.mean(0)
    n, width = x.shape
    few = n < width
    system = x @ x.T if few else x.T @ x
    weight = x.T @ _solve(system, n * penalty, y - bias) if few else _solve(system, n * penalty, x.T @ (y - bias))
    return RidgeProbe(weight, bias, mean, std)


def _solve(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """(matrix + ridge I)^-1 right, for a symmetric matrix without negative eigenvalues."""
    matrix.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
