"""The pictures below a folder: which files, in which order, under which names; symbolic links followed once.

Names are relative paths with "/" between the parts, in the order of their bytes, so that neither the file system nor the locale
has a say. Kept: files with a picture ending (either case), and files without any ending that begin like a picture. Left out and
counted: hidden files and folders (a leading dot, so also `._photo.jpg`), every other ending, dangling links, pipes and devices.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from smallview.data.decoding import looks_like_picture
from smallview.errors import DataError

ENDINGS = frozenset(
    b".jpg .jpeg .jpe .jfif .png .apng .gif .webp .bmp .ppm .pgm .pbm .pnm .tga .tif .tiff .jp2 .j2k .avif".split()
)


@dataclass(frozen=True)
class BadFile:
    """A picture that could not be used, by its name in the source, and why."""

    name: str
    reason: str


class PathTable(Sequence[str]):
    """Relative paths as one byte buffer and int64 offsets: a million names in some 40 MB, and no objects to copy on fork.

    Bytes that are no UTF-8 come out surrogate-escaped, as Python's own file functions take them.

    Example:
        >>> table = PathTable.of([b"a.jpg", b"b/c.png"])
        >>> len(table), table[1], list(table)
        (2, 'b/c.png', ['a.jpg', 'b/c.png'])
    """

    def __init__(self, buffer: bytes, offsets: npt.NDArray[np.int64]) -> None:
        self._buffer = buffer
        self._offsets = offsets

    @classmethod
    def of(cls, paths: Iterable[bytes]) -> PathTable:
        """A table of these paths, in their order."""
        kept = list(paths)
        lengths = np.fromiter((len(path) for path in kept), np.int64, len(kept))
        return cls(b"".join(kept), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    @classmethod
    def numbered(cls, n: int) -> PathTable:
        """Names for n things without any: 0000 to n - 1, all equally wide."""
        width = len(str(max(n - 1, 0)))
        digits = np.arange(n)[:, None] // 10 ** np.arange(width - 1, -1, -1)[None, :] % 10 + ord("0")
        return cls(digits.astype(np.uint8).tobytes(), np.arange(n + 1, dtype=np.int64) * width)

    def raw(self, i: int) -> bytes:
        """The bytes of path i."""
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"path {i} of {n}")
        i %= n
        return self._buffer[self._offsets[i] : self._offsets[i + 1]]

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return len(self._buffer) + self._offsets.nbytes

    def take(self, index: npt.NDArray[np.int64]) -> PathTable:
        """The table of the paths at these positions."""
        return PathTable.of(self.raw(int(i)) for i in index)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.raw(i).decode("utf-8", "surrogateescape")

    def __repr__(self) -> str:
        return f"PathTable of {len(self):,} paths"


@dataclass
class Listing:
    """What `scan` found: names, their stamps, fingerprint, top-level folders, what was left out (by ending) or not listed."""

    names: PathTable
    stamps: npt.NDArray[np.uint64]
    fingerprint: str
    folders: tuple[str, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    bad: tuple[BadFile, ...] = ()

    @property
    def skipped(self) -> int:
        """How many files were left out quietly."""
        return sum(self.left_out.values())


Entry = tuple[bytes, int, int]  # relative path, size, mtime_ns
Key = tuple[int, int]  # device, inode


class _Walk:
    """One scan's state. Real files first, then links in the order of their names: nothing hangs on creation order."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.entries: list[Entry] = []
        self.files: set[Key] = set()
        # a link to a folder above the root would lead back into it
        parents = Path(os.fsdecode(os.path.realpath(root))).parents
        self.visited: set[Key] = {_key(os.stat(parent)) for parent in parents}
        self.links: list[bytes] = []
        self.folders: set[bytes] = set()
        self.left_out: Counter[str] = Counter()
        self.bad: list[BadFile] = []

    def run(self) -> None:
        self.tree(b"", os.stat(self.root))
        while self.links:
            self.link(heapq.heappop(self.links))

    def tree(self, top: bytes, status: os.stat_result) -> None:
        """Everything really below folder `top`; its links go on the heap."""
        found: list[tuple[Entry, Key]] = []
        waiting = [(top, status)]
        while waiting:
            folder, status = waiting.pop()
            if _key(status) in self.visited:
                continue
            self.visited.add(_key(status))
            if folder and b"/" not in folder:
                self.folders.add(folder)
            try:
                children = list(os.scandir(os.path.join(self.root, folder)))
            except OSError as error:
                self.closed(folder, error)
                continue
            refused: OSError | None = None  # a folder may be read but not entered, or its disk fail at some of its files
            for child in children:
                path = folder + b"/" + child.name if folder else child.name
                try:
                    if child.is_symlink():
                        heapq.heappush(self.links, path)
                    elif child.is_dir():
                        if child.name.startswith(b"."):
                            self.left_out["hidden"] += 1
                        else:
                            waiting.append((path, os.stat(child.path)))
                    elif self.wanted(path, child.is_file()):
                        status = child.stat(follow_symlinks=False)
                        found.append(((path, status.st_size, status.st_mtime_ns), _key(status)))
                except FileNotFoundError:  # vanished since the folder was read
                    continue
                except OSError as error:
                    refused = error
            if refused is not None:
                self.closed(folder, refused)
        for entry, key in sorted(found):
            self.take(entry, key)

    def closed(self, folder: bytes, error: OSError) -> None:
        if not folder:
            raise DataError(_unlistable(os.fsdecode(self.root), error)) from error
        self.bad.append(BadFile(folder.decode("utf-8", "surrogateescape"), f"folder cannot be listed: {error.strerror}"))

    def link(self, path: bytes) -> None:
        try:
            status = os.stat(os.path.join(self.root, path))
        except OSError:
            self.left_out["dangling link"] += 1
            return
        if stat.S_ISDIR(status.st_mode):
            if os.path.basename(path).startswith(b"."):
                self.left_out["hidden"] += 1
            else:
                self.tree(path, status)
        elif self.wanted(path, stat.S_ISREG(status.st_mode)):
            self.take((path, status.st_size, status.st_mtime_ns), _key(status))

    def take(self, entry: Entry, key: Key) -> None:
        # inode 0: a file system that has none to give; then nothing is known to be a duplicate
        if key[1] == 0 or key not in self.files:
            self.files.add(key)
            self.entries.append(entry)

    def wanted(self, path: bytes, regular: bool) -> bool:
        name = os.path.basename(path)
        ending = os.path.splitext(name)[1].lower()
        if name.startswith(b"."):
            self.left_out["hidden"] += 1
        elif not regular:
            self.left_out["pipe or device"] += 1
        elif ending in ENDINGS or (not ending and _begins_like_a_picture(os.path.join(self.root, path))):
            return True
        else:
            self.left_out[ending.decode("utf-8", "replace") or "no ending"] += 1
        return False


def scan(root: Path) -> Listing:
    """The pictures below `root`, at any depth; DataError where it cannot be listed. 100,000 files take about a second."""
    walk = _Walk(os.fsencode(root))
    walk.run()
    walk.entries.sort()
    names = PathTable.of(path for path, _, _ in walk.entries)
    folders = tuple(folder.decode("utf-8", "surrogateescape") for folder in sorted(walk.folders))
    bad = tuple(sorted(walk.bad, key=lambda bad: bad.name))
    return Listing(names, stamps(walk.entries), fingerprint(walk.entries), folders, walk.left_out, bad)


def fingerprint(entries: Iterable[Entry]) -> str:
    """SHA-256 over (path, size, mtime in ns) of each file: changes when a picture comes, goes or is written to."""
    digest = hashlib.sha256()
    for path, size, time in entries:
        digest.update(b"%b\0%d\0%d\0" % (path, size, time))
    return digest.hexdigest()


def stamps(entries: Sequence[Entry]) -> npt.NDArray[np.uint64]:
    """One number for each file, uint64 [N], of its size and time: another one where the file was written to."""
    return stamp(np.array([size for _, size, _ in entries], np.int64), np.array([time for _, _, time in entries], np.int64))


def stamp(sizes: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """`stamps` of files whose sizes and times, int64 [N], are at hand."""
    mixed: npt.NDArray[np.uint64] = sizes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ times.astype(np.uint64)
    return mixed


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def _unlistable(root: str, error: OSError) -> str:
    return f"{root} cannot be listed: {error.strerror}; wanted a folder of pictures that this user may read"


def _begins_like_a_picture(path: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return looks_like_picture(file.read(16))
    except OSError:
        return False
