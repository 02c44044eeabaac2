"""What a set of pictures was, in little, and in what it differs from what it is now."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.listing import PathTable
from smallview.data.sources import Source
from smallview.files import write_bytes
from smallview.settings.fitting import printable

NAMED = 3


@dataclass(frozen=True, eq=False)
class Inventory:
    """N pictures by name, with one number each that changes with the picture, uint64 [N], or None where nothing tells."""

    names: PathTable
    stamps: npt.NDArray[np.uint64] | None


@dataclass(frozen=True)
class Difference:
    """The names of the pictures that vanished, came, and changed from one inventory to another."""

    vanished: tuple[str, ...]
    new: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.vanished or self.new or self.changed)

    def __str__(self) -> str:
        """One line with up to three names of each.

        Example:
            >>> print(Difference(("a.jpg", "b.jpg", "c.jpg", "d.jpg"), (), ("e.jpg",)))
            4 vanished (a.jpg, b.jpg, c.jpg, ...), 1 changed (e.jpg)
        """
        parts = (("vanished", self.vanished), ("new", self.new), ("changed", self.changed))
        return ", ".join(f"{len(names):,} {word} ({_few(names)})" for word, names in parts if names)


def inventory(source: Source, index: npt.NDArray[np.int64]) -> Inventory:
    """Of the pictures at these positions of a source, int64 [N]: files by size and time, arrays by their pixels."""
    if source.array is not None:
        pixels = source.array
        return Inventory(source.names.take(index), np.array([zlib.crc32(pixels[i].data) for i in index], np.uint64))
    return Inventory(source.names.take(index), None if source.stamps is None else source.stamps[index])


def difference(before: Inventory, now: Inventory) -> Difference:
    """By name; a picture is changed where both have a number and these differ.

    Example:
        >>> before, now = (PathTable.of(names) for names in ([b"a", b"b", b"c"], [b"b", b"c", b"d"]))
        >>> print(difference(Inventory(before, np.array([1, 2, 3], np.uint64)), Inventory(now, np.array([2, 9, 4], np.uint64))))
        1 vanished (a), 1 new (d), 1 changed (c)
    """
    place = {_key(before.names.raw(i)): i for i in range(len(before.names))}
    new, changed = [], []
    for i in range(len(now.names)):
        was = place.pop(_key(now.names.raw(i)), None)
        if was is None:
            new.append(now.names[i])
        elif before.stamps is not None and now.stamps is not None and before.stamps[was] != now.stamps[i]:
            changed.append(now.names[i])
    return Difference(tuple(before.names[i] for i in place.values()), tuple(new), tuple(changed))


def write_inventory(kept: Inventory, path: Path) -> None:
    """Write it as .npz: the names back to back, their lengths, the numbers; replaced whole or not at all."""
    names = [kept.names.raw(i) for i in range(len(kept.names))]
    tables: dict[str, Any] = {
        "names": np.frombuffer(b"".join(names), np.uint8),
        "lengths": np.array([len(name) for name in names], np.uint32),
    }
    if kept.stamps is not None:
        tables["stamps"] = kept.stamps
    file = io.BytesIO()
    np.savez_compressed(file, **tables)
    write_bytes(path, file.getvalue())


def read_inventory(path: Path) -> Inventory | None:
    """What `write_inventory` wrote; None where that is not there or damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # which closes nothing that it fails to read
            tables = {name: file[name] for name in file.files}
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(tables["lengths"], dtype=np.int64)])
        stamps = tables.get("stamps")
        if int(offsets[-1]) != tables["names"].nbytes or (stamps is not None and stamps.shape != tables["lengths"].shape):
            return None
        return Inventory(PathTable(tables["names"].tobytes(), offsets), stamps)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _key(name: bytes) -> bytes:
    """Numbers of another width are the same number."""
    return name.lstrip(b"0") or b"0" if name.isdigit() else name


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(printable(name) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")
