"""Losses that only pull together: the prediction of one view towards the target of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.objectives.embeddings import check_pair, exact, full
from smallview.records import Embeddings


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's regression loss, one direction: the mean over pictures of 2 - 2 cos(prediction, target), both [B, D]; a scalar.

    Source: Grill et al., 2020, eq. 2.

    Raises:
        ValueError: shapes that differ, or numbers that are not finite.

    Example:
        >>> float(byol(torch.eye(3), torch.eye(3)))
        0.0
    """
    check_pair(prediction, target, "prediction", "target")
    return _one_direction(prediction, target)


def _one_direction(prediction: Tensor, target: Tensor) -> Tensor:
    with exact(prediction.device):
        prediction = full(prediction)
        return (2.0 - 2.0 * F.cosine_similarity(prediction, target.to(prediction.dtype), dim=1)).mean()


@dataclass(frozen=True)
class Alignment:
    """2 - 2 cos as a term: the sum over directions (pairs of an online and another target view), as BYOL's authors do, or the mean.

    SimSiam's mean of two negative cosines is the mean at weight 0.5, less a constant.
    """

    directions: Literal["mean", "sum"] = "sum"

    def __post_init__(self) -> None:
        if self.directions not in ("mean", "sum"):
            raise ValueError(f"directions is {self.directions!r}; wanted mean or sum")

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        losses = torch.stack([_one_direction(embeddings.online[v], embeddings.target[t]) for v, t in embeddings.pairs()])
        return losses.sum() if self.directions == "sum" else losses.mean()
