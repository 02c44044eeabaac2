"""What tells a picture's class without its content: its colour, its brightness, the side it faces.

Each clue is a few numbers of a thumbnail and a linear probe, judged on pictures that it was not fitted on. Jitter and grayscale take
colour and brightness away, a flip the side.
Legend: N pictures, S the side of a thumbnail, F features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from smallview.evaluation.ridge import fit_ridge
from smallview.seeds import generator

FOLDS, PENALTY = 5, 0.3
LEAST_PER_CLASS, LEAST_PICTURES = 5, 40
Features = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clue:
    """How many of `tested` pictures held out are told right by a clue, and how many by always naming the commonest class."""

    accuracy: float
    chance: float
    tested: int

    @property
    def skill(self) -> float:
        """0 where nothing is told, 1 where all is."""
        return max(0.0, (self.accuracy - self.chance) / max(1e-9, 1.0 - self.chance))

    @property
    def margin(self) -> float:
        """Half of the 99 % interval of the accuracy, over test pictures."""
        return float(2.58 * np.sqrt(max(self.accuracy * (1 - self.accuracy), 0.25 / self.tested) / self.tested))

    @property
    def told(self) -> bool:
        """Whether the clue tells more than chance would."""
        return self.accuracy - self.margin > self.chance


def colour_of(thumbs: Pixels) -> Features:
    """Of uint8 [N, S, S, 3] how much there is of each of 81 chromas, wherever it is and however bright: [N, F]."""
    r, g, b = (thumbs[..., c].astype(np.int16) for c in range(3))
    edges = np.array([-96, -48, -24, -8, 8, 24, 48, 96])
    return _histograms(9 * np.digitize(r - g, edges) + np.digitize((r + g) // 2 - b, edges), 81)


def brightness_of(thumbs: Pixels) -> Features:
    """Of uint8 [N, S, S] how much there is of each of 16 grays: [N, F]."""
    return _histograms(thumbs // 16, 16)


def shape_of(thumbs: Pixels) -> Features:
    """Of uint8 [N, S, S] which edges are where, whatever the brightness and the contrast: [N, F].

    Gradients in 8 directions over a grid of 4 by 4 (Dalal and Triggs, 2005), and over all of the picture; then 8 by 8 grays.
    """
    x = thumbs.astype(np.float32)
    n, side, _ = x.shape
    down, right = np.gradient(x, axis=(1, 2))
    strength = np.hypot(down, right)
    # the bins' middles lie on the axes, so that a mirror takes bins to bins
    way = np.floor(np.arctan2(down, right) / (np.pi / 4) + 0.5).astype(np.int64) % 8
    cell = np.arange(side) * 4 // side
    where = (cell[:, None] * 4 + cell[None, :]) * 8 + way + 128 * np.arange(n)[:, None, None]
    edges = np.bincount(where.ravel(), strength.ravel(), 128 * n).reshape(n, 128)
    whole = edges.reshape(n, 16, 8).sum(1)
    gray = x.reshape(n, 8, side // 8, 8, side // 8).mean((2, 4)).reshape(n, 64)
    gray = gray - gray.mean(1, keepdims=True)
    parts = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6) for part in (edges, whole, gray)]
    return np.concatenate(parts, 1).astype(np.float32)


def usable(labels: Labels) -> npt.NDArray[np.int64]:
    """Positions of the pictures whose class is large enough to be judged; none where fewer than two classes or 40 pictures are left."""
    counts = np.bincount(labels)
    kept = np.flatnonzero(counts[labels] >= LEAST_PER_CLASS)
    return kept if len(kept) >= LEAST_PICTURES and (counts >= LEAST_PER_CLASS).sum() > 1 else kept[:0]


def predictions(features: Features, labels: Labels, *others: Features, seed: int = 0) -> tuple[Labels, ...]:
    """Of each picture the class that a ridge probe fitted on other pictures gives it; the same for other versions of the features [N, F]."""
    return held_out(features, labels, folds(labels, seed), *others)


def held_out(features: Features, labels: Labels, fold: Labels, *others: Features) -> tuple[Labels, ...]:
    """`predictions` for folds int64 [N] of one's own."""
    out = tuple(np.empty(len(labels), np.int64) for _ in range(1 + len(others)))
    for k in range(FOLDS):
        fitted, held = fold != k, fold == k
        probe = fit_ridge(torch.from_numpy(features[fitted]), torch.from_numpy(labels[fitted]), int(labels.max()) + 1, PENALTY)
        for found, version in zip(out, (features, *others), strict=True):
            found[held] = probe.predict(torch.from_numpy(version[held])).numpy()
    return out


def folds(labels: Labels, seed: int) -> Labels:
    """0 to 4 for each picture, drawn alike in every class."""
    shuffled = generator(seed, "folds").permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    out = np.empty(len(labels), np.int64)
    out[order] = np.arange(len(labels)) % FOLDS
    return out


def clue(features: Features, labels: Labels, seed: int = 0) -> Clue:
    """How well features tell the label of pictures held out.

    Example:
        >>> labels = np.arange(100) % 2
        >>> clue(labels[:, None].astype(np.float32), labels).skill
        1.0
    """
    (found,) = predictions(features, labels, seed=seed)
    return Clue(float((found == labels).mean()), float(np.bincount(labels).max() / len(labels)), len(labels))


@dataclass(frozen=True)
class Mirror:
    """Two classes of which each, flipped left to right, looks like the other: in so large a part of its pictures at least."""

    one: int
    other: int
    share: float


@dataclass(frozen=True)
class Flipped:
    """The part of pictures whose class their shape tells, plain and flipped left to right, and the classes that a flip exchanges."""

    plain: float
    flipped: float
    mirrors: tuple[Mirror, ...]


def flipped(thumbs: Pixels, labels: Labels, least: float, seed: int = 0) -> Flipped:
    """What a flip does to the classes; mirrors: by how much more often flipped pictures, held out, are taken for the other class.

    Example:
        >>> left = np.zeros((60, 32, 32), np.uint8)
        >>> left[:, 8:24, 4:12] = np.arange(60)[:, None, None] + 100
        >>> both = np.concatenate([left, left[:, :, ::-1]])
        >>> flipped(both, np.arange(120) // 60, 0.5)
        Flipped(plain=1.0, flipped=0.0, mirrors=(Mirror(one=0, other=1, share=1.0),))
    """
    plain, turned = predictions(shape_of(thumbs), labels, shape_of(thumbs[:, :, ::-1]), seed=seed)
    count = int(labels.max()) + 1
    moved = np.zeros((count, count))
    np.add.at(moved, (labels, turned), 1.0)
    np.add.at(moved, (labels, plain), -1.0)
    moved /= np.maximum(np.bincount(labels, minlength=count), 1)[:, None]
    both = np.triu(np.minimum(moved, moved.T), 1)
    pairs = sorted(zip(*np.nonzero(both >= least), strict=True), key=lambda pair: -both[pair])
    found = tuple(Mirror(int(i), int(j), round(float(both[i, j]), 3)) for i, j in pairs)
    return Flipped(float((plain == labels).mean()), float((turned == labels).mean()), found)


def facing(thumbs: Pixels, seed: int = 0) -> Clue:
    """How well pictures, held out, are told from their own mirror images; chance is a half. No labels are needed."""
    n = len(thumbs)
    side = np.arange(2 * n) // n
    fold = np.tile(folds(np.zeros(n, np.int64), seed), 2)
    found = held_out(np.concatenate([shape_of(thumbs), shape_of(thumbs[:, :, ::-1])]), side, fold)[0]
    return Clue(float((found == side).mean()), 0.5, n)


def _histograms(bins: npt.NDArray[np.integer], count: int) -> Features:
    """Square roots of shares [N, count] of bins [N, S, S]: their distances are those of Hellinger."""
    n = len(bins)
    flat = bins.reshape(n, -1).astype(np.int64) + count * np.arange(n)[:, None]
    shares = np.bincount(flat.ravel(), minlength=count * n).reshape(n, count) / flat.shape[1]
    return np.asarray(np.sqrt(shares), np.float32)
