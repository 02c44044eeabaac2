"""How unsure a probe from the labels there are is of each picture: what to label next.

Legend: N pictures, F features, n of them with labels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.evaluation.closeness import directions
from smallview.evaluation.lowshot import SHARPNESS, Ridge, choose_penalty

SURE = 1e-4  # less doubt than this counts as this much: where a probe is sure of all, typical and diverse ones are still chosen


@dataclass(frozen=True, eq=False)
class Doubt:
    """For each of N pictures: unsure float32 [N], from 0, sure, to 1; weights float32 [N], how much it counts in `cover` that it is stood for.

    right: the part of the labeled pictures whose class the probe tells when they are left out, 0 to 1.
    """

    unsure: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    right: float


def enough(labels: npt.NDArray[np.int64]) -> bool:
    """Whether these labels (int64 [N], -1 where there is none) can tell how unsure a probe is: two classes have two each.

    Example:
        >>> enough(np.array([0, 0, 1, 1, -1])), enough(np.array([0, 0, 0, 1, -1]))
        (True, False)
    """
    return int((np.bincount(labels[labels >= 0], minlength=1) > 1).sum()) > 1


def doubt_of(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Doubt:
    """How unsure a probe is of each picture: one less the margin between its two likeliest classes.

    features [N, F]; labels int64 [N], -1 where there is none. The probe is a ridge regression on the labeled pictures' directions from the mean,
    its penalty and its sharpness chosen by leaving each of them out in turn. A picture weighs the root of its doubt times its expected 1 / n, for n
    labels of its class: classes with few labels are not starved, and the root since the probe itself is in doubt while labels are few.

    Source: Scheffer, Decomain and Wrobel, 2001 (the margin).

    Raises:
        DataError: features that are not finite. ValueError: labels that are not `enough`.

    Example:
        >>> x = np.array([[-2, 1], [-2, -1], [2, 1], [2, -1], [0, 1], [-1.5, 0]], np.float32)
        >>> doubt_of(x, np.array([0, 0, 1, 1, -1, -1])).unsure.argmax()
        np.int64(4)
    """
    if not enough(labels):
        raise ValueError("the labels are of fewer than two classes with two pictures each")
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    chances, right = likely(directions(features), torch.from_numpy(labels))
    first, second = chances.topk(2, 1).values.unbind(1)
    unsure = (second.exp() - torch.expm1(first)).clamp(
        0.0, 1.0
    )  # 1 - p would be rounded to 0 where it is sure, and the order lost
    rarity = chances.exp() @ torch.from_numpy(1.0 / counts)
    return Doubt(unsure.float().numpy(), (unsure.clamp(min=SURE) * rarity).sqrt().float().numpy(), right)


def likely(rows: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """(logarithms float64 [N, K] of the chances of the classes, in rising order; the part of the labeled told right when left out).

    rows [N, F]; labels int64 [N], -1 for none. A class with one picture is unknown where that one is left out: it counts as wrong.
    """
    which = labels >= 0
    _, known = torch.unique(labels[which], return_inverse=True)
    mean = rows[which].mean(0)
    std = (rows[which] - mean).square().mean().sqrt().clamp(min=1e-12)  # one number, as for few labels anywhere here
    ridge = Ridge((rows[which] - mean) / std, known, int(known.max()) + 1)
    penalty = choose_penalty(ridge, known)
    votes = torch.bincount(known)[known] > 1
    left = ridge.left_out(penalty)
    right = float((votes & (left.argmax(1) == known)).double().mean())
    sharpness = min(SHARPNESS, key=lambda sharp: float(F.cross_entropy(sharp * left[votes], known[votes])))
    return F.log_softmax(sharpness * ridge.scores((rows - mean).double() / std, penalty), 1), right
