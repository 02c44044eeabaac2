"""What a prediction is worth, by the kind of target: classes, several labels a picture, or numbers.

Legend: Q pictures, K classes or labels, D numbers a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["classes", "labels", "numbers"]
UNEVEN = 1.5  # the largest class over the smallest, from which on the mean over classes is told as well


@dataclass(frozen=True)
class Figure:
    """What a protocol measured: the sentence that repeats it, a metric's name, its value, and the settings that were chosen.

    interval: half the width of the value's 95 % interval, over test pictures or draws. parts: the same metric for parts of the whole,
    such as each corruption. per_picture: bool [Q], which test pictures were right, where that can be said.
    """

    protocol: str
    metric: str
    value: float
    settings: dict[str, Any] = field(default_factory=dict)
    interval: float | None = None
    per_picture: Tensor | None = field(default=None, repr=False)


def told_once(protocols: Sequence[str]) -> tuple[list[str], str]:
    """What is particular to each protocol, and the end that all of them share, which need not be said for each.

    Example:
        >>> told_once(["knn k=20; 512 features; test a", "linear; 512 features; test a"])
        (['knn k=20', 'linear'], '512 features; test a')
        >>> told_once(["knn k=20; 512 features"])
        (['knn k=20; 512 features'], '')
    """
    parts = [text.split("; ") for text in protocols]
    most = min(map(len, parts), default=1) - 1
    same = len(parts) > 1 and next((n for n in range(most) if len({each[-1 - n] for each in parts}) > 1), most)
    if not same:
        return list(protocols), ""
    return ["; ".join(each[:-same]) for each in parts], "; ".join(parts[0][-same:])


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Top-1 in percent of predicted and true classes int64 [Q]."""
    return round(100.0 * float((predicted == labels).double().mean()), 4)


def mean_class_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Accuracy of each class that the test part has, in percent, and their mean: no class counts more for being large.

    Example:
        >>> mean_class_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
        50.0
    """
    right = (predicted == labels).double()
    per_class = [float(right[labels == label].mean()) for label in torch.unique(labels)]
    return round(100.0 * float(np.mean(per_class)), 4)


def mean_average_precision(scores: Tensor, truth: Tensor) -> float:
    """Mean over labels of the average precision, in percent; scores float [Q, K], truth bool [Q, K].

    Labels that no test picture has are left out. Pictures of equal score count as one step, so their order plays no part.

    Source: Salton and McGill, 1983; no interpolation.

    Example:
        >>> mean_average_precision(torch.tensor([[0.9], [0.8], [0.1]]), torch.tensor([[True], [False], [True]]))
        83.3333
    """
    values = []
    for k in range(truth.shape[1]):
        true = truth[:, k].numpy().astype(np.float64)
        if not true.any():
            continue
        score = scores[:, k].double().numpy()
        order = np.argsort(-score, kind="stable")
        ends = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)
        hits = np.cumsum(true[order])[ends]
        gained = np.diff(hits, prepend=0.0)
        values.append(float((gained * hits / (ends + 1)).sum() / true.sum()))
    return round(100.0 * float(np.mean(values)), 4) if values else float("nan")


def r_squared(values: Tensor, truth: Tensor) -> float:
    """R2 of predicted numbers [Q, D]: 1 is exact, 0 is no better than their mean; the mean over D.

    Example:
        >>> r_squared(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]]))
        1.0
    """
    truth = truth.double()
    wrong = (values.double() - truth).square().sum(0)
    spread = (truth - truth.mean(0)).square().sum(0)
    return round(float((1.0 - wrong / spread.clamp(min=1e-300)).mean()), 6)


def half_width(percent: float, n: int) -> float:
    """Half the width of Wilson's 95 % interval of an accuracy in percent on n test pictures, in points.

    Source: Wilson, 1927.

    Example:
        >>> round(half_width(90.0, 10_000), 2), round(half_width(90.0, 100), 1)
        (0.59, 6.0)
    """
    z, p = 1.96, percent / 100.0
    return 100.0 * z / (1.0 + z * z / n) * math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))


def t_factor(n: int) -> float:
    """What 95 % of n draws' means lie within, in standard errors: Student's, which is 1.96 only for many.

    Example:
        >>> round(t_factor(20), 3), round(t_factor(3), 3)
        (2.093, 4.303)
    """
    if n < 2:
        return 0.0
    from scipy.stats import t  # half a second, and not every evaluation needs it

    return float(t.ppf(0.975, n - 1))


def figures(protocol: str, prefix: str, kind: Kind, predicted: Tensor, truth: Tensor, settings: dict[str, Any]) -> list[Figure]:
    """The figures of one prediction: classes int64 [Q], scores of labels [Q, K], or numbers [Q, D]."""
    if kind == "labels":
        return [Figure(protocol, f"{prefix} mAP %", mean_average_precision(predicted, truth), settings)]
    if kind == "numbers":
        return [Figure(protocol, f"{prefix} R2", r_squared(predicted, truth), settings)]
    top = accuracy(predicted, truth)
    out = [
        Figure(
            protocol, f"{prefix} top-1 %", top, settings, interval=half_width(top, len(truth)), per_picture=predicted == truth
        )
    ]
    counts = torch.unique(truth, return_counts=True)[1]
    if len(counts) > 1 and float(counts.max()) > UNEVEN * float(counts.min()):
        out.append(Figure(protocol, f"{prefix} mean per class %", mean_class_accuracy(predicted, truth), settings))
    return out
