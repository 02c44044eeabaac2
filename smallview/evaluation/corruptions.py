"""The fifteen common corruptions and the four extra ones, at five severities; what is drawn depends on the picture's number alone.

Written from their definitions. Pictures of up to 64 pixels take the published parameters for 32-pixel pictures, larger ones those for
224-pixel pictures; what is counted in pixels is scaled with the short side. Frost is laid over with photographs in the original, which
may not be shipped: here it is a generated texture. Legend: B pictures of one size, H x W pixels, C channels.

Source: Hendrycks and Dietterich, 2019.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from smallview.errors import UsageError, suggest
from smallview.evaluation.corruption_strengths import LARGE, LARGEST_SMALL, SMALL
from smallview.seeds import generator

Pixels = npt.NDArray[np.float32]  # [B, H, W, C] in [0, 1]
Draw = Callable[[int], np.random.Generator]


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


def _each(x: Pixels, make: Callable[[int], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.stack([make(i) for i in range(len(x))])


def _gaussian_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    noise: Pixels = _each(x, lambda i: draw(i).standard_normal(x.shape[1:], np.float32))
    return x + np.float32(c) * noise


def _shot_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    noisy: Pixels = (_each(x, lambda i: draw(i).poisson(x[i] * c)) / c).astype(np.float32)
    return noisy


def _impulse_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    u = _each(x, lambda i: draw(i).random(x.shape[1:], np.float32))
    return np.where(u < c / 2, 0.0, np.where(u < c, 1.0, x)).astype(np.float32)


def _speckle_noise(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    noise: Pixels = _each(x, lambda i: draw(i).standard_normal(x.shape[1:], np.float32))
    return x + np.float32(c) * x * noise


def _blurred(x: npt.NDArray[Any], sigma: float) -> npt.NDArray[Any]:
    from scipy import ndimage

    out: npt.NDArray[Any] = ndimage.gaussian_filter(x, (0.0, sigma, sigma, 0.0)[: x.ndim], mode="nearest", truncate=4.0)
    return out


def _left(sigma: float) -> float:
    """What a Gaussian blur leaves of the deviation of white noise."""
    weights = np.exp(-0.5 * (np.arange(-int(4 * sigma + 1), int(4 * sigma + 2)) / max(sigma, 1e-6)) ** 2)
    return float((weights**2).sum() / weights.sum() ** 2)


def _gaussian_blur(x: Pixels, c: float, draw: Draw, scale: float) -> Pixels:
    return _blurred(x, c * scale)


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


def _convolved(x: Pixels, kernels: npt.NDArray[np.float32]) -> Pixels:
    """Each picture [H, W, C] convolved with its own kernel [k, k], borders mirrored or repeated."""
    k = kernels.shape[-1]
    b, h, w, _ = x.shape
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(3, 0, 1, 2)))  # [C, B, H, W]
    padded = F.pad(images, (k // 2,) * 4, mode="reflect" if k // 2 < min(h, w) else "replicate")
    out = F.conv2d(padded, torch.from_numpy(kernels)[:, None], groups=b)
    return np.ascontiguousarray(out.numpy().transpose(1, 2, 3, 0))


def _defocus_blur(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    kernel = _disk(c[0], c[1], scale)
    return _convolved(x, np.broadcast_to(kernel, (len(x), *kernel.shape)).copy())


@cache
def _shifts() -> Callable[..., None]:
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


def _glass_blur(x: Pixels, c: tuple[float, int, int], draw: Draw, scale: float) -> Pixels:
    sigma, reach, turns = c[0] * scale, max(1, round(c[1] * scale)), c[2]
    out = _blurred(x, sigma).astype(np.float32)
    shift = _shifts()  # not swaps, which carry a pixel across the picture: the published pictures were made by copies
    for i in range(len(x)):
        # from -reach to reach - 1, as published
        moves = draw(i).integers(-reach, reach, (turns, *x.shape[1:3], 2))
        shift(out[i], moves, reach)
    return _blurred(out, sigma)


def _moved(x: Pixels, angles: npt.NDArray[np.float64], radius: float, sigma: float) -> Pixels:
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


def _motion_blur(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    angles = np.array([draw(i).uniform(-45.0, 45.0) for i in range(len(x))])
    return _moved(x, angles, c[0] * scale, c[1] * scale)


def _zoomed(x: npt.NDArray[Any], factor: float) -> npt.NDArray[Any]:
    """The middle of pictures [B, H, W, C] enlarged by a factor, bilinearly."""
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    turn = torch.tensor([[1.0 / factor, 0.0, 0.0], [0.0, 1.0 / factor, 0.0]], dtype=images.dtype)
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(images.shape), align_corners=False)
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return np.ascontiguousarray(out.numpy().transpose(0, 2, 3, 1))


def _zoom_blur(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    factors = np.arange(1.0, c[0], c[1])
    total = x + sum((_zoomed(x, float(f)) for f in factors), np.zeros_like(x))
    out: Pixels = (total / (len(factors) + 1)).astype(np.float32)
    return out


def _plasma(random: np.random.Generator, side: int, decay: float) -> npt.NDArray[np.float64]:
    """A cloud [n, n] in [0, 1] by diamond-square on a torus of the next power of two; each finer grid wobbles less by `decay`."""
    n = 1 << max(1, (side - 1).bit_length())
    cloud = np.zeros((n, n))
    step, wobble = n, 100.0
    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        square = corners + np.roll(corners, -1, 0)
        square = (square + np.roll(square, -1, 1)) / 4.0
        cloud[half::step, half::step] = square + wobble * random.uniform(-1.0, 1.0, square.shape)
        middle = cloud[half::step, half::step]
        for rows, columns, first, second in (
            (half, 0, corners + np.roll(corners, -1, 0), middle + np.roll(middle, 1, 1)),
            (0, half, corners + np.roll(corners, -1, 1), middle + np.roll(middle, 1, 0)),
        ):
            cloud[rows::step, columns::step] = (first + second) / 4.0 + wobble * random.uniform(-1.0, 1.0, first.shape)
        step, wobble = half, wobble / decay
    cloud -= cloud.min()
    return cloud / max(float(cloud.max()), 1e-12)


def _fog(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    height, width = x.shape[1:3]
    # squared: the published clouds multiply the wobble by itself
    clouds = _each(x, lambda i: _plasma(draw(i), max(height, width), c[1] ** 2)[:height, :width, None])
    most = x.max((1, 2, 3), keepdims=True)
    out: Pixels = ((x + c[0] * clouds) * most / (most + c[0])).astype(np.float32)
    return out


def _frost(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    height, width = x.shape[1:3]

    def texture(i: int) -> npt.NDArray[np.float64]:
        random = draw(i)
        wide = _plasma(random, max(height, width), 1.6)[:height, :width]
        fine = _plasma(random, max(height, width), 1.2)[:height, :width]
        crystals = 1.0 - np.abs(2.0 * fine - 1.0)  # bright ridges, as needles of ice have
        layer = 0.25 + 0.75 * wide * crystals**2 + 0.35 * wide**2
        tint = np.array([0.85, 0.95, 1.0])[: x.shape[3]] if x.shape[3] == 3 else np.ones(x.shape[3])
        return np.clip(layer[..., None] * tint, 0.0, 1.0)

    out: Pixels = (c[0] * x + c[1] * _each(x, texture)).astype(np.float32)
    return out


def _snow(x: Pixels, c: tuple[float, ...], draw: Draw, scale: float) -> Pixels:
    height, width = x.shape[1:3]
    layers, angles = [], []
    for i in range(len(x)):
        random = draw(i)
        layers.append(random.normal(c[0], c[1], (height, width, 1)))
        angles.append(random.uniform(-135.0, -45.0))
    layer = _zoomed(np.stack(layers).astype(np.float32), c[2])
    layer[layer < c[3]] = 0.0
    layer = np.clip(layer, 0.0, 1.0)
    layer = _moved(layer, np.array(angles), c[4] * scale, c[5] * scale)
    gray = x.mean(3, keepdims=True) if x.shape[3] != 3 else x @ np.array([[0.299], [0.587], [0.114]], np.float32)
    pale = c[6] * x + (1.0 - c[6]) * np.maximum(x, 1.5 * gray + 0.5)
    out: Pixels = (pale + layer + layer[:, ::-1, ::-1]).astype(np.float32)
    return out


def _spatter(x: Pixels, c: tuple[float, ...], draw: Draw, scale: float) -> Pixels:
    height, width = x.shape[1:3]
    spread = c[1] * _left(c[2]) / _left(c[2] * scale)  # as many drops at every size
    layer = _each(x, lambda i: draw(i).normal(c[0], spread, (height, width)))
    layer = np.stack([_blurred(one[None, :, :, None], c[2] * scale)[0, :, :, 0] for one in layer])
    if c[5]:  # mud
        drops = _blurred((layer > c[3]).astype(np.float32)[..., None], c[4] * scale)
        drops[drops < 0.8] = 0.0
        colour = np.array([63, 42, 20], np.float32) / 255.0 if x.shape[3] == 3 else np.full(x.shape[3], 42 / 255, np.float32)
        out: Pixels = (x * (1.0 - drops) + colour * drops).astype(np.float32)
        return out
    from scipy import ndimage

    drops = np.where(layer < c[3], 0.0, layer)
    lit = []
    for one in drops:  # drops are lit from one side, and fade with the distance from their edges
        edge = (one > 0) & ~ndimage.binary_erosion(one > 0)  # as thin as an edge detector's
        away = np.minimum(ndimage.distance_transform_edt(~edge), 20.0) if edge.any() else np.zeros_like(one)
        away = ndimage.uniform_filter(away, 3)
        levels = np.floor(away + 1e-9).astype(np.int64)
        below = np.cumsum(np.bincount(levels.ravel()))  # the histogram evened out: equals stay equal, the lowest become 0
        first = below[levels.min()]
        order = ((below - first) / max(1, away.size - first))[levels]
        relief = ndimage.correlate(order, np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]), mode="nearest")
        lit.append(one * ndimage.uniform_filter(np.clip(relief, 0.0, 1.0), 3))
    mask = np.stack(lit)[..., None]
    mask = c[4] * mask / np.maximum(mask.max((1, 2, 3), keepdims=True), 1e-12)
    water = np.array([175, 238, 238], np.float32) / 255.0 if x.shape[3] == 3 else np.full(x.shape[3], 217 / 255, np.float32)
    wet: Pixels = (x + mask * water).astype(np.float32)
    return wet


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
        fields.append(field * c[0] * side * _left(c[1] * side / scale) / _left(sigma))
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

    return _each(x, one)


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
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "spatter": _spatter,
    "saturate": _saturate,
}
