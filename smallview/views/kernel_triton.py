"""Fast views on a CUDA device: the torch executor's algebra in few launches, with half-precision products.

What was drawn becomes one table, sent in one copy; weights, blur and colours are Triton kernels, the products cuBLAS's. Bytes are whole
numbers to float16, weights have eleven bits there and sums are in single precision: within half a grey level of `kernel_torch`.

Legend: B pictures, C = 3 channels, S the side of a view, H and W source sides.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.views.colour import LUMA, colour_maps
from smallview.views.kernel_torch import axis, finish, reach, to_device
from smallview.views.sampling import ViewParameters
from smallview.views.view import View

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheel of it for this platform, so no CUDA either
    triton = tl = None

# where things stand in a row of the table
ROWS, COLUMNS, FLIP, SIGMA, CUT, MATRIX, SHARE, SOLARIZE, WIDTH = 0, 4, 8, 9, 10, 11, 20, 21, 22
BLOCK = 4096
_log = logging.getLogger("smallview.views")


def table(drawn: ViewParameters, heights: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """All that the kernels need to know of each picture's view, float32 [B, WIDTH]."""
    out = np.empty((len(drawn.box), WIDTH), np.float32)
    out[:, ROWS:COLUMNS] = np.stack(axis(drawn.box[:, 0], drawn.box[:, 2], heights, drawn.size), 1)
    out[:, COLUMNS:FLIP] = np.stack(axis(drawn.box[:, 1], drawn.box[:, 3], widths, drawn.size), 1)
    out[:, FLIP] = drawn.flip
    out[:, SIGMA], out[:, CUT] = reach(drawn.blur_sigma, drawn.size)
    saturation = np.where(drawn.grayscale, 0.0, drawn.saturation)
    matrices, out[:, SHARE] = colour_maps(drawn.brightness, drawn.contrast, saturation, drawn.hue)
    out[:, MATRIX:SHARE] = matrices.reshape(-1, 9)
    out[:, SOLARIZE] = drawn.solarize
    return out


def needs(drawn: ViewParameters) -> tuple[int, bool, bool]:
    """(side, whether anything is blurred, whether a contrast is changed): what decides which kernels a view takes."""
    return drawn.size, bool((drawn.blur_sigma > 0.25).any()), bool((drawn.contrast != 1.0).any())


def make_view(
    images: Tensor,
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    view: View,
    drawn: ViewParameters,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """A whole view float32 [B, 3, S, S], normalised, of pictures [B, 3, H, W] that hold bytes as uint8 or float16."""
    known = to_device(table(drawn, heights, widths), images.device)
    if view.noise == 0.0:
        return cut(images, known, needs(drawn), view, torch.stack([mean, std]))
    # noise comes before the normalisation
    unturned = cut(images, known, needs(drawn), replace(view, solarize=0.0), _neutral(images.device))
    return finish(unturned, view, drawn, mean, std)


def cut(images: Tensor, known: Tensor, needed: tuple[int, bool, bool], view: View, moments: Tensor) -> Tensor:
    """The device's part of a view: [B, 3, S, S] from pictures, their rows of the table, and moments [2, 3], mean over deviation."""
    b, (size, blurred, contrast), device = len(images), needed, images.device
    rows = _weights(known, ROWS, -1, size, images.shape[2])
    columns = _weights(known, COLUMNS, FLIP, size, images.shape[3])
    if blurred:
        blur = torch.empty(b, size, size, dtype=torch.float16, device=device)
        side, tile = _tile(size)
        _blur_rows[(b, triton.cdiv(size, tile))](known, blur, size, WIDTH, SIGMA, CUT, side, tile)
        rows, columns = blur @ rows, blur @ columns
    crops = rows[:, None] @ images.half() @ columns[:, None].transpose(2, 3)  # [B, 3, S, S], bytes still
    out = torch.empty(b, 3, size, size, device=device)
    _colours[(b,)](
        *(crops, known, out, moments, size * size, view.solarize_threshold),
        *(WIDTH, MATRIX, SHARE, SOLARIZE, *(float(weight) for weight in LUMA), contrast, view.solarize > 0.0, BLOCK),
        num_warps=8,
    )
    return out


@lru_cache(maxsize=8)
def _neutral(device: torch.device) -> Tensor:
    return torch.tensor([[0.0] * 3, [1.0] * 3], device=device)


def _tile(columns: int) -> tuple[int, int]:
    """(columns, rows) that one program takes: all columns, as many rows as make it worth its launch."""
    side = triton.next_power_of_2(columns)
    return side, max(1, BLOCK // side)


def _weights(known: Tensor, start: int, flip: int, size: int, most: int) -> Tensor:
    out = torch.empty(len(known), size, most, dtype=torch.float16, device=known.device)
    side, tile = _tile(most)
    _axis_weights[(len(known), triton.cdiv(size, tile))](known, out, size, most, WIDTH, start, flip, side, tile)
    return out


@lru_cache(maxsize=8)
def unusable(device: torch.device) -> str | None:
    """Why these kernels cannot run on this device, in a few words; None where they can.

    Triton needs a C compiler for its first launch: a CUDA device without one is told of, once, because its views are slower.
    """
    if device.type != "cuda":
        return f"the device is {device}"
    if triton is None:
        return "triton is not installed"
    try:
        _weights(torch.zeros(1, WIDTH, device=device), ROWS, -1, 1, 1)
        torch.cuda.synchronize(device)
    except Exception as error:  # of Triton's compiler, of the C compiler, or of the driver
        told = (str(error).strip().splitlines() or ["no message"])[-1]
        _log.warning("Triton makes no kernel here, so that views take torch's slower operations: %s", told)
        return f"triton makes no kernel here ({told})"
    return None


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _axis_weights(
    known, out, size, most, width: tl.constexpr, start: tl.constexpr, flip: tl.constexpr, side: tl.constexpr, tile: tl.constexpr
):
    # kernel_torch._axis_weights, for one picture and some of its rows
    b = tl.program_id(0).to(tl.int64)
    row = known + b * width
    first, last = tl.load(row + start), tl.load(row + start + 1)
    origin, step = tl.load(row + start + 2), tl.load(row + start + 3)
    i = tl.program_id(1) * tile + tl.arange(0, tile)
    j = tl.arange(0, side)
    source = i
    if flip >= 0:
        source = tl.where(tl.load(row + flip) > 0.5, size - 1 - i, i)
    middle = origin + (source.to(tl.float32) + 0.5) * step
    place = j.to(tl.float32)
    inside = (place >= first) & (place < last)
    far = tl.abs((place[None, :] - first + 0.5 - middle[:, None]) / tl.maximum(step, 1.0))
    weights = tl.where(inside[None, :], tl.maximum(1.0 - far, 0.0), 0.0)
    total = tl.sum(weights, 1)
    nearest = tl.minimum(tl.maximum(tl.floor(middle), 0.0), last - first - 1.0)
    only = tl.where(inside[None, :] & (place[None, :] - first == nearest[:, None]), 1.0, 0.0)
    weights = tl.where(total[:, None] > 0.0, weights / tl.maximum(total, 1e-12)[:, None], only)
    here = out + b * size * most + i[:, None] * most + j[None, :]
    tl.store(here, weights.to(tl.float16), mask=(i[:, None] < size) & (j[None, :] < most))


@_jit
def _blur_rows(
    known, out, size, width: tl.constexpr, at_sigma: tl.constexpr, at_cut: tl.constexpr, side: tl.constexpr, tile: tl.constexpr
):
    # kernel_torch.gaussian_rows: a place is reached directly, mirrored at the first pixel, and mirrored at the last
    b = tl.program_id(0).to(tl.int64)
    row = known + b * width
    sigma, cut = tl.load(row + at_sigma), tl.load(row + at_cut)
    i = tl.program_id(1) * tile + tl.arange(0, tile)
    j = tl.arange(0, side)
    weights = tl.zeros([tile, side], tl.float32)
    direct = (j[None, :] - i[:, None]).to(tl.float32)
    weights += tl.where(tl.abs(direct) <= cut, tl.exp(-0.5 * (direct / sigma) * (direct / sigma)), 0.0)
    low = (j[None, :] + i[:, None]).to(tl.float32)
    weights += tl.where((low <= cut) & (j[None, :] > 0), tl.exp(-0.5 * (low / sigma) * (low / sigma)), 0.0)
    high = 2.0 * (size - 1) - low
    weights += tl.where((high <= cut) & (j[None, :] < size - 1), tl.exp(-0.5 * (high / sigma) * (high / sigma)), 0.0)
    known_place = (j[None, :] < size) & (i[:, None] < size)
    weights = tl.where(known_place, weights, 0.0)
    weights = weights / tl.maximum(tl.sum(weights, 1), 1e-12)[:, None]
    tl.store(out + b * size * size + i[:, None] * size + j[None, :], weights.to(tl.float16), mask=known_place)


@_jit
def _colours(
    crops,
    known,
    out,
    moments,
    places,
    threshold,
    width: tl.constexpr,
    matrix: tl.constexpr,
    share: tl.constexpr,
    at_solarize: tl.constexpr,
    red: tl.constexpr,
    green: tl.constexpr,
    blue: tl.constexpr,
    contrast: tl.constexpr,
    solarize: tl.constexpr,
    block: tl.constexpr,
):
    # kernel_torch.disturb, for one picture; crops hold bytes, the result is in [0, 1] and normalised
    b = tl.program_id(0).to(tl.int64)
    row, base = known + b * width, b * 3 * places
    red_at, green_at, blue_at = crops + base, crops + base + places, crops + base + 2 * places
    shift = 0.0
    if contrast:
        luma = tl.zeros([block], tl.float32)
        for begin in range(0, places, block):
            at = begin + tl.arange(0, block)
            valid = at < places
            r = tl.load(red_at + at, mask=valid, other=0.0).to(tl.float32)
            g = tl.load(green_at + at, mask=valid, other=0.0).to(tl.float32)
            v = tl.load(blue_at + at, mask=valid, other=0.0).to(tl.float32)
            luma += red * r + green * g + blue * v
        shift = tl.load(row + share) * tl.sum(luma, 0) / places / 255.0
    chosen = 0.0
    if solarize:
        chosen = tl.load(row + at_solarize)
    for begin in range(0, places, block):
        at = begin + tl.arange(0, block)
        valid = at < places
        r = tl.load(red_at + at, mask=valid, other=0.0).to(tl.float32) / 255.0
        g = tl.load(green_at + at, mask=valid, other=0.0).to(tl.float32) / 255.0
        v = tl.load(blue_at + at, mask=valid, other=0.0).to(tl.float32) / 255.0
        for c in tl.static_range(3):
            weight = row + matrix + 3 * c
            x = tl.load(weight) * r + tl.load(weight + 1) * g + tl.load(weight + 2) * v + shift
            x = tl.minimum(tl.maximum(x, 0.0), 1.0)
            if solarize:
                x += tl.where(x >= threshold, chosen, 0.0) * (1.0 - 2.0 * x)
            x = (x - tl.load(moments + c)) / tl.load(moments + 3 + c)
            tl.store(out + base + c * places + at, x, mask=valid)
