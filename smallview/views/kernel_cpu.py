"""The CPU executor of crops: box, flip and antialiased resize from packed pictures of any size, compiled for this machine.

Legend: B pictures, C channels, S the side of a view. The GIL is free while a kernel runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt

_log = logging.getLogger("smallview.views")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile by numba with the GIL free and the machine code cached on disk, or kept in memory where no disk can be written."""
    try:
        return cast(Callable[..., Any], numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # "no locator available": neither the package's folder nor the user's cache folder can be written
        _say_uncached()
        return cast(Callable[..., Any], numba.njit(nogil=True)(function))


@lru_cache(maxsize=1)
def _say_uncached() -> None:
    _log.warning(
        "no folder for compiled code can be written: each start compiles anew, some seconds; set NUMBA_CACHE_DIR to one that can"
    )


@compiled
def _weights(start: float, length: float, size: int, limit: int, flip: bool, first: Any, count: Any, table: Any) -> None:
    """Triangle filter of one axis: for each of `size` outputs the first source pixel, how many, and their weights."""
    step = length / size
    reach = max(step, 1.0)
    low = max(0, int(np.floor(start + 1e-9)))
    high = min(limit, max(low + 1, int(np.ceil(start + length - 1e-9))))
    low = min(low, high - 1)
    for i in range(size):
        o = size - 1 - i if flip else i
        middle = start + (i + 0.5) * step
        a = max(low, int(np.floor(middle - reach)))
        b = min(high, int(np.ceil(middle + reach)))
        if b <= a:  # a box on the last fraction of a pixel
            a = min(max(a, low), high - 1)
            b = a + 1
        total = 0.0
        for j in range(a, b):
            w = max(0.0, 1.0 - abs((j + 0.5 - middle) / reach))
            table[o, j - a] = w
            total += w
        if total <= 0.0:
            nearest = min(max(int(middle), a), b - 1)
            for j in range(a, b):
                table[o, j - a] = 1.0 if j == nearest else 0.0
            total = 1.0
        for j in range(a, b):
            table[o, j - a] /= total
        first[o] = a
        count[o] = b - a


@compiled
def _crop_resize(
    pixels: Any, offsets: Any, heights: Any, widths: Any, index: Any, boxes: Any, flips: Any, channels: int, out: Any
) -> None:
    size = out.shape[2]
    for n in range(index.shape[0]):
        h, w, base = heights[index[n]], widths[index[n]], offsets[index[n]]
        top, left, box_h, box_w = boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3]
        tall = int(2 * max(box_h / size, 1.0)) + 3
        wide = int(2 * max(box_w / size, 1.0)) + 3
        y_first, y_count = np.empty(size, np.int64), np.empty(size, np.int64)
        x_first, x_count = np.empty(size, np.int64), np.empty(size, np.int64)
        y_table, x_table = np.zeros((size, tall), np.float32), np.zeros((size, wide), np.float32)
        _weights(top, box_h, size, h, False, y_first, y_count, y_table)
        _weights(left, box_w, size, w, flips[n], x_first, x_count, x_table)
        x_low = min(x_first[0], x_first[size - 1])
        x_high = max(x_first[0] + x_count[0], x_first[size - 1] + x_count[size - 1])
        span = (x_high - x_low) * channels
        row = np.empty(span, np.float32)
        for i in range(size):
            row[:] = 0.0
            for k in range(y_count[i]):
                weight = y_table[i, k] * np.float32(1.0 / 255.0)
                source = base + ((y_first[i] + k) * w + x_low) * channels
                for j in range(span):
                    row[j] += weight * pixels[source + j]
            for j in range(size):
                at = (x_first[j] - x_low) * channels
                for c in range(channels):
                    total = np.float32(0.0)
                    for k in range(x_count[j]):
                        total += x_table[j, k] * row[at + k * channels + c]
                    out[n, c, i, j] = total


@compiled
def _gaussian(keys: Any, out: Any) -> None:
    """Standard normal numbers, out [B, P]: splitmix64 counted from each picture's key, then Box and Muller (1958)."""
    golden, mix_1, mix_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
    for n in range(out.shape[0]):
        for p in range(out.shape[1]):
            x = keys[n] + golden * np.uint64(p + 1)
            x = (x ^ (x >> np.uint64(30))) * mix_1
            x = (x ^ (x >> np.uint64(27))) * mix_2
            x = x ^ (x >> np.uint64(31))
            u = (np.float64(x >> np.uint64(32)) + 0.5) / 4294967296.0
            v = np.float64(x & np.uint64(0xFFFFFFFF)) / 4294967296.0
            out[n, p] = np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)


def crop_resize(
    pixels: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    heights: npt.NDArray[np.int32],
    widths: npt.NDArray[np.int32],
    channels: int,
    index: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64],
    flips: npt.NDArray[np.bool_],
    size: int,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """Crops of packed pictures as float32 [B, C, S, S] in [0, 1]; the same bits for any number of threads.

    pixels: flat uint8 pack, pictures [H, W, C] at `offsets`. index int64 [B]: which pictures. boxes [B, 4]: top, left, height,
    width in source pixels. Shrinking averages (triangle filter as wide as the step), enlarging interpolates linearly.
    """
    out = np.empty((len(index), channels, size, size), np.float32)
    parts = np.array_split(np.arange(len(index)), max(1, min(threads, len(index))))

    def work(part: npt.NDArray[np.int64]) -> None:
        a, b = part[0], part[-1] + 1
        _crop_resize(pixels, offsets, heights, widths, index[a:b], boxes[a:b], flips[a:b], channels, out[a:b])

    if len(index) == 0:
        return out
    if len(parts) == 1:
        work(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(work, parts))
    return out


def gaussian_noise(keys: npt.NDArray[np.uint64], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal noise float32 [B, *shape], a function of each picture's key alone.

    Example:
        >>> from smallview.seeds import sample_keys
        >>> gaussian_noise(sample_keys(0, "doc", [1, 2]), (3, 4, 4)).shape
        (2, 3, 4, 4)
    """
    out = np.empty((len(keys), int(np.prod(shape))), np.float32)
    _gaussian(keys, out)
    return out.reshape(len(keys), *shape)
