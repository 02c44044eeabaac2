"""What features tell of themselves without a label: how many dimensions they use, how views of a picture meet, who stays a neighbour.

All in float64 where matrices are decomposed. Legend: N pictures, V views of each, F features, k neighbours, E eigenvalues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.evaluation.knn import knn_predict, nearest
from smallview.seeds import generator

PIECE = 2048
SMALL = 1e-7


def _check(features: Tensor, fewest: int, dims: int = 2) -> Tensor:
    if features.dim() != dims or features.shape[-2 if dims == 2 else 1] < fewest:
        wanted = "[N, F]" if dims == 2 else "[V, N, F]"
        raise ValueError(f"features are {list(features.shape)}; wanted {wanted} of {fewest} pictures or more")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("some features are not finite; wanted numbers")
    return features


def effective_rank(weights: Tensor) -> float:
    """The exponential of the entropy of non-negative weights [E]: how many of them there would be if all were equal.

    Source: Roy and Vetterli, 2007.

    Example:
        >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 3)
        2.0
    """
    share = weights.double().clamp(min=0.0)
    share = share / share.sum().clamp(min=1e-300)
    return float((-(share * (share + SMALL).log()).sum()).exp())


def covariance_spectrum(features: Tensor) -> Tensor:
    """The eigenvalues of the features' covariance, float64 [min(N, F)], the largest first; by the smaller of both matrices."""
    x = _check(features, 2).double()
    x = x - x.mean(0)
    matrix = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    spectrum: Tensor = (torch.linalg.eigvalsh(matrix) / (len(x) - 1)).clamp(min=0.0)
    return spectrum.flip(0)


def rank_me(features: Tensor) -> float:
    """RankMe: the effective rank of the features [N, F] by their singular values, not centred; from 1 to min(N, F).

    Source: Garrido et al., 2023.

    Example:
        >>> round(rank_me(torch.eye(4)), 2)
        4.0
    """
    x = _check(features, 2).double()
    matrix = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    return effective_rank(torch.linalg.eigvalsh(matrix).clamp(min=0.0).sqrt())


def alpha_req(features: Tensor, first: int = 3, last: int = 100) -> float:
    """alpha-ReQ: how fast the eigenvalues of the covariance fall, as a power of their number; about 1 is said to be best.

    Minus the slope of the least-squares line of log eigenvalue on log number, over eigenvalues `first` to `last`, counted from 1 and
    above a 10^10th of the largest.

    Source: Agrawal et al., 2022; the range is a choice of this library.

    Raises:
        ValueError: fewer than three eigenvalues in that range.
    """
    spectrum = covariance_spectrum(features)
    numbers = torch.arange(1, len(spectrum) + 1, dtype=torch.float64)
    used = (numbers >= first) & (numbers <= last) & (spectrum > 1e-10 * spectrum[0])
    if int(used.sum()) < 3:
        raise ValueError(f"{int(used.sum())} eigenvalues from {first} to {last} are above 0; wanted three or more")
    x, y = numbers[used].log(), spectrum[used].log()
    x = x - x.mean()
    return float(-(x * (y - y.mean())).sum() / x.square().sum())


def nesum(features: Tensor) -> float:
    """NESum: the sum of the covariance's eigenvalues over the largest; from 1 (one direction) to F (all alike), 0 without any.

    Source: He and Ozay, 2022.
    """
    spectrum = covariance_spectrum(features)
    return float(spectrum.sum() / spectrum[0].clamp(min=1e-300))


def lidar(views: Tensor, delta: float = 1e-4) -> float:
    """LiDAR: the effective rank of what tells pictures apart, measured by how views of one picture scatter; views [V, N, F].

    Each picture is a class of a linear discriminant analysis; `delta` is added to the diagonal of the scatter within.

    Source: Thilak et al., 2024.
    """
    x = _check(views, 2, dims=3).double()
    if len(x) < 2:
        raise ValueError(f"views are {list(views.shape)}; wanted two views of each picture or more")
    v, n, f = x.shape
    centres = x.mean(0)  # [N, F]
    within = (x - centres).flatten(0, 1)
    within = within.T @ within / (n * (v - 1))
    between = centres - centres.mean(0)
    values, vectors = torch.linalg.eigh(within + delta * torch.eye(f, dtype=torch.float64))
    whitened = between @ (vectors * values.clamp(min=1e-300).rsqrt())  # [N, F]
    matrix = whitened.T @ whitened if f <= n else whitened @ whitened.T
    return effective_rank(torch.linalg.eigvalsh(matrix))


def alignment(views: Tensor) -> float:
    """How far apart the views of a picture are on the sphere: the mean squared distance of two views; 0 is best. views [V, N, F].

    Source: Wang and Isola, 2020, with exponent 2.

    Example:
        >>> alignment(torch.stack([torch.eye(3), -torch.eye(3)]))
        4.0
    """
    x = F.normalize(_check(views, 1, dims=3).double(), dim=2)
    v = len(x)
    if v < 2:
        raise ValueError(f"views are {list(views.shape)}; wanted two views of each picture or more")
    # the squared distances of all pairs from sums over views; norms are not taken to be 1, for a row of zeros stays one
    apart = v * x.square().sum((0, 2)) - x.sum(0).square().sum(1)  # [N]
    return float(2.0 * apart.mean() / (v * (v - 1)))


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """How evenly features [N, F] lie on the sphere: the log of the mean of exp(-t distance^2) over pairs; lower is more even.

    Source: Wang and Isola, 2020.
    """
    x = F.normalize(_check(features, 2).double(), dim=1)
    norms = x.square().sum(1)  # 1, but 0 for a row of zeros: else an encoder that says nothing would look even
    total = 0.0
    for start in range(0, len(x), PIECE):
        part = x[start : start + PIECE]
        close = (t * (2.0 * part @ x.T - norms - norms[start : start + PIECE, None])).exp_()
        close.diagonal(start).zero_()  # a row is no pair with itself
        total += float(close.sum())
    n = len(x)
    return math.log(total / (n * (n - 1)))


def intrinsic_dimension(features: Tensor) -> float:
    """How many dimensions the features [N, F] locally fill, from the two nearest neighbours of each (TwoNN).

    The least-squares line through the origin, without the greatest tenth of the ratios; equal rows count once.

    Source: Facco et al., 2017.

    Raises:
        ValueError: fewer than three different rows, or the two neighbours of each are equally near, as on a grid.
    """
    x = torch.unique(_check(features, 3).double(), dim=0)
    if len(x) < 3:
        raise ValueError(f"{len(x)} different rows; wanted three or more")
    ratios = []
    for start in range(0, len(x), PIECE):
        distance = torch.cdist(x[start : start + PIECE], x, compute_mode="donot_use_mm_for_euclid_dist")
        near = distance.topk(3, dim=1, largest=False).values  # itself, then two others
        ratios.append(near[:, 2] / near[:, 1].clamp(min=1e-300))
    mu = torch.cat(ratios).sort().values
    kept = mu[: min(math.ceil(0.9 * len(mu)), len(mu) - 1)].log()  # the last has the level infinity
    if float(kept.max()) < SMALL:
        raise ValueError(f"the two nearest rows of {len(x)} are equally near; wanted features with distances that differ")
    # the line through the origin of -log(1 - rank / N) on log(mu), as published
    level = -torch.log1p(-torch.arange(1, len(kept) + 1, dtype=torch.float64) / len(mu)).clamp(max=-1e-300)
    return float((kept * level).sum() / kept.square().sum())


def cluster_learnability(features: Tensor, *, clusters: int | None = None, k: int = 10, seed: int = 0) -> float:
    """How well kNN, leaving one out, tells which k-means cluster a picture is in, from 0 to 1; features [N, F], on the sphere.

    clusters: the square root of N by default, at most 100.

    Source: Lu et al., 2023 (the learnability half of CLID).

    Raises:
        ValueError: clusters or k not under the number of pictures.
    """
    x = F.normalize(_check(features, 8), dim=1)
    if not 1 <= k < len(x):
        raise ValueError(f"k is {k} for {len(x)} pictures; wanted 1 or more, and fewer than pictures")
    count = min(100, max(2, round(math.sqrt(len(x))))) if clusters is None else clusters
    if not 2 <= count < len(x):
        raise ValueError(f"clusters is {count} for {len(x)} pictures; wanted 2 or more, and fewer than pictures")
    from sklearn.cluster import KMeans

    state = int(generator(seed, "clusters").integers(2**31))
    labels = torch.from_numpy(KMeans(count, n_init=1, random_state=state).fit_predict(x.numpy()).astype(np.int64))
    predicted = knn_predict(x, labels, x, k=k, temperature=1.0, classes=count, leave_one_out=True)
    return float((predicted == labels).double().mean())


def clid(learnability: npt.ArrayLike, dimension: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """CLID of several encoders from both halves of each: each half standardised over the encoders, then added; float64 [encoders].

    Source: Lu et al., 2023.

    Raises:
        ValueError: unequally many of both.
    """
    halves = [np.asarray(values, np.float64) for values in (learnability, dimension)]
    if halves[0].shape != halves[1].shape:
        raise ValueError(f"{halves[0].size} learnabilities and {halves[1].size} dimensions; wanted one of each per encoder")
    return sum(((half - half.mean()) / max(float(half.std()), 1e-12) for half in halves), np.zeros(len(halves[0])))


def neighbour_stability(a: Tensor, b: Tensor, k: int = 10) -> float:
    """How many of a picture's k nearest neighbours by cosine are the same in two views of all pictures, from 0 to 1; a, b [N, F].

    Raises:
        ValueError: k is not under the number of pictures.
    """
    if not 1 <= k < len(a) or a.shape[0] != b.shape[0]:
        raise ValueError(f"k is {k} with {len(a)} and {len(b)} pictures; wanted 1 or more, under the number of pictures")
    first, second = (nearest(x, x, k, leave_one_out=True)[1] for x in (_check(a, 2), _check(b, 2)))
    shared = (first[:, :, None] == second[:, None, :]).any(2)
    return float(shared.double().mean())


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over n encoders with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def spearman(x: npt.ArrayLike, y: npt.ArrayLike, seed: int = 0, draws: int = 2000) -> Correlation:
    """Spearman's rank correlation of x and y [n]; equal values share their rank; the interval is a bootstrap's over encoders.

    Raises:
        ValueError: fewer than four pairs, unequally many, values that are not finite, or all equal.

    Example:
        >>> spearman([1, 2, 3, 4], [1, 4, 9, 16]).value
        1.0
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f"{len(a)} and {len(b)} values; wanted equally many, four or more")
    for name, values in (("x", a), ("y", b)):
        if not np.isfinite(values).all() or len(np.unique(values)) < 2:
            raise ValueError(f"{name} is {values.tolist()}; wanted finite values that are not all equal")
    draw = generator(seed, "spearman")
    found: list[float] = []
    while len(found) < draws:
        which = draw.integers(len(a), size=len(a))
        if len(np.unique(a[which])) > 1 and len(np.unique(b[which])) > 1:
            found.append(_rank_correlation(a[which], b[which]))
    low, high = np.percentile(found, [2.5, 97.5])
    return Correlation(_rank_correlation(a, b), float(low), float(high), len(a))


def _rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    ranks = []
    for values in (a, b):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2.0)[inverse])
    x, y = (rank - rank.mean() for rank in ranks)
    return float((x * y).sum() / math.sqrt(max(float((x * x).sum() * (y * y).sum()), 1e-300)))
