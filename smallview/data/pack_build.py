"""A pack in the making: pictures go into blocks, blocks into shards, and a journal lets a killed build be gone on with.

A building folder lies under packs/ with a name that the next build of the same pack finds. It is locked by its process and renamed
when complete: a pack is whole or not there. The journal has a line for every block whose bytes were written before it; on resuming,
each is checked against its bytes, and the build goes on behind the last one that holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
import simplejpeg

from smallview.data import pack_folders
from smallview.data.pack_coding import Coded
from smallview.data.pack_files import FORMAT, META, ROW, Block, Kind, Meta, Rows, Shard, data_name, table_bytes, table_name
from smallview.data.pack_folders import building_folder, discard, explained, foreign, sweep, sync_file, try_lock
from smallview.data.sources import finish_hash
from smallview.files import sync_folder

BLOCK_BYTES = 4 * 2**20
BLOCK_PICTURES = 256  # so that slow pictures, too, are soon safe from a kill
SHARD_BYTES = 256 * 2**20
_SYNC_EVERY = 1.0  # seconds: what a loss of power may cost; a kill of the process costs an unfinished block
_held: set[Path] = set()
_log = logging.getLogger("smallview.data")


class Building:
    """A pack being written. Leaving the block by an error removes every trace; after a kill or an interruption the next one goes on.

    rooted: whether the family is one root's. next: the position in the source to go on from. waited: whether another process was
    making the same pack until now.
    Without a fingerprint there is nothing to know the pictures by, and each build begins anew.
    """

    def __init__(
        self, packs: Path, family: str, fingerprint: str | None, kind: Kind, channels: int, *, rooted: bool = False
    ) -> None:
        self._packs, self._family, self._kind, self._channels = packs, family, kind, channels
        self._key = None if fingerprint is None else fingerprint[:32]
        self._rooted = rooted
        self.waited = False
        self._finished = False
        self.next = 0
        self.bad: list[tuple[str, str]] = []
        self.retry: list[int] = []
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._blocks: list[list[Block]] = []
        self._rows: list[list[Rows]] = []
        self._stops: list[int] = []
        self._labelled = True
        self._shard, self._shard_bytes = 0, 0  # where the next block goes
        self._start_block()

    def _start_block(self) -> None:
        self._pending: list[Any] = []
        self._pending_rows: list[tuple[int, int, int, int, int, int]] = []
        self._pending_bytes = 0
        self._pending_bad: list[tuple[str, str]] = []
        self._pending_retry: list[int] = []

    def __enter__(self) -> Building:
        with explained(self._packs):
            self._packs.mkdir(parents=True, exist_ok=True)
            sweep(self._packs, self._family, self._key or "", rooted=self._rooted)
            self.folder, self._lock = self._claim()
            self._data: IO[bytes] | None = None
            self._journal: IO[bytes] | None = None
            try:
                self._resume()
            except BaseException:
                self._leave(keep=False)
                raise
            self._synced = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self._leave(keep=self._finished or (interrupted and self.folder in _held and bool(self._blocks)))

    def _leave(self, keep: bool) -> None:
        for file in (self._data, self._journal):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        if not keep:
            pack_folders.remove(self.folder)
        _held.discard(self.folder)
        if self._lock is not None:
            self._lock.close()

    def _claim(self) -> tuple[Path, IO[bytes] | None]:
        """The folder to build in and its lock; waits for another process that is making the same pack."""
        if self._key is not None and pack_folders.LOCKS:
            folder = building_folder(self._packs, self._family, self._key)
            try:
                while folder not in _held:  # this very process may be at it already, and must not wait for itself
                    folder.mkdir(exist_ok=True)
                    lock = try_lock(folder)
                    if lock is not None:
                        _held.add(folder)
                        return folder, lock
                    if not self.waited:
                        _log.warning("another process is packing the same pictures; waiting for it")
                    self.waited = True
                    time.sleep(0.1)
            except OSError:  # a file system without locks
                pack_folders.remove(folder)
        private = Path(tempfile.mkdtemp(prefix=pack_folders.BUILDING, dir=self._packs))
        try:
            return private, try_lock(private)
        except OSError:
            return private, None

    @property
    def all_bad(self) -> list[tuple[str, str]]:
        """(name, reason) of each picture left out so far."""
        return self.bad + self._pending_bad

    def add(self, coded: Coded, index: int, label: int | None) -> None:
        """Append one picture that stands at position `index` of the source."""
        self._labelled &= label is not None
        row = (index, label or 0, self._shard_bytes + self._pending_bytes, len(coded.data), coded.height, coded.width)
        self._pending.append(coded.data)
        self._pending_rows.append(row)
        self._pending_bytes += len(coded.data)
        self.next = index + 1
        if self._pending_bytes >= BLOCK_BYTES or len(self._pending) >= BLOCK_PICTURES:
            self._write_block()

    def leave_out(self, index: int, name: str, reason: str, *, retry: bool) -> None:
        """Note a picture that cannot be used; `retry`: another time it may."""
        self._pending_bad.append((name, reason))
        if retry:
            self._pending_retry.append(index)
        self.next = index + 1

    def finish(self) -> Path:
        """Make it the pack of this family and fingerprint (without one: of its own content); the folder it is in."""
        with explained(self._packs):
            if self._pending:
                self._write_block()
            self.bad += self._pending_bad
            self.retry += self._pending_retry
            self._close_shard()
            meta = self._meta(self._write_tables())
            for name in META:
                with (self.folder / name).open("wb") as file:
                    file.write(meta.text())
                    sync_file(file)
            target = self._packs / self._family / (self._key or hashlib.sha256(meta.text()).hexdigest()[:32])
            target.parent.mkdir(exist_ok=True)
            sync_folder(self.folder)
            assert self._journal is not None
            self._journal.close()  # Windows renames no folder with an open file in it
            if target.exists():
                discard(target, self._packs)
            try:
                os.rename(self.folder, target)
            except OSError:
                # another process finished the same pack just now; the caller verifies what is there
                if not (target / META[0]).exists() or foreign(target):
                    raise
            else:
                self._finished = True
            tidy(target)
            sync_folder(target.parent)
        return target

    def _write_block(self) -> None:
        with explained(self._packs):
            assert self._journal is not None
            if self._data is None:
                self._data = (self.folder / data_name(self._shard)).open("ab")
            digest = hashlib.sha256()
            for data in self._pending:
                self._data.write(data)
                digest.update(data)
                self._digest.update(data)
            self._data.flush()
            record = {
                "shard": self._shard,
                "bytes": self._pending_bytes,
                "sha256": digest.hexdigest(),
                "next": self.next,
                "rows": self._pending_rows,
                "labelled": self._labelled,
                "bad": self._pending_bad,
                "retry": self._pending_retry,
            }
            self._journal.write(_journal_line(record))
            self._journal.flush()
            self._accept(record)
            if time.monotonic() - self._synced > _SYNC_EVERY:
                sync_file(self._data)
                sync_file(self._journal)
                self._synced = time.monotonic()
            if self._shard_bytes == 0:
                self._close_shard()
        self._start_block()

    def _accept(self, record: dict[str, Any]) -> None:
        if record["shard"] == len(self._blocks):
            self._blocks.append([])
            self._rows.append([])
            self._stops.append(0)
        rows = np.array([tuple(row) for row in record["rows"]], ROW)
        self._blocks[-1].append(Block(len(rows), record["bytes"], record["sha256"]))
        self._rows[-1].append(rows)
        self._stops[-1] = self.next = record["next"]
        self._labelled = record["labelled"]
        self.bad += [(name, reason) for name, reason in record["bad"]]
        self.retry += record["retry"]
        self.bytes += record["bytes"]
        self._shard_bytes += record["bytes"]
        if self._shard_bytes >= SHARD_BYTES:
            self._shard, self._shard_bytes = self._shard + 1, 0

    def _close_shard(self) -> None:
        if self._data is not None:
            sync_file(self._data)
            self._data.close()
            self._data = None

    def _write_tables(self) -> list[str]:
        hashes = []
        for k, blocks in enumerate(self._rows):
            data = table_bytes(np.concatenate(blocks))
            with (self.folder / table_name(k)).open("wb") as file:
                file.write(data)
                sync_file(file)
            hashes.append(hashlib.sha256(data).hexdigest())
        return hashes

    def _meta(self, tables: list[str]) -> Meta:
        rows = [rows for shard in self._rows for rows in shard]
        heights, widths = (np.concatenate([part[side] for part in rows]) for side in ("height", "width"))
        firsts = [0, *self._stops[:-1]]
        return Meta(
            kind=self._kind,
            channels=self._channels,
            hash=finish_hash(self._digest, heights, widths, self._channels),
            labelled=self._labelled,
            bad=tuple(self.bad),
            retry=tuple(self.retry),
            shards=tuple(
                Shard(first, stop, table, tuple(blocks))
                for first, stop, table, blocks in zip(firsts, self._stops, tables, self._blocks, strict=True)
            ),
        )

    def _resume(self) -> None:
        """Take over what a killed build has finished, as far as its bytes are those that the journal tells of."""
        path = self.folder / "journal"
        head = _journal_line(
            {
                "format": FORMAT,
                "kind": self._kind,
                "channels": self._channels,
                "limits": [BLOCK_BYTES, BLOCK_PICTURES, SHARD_BYTES],
                "decoders": [PIL.__version__, simplejpeg.__version__],  # another version's pixels may differ
            }
        )
        kept = 0
        with contextlib.suppress(FileNotFoundError):
            for end, record in _journal_records(path, head):
                # what could not be read then may open now, and is asked again
                if record is not None and (record["retry"] or not self._holds(record)):
                    break
                if record is not None:
                    self._accept(record)
                kept = end
        ends = {data_name(k): sum(block.bytes for block in blocks) for k, blocks in enumerate(self._blocks)}
        staying = {"lock", "journal", *foreign(self.folder)}
        for file in self.folder.iterdir():
            if file.name in ends:
                os.truncate(file, ends[file.name])
            elif file.name not in staying:
                file.unlink()
        if self._blocks:
            _log.info("going on with the pack in %s behind picture %d", self.folder, self.next)
        self._journal = path.open("ab")
        self._journal.truncate(kept)  # never emptied and written anew: a kill in between would cost everything
        if kept == 0:
            self._journal.write(head)
        sync_file(self._journal)

    def _holds(self, record: dict[str, Any]) -> bool:
        """Whether a block's bytes are on the disk; they go into the content's hash."""
        try:
            with (self.folder / data_name(self._shard)).open("rb") as file:
                file.seek(self._shard_bytes)
                data = file.read(record["bytes"])
        except FileNotFoundError:
            return False
        if len(data) != record["bytes"] or hashlib.sha256(data).hexdigest() != record["sha256"]:
            return False
        self._digest.update(data)
        return True


def tidy(target: Path) -> None:
    """Remove what a builder killed just after the renaming left in a finished pack."""
    for name in ("journal", "lock"):
        with contextlib.suppress(OSError):
            (target / name).unlink()


def _journal_line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record).encode("ascii")
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


def _journal_records(path: Path, head: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(where it ends, what it says) of each line of a journal that begins with this head, up to the first that was cut; the head's is None."""
    with path.open("rb") as file:
        end = len(head)
        if file.readline() != head:
            return
        yield end, None
        for line in file:
            text = line[17:-1]
            if not line.endswith(b"\n") or line[:16] != hashlib.sha256(text).hexdigest()[:16].encode():
                return
            end += len(line)
            yield end, json.loads(text)
