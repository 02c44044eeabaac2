"""Parts of a source: the pictures trained on, and a cut in two, for choosing settings on what is not trained on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallview.data.decoding import Pixels
from smallview.data.sources import Source, content_hash
from smallview.errors import DataError, UsageError
from smallview.seeds import derive, generator


@dataclass(frozen=True)
class Subset:
    """Which pictures of a set are trained on; drawn by the run's seed, the smaller of two from the larger.

    pictures: so many; fraction: such a part of all; per_class: so many of each class. classes: of so many classes drawn at random, each with
    its part of `pictures`. chosen_by: a run or encoder folder, in whose eyes the chosen are typical and diverse; no label is looked at.
    equal_steps: an epoch has as many steps as one of all the pictures, so that a subset is seen more often and costs as much.

    Source: Cao and Wu, 2021 (S3L): n of each class, C classes, T pictures; typical and diverse: Hacohen et al., 2022 (TypiClust).

    Raises:
        ValueError: nothing chosen, or several things that contradict each other.

    Example:
        >>> Subset(per_class=10).per_class
        10
    """

    pictures: int | None = None
    fraction: float | None = None
    per_class: int | None = None
    classes: int | None = None
    chosen_by: str | None = None
    equal_steps: bool = False

    def __post_init__(self) -> None:
        said = [name for name in ("pictures", "fraction", "per_class") if getattr(self, name) is not None]
        if len(said) > 1 or not (said or self.classes):
            raise ValueError(
                f"a subset is said by {' and '.join(said) or 'nothing'}; wanted one of pictures, fraction, per_class"
            )
        for name in ("pictures", "per_class", "classes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction is {self.fraction:g}; wanted a part of all pictures, above 0 and at most 1")
        if self.chosen_by is not None and (self.per_class is not None or self.classes is not None):
            raise ValueError("chosen_by goes with pictures or fraction, for it looks at no label")

    def __str__(self) -> str:
        """As `read_subset` takes it, and what that cannot say.

        Example:
            >>> print(Subset(fraction=0.1, equal_steps=True), read_subset("20classes:5000"))
            10% in equal steps 20classes:5000
        """
        many = str(self.pictures) if self.pictures is not None else None
        if self.classes is not None:
            many = f"{self.classes}classes" + (f":{many}" if many else "")
        elif self.fraction is not None:
            many = f"{100.0 * self.fraction:g}%"
        elif self.per_class is not None:
            many = f"{self.per_class}/class"
        chosen = "" if self.chosen_by is None else f" chosen by {Path(self.chosen_by).name}"
        return f"{many}{chosen}" + " in equal steps" * self.equal_steps

    def count(self, n: int) -> int:
        """How many of n pictures, where classes do not decide."""
        return (
            n if self.fraction is None and self.pictures is None else self.pictures or max(1, round((self.fraction or 1) * n))
        )


def read_subset(text: str) -> Subset:
    """A subset as one writes it on the command line: 5000, 10%, 10/class, 20classes or 20classes:5000.

    Raises:
        UsageError: text that means none.

    Example:
        >>> read_subset("10%").fraction, read_subset("10/class").per_class, read_subset("20classes:5000").pictures
        (0.1, 10, 5000)
    """
    number, share, each, classes = (
        re.fullmatch(pattern, text.strip())
        for pattern in (r"(\d+)", r"(\d+(?:\.\d+)?)%", r"(\d+)/class", r"(\d+)classes(?::(\d+))?")
    )
    try:
        if number:
            return Subset(pictures=int(number[1]))
        if share:
            return Subset(fraction=float(share[1]) / 100.0)
        if each:
            return Subset(per_class=int(each[1]))
        if classes:
            return Subset(classes=int(classes[1]), pictures=int(classes[2]) if classes[2] else None)
    except ValueError as error:
        raise UsageError(f'--subset is "{text}": {error}') from None
    raise UsageError(
        f'--subset is "{text}"; wanted a number of pictures, as in 5000, a part, as in 10%, some of each class, as in 10/class, or classes, '
        "as in 20classes or 20classes:5000"
    )


def positions(source: Source, subset: Subset, seed: int) -> npt.NDArray[np.int64]:
    """The positions of a subset's pictures, rising, int64; a larger subset of the same kind and seed holds a smaller one.

    `chosen_by` is not for here: `typical_and_diverse` has what it needs.

    Raises:
        DataError: more asked for than there is, or classes of pictures without labels.

    Example:
        >>> from smallview.data.sources import open_source
        >>> source = open_source((np.zeros((6, 4, 4), np.uint8), [0, 0, 0, 1, 1, 1]))
        >>> len(positions(source, Subset(per_class=2), seed=0))
        4
    """
    n, draw = len(source), generator(seed, "subset")
    if subset.per_class is None and subset.classes is None:
        return np.sort(draw.permutation(n)[: _enough(subset.count(n), n, f"pictures of {source.name}")]).astype(np.int64)
    if source.labels is None:
        raise DataError(
            f"a subset by classes is asked for and {source.name} has no labels; wanted class folders, or a number of pictures"
        )
    labels = source.labels
    known = np.unique(labels[labels >= 0])
    if subset.classes is not None:
        known = np.sort(draw.permutation(known)[: _enough(subset.classes, len(known), f"classes of {source.name}")])
    each = subset.per_class
    if each is None and subset.pictures is not None:
        each = subset.pictures // len(known)
        if each < 1:
            raise DataError(f"{subset.pictures} pictures of {len(known)} classes are asked for; wanted one of each at least")
    out = []
    for label in known:
        members = np.flatnonzero(labels == label)
        called = source.classes[int(label)] if source.classes else int(label)
        order = generator(seed, "subset", int(label)).permutation(members)
        out.append(order[: len(members) if each is None else _enough(each, len(members), f"pictures of class {called}")])
    return np.sort(np.concatenate(out)).astype(np.int64)


def _enough(wanted: int, there: int, what: str) -> int:
    if wanted > there:
        raise DataError(f"{wanted:,} {what} are asked for and there are {there:,}; wanted at most these")
    return wanted


def typical_and_diverse(features: npt.NDArray[np.float32], n: int, seed: int) -> npt.NDArray[np.int64]:
    """The positions, rising, of n pictures by their features [N, F]: spread over clusters, and near the middle of each.

    Source: after Hacohen et al., 2022 (TypiClust): as many clusters as pictures are chosen, up to 500 and of 20 pictures on average; of
    each the one nearest to its centre, then the next ones, in turns.

    Example:
        >>> two = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
        >>> [int(i) // 10 for i in typical_and_diverse(two, 2, seed=0)]
        [0, 1]
    """
    from sklearn.cluster import KMeans

    n = _enough(n, len(features), "pictures")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # of 20 pictures on average: small clusters are what is strange, and not what is typical
    clusters = min(n, 500, max(2, len(unit) // 20), len(np.unique(unit, axis=0)))
    some = generator(seed, "clusters").permutation(len(unit))[: max(50 * clusters, 10_000)]
    found = KMeans(clusters, n_init=1, max_iter=30, random_state=derive(seed, "clusters") % 2**31).fit(unit[some])
    near = np.empty(len(unit), np.int64), np.empty(len(unit), np.float32)
    for start in range(0, len(unit), 65_536):
        far = found.transform(unit[start : start + 65_536])
        near[0][start : start + len(far)], near[1][start : start + len(far)] = far.argmin(1), far.min(1)
    order = np.lexsort((near[1], near[0]))  # by cluster, the nearest first
    starts = np.searchsorted(near[0][order], near[0][order], side="left")
    turn = np.arange(len(order)) - starts
    return np.sort(order[np.lexsort((near[1][order], turn))][:n]).astype(np.int64)


def taken(source: Source, positions: npt.NDArray[np.int64], name: str) -> Source:
    """The pictures at these positions of a source, in that order, as a source of its own.

    Example:
        >>> from smallview.data.sources import open_source
        >>> some = taken(open_source(np.arange(48, dtype=np.uint8).reshape(3, 4, 4)), np.array([2, 0]), "some")
        >>> len(some), int(some.read(0)[0, 0, 0])
        (2, 32)
    """
    reader = source.reader

    def read(i: int, short_side: int | None) -> tuple[Pixels, int | None]:
        return reader(int(positions[i]), short_side)

    array = None if source.array is None else np.ascontiguousarray(source.array[positions])
    if array is not None:
        n, height, width, channels = array.shape
        fingerprint: str | None = content_hash(array, np.full(n, height), np.full(n, width), channels)
    elif source.fingerprint is not None:
        fingerprint = hashlib.sha256(source.fingerprint.encode() + positions.astype("<i8").tobytes()).hexdigest()
    else:
        fingerprint = None
    return replace(
        source,
        name=name,
        names=source.names.take(positions),
        reader=read,
        labels=None if source.labels is None else source.labels[positions],
        array=array,
        fingerprint=fingerprint,
        root=None,
        stamps=None if source.stamps is None else source.stamps[positions],
        place=None,
    )


def cut(source: Source, part: float, seed: int) -> tuple[Source, Source]:
    """(the rest, a seeded `part`) of a source: of every class alike where it has labels; one picture at least on either side.

    Raises:
        DataError: fewer than two pictures, or a class with one alone.
    """
    n = len(source)
    if n < 2:
        raise DataError(f"{source.name} has {n} picture; wanted two or more to cut a part from")
    labels = np.zeros(n, np.int64) if source.labels is None else source.labels
    draw = generator(seed, "cut")
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            called = source.classes[int(label)] if source.classes else int(label)
            raise DataError(
                f"class {called} of {source.name} has 1 picture; wanted two or more of each, to choose settings on one part"
            )
        held.append(draw.permutation(members)[: min(len(members) - 1, max(1, round(part * len(members))))])
    chosen = np.sort(np.concatenate(held)).astype(np.int64)
    rest = np.setdiff1d(np.arange(n), chosen).astype(np.int64)
    return taken(source, rest, f"{source.name}-rest"), taken(source, chosen, f"{source.name}-validation")
