"""A pack on disk, read: shards of pictures with their tables, a meta.json in two copies, and a SHA-256 for every block of it.

packs/<set>-<family>/<key>/{meta.json, meta.copy.json, data-00000.bin, data-00000.npy, data-00001.bin, ...}

docs/pack-format.md says what every byte means. Nothing in a pack is a pickle, a time or an absolute path.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from smallview.errors import DataError

FORMAT = 2
META = ("meta.json", "meta.copy.json")
ROW = np.dtype(
    [("index", "<i8"), ("label", "<i8"), ("start", "<i8"), ("bytes", "<i8"), ("height", "<i4"), ("width", "<i4")]
)  # one picture in a shard's table
Rows = npt.NDArray[np.void]
Kind = Literal["raw", "jpeg"]
_MOST_META = 2**28
_PIECE = 2**20
_PREADV = hasattr(os, "preadv")
_MOST_OPEN = 256  # files; common limits are 256 (macOS) and 1,024 (Linux) for everything that a process does


@dataclass(frozen=True)
class Block:
    """Whole pictures that follow one another in a shard, checked together."""

    pictures: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """data-K.bin and data-K.npy: the pictures of the source's positions `first` to `stop` - 1. table: SHA-256 of the .npy."""

    first: int
    stop: int
    table: str
    blocks: tuple[Block, ...]

    @property
    def pictures(self) -> int:
        """In all its blocks."""
        return sum(block.pictures for block in self.blocks)

    @property
    def bytes(self) -> int:
        """Of its .bin file."""
        return sum(block.bytes for block in self.blocks)


@dataclass(frozen=True)
class Meta:
    """What meta.json says. bad: (name, reason) of pictures left out; retry: the positions of those that may open another time."""

    kind: Kind
    channels: int
    hash: str
    labelled: bool
    bad: tuple[tuple[str, str], ...]
    retry: tuple[int, ...]
    shards: tuple[Shard, ...]

    def text(self) -> bytes:
        """The bytes of meta.json."""
        plain = {
            "format": FORMAT,
            "kind": self.kind,
            "channels": self.channels,
            "hash": self.hash,
            "labelled": self.labelled,
            "bad": [list(entry) for entry in self.bad],
            "retry": list(self.retry),
            "shards": [
                {
                    "source": [shard.first, shard.stop],
                    "table": shard.table,
                    "blocks": [[block.pictures, block.bytes, block.sha256] for block in shard.blocks],
                }
                for shard in self.shards
            ],
        }
        return _line({**plain, "sha256": hashlib.sha256(_line(plain)).hexdigest()})


@dataclass(frozen=True)
class Damage:
    """What is wrong with a pack: a file, or one block of it with the pictures `first` to `stop` - 1 of the pack."""

    file: str
    block: int | None = None
    first: int = 0
    stop: int = 0

    def __str__(self) -> str:
        where = "" if self.block is None else f" block {self.block}"
        if self.stop == self.first:
            return f"{self.file}{where}"
        which = f"picture {self.first}" if self.stop == self.first + 1 else f"pictures {self.first} to {self.stop - 1}"
        return f"{self.file}{where} ({which})"


@dataclass(frozen=True, eq=False)
class Stored:
    """A pack, or some of its shards, with every byte verified but for what `damage` names.

    tables: rows by shard number, where sound.
    """

    folder: Path
    meta: Meta
    tables: dict[int, Rows]
    damage: tuple[Damage, ...]
    files: ShardFiles


class ShardFiles:
    """Reads from the data files of a pack, from any thread; those that are open stay so when the pack is replaced."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._handles: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._handles)

    def size(self, shard: int) -> int:
        """Bytes of the file; OSError."""
        with self._lock:
            if shard in self._handles:
                return os.fstat(self._handles[shard]).st_size
        return self._paths[shard].stat().st_size

    def read(self, shard: int, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `start` on; OSError, or EOFError where the file ends before."""
        handle = self._handles.get(shard)
        if handle is None:
            with self._lock:
                handle = self._handles.get(shard)  # another thread's, by now
                if handle is None and len(self._handles) < _MOST_OPEN:
                    handle = self._handles[shard] = _open(self._paths[shard])
        if handle is not None:
            self._fill(handle, start, into)
            return
        handle = _open(self._paths[shard])
        try:
            self._fill(handle, start, into)
        finally:
            os.close(handle)

    def _fill(self, handle: int, start: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            if _PREADV:
                count = os.preadv(handle, [into[done:] if done else into], start + done)
            else:  # Windows has no reading at a place
                with self._lock:
                    os.lseek(handle, start + done, os.SEEK_SET)
                    data = os.read(handle, len(into) - done)
                count = len(data)
                into[done : done + count] = data
            if count == 0:
                raise EOFError(f"the file ends at {start + done:,}")
            done += count


class SteadyFile(ShardFiles):
    """Reads from one file that is the user's, as long as nobody writes to it.

    A map of it would end the process with a bus error once it is made shorter, and other pixels would go unseen.
    """

    def __init__(self, path: Path) -> None:
        super().__init__([path])
        self._path = path
        self._handle = self._handles[0] = _open(path)
        self._state = self._now()

    def read(self, shard: int, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `start` on; DataError where the file was written to since it was opened."""
        try:
            super().read(shard, start, into)
            why = "" if self._now() == self._state else "it was written to"
        except (OSError, EOFError) as error:
            why = str(error)
        if why:
            raise DataError(
                f"{self._path} changed or failed while it was in use: {why}; run the same command again to be told how"
            )

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns


def load(folder: Path, threads: int = 2, pictures: range | None = None) -> Stored | None:
    """The pack in this folder, or the shards of it that hold these pictures; None where there is none or no copy of its meta is sound.

    Every table and every block is read and checked, by several threads; what is wrong is listed in `damage`.
    """
    metas = [_read_meta(folder / name) for name in META]
    meta = metas[0] or metas[1]
    if meta is None:
        return None
    damage = [Damage(name) for name, found in zip(META, metas, strict=True) if found is None or found != meta]
    files = ShardFiles([folder / data_name(k) for k in range(len(meta.shards))])
    starts = shard_starts(meta)
    tables: dict[int, Rows] = {}
    tasks: list[tuple[int, int, int, Damage]] = []
    for k, shard in enumerate(meta.shards):
        begin, stop = starts[k], starts[k + 1]
        if pictures is not None and (stop <= pictures.start or begin >= pictures.stop):
            continue
        rows = _read_table(folder / table_name(k), shard)
        if rows is None:
            damage.append(Damage(table_name(k), None, begin, stop))
        else:
            tables[k] = rows
        tasks.extend((k, b, start, named) for b, start, named in _blocks(k, shard, begin))
        damage.extend(_longer(files, k, shard))
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="verify") as pool:
        wrong = pool.map(lambda task: _check(files, meta.shards[task[0]].blocks[task[1]], task), tasks)
        damage.extend(found for found in wrong if found is not None)
    return Stored(folder, meta, tables, tuple(damage), files)


def data_name(shard: int) -> str:
    """The file with the bytes of a shard's pictures."""
    return f"data-{shard:05d}.bin"


def table_name(shard: int) -> str:
    """The file with a shard's table."""
    return f"data-{shard:05d}.npy"


def shard_starts(meta: Meta) -> list[int]:
    """Where each shard's pictures begin in the pack, and the number of all."""
    return list(accumulate((shard.pictures for shard in meta.shards), initial=0))


def table_bytes(rows: Rows) -> bytes:
    """A shard's table as the bytes of its .npy file."""
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def _blocks(k: int, shard: Shard, first: int) -> Iterable[tuple[int, int, Damage]]:
    """(number, first byte, how it would be named) of each block of a shard whose pictures begin at `first`."""
    start = 0
    for b, block in enumerate(shard.blocks):
        yield b, start, Damage(data_name(k), b, first, first + block.pictures)
        first, start = first + block.pictures, start + block.bytes


def _check(files: ShardFiles, block: Block, task: tuple[int, int, int, Damage]) -> Damage | None:
    shard, _, start, named = task
    digest = hashlib.sha256()
    piece = memoryview(bytearray(min(_PIECE, block.bytes)))
    try:
        for done in range(0, block.bytes, _PIECE):
            part = piece[: min(_PIECE, block.bytes - done)]
            files.read(shard, start + done, part)
            digest.update(part)
    except (OSError, EOFError):
        return named
    return None if digest.hexdigest() == block.sha256 else named


def _longer(files: ShardFiles, k: int, shard: Shard) -> list[Damage]:
    """A file with more in it than its blocks; what is missing shows in them."""
    try:
        return [Damage(data_name(k))] if files.size(k) > shard.bytes else []
    except OSError:
        return []


def _read_table(path: Path, shard: Shard) -> Rows | None:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != shard.table:
            return None
        rows: Rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.dtype == ROW and len(rows) == shard.pictures else None


def _read_meta(path: Path) -> Meta | None:
    try:
        if path.stat().st_size > _MOST_META:
            return None
        text = path.read_bytes()
        plain = json.loads(text)
        if plain["format"] != FORMAT or plain["kind"] not in ("raw", "jpeg"):
            return None
        meta = Meta(
            kind=plain["kind"],
            channels=plain["channels"],
            hash=plain["hash"],
            labelled=plain["labelled"],
            bad=tuple((name, reason) for name, reason in plain["bad"]),
            retry=tuple(plain["retry"]),
            shards=tuple(
                Shard(entry["source"][0], entry["source"][1], entry["table"], tuple(Block(*block) for block in entry["blocks"]))
                for entry in plain["shards"]
            ),
        )
        # the bytes as a whole, so that no flipped bit between the values goes unseen either
        return meta if meta.text() == text else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _line(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True).encode("ascii") + b"\n"


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))


def _close(handles: dict[int, int]) -> None:
    for handle in handles.values():
        os.close(handle)
    handles.clear()
