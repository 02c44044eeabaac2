"""Pictures that an encoder can hardly tell apart: groups by how close their features are, measured by what is usual in the set.

Legend: N pictures, F features, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.errors import DataError
from smallview.evaluation.knn import nearest

NEIGHBOURS = 10
LIMIT = 0.4
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Close:
    """Groups as rising positions, the closest first, how far each member is from the first of its group; both by group.

    Distances are in parts of the usual one, between unit rows. outside: the pairs (position, position, distance) that are the next to be let in.
    """

    groups: tuple[Positions, ...]
    distances: tuple[npt.NDArray[np.float32], ...]
    outside: tuple[tuple[int, int, float], ...]
    usual: float


def directions(features: npt.NDArray[np.float32], what: str = "the features") -> Tensor:
    """Unit rows [N, F] of features around their mean: what all pictures share says nothing of any; a row of zeros stays.

    Raises:
        DataError: features that are not finite, or no rows of numbers.

    Example:
        >>> directions(np.array([[2.0, 1.0], [2.0, 3.0]], np.float32)).tolist()
        [[0.0, -1.0], [0.0, 1.0]]
    """
    if features.ndim != 2 or not features.shape[1]:
        raise DataError(f"{what} have the shape {list(features.shape)}; wanted a row of features for each picture, [N, F]")
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        raise DataError(
            f"{what} of {len(bad):,} pictures are not finite (the first is picture {bad[0]:,}); wanted finite numbers"
        )
    x = torch.from_numpy(np.asarray(features, np.float32))
    usable = x.abs().amax(1) > 0
    if not usable.any():
        return x
    centred = (x - x[usable].mean(0)) * usable[:, None]
    # what is left of equal rows is rounding
    small = centred.norm(dim=1) < 1e-6 * x.norm(dim=1)
    unit: Tensor = F.normalize(centred, dim=1) * ~small[:, None]
    return unit


def close_groups(features: npt.NDArray[np.float32], limit: float = LIMIT, *, outside: int = 8) -> Close:
    """Groups of pictures whose features [N, F] lie closer to those of the group's first than `limit` times what is usual.

    Usual is the median, over the pictures, of the distance to the NEIGHBOURS-th nearest; distances are between directions from
    the mean. So the limit means the same for every encoder and set. Of pictures in the order given, each that no group
    has yet begins one. Pictures whose features are all zero are in none.

    Raises:
        DataError: features that are not finite.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
        >>> x[7] = x[3] + 0.01
        >>> [group.tolist() for group in close_groups(x).groups]
        [[3, 7]]
    """
    unit = directions(features)
    known = torch.nonzero(unit.norm(dim=1) > 0.5)[:, 0]
    rows = unit[known]
    k = min(NEIGHBOURS, len(rows) - 1)
    if k < 1:
        return Close((), (), (), 0.0)
    cosine, which = nearest(rows, rows, k, leave_one_out=True)
    far = (2.0 - 2.0 * cosine).clamp(min=0).sqrt()
    usual = max(float(far[:, -1].median()), 1e-6)
    far = far / usual
    groups, distances = _led(rows, torch.nonzero(far[:, 0] < limit)[:, 0].tolist(), limit * usual)
    order = sorted(range(len(groups)), key=lambda g: float(distances[g].max()))
    kept = [known[torch.tensor(groups[g])].numpy() for g in order]
    apart = [(distances[g] / usual).astype(np.float32) for g in order]
    return Close(tuple(kept), tuple(apart), tuple(_missed(known, which[:, 0], far[:, 0], limit, outside)), usual)


def _led(rows: Tensor, involved: list[int], limit: float) -> tuple[list[list[int]], list[npt.NDArray[np.float32]]]:
    """Groups of rows that lie closer than the limit to their first, and how far: each row that no group has begins one."""
    groups, distances = [], []
    left = torch.tensor(involved, dtype=torch.int64)
    while len(left) > 1:
        far = (2.0 - 2.0 * (rows[left[1:]] @ rows[left[0]])).clamp(min=0).sqrt()
        inside = far < limit
        if inside.any():
            groups.append([int(left[0]), *left[1:][inside].tolist()])
            distances.append(np.concatenate([[0.0], far[inside].numpy()]).astype(np.float32))
        left = left[1:][~inside]
    return groups, distances


def _missed(known: Tensor, other: Tensor, far: Tensor, limit: float, most: int) -> list[tuple[int, int, float]]:
    """The pairs of nearest neighbours that the limit has just kept out, the closest first."""
    out: dict[tuple[int, int], float] = {}
    for i in far.argsort(stable=True).tolist():
        if len(out) == most:
            break
        if far[i] >= limit:
            one, two = sorted((int(known[i]), int(known[other[i]])))
            out.setdefault((one, two), float(far[i]))
    return [(one, two, distance) for (one, two), distance in out.items()]
