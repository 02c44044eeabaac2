"""Pictures that a set has more than once: the same pixels, the same picture in another form, and what an encoder can hardly tell apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smallview.data.name_list import list_text
from smallview.data.survey import Survey, survey
from smallview.embedded import vectors_of
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.evaluation.closeness import LIMIT, NEIGHBOURS, Close, close_groups
from smallview.evaluation.crops import Crop, find_crops, least_alike, with_crops
from smallview.evaluation.leakage import COPY
from smallview.evaluation.twins import twin_groups
from smallview.files import check_folder, write_text
from smallview.output.group_sheet import SIDE, Shown, fitting, group_sheet
from smallview.pictures import telling, told_when_stuck
from smallview.settings.fitting import printable
from smallview.settle import kept_threads, thread_count
from smallview.vectors import Vectors

LIST = "duplicates.txt"
Positions = npt.NDArray[np.int64]
KINDS = ("exact", "near", "semantic")
MISSED = 6
LEAST_NEAR = 0.9
BRIGHTER = 0.02  # of the whole range, in the mean
EVEN = 2  # percent between the sides of a crop that kept its aspect
LOOSE, CONFIRMED = 0.95, 0.3  # thumbnails that correlate less than near copies', where the encoder finds the two so close
Say = Callable[[str], None]


@dataclass(frozen=True)
class Double:
    """One picture of a group: its position in the source, its name, and in words in what it differs from the group's first."""

    position: int
    name: str
    differs: tuple[str, ...] = ()


Group = tuple[Double, ...]


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Groups of pictures by kind, the surest first; in each the picture that stands first in the set comes first, unless it is a part of another.

    A near group has one picture of each exact group, a semantic one of each exact or near group. missed: pairs that the semantic
    limit has just kept out. broken: pictures that cannot be read; unknown: those in whose features there is nothing.
    """

    data: str
    pictures: int
    exact: tuple[Group, ...]
    near: tuple[Group, ...]
    semantic: tuple[Group, ...]
    missed: tuple[Group, ...]
    limits: dict[str, float | bool]
    broken: int
    unknown: int

    @property
    def spare(self) -> tuple[str, ...]:
        """The names of all but the first of each exact and near group, in the set's order."""
        names = {one.position: one.name for group in (*self.exact, *self.near) for one in group[1:]}
        return tuple(names[i] for i in sorted(names))

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON."""
        told = {kind: [[asdict(one) for one in group] for group in getattr(self, kind)] for kind in (*KINDS, "missed")}
        counts = {"data": self.data, "pictures": self.pictures, "broken": self.broken, "unknown": self.unknown}
        return {**counts, "limits": self.limits, **told, "spare": list(self.spare)}

    def meaning(self, kind: str) -> str:
        """What makes two pictures a group of this kind, in words."""
        if kind == "exact":
            return "the same pixels"
        if kind == "near":
            turned = " or side" if self.limits["mirrored"] else ""
            least = least_alike(self.limits["near"])
            parts = f"; or a part of one: it and a window of the whole, moved to where they agree best, by {least:.2g} or more"
            return (
                f"the same picture in another size, quality, brightness{turned}: thumbnails correlate by {self.limits['near']:g} or more, "
                f"or by {LOOSE:g} where the encoder finds the two under {CONFIRMED:g} times as far apart as a picture and its "
                f"{NEIGHBOURS}th nearest usually are{parts * bool(self.limits['cropped'])}"
            )
        return (
            f"hardly told apart by the encoder: less than {self.limits['semantic']:g} times as far apart as a picture and its "
            f"{NEIGHBOURS}th nearest usually are"
        )


def duplicates(
    what: str | Path | nn.Module,
    data: Any,
    *,
    near: float = COPY,
    semantic: float = LIMIT,
    mirrored: bool = True,
    cropped: bool = True,
    out: str | Path | None = None,
    say: Say = lambda message: None,
    **options: Any,
) -> Duplicates:
    """Find pictures that a set has more than once; nothing is changed.

    what: an encoder, as for embed. data: pictures as for pretrain, or what embed wrote of them. near: by how much the thumbnails of two
    pictures must correlate, for the same picture in another form. semantic: how far apart the features of two pictures may be, in parts of the
    distance to the 10th nearest picture that is usual in the set; 0 finds none. mirrored, cropped: whether mirror images, and parts of
    pictures, are near copies. out: a folder for duplicates.txt and a sheet of each kind. options: pictures, device, threads, as for
    `vectors_of`.

    Raises:
        DataError: data that cannot be used. UsageError: limits that cannot be meant, or nothing that can embed.

    Example:
        >>> random = np.random.default_rng(0)
        >>> images = random.integers(0, 256, (60, 16, 16, 3), np.uint8)
        >>> images[7], images[9] = images[5], images[4][:, ::-1]
        >>> found = duplicates(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), images, threads=1, keep=False)
        >>> [[one.position for one in group] for group in (*found.exact, *found.near)], found.spare
        ([[5, 7], [4, 9]], ('07', '09'))
    """
    if not LEAST_NEAR <= near < 1.0:
        raise UsageError(
            f"near is {near:g}; wanted a correlation of thumbnails, {LEAST_NEAR} or more and under 1; {COPY} is the default"
        )
    if not 0.0 <= semantic <= 1.0:
        raise UsageError(f"semantic is {semantic:g}; wanted a part of the usual distance, 0 to 1; {LIMIT} is the default")
    if out is not None:
        check_folder(out)
    threads = thread_count(options.get("threads"))
    made = vectors_of(what, data, say=say, **options)
    if made.source is None:
        raise DataError(
            f"the pictures of {made.name} are not known, and copies are found by them; name their folder with --pictures"
        )
    source = made.source
    with kept_threads():
        torch.set_num_threads(threads)
        names = source.names
        with told_when_stuck(telling("reading", say), say, lambda i: names[min(i, len(names) - 1)]) as progress:
            seen = survey(source, most=0, threads=threads, progress=progress)
        equal, twins = twin_groups(seen, telling("comparing", say), copies=near, mirrored=mirrored)
        crops = (
            find_crops(seen, _firsts(seen, equal, twins), telling("looking for crops", say), copies=near, mirrored=mirrored)
            if cropped
            else []
        )
        kept = _rows(made, seen, _firsts(seen, equal, with_crops(twins, crops)))
        close = close_groups(made.unit(kept).numpy(), max(semantic, CONFIRMED))
    told = _Told(seen, made, kept, crops)
    sure, rest = told.parted(close, mirrored, semantic)
    found = Duplicates(
        data=os.fspath(data) if isinstance(data, (str, os.PathLike)) else source.name,
        pictures=len(seen),
        exact=tuple(tuple(told.double(i, group[0]) for i in group.tolist()) for group in sorted(equal, key=len, reverse=True)),
        near=told.near(with_crops(twins, crops, sure)),
        semantic=rest,
        missed=tuple(told.pair(i, j, far) for i, j, far in close.outside if far >= semantic)[:MISSED],
        limits={"near": near, "mirrored": mirrored, "cropped": cropped, "semantic": semantic},
        broken=len(seen.broken),
        unknown=int((~made.usable).sum()),
    )
    if out is not None:
        write(found, made, out)
    return found


def _firsts(seen: Survey, *kinds: list[Positions]) -> Positions:
    """All pictures but those that are not the first of a group."""
    again = np.concatenate([np.zeros(0, np.int64), *(group[1:] for groups in kinds for group in groups)])
    return np.delete(np.arange(len(seen)), again)


def _rows(made: Vectors, seen: Survey, which: Positions) -> Positions:
    """The rows of the vectors of these pictures of a survey; pictures that only one of the two could read have none."""
    assert made.positions is not None, "the caller has looked"
    return np.flatnonzero(np.isin(made.positions, seen.index[which])).astype(np.int64)


class _Told:
    """Says of pictures in what they differ. kept: the rows of the vectors that closeness was found among."""

    def __init__(self, seen: Survey, made: Vectors, kept: Positions, crops: list[Crop]) -> None:
        assert made.positions is not None, "duplicates has looked"
        self.seen = seen
        self.crops = {(crop.whole, crop.part): crop for crop in crops}
        self.places = np.searchsorted(seen.index, made.positions[kept])

    def double(self, i: int, first: int, *words: str) -> Double:
        """Picture i of the survey beside the first of its group; another label is always worth a word."""
        labels, classes = self.seen.labels, self.seen.source.classes
        label = ""
        if labels is not None and labels[i] != labels[first]:
            one, other = ((classes[int(labels[k])] if classes else int(labels[k])) for k in (i, first))
            label = f"label {one}, not {other}"
        return Double(int(self.seen.index[i]), self.seen.name(i), tuple(word for word in (label, *words) if word))

    def near(self, groups: list[Positions]) -> tuple[Group, ...]:
        """Groups of nearly equal pictures of the survey, the most alike first."""
        out = []
        for group in groups:
            first, *others = group.tolist()
            beside = [self._beside(i, self._nearest(i, group.tolist()), first) for i in others]
            members = (self.double(i, first, *words) for i, (_, words) in zip(others, beside, strict=True))
            out.append((min(alike for alike, _ in beside), (self.double(first, first), *members)))
        return tuple(group for _, group in sorted(out, key=lambda pair: -pair[0]))

    def _nearest(self, i: int, group: list[int]) -> int:
        """The picture of a group that i is told beside: the first, if it is a copy of this, or else one that it is a copy of."""
        for j in group:
            if j != i and ((i, j) in self.crops or (j, i) in self.crops or max(self.correlations(i, j)) >= LOOSE):
                return j
        return group[0]

    def _beside(self, i: int, other: int, first: int) -> tuple[float, tuple[str, ...]]:
        """(how alike they are, what is different) of picture i and another one, which is named if it is not the first of the group."""
        seen = self.seen
        plain, flipped = self.correlations(i, other)
        alike, turned = max(plain, flipped), flipped > plain
        size, its = ((int(seen.widths[k]), int(seen.heights[k])) for k in (i, other))
        lighter = float((seen.mean[i] - seen.mean[other]).mean())
        words = [f"{'brighter' if lighter > 0 else 'darker'} by {100 * abs(lighter):.0f} %" if abs(lighter) >= BRIGHTER else ""]
        part, whole = self.crops.get((other, i)), self.crops.get((i, other))
        if crop := part or whole:
            alike, turned = crop.alike, crop.mirrored
        if crop and crop.less:
            words = [f"cropped to {_percent(crop)}" if part else f"whole, not {_percent(crop)} of it"]
        return alike, (
            f"beside {seen.name(other)}" if other != first else "",
            "mirrored" if turned else "",
            *words,
            f"{size[0]} x {size[1]} px, not {its[0]} x {its[1]}" if size != its else "",
            f"alike by {alike:.4f}",
        )

    def correlations(self, i: int, j: int) -> tuple[float, float]:
        """How the thumbnails of two pictures correlate, and how the first one's mirror image does."""
        one, other = self.seen.thumbs[i].astype(np.float64), self.seen.thumbs[j].astype(np.float64)
        return _correlation(one, other), _correlation(one[:, ::-1], other)

    def parted(self, close: Close, mirrored: bool, limit: float) -> tuple[list[tuple[int, int]], tuple[Group, ...]]:
        """(pairs of the survey that are near copies by thumbnails and encoder together, the groups that are left under the limit)."""
        sure, rest = [], []
        for group, distances in zip(close.groups, close.distances, strict=True):
            first, *others = self.places[group].tolist()
            members = []
            for i, far in zip(others, distances[1:].tolist(), strict=True):
                plain, flipped = self.correlations(i, first) if far < CONFIRMED else (0.0, 0.0)
                if max(plain, flipped if mirrored else 0.0) >= LOOSE:
                    sure.append((first, i))
                elif far < limit:
                    members.append(self.double(i, first, f"{far:.2f} of the usual"))
            if members:
                rest.append((self.double(first, first), *members))
        return sure, tuple(rest)

    def pair(self, i: int, j: int, far: float) -> Group:
        """Two pictures that are no group, by their rows among those kept."""
        first, other = int(self.places[i]), int(self.places[j])
        return self.double(first, first), self.double(other, first, f"{far:.2f} of the usual")


def _percent(crop: Crop) -> str:
    wide, tall = crop.kept
    return f"{round((wide + tall) / 2)} %" if abs(wide - tall) <= EVEN else f"{wide} by {tall} %"


def _correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    a, b = one - one.mean(), other - other.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else float(np.array_equal(one, other))


def write(found: Duplicates, made: Vectors, out: str | Path) -> list[Path]:
    """Write duplicates.txt and a sheet of each kind; -> their paths.

    Raises:
        SmallviewError: a folder that cannot be written.
    """
    folder = Path(out)
    source = made.source
    assert source is not None, "duplicates has looked"
    kinds = f"exact ({found.meaning('exact')}) or near ({found.meaning('near')})"
    comments = [
        f"{len(found.spare):,} of {found.pictures:,} pictures of {printable(found.data)}: all but the first of each group, {kinds}",
        f"found by smallview duplicates; nothing was deleted; smallview pretrain {printable(found.data)} --exclude THIS leaves them out",
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / LIST, list_text(found.spare, comments))
    except OSError as error:
        raise SmallviewError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error
    paths = [folder / LIST]
    for kind in KINDS:
        groups: tuple[Group, ...] = getattr(found, kind)
        which = fitting([len(group) for group in groups])
        shown = [_shown(groups[i]) for i in which]
        count = f"{len(groups):,} group{'s' * (len(groups) != 1)}" + f", {len(which)} of them shown" * (
            len(which) < len(groups)
        )
        title = f"{kind.capitalize()}: {found.meaning(kind)}. {count}, the surest first."
        if kind == "semantic" and found.missed:
            shown += [_shown(pair, "just kept out:") for pair in found.missed]
            title += f" At the end, {len(found.missed)} pairs that are just kept out."
        paths.append(group_sheet(shown, lambda i: source.read(i, SIDE), folder / f"{kind}.png", title))
    return paths


def _shown(group: Group, head: str = "") -> list[Shown]:
    return [Shown(one.position, one.name, one.differs if k else (head,) * bool(head)) for k, one in enumerate(group)]
