"""kNN on frozen features: cosine similarity, votes weighted by exp(similarity / temperature).

Legend: N training pictures, Q queries, F features, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024
MOST_SIMILARITIES = 2**26  # 256 MB of float32


def knn_predict(
    train: Tensor, labels: Tensor, test: Tensor, *, k: int, temperature: float, classes: int, leave_one_out: bool = False
) -> Tensor:
    """Predicted classes int64 [Q] of features test [Q, F] from train [N, F] with labels int64 [N]; exact, in bounded memory.

    With `leave_one_out`, test is train and no picture votes for itself.

    Source: Wu et al., 2018, section 3.4.

    Raises:
        ValueError: k is under 1.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_predict(bank, torch.tensor([0, 0, 1]), torch.tensor([[0.1, 1.0]]), k=1, temperature=0.07, classes=2).tolist()
        [1]
    """
    if k < 1:
        raise ValueError(f"k is {k}; wanted 1 or more")
    k = min(k, len(train) - int(leave_one_out))
    bank = F.normalize(train, dim=1)
    chunk = max(1, min(CHUNK, MOST_SIMILARITIES // max(1, len(bank))))
    out = []
    for start in range(0, len(test), chunk):
        similarity = F.normalize(test[start : start + chunk], dim=1) @ bank.T  # [q, N]
        if leave_one_out:
            rows = torch.arange(len(similarity))
            similarity[rows, start + rows] = -2.0
        values, neighbours = similarity.topk(k, dim=1)
        # the greatest similarity is taken out of the exponent: at temperature 0.07 it changes no vote and cannot overflow
        weights = ((values - values[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[neighbours], weights)  # [q, K]
        out.append(votes.argmax(1))
    return torch.cat(out) if out else torch.zeros(0, dtype=torch.int64)
