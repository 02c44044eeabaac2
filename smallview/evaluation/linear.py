"""The linear probe on standardised frozen features: logistic regression by L-BFGS in coordinates where its valley is round.

Features need not fit into memory: every sum runs over pieces of rows. Legend: N training pictures, Q test pictures, F features,
K classes or labels, D numbers a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smallview.seeds import generator

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PIECE = 4096  # rows at a time
HELD = 2**30  # bytes of standardised features up to which they are kept beside the given ones


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: weight [F, K], bias [K], the standardisation [F], and the penalty that the held-out tenth chose."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    penalty: float

    def scores(self, features: Tensor) -> Tensor:
        """Scores [Q, K] of features [Q, F], or the numbers themselves."""
        pieces = [((part - self.mean) / self.std) @ self.weight + self.bias for part in features.split(PIECE)]
        return torch.cat(pieces) if pieces else torch.zeros(0, len(self.bias))

    def predict(self, features: Tensor) -> Tensor:
        """Classes int64 [Q] of features [Q, F]."""
        return self.scores(features).argmax(1)


@dataclass(frozen=True)
class _Rows:
    """Standardised features [N, F] of chosen rows, in pieces."""

    features: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    which: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features if self.which is None else self.which)

    def take(self, which: Tensor) -> _Rows:
        return _Rows(self.features, self.mean, self.std, which if self.which is None else self.which[which])

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self), PIECE):
            where = slice(start, start + PIECE)
            part = self.features[where] if self.which is None else self.features[self.which[where]]
            if self.mean is not None and self.std is not None:
                part = (part - self.mean) / self.std
            yield where, part


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation) [F] of features [N, F]; the deviation of a feature that does not vary is taken as 1."""
    n = max(1, len(features))
    mean = sum((part.sum(0, dtype=torch.float64) for part in features.split(PIECE)), torch.zeros(())) / n
    square = sum(((part - mean).square().sum(0) for part in features.split(PIECE)), torch.zeros(())) / n
    std = torch.as_tensor(square).sqrt().to(features.dtype)
    return torch.as_tensor(mean).to(features.dtype), torch.where(
        std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std)
    )


def gram(rows: _Rows) -> Tensor:
    """Mean outer product of the rows, float64 [F, F]."""
    total = torch.zeros(rows.features.shape[1], rows.features.shape[1], dtype=torch.float64)
    for _, part in rows.pieces():
        total += part.T @ part
    return total / max(1, len(rows))


def _slope(logits: Tensor, target: Tensor) -> tuple[float, Tensor]:
    """The summed cross-entropy of logits [n, K] and its gradient; target int64 [n], or bool [n, K] for a loss of each label."""
    if target.dim() == 1:
        norm = logits.logsumexp(1)
        loss = float((norm - logits.gather(1, target[:, None])[:, 0]).sum())
        return loss, (logits - norm[:, None]).exp_().scatter_add_(1, target[:, None], -logits.new_ones(len(logits), 1))
    truth = target.to(logits.dtype)
    return float((torch.nn.functional.softplus(logits) - logits * truth).sum()), logits.sigmoid().sub_(truth)


def fit_logistic(
    features: Tensor | _Rows,
    labels: Tensor,
    classes: int,
    penalty: float,
    start: tuple[Tensor, Tensor] | None = None,
    steps: int = 200,
    curvature: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2 over weight [F, K] and bias [K].

    labels int64 [N], or bool [N, K] for one logistic loss per label. L-BFGS walks in coordinates in which the bound on the
    loss's curvature, mean(x x') / 4 + penalty, is the identity: the minimum stays, the steps to it are few. curvature: mean(x x')
    [F, F], where it is known.

    Source: Böhning, 1992 (the bound).
    """
    rows = features if isinstance(features, _Rows) else _Rows(features)
    n, width = max(1, len(rows)), rows.features.shape[1]
    bound = 0.25 * (gram(rows) if curvature is None else curvature)
    bound.diagonal().add_(penalty + 1e-7)
    root = torch.linalg.cholesky(bound).float()  # weight = root'^-1 v
    weight, bias = (torch.zeros(width, classes), torch.zeros(classes)) if start is None else start
    v = (root.T @ weight).contiguous().requires_grad_(True)
    b = (0.5 * bias).requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [v, b],
        max_iter=steps,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> Tensor:
        w, c = torch.linalg.solve_triangular(root.T, v, upper=True), 2.0 * b
        loss, slope_w, slope_b = 0.0, torch.zeros_like(w), torch.zeros_like(c)
        for where, part in rows.pieces():
            more, slope = _slope(torch.addmm(c, part, w), labels[where])
            loss += more
            slope_w.addmm_(part.T, slope)
            slope_b += slope.sum(0)
        v.grad = torch.linalg.solve_triangular(root, slope_w / n + penalty * w, upper=False).contiguous()
        b.grad = 2.0 * slope_b / n
        return torch.tensor(loss / n + 0.5 * penalty * float(w.square().sum()), dtype=torch.float64)

    optimizer.step(closure)
    return torch.linalg.solve_triangular(root.T, v.detach(), upper=True), 2.0 * b.detach()


def fit_numbers(rows: _Rows, numbers: Tensor, penalty: float, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise mean squared error / 2 + penalty / 2 * |weight|^2 to numbers [N, D], in closed form: weight [F, D], bias [D]."""
    bias = numbers.double().mean(0)
    right = torch.zeros(rows.features.shape[1], numbers.shape[1], dtype=torch.float64)
    centre = torch.zeros(rows.features.shape[1], dtype=torch.float64)
    for where, part in rows.pieces():
        right += part.double().T @ (numbers[where].double() - bias)
        centre += part.sum(0, dtype=torch.float64)
    centre /= max(1, len(rows))  # the rows of a part are not centred on their own mean
    system = curvature - torch.outer(centre, centre)
    system.diagonal().add_(penalty)
    weight = torch.cholesky_solve(right / max(1, len(rows)), torch.linalg.cholesky(system))
    return weight.float(), (bias - centre @ weight).float()


def held_out(labels: Tensor, part: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, held out) positions: a seeded `part` of every class with at least two pictures, so no class goes missing.

    Pictures with several labels or numbers have no classes: of them, a part of all.

    Example:
        >>> rest, held = held_out(torch.tensor([0] * 10 + [1] * 10), 0.1, seed=0)
        >>> len(rest), len(held)
        (18, 2)
    """
    draw = generator(seed, "held out")
    take = []
    groups = labels if labels.dim() == 1 else torch.zeros(len(labels), dtype=torch.int64)
    for label in torch.unique(groups).tolist():
        members = torch.nonzero(groups == label)[:, 0].numpy()
        n = min(len(members) - 1, max(1, round(part * len(members)))) if len(members) > 1 else 0
        take.append(draw.permutation(members)[:n])
    held = np.sort(np.concatenate(take)) if take else np.zeros(0, np.int64)
    rest = np.setdiff1d(np.arange(len(labels)), held)
    return torch.from_numpy(rest), torch.from_numpy(held)


def _held_groups(groups: Tensor, part: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, held out) positions, a seeded `part` of the groups whole; nothing held out where there is one group."""
    known = torch.unique(groups).numpy()
    n = min(len(known) - 1, max(1, round(part * len(known))))
    taken = torch.from_numpy(np.isin(groups.numpy(), generator(seed, "held out groups").permutation(known)[:n]))
    return torch.nonzero(~taken)[:, 0], torch.nonzero(taken)[:, 0]


def _loss(scores: Tensor, truth: Tensor, smooth: bool) -> float:
    """What is smallest for the best penalty: errors of classes, cross-entropy of labels, squared error of numbers.

    smooth: cross-entropy of classes too, for few groups tie in their errors.
    """
    if truth.dim() == 1 and smooth:
        return float(torch.nn.functional.cross_entropy(scores.double(), truth))
    if truth.dim() == 1:
        return float((scores.argmax(1) != truth).double().mean())
    if truth.dtype == torch.bool:
        return float(torch.nn.functional.binary_cross_entropy_with_logits(scores.double(), truth.double()))
    return float((scores.double() - truth.double()).square().mean())


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seed: int,
    penalties: tuple[float, ...] = PENALTIES,
    steps: int = 200,
    groups: Tensor | None = None,
) -> LinearProbe:
    """Fit the probe: standardise, choose the penalty on a held-out tenth of the training part, refit on all of it.

    features [N, F]; labels int64 [N], bool [N, K] (a logistic loss of each label), or float [N, D] (ridge regression). The test
    part is never looked at. Of equal penalties the strongest wins. groups int64 [N]: rows that belong together, such as the
    places of one picture; the tenth is then one of groups, whole.

    Example:
        >>> x = torch.tensor([[-1.0], [-0.9], [1.0], [0.9]] * 5)
        >>> probe = fit_linear(x, torch.tensor([0, 0, 1, 1] * 5), 2, seed=0)
        >>> probe.predict(torch.tensor([[-2.0], [2.0]])).tolist()
        [0, 1]
    """
    mean, std = standardisation(features)
    rows = _Rows(features, mean, std)
    if features.numel() * features.element_size() <= HELD:
        rows = _Rows((features - mean) / std)
    numbers = labels.is_floating_point()

    def fit(
        part: _Rows, truth: Tensor, penalty: float, start: tuple[Tensor, Tensor] | None, outer: Tensor
    ) -> tuple[Tensor, Tensor]:
        if numbers:
            return fit_numbers(part, truth, penalty, outer)
        return fit_logistic(part, truth, classes, penalty, start, steps, outer)

    rest, held = held_out(labels, 0.1, seed) if groups is None else _held_groups(groups, 0.1, seed)
    ordered = sorted(penalties, reverse=True)
    chosen = ordered[0]
    whole = gram(rows)
    if len(held) and len(ordered) > 1:
        outer = (len(rows) * whole - len(held) * gram(rows.take(held))) / max(1, len(rest))
        asked = torch.cat([part for _, part in rows.take(held).pieces()])
        best = float("inf")
        start = None
        part, truth = rows.take(rest), labels[rest]
        if rows.mean is None:
            part = _Rows(rows.features[rest])
        for penalty in ordered:  # from the strongest on: each fit starts where the last one ended
            start = fit(part, truth, penalty, start, outer)
            loss = _loss(asked @ start[0] + start[1], labels[held], smooth=groups is not None)
            if loss < best:
                best, chosen = loss, penalty
    weight, bias = fit(rows, labels, chosen, None, whole)
    return LinearProbe(weight, bias, mean, std, chosen)
