"""A source decoded once: all pictures as uint8 in one flat memory-mapped array, broken ones left out and named."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import Labels
from smallview.data.decoding import BadPicture, Pixels, Unreadable, shrink
from smallview.data.listing import BadFile, PathTable
from smallview.data.pack_files import Building, Stored, cache_folder, discard_others, load
from smallview.data.sources import Source
from smallview.errors import DataError, SmallviewError, UsageError

MOST_BAD_FILES = 10
MOST_BAD_SHARE = 0.01
Outcome = tuple[Pixels, int | None] | BadPicture
Progress = Callable[[int, int], None]
_log = logging.getLogger("smallview.data")


@dataclass(frozen=True, eq=False)
class Pack:
    """N decoded pictures of `channels` channels, each of its own size.

    Picture i is pixels[offsets[i] :][: heights[i] * widths[i] * channels] as [H, W, C]. pixels uint8, flat; offsets int64 [N];
    heights and widths int32 [N]; index int64 [N], positions in the source; names [N]; labels int64 [N] or None. `hash` tells
    the pixels and sizes, wherever they came from; `bad` lists what was left out.
    """

    name: str
    pixels: Pixels = field(repr=False)
    heights: npt.NDArray[np.int32] = field(repr=False)
    widths: npt.NDArray[np.int32] = field(repr=False)
    channels: int
    names: PathTable
    labels: Labels | None = field(repr=False)
    classes: tuple[str, ...] | None
    index: npt.NDArray[np.int64] = field(repr=False)
    hash: str
    bad: list[BadFile]

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each picture begins in `pixels`, int64 [N]."""
        ends = np.cumsum(self.heights.astype(np.int64) * self.widths * self.channels)
        return np.concatenate([np.zeros(1, np.int64), ends[:-1]])

    @cached_property
    def one_size(self) -> tuple[int, int] | None:
        """(height, width) where all pictures have the same, else None."""
        height, width = int(self.heights[0]), int(self.widths[0])
        return (height, width) if bool((self.heights == height).all() and (self.widths == width).all()) else None

    def gather(self, index: npt.NDArray[np.int64], threads: int = 1) -> tuple[Pixels, npt.NDArray[np.int64]]:
        """(flat uint8, where each begins int64 [B]) of the pictures at these positions: the pack itself, no copy."""
        return self.pixels, self.offsets[index]

    def __len__(self) -> int:
        return len(self.heights)

    def __getitem__(self, i: int) -> Pixels:
        """Picture i, uint8 [H, W, C], a view."""
        i = range(len(self))[i]
        start, height, width = int(self.offsets[i]), int(self.heights[i]), int(self.widths[i])
        return self.pixels[start : start + height * width * self.channels].reshape(height, width, self.channels)

    def __iter__(self) -> Iterator[Pixels]:
        return (self[i] for i in range(len(self)))


def open_pack(
    source: Source,
    *,
    short_side: int | None,
    cache: Path | None = None,
    progress: Progress | None = None,
    threads: int = 2,
) -> Pack:
    """The pack of a source, its pictures shrunk to this short side where they are larger (None: never).

    Arrays that need no shrinking are wrapped, not copied. Anything else is built into the cache folder once, and used again
    while the source's fingerprint and the settings stay and every byte still has its SHA-256. The result does not depend on
    `threads`. `progress(done, total)` is called after each picture of a build.

    Raises DataError where more than 10 pictures and more than 1 % are broken, or all are; SmallviewError where the cache cannot
    be written.
    """
    if short_side is not None and short_side < 1:
        raise UsageError(f"short_side is {short_side}; wanted 1 or more, or None for the pictures' own size")
    if source.array is not None and (short_side is None or min(source.array.shape[1:3]) <= short_side):
        return _wrap(source, source.array)
    packs = cache_folder(cache) / "packs"
    family = _family(source, short_side)
    if source.fingerprint is not None:
        folder = packs / family / source.fingerprint[:32]
        stored = load(folder)
        if stored is not None and _still_right(source, stored):
            return _unpack(source, stored)
        if stored is None and (folder / "meta.json").exists():
            _log.warning("the pack in %s is damaged; building it again", folder)
    folder = _build(source, short_side, packs, family, progress, threads)
    if source.root is not None:
        discard_others(folder, packs)
    stored = load(folder)
    if stored is None:
        raise SmallviewError(
            f"the pack just written to {folder} reads back wrong; check the disk, or set SMALLVIEW_CACHE to another"
        )
    return _unpack(source, stored)


def pack_short_side(size: int, smallest_area: float) -> int:
    """The short side that pictures need so that a crop of this share of the area is still `size` pixels wide.

    Example:
        >>> pack_short_side(64, 0.2)
        144
    """
    if size < 1 or not 0 < smallest_area <= 1:
        raise UsageError(f"size {size} and smallest crop area {smallest_area}; wanted size >= 1 and an area above 0, at most 1")
    return math.ceil(size / math.sqrt(smallest_area))


def write_bad_files(pack: Pack, path: Path) -> None:
    """Write one JSON line {"path", "error"} for each picture left out; the file is replaced whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="ascii") as file:
            for bad in pack.bad:
                file.write(json.dumps({"path": bad.name, "error": bad.reason}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _wrap(source: Source, images: Pixels) -> Pack:
    n, height, width, channels = images.shape
    sizes = (np.full(n, height, np.int32), np.full(n, width, np.int32))
    index = np.arange(n, dtype=np.int64)
    content = source.fingerprint or ""
    return Pack(
        source.name, images.reshape(-1), *sizes, channels, source.names, source.labels, source.classes, index, content, []
    )


def _unpack(source: Source, stored: Stored) -> Pack:
    index = stored.index
    whole = len(index) == len(source)
    labels = stored.labels if source.labels is None else source.labels[index]
    return Pack(
        name=source.name,
        pixels=stored.pixels,
        heights=stored.heights,
        widths=stored.widths,
        channels=source.channels,
        names=source.names if whole else source.names.take(index),
        labels=labels,
        classes=source.classes if labels is not None else None,
        index=index,
        hash=str(stored.meta["hash"]),
        bad=[*source.bad, *(BadFile(name, reason) for name, reason in stored.meta["bad"])],
    )


def _family(source: Source, short_side: int | None) -> str:
    """The folder for the packs of one root and one set of settings; a readable start, then a hash."""
    root = os.fsencode(source.root.resolve()) if source.root is not None else source.name.encode("utf-8", "surrogateescape")
    settings = json.dumps({"short_side": short_side, "channels": source.channels, "rooted": source.root is not None})
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', source.name)[:40]}-{hashlib.sha256(root + settings.encode()).hexdigest()[:16]}"


def _still_right(source: Source, stored: Stored) -> bool:
    """Whether the files that could not be read then still cannot: permission comes back without a trace in the fingerprint."""
    for i in stored.meta["retry"]:
        try:
            source.read(i)
        except BadPicture:
            continue
        return False
    return True


def _build(source: Source, short_side: int | None, packs: Path, family: str, progress: Progress | None, threads: int) -> Path:
    def read(i: int) -> Outcome:
        try:
            pixels, label = source.reader(i, short_side)
            return shrink(pixels, short_side), label
        except BadPicture as error:
            return error

    total = len(source)
    bad: list[BadFile] = []
    retry: list[int] = []
    with Building(packs) as building, closing(_in_order(read, total, threads if source.parallel else 1)) as outcomes:
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, BadPicture):
                bad.append(BadFile(source.names[i], str(outcome)))
                if isinstance(outcome, Unreadable):
                    retry.append(i)
            else:
                building.add(outcome[0], i, outcome[1])
            if progress is not None:
                progress(i + 1, total)
        _refuse_too_many(bad, total)
        meta = {"bad": [[entry.name, entry.reason] for entry in bad], "retry": retry}
        return building.finish(family, source.fingerprint, source.channels, meta)


def _in_order(read: Callable[[int], Outcome], n: int, threads: int) -> Generator[Outcome, None, None]:
    """read(0), read(1), ... in this order, from a few threads; at most twice as many results as threads wait at any time."""
    if threads <= 1:
        for i in range(n):
            yield read(i)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Outcome]] = deque()
        try:
            for i in range(n):
                waiting.append(pool.submit(read, i))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _refuse_too_many(bad: list[BadFile], total: int) -> None:
    few = len(bad) <= MOST_BAD_FILES or len(bad) <= MOST_BAD_SHARE * total
    if few and len(bad) < total:
        return
    examples = ", ".join(f"{_printable(entry.name)} ({entry.reason})" for entry in bad[:3])
    rule = (
        "not one is left" if len(bad) == total else f"more than {MOST_BAD_FILES} and more than {MOST_BAD_SHARE:.0%} is too many"
    )
    raise DataError(f"{len(bad):,} of {total:,} pictures unreadable, e.g. {examples}; {rule}: repair, replace or remove them")


def _printable(name: str) -> str:
    """A file name that is safe on a terminal and in one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
