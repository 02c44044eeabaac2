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
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.decoding import BadPicture, Pixels, Unreadable
from smallview.data.listing import BadFile, PathTable
from smallview.data.pack import Pack, part_hash, part_of
from smallview.data.pack_build import Building, tidy
from smallview.data.pack_coding import Outcome, coder, in_order
from smallview.data.pack_files import FORMAT, META, Kind, Rows, Stored, data_name, load, shard_starts
from smallview.data.pack_folders import cache_folder, discard_others
from smallview.data.pack_kind import check_room, pack_kind, stored_kind
from smallview.data.pack_reading import FlatStore, ShardStore, Store
from smallview.data.pack_repair import repair
from smallview.data.sources import Source
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.files import check_version
from smallview.settings.fitting import printable

MOST_BAD_FILES = 10
MOST_BAD_SHARE = 0.01
Progress = Callable[[int, int], None]
_log = logging.getLogger("smallview.data")


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


def _told(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def read_pack(folder: str | Path, rank: int = 0, world: int = 1, threads: int = 2) -> Pack:
    """A pack folder without its source: of a machine that has been given the pack, or only its meta.json and its own part's shards.

    Names are the positions in the source, labels those that were packed. No file of another part's shards is touched.

    Raises:
        DataError: no pack, or a damaged one, which takes its source to repair. UsageError: no such part, or a pack of a newer version.
    """
    folder = Path(folder)
    meta = load(folder, pictures=range(0))
    if meta is None:
        check_version(_told(folder / META[0]), FORMAT, f"the pack in {folder}", "format")
        raise DataError(
            f"{folder} holds no pack that can be read; wanted a folder with a sound meta.json, as docs/pack-format.md says"
        )
    total = shard_starts(meta.meta)[-1]
    part = part_of(total, rank, world)
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
        hash=part_hash(stored.meta.hash, rank, world),
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
