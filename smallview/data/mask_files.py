"""Foregrounds kept beside the packs, so that they are found once: two files, each there whole or not at all.

foregrounds/<key>.bits is Foregrounds.bits as it is; <key>.npz holds starts, usable and hash, is written last, and says that both are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from smallview.data.pack_folders import cache_folder, explained
from smallview.errors import SmallviewError
from smallview.records import Foregrounds

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_STALE = 86400.0


def kept_foregrounds(key: str, find: Callable[[IO[bytes]], Foregrounds], cache: Path | None = None) -> Foregrounds:
    """The foregrounds kept under this key, every byte verified; else those that `find` writes to a file, and from now on kept.

    find: puts the bits into the file it is given, and returns the rest; what it raises stays as it is. The bits come back as a
    memory map. Two runs that find the same at once write equal bytes, and the hash refuses any other pair of files.

    Raises:
        SmallviewError: the cache cannot be written.
    """
    folder = cache_folder(cache) / "foregrounds"
    bits, table = folder / f"{key}.bits", folder / f"{key}.npz"
    stored = _load(bits, table)
    if stored is not None:
        return stored
    new_bits, new_table = (path.with_name(f".part-{os.getpid()}-{path.name}") for path in (bits, table))
    try:
        with explained(folder, "masks"):
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            opened = io.FileIO(new_bits, "wb")
        with _Bits(opened) as file:
            found = find(file)
            file.flush()
            with explained(folder, "masks"):
                os.fsync(file.fileno())
        with explained(folder, "masks"):
            with new_table.open("wb") as other:
                np.savez(other, starts=found.starts, usable=found.usable, hash=np.frombuffer(found.hash.encode(), np.uint8))
                other.flush()
                os.fsync(other.fileno())
            new_bits.replace(bits)
            new_table.replace(table)
    finally:
        for part in (new_bits, new_table):
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    written = _load(bits, table)
    if written is None:
        raise SmallviewError(
            f"the masks just written to {bits} read back wrong; check the disk, or set SMALLVIEW_CACHE to another"
        )
    return written


class _Bits(io.BufferedWriter):
    """The file that `find` writes to; only its own trouble is told as that of the cache."""

    def write(self, data: Buffer, /) -> int:
        with explained(Path(self.name).parent, "masks"):
            return super().write(data)

    def flush(self) -> None:
        with explained(Path(self.name).parent, "masks"):
            super().flush()


def _load(bits: Path, table: Path) -> Foregrounds | None:
    """What the two files hold; None where they are not there, or anything about them is wrong."""
    try:
        with np.load(table, allow_pickle=False) as stored:
            starts, usable, name = stored["starts"], stored["usable"], stored["hash"].tobytes().decode()
        with bits.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        for part in (starts.astype("<i8"), usable):
            digest.update(np.ascontiguousarray(part).data)
        if f"sha256:{digest.hexdigest()}" != name:
            return None
        empty = bits.stat().st_size == 0  # nothing was found anywhere, and no file of no bytes can be mapped
        mapped = np.empty(0, np.uint8) if empty else np.memmap(bits, np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Foregrounds(mapped, starts, usable, name)


def _sweep(folder: Path) -> None:
    """Remove what builders left that were killed."""
    with contextlib.suppress(OSError):
        for part in folder.glob(".part-*"):
            if time.time() - part.stat().st_mtime > _STALE:
                part.unlink()
