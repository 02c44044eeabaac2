"""The fifteen common corruptions and the four extra ones, at five severities; what is drawn depends on the picture's number alone.

Written from their definitions. Pictures of up to 64 pixels take the published parameters for 32-pixel pictures, larger ones those for
224-pixel pictures; what is counted in pixels is scaled with the short side. Frost is laid over with photographs in the original, which
may not be shipped: here it is a generated texture. Legend: B pictures of one size, H x W pixels, C channels.

Source: Hendrycks and Dietterich, 2019.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from smallview.errors import UsageError, suggest
from smallview.evaluation.corruption_strengths import LARGE, LARGEST_SMALL, SMALL
from smallview.evaluation.corruption_tools import Draw, Pixels, blurred, convolved, each, left, moved, shifts, zoomed
from smallview.evaluation.corruption_weather import fog, frost, snow, spatter
from smallview.seeds import generator


def corrupt(
    pictures: npt.NDArray[np.uint8], name: str, severity: int, seed: int, numbers: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Corrupted pictures uint8 [B, H, W, C] of one size; numbers int64 [B] are what each picture's draws depend on, with the seed.

    Raises:
        UsageError: no corruption of that name, or a severity that is not 1 to 5.

    Example:
        >>> gray = np.full((1, 32, 32, 3), 128, np.uint8)
        >>> int(corrupt(gray, "brightness", 1, seed=0, numbers=np.array([0]))[0, 0, 0, 0])
        141
    """
    if name not in _MADE:
        raise UsageError(f'no corruption is called "{name}"{suggest(name, _MADE)}')
    if severity not in range(1, 6):
        raise UsageError(f"severity is {severity}; wanted 1 to 5")
    side = min(pictures.shape[1:3])
    parameters, reference = (SMALL, 32.0) if side <= LARGEST_SMALL else (LARGE, 224.0)

    def draw(i: int) -> np.random.Generator:
        return generator(seed, f"corrupt {name}", severity, int(numbers[i]))

    made = _MADE[name](pictures.astype(np.float32) / 255.0, parameters[name][severity - 1], draw, side / reference)
    out: npt.NDArray[np.uint8] = np.clip(np.rint(255.0 * made), 0, 255).astype(np.uint8)
    return out


def _gaussian_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    noise: Pixels = each(x, lambda i: draw(i).standard_normal(x.shape[1:], np.float32))
    return x + np.float32(c) * noise


def _shot_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    noisy: Pixels = (each(x, lambda i: draw(i).poisson(x[i] * c)) / c).astype(np.float32)
    return noisy


def _impulse_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    u = each(x, lambda i: draw(i).random(x.shape[1:], np.float32))
    return np.where(u < c / 2, 0.0, np.where(u < c, 1.0, x)).astype(np.float32)


def _speckle_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    noise: Pixels = each(x, lambda i: draw(i).standard_normal(x.shape[1:], np.float32))
    return x + np.float32(c) * x * noise


def _gaussian_blur(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    return blurred(x, c * scale)


def _disk(radius: float, alias: float, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """A disk of that radius, its edge smoothed: sums to 1."""
    from scipy import ndimage

    window = 1 if radius <= 8 else 2  # the smoothing's own: 3 x 3, or 5 x 5 for large disks
    reach = int(np.ceil(radius * scale)) + window
    parts = 1 if scale == 1.0 else 9  # a disk of another size than the published is drawn by area: 0.9 pixels are no point
    places = (np.arange((2 * reach + 1) * parts) + 0.5) / parts - 0.5 - reach
    inside = places[:, None] ** 2 + places[None, :] ** 2 <= (radius * scale) ** 2
    disk = inside.reshape(2 * reach + 1, parts, 2 * reach + 1, parts).mean((1, 3), dtype=np.float32)
    smooth = ndimage.gaussian_filter(disk / disk.sum(), alias, radius=window)
    kept: npt.NDArray[np.float32] = (smooth / smooth.sum()).astype(np.float32)
    return kept


def _defocus_blur(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    kernel = _disk(c[0], c[1], scale)
    return convolved(x, np.broadcast_to(kernel, (len(x), *kernel.shape)).copy())


def _glass_blur(x: Pixels, c: tuple[float, int, int], draw: Draw, scale: float) -> Pixels:
    sigma, reach, turns = c[0] * scale, max(1, round(c[1] * scale)), c[2]
    out = blurred(x, sigma).astype(np.float32)
    shift = shifts()  # not swaps, which carry a pixel across the picture: the published pictures were made by copies
    for i in range(len(x)):
        # from -reach to reach - 1, as published
        moves = draw(i).integers(-reach, reach, (turns, *x.shape[1:3], 2))
        shift(out[i], moves, reach)
    return blurred(out, sigma)


def _motion_blur(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    angles = np.array([draw(i).uniform(-45.0, 45.0) for i in range(len(x))])
    return moved(x, angles, c[0] * scale, c[1] * scale)


def _zoom_blur(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    factors = np.arange(1.0, c[0], c[1])
    total = x + sum((zoomed(x, float(f)) for f in factors), np.zeros_like(x))
    out: Pixels = (total / (len(factors) + 1)).astype(np.float32)
    return out


def _brightness(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    """The value of HSV raised: hue and saturation stay."""
    value = x.max(3, keepdims=True)
    raised = np.clip(value + c, 0.0, 1.0)
    out: Pixels = np.where(value > 0, x * (raised / np.maximum(value, 1e-12)), raised).astype(np.float32)
    return out


def _saturate(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    """The saturation of HSV stretched and moved; a gray pixel counts as red, as HSV has it."""
    value, low = x.max(3, keepdims=True), x.min(3, keepdims=True)
    saturation = (value - low) / np.maximum(value, 1e-12)
    wanted = np.clip(saturation * c[0] + c[1], 0.0, 1.0)
    if x.shape[3] != 3:
        return x
    red = value * np.concatenate([np.ones_like(wanted), 1.0 - wanted, 1.0 - wanted], 3)
    scaled = value - (value - x) * (wanted / np.maximum(saturation, 1e-12))
    out: Pixels = np.where(saturation > 0, scaled, red).astype(np.float32)
    return out


def _contrast(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    mean = x.mean((1, 2), keepdims=True)
    out: Pixels = ((x - mean) * c + mean).astype(np.float32)
    return out


def _elastic(x: Pixels, c: tuple[float, float, float], draw: Draw, scale: float) -> Pixels:
    b, height, width, _ = x.shape
    side = min(height, width)
    fields, turns = [], []
    from scipy import ndimage

    square = side // 3
    start = np.array([[width // 2 + square, height // 2 + square], [width // 2 + square, height // 2 - square]])
    start = np.concatenate([start, [[width // 2 - square, height // 2 - square]]]).astype(np.float64)
    for i in range(b):
        random = draw(i)
        moved = start + random.uniform(-c[2] * side, c[2] * side, (3, 2))
        # the affine map that takes the three moved points back: where each pixel comes from
        turns.append(np.linalg.solve(np.c_[moved, np.ones(3)], start).T)
        field = random.uniform(-1.0, 1.0, (2, height, width))
        sigma = c[1] * side
        field = ndimage.gaussian_filter(field, (0, sigma, sigma), mode="reflect", truncate=3.0) if sigma else field
        fields.append(field * c[0] * side * left(c[1] * side / scale) / left(sigma))
    yy, xx = np.mgrid[:height, :width].astype(np.float64)
    places = np.stack([xx, yy, np.ones_like(xx)], -1)  # [H, W, 3]
    grids = []
    for turn, field in zip(turns, fields, strict=True):
        at = places + np.stack([field[0], field[1], np.zeros_like(xx)], -1)
        grids.append(at @ turn.T)
    grid = torch.from_numpy(np.stack(grids).astype(np.float32))
    grid = (grid + 0.5) / torch.tensor([width / 2.0, height / 2.0]) - 1.0
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return np.ascontiguousarray(out.numpy().transpose(0, 2, 3, 1))


def _pillow(x: Pixels, change: Callable[[Any], Any]) -> Pixels:
    from PIL import Image

    def one(i: int) -> npt.NDArray[np.float32]:
        bytes_ = np.clip(np.rint(255.0 * x[i]), 0, 255).astype(np.uint8)
        back = np.asarray(change(Image.fromarray(bytes_[..., 0] if x.shape[3] == 1 else bytes_)), np.float32) / 255.0
        return back.reshape(x.shape[1:])

    return each(x, one)


def _pixelate(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    from PIL import Image

    height, width = x.shape[1:3]
    few = max(1, int(width * c)), max(1, int(height * c))
    return _pillow(x, lambda image: image.resize(few, Image.Resampling.BOX).resize((width, height), Image.Resampling.NEAREST))


def _jpeg(x: Pixels, c: int, draw: Draw, scale: float) -> Pixels:
    from PIL import Image

    def change(image: Any) -> Any:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=c)
        return Image.open(held)

    return _pillow(x, change)


_MADE: dict[str, Callable[[Pixels, Any, Draw, float], Pixels]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "spatter": spatter,
    "saturate": _saturate,
}
