"""Pictures that are an array already: what form it must have, and the .npy and .npz files that hold one."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.decoding import Pixels
from smallview.data.pack_files import SteadyFile
from smallview.errors import DataError

Labels = npt.NDArray[np.int64]
_IMAGE_KEYS = ("images", "x", "arr_0")
_LABEL_KEYS = ("labels", "y")
MOST_LOADED = 256 * 2**20
_WANTED = "wanted uint8 [N, H, W] or [N, H, W, C]"


@dataclass(frozen=True, eq=False)
class Place:
    """Where the pixels of an array lie, back to back: from byte `offset` of a file on."""

    file: SteadyFile
    offset: int


def as_pictures(array: npt.NDArray[Any], what: str = "the array") -> Pixels:
    """The array as uint8 [N, H, W, C], without a copy where it is C-ordered. Raises DataError for any other dtype or shape.

    Example:
        >>> as_pictures(np.zeros((5, 8, 8), np.uint8)).shape
        (5, 8, 8, 1)
    """
    got = f"{what} is {array.dtype} {list(array.shape)}; {_WANTED}"
    if array.dtype != np.uint8:
        if array.dtype.kind == "f":
            advice = "for values in 0..1: (255 * x).round().astype(np.uint8)"
        elif array.dtype.kind in "iub":
            advice = "scale it to 0..255, then .astype(np.uint8)"
        else:
            advice = "stack the pictures to one array of bytes"
        raise DataError(f"{got}; {advice}")
    if array.ndim not in (3, 4):
        advice = "for one picture: x[None]" if array.ndim == 2 else "reshape it"
        raise DataError(f"{got}; {advice}")
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] > 4:
        raise DataError(f"{got}; this looks like [N, C, H, W]: x.transpose(0, 2, 3, 1)")
    if 0 in array.shape:
        raise DataError(f"{got}; there is no picture in it")
    pictures = array[..., None] if array.ndim == 3 else array
    # a memory-mapped file stays one, but as a plain array: np.memmap would go on to every picture taken from it
    return np.ascontiguousarray(pictures).view(np.ndarray)


def as_labels(labels: Any, n: int) -> tuple[Labels, tuple[str, ...] | None]:
    """(int64 [N], class names or None) of whole numbers or of names, one per picture; names are numbered in sorted order.

    Example:
        >>> as_labels(["cat", "dog", "cat"], 3)
        (array([0, 1, 0]), ('cat', 'dog'))
    """
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != n:
        raise DataError(f"labels of shape {list(values.shape)} for {n:,} pictures; wanted one label per picture: [{n}]")
    if values.dtype.kind == "U":
        names, numbers = np.unique(values, return_inverse=True)
        return numbers.astype(np.int64), tuple(str(name) for name in names)
    if values.dtype.kind not in "iub":
        raise DataError(f"labels are {values.dtype}; wanted whole numbers or class names; try labels.astype(np.int64)")
    return values.astype(np.int64), None


def load_npy(path: Path) -> tuple[Pixels, Place | None]:
    """The pictures of a .npy file: up to 256 MiB in memory, larger ones mapped, and where they are read from. Never unpickles."""
    try:
        file = SteadyFile(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise DataError(_broken(path, error)) from error
    pictures = as_pictures(array, str(path))
    if pictures.nbytes <= MOST_LOADED:
        return pictures.copy(), None
    return pictures, Place(file, array.offset) if is_mapped(pictures) else None


def is_mapped(array: npt.NDArray[Any]) -> bool:
    """Whether an array's memory is a map of a file."""
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, (np.memmap, mmap.mmap))


def load_npz(path: Path) -> tuple[Pixels, Any | None]:
    """(pictures, labels or None) of a .npz file: keys `images`, `x` or `arr_0`, and `labels` or `y`. Never unpickles."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            keys = list(file.keys())
            images = _first(keys, _IMAGE_KEYS)
            labels = _first(keys, _LABEL_KEYS)
            array = file[images] if images else None
            numbers = file[labels] if labels else None
    except Exception as error:
        raise DataError(_broken(path, error)) from error
    if array is None:
        raise DataError(
            f"{path} holds {', '.join(keys[:10]) or 'nothing'}; wanted the pictures under `images`, `x` or `arr_0`"
            " (labels, if any, under `labels` or `y`)"
        )
    return as_pictures(array, f"{images} in {path}"), numbers


def _first(keys: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((key for key in wanted if key in keys), None)


def _broken(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())[:150] or type(error).__name__
    advice = "; save plain numbers, not objects" if "pickle" in text.lower() else ""
    return f"{path} cannot be read as numpy arrays ({text}); {_WANTED}{advice}"
