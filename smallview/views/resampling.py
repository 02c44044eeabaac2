"""Resampling on the CPU: the weight tables of crop, flip and antialiased resize, their products, and the blur, compiled.

Legend: C channels, S the side of a view. The columns' table stands in blocks of LANES outputs, so that their sums run in vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from smallview.views.compiling import LANES, columns_product, compiled, rows_product

ROWS = 4
_columns_rgb = columns_product(ROWS, 3)
_columns_one = columns_product(ROWS, 1)
_rows_wide = rows_product(4)
_rows_narrow = rows_product(1)


@compiled
def window(start: float, length: float, limit: int) -> Any:
    """The source pixels [low, high) that a crop may look at: those that it touches."""
    low = max(0, math.floor(start + 1e-9))
    high = min(limit, max(low + 1, math.ceil(start + length - 1e-9)))
    return min(low, high - 1), high


@compiled
def _row_weights(start: float, length: float, size: int, low: int, high: int, first: Any, count: Any, table: Any) -> None:
    """Triangle filter of the rows: for each of `size` outputs the first source row, how many, and their weights, for bytes."""
    step = length / size
    reach = max(step, 1.0)
    for i in range(size):
        middle = start + (i + 0.5) * step
        a = max(low, math.floor(middle - reach))
        b = min(high, math.ceil(middle + reach))
        if b <= a:  # a box on the last fraction of a pixel
            a = min(max(a, low), high - 1)
            b = a + 1
        total = 0.0
        for k in range(b - a):
            w = max(0.0, 1.0 - abs(a + k + 0.5 - middle) / reach)
            table[i, k] = w
            total += w
        if total <= 0.0:
            nearest = min(max(int(middle), a), b - 1)
            for k in range(b - a):
                table[i, k] = 1.0 if a + k == nearest else 0.0
            total = 1.0
        scale = np.float32(1.0 / (255.0 * total))
        for k in range(b - a):
            table[i, k] *= scale
        first[i] = a
        count[i] = b - a


@compiled
def _column_weights(
    start: float, length: float, size: int, low: int, high: int, flip: bool, first: Any, count: Any, at: Any, table: Any,
    middle: Any, total: Any,
) -> None:  # fmt: skip
    """The same filter for the columns, in blocks of LANES outputs: table[at[b] + x * LANES + j] is source first[b] + x for output j."""
    step, one, none = np.float32(length / size), np.float32(1.0), np.float32(0.0)
    reach = max(step, one)
    slope = one / reach
    used = 0
    for b in range(at.shape[0]):
        o_first, o_last = b * LANES, min(size, b * LANES + LANES) - 1
        i_first, i_last = (size - 1 - o_last, size - 1 - o_first) if flip else (o_first, o_last)
        a = max(low, math.floor(start + (i_first + 0.5) * step - reach))
        z = min(high, math.ceil(start + (i_last + 0.5) * step + reach))
        if z <= a:
            a = min(max(a, low), high - 1)
            z = a + 1
        # numbers count from the block's first pixel: they stay small enough for single precision
        origin = np.float32(start - a)
        for j in range(LANES):
            o = min(o_first + j, o_last)
            i = size - 1 - o if flip else o
            middle[j] = origin + (np.float32(i) + np.float32(0.5)) * step
            total[j] = none
        for x in range(z - a):
            place, row = np.float32(x) + np.float32(0.5), used + x * LANES
            for j in range(LANES):
                w = max(none, one - abs(place - middle[j]) * slope)
                table[row + j] = w
                total[j] += w
        for j in range(LANES):
            if total[j] <= none:
                x = min(max(int(middle[j]), 0), z - a - 1)
                table[used + x * LANES + j] = total[j] = one
            total[j] = one / total[j]
        for x in range(z - a):
            row = used + x * LANES
            for j in range(LANES):
                table[row + j] *= total[j]
        first[b], count[b], at[b] = a, z - a, used
        used += (z - a) * LANES


@compiled
def resize(
    pixels: Any, base: int, height: int, width: int, channels: int, top: float, left: float, box_h: float, box_w: float, flip: bool,
    size: int, y_first: Any, y_count: Any, y_table: Any, x_first: Any, x_count: Any, x_at: Any, x_table: Any, middle: Any, total: Any,
    lines: Any, out: Any,
) -> None:  # fmt: skip
    """One crop into out, flat [C, S rounded up to ROWS, S rounded up to LANES], in 0..1."""
    y_low, y_high = window(top, box_h, height)
    x_low, x_high = window(left, box_w, width)
    _row_weights(top, box_h, size, y_low, y_high, y_first, y_count, y_table)
    _column_weights(left, box_w, size, x_low, x_high, flip, x_first, x_count, x_at, x_table, middle, total)
    blocks = x_at.shape[0]
    low = min(x_first[0], x_first[blocks - 1])
    span = (max(x_first[0] + x_count[0], x_first[blocks - 1] + x_count[blocks - 1]) - low) * channels
    stride, weights = lines.shape[0] // ROWS, y_table.reshape(-1)
    taps, across = y_table.shape[1], blocks * LANES
    plane = (size + ROWS - 1) // ROWS * ROWS * across
    for i in range(0, size, ROWS):
        for r in range(min(ROWS, size - i)):
            source, k, n, to, j = (
                base + (y_first[i + r] * width + low) * channels,
                (i + r) * taps,
                y_count[i + r],
                r * stride,
                0,
            )
            step = width * channels
            while j + 4 * LANES <= span:
                _rows_wide(weights, k, n, pixels, source + j, step, lines, to + j)
                j += 4 * LANES
            while j + LANES <= span:
                _rows_narrow(weights, k, n, pixels, source + j, step, lines, to + j)
                j += LANES
            if j < span and span >= LANES:  # the last vector overlaps the one before: no byte behind the picture is read
                _rows_narrow(weights, k, n, pixels, source + span - LANES, step, lines, to + span - LANES)
            elif j < span:
                for s in range(span):
                    value = np.float32(0.0)
                    for t in range(n):
                        value += weights[k + t] * np.float32(pixels[source + t * step + s])
                    lines[to + s] = value
        for b in range(blocks):
            at, to = (x_first[b] - low) * channels, i * across + b * LANES
            if channels == 3:
                _columns_rgb(x_table, x_at[b], x_count[b], lines, at, stride, channels, out, to, plane, across)
            else:
                for c in range(channels):
                    place = to + c * plane
                    _columns_one(x_table, x_at[b], x_count[b], lines, at + c, stride, channels, out, place, plane, across)


@compiled
def blur_reach(sigma: float, size: int) -> int:
    """Taps to either side: 3 sigma, and no more than a mirror gives."""
    return math.ceil(min(3.0 * sigma, size - 1.0))  # the least first: no whole number holds every sigma


@compiled
def blur(
    sigma: float, channels: int, size: int, across: int, plane: int, weights: Any, line: Any, padded: Any, out: Any
) -> None:
    """A Gaussian cut at 3 sigma along both axes of out, mirrored at the borders (which stand once)."""
    reach = blur_reach(sigma, size)
    total = 0.0
    for t in range(-reach, reach + 1):
        weights[t + reach] = math.exp(-0.5 * (t / sigma) ** 2)
        total += weights[t + reach]
    scale = np.float32(1.0 / total)
    n = 2 * reach + 1
    for t in range(n):
        weights[t] *= scale
    for c in range(channels):
        for i in range(size):
            source = c * plane + i * across
            copy_values(out[source : source + size], line[reach : reach + size])
            for t in range(1, reach + 1):
                line[reach - t] = out[source + t]
                line[reach + size - 1 + t] = out[source + size - 1 - t]
            _filter(weights, n, line, 0, 1, padded, (i + reach) * across, across)
        for t in range(1, reach + 1):
            for to, source in ((reach - t, reach + t), (reach + size - 1 + t, reach + size - 1 - t)):
                copy_values(padded[source * across : (source + 1) * across], padded[to * across : (to + 1) * across])
        for i in range(size):
            _filter(weights, n, padded, i * across, across, out, c * plane + i * across, across)


@compiled
def copy_values(source: Any, to: Any) -> None:
    """to[:] = source, numbers of one kind."""
    # loops over slices count from 0, which spares LLVM the thought of negative places: it takes vectors
    for j in range(to.shape[0]):
        to[j] = source[j]


@compiled
def _filter(weights: Any, n: int, values: Any, at: int, step: int, out: Any, to: int, length: int) -> None:
    """A row of `length` outputs, a multiple of LANES: out[to + j] = sum over k < n of weights[k] * values[at + k * step + j]."""
    j = 0
    while j + 4 * LANES <= length:
        _rows_wide(weights, 0, n, values, at + j, step, out, to + j)
        j += 4 * LANES
    while j < length:
        _rows_narrow(weights, 0, n, values, at + j, step, out, to + j)
        j += LANES
