"""What a pack is: pictures that were decoded once, and the parts that machines share them in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import Labels
from smallview.data.decoding import Pixels
from smallview.data.listing import BadFile, PathTable
from smallview.data.pack_files import Kind
from smallview.data.pack_reading import Store
from smallview.errors import UsageError


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
        part = part_of(len(self), rank, world)
        first, stop = part.start, part.stop
        return replace(
            self,
            heights=self.heights[first:stop],
            widths=self.widths[first:stop],
            names=self.names.take(np.arange(first, stop)),
            labels=None if self.labels is None else self.labels[first:stop],
            index=self.index[first:stop],
            hash=part_hash(self.hash, rank, world),
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


def part_of(n: int, rank: int, world: int) -> range:
    """The positions of one of `world` parts of n pictures. Raises UsageError where there is no such part."""
    if not 0 <= rank < world:
        raise UsageError(f"part {rank} of {world}; wanted 0 to {world - 1}")
    if world > n:
        raise UsageError(f"{world} parts of {n} pictures; wanted at most one part for each")
    return range(rank * n // world, (rank + 1) * n // world)


def part_hash(whole: str, rank: int, world: int) -> str:
    """The hash of a part, told from every other part's; the one part that is not divided has the pack's own."""
    return whole if world == 1 else hashlib.sha256(f"{whole} part {rank} of {world}".encode()).hexdigest()


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
