"""The pixels of a pack when they are asked for: from one array as they lie, or read and decoded into a buffer of the batch's size."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import is_mapped
from smallview.data.decoding import Pixels
from smallview.data.pack_coding import decode_into
from smallview.data.pack_files import ShardFiles
from smallview.errors import DataError

Positions = npt.NDArray[np.int64]
_MOST_KEPT = 256 * 2**20  # bytes of one buffer: larger ones are no batches
_SPARE = 8  # a buffer is made larger by this part, so that the next batch of odd sizes fits in, too


class Store(Protocol):
    """Where a pack's pixels come from."""

    def gather(self, index: Positions, threads: int) -> tuple[Pixels, Positions]:
        """(flat uint8, where each picture begins int64 [B])."""
        ...

    def part(self, first: int, stop: int) -> Store:
        """The store of the pictures from `first` to `stop` - 1."""
        ...

    def held_bytes(self) -> int:
        """The memory that it takes as long as it is open, the tables of the pack aside."""
        ...

    def most_bytes(self, batch_size: int, threads: int) -> int:
        """The memory that gathering the largest `batch_size` pictures takes."""
        ...


@dataclass(frozen=True, eq=False)
class FlatStore:
    """Pictures back to back in one array that is there already: a user's array, or the map of a small raw pack."""

    pixels: Pixels
    starts: Positions

    def gather(self, index: Positions, threads: int) -> tuple[Pixels, Positions]:
        """The array itself, no copy."""
        return self.pixels, self.starts[index]

    def part(self, first: int, stop: int) -> FlatStore:
        """The same array."""
        return replace(self, starts=self.starts[first:stop])

    def held_bytes(self) -> int:
        """Where the pictures begin, and the array unless it is a map."""
        return self.starts.nbytes + (0 if is_mapped(self.pixels) else self.pixels.nbytes)

    def most_bytes(self, batch_size: int, threads: int) -> int:
        """Nothing."""
        return 0


class Buffers:
    """Memory that is used again once nobody looks at it: fresh pages cost half as much time as filling them with pixels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[Pixels] = []

    def take(self, count: int) -> Pixels:
        """uint8 [count] of any content; it is the caller's as long as anything refers to it."""
        if count > _MOST_KEPT:
            return np.empty(count, np.uint8)
        with self._lock:
            free = [k for k in range(len(self._kept)) if _references(self._kept, k) == _UNUSED]
            for k in free:
                if len(self._kept[k]) >= count:
                    return self._kept[k][:count]
            made = np.empty(count + count // _SPARE, np.uint8)
            for k in reversed(free):  # too small
                del self._kept[k]
            self._kept.append(made)
            return made[:count]


def _references(kept: list[Pixels], k: int) -> int:
    return sys.getrefcount(kept[k])


_UNUSED = _references([np.empty(1, np.uint8)], 0)  # measured, because what counts as a reference is Python's affair


@dataclass(frozen=True, eq=False)
class ShardStore:
    """Pictures in shard files, read (never mapped: the pages of a map count as ours until the system wants them back) and decoded.

    shards, starts, lengths int64 [N]: the file of each picture, where its bytes begin and how many they are; heights, widths [N].
    """

    files: ShardFiles
    shards: Positions
    starts: Positions
    lengths: Positions
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    channels: int
    buffers: Buffers = field(default_factory=Buffers)

    def gather(self, index: Positions, threads: int) -> tuple[Pixels, Positions]:
        """A buffer with each picture once, in the order of their places on the disk; DataError where the files changed."""
        if len(index) and not 0 <= index.min() <= index.max() < len(self.starts):
            raise IndexError(f"pictures {index.min()} to {index.max()} of a pack of {len(self.starts)}")
        index, inverse = np.unique(index, return_inverse=True)
        ends = np.cumsum(self.heights[index].astype(np.int64) * self.widths[index] * self.channels)
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        buffer = self.buffers.take(int(starts[-1]))

        # numbers of Python's own at once: taken one by one from arrays they cost more than reading a small picture
        chosen, places = index.tolist(), starts.tolist()
        shards, begins, lengths = (values[index].tolist() for values in (self.shards, self.starts, self.lengths))

        def fill(some: range) -> None:
            for k in some:
                self._read(chosen[k], buffer[places[k] : places[k + 1]], shards[k], begins[k], lengths[k])

        n = len(index)
        if threads <= 1 or n <= 1:
            fill(range(n))
        else:
            size = max(1, n // (4 * threads))
            list(_pool(threads, os.getpid()).map(fill, (range(k, min(k + size, n)) for k in range(0, n, size))))
        return buffer, starts[:-1][inverse]

    def _read(self, i: int, out: Pixels, shard: int, start: int, length: int) -> None:
        try:
            if length == len(out):
                self.files.read(shard, start, out.data)
            else:
                data = bytearray(length)
                self.files.read(shard, start, memoryview(data))
                decode_into(data, out, int(self.heights[i]), int(self.widths[i]), self.channels)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"picture {i} can no longer be read from its pack: {error}; the pack changed or its disk failed while it was open:"
                " run the same command again, and it is checked and repaired"
            ) from error

    def part(self, first: int, stop: int) -> ShardStore:
        """The same files, which are opened when needed."""
        cut = slice(first, stop)
        return replace(
            self,
            shards=self.shards[cut],
            starts=self.starts[cut],
            lengths=self.lengths[cut],
            heights=self.heights[cut],
            widths=self.widths[cut],
        )

    def held_bytes(self) -> int:
        """Where the pictures' bytes are; the sizes are the pack's."""
        return self.shards.nbytes + self.starts.nbytes + self.lengths.nbytes

    def most_bytes(self, batch_size: int, threads: int) -> int:
        """The buffer, and one stored picture for each thread."""
        sizes = self.heights.astype(np.int64) * self.widths * self.channels
        stored = np.where(self.lengths < sizes, self.lengths, 0)
        buffer = int(np.sort(sizes)[::-1][:batch_size].sum())
        return buffer + buffer // _SPARE + int(np.sort(stored)[::-1][: min(threads, batch_size)].sum())


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept, because starting threads for every batch costs more than a small batch; by process, because a fork has none of them."""
    return ThreadPoolExecutor(threads, thread_name_prefix="gather")
