"""Few labels: the same probe for every contestant, tuned on the few labeled pictures alone, over many draws.

Legend: N training pictures, Q test pictures, F features, K classes.
"""

from __future__ import annotations

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

PENALTIES = tuple(10.0**e for e in range(-3, 5))


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


def ridge_scores(x: Tensor, y: Tensor, z: Tensor) -> tuple[float, Tensor]:
    """Ridge regression to one-hot classes y [n, K] from x [n, F], the penalty by exact leave-one-out; scores of z [Q, F].

    Everything happens in the smaller of the spaces of n pictures and of F features. -> penalty, scores [Q, K].

    Source: Golub, Heath and Wahba, 1979 (leave-one-out from the hat matrix).
    """
    shift = y.mean(0)
    target = (y - shift).double()
    many = len(x) > x.shape[1]
    values, vectors = torch.linalg.eigh((x.T @ x if many else x @ x.T).double())
    values = values.clamp(min=0)
    # the mean over pictures, whichever space it is counted in
    scale = float((values.sum() / len(x)).clamp(min=1e-12))
    turned = x.double() @ vectors if many else vectors  # [n, F] or [n, n]
    right = turned.T @ target
    best, chosen = float("inf"), PENALTIES[-1]
    for penalty in sorted(PENALTIES, reverse=True):
        inverse = 1.0 / (values + penalty * scale)
        if many:  # hat = turned inverse turned'
            error = target - turned @ (inverse[:, None] * right)
            left_out = error / (1.0 - (turned.square() @ inverse))[:, None].clamp(min=1e-12)
        else:  # 1 - hat is penalty times the inverse, which cancels
            left_out = (turned @ (inverse[:, None] * right)) / (turned.square() @ inverse)[:, None]
        loss = float(left_out.square().mean())
        if loss < best * (1.0 - 1e-9):
            best, chosen = loss, penalty
    inverse = 1.0 / (values + chosen * scale)
    weights = (vectors @ (inverse[:, None] * right)).float()
    return chosen, (z @ weights if many else (z @ x.T) @ weights) + shift


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

    Features are centred on the labeled pictures' mean and divided by their one overall deviation, a penalty is chosen by
    leave-one-out among the labeled pictures: nothing but them is used.
    """
    scores = []
    for drawn in draws:
        chosen = torch.from_numpy(drawn)
        x = train[chosen]
        mean = x.mean(0)
        std = (x - mean).square().mean().sqrt().clamp(min=1e-12)  # one number: few pictures cannot tell F deviations
        a, b = (x - mean) / std, (test - mean) / std
        if probe == "ridge":
            _, predicted = ridge_scores(a, F.one_hot(train_labels[chosen], classes).float(), b)
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
