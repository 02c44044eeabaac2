"""Few labels: the same probe for every contestant, tuned on the few labeled pictures alone, over many draws.

Legend: N training pictures, Q test pictures, F features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.evaluation.metrics import t_factor
from smallview.seeds import generator

RIDGE_PENALTIES = tuple(math.pow(10.0, e / 2) for e in range(-6, 5))
RIDGE_PENALTY = math.pow(10.0, -0.5)  # where labels cannot tell: no better one over encoders, pixels and four sets
SHARPNESS = tuple(math.pow(10.0, e / 4) for e in range(8))


@dataclass(frozen=True)
class Lowshot:
    """Accuracy in percent over the draws: mean, standard deviation and half the width of the mean's 95 % interval."""

    mean: float
    std: float
    interval: float
    draws: int


def draw_labels(labels: Tensor, amount: int | float, seed: int, which: int) -> npt.NDArray[np.int64]:
    """Positions of `amount` pictures of each class, or of that share of each and one at least where it is a float.

    Draw number `which` is the same for every contestant.

    Raises:
        ValueError: a class with fewer pictures.
    """
    share = isinstance(amount, float)
    random = generator(seed, "lowshot", round(1e6 * amount) if share else int(amount), which)
    chosen = []
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label)[:, 0].numpy()
        count = max(1, round(amount * len(members))) if share else int(amount)
        if len(members) < count:
            raise ValueError(f"class {label} has {len(members)} training pictures; wanted at least {count}")
        chosen.append(random.permutation(members)[:count])
    return np.concatenate(chosen)


class Ridge:
    """Ridge regression with an intercept to one-hot classes, for every penalty at once, from x [n, F] of mean zero and labels [n].

    Penalties are in units of the features' mean square over pictures. Everything happens in the smaller of the spaces of n and of F, in float64.

    Source: Allen, 1974 (PRESS: what is left out by the hat matrix, which the intercept is a part of).

    Example:
        >>> ridge = Ridge(torch.tensor([[-1.0], [-0.8], [0.8], [1.0]]), torch.tensor([0, 0, 1, 1]), 2)
        >>> ridge.scores(torch.tensor([[-2.0], [2.0]]), 0.1).argmax(1).tolist()
        [0, 1]
        >>> ridge.left_out(0.1).argmax(1).tolist()
        [0, 0, 1, 1]
    """

    def __init__(self, x: Tensor, labels: Tensor, classes: int) -> None:
        wide = x.double()
        self.x = wide
        self.y: Tensor = F.one_hot(labels, classes).double()
        self.shift = self.y.mean(0)
        n = len(x)
        self.many = n > x.shape[1]
        if self.many:
            values, self.vectors = torch.linalg.eigh(wide.T @ wide)
            self.turned = wide @ self.vectors
        else:  # the constant is an eigenvector; made the largest, it is told from others of no weight, and is left away
            gram = wide @ wide.T
            values, vectors = torch.linalg.eigh(gram + (1.0 + 2.0 * gram.trace()) / n)
            values, self.vectors = values[:-1], vectors[:, :-1]
            self.turned = self.vectors
        self.values = values.clamp(min=0)
        self.scale = float((self.values.sum() / n).clamp(min=1e-12))
        self.right = self.turned.T @ (self.y - self.shift)

    def left_out(self, penalty: float) -> Tensor:
        """Scores [n, K] of every picture by the fit to all others."""
        inverse = 1.0 / (self.values + penalty * self.scale)
        fitted, hat = self.turned @ (inverse[:, None] * self.right), self.turned.square() @ inverse
        residual, rest = self.y - self.shift - fitted, (1.0 - 1.0 / len(self.y) - hat).clamp(min=1e-12)
        # in the pictures' own directions `fitted` and `hat` are the residual and the rest over the penalty, which cancels
        scores: Tensor = self.y - (residual / rest[:, None] if self.many else fitted / hat[:, None])
        return scores

    def scores(self, z: Tensor, penalty: float) -> Tensor:
        """Scores [Q, K] of z [Q, F]."""
        inverse = 1.0 / (self.values + penalty * self.scale)
        weights = self.vectors @ (inverse[:, None] * self.right)
        scores: Tensor = z @ (weights if self.many else self.x.T @ weights).to(z.dtype) + self.shift.to(z.dtype)
        return scores


def choose_penalty(ridge: Ridge, labels: Tensor) -> float:
    """The penalty by the log-loss of the left-out scores at their best sharpness: nearest to `RIDGE_PENALTY` of those no worse than chance.

    No worse than chance: the mean difference to the least loss is within its standard error. The squared error will not do: it judges the
    size of the scores, and with few labels that asks for far too large a penalty. A class with one picture is unknown where that one is
    left out, so these do not vote.

    Source: Breiman et al., 1984 (the one-standard-error rule).
    """
    votes = torch.bincount(labels, minlength=ridge.y.shape[1])[labels] > 1
    if not bool(votes.any()):
        return RIDGE_PENALTY
    losses = []
    for penalty in RIDGE_PENALTIES:
        scores = ridge.left_out(penalty)[votes]
        each = [F.cross_entropy(sharpness * scores, labels[votes], reduction="none") for sharpness in SHARPNESS]
        losses.append(min(each, key=lambda loss: float(loss.mean())))
    least = min(losses, key=lambda loss: float(loss.mean()))
    doubt = 1.0 / math.sqrt(len(least))
    near = [
        penalty
        for penalty, loss in zip(RIDGE_PENALTIES, losses, strict=True)
        if float((loss - least).mean()) <= doubt * float((loss - least).std()) + 1e-6
    ]
    return min(near, key=lambda penalty: abs(math.log(penalty / RIDGE_PENALTY)))


def prototype_scores(x: Tensor, labels: Tensor, z: Tensor, classes: int) -> Tensor:
    """Cosine of z [Q, F] with the mean of each class of x [n, F]; classes without a picture score lowest. -> [Q, K].

    Source: Snell et al., 2017 (prototypes), by cosine.
    """
    y = F.one_hot(labels, classes).to(x.dtype)
    scores = F.normalize(z, dim=1) @ F.normalize(y.T @ F.normalize(x, dim=1), dim=1).T
    return scores.masked_fill(y.sum(0) == 0, -2.0)


def few_labels(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    draws: Sequence[npt.NDArray[np.int64]],
    probe: Literal["ridge", "prototypes"],
    classes: int,
) -> Lowshot:
    """Accuracy of a probe that sees only the training pictures of each draw.

    Features are centred on the labeled pictures' mean and divided by their one overall deviation, the ridge's penalty is chosen by
    leaving one of the labeled pictures out: nothing but them is used.
    """
    scores = []
    for drawn in draws:
        chosen = torch.from_numpy(drawn)
        x = train[chosen]
        mean = x.mean(0)
        std = (x - mean).square().mean().sqrt().clamp(min=1e-12)  # one number: few pictures cannot tell F deviations
        a, b = (x - mean) / std, (test - mean) / std
        if probe == "ridge":
            ridge = Ridge(a, train_labels[chosen], classes)
            predicted = ridge.scores(b, choose_penalty(ridge, train_labels[chosen]))
        else:
            predicted = prototype_scores(a, train_labels[chosen], b, classes)
        scores.append(100.0 * float((predicted.argmax(1) == test_labels).double().mean()))
    values = np.asarray(scores)
    spread = float(values.std(ddof=1)) if len(draws) > 1 else 0.0
    return Lowshot(float(values.mean()), spread, t_factor(len(draws)) * spread / float(np.sqrt(len(draws))), len(draws))


def lowshot(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    per_class: int,
    draws: int,
    seed: int,
    classes: int,
) -> Lowshot:
    """Accuracy of a ridge probe from `per_class` labels of each class, over `draws` draws."""
    chosen = [draw_labels(train_labels, per_class, seed, which) for which in range(draws)]
    return few_labels(train, train_labels, test, test_labels, chosen, "ridge", classes)
