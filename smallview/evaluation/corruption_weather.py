"""Weather as corruption: fog, frost, snow and spatter, from clouds and drops that are drawn for each picture.

Legend: B pictures of one size, H x W pixels, C channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smallview.evaluation.corruption_tools import Draw, Pixels, blurred, each, left, moved, zoomed


def plasma(random: np.random.Generator, side: int, decay: float) -> npt.NDArray[np.float64]:
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


def fog(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    """A drawn cloud laid over; c is its weight and how much each finer grid wobbles less."""
    height, width = x.shape[1:3]
    # squared: the published clouds multiply the wobble by itself
    clouds = each(x, lambda i: plasma(draw(i), max(height, width), c[1] ** 2)[:height, :width, None])
    most = x.max((1, 2, 3), keepdims=True)
    out: Pixels = ((x + c[0] * clouds) * most / (most + c[0])).astype(np.float32)
    return out


def frost(x: Pixels, c: tuple[float, float], draw: Draw, scale: float) -> Pixels:
    """A drawn texture of ice laid over; c is the weight of the picture and of the ice."""
    height, width = x.shape[1:3]

    def texture(i: int) -> npt.NDArray[np.float64]:
        random = draw(i)
        wide = plasma(random, max(height, width), 1.6)[:height, :width]
        fine = plasma(random, max(height, width), 1.2)[:height, :width]
        crystals = 1.0 - np.abs(2.0 * fine - 1.0)  # bright ridges, as needles of ice have
        layer = 0.25 + 0.75 * wide * crystals**2 + 0.35 * wide**2
        tint = np.array([0.85, 0.95, 1.0])[: x.shape[3]] if x.shape[3] == 3 else np.ones(x.shape[3])
        return np.clip(layer[..., None] * tint, 0.0, 1.0)

    out: Pixels = (c[0] * x + c[1] * each(x, texture)).astype(np.float32)
    return out


def snow(x: Pixels, c: tuple[float, ...], draw: Draw, scale: float) -> Pixels:
    """Drawn flakes blown in one direction, on a paler picture; c as in the table of strengths."""
    height, width = x.shape[1:3]
    layers, angles = [], []
    for i in range(len(x)):
        random = draw(i)
        layers.append(random.normal(c[0], c[1], (height, width, 1)))
        angles.append(random.uniform(-135.0, -45.0))
    layer = zoomed(np.stack(layers).astype(np.float32), c[2])
    layer[layer < c[3]] = 0.0
    layer = np.clip(layer, 0.0, 1.0)
    layer = moved(layer, np.array(angles), c[4] * scale, c[5] * scale)
    gray = x.mean(3, keepdims=True) if x.shape[3] != 3 else x @ np.array([[0.299], [0.587], [0.114]], np.float32)
    pale = c[6] * x + (1.0 - c[6]) * np.maximum(x, 1.5 * gray + 0.5)
    out: Pixels = (pale + layer + layer[:, ::-1, ::-1]).astype(np.float32)
    return out


def spatter(x: Pixels, c: tuple[float, ...], draw: Draw, scale: float) -> Pixels:
    """Drawn drops of water, or of mud; c as in the table of strengths."""
    height, width = x.shape[1:3]
    spread = c[1] * left(c[2]) / left(c[2] * scale)  # as many drops at every size
    layer = each(x, lambda i: draw(i).normal(c[0], spread, (height, width)))
    layer = np.stack([blurred(one[None, :, :, None], c[2] * scale)[0, :, :, 0] for one in layer])
    if c[5]:  # mud
        drops = blurred((layer > c[3]).astype(np.float32)[..., None], c[4] * scale)
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
