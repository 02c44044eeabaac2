"""A source cut in two: what is trained on, and what settings are chosen on."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from smallview.data.decoding import Pixels
from smallview.data.sources import Source, content_hash
from smallview.errors import DataError
from smallview.seeds import generator


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
