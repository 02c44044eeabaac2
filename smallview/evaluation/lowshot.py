"""Few labels: the same probe for every contestant, tuned on the few labeled pictures alone, over many draws.

Legend: N training pictures, Q test pictures, F features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.seeds import generator

PENALTIES = tuple(10.0**e for e in range(-3, 5))


@dataclass(frozen=True)
class Lowshot:
    """Accuracy in percent over the draws: mean, standard deviation and half the width of the mean's 95 % interval."""

    mean: float
    std: float
    interval: float
    draws: int


def draw_labels(labels: Tensor, per_class: int, seed: int, which: int) -> npt.NDArray[np.int64]:
    """Positions of `per_class` pictures of each class; draw number `which` is the same for every contestant.

    Raises:
        ValueError: a class with fewer pictures.
    """
    random = generator(seed, "lowshot", per_class, which)
    chosen = []
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label)[:, 0].numpy()
        if len(members) < per_class:
            raise ValueError(f"class {label} has {len(members)} training pictures; wanted at least {per_class}")
        chosen.append(random.permutation(members)[:per_class])
    return np.concatenate(chosen)


def ridge_scores(x: Tensor, y: Tensor, z: Tensor) -> tuple[float, Tensor]:
    """Ridge regression to one-hot classes y [n, K] from x [n, F], the penalty by exact leave-one-out; scores of z [Q, F].

    With n labeled pictures everything happens in their n x n inner products, so F may be large. -> penalty, scores [Q, K].

    Source: Golub, Heath and Wahba, 1979 (leave-one-out from the hat matrix).
    """
    shift = y.mean(0)
    kernel = (x @ x.T).double()
    values, vectors = torch.linalg.eigh(kernel)
    scale = float(values.clamp(min=0).mean().clamp(min=1e-12))
    target = (y - shift).double()
    best, chosen = float("inf"), PENALTIES[-1]
    for penalty in sorted(PENALTIES, reverse=True):
        inverse = vectors @ torch.diag(1.0 / (values.clamp(min=0) + penalty * scale)) @ vectors.T
        left_out = (inverse @ target) / torch.diagonal(inverse)[:, None]  # the error of each picture when it is left out
        error = float(left_out.square().mean())
        if error < best * (1.0 - 1e-9):
            best, chosen = error, penalty
    inverse = vectors @ torch.diag(1.0 / (values.clamp(min=0) + chosen * scale)) @ vectors.T
    weights = (inverse @ target).float()
    return chosen, (z @ x.T) @ weights + shift


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
    """Accuracy of a ridge probe from `per_class` labels of each class, over `draws` draws.

    Features are centred on the labeled pictures' mean and divided by their one overall deviation, the penalty is chosen by
    leave-one-out among the labeled pictures: nothing but them is used.
    """
    scores = []
    for which in range(draws):
        chosen = torch.from_numpy(draw_labels(train_labels, per_class, seed, which))
        x = train[chosen]
        mean = x.mean(0)
        std = (x - mean).square().mean().sqrt().clamp(min=1e-12)  # one number: few pictures cannot tell F deviations
        a, b = (x - mean) / std, (test - mean) / std
        y = torch.nn.functional.one_hot(train_labels[chosen], classes).float()
        _, predicted = ridge_scores(a, y, b)
        scores.append(100.0 * float((predicted.argmax(1) == test_labels).float().mean()))
    values = np.asarray(scores)
    spread = float(values.std(ddof=1)) if draws > 1 else 0.0
    return Lowshot(float(values.mean()), spread, 1.96 * spread / float(np.sqrt(draws)), draws)
