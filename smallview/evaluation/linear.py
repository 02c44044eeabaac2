"""The linear probe: multinomial logistic regression on standardised frozen features, by L-BFGS.

Legend: N training pictures, Q test pictures, F features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.seeds import generator

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: weight [F, K], bias [K], the standardisation [F], and the penalty that the held-out tenth chose."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    penalty: float

    def predict(self, features: Tensor) -> Tensor:
        """Classes int64 [Q] of features [Q, F]."""
        return (((features - self.mean) / self.std) @ self.weight + self.bias).argmax(1)


def fit_logistic(
    features: Tensor, labels: Tensor, classes: int, penalty: float, start: tuple[Tensor, Tensor] | None = None, steps: int = 200
) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2 over weight [F, K] and bias [K]."""
    weight = torch.zeros(features.shape[1], classes) if start is None else start[0].clone()
    bias = torch.zeros(classes) if start is None else start[1].clone()
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, labels) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


def held_out(labels: Tensor, part: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, held out) positions: a seeded `part` of every class with at least two pictures, so no class goes missing.

    Example:
        >>> rest, held = held_out(torch.tensor([0] * 10 + [1] * 10), 0.1, seed=0)
        >>> len(rest), len(held)
        (18, 2)
    """
    draw = generator(seed, "held out")
    take = []
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label)[:, 0].numpy()
        n = min(len(members) - 1, max(1, round(part * len(members)))) if len(members) > 1 else 0
        take.append(draw.permutation(members)[:n])
    held = np.sort(np.concatenate(take)) if take else np.zeros(0, np.int64)
    rest = np.setdiff1d(np.arange(len(labels)), held)
    return torch.from_numpy(rest), torch.from_numpy(held)


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation) [F] of features [N, F]; the deviation of a feature that does not vary is taken as 1."""
    mean, std = features.mean(0), features.std(0, correction=0)
    return mean, torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))


def fit_linear(
    features: Tensor, labels: Tensor, classes: int, *, seed: int, penalties: tuple[float, ...] = PENALTIES
) -> LinearProbe:
    """Fit the probe: standardise, choose the penalty on a held-out tenth of the training part, refit on all of it.

    features [N, F], labels int64 [N]. The test part is never looked at. Of equal penalties the strongest wins.

    Example:
        >>> x = torch.tensor([[-1.0], [-0.9], [1.0], [0.9]] * 5)
        >>> probe = fit_linear(x, torch.tensor([0, 0, 1, 1] * 5), 2, seed=0)
        >>> probe.predict(torch.tensor([[-2.0], [2.0]])).tolist()
        [0, 1]
    """
    mean, std = standardisation(features)
    x = (features - mean) / std
    rest, held = held_out(labels, 0.1, seed)
    ordered = sorted(penalties, reverse=True)
    chosen = ordered[0]
    if len(held) and len(ordered) > 1:
        best = -1.0
        start = None
        for penalty in ordered:  # from the strongest on: each fit starts where the last one ended
            start = fit_logistic(x[rest], labels[rest], classes, penalty, start)
            score = float(((x[held] @ start[0] + start[1]).argmax(1) == labels[held]).float().mean())
            if score > best:
                best, chosen = score, penalty
    weight, bias = fit_logistic(x, labels, classes, chosen)
    return LinearProbe(weight, bias, mean, std, chosen)
