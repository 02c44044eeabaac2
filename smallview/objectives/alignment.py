"""Losses that only pull together: the prediction of one view towards the target of another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.records import Embeddings


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's regression loss, one direction: the mean over pictures of 2 - 2 cos(prediction, target), both [B, D]; a scalar.

    Source: Grill et al., 2020, eq. 2.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> float(byol(torch.eye(3), torch.eye(3)))
        0.0
    """
    if prediction.shape != target.shape or prediction.dim() != 2:
        raise ValueError(f"prediction is {list(prediction.shape)} and target {list(target.shape)}; wanted both [B, D]")
    if prediction.dtype in (torch.bfloat16, torch.float16):
        prediction = prediction.float()
    return (2.0 - 2.0 * F.cosine_similarity(prediction, target.to(prediction.dtype), dim=1)).mean()


@dataclass(frozen=True)
class Alignment:
    """BYOL's loss as a term: summed over the directions (pairs of an online and another target view), as its authors do."""

    def __call__(self, embeddings: Embeddings, progress: float) -> Tensor:
        """The loss, a scalar."""
        return torch.stack([byol(embeddings.online[v], embeddings.target[other]) for v, other in embeddings.pairs()]).sum()
