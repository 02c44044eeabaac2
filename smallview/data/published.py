"""Sets as their authors published them: CIFAR-10 and CIFAR-100 in the binary version, and MNIST-type idx files.

CIFAR rows are the label byte (CIFAR-100: coarse, then fine) and 32 x 32 pixels in three planes. An idx file is a big-endian
header (0, 0, 8 for bytes, number of dimensions, the dimensions) and the bytes. A folder with both parts gives the training
part; name the file to have the other one.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smallview.data.arrays import Labels, as_pictures
from smallview.data.decoding import Pixels
from smallview.errors import DataError

_PLANES = 3 * 32 * 32
_CIFAR_10 = 1 + _PLANES
_CIFAR_100 = 2 + _PLANES
_CLASS_FILES = {_CIFAR_10: "batches.meta.txt", _CIFAR_100: "fine_label_names.txt"}
_IDX_IMAGES = re.compile(r"^(.*)images([-.])idx3-ubyte(\.gz)?$")
_PLAIN_IDX = re.compile(r"\.idx3-ubyte(\.gz)?$")
_TELLING = re.compile(r"^(data_batch_\d+|test_batch|train|test)(\.bin)?$|idx3-ubyte(\.gz)?$")
_MOST_BYTES = 2**36


class PublishedSet(NamedTuple):
    """Pictures uint8 [N, H, W, C], labels int64 [N] or None, class names or None, and a name."""

    images: Pixels
    labels: Labels | None
    classes: tuple[str, ...] | None
    name: str


def find_published(path: Path) -> PublishedSet | None:
    """The set that this file or folder is a published form of, or None; DataError where it is a broken one."""
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if _TELLING.search(name))
        files = {name: path / name for name in names if (path / name).is_file()}
        refuse_pickles(path, files)
        cifar = [files[name] for name in files if re.fullmatch(r"data_batch_\d+\.bin", name)]
        for single in ("test_batch.bin", "train.bin", "test.bin"):
            if not cifar and single in files:
                cifar = [files[single]]
        if cifar:
            return read_cifar(cifar, path.resolve().name)
        idx = [file for name, file in files.items() if _IDX_IMAGES.match(name) or _PLAIN_IDX.search(name)]
        if idx:
            chosen = next((file for file in idx if file.name.startswith("train")), idx[0])
            return read_idx(chosen)._replace(name=path.resolve().name)
        return None
    refuse_pickles(path, {path.name: path})
    if path.suffix == ".bin":
        return read_cifar([path], path.stem)
    if _IDX_IMAGES.match(path.name) or _PLAIN_IDX.search(path.name):
        return read_idx(path)
    return None


def refuse_pickles(path: Path, files: dict[str, Path]) -> None:
    """Raise DataError for the CIFAR version for Python, whose files are pickles: reading one runs whatever code is in it."""
    suspects = [files[name] for name in files if re.fullmatch(r"data_batch_\d+|test_batch|train|test", name)]
    if any(_begins(file, b"\x80") for file in suspects):
        raise DataError(
            f"{path} is the Python version of CIFAR, and its pickle files can run code; wanted the binary version"
            " (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz), or the pictures as an array: pretrain(array)"
        )


def read_cifar(files: list[Path], name: str) -> PublishedSet:
    """The rows of CIFAR binary files, one after the other, with the fine labels of CIFAR-100."""
    row = _row_length(files[0])
    parts = []
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % row:
            raise DataError(f"{file} has {size:,} bytes, not a multiple of {row:,} (one row of CIFAR); download it again")
        parts.append(np.fromfile(file, np.uint8).reshape(-1, row))
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    classes = 10 if row == _CIFAR_10 else 100
    labels = rows[:, row - _PLANES - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(
            f"{files[0]} has label {labels.max()}; wanted CIFAR-{classes} rows with labels under {classes}; is it another file?"
        )
    images = rows[:, row - _PLANES :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return PublishedSet(as_pictures(images), labels, _class_names(files[0].parent / _CLASS_FILES[row], classes), name)


def read_idx(path: Path) -> PublishedSet:
    """The pictures of an idx file, plain or .gz, with the labels of the file beside it, where there is one."""
    shape, values = _idx(path, 3)
    labels: Labels | None = None
    beside = _labels_beside(path)
    if beside is not None:
        (n,), numbers = _idx(beside, 1)
        if n != shape[0]:
            raise DataError(f"{beside} has {n:,} labels for the {shape[0]:,} pictures of {path.name}; do they belong together?")
        labels = numbers.astype(np.int64)
    stem = re.sub(r"[-.]idx3-ubyte(\.gz)?$", "", path.name) or path.name
    return PublishedSet(as_pictures(values.reshape(shape), str(path)), labels, None, stem)


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _row_length(file: Path) -> int:
    if re.fullmatch(r"data_batch_\d+\.bin|test_batch\.bin", file.name):
        return _CIFAR_10
    if file.name in ("train.bin", "test.bin"):
        return _CIFAR_100
    size = file.stat().st_size
    fits = [row for row in (_CIFAR_10, _CIFAR_100) if size and size % row == 0]
    if len(fits) != 1:
        raise DataError(
            f"{file} has {size:,} bytes, no whole number of CIFAR rows ({_CIFAR_10:,} or {_CIFAR_100:,}); wanted a"
            " folder of pictures, .npy, .npz, CIFAR .bin or idx files; save other data as .npy"
        )
    return fits[0]


def _class_names(file: Path, classes: int) -> tuple[str, ...] | None:
    try:
        names = tuple(file.read_text("utf-8").split())
    except (OSError, ValueError):
        return None
    return names if len(names) == classes else None


def _labels_beside(path: Path) -> Path | None:
    name = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for candidate in (path.with_name(name), path.with_name(name + ".gz")):
        if candidate.name != path.name and candidate.is_file():
            return candidate
    return None


def _idx(path: Path, dimensions: int) -> tuple[tuple[int, ...], Pixels]:
    """(shape, flat bytes) of an idx file; the size in the header is believed only as far as there are bytes."""
    length = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(length)
            if len(head) < length or head[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(
                    f"{path} begins with {head[:4].hex(' ')}; wanted 00 00 08 0{dimensions}, an idx file of bytes;"
                    " download it again"
                )
            shape = tuple(int(n) for n in np.frombuffer(head, ">u4", offset=4))
            size = int(np.prod(shape, dtype=object))
            if size > _MOST_BYTES:
                raise DataError(f"{path} promises {size:,} bytes; download it again")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); download it again") from error
    if len(data) != size:
        more = "more" if len(data) > size else f"{len(data):,}"
        raise DataError(f"{path} promises {size:,} bytes for {list(shape)} and has {more}; download it again")
    return shape, np.frombuffer(data, np.uint8)
