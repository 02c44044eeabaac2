"""A pack on disk: one flat file of pixels, three or four .npy tables, and meta.json with the SHA-256 of all of it.

packs/<set>-<family>/<key>/{pixels.bin, heights.npy, widths.npy, index.npy, labels.npy, meta.json}

It is written under packs/.building-*, synced, and renamed when complete: a pack is whole or not there. A building folder is
locked by its process, so that the next one can tell a dead builder's leftovers from a living one's work. Nothing in a pack is a
pickle, a time or an absolute path.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import Labels
from smallview.data.decoding import Pixels
from smallview.data.sources import finish_hash
from smallview.errors import SmallviewError

try:
    import fcntl
except ImportError:  # Windows: leftovers are told by their age
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
_BUILDING = ".building-"
_TABLES = ("heights", "widths", "index", "labels")
_MOST_META = 2**26


@dataclass(frozen=True)
class Stored:
    """A verified pack: pixels uint8 [bytes], heights and widths int32 [N], index int64 [N], labels int64 [N] or None, meta."""

    pixels: Pixels
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    index: npt.NDArray[np.int64]
    labels: Labels | None
    meta: dict[str, Any]


def cache_folder(cache: Path | None = None) -> Path:
    """Where packs are kept: `cache`, or $SMALLVIEW_CACHE, or smallview/ in $XDG_CACHE_HOME or ~/.cache."""
    if cache is not None:
        return Path(cache)
    if own := os.environ.get("SMALLVIEW_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "smallview"
    return Path("~/.cache/smallview").expanduser()


def load(folder: Path) -> Stored | None:
    """The pack in this folder, every byte verified; None where there is none or where anything about it is wrong."""
    try:
        if (folder / "meta.json").stat().st_size > _MOST_META:
            return None
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        if meta["format"] != FORMAT or meta.pop("sha256") != _meta_hash(meta):
            return None
        raw = {name: (folder / f"{name}.npy").read_bytes() for name in _TABLES if name in meta["tables"]}
        if {name: hashlib.sha256(data).hexdigest() for name, data in raw.items()} != meta["tables"]:
            return None
        tables = {name: np.load(io.BytesIO(data), allow_pickle=False) for name, data in raw.items()}
        with (folder / "pixels.bin").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if finish_hash(digest, tables["heights"], tables["widths"], meta["channels"]) != meta["hash"]:
            return None
        pixels = np.memmap(folder / "pixels.bin", np.uint8, "r")
    except (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        return None
    # as a plain array: np.memmap would make every slice a memmap, which is slow
    return Stored(pixels.view(np.ndarray), tables["heights"], tables["widths"], tables["index"], tables.get("labels"), meta)


class Building:
    """A pack being written. Leaving the block without `finish` removes every trace; so does the next build after a kill."""

    def __init__(self, packs: Path) -> None:
        self._packs = packs
        self._heights = array.array("q")
        self._widths = array.array("q")
        self._index = array.array("q")
        self._labels: list[int | None] = []
        self._digest = hashlib.sha256()

    def __enter__(self) -> Building:
        with _explained(self._packs):
            self._packs.mkdir(parents=True, exist_ok=True)
            sweep(self._packs)
            self._folder = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._packs))
            self._lock = (self._folder / "lock").open("wb")
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks: leftovers are told by their age
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = (self._folder / "pixels.bin").open("wb")
        return self

    def __exit__(self, *problem: object) -> None:
        for file in (self._file, self._lock):
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, pixels: Pixels, index: int, label: int | None) -> None:
        """Append one picture, uint8 [H, W, C], that stands at position `index` of the source."""
        data = np.ascontiguousarray(pixels).reshape(-1).data
        with _explained(self._packs):
            self._file.write(data)
        self._digest.update(data)
        self._heights.append(pixels.shape[0])
        self._widths.append(pixels.shape[1])
        self._index.append(index)
        self._labels.append(label)

    def finish(self, family: str, fingerprint: str | None, channels: int, meta: dict[str, Any]) -> Path:
        """Make it the pack of this family and fingerprint (without one: of its own content); the folder it is in."""
        with _explained(self._packs):
            _sync_file(self._file)
            tables = {}
            for name, values in self._tables().items():
                with (self._folder / f"{name}.npy").open("w+b") as file:
                    np.save(file, values, allow_pickle=False)
                    _sync_file(file)
                    file.seek(0)
                    tables[name] = hashlib.sha256(file.read()).hexdigest()
            content = finish_hash(self._digest, self._heights, self._widths, channels)
            meta = {**meta, "format": FORMAT, "channels": channels, "hash": content, "tables": tables}
            with (self._folder / "meta.json").open("w", encoding="ascii") as text:
                json.dump({**meta, "sha256": _meta_hash(meta)}, text, sort_keys=True, indent=1)
                _sync_file(text)
            target = self._packs / family / (fingerprint or _meta_hash(meta))[:32]
            target.parent.mkdir(exist_ok=True)
            _sync_folder(self._folder)
            if fcntl is None:  # Windows renames no folder with an open file in it
                self._file.close()
                self._lock.close()
            if target.exists():
                discard(target, self._packs)
            try:
                os.rename(self._folder, target)
            except OSError:
                # another process finished the same pack just now; the caller verifies what is there
                if not (target / "meta.json").exists():
                    raise
            with contextlib.suppress(OSError):
                (target / "lock").unlink()
            _sync_folder(target.parent)
        return target

    def _tables(self) -> dict[str, npt.NDArray[Any]]:
        tables: dict[str, npt.NDArray[Any]] = {
            "heights": np.array(self._heights, np.int32),
            "widths": np.array(self._widths, np.int32),
            "index": np.array(self._index, np.int64),
        }
        if self._labels and None not in self._labels:
            tables["labels"] = np.array(self._labels, np.int64)
        return tables


def discard(folder: Path, packs: Path) -> None:
    """Remove a pack: renamed away first, so that no half of it is ever seen."""
    with contextlib.suppress(OSError):
        away = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=packs))
        os.rename(folder, away / "old")
        shutil.rmtree(away, ignore_errors=True)


def discard_others(target: Path, packs: Path) -> None:
    """Remove the older packs beside this one: the same pictures' root and settings, before the pictures changed."""
    with contextlib.suppress(OSError):
        for folder in list(target.parent.iterdir()):
            if folder != target and (folder / "meta.json").is_file():
                discard(folder, packs)


def sweep(packs: Path) -> None:
    """Remove what dead builders left."""
    for folder in packs.glob(_BUILDING + "*"):
        if _is_dead(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    try:
        # a builder makes its folder an instant before its lock
        if fcntl is None or not (folder / "lock").exists():
            return time.time() - folder.stat().st_mtime > (3600 if fcntl is not None else 86400)
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _explained(packs: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SmallviewError(
            f"cannot write the pack of decoded pictures to {packs}: {error.strerror or error}; set SMALLVIEW_CACHE to a folder"
            " that can be written and has room"
        ) from error


def _meta_hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _sync_file(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
