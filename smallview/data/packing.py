"""A source decoded once: all pictures in a pack, as pixels or as small JPEGs, the broken ones left out and named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import Labels
from smallview.data.decoding import BadPicture, Pixels, Unreadable
from smallview.data.listing import BadFile, PathTable
from smallview.data.pack_build import Building, tidy
from smallview.data.pack_coding import Outcome, coder, in_order
from smallview.data.pack_files import META, Kind, Rows, Stored, data_name, load, shard_starts
from smallview.data.pack_folders import cache_folder, discard_others
from smallview.data.pack_kind import check_room, pack_kind, stored_kind
from smallview.data.pack_reading import FlatStore, ShardStore, Store
from smallview.data.pack_repair import repair
from smallview.data.sources import Source
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.settings.fitting import printable

MOST_BAD_FILES = 10
MOST_BAD_SHARE = 0.01
Progress = Callable[[int, int], None]
_log = logging.getLogger("smallview.data")


@dataclass(frozen=True, eq=False)
class Pack:
    """N pictures of `channels` channels, each of its own size; pack[i] is picture i, uint8 [H, W, C].

    heights and widths int32 [N]; index int64 [N], positions in the source; names [N]; labels int64 [N] or None. kind: `raw` gives
    the source's pixels, `jpeg` what a JPEG of quality 90 keeps of them. `hash` tells the sizes and the pixels (raw, wherever they
    came from) or the stored bytes (jpeg); `bad` lists what was left out; first is where a part begins in the whole pack.
    """

    name: str
    heights: npt.NDArray[np.int32] = field(repr=False)
    widths: npt.NDArray[np.int32] = field(repr=False)
    channels: int
    names: PathTable
    labels: Labels | None = field(repr=False)
    classes: tuple[str, ...] | None
    index: npt.NDArray[np.int64] = field(repr=False)
    hash: str
    bad: list[BadFile]
    kind: Kind
    store: Store = field(repr=False)
    first: int = 0

    @cached_property
    def one_size(self) -> tuple[int, int] | None:
        """(height, width) where all pictures have the same, else None."""
        height, width = int(self.heights[0]), int(self.widths[0])
        return (height, width) if bool((self.heights == height).all() and (self.widths == width).all()) else None

    def gather(self, index: npt.NDArray[np.int64], threads: int = 1) -> tuple[Pixels, npt.NDArray[np.int64]]:
        """(flat uint8, where each begins int64 [B]) of the pictures at these positions, [heights[i], widths[i], C] each.

        An array or a raw pack of one shard is given as it lies, no copy. Otherwise each picture is read, and decoded, once into a
        new buffer by `threads` threads. Raises DataError where the files changed under an open pack.
        """
        return self.store.gather(np.asarray(index, np.int64), threads)

    def part(self, rank: int, world: int) -> Pack:
        """The pictures of one of `world` machines: parts are disjoint, cover the pack, and differ by at most one picture.

        Parts follow one another in the pack, so that each needs its own few shards; no file of another one is touched.

        Raises:
            UsageError: no such part, or more parts than pictures.
        """
        part = _part(len(self), rank, world)
        first, stop = part.start, part.stop
        return replace(
            self,
            heights=self.heights[first:stop],
            widths=self.widths[first:stop],
            names=self.names.take(np.arange(first, stop)),
            labels=None if self.labels is None else self.labels[first:stop],
            index=self.index[first:stop],
            hash=_part_hash(self.hash, rank, world),
            store=self.store.part(first, stop),
            first=self.first + first,
        )

    def memory(self, batch_size: int, threads: int = 1, batches: int = 1) -> int:
        """The bytes that a run's data hold at most: the tables, the order of two epochs, and the largest `batches` batches at a time.

        Pages of a mapped pack are not counted: the system takes them back when it needs them.
        """
        labels = 0 if self.labels is None else self.labels.nbytes
        tables = sum(values.nbytes for values in (self.heights, self.widths, self.index, self.names)) + labels
        orders = 2 * 8 * len(self)  # the next epoch's is made before the last one's goes
        return tables + self.store.held_bytes() + orders + batches * self.store.most_bytes(batch_size, threads)

    def __len__(self) -> int:
        return len(self.heights)

    def __getitem__(self, i: int) -> Pixels:
        """Picture i, uint8 [H, W, C], a view where the pack is one array."""
        i = range(len(self))[i]
        flat, (start,) = self.gather(np.array([i]))
        height, width = int(self.heights[i]), int(self.widths[i])
        return flat[start : start + height * width * self.channels].reshape(height, width, self.channels)

    def __iter__(self) -> Iterator[Pixels]:
        return (self[i] for i in range(len(self)))


def open_pack(
    source: Source,
    *,
    short_side: int | None,
    kind: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    threads: int = 2,
    keep_older: bool = False,
) -> Pack:
    """The pack of a source, its pictures shrunk to this short side where they are larger (None: never).

    Arrays that need no shrinking are wrapped, not copied, unless `jpeg` is asked for. Anything else is built into the cache folder
    once, and used again while the source's fingerprint and the settings stay; each opening checks every byte by its block's SHA-256,
    and what is damaged is named, and made again. A build that was killed goes on where it was. The result depends on neither.
    `kind="auto"` is `pack_kind`'s. `progress(done, total)` is called after each picture of a build. A new pack takes the place of
    those from before the pictures changed; with `keep_older` they stay until `discard_older`.

    Raises DataError where more than 10 pictures and more than 1 % are broken, or all are; SmallviewError where the cache cannot
    be written or has no room.
    """
    if short_side is not None and short_side < 1:
        raise UsageError(f"short_side is {short_side}; wanted 1 or more, or None for the pictures' own size")
    if kind not in ("auto", "raw", "jpeg"):
        raise UsageError(f"kind is {kind!r}; wanted auto, raw or jpeg")
    if source.array is not None and kind != "jpeg" and (short_side is None or min(source.array.shape[1:3]) <= short_side):
        return _wrap(source, source.array)
    chosen = pack_kind(source, short_side) if kind == "auto" else stored_kind(kind, source.channels)
    packs = cache_folder(cache) / "packs"
    family = _family(source, short_side, chosen)
    stored = None
    if source.fingerprint is not None:
        stored = _load(source, packs / family / source.fingerprint[:32], coder(source, short_side, chosen), threads)
    if stored is None:
        folder = _build(source, short_side, chosen, packs, family, progress, threads)
        if source.root is not None and not keep_older:
            discard_others(folder, packs)
        stored = load(folder, threads)
        if stored is None or stored.damage:
            raise SmallviewError(
                f"the pack just written to {folder} reads back wrong; check the disk, or set SMALLVIEW_CACHE to another"
            )
    return _unpack(source, stored)


def discard_older(source: Source, *, short_side: int | None, kind: Kind, cache: Path | None = None) -> None:
    """Remove the packs of a source's root and settings from before its pictures changed, where one of it as it is now is there."""
    if source.root is not None and source.fingerprint is not None:
        packs = cache_folder(cache) / "packs"
        folder = packs / _family(source, short_side, kind) / source.fingerprint[:32]
        if (folder / META[0]).exists():
            discard_others(folder, packs)


def read_pack(folder: str | Path, rank: int = 0, world: int = 1, threads: int = 2) -> Pack:
    """A pack folder without its source: of a machine that has been given the pack, or only its meta.json and its own part's shards.

    Names are the positions in the source, labels those that were packed. No file of another part's shards is touched.

    Raises:
        DataError: no pack, or a damaged one, which takes its source to repair. UsageError: no such part.
    """
    folder = Path(folder)
    meta = load(folder, pictures=range(0))
    if meta is None:
        raise DataError(
            f"{folder} holds no pack that can be read; wanted a folder with a sound meta.json, as docs/pack-format.md says"
        )
    total = shard_starts(meta.meta)[-1]
    part = _part(total, rank, world)
    stored = load(folder, threads, part)
    # one sound copy of the meta is enough
    if stored is None or any(each.file not in META for each in stored.damage):
        told = "its meta.json changed just now" if stored is None else _listed(stored)
        raise DataError(f"the pack in {folder} is damaged: {told}; open it with its source to repair it, or copy it again")
    first = shard_starts(stored.meta)[min(stored.tables)]
    rows = _rows(stored)
    heights, widths = rows["height"].copy(), rows["width"].copy()
    store = _store(stored, rows, heights, widths)
    cut = slice(part.start - first, part.stop - first)
    rows = rows[cut]
    return Pack(
        name=folder.resolve().parent.name,
        heights=heights[cut],
        widths=widths[cut],
        channels=stored.meta.channels,
        names=PathTable.of(b"%d" % i for i in rows["index"].tolist()),
        labels=rows["label"].copy() if stored.meta.labelled else None,
        classes=None,
        index=rows["index"].copy(),
        hash=_part_hash(stored.meta.hash, rank, world),
        bad=[BadFile(name, reason) for name, reason in stored.meta.bad],
        kind=stored.meta.kind,
        store=store.part(cut.start, cut.stop),
        first=part.start,
    )


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
    size = height * width * channels
    heights, widths, starts = np.full(n, height, np.int32), np.full(n, width, np.int32), np.arange(n, dtype=np.int64) * size
    if source.place is None:
        store: Store = FlatStore(images.reshape(-1), starts)
    else:
        sizes, starts = np.full(n, size, np.int64), starts + source.place.offset
        store = ShardStore(source.place.file, np.zeros(n, np.int64), starts, sizes, heights, widths, channels)
    return Pack(
        name=source.name,
        heights=heights,
        widths=widths,
        channels=channels,
        names=source.names,
        labels=source.labels,
        classes=source.classes,
        index=np.arange(n, dtype=np.int64),
        hash=source.fingerprint or "",
        bad=[],
        kind="raw",
        store=store,
    )


def _rows(stored: Stored) -> Rows:
    """Of the shards that were loaded."""
    rows: Rows = np.concatenate([stored.tables[k] for k in sorted(stored.tables)])
    return rows


def _store(stored: Stored, rows: Rows, heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]) -> Store:
    """What reads the shards that were loaded."""
    shards = np.concatenate([np.full(len(stored.tables[k]), k) for k in sorted(stored.tables)])
    starts = rows["start"].copy()
    if stored.meta.kind == "raw" and len(stored.meta.shards) == 1:
        with contextlib.suppress(OSError):  # no addresses left for a map: then it is read like a large one
            # as a plain array: np.memmap would make every slice a memmap, which is slow
            return FlatStore(np.memmap(stored.folder / data_name(0), np.uint8, "r").view(np.ndarray), starts)
    return ShardStore(stored.files, shards, starts, rows["bytes"].copy(), heights, widths, stored.meta.channels)


def _unpack(source: Source, stored: Stored) -> Pack:
    rows = _rows(stored)
    index, heights, widths = (rows[field].copy() for field in ("index", "height", "width"))
    stored_labels = rows["label"].copy() if stored.meta.labelled else None
    labels = stored_labels if source.labels is None else source.labels[index]
    return Pack(
        name=source.name,
        heights=heights,
        widths=widths,
        channels=source.channels,
        names=source.names if len(index) == len(source) else source.names.take(index),
        labels=labels,
        classes=source.classes if labels is not None else None,
        index=index,
        hash=stored.meta.hash,
        bad=[*source.bad, *(BadFile(name, reason) for name, reason in stored.meta.bad)],
        kind=stored.meta.kind,
        store=_store(stored, rows, heights, widths),
    )


def _family(source: Source, short_side: int | None, kind: Kind) -> str:
    """The folder for the packs of one root and one set of settings; a readable start, then a hash."""
    root = os.fsencode(source.root.resolve()) if source.root is not None else source.name.encode("utf-8", "surrogateescape")
    settings = {"short_side": short_side, "channels": source.channels, "rooted": source.root is not None, "kind": kind}
    told = hashlib.sha256(root + json.dumps(settings).encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', source.name)[:40]}-{told}"


def _part(n: int, rank: int, world: int) -> range:
    if not 0 <= rank < world:
        raise UsageError(f"part {rank} of {world}; wanted 0 to {world - 1}")
    if world > n:
        raise UsageError(f"{world} parts of {n} pictures; wanted at most one part for each")
    return range(rank * n // world, (rank + 1) * n // world)


def _part_hash(whole: str, rank: int, world: int) -> str:
    return whole if world == 1 else hashlib.sha256(f"{whole} part {rank} of {world}".encode()).hexdigest()


def _load(source: Source, folder: Path, read: Callable[[int], Outcome], threads: int) -> Stored | None:
    """The pack of this source, repaired where it was damaged; None where it must be built."""
    stored = load(folder, threads)
    if stored is None:
        if (folder / META[0]).exists():
            _log.warning(
                "the pack in %s is damaged in both copies of its meta.json, or of another format; building it again", folder
            )
        return None
    if stored.damage:
        _log.warning("the pack in %s is damaged: %s; making that again", folder, _listed(stored, source))
        if not repair(stored, read, threads if source.parallel else 1):
            _log.warning("the pictures no longer give what was packed in %s; building all of it again", folder)
            return None
        stored = load(folder, threads)
        if stored is None or stored.damage:
            return None
    tidy(folder)
    return stored if _still_right(source, stored) else None


def _listed(stored: Stored, source: Source | None = None, most: int = 3) -> str:
    """What is wrong with a pack, with the names of its first and last picture where they are known."""
    starts = shard_starts(stored.meta)
    said = []
    for damage in stored.damage[:most]:
        k = bisect_right(starts, damage.first) - 1
        names = ""
        if source is not None and damage.stop > damage.first and k in stored.tables:
            first, last = (stored.tables[k]["index"][i - starts[k]] for i in (damage.first, damage.stop - 1))
            names = f", {printable(source.names[int(first)])} to {printable(source.names[int(last)])}"
        said.append(f"{damage}{names}")
    more = len(stored.damage) - most
    return "; ".join(said) + (f"; and {more:,} more" if more > 0 else "")


def _still_right(source: Source, stored: Stored) -> bool:
    """Whether the files that could not be read then still cannot: permission comes back without a trace in the fingerprint."""
    for i in stored.meta.retry:
        try:
            source.read(i)
        except BadPicture:
            continue
        return False
    return True


def _build(
    source: Source, short_side: int | None, kind: Kind, packs: Path, family: str, progress: Progress | None, threads: int
) -> Path:
    total = len(source)
    read = coder(source, short_side, kind)
    rooted = source.root is not None
    with Building(packs, family, source.fingerprint, kind, source.channels, rooted=rooted) as building:
        if building.waited and source.fingerprint is not None:
            folder = packs / family / source.fingerprint[:32]
            stored = load(folder, threads)
            if stored is not None and not stored.damage:
                return folder
        check_room(source, short_side, kind, packs, building.bytes)
        first = building.next
        with closing(in_order(read, range(first, total), threads if source.parallel else 1)) as outcomes:
            for i, outcome in enumerate(outcomes, first):
                if isinstance(outcome, BadPicture):
                    building.leave_out(i, source.names[i], str(outcome), retry=isinstance(outcome, Unreadable))
                else:
                    building.add(outcome[0], i, outcome[1])
                if progress is not None:
                    progress(i + 1, total)
        _refuse_too_many([BadFile(name, reason) for name, reason in building.all_bad], total)
        return building.finish()


def _refuse_too_many(bad: list[BadFile], total: int) -> None:
    few = len(bad) <= MOST_BAD_FILES or len(bad) <= MOST_BAD_SHARE * total
    if few and len(bad) < total:
        return
    examples = ", ".join(f"{printable(entry.name)} ({entry.reason})" for entry in bad[:3])
    rule = (
        "not one is left" if len(bad) == total else f"more than {MOST_BAD_FILES} and more than {MOST_BAD_SHARE:.0%} is too many"
    )
    raise DataError(f"{len(bad):,} of {total:,} pictures unreadable, e.g. {examples}; {rule}: repair, replace or remove them")
