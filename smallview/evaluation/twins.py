"""The same picture twice: within a set, as groups of names, and across two sets, from one survey of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from smallview.data.survey import Survey
from smallview.evaluation.leakage import Take, near_equal
from smallview.seeds import generator

MOST_ASKED = 50_000  # whose near-equals are looked for among all pictures; the work grows with the product
SAME_COLOUR = 0.1  # between the mean colours of near-equal pictures, their brightness taken out
Progress = Callable[[int, int], None]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Twins:
    """Groups of names of equal pictures, and of nearly equal ones (a name for each of its equal ones), the largest first.

    spare, near_spare: pictures beyond the first of each group. asked: how many were compared with all, of those that differ.
    """

    equal: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    spare: int
    near_spare: int
    asked: int
    across_classes: int


def find_twins(seen: Survey, progress: Progress = lambda done, total: None) -> Twins:
    """Pictures that are in a set twice, the same to the last bit or as another file, size, quality or brightness of it."""
    order = np.argsort(seen.hash, kind="stable")
    starts = np.flatnonzero(np.r_[True, seen.hash[order][1:] != seen.hash[order][:-1]]) if len(seen) else order
    equal = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    firsts = np.sort(order[starts])
    asked = _asked(firsts)
    pairs = [
        (int(firsts[i]), int(firsts[j]))
        for i, j in _pairs(seen, firsts, seen, np.searchsorted(firsts, asked), firsts, within=True, progress=progress)
    ]
    near = _joined(pairs)
    mixed = 0 if seen.labels is None else sum(len(np.unique(seen.labels[group])) > 1 for group in [*equal, *near])
    return Twins(
        equal=_named(seen, equal),
        near=_named(seen, near),
        spare=len(seen) - len(firsts),
        near_spare=sum(len(group) - 1 for group in near),
        asked=len(asked),
        across_classes=mixed,
    )


def _named(seen: Survey, groups: list[Positions]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(seen.name(int(i)) for i in group) for group in sorted(groups, key=len, reverse=True))


@dataclass(frozen=True)
class Shared:
    """Test pictures that a training set has as well: (test name, training name, whether they are equal to the last bit)."""

    pairs: tuple[tuple[str, str, bool], ...]
    asked: int
    tested: int


def find_shared(train: Survey, test: Survey, progress: Progress = lambda done, total: None) -> Shared:
    """Test pictures that are in the training set, also as another file of it or mirrored."""
    hashes, firsts = np.unique(train.hash, return_index=True)
    place = np.minimum(np.searchsorted(hashes, test.hash), max(0, len(hashes) - 1))
    equal = hashes[place] == test.hash if len(hashes) else np.zeros(len(test), np.bool_)
    found = {int(i): (int(firsts[place[i]]), True) for i in np.flatnonzero(equal)}
    others = _asked(np.flatnonzero(~equal))
    for i, j in _pairs(train, firsts, test, others, np.arange(len(test)), within=False, progress=progress):
        found.setdefault(int(i), (int(firsts[j]), False))
    pairs = tuple((test.name(i), train.name(j), same) for i, (j, same) in sorted(found.items()))
    return Shared(pairs, int(equal.sum()) + len(others), len(test))


def _asked(positions: Positions) -> Positions:
    if len(positions) <= MOST_ASKED:
        return positions
    return np.sort(generator(0, "twins").choice(positions, MOST_ASKED, replace=False))


def _pairs(
    bank: Survey, firsts: Positions, asked: Survey, positions: Positions, of: Positions, *, within: bool, progress: Progress
) -> list[tuple[int, int]]:
    """Pairs of (a number of `positions`, a number of `firsts`) whose pictures are nearly equal, colours counted."""
    if len(firsts) <= within or not len(positions) or bank.source.channels != asked.source.channels:
        return []
    found = near_equal(
        *(_take(bank, firsts), len(firsts), _take(asked, of), torch.from_numpy(positions)),
        mirrored=not within,
        within=within,
        strict=True,
        progress=progress,
    )
    pairs = [(i, j) for i, j, _ in found]
    if not pairs:
        return []
    i, j = np.array(pairs).T
    chroma = [mean - mean.mean(1, keepdims=True) for mean in (asked.mean[of[i]], bank.mean[firsts[j]])]
    return [pair for pair, same in zip(pairs, np.abs(chroma[0] - chroma[1]).max(1) < SAME_COLOUR, strict=True) if same]


def _take(seen: Survey, of: Positions) -> Take:
    def take(which: Tensor) -> Tensor:
        return torch.from_numpy(seen.thumbs[of[which.numpy()]])[:, None].float() / 255

    return take


def _joined(pairs: list[tuple[int, int]]) -> list[Positions]:
    """The groups that pairs of positions join."""
    if not pairs:
        return []
    nodes, ends = np.unique(np.array(pairs), return_inverse=True)
    ends = ends.reshape(-1, 2)
    _, group = connected_components(coo_array((np.ones(len(ends)), ends.T), shape=(len(nodes), len(nodes))), directed=False)
    order = np.argsort(group, kind="stable")
    return np.split(nodes[order], np.flatnonzero(np.diff(group[order])) + 1)
