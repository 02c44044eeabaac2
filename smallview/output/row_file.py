"""embeddings.npy while it is written: rows behind numpy's header under another name, with a word of how far they can be trusted.

`.embeddings.npy.part` grows; `.embeddings.json` says what it is made of, how many of its rows are on the disk for certain, and the
SHA-256 up to there. What stands after these rows is written anew. The last step gives the file its name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from smallview.files import sync_folder, write_text

NAME, PART, STATE = "embeddings.npy", ".embeddings.npy.part", ".embeddings.json"
SAVE_SECONDS = 5.0
_BLOCK = 1 << 20


def _point(name: str) -> None:
    """Named moments between the system calls; tests end the process here."""


def header_of(shape: tuple[int, int]) -> bytes:
    """What stands before the numbers of a float32 file of this shape, as numpy writes it.

    Example:
        >>> file = io.BytesIO()
        >>> np.save(file, np.zeros((2, 3), np.float32))
        >>> file.getvalue() == header_of((2, 3)) + bytes(24)
        True
    """
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begun(folder: Path) -> dict[str, Any]:
    """What an unfinished file in this folder is made of, with the number of its `rows`; nothing where there is none that can be read."""
    try:
        told = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return {**told["made_of"], "rows": int(told["rows"])} if (folder / PART).is_file() else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


class RowFile:
    """Rows float32 [B, F] of a file [N, F] as they come; `rows` counts those that are there.

    made_of: what the rows depend on, as JSON holds it. go_on: begin after the rows that an earlier process has left; where their bytes
    are not those that it wrote, `damaged` is true and the file begins anew. OSError as from writing.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], made_of: Mapping[str, Any], *, go_on: bool = False) -> None:
        self.folder, self.shape, self.made_of = folder, shape, dict(made_of)
        self.rows, self.damaged = 0, False
        self.saved = time.monotonic()
        header = header_of(shape)
        self._digest = hashlib.sha256(header)
        self._file: BinaryIO = open(folder / PART, "r+b" if go_on else "w+b", buffering=0)  # noqa: SIM115
        if go_on and self._take_over(header):
            return
        self.damaged = go_on
        self.rows = 0
        self._digest = hashlib.sha256(header)
        self._file.seek(0)
        self._file.truncate()
        self._write(header)
        self.save()

    def _take_over(self, header: bytes) -> bool:
        told = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        if self._file.read(len(header)) != header:
            return False
        self.rows, left = int(told["rows"]), 4 * self.shape[1] * int(told["rows"])
        while left > 0 and (block := self._file.read(min(left, _BLOCK))):
            self._digest.update(block)
            left -= len(block)
        if left or not 0 <= self.rows <= self.shape[0] or self._digest.hexdigest() != told["sha256"]:
            return False
        self._file.truncate()
        return True

    def write(self, features: npt.NDArray[np.float32]) -> None:
        """Add rows; every few seconds they are made certain."""
        data = np.ascontiguousarray(features, "<f4").reshape(-1).view(np.uint8).data
        self._write(data)
        self._digest.update(data)
        self.rows += len(features)
        _point("rows written")
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save()

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view[:_BLOCK]) :]

    def save(self) -> None:
        """Make certain what there is: the rows first, then the word of them."""
        os.fsync(self._file.fileno())
        _point("rows synced")
        word = {"made_of": self.made_of, "rows": self.rows, "sha256": self._digest.hexdigest()}
        write_text(self.folder / STATE, json.dumps(word, indent=1) + "\n")
        _point("word written")
        self.saved = time.monotonic()

    def finish(self, about: Path) -> str:
        """Give the whole file its name, after the words `about` it are written; -> its SHA-256."""
        self.save()
        self._file.close()
        sha256 = self._digest.hexdigest()
        write_text(
            about,
            json.dumps({**self.made_of, "rows": self.shape[0], "features": self.shape[1], "sha256": sha256}, indent=1) + "\n",
        )
        _point("told about")
        os.replace(self.folder / PART, self.folder / NAME)
        _point("named")
        sync_folder(self.folder)
        (self.folder / STATE).unlink(missing_ok=True)
        return sha256

    def close(self) -> None:
        """Leave it as it is."""
        self._file.close()
