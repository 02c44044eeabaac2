"""A picture so blurred that little but its colours is left: mean bytes of a grid of cells, interpolated between the cells' middles.

Along a side of n pixels lie g = min(GRID, n) cells; cell i begins at pixel i * n // g, its middle is taken to be at (i + 1/2) * n / g.
Beyond the outer middles nothing changes any more. All is counted in whole numbers, halves rounded up, so that executors give the same
bytes: a mean in bytes, the two weights along each side in 256ths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from smallview.views.compiling import compiled

GRID = 8
ONE = 256
SHIFT, HALF = 16, 1 << 15


@compiled
def _between(x: int, side: int, cells: int) -> Any:
    """Of a pixel's middle: the cells on either side, and how many 256ths of the second one."""
    step = 2 * side
    from_first = min(max((2 * x + 1) * cells - side, 0), step * (cells - 1))
    near = from_first // step
    return near, min(near + 1, cells - 1), (ONE * (from_first - near * step) + side) // step


@compiled
def blur_window(
    pixels: Any, base: int, height: int, width: int, channels: int, y_low: int, y_high: int, x_low: int, x_high: int, to: Any
) -> None:
    """The window of one blurred picture, into `to` as [y, x, C]; the whole picture is read for it."""
    down, across, wide = min(GRID, height), min(GRID, width), x_high - x_low
    cells, line = np.empty((down, across * channels), np.int64), np.empty(across * channels, np.int64)
    for i in range(down):
        top, bottom = i * height // down, (i + 1) * height // down
        for j in range(across):
            left, right = j * width // across, (j + 1) * width // across
            count = (bottom - top) * (right - left)
            for c in range(channels):
                total = np.int64(0)
                for y in range(top, bottom):
                    row = base + y * width * channels + c
                    for x in range(left, right):
                        total += np.int64(pixels[row + x * channels])
                cells[i, j * channels + c] = (2 * total + count) // (2 * count)
    near, far, part = np.empty(wide, np.int64), np.empty(wide, np.int64), np.empty(wide, np.int64)
    for x in range(wide):
        near[x], far[x], part[x] = _between(x_low + x, width, across)
    for y in range(y_low, y_high):
        above, below, weight = _between(y, height, down)
        for p in range(across * channels):
            line[p] = (ONE - weight) * cells[above, p] + weight * cells[below, p]
        for x in range(wide):
            at, left, right = ((y - y_low) * wide + x) * channels, near[x] * channels, far[x] * channels
            for c in range(channels):
                mixed = (ONE - part[x]) * line[left + c] + part[x] * line[right + c]
                to[at + c] = np.uint8((mixed + HALF) >> SHIFT)


def blur_pictures(images: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Blurred pictures uint8 [B, C, H, W] of the same; picture n is the top left heights[n], widths[n], both int64 [B].

    Nothing waits for a GPU, and sums of whole numbers come out the same in any order.
    """
    ends = [_ends(sides) for sides in (heights, widths)]
    rows, columns = (torch.diff(end, dim=1, prepend=torch.zeros_like(end[:, :1])) for end in ends)
    count = (columns[:, :, None] * rows[:, None]).clamp(min=1)[:, None]  # [B, 1, across, down]
    total = _sums(_sums(images, ends[1], torch.int32).transpose(2, 3), ends[0], torch.int64)
    cells = ((2 * total + count) // (2 * count)).int()  # [B, C, across, down]
    lines = _interpolated(cells, heights, images.shape[2]).transpose(2, 3)  # [B, C, H, across]
    return _interpolated(lines, widths, images.shape[3]).add_(HALF).bitwise_right_shift_(SHIFT).to(torch.uint8)


def _ends(sides: Tensor) -> Tensor:
    """The pixel behind each cell's last, int64 [B, GRID]; cells that a short side has not are empty and lie at its end."""
    cells = sides.clamp(max=GRID)
    number = torch.arange(1, GRID + 1, device=sides.device)
    return torch.minimum(number * sides[:, None] // cells[:, None], sides[:, None])


def _sums(values: Tensor, ends: Tensor, kind: torch.dtype) -> Tensor:
    """Sums [B, C, R, GRID] of values [B, C, R, P] from one end [B, GRID] to the next."""
    until = values.cumsum(3, dtype=kind).gather(3, (ends - 1)[:, None, None].expand(*values.shape[:3], -1))
    return torch.diff(until, dim=3, prepend=torch.zeros_like(until[..., :1]))


def _interpolated(cells: Tensor, sides: Tensor, most: int) -> Tensor:
    """int32 [B, C, R, most] between cells [B, C, R, GRID] along sides [B] of pixels, ONE times as large."""
    side, count = sides[:, None], sides.clamp(max=GRID)[:, None]
    place, step = torch.arange(most, device=cells.device)[None], 2 * side
    from_first = torch.minimum(((2 * place + 1) * count - side).clamp(min=0), step * (count - 1))
    near = from_first // step
    part = ((ONE * (from_first - near * step) + side) // step).int()[:, None, None]
    first, second = (
        cells.gather(3, at[:, None, None].expand(*cells.shape[:3], -1)) for at in (near, torch.minimum(near + 1, count - 1))
    )
    return first.mul_(ONE - part).add_(second.mul_(part))
