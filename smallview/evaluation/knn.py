"""kNN on frozen features: cosine similarity, votes weighted by exp(similarity / temperature).

Legend: N training pictures, Q queries, F features, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_SIMILARITIES = 2**22  # 16 MB of float32: products of this size run fastest
QUERIES = 1024


def nearest(bank: Tensor, queries: Tensor, k: int, *, leave_one_out: bool = False) -> tuple[Tensor, Tensor]:
    """(cosine similarities, positions in the bank) [Q, k] of the k nearest rows of bank [N, F] to each query [Q, F], nearest first.

    Exact, and neither the bank nor the similarities need to fit into memory twice: both are taken in pieces. With `leave_one_out`,
    the queries are the bank and no row is its own neighbour.

    Example:
        >>> near, which = nearest(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.1, 1.0]]), 1)
        >>> which.tolist()
        [[1]]
    """
    count = min(k, len(bank) - int(leave_one_out))
    if count < 1:
        raise ValueError(f"k is {k} and the bank has {len(bank)} rows; wanted 1 or more, and a row to find")
    if not len(queries):
        return queries.new_zeros(0, count), torch.zeros(0, count, dtype=torch.int64)
    # many neighbours: what is kept of each piece must be small beside the piece
    rows = max(64 * count, MOST_SIMILARITIES // min(QUERIES, len(queries)))
    asked = F.normalize(queries, dim=1)
    kept: list[tuple[Tensor, Tensor]] = []  # of each piece of the queries
    for first in range(0, len(bank), rows):
        part = F.normalize(bank[first : first + rows], dim=1).T.contiguous()  # [F, n]
        for number, start in enumerate(range(0, len(asked), QUERIES)):
            similarity = asked[start : start + QUERIES] @ part  # [q, n]
            if leave_one_out:
                own = torch.arange(start, start + len(similarity)) - first
                inside = torch.nonzero((own >= 0) & (own < part.shape[1]))[:, 0]
                similarity[inside, own[inside]] = -2.0
            values, which = _largest(similarity, min(count, part.shape[1]))
            which += first
            if first == 0:
                kept.append((values, which))
                continue
            values, which = torch.cat([kept[number][0], values], 1), torch.cat([kept[number][1], which], 1)
            values, order = values.topk(min(count, values.shape[1]), dim=1)
            kept[number] = values, which.gather(1, order)
    near, found = zip(*kept, strict=True)
    return torch.cat(near), torch.cat(found)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [q, n] and where they are: first the k blocks with the largest maxima, which hold them all."""
    n = values.shape[1]
    size = 64
    while size > 1 and n // size < 4 * k:
        size //= 2
    blocks = n // size
    if size == 1 or n % size:
        return values.topk(k, dim=1)
    split = values.view(len(values), blocks, size)
    chosen = split.amax(2).topk(k, dim=1).indices  # [q, k]
    inside = split.gather(1, chosen[:, :, None].expand(-1, -1, size)).flatten(1)
    found, at = inside.topk(k, dim=1)
    return found, chosen.gather(1, at // size) * size + at % size


def knn_votes(near: Tensor, which: Tensor, targets: Tensor, temperature: float, classes: int) -> Tensor:
    """What the neighbours say, from `nearest`: votes [Q, K] for classes int64 [N], weighted means of labels or numbers [N, D] else."""
    # the greatest similarity is taken out of the exponent: at temperature 0.07 it changes no vote and cannot overflow
    weights = ((near - near[:, :1]) / temperature).exp()
    if targets.dim() == 1:
        return weights.new_zeros(len(weights), classes).scatter_add_(1, targets[which], weights)
    return (weights[:, :, None] * targets[which].float()).sum(1) / weights.sum(1, keepdim=True)


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
    if not len(test):
        return torch.zeros(0, dtype=torch.int64)
    near, which = nearest(train, test, k, leave_one_out=leave_one_out)
    return knn_votes(near, which, labels, temperature, classes).argmax(1)
