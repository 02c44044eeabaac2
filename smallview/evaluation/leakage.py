"""Test pictures that the training part has as well, exactly or nearly: found by their thumbnails and by the encoder, named.

Legend: N training pictures, Q test pictures, F features, C channels, S the side of a thumbnail, k candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.evaluation.bench import Labeled
from smallview.evaluation.knn import nearest

COARSE = 8  # side of the thumbnails that are searched
CANDIDATES = 3
SAME_COARSE, SAME_FINE = 0.9, 0.8
SURE, OUTSTANDING = 0.97, 0.5  # where all pictures are much alike, as shirts on black are, nearly equal is more than that
COPY = 0.995  # recompressed, smaller or brighter copies of photos reach it, two shirts on black do not
FINER = 20.0  # times farther from 1 than that, what a blur leaves of them may be
# below this likeness the colours must agree as well: two pairs of trousers are of one outline; a copy that was recoloured is more alike
DOUBTED, SAME_COLOURS, COLOURFUL = 0.9, 0.4, 0.008
MOST_NAMED = 3


@dataclass(frozen=True)
class Leaks:
    """Pairs of nearly equal pictures: (test position, training position, how alike their details are, up to 1), best for each test picture."""

    pairs: tuple[tuple[int, int, float], ...]
    tested: int
    names: tuple[tuple[str, str], ...]

    @property
    def count(self) -> int:
        """Test pictures that the training part has as well."""
        return len(self.pairs)

    def sentence(self, train: str, test: str) -> str:
        """What was found, with the names of the first."""
        named = "; ".join(f"{a} is {b}" for a, b in self.names[:MOST_NAMED])
        return (
            f"{self.count:,} of {self.tested:,} test pictures of {test} ({100 * self.count / max(1, self.tested):.2g} %) are nearly "
            f"equal to training pictures of {train}: {named}{'; ...' * (self.count > MOST_NAMED)}; figures may be too good by that much"
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """One record per pair, for a file."""
        for (i, j, alike), (a, b) in zip(self.pairs, self.names, strict=True):
            yield {"test": i, "test_name": a, "train": j, "train_name": b, "alike": round(alike, 4)}


def _thumbnails(pixels: Tensor, channels: int) -> Tensor:
    """Gray [N, 1, S, S] of raw pixels [N, C * S * S]."""
    side = round((pixels.shape[1] / channels) ** 0.5)
    return pixels.reshape(len(pixels), channels, side, side).mean(1, keepdim=True)


def coarse_of(thumbnails: Tensor) -> Tensor:
    """Unit rows [N, 64] of [N, 1, S, S]: what is where, whatever the brightness and the contrast."""
    return _centred(F.adaptive_avg_pool2d(thumbnails, COARSE))


def _centred(thumbnails: Tensor) -> Tensor:
    rows = thumbnails.flatten(1)
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def details(thumbnails: Tensor) -> Tensor:
    """Unit rows: what is left without what is blurred. Two skies are alike in colour and gradient, not in these.

    Only where the whole blur lies inside: at the border any filling would leave the gradient in.
    """
    side = thumbnails.shape[-1]
    window = min(max(3, side // 8 * 2 + 1), side - (side + 1) % 2)
    inside = thumbnails[..., window // 2 : side - window // 2, window // 2 : side - window // 2]
    return F.normalize((inside - F.avg_pool2d(thumbnails, window, 1)).flatten(1), dim=1)


def alike(one: Tensor, other: Tensor, *, copies: float | None = None) -> Tensor:
    """How alike the details of thumbnails [N, 1, S, S] are, up to 1; 0 where they differ when coarse, 1 where they are the same: [N].

    copies: 0 as well for pictures that are much alike, but no copy of each other in another size, quality or brightness: whose
    thumbnails correlate by less than this, or their details by a less that is FINER times as far from 1.
    """
    same = (one - other).abs().amax((1, 2, 3)) < 0.5 / 255
    rough, least = (coarse_of, SAME_COARSE) if copies is None else (_centred, copies)
    found = same.float()
    close = torch.nonzero(((rough(one) * rough(other)).sum(1) >= least) & ~same)[:, 0]
    fine = (details(one[close]) * details(other[close])).sum(1)
    found[close] = fine if copies is None else fine * (fine >= 1.0 - FINER * (1.0 - copies))
    return found


def colours_differ(one: Tensor, other: Tensor) -> bool:
    """Whether two pictures [C, S, S] have colours, and these lie elsewhere in one than in the other.

    Example:
        >>> red, blue = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
        >>> red[0, :, :8], blue[2, :, :8] = 1.0, 1.0
        >>> colours_differ(red, blue), colours_differ(red, red / 2), colours_differ(red, red.mean(0).expand(3, 16, 16))
        (True, False, False)
    """

    def placed(picture: Tensor) -> Tensor:
        colour = F.adaptive_avg_pool2d(picture - picture.mean(0, keepdim=True), COARSE)
        return colour - colour.mean((1, 2), keepdim=True)

    a, b = placed(one), placed(other)
    if min(float(a.std()), float(b.std())) < COLOURFUL:
        return False
    return float((a * b).sum()) < SAME_COLOURS * float(a.norm() * b.norm())


def find_leaks(
    train: Labeled, test: Labeled, train_pixels: Tensor, test_pixels: Tensor, train_x: Tensor, test_x: Tensor
) -> Leaks:
    """Test pictures that are nearly equal to a training picture, also mirrored.

    pixels [N, C * S * S] and [Q, C * S * S]: the floor's, in [0, 1]; x [N, F] and [Q, F]: the encoder's features. Candidates are the
    nearest by coarse thumbnail and by feature; a pair counts where its details agree as well (correlation 0.8 of what a blur of an
    eighth of the side leaves) and agree far better than with the next candidate, where they agree almost wholly (0.97), or where the
    pixels are the same; below 0.9 the colours must not contradict.

    Source: the near-duplicates of Barz and Denzler, 2020 (ciFAIR) are what it is for.
    """
    channels = train.pictures.channels
    bank = torch.cat([coarse_of(_thumbnails(part, channels)) for part in train_pixels.split(4096)])
    best = np.zeros(len(test_pixels))
    partner = np.full(len(test_pixels), -1)
    mirrored = np.zeros(len(test_pixels), bool)
    for start in range(0, len(test_pixels), 1024):
        where = slice(start, start + 1024)
        plain = _thumbnails(test_pixels[where], channels)
        by_feature = nearest(train_x, test_x[where], CANDIDATES)[1]
        likeness: list[dict[int, tuple[float, bool]]] = [{} for _ in plain]
        for turned, thumbnails in enumerate((plain, plain.flip(3))):
            near, found = nearest(bank, coarse_of(thumbnails), CANDIDATES)
            found = torch.cat([torch.where(near >= SAME_COARSE, found, -1), by_feature], 1)  # [q, 2k]
            rows, columns = torch.nonzero(found >= 0, as_tuple=True)
            which = found[rows, columns]
            others = _thumbnails(train_pixels[which], channels)
            fine = alike(thumbnails[rows], others)
            for row, j, value in zip(rows.tolist(), which.tolist(), fine.tolist(), strict=True):
                likeness[row][j] = max((value, bool(turned)), likeness[row].get(j, (0.0, False)))
        for row, values in enumerate(likeness):
            j, (first, turned_round) = max(values.items(), key=lambda pair: pair[1], default=(-1, (0.0, False)))
            second = max((value for other, (value, _) in values.items() if other != j), default=0.0)
            if first >= SURE or (first >= SAME_FINE and 1.0 - first <= OUTSTANDING * (1.0 - second)):
                best[start + row], partner[start + row], mirrored[start + row] = first, j, turned_round
    for i in np.flatnonzero((partner >= 0) & (best < DOUBTED)):
        one, other = (row.reshape(channels, -1, plain.shape[-1]) for row in (test_pixels[i], train_pixels[partner[i]]))
        if colours_differ(one.flip(2) if mirrored[i] else one, other):
            partner[i] = -1
    pairs = tuple((int(i), int(partner[i]), float(best[i])) for i in np.flatnonzero(partner >= 0))
    return Leaks(pairs, len(test_pixels), tuple((_name(test, i), _name(train, j)) for i, j, _ in pairs))


def _name(part: Labeled, i: int) -> str:
    name = part.names[i] if part.names is not None else str(i)
    return f"{part.name}/{name}".encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
