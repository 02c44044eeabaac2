"""The same picture twice: within a set, as groups of names, and across two sets, from one survey of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from smallview.data.survey import Survey
from smallview.evaluation.leakage import COPY, alike, coarse_of

NEAR, DIRECTIONS, CANDIDATES = 0.12, 16, 8  # the distance of coarse thumbnails (unit rows) that correlate by 0.993, for COPY
SAME_COLOUR = 0.1  # between the mean colours of near-equal pictures, their brightness taken out
Progress = Callable[[int, int], None]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Twins:
    """Groups of names of equal pictures, and of nearly equal ones (a name for each of its equal ones), the largest first.

    spare, near_spare: pictures beyond the first of each group. across_classes: groups whose pictures have different labels.
    """

    equal: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    spare: int
    near_spare: int
    across_classes: int


def find_twins(seen: Survey, progress: Progress = lambda done, total: None) -> Twins:
    """Pictures that are in a set twice, the same to the last bit or as another file, size, quality or brightness of it."""
    equal, near = twin_groups(seen, progress)
    mixed = 0 if seen.labels is None else sum(len(np.unique(seen.labels[group])) > 1 for group in [*equal, *near])
    return Twins(
        equal=_named(seen, equal),
        near=_named(seen, near),
        spare=sum(len(group) - 1 for group in equal),
        near_spare=sum(len(group) - 1 for group in near),
        across_classes=mixed,
    )


def twin_groups(
    seen: Survey, progress: Progress = lambda done, total: None, *, copies: float = COPY, mirrored: bool = False
) -> tuple[list[Positions], list[Positions]]:
    """(groups of equal pictures, of nearly equal ones with one of each group of equal ones), as rising positions int64 in the survey.

    copies: as for `alike`. mirrored: whether a picture and its mirror image are nearly equal.
    """
    order = np.argsort(seen.hash, kind="stable")
    starts = np.flatnonzero(np.r_[True, seen.hash[order][1:] != seen.hash[order][:-1]]) if len(seen) else order
    equal = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    firsts = np.sort(order[starts])
    return equal, joined(list(_copies(seen, firsts, seen, firsts, progress, copies, mirrored)))


def _named(seen: Survey, groups: list[Positions]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(seen.name(int(i)) for i in group) for group in sorted(groups, key=len, reverse=True))


@dataclass(frozen=True)
class Shared:
    """Test pictures that a training set has as well: (test name, training name, whether they are equal to the last bit)."""

    pairs: tuple[tuple[str, str, bool], ...]
    tested: int


def find_shared(train: Survey, test: Survey, progress: Progress = lambda done, total: None) -> Shared:
    """Test pictures that are in the training set, also as another file of it or mirrored."""
    hashes, firsts = np.unique(train.hash, return_index=True)
    at = np.minimum(np.searchsorted(hashes, test.hash), len(hashes) - 1)
    equal = hashes[at] == test.hash if len(hashes) else np.zeros(len(test), np.bool_)
    found = {int(i): (int(firsts[at[i]]), True) for i in np.flatnonzero(equal)}
    for i, j in _copies(train, firsts, test, np.flatnonzero(~equal), progress, COPY, mirrored=True):
        found.setdefault(i, (j, False))
    return Shared(tuple((test.name(i), train.name(j), same) for i, (j, same) in sorted(found.items())), len(test))


def _copies(
    bank: Survey, among: Positions, asked: Survey, which: Positions, progress: Progress, copies: float, mirrored: bool
) -> Iterator[tuple[int, int]]:
    """Pairs (picture asked, picture of the bank) that are copies.

    Candidates are the nearest by coarse thumbnail, within what a copy reaches, in the directions that thumbnails differ most in: a
    tree finds them without comparing all with all.
    """
    within = bank is asked
    if len(among) <= within or not len(which):
        return
    reach = NEAR * math.sqrt((1.0 - copies) / (1.0 - COPY))
    rows = torch.cat([coarse_of(_thumbs(bank, part)) for part in _parts(among)])
    directions = torch.linalg.eigh(rows.T @ rows)[1][:, -DIRECTIONS:]
    tree = KDTree((rows @ directions).numpy())
    done = 0
    for part in _parts(which):
        plain = _thumbs(asked, part)
        for thumbs in (plain, plain.flip(3)) if mirrored else (plain,):
            points = (coarse_of(thumbs) @ directions).numpy()
            found = tree.query(points, CANDIDATES, distance_upper_bound=reach, workers=torch.get_num_threads())[1]
            row, column = np.nonzero(found < len(among))
            one, other = part[row], among[found[row, column]]
            near = np.abs(_chroma(asked, one) - _chroma(bank, other)).max(1) < SAME_COLOUR
            kept = near & ~(within & (one == other))
            row, one, other = row[kept], one[kept], other[kept]
            copy = alike(thumbs[torch.from_numpy(row)], _thumbs(bank, other), copies=copies).numpy() > 0
            yield from zip(one[copy].tolist(), other[copy].tolist(), strict=True)
        done += len(part)
        progress(done, len(which))


def _parts(positions: Positions) -> list[Positions]:
    return np.split(positions, range(1024, len(positions), 1024))


def _thumbs(seen: Survey, which: Positions) -> Tensor:
    return torch.from_numpy(seen.thumbs[which])[:, None].float() / 255


def _chroma(seen: Survey, which: Positions) -> npt.NDArray[np.float64]:
    """Mean colours [n, 3] without their brightness: differences of channels."""
    mean = seen.mean[which]
    return mean - np.roll(mean, -1, 1) if mean.shape[1] == 3 else np.zeros((len(which), 3))


def joined(pairs: list[tuple[int, int]]) -> list[Positions]:
    """The groups that pairs of positions join."""
    if not pairs:
        return []
    nodes, ends = np.unique(np.array(pairs), return_inverse=True)
    ends = ends.reshape(-1, 2)
    _, group = connected_components(coo_array((np.ones(len(ends)), ends.T), shape=(len(nodes), len(nodes))), directed=False)
    order = np.argsort(group, kind="stable")
    return np.split(nodes[order], np.flatnonzero(np.diff(group[order])) + 1)
