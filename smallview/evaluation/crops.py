"""Pictures that are a part of another one of the set: windows of each are compared with every whole picture.

Legend: N pictures, W windows of one, n pairs, S and s sides in pixels; boxes as in `windows`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from smallview.data.decoding import BadPicture, Pixels
from smallview.data.survey import Survey
from smallview.evaluation.leakage import COARSE, COPY, coarse_of, colours_differ, details
from smallview.evaluation.twins import joined
from smallview.evaluation.windows import LEAST, WHOLE, cut, fitted, weights, windows

LIKELY, CANDIDATES = 0.8, 6  # how alike a picture and a window must be when coarse; other pictures that are tried for each
DIRECTIONS, ROUNDED = 32, 0.03  # of coarse rows, in which they are compared, and how much likeness that may cost
SIDE, FINEST = 24, 48  # of the windows that are compared: those of thumbnails, and of the pictures themselves
# times as far from 1 as COPY's thumbnails, a window and its part may be: the whole of them, and what a blur leaves. Planted crops of
# 32 px keep within 2.5 for the whole and 5 for the rest; of photos of clothes, which are no copies, the nearest is at 10.
LOOSER, LOOSEST = 6.0, 0.9
# where most pictures have another one with a window like them, as trousers on black do, a part must be this much nearer to its whole
COMMON, OUTSTANDING = 0.95, 0.15
ALL = 99  # percent of a side from which on nothing is cut off
SAME_COLOUR = 0.1  # between the mean colours of window and part, brightness taken out
ORIGINALS, FEW, WHOLES = (
    256,
    8,
    1024,
)  # pictures with windows between two sortings, and in one product; those they are compared with
TRIED = 512  # pairs that are fitted at a time
Progress = Callable[[int, int], None]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Crop:
    """Picture `part` is what the box cuts out of picture `whole`, mirrored or not; alike: how the two correlate."""

    whole: int
    part: int
    box: tuple[float, float, float, float]
    mirrored: bool
    alike: float

    @property
    def kept(self) -> tuple[int, int]:
        """How many percent of the whole's width and of its height are there."""
        left, top, right, bottom = self.box
        return round(100 * (right - left)), round(100 * (bottom - top))

    @property
    def less(self) -> bool:
        """Whether something is cut off."""
        return min(self.kept) < ALL


@dataclass(frozen=True, eq=False)
class Pairs:
    """n pairs (whole, part) int64 [n], with a box [n, 4] for each, whether the part is mirrored, and how alike they are so far [n]."""

    whole: Tensor
    part: Tensor
    boxes: Tensor
    mirrored: Tensor
    alike: Tensor

    def __len__(self) -> int:
        return len(self.whole)

    def of(self, which: Tensor) -> Pairs:
        """These of the pairs."""
        return Pairs(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def least_alike(copies: float) -> float:
    """By how much a window and its part must correlate, where thumbnails of whole copies do by `copies`.

    Example:
        >>> round(least_alike(COPY), 3), least_alike(0.9)
        (0.97, 0.9)
    """
    return max(LOOSEST, 1.0 - LOOSER * (1.0 - copies))


def find_crops(
    seen: Survey,
    which: Positions,
    progress: Progress = lambda done, total: None,
    *,
    copies: float = COPY,
    mirrored: bool = True,
) -> list[Crop]:
    """Pictures of `which` that are a part of another one of them, 0.6 to all of each side, as positions in the survey.

    A window is moved until it is most like the part. Both have to correlate by `least_alike`, and so has what a blur leaves
    of them; in thumbnails first, then in the pictures themselves, where the colours have to agree as well. Where windows and
    other pictures of the set are alike as a rule, a pair must stand out.
    """
    least = least_alike(copies)
    found = []
    for pair in thumbnail_crops(seen.thumbs, which, least, mirrored=mirrored, progress=progress):
        crop = _looked_at(seen, pair, least)
        if crop is not None:
            found.append(crop)
    return found


def thumbnail_crops(
    thumbs: Pixels,
    which: Positions,
    least: float,
    *,
    mirrored: bool = True,
    progress: Progress = lambda done, total: None,
) -> list[Crop]:
    """Crops among those of the gray thumbnails uint8 [N, S, S], as far as these tell.

    Example:
        >>> from PIL import Image
        >>> random = np.random.default_rng(0)
        >>> coarse = [Image.fromarray(random.integers(0, 256, (9, 9), np.uint8)).resize((64, 64), 3) for _ in range(12)]
        >>> pictures = [*coarse, coarse[4].crop((6, 4, 58, 56))]
        >>> thumbs = np.stack([picture.resize((32, 32)) for picture in pictures])
        >>> [(crop.whole, crop.part, crop.kept) for crop in thumbnail_crops(thumbs, np.arange(13), 0.97)]
        [(4, 12, (81, 81))]
    """
    if len(which) < 2:
        return []
    pairs = likely(thumbs, which, mirrored=mirrored, progress=progress)
    boxes, whole, rest = [pairs.boxes[:0]], [pairs.alike[:0]], [pairs.alike[:0]]
    for some in torch.arange(len(pairs)).split(TRIED) if len(pairs) else ():
        tried = pairs.of(some)
        parts = cut(
            _turned(_levels(thumbs[tried.part.numpy()]), tried.mirrored), torch.tensor([WHOLE]).expand(len(some), 4), SIDE
        )
        wholes = _levels(thumbs[tried.whole.numpy()])
        box, alike = fitted(wholes, parts, tried.boxes)
        boxes.append(box)
        whole.append(alike)
        rest.append(_rest(cut(wholes, box, SIDE), parts))
    pairs = replace(pairs, boxes=torch.cat(boxes), alike=torch.cat(whole))
    fine = torch.cat(rest)
    usual = _usual(pairs.part, fine, len(thumbs), len(which))
    good = (pairs.alike >= least) & (fine >= least) & (1.0 - fine <= OUTSTANDING * (1.0 - usual[pairs.part]))
    return _listed(pairs.of(good))


def likely(thumbs: Pixels, among: Positions, *, mirrored: bool = True, progress: Progress = lambda done, total: None) -> Pairs:
    """Of each picture, up to CANDIDATES others with a window that is like it when coarse, and this window; of uint8 [N, S, S].

    Time grows with N * N * W. Memory holds half a kilobyte a picture, and 100 MB.
    """
    n, side, boxes = len(among), thumbs.shape[1], windows()
    # one product with this cuts all windows
    left, top, right, bottom = boxes.T
    rows, columns = weights(top, bottom, side, COARSE), weights(left, right, side, COARSE)
    cutter = torch.einsum("was,wbt->wabst", rows, columns).reshape(-1, side * side)
    whole = torch.cat([coarse_of(_levels(thumbs[among[first : first + WHOLES]])[:, None]) for first in range(0, n, WHOLES)])
    directions = torch.linalg.eigh(whole.T @ whole)[1][:, -DIRECTIONS:]
    bank = [part.T.contiguous() for part in (whole @ directions).split(WHOLES)]
    best = _Best(n)
    for first in range(0, n, ORIGINALS):
        some = _cut_rows(thumbs[among[first : first + ORIGINALS]], cutter, mirrored)  # [b, W, 64]
        views = (some.flatten(0, 1) @ directions).split(FEW * some.shape[1])
        for k, part in enumerate(bank):
            near = torch.cat([(view @ part).view(-1, some.shape[1], part.shape[1]).amax(1) for view in views])
            best.offer(near, first, k * WHOLES)
        best.sort()
        progress(min(n, first + ORIGINALS), n)
    one, other = best.pairs()
    window, alike = torch.zeros_like(one), torch.zeros(len(one))
    for part in torch.arange(len(one)).split(TRIED) if len(one) else ():
        which, back = torch.unique(one[part], return_inverse=True)
        some = _cut_rows(thumbs[among[which.numpy()]], cutter, mirrored)
        for k in range(len(which)):
            asked = part[back == k]
            alike[asked], window[asked] = (whole[other[asked]] @ some[k].T).max(1)
    places = torch.from_numpy(among)
    pairs = Pairs(places[one], places[other], boxes[window % len(boxes)], window >= len(boxes), alike)
    return pairs.of(alike >= LIKELY)


class _Best:
    """The CANDIDATES pictures with the windows most like each of n pictures, of those offered so far."""

    def __init__(self, n: int) -> None:
        self.values = torch.full((n, CANDIDATES), LIKELY - ROUNDED)
        self.which = torch.full((n, CANDIDATES), -1)
        self.offered: list[tuple[Tensor, Tensor, Tensor]] = []

    def offer(self, near: Tensor, first: int, start: int) -> None:
        """How alike [b, m] pictures from `first` on, by their windows, and whole ones from `start` on are."""
        row, column = torch.nonzero(near > self.values[start : start + near.shape[1], -1], as_tuple=True)
        other = row + first != column + start
        row, column = row[other], column[other]
        self.offered.append((column + start, row + first, near[row, column]))

    def sort(self) -> None:
        """Take in what was offered."""
        part, one, value = (torch.cat(columns) for columns in zip(*self.offered, strict=True))
        self.offered = []
        touched, back = torch.unique(part, return_inverse=True)
        row = torch.cat([torch.arange(len(touched)).repeat_interleave(CANDIDATES), back])
        value = torch.cat([self.values[touched].flatten(), value])
        one = torch.cat([self.which[touched].flatten(), one])
        order = torch.from_numpy(np.lexsort((-value.numpy(), row.numpy())))
        # in each row of touched there are CANDIDATES or more
        first = torch.searchsorted(row[order], torch.arange(len(touched)))
        kept = order[first[:, None] + torch.arange(CANDIDATES)]
        self.values[touched], self.which[touched] = value[kept], one[kept]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(pictures with a window, those that it is like), sorted."""
        part, place = torch.nonzero(self.which >= 0, as_tuple=True)
        one = self.which[part, place]
        order = torch.argsort(one, stable=True)
        return one[order], part[order]


def _usual(part: Tensor, fine: Tensor, n: int, asked: int) -> Tensor:
    """How alike to the last of its candidates a picture is, or most of those asked are, if that is more: [n]."""
    table = torch.zeros(n, CANDIDATES)
    order = torch.from_numpy(np.lexsort((-fine.numpy(), part.numpy())))
    sorted_part = part[order]
    place = torch.arange(len(part)) - torch.searchsorted(sorted_part, sorted_part)
    table[sorted_part, place] = fine[order]
    last = table[:, -1]
    most = np.partition(np.r_[last[last > 0].numpy(), np.zeros(asked - int((last > 0).sum()), np.float32)], int(COMMON * asked))
    return last.clamp(min=float(most[int(COMMON * asked)]))


def _listed(pairs: Pairs) -> list[Crop]:
    """The pairs as crops; of two pictures that are each other's part, the one way that keeps less."""
    best: dict[tuple[int, int], Crop] = {}
    for whole, part, box, mirrored, alike in zip(
        *(getattr(pairs, name).tolist() for name in pairs.__dataclass_fields__), strict=True
    ):
        crop = Crop(whole, part, tuple(box), mirrored, alike)
        two = min(whole, part), max(whole, part)
        if two not in best or sum(crop.kept) < sum(best[two].kept):
            best[two] = crop
    return [best[two] for two in sorted(best)]


def _looked_at(seen: Survey, crop: Crop, least: float) -> Crop | None:
    """The crop with its box moved to where the pictures themselves agree best; None if they do not, or their colours do not."""
    try:
        whole, part = (_small(seen.source.read(int(seen.index[i]), 2 * FINEST)) for i in (crop.whole, crop.part))
    except BadPicture:
        return None
    if crop.mirrored:
        part = part.flip(2)
    side = max(SIDE, min(FINEST, *part.shape[1:], *(int(LEAST * size) for size in whole.shape[1:])))
    everything = torch.tensor([WHOLE])
    small = cut(part, everything.expand(len(part), 4), side)
    box, alike = fitted(whole.mean(0, keepdim=True), small.mean(0, keepdim=True), torch.tensor([crop.box]), 3)
    window = cut(whole, box.expand(len(whole), 4), side)
    if float(alike) < least or float(_rest(window.mean(0, keepdim=True), small.mean(0, keepdim=True))) < least:
        return None
    if len(window) == len(small) == 3:
        one, other = ((mean - mean.roll(1)) for mean in (window.mean((1, 2)), small.mean((1, 2))))
        if float((one - other).abs().max()) >= SAME_COLOUR or colours_differ(window, small):
            return None
    left, top, right, bottom = box[0].tolist()
    return replace(crop, box=(left, top, right, bottom), alike=float(alike))


def _small(pixels: Pixels) -> Tensor:
    """A picture [C, H, S] in 0..1, no side of it over 4 * FINEST; one plane, or three."""
    if pixels.shape[2] not in (1, 3):
        pixels = np.asarray(pixels.mean(2, keepdims=True) + 0.5, np.uint8)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    size = min(image.width, 4 * FINEST), min(image.height, 4 * FINEST)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    levels = torch.from_numpy(np.array(image, np.float32).reshape(image.height, image.width, -1)) / 255
    return levels.permute(2, 0, 1)


def _rest(one: Tensor, other: Tensor) -> Tensor:
    """How what a blur leaves of two pictures [n, s, s] correlates, [n]."""
    return (details(one[:, None]) * details(other[:, None])).sum(1)


def _levels(thumbs: Pixels) -> Tensor:
    return torch.from_numpy(thumbs.astype(np.float32)) / 255


def _turned(pictures: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None], pictures.flip(2), pictures)


def _cut_rows(thumbs: Pixels, cutter: Tensor, mirrored: bool) -> Tensor:
    """Coarse unit rows [b, W, 64] of all windows of b pictures, then those of the mirrored windows."""
    cuts = (_levels(thumbs).flatten(1) @ cutter.T).reshape(-1, 1, COARSE, COARSE)
    turns = (cuts, cuts.flip(3)) if mirrored else (cuts,)
    return torch.cat([coarse_of(turn).reshape(len(thumbs), -1, COARSE * COARSE) for turn in turns], 1)


def with_crops(groups: list[Positions], crops: list[Crop], pairs: list[tuple[int, int]] | None = None) -> list[Positions]:
    """Groups of near copies, the crops among their firsts and further pairs, joined where they share a picture.

    Each group rises, but what is a part of another comes last: so its first is the whole picture wherever the set has it, and a list of all
    others keeps that one.

    Example:
        >>> part = Crop(whole=5, part=1, box=(0.0, 0.0, 0.8, 0.8), mirrored=False, alike=0.99)
        >>> [group.tolist() for group in with_crops([np.array([1, 2]), np.array([5, 9])], [part])]
        [[5, 9, 1, 2]]
    """
    parts = {crop.part for crop in crops if crop.less}
    parts |= {int(i) for group in groups for i in group if int(group[0]) in parts}
    near = [(int(group[0]), int(i)) for group in groups for i in group[1:]]
    made = joined([*near, *((crop.whole, crop.part) for crop in crops), *(pairs or [])])
    return [group[np.argsort([int(i) in parts for i in group], kind="stable")] for group in made]
