"""The CPU executor of views: crop, flip, antialiased resize, blur, colour and normalisation in one pass over each picture.

Legend: B pictures, C channels, S the side of a view. The GIL is free while a kernel runs. Colour is one affine map per view, clamped
once, as `colour` says. Every step works in buffers that stay in the cache.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.errors import UsageError
from smallview.records import Foregrounds
from smallview.views.blurred import blur_window
from smallview.views.colour import LUMA, MAPS
from smallview.views.compiling import LANES, compiled
from smallview.views.noise import noise_byte, normal_pair
from smallview.views.resampling import ROWS, blur, blur_reach, resize, window
from smallview.views.sampling import ViewParameters, neutral
from smallview.views.view import BLUR, View, backgrounds


@compiled
def _sum(values: Any) -> Any:
    total = np.float32(0.0)
    for j in range(values.shape[0]):
        total += values[j]
    return total


@compiled
def _mean(values: Any, start: int, size: int, across: int) -> float:
    total = 0.0
    if across == size:
        total += _sum(values[start : start + size * size])
    else:
        for i in range(size):
            total += _sum(values[start + i * across : start + i * across + size])
    return total / (size * size)


@compiled
def _colour_rgb(a: Any, b: Any, c: Any, m: Any, low: Any, high: Any, out_a: Any, out_b: Any, out_c: Any) -> None:
    """One affine map and one clamp for a stretch of pixels; normalisation is a part of both."""
    m00, m01, m02, m03, m10, m11 = m[0, 0], m[0, 1], m[0, 2], m[0, 3], m[1, 0], m[1, 1]
    m12, m13, m20, m21, m22, m23 = m[1, 2], m[1, 3], m[2, 0], m[2, 1], m[2, 2], m[2, 3]
    low_a, low_b, low_c, high_a, high_b, high_c = low[0], low[1], low[2], high[0], high[1], high[2]
    for p in range(a.shape[0]):
        x, y, z = a[p], b[p], c[p]
        out_a[p] = min(max(m00 * x + m01 * y + m02 * z + m03, low_a), high_a)
        out_b[p] = min(max(m10 * x + m11 * y + m12 * z + m13, low_b), high_b)
        out_c[p] = min(max(m20 * x + m21 * y + m22 * z + m23, low_c), high_c)


@compiled
def _colour_one(x: Any, factor: Any, shift: Any, low: Any, high: Any, out: Any) -> None:
    for p in range(x.shape[0]):
        out[p] = min(max(factor * x[p] + shift, low), high)


@compiled
def _solarize(threshold: Any, both: Any, out: Any) -> None:
    # of normalised pixels: 1 - x is the sum of what 0 and 1 came to, less what x came to
    for p in range(out.shape[0]):
        out[p] = both - out[p] if out[p] >= threshold else out[p]


@compiled
def _matrix(
    brightness: float, contrast: float, colour: float, hue: float, mean: float, maps: Any, low: Any, scale: Any, out: Any
) -> None:
    """colour.colour_maps of one picture, then (x - mean) / std, whose value at 0 is low and whose slope is scale."""
    angle = -2.0 * math.pi * hue
    cosine, sine = colour * math.cos(angle), colour * math.sin(angle)
    for r in range(3):
        for c in range(3):
            out[r, c] = scale[r] * brightness * contrast * (maps[0, r, c] + cosine * maps[1, r, c] + sine * maps[2, r, c])
        out[r, 3] = scale[r] * (1.0 - contrast) * brightness * mean + low[r]


@compiled
def _paint(
    pixels: Any, base: int, height: int, width: int, channels: int, y_low: int, y_high: int, x_low: int, x_high: int, bits: Any,
    start: int, colour: Any, key: Any, to: Any,
) -> None:  # fmt: skip
    """The window of one picture with its background filled, into `to` as [y, x, C]; a colour under 0 is noise, or the blurred picture."""
    wide = x_high - x_low
    blurred = colour[0] == BLUR
    if blurred:
        blur_window(pixels, base, height, width, channels, y_low, y_high, x_low, x_high, to)
    for y in range(y_low, y_high):
        for x in range(x_low, x_high):
            p = y * width + x
            front = (bits[start + (p >> 3)] >> np.uint8(7 - (p & 7))) & np.uint8(1)
            at = ((y - y_low) * wide + x - x_low) * channels
            for c in range(channels):
                if front:
                    to[at + c] = pixels[base + p * channels + c]
                elif colour[c] >= 0:
                    to[at + c] = np.uint8(colour[c])
                elif not blurred:
                    to[at + c] = noise_byte(key, p * channels + c)


@compiled
def _make(
    pixels: Any, starts: Any, heights: Any, widths: Any, box: Any, flip: Any, factors: Any, noise_key: Any, solarize: Any, masked: Any,
    bits: Any, bit_starts: Any, colours: Any, painted: Any, painted_read: Any, threshold: float, noise: float, low: Any, scale: Any,
    maps: Any, luma: Any, size: int, out: Any,
) -> None:  # fmt: skip
    """Views into out [B, C, S, S]. factors float64 [5, B]: brightness, contrast, saturation (0: gray), hue, sigma."""
    b, channels = out.shape[0], out.shape[1]
    # no table is longer than a picture's side, whatever the box
    down_taps = across_taps = longest = 0
    for n in range(b):
        down_taps = max(down_taps, int(min(2.0 * max(box[n, 2] / size, 1.0), heights[n])) + 4)
        across_taps = max(across_taps, int(min(2.0 * max(box[n, 3] / size, 1.0), widths[n])) + 4)
        longest = max(longest, int(min(box[n, 3], widths[n])) + 4)
    blocks = (size + LANES - 1) // LANES
    across, down = blocks * LANES, (size + ROWS - 1) // ROWS * ROWS
    plane = down * across
    y_first, y_count = np.empty(size, np.int64), np.empty(size, np.int64)
    y_table = np.empty((size, down_taps), np.float32)
    x_first, x_count, x_at = np.empty(blocks, np.int64), np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    x_table = np.empty((longest + blocks * across_taps) * LANES, np.float32)
    lines = np.zeros(ROWS * (longest * channels + LANES), np.float32)
    work = np.zeros(channels * plane, np.float32)
    reach = 0
    for n in range(b):
        if factors[4, n] > 0.25:
            reach = max(reach, blur_reach(factors[4, n], size))
    weights, line = np.empty(2 * reach + 1, np.float32), np.zeros(across + 2 * reach, np.float32)
    padded = np.empty((size + 2 * reach) * across if reach > 0 else 0, np.float32)
    matrix, high = np.empty((3, 4), np.float32), low + scale
    middles, totals = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    flat = out.reshape(-1)
    for n in range(b):
        h, w, top, left = heights[n], widths[n], box[n, 0], box[n, 1]
        if masked[n]:
            y_low, y_high = window(top, box[n, 2], h)
            x_low, x_high = window(left, box[n, 3], w)
            _paint(
                pixels, starts[n], h, w, channels, y_low, y_high, x_low, x_high, bits, bit_starts[n], colours[n], noise_key[n],
                painted,
            )  # fmt: skip
            resize(
                painted_read, 0, y_high - y_low, x_high - x_low, channels, top - y_low, left - x_low, box[n, 2], box[n, 3], flip[n],
                size, y_first, y_count, y_table, x_first, x_count, x_at, x_table, middles, totals, lines, work,
            )  # fmt: skip
        else:
            resize(
                pixels, starts[n], h, w, channels, top, left, box[n, 2], box[n, 3], flip[n],
                size, y_first, y_count, y_table, x_first, x_count, x_at, x_table, middles, totals, lines, work,
            )  # fmt: skip
        if factors[4, n] > 0.25:  # under a quarter of a pixel the neighbours' weight is below 0.0004: nothing to see
            blur(factors[4, n], channels, size, across, plane, weights, line, padded, work)
        contrast, middle = factors[1, n], 0.0
        if contrast != 1.0:
            for c in range(channels):
                share = luma[c] if channels == 3 else 1.0 / channels
                middle += share * _mean(work, c * plane, size, across)
        to, area = n * channels * size * size, size * size
        stretch, stretches = (area, 1) if across == size else (size, size)
        if channels == 3:
            _matrix(factors[0, n], contrast, factors[2, n], factors[3, n], middle, maps, low, scale, matrix)
            for i in range(stretches):
                s, t = i * across, to + i * size
                _colour_rgb(
                    work[s : s + stretch], work[plane + s : plane + s + stretch], work[2 * plane + s : 2 * plane + s + stretch],
                    matrix, low, high,
                    flat[t : t + stretch], flat[t + area : t + area + stretch], flat[t + 2 * area : t + 2 * area + stretch],
                )  # fmt: skip
        else:
            for c in range(channels):
                factor = np.float32(scale[c] * factors[0, n] * contrast)
                shift = np.float32(scale[c] * (1.0 - contrast) * factors[0, n] * middle + low[c])
                for i in range(stretches):
                    s, t = c * plane + i * across, to + c * area + i * size
                    _colour_one(work[s : s + stretch], factor, shift, low[c], high[c], flat[t : t + stretch])
        if solarize[n]:
            for c in range(channels):
                limit = np.float32(low[c] + threshold * scale[c])
                _solarize(limit, low[c] + high[c], flat[to + c * area : to + (c + 1) * area])
        if noise > 0.0:
            p, last = 0, channels * size * size
            while p < last:
                first, second = normal_pair(noise_key[n], p >> 1)
                flat[to + p] += np.float32(noise * first) * scale[p // (size * size)]
                if p + 1 < last:
                    flat[to + p + 1] += np.float32(noise * second) * scale[(p + 1) // (size * size)]
                p += 2


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # a forked process has no threads of its parent's pool
    return ThreadPoolExecutor(threads, thread_name_prefix="views")


def make_views(
    pixels: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    heights: npt.NDArray[np.int32],
    widths: npt.NDArray[np.int32],
    view: View,
    drawn: ViewParameters,
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
    *,
    foregrounds: Foregrounds | None = None,
    index: npt.NDArray[np.int64] | None = None,
    out: npt.NDArray[np.float32] | None = None,
    threads: int = 1,
    crop_only: bool = False,
) -> npt.NDArray[np.float32]:
    """The views that the parameters describe, float32 [B, C, S, S], normalised; the same bits for any number of threads.

    pixels: uint8, flat; picture n is [heights[n], widths[n], C] at starts[n]. mean, std float32 [C]. foregrounds, with the pictures'
    positions `index` [B]: what stands in front, for views without background. out: an array to write into. crop_only: mask, crop and
    flip, in [0, 1], and nothing of what comes after. Shrinking averages (a triangle filter as wide as the step), enlarging interpolates
    linearly. Only C = 3 knows saturation, hue and grayscale.

    Raises:
        UsageError: parameters of another number of pictures.
    """
    b, size, channels = len(starts), drawn.size, len(mean)
    if len(drawn.box) != b:  # compiled code would read what lies behind the arrays
        raise UsageError(f"parameters of {len(drawn.box):,} pictures for {b:,}; wanted a row for each")
    out = np.empty((b, channels, size, size), np.float32) if out is None else out
    if b == 0:
        return out
    masked, bits, bit_starts = np.zeros(b, np.bool_), np.zeros(1, np.uint8), np.zeros(b, np.int64)
    if foregrounds is not None and index is not None and view.mask_background > 0.0:
        masked, bits, bit_starts = drawn.masked & foregrounds.usable[index], foregrounds.bits, foregrounds.starts[index]
    colours = backgrounds(view.background, drawn.background, mean) if masked.any() else np.zeros((b, channels), np.int64)
    if crop_only:
        bare = neutral(drawn.box, drawn.flip, size)
        drawn, view = replace(bare, noise_key=drawn.noise_key), replace(view, noise=0.0)
        mean, std = np.zeros_like(mean), np.ones_like(std)
    saturation = np.where(drawn.grayscale, 0.0, drawn.saturation)
    factors = np.stack([drawn.brightness, drawn.contrast, saturation, drawn.hue, drawn.blur_sigma])
    # one kind of array, whether the pack is a read-only map or memory: the kernel is compiled once
    pixels, bits = _read_only(pixels), _read_only(bits)

    def work(s: slice) -> None:
        room = 0
        if masked[s].any():  # the windows are at most two pixels longer than the boxes
            sides = np.minimum(np.ceil(drawn.box[s, 2:]) + 2, np.stack([heights[s], widths[s]], 1))[masked[s]]
            room = int(sides.prod(1).max()) * channels
        painted = np.empty(room, np.uint8)
        _make(
            pixels, np.ascontiguousarray(starts[s]), heights[s].astype(np.int64), widths[s].astype(np.int64),
            np.ascontiguousarray(drawn.box[s]), np.ascontiguousarray(drawn.flip[s]), np.ascontiguousarray(factors[:, s]),
            np.ascontiguousarray(drawn.noise_key[s]), np.ascontiguousarray(drawn.solarize[s]), np.ascontiguousarray(masked[s]),
            bits, np.ascontiguousarray(bit_starts[s]), np.ascontiguousarray(colours[s]), painted, _read_only(painted),
            view.solarize_threshold, view.noise, -mean / std, 1.0 / std, MAPS, LUMA, size, out[s],
        )  # fmt: skip

    threads = max(1, min(threads, b))
    parts = [slice(b * t // threads, b * (t + 1) // threads) for t in range(threads)]
    if threads == 1:
        work(parts[0])
    else:
        list(_pool(threads, os.getpid()).map(work, parts))
    return out


def _read_only(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    same = array.view()
    same.flags.writeable = False
    return same
