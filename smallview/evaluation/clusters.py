"""Groups of vectors without labels: k-means in bits that do not depend on threads, how well groups stand apart, how they fit labels.

Legend: N pictures, F features, K clusters, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallview.seeds import generator

STEPS, STARTS = 100, 4
DIRECTIONS, NARROW = 50, 1e-3  # kept, and the deviation beside the widest one under which none is
Rows = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Grouping:
    """Centres float32 [K, F], the cluster of each row int64 [N], its distance to the centre float32 [N], and their mean square."""

    centres: Rows
    assigned: Numbers
    distance: Rows
    spread: float


@dataclass(frozen=True, eq=False)
class Evened:
    """Rows [N, F] in their D widest directions, as unit rows [N, D] in which no few directions decide: mean [F], scaled directions [F, D]."""

    mean: Rows
    directions: Rows

    def __call__(self, rows: Rows) -> Rows:
        """Unit rows [N, D]."""
        out = (rows - self.mean) @ self.directions
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12), np.float32)


def evened(rows: Rows) -> Evened:
    """What brings rows [N, F] half of the way to equal spread: each of up to 50 directions is divided by the root of its deviation.

    Deviations of s become the root of s: brightness and the like, which are wide, count for less, and what is narrow is not blown up to noise.

    Example:
        >>> rows = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32) * [16, 1]
        >>> made = evened(rows)
        >>> [round(float(s)) for s in ((rows - made.mean) @ made.directions).std(0)]
        [4, 1]
    """
    mean = rows.mean(0, dtype=np.float64)
    around = rows - mean
    variances, directions = np.linalg.eigh(around.T @ around / len(rows))
    deviations = np.sqrt(np.maximum(variances[::-1], 0.0))
    kept = max(1, min(DIRECTIONS, len(rows) // 4, int((deviations > NARROW * deviations[0]).sum())))
    scaled = directions[:, ::-1][:, :kept] / np.sqrt(np.maximum(deviations[:kept], 1e-12))
    return Evened(mean.astype(np.float32), scaled.astype(np.float32))


def kmeans(rows: Rows, k: int, seed: int, *, starts: int = STARTS) -> Grouping:
    """The best of a few k-means of rows [N, F], which hold k different ones at least; the same bits for the same seed and machine.

    Source: Lloyd, 1982, begun by k-means++ (Arthur and Vassilvitskii, 2007), of which the best of a few draws is taken at each step.

    Example:
        >>> two = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
        >>> found = kmeans(two, 2, seed=0)
        >>> len(set(found.assigned[:3])), len(set(found.assigned)), found.spread
        (1, 2, 0.0)
    """
    squares = np.einsum("nf,nf->n", rows, rows)
    return min((_lloyd(rows, squares, _begin(rows, squares, k, seed, n)) for n in range(starts)), key=lambda one: one.spread)


def assign(rows: Rows, centres: Rows) -> tuple[Numbers, Rows]:
    """(the nearest centre int64 [N], its distance float32 [N]) of each row."""
    return _assign(rows, np.einsum("nf,nf->n", rows, rows), centres)


def _assign(rows: Rows, squares: Rows, centres: Rows) -> tuple[Numbers, Rows]:
    which, far = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    own = np.einsum("kf,kf->k", centres, centres)
    for first in range(0, len(rows), BLOCK):
        part = slice(first, first + BLOCK)
        square = own[None] - 2.0 * rows[part] @ centres.T  # [n, K], without the rows' own, which decides nothing
        which[part] = square.argmin(1)
        far[part] = np.take_along_axis(square, which[part, None], 1)[:, 0] + squares[part]
    return which, np.sqrt(np.maximum(far, 0.0))


def _begin(rows: Rows, squares: Rows, k: int, seed: int, start: int) -> Rows:
    """Rows far from one another, each the best of a few draws by its distance to those taken before."""
    draw = generator(seed, "k-means", k, start)
    draws = 2 + int(np.log(k))
    taken = [int(draw.integers(len(rows)))]
    left = _squares_to(rows, squares, np.array(taken))[:, 0]  # to the nearest taken
    while len(taken) < k:
        total = left.sum(dtype=np.float64)
        if total > 0.0:
            points = draw.random(draws) * total
            tried = np.minimum(np.searchsorted(np.cumsum(left, dtype=np.float64), points), len(rows) - 1)
        else:  # what is left are copies
            tried = draw.integers(len(rows), size=draws)
        closer = np.minimum(_squares_to(rows, squares, tried), left[:, None])
        best = int(closer.sum(0, dtype=np.float64).argmin())
        taken.append(int(tried[best]))
        left = closer[:, best]
    return rows[taken]


def _squares_to(rows: Rows, squares: Rows, which: Numbers) -> Rows:
    out = np.maximum(squares[:, None] - 2.0 * rows @ rows[which].T + squares[which][None], 0.0)
    out[out < 1e-6] = 0.0  # a row from itself, up to rounding
    return np.asarray(out, np.float32)


def _lloyd(rows: Rows, squares: Rows, centres: Rows) -> Grouping:
    assigned = np.full(len(rows), -1, np.int64)
    for _ in range(STEPS):
        moved, far = _assign(rows, squares, centres)
        if np.array_equal(moved, assigned):
            break
        assigned = moved
        centres = _means(rows, assigned, far, len(centres))
    assigned, far = _assign(rows, squares, centres)
    return Grouping(centres, assigned, far, float(np.mean(far.astype(np.float64) ** 2)))


def _means(rows: Rows, assigned: Numbers, far: Rows, k: int) -> Rows:
    """The mean of each cluster; an empty one takes the row that is farthest from its own."""
    order = np.argsort(assigned, kind="stable")
    counts = np.bincount(assigned, minlength=k)
    held = np.flatnonzero(counts)
    sums = np.add.reduceat(rows[order], np.searchsorted(assigned[order], held), axis=0, dtype=np.float64)
    centres = np.empty((k, rows.shape[1]), np.float32)
    centres[held] = sums / counts[held, None]
    empty = np.flatnonzero(counts == 0)
    centres[empty] = rows[np.argsort(-far, kind="stable")[: len(empty)]]
    return centres


def silhouette(rows: Rows, assigned: Numbers) -> float:
    """How much nearer rows [N, F] are to their own cluster than to the next one, mean over rows, -1 to 1.

    0 for a row that is alone, or where all are in one cluster. Euclidean distances of all pairs: give it a few thousand rows.

    Source: Rousseeuw, 1987.

    Example:
        >>> silhouette(np.repeat(np.eye(2, dtype=np.float32), 3, axis=0), np.array([0, 0, 0, 1, 1, 1]))
        1.0
    """
    values, assigned = np.unique(assigned, return_inverse=True)
    assigned = assigned.reshape(-1)
    if len(values) < 2:
        return 0.0
    counts = np.bincount(assigned).astype(np.float64)
    squares = np.einsum("nf,nf->n", rows, rows)
    ones = np.eye(len(values), dtype=np.float32)[assigned]  # [N, K]
    found = np.empty(len(rows))
    for first in range(0, len(rows), BLOCK):
        part = slice(first, first + BLOCK)
        away = np.sqrt(np.maximum(squares[part, None] - 2.0 * rows[part] @ rows.T + squares[None], 0.0))
        away[away < 1e-3] = 0.0  # a row from itself, up to rounding
        sums, mine, at = (away @ ones).astype(np.float64), assigned[part], np.arange(len(away))
        own = sums[at, mine] / np.maximum(counts[mine] - 1.0, 1.0)
        others = sums / counts
        others[at, mine] = np.inf
        other = others.min(1)
        found[part] = np.where(counts[mine] > 1, (other - own) / np.maximum(np.maximum(own, other), 1e-12), 0.0)
    return float(found.mean())


def choose_k(rows: Rows, most: int, seed: int) -> tuple[int, dict[int, float]]:
    """The number of clusters of rows [N, F] whose silhouette is highest, and that of each number tried: 2 to `most`, or to different rows."""
    most = min(most, len(np.unique(rows, axis=0)))
    found = {k: silhouette(rows, kmeans(rows, k, seed, starts=2).assigned) for k in grid(most)}
    return max(found, key=lambda k: found[k]), found


def grid(most: int) -> list[int]:
    """The numbers of clusters that are tried, 2 to `most`: each one at first, then in steps of about a sixth.

    Example:
        >>> grid(30)
        [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 19, 22, 26, 30]
    """
    out = [2]
    while (following := max(out[-1] + 1, round(out[-1] * 7 / 6))) <= most:
        out.append(following)
    return [k for k in out if k <= most]


def counted(assigned: Iterable[int], labels: Iterable[int]) -> Numbers:
    """How many pictures of each cluster are of each class, int64 [K, C]."""
    pairs = np.array(list(zip(assigned, labels, strict=True)), np.int64).reshape(-1, 2)
    clusters, classes = (np.unique(pairs[:, i], return_inverse=True) for i in (0, 1))
    table = np.zeros((len(clusters[0]), len(classes[0])), np.int64)
    np.add.at(table, (clusters[1].reshape(-1), classes[1].reshape(-1)), 1)
    return table


def nmi(table: Numbers) -> float:
    """Normalised mutual information of clusters and classes from their counts [K, C]: 1 the same sorting, 0 unrelated ones.

    Normalised by the mean of the two entropies.

    Example:
        >>> nmi(np.array([[3, 0], [0, 5]])), nmi(np.array([[2, 2], [2, 2]]))
        (1.0, 0.0)
    """
    p = table / table.sum()
    rows, columns = p.sum(1), p.sum(0)
    seen = p > 0
    shared = float((p[seen] * np.log(p[seen] / np.outer(rows, columns)[seen])).sum())
    entropy = [-float((q[q > 0] * np.log(q[q > 0])).sum()) for q in (rows, columns)]
    return 1.0 if sum(entropy) == 0.0 else min(1.0, max(0.0, 2.0 * shared / sum(entropy)))


def matched_accuracy(table: Numbers) -> float:
    """The part of pictures that are right when each cluster is named after one class, and no two after the same, as well as that goes.

    Example:
        >>> matched_accuracy(np.array([[3, 1], [0, 4]]))
        0.875
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / table.sum())
