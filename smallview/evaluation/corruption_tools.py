"""What corruptions are made of: draws for each picture, blurs, kernels, and pictures moved and enlarged.

Legend: B pictures of one size, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Pixels = npt.NDArray[np.float32]  # [B, H, W, C] in [0, 1]
Draw = Callable[[int], np.random.Generator]


def each(x: Pixels, make: Callable[[int], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """What is made for each of the pictures, stacked: [B, ...]."""
    return np.stack([make(i) for i in range(len(x))])


def blurred(x: npt.NDArray[Any], sigma: float) -> npt.NDArray[Any]:
    """Pictures [B, H, W, C] under a Gaussian of sigma pixels, their edges repeated."""
    from scipy import ndimage

    out: npt.NDArray[Any] = ndimage.gaussian_filter(x, (0.0, sigma, sigma, 0.0)[: x.ndim], mode="nearest", truncate=4.0)
    return out


def left(sigma: float) -> float:
    """What a Gaussian blur leaves of the deviation of white noise."""
    weights = np.exp(-0.5 * (np.arange(-int(4 * sigma + 1), int(4 * sigma + 2)) / max(sigma, 1e-6)) ** 2)
    return float((weights**2).sum() / weights.sum() ** 2)


def convolved(x: Pixels, kernels: npt.NDArray[np.float32]) -> Pixels:
    """Each picture [H, W, C] convolved with its own kernel [k, k], borders mirrored or repeated."""
    k = kernels.shape[-1]
    b, h, w, _ = x.shape
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(3, 0, 1, 2)))  # [C, B, H, W]
    padded = F.pad(images, (k // 2,) * 4, mode="reflect" if k // 2 < min(h, w) else "replicate")
    out = F.conv2d(padded, torch.from_numpy(kernels)[:, None], groups=b)
    return np.ascontiguousarray(out.numpy().transpose(1, 2, 3, 0))


@cache
def shifts() -> Callable[..., None]:
    """The compiled loop that moves pixels about, for glass."""
    from numba import njit

    @njit(cache=False)
    def shifts(x: Any, moves: Any, reach: int) -> None:  # pragma: no cover - compiled
        height, width = x.shape[0], x.shape[1]
        for turn in range(moves.shape[0]):
            for h in range(height - reach, reach, -1):
                for w in range(width - reach, reach, -1):
                    h2, w2 = h + moves[turn, h, w, 0], w + moves[turn, h, w, 1]
                    for k in range(x.shape[2]):
                        x[h, w, k] = x[h2, w2, k]

    made: Callable[..., None] = shifts
    return made


def moved(x: Pixels, angles: npt.NDArray[np.float64], radius: float, sigma: float) -> Pixels:
    """Each picture averaged along its own angle, to one side, with Gaussian weights; borders repeated.

    Source: ImageMagick's motion blur, whose kernel of radius r has 2 r + 1 weights, all on that side.
    """
    reach = 2 * max(1, int(np.ceil(radius)))
    taps = np.arange(reach + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights /= weights.sum()
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    out = np.zeros_like(x)
    for i, angle in enumerate(np.deg2rad(angles)):
        rows, columns = np.rint(taps * np.sin(angle)).astype(int), np.rint(taps * np.cos(angle)).astype(int)
        for weight, row, column in zip(weights.astype(np.float32), reach + rows, reach + columns, strict=True):
            if weight > 1e-6:
                out[i] += weight * padded[i, row : row + height, column : column + width]
    return out


def zoomed(x: npt.NDArray[Any], factor: float) -> npt.NDArray[Any]:
    """The middle of pictures [B, H, W, C] enlarged by a factor, bilinearly."""
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    turn = torch.tensor([[1.0 / factor, 0.0, 0.0], [0.0, 1.0 / factor, 0.0]], dtype=images.dtype)
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(images.shape), align_corners=False)
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return np.ascontiguousarray(out.numpy().transpose(0, 2, 3, 1))
