"""Pictures that are there twice, exactly or nearly: found by their thumbnails, and by an encoder where there is one; named.

Legend: N training pictures, Q test pictures, F features, C channels, S the side of a thumbnail, k candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.evaluation.bench import Labeled
from smallview.evaluation.knn import nearest

COARSE = 8  # side of the thumbnails that are searched
CANDIDATES = 3
SAME_COARSE, SAME_FINE = 0.9, 0.8
STRICT_WHOLE, STRICT_FINE = (
    0.99,
    0.9,
)  # what recompressed, smaller or brighter copies of photos reach, and two shirts on black do not
MOST_NAMED = 3
Take = Callable[[Tensor], Tensor]  # positions int64 [n] -> gray thumbnails [n, 1, S, S] in [0, 1]


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


def _coarse(thumbnails: Tensor) -> Tensor:
    """Unit rows [N, 64]: what is where, whatever the brightness and the contrast."""
    return _centred(F.adaptive_avg_pool2d(thumbnails, COARSE))


def _centred(thumbnails: Tensor) -> Tensor:
    flat = thumbnails.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def _details(thumbnails: Tensor) -> Tensor:
    """Unit rows: what is left without what is blurred. Two skies are alike in colour and gradient, not in these.

    Only where the whole blur lies inside: at the border any filling would leave the gradient in.
    """
    side = thumbnails.shape[-1]
    window = min(max(3, side // 8 * 2 + 1), side - (side + 1) % 2)
    inside = thumbnails[..., window // 2 : side - window // 2, window // 2 : side - window // 2]
    return F.normalize((inside - F.avg_pool2d(thumbnails, window, 1)).flatten(1), dim=1)


def find_leaks(
    train: Labeled, test: Labeled, train_pixels: Tensor, test_pixels: Tensor, train_x: Tensor, test_x: Tensor
) -> Leaks:
    """Test pictures that are nearly equal to a training picture, also mirrored.

    pixels [N, C * S * S] and [Q, C * S * S]: the floor's, in [0, 1]; x [N, F] and [Q, F]: the encoder's features. Candidates are the
    nearest by coarse thumbnail and by feature; a pair counts where its details agree as well (correlation 0.8 of what a blur of an
    eighth of the side leaves), or where the pixels are the same.

    Source: the near-duplicates of Barz and Denzler, 2020 (ciFAIR) are what it is for.
    """
    channels = train.pictures.channels
    takes = [lambda which, pixels=pixels: _thumbnails(pixels[which], channels) for pixels in (train_pixels, test_pixels)]
    best: dict[int, tuple[int, float]] = {}
    positions = torch.arange(len(test_pixels))
    for i, j, value in near_equal(
        takes[0], len(train_pixels), takes[1], positions, also=lambda which: nearest(train_x, test_x[which], CANDIDATES)[1]
    ):
        if value > best.get(i, (-1, 0.0))[1]:
            best[i] = j, value
    pairs = tuple((i, *best[i]) for i in sorted(best))
    return Leaks(pairs, len(test_pixels), tuple((_name(test, i), _name(train, j)) for i, j, _ in pairs))


def near_equal(
    bank: Take,
    size: int,
    asked: Take,
    positions: Tensor,
    *,
    also: Callable[[Tensor], Tensor] | None = None,
    mirrored: bool = True,
    within: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[int, int, float]]:
    """(position asked, position in the bank of `size` pictures, how alike their details are) of all pairs that are nearly equal.

    also: more candidates [q, k] to look at than the nearest coarse thumbnails. within: both are the same pictures, and none is its own
    pair. strict: copies only, no pictures that are merely much alike. A pair may come more than once.
    """
    coarse = torch.cat([_coarse(bank(part)) for part in torch.arange(size).split(4096)])
    done = 0
    for which in positions.split(1024):
        plain = asked(which)
        more = which.new_zeros(len(which), 0) if also is None else also(which)
        for thumbnails in (plain, plain.flip(3)) if mirrored else (plain,):
            alike, found = nearest(coarse, _coarse(thumbnails), CANDIDATES + within)
            found = torch.cat([torch.where(alike >= SAME_COARSE, found, -1), more], 1)  # [q, 2k]
            if within:
                found = torch.where(found == which[:, None], -1, found)
            rows, columns = torch.nonzero(found >= 0, as_tuple=True)
            others, own = bank(found[rows, columns]), thumbnails[rows]
            same = (own - others).abs().amax((1, 2, 3)) < 0.5 / 255
            seen, least = (_centred, STRICT_WHOLE) if strict else (_coarse, SAME_COARSE)
            rough = (seen(own) * seen(others)).sum(1) >= least
            fine = torch.where(same, 1.0, (_details(own) * _details(others)).sum(1) * rough)
            kept = fine >= (STRICT_FINE if strict else SAME_FINE)
            yield from zip(which[rows[kept]].tolist(), found[rows, columns][kept].tolist(), fine[kept].tolist(), strict=True)
        done += len(which)
        progress(done, len(positions))


def _name(part: Labeled, i: int) -> str:
    name = part.names[i] if part.names is not None else str(i)
    return f"{part.name}/{name}".encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
