"""Features that were extracted once are not extracted again: files by content, of encoder, pictures and view.

Legend: N pictures, F features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smallview.data.pack_folders import cache_folder
from smallview.evaluation.metrics import Figure
from smallview.files import write_text

MOST = 8 * 2**30  # bytes kept in all; the longest unused go first
_READ = 2**22


class FeatureCache:
    """Features [N, F] by a key that tells all they depend on; read back as a memory map, so that they need not fit into memory.

    A file whose bytes are not those that were written is not used. `folder` None keeps nothing.
    """

    def __init__(self, folder: Path | None, most: int = MOST) -> None:
        self.folder, self.most = folder, most

    @classmethod
    def usual(cls) -> FeatureCache:
        """The cache beside the packs: $SMALLVIEW_CACHE or the user's own."""
        return cls(cache_folder() / "features")

    def get(self, key: str | None, shape: tuple[int, int], fill: Callable[[Tensor], None]) -> Tensor:
        """The features of this key, float32 [N, F]; where there are none, `fill` writes them into what it is given.

        That is a file's memory map where they are kept, so that features need not fit into memory. A key of None is not kept.
        """
        if self.folder is None or key is None or 0 in shape:
            return _filled(torch.empty(shape), fill)
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.npy"
        kept = _read(path, key, shape)
        if kept is not None:
            return kept
        try:
            _write(path, key, shape, fill)
        except OSError:  # a full disk costs the time of the next extraction, nothing else
            return _filled(torch.empty(shape), fill)
        self._prune(path)
        kept = _read(path, key, shape)
        return _filled(torch.empty(shape), fill) if kept is None else kept

    def figures(self, key: str | None, make: Callable[[], list[Figure]]) -> list[Figure]:
        """What a floor came to under this key, measured where it was not; a floor is the same for every encoder beside it."""
        if self.folder is None or key is None:
            return make()
        path = self.folder.parent / "floors" / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            body = json.dumps(told["figures"], sort_keys=True)
            if told["key"] == key and told["sha256"] == hashlib.sha256(body.encode()).hexdigest():
                return [Figure(**one) for one in told["figures"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        made = make()
        plain = [
            {"protocol": f.protocol, "metric": f.metric, "value": f.value, "settings": f.settings, "interval": f.interval}
            for f in made
        ]
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            body = json.dumps(plain, sort_keys=True)
            write_text(path, json.dumps({"key": key, "figures": plain, "sha256": hashlib.sha256(body.encode()).hexdigest()}))
        return made

    def _prune(self, newest: Path) -> None:
        assert self.folder is not None
        files = sorted(
            ((f.stat().st_atime, f.stat().st_size, f) for f in self.folder.glob("*.npy")), key=lambda entry: entry[0]
        )
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= self.most:
                return
            if path != newest:
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                held -= size


def _filled(out: Tensor, fill: Callable[[Tensor], None]) -> Tensor:
    fill(out)
    return out


def _read(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if told["key"] != key or _digest(path) != told["sha256"]:
            return None
        os.utime(path)
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # private: who writes into it writes into memory
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return torch.from_numpy(array) if array.shape == shape and array.dtype == np.float32 else None


def _write(path: Path, key: str, shape: tuple[int, int], fill: Callable[[Tensor], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    room = 4 * shape[0] * shape[1]
    if shutil.disk_usage(path.parent).free < 2 * room:  # a map of a full disk ends the process
        raise OSError("no room")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=".tmp")
    os.close(handle)
    partial = Path(name)
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        fill(torch.from_numpy(array))
        array.flush()
        del array
        # the words go last: features without them are not used
        path.with_suffix(".json").unlink(missing_ok=True)
        digest = _digest(partial)
        partial.replace(path)
        write_text(path.with_suffix(".json"), json.dumps({"key": key, "sha256": digest}))
    finally:
        partial.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ):
            digest.update(block)
    return digest.hexdigest()
