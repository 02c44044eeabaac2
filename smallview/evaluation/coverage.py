"""Which pictures stand for a set: in an order of which every beginning covers as much of the set as it can.

Legend: N pictures, F features, R of them that must be stood for, L with labels already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.evaluation.closeness import directions
from smallview.seeds import generator

REFERENCE = 8192  # pictures that must be stood for; more change the order little
TRIED = 64
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Covering:
    """chosen: positions int64 [n] in their order; covered: the part of the set that is stood for after each, float32 [n], before: and before."""

    chosen: Positions
    covered: npt.NDArray[np.float32]
    before: float


def cover(
    features: npt.NDArray[np.float32],
    n: int,
    labeled: npt.NDArray[np.bool_] | None = None,
    *,
    weights: npt.NDArray[np.float32] | None = None,
    seed: int = 0,
) -> Covering:
    """The positions of up to n pictures by their features [N, F]: each the one that brings most to those before it.

    A picture is stood for by the most similar one that is chosen or labeled, as far as their directions from the mean agree (cosine, from 0 on);
    chosen is whoever raises the mean of that over all most. So the first are typical, the next unlike them, and none is a copy of another.
    labeled bool [N]: pictures that stand for others already and are not chosen; nothing is known of their labels. weights float32 [N], from 0 on:
    how much it counts that each is stood for; `covered` counts all alike. Pictures whose features are all zero are not chosen. Sets over
    REFERENCE pictures are stood for by so many, drawn by the seed.

    Source: Nemhauser, Wolsey and Fisher, 1978 (greedy is within 1 - 1/e of the best); the lazy order of trial is Minoux's, 1978.

    Raises:
        DataError: features that are not finite.

    Example:
        >>> x = np.array([[1, 0], [1, 0.1], [1, -0.1], [0, 1], [0.1, 1], [-1, -1]], np.float32)
        >>> cover(x, 3).chosen.tolist(), cover(x, 2, np.arange(6) == 0).chosen.tolist()
        ([0, 3, 5], [3, 5])
    """
    unit = directions(features)
    labeled = np.zeros(len(unit), np.bool_) if labeled is None else labeled
    known = (unit.norm(dim=1) > 0.5).numpy()
    places = np.flatnonzero(known)
    drawn = places if len(places) <= REFERENCE else np.sort(generator(seed, "cover").permutation(places)[:REFERENCE])
    those = unit[torch.from_numpy(drawn)]  # [R, F]
    heavy = None if weights is None else torch.from_numpy(weights[drawn])  # [R]
    best = torch.zeros(len(those))
    for part in unit[torch.from_numpy(labeled & known)].split(1024):
        best = torch.maximum(best, (those @ part.T).amax(1)) if len(part) else best
    size = max(1, len(those))
    before = float(best.sum()) / size
    candidates = torch.from_numpy(np.flatnonzero(known & ~labeled))
    most = (
        torch.cat([_gains(those, best, unit[part], heavy) for part in candidates.split(1024)])
        if len(candidates)
        else torch.zeros(0)
    )
    chosen, covered = [], []
    for _ in range(min(n, len(candidates))):
        at = _next(those, best, unit, candidates, most, heavy)
        best = torch.maximum(best, those @ unit[candidates[at]])
        most[at] = -1.0
        chosen.append(int(candidates[at]))
        covered.append(float(best.sum()) / size)
    return Covering(np.array(chosen, np.int64), np.array(covered, np.float32), before)


def _gains(those: Tensor, best: Tensor, rows: Tensor, heavy: Tensor | None) -> Tensor:
    """What each of some rows [n, F] would bring: [n]."""
    more = (those @ rows.T - best[:, None]).clamp_(min=0)
    return more.sum(0) if heavy is None else heavy @ more


def _next(those: Tensor, best: Tensor, unit: Tensor, candidates: Tensor, most: Tensor, heavy: Tensor | None) -> int:
    """Which candidate brings most. most: what each brought at most when last tried, and is brought up to date where it is tried again.

    What one brings can only fall, so whoever beats what the others once brought is the one.
    """
    fresh = torch.zeros(len(most), dtype=torch.bool)
    while True:
        at = int(most.argmax())
        if fresh[at]:
            return at
        tried = most.masked_fill(fresh | (most < 0), -2.0).topk(min(TRIED, len(most)))
        which = tried.indices[tried.values >= 0]
        most[which] = _gains(those, best, unit[candidates[which]], heavy)
        fresh[which] = True
