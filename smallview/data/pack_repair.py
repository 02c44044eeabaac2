"""What is damaged in a pack is made again from the source, and only that; the result is the pack as it was, or nothing is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from smallview.data.decoding import BadPicture
from smallview.data.pack_coding import Outcome, in_order
from smallview.data.pack_files import META, ROW, Rows, Stored, data_name, table_bytes, table_name
from smallview.data.pack_folders import explained, sync_file

Read = Callable[[int], Outcome]
Found = tuple[int, Any, int | None]  # position, Coded, label


class _Changed(Exception):
    """The source gives something else than the pack was made from."""


def repair(stored: Stored, read: Read, threads: int) -> bool:
    """Whether all that `stored.damage` names could be put right in place, bit for bit.

    A block is written only when the pictures made anew have its SHA-256. `read` is pack_coding.coder's. Raises SmallviewError where
    the disk refuses.
    """
    with explained(stored.folder):
        try:
            for k in range(len(stored.meta.shards)):
                _repair_shard(stored, k, read, threads)
        except _Changed:
            return False
        damaged = {damage.file for damage in stored.damage}
        for name in META:
            if name in damaged:
                with (stored.folder / name).open("wb") as file:
                    file.write(stored.meta.text())
                    sync_file(file)
    return True


def _repair_shard(stored: Stored, k: int, read: Read, threads: int) -> None:
    wrong = {damage.block for damage in stored.damage if damage.file == data_name(k)}
    rows = stored.tables.get(k)
    if not wrong and rows is not None:
        return
    shard = stored.meta.shards[k]
    everything = None if rows is not None else _usable(read, range(shard.first, shard.stop), threads)
    made: list[Rows] = []
    path = stored.folder / data_name(k)
    with path.open("r+b" if path.exists() else "w+b") as file:
        first = start = 0
        for b, block in enumerate(shard.blocks):
            if b in wrong or everything is not None:
                which = [] if rows is None else rows["index"][first : first + block.pictures].tolist()
                found = list(islice(everything or _usable(read, which, threads), block.pictures))
                data = b"".join(coded.data for _, coded, _ in found)
                if len(found) != block.pictures or hashlib.sha256(data).hexdigest() != block.sha256:
                    raise _Changed
                made.append(_rows(found, start))
                if b in wrong:
                    file.seek(start)
                    file.write(data)
            first, start = first + block.pictures, start + block.bytes
        file.truncate(start)
        sync_file(file)
    if rows is None:
        table = table_bytes(np.concatenate(made))
        if hashlib.sha256(table).hexdigest() != shard.table:
            raise _Changed
        with (stored.folder / table_name(k)).open("wb") as file:
            file.write(table)
            sync_file(file)


def _usable(read: Read, positions: Iterable[int], threads: int) -> Iterator[Found]:
    positions = list(positions)
    for i, outcome in zip(positions, in_order(read, positions, threads), strict=True):
        if not isinstance(outcome, BadPicture):
            yield i, *outcome


def _rows(found: list[Found], start: int) -> Rows:
    rows = np.empty(len(found), ROW)
    for n, (i, coded, label) in enumerate(found):
        rows[n] = (i, label or 0, start, len(coded.data), coded.height, coded.width)
        start += len(coded.data)
    return rows
