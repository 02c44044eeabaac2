"""Parameters of views, drawn per picture from keys (seed, epoch, sample, view, op) and returned as plain arrays.

They depend on nothing else: not on the batch, its order, the step, the number of threads or the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallview.seeds import sample_keys, uniforms
from smallview.views.view import View

ATTEMPTS = 10
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ViewParameters:
    """Everything that was drawn for one view of B pictures: replaying it gives the view again.

    size: the view's side in pixels. masked bool [B]: cut from the copy without background. box float64 [B, 4]: top, left, height,
    width in source pixels. flip, grayscale, solarize bool [B]. brightness, contrast, saturation float64 [B]: factors, 1 is
    neutral. hue float64 [B]: turns. blur_sigma float64 [B]: pixels of the view, 0 is none. noise_key uint64 [B].
    """

    size: int
    masked: npt.NDArray[np.bool_]
    box: Floats
    flip: npt.NDArray[np.bool_]
    brightness: Floats
    contrast: Floats
    saturation: Floats
    hue: Floats
    grayscale: npt.NDArray[np.bool_]
    blur_sigma: Floats
    solarize: npt.NDArray[np.bool_]
    noise_key: npt.NDArray[np.uint64]


def draw_boxes(view: View, heights: Floats, widths: Floats, u: Floats) -> Floats:
    """Random resized crop: boxes [B, 4] from uniform numbers u [B, 2 * ATTEMPTS + 2].

    Area uniform in `scale`, log ratio uniform in `ratio`, the first of ten attempts that fits; else the largest centre box
    whose ratio is allowed (Szegedy et al., 2015, as torchvision does it, but with boxes on real numbers: small pictures keep
    their distribution and no box rounds to nothing).
    """
    area = heights[:, None] * widths[:, None] * (view.scale[0] + (view.scale[1] - view.scale[0]) * u[:, 0 : 2 * ATTEMPTS : 2])
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    ratio = np.exp(low + (high - low) * u[:, 1 : 2 * ATTEMPTS : 2])
    w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)  # [B, ATTEMPTS]
    fits = np.asarray((w <= widths[:, None]) & (h <= heights[:, None]))
    first = np.argmax(fits, axis=1)
    rows = np.arange(len(heights))
    fallback_ratio = np.clip(widths / heights, view.ratio[0], view.ratio[1])
    any_fits = np.asarray(fits.any(axis=1))
    height = np.where(any_fits, h[rows, first], np.minimum(heights, widths / fallback_ratio))
    width = np.where(any_fits, w[rows, first], np.minimum(widths, heights * fallback_ratio))
    place = np.where(any_fits[:, None], u[:, -2:], 0.5)
    return np.stack([(heights - height) * place[:, 0], (widths - width) * place[:, 1], height, width], axis=1)


def draw(
    view: View,
    which: int,
    size: int,
    heights: npt.ArrayLike,
    widths: npt.ArrayLike,
    samples: npt.ArrayLike,
    seed: int,
    epoch: int,
) -> ViewParameters:
    """Draw the parameters of view number `which` for B pictures of the given heights and widths [B].

    samples: int [B], the pictures' own numbers. size: the view's side in pixels.

    Example:
        >>> p = draw(View(), 0, 32, [40, 40], [60, 60], [7, 8], seed=0, epoch=2)
        >>> q = draw(View(), 0, 32, [40], [60], [8], seed=0, epoch=2)
        >>> bool((p.box[1] == q.box[0]).all())
        True
    """

    def u(op: str, n: int = 1) -> Floats:
        return uniforms(sample_keys(seed, f"view/{op}", samples, epoch, which), n)

    def factor(op: str, strength: float) -> Floats:
        low = max(0.0, 1.0 - strength)
        return np.where(jitter, low + (1.0 + strength - low) * u(op)[:, 0], 1.0)

    jitter = u("jitter")[:, 0] < view.jitter
    sigma = (view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * u("sigma")[:, 0]) * size / 224
    return ViewParameters(
        size=size,
        masked=u("mask")[:, 0] < view.mask_background,
        box=draw_boxes(view, np.asarray(heights, np.float64), np.asarray(widths, np.float64), u("crop", 2 * ATTEMPTS + 2)),
        flip=u("flip")[:, 0] < view.flip,
        brightness=factor("brightness", view.brightness),
        contrast=factor("contrast", view.contrast),
        saturation=factor("saturation", view.saturation),
        hue=np.where(jitter, view.hue * (2.0 * u("hue")[:, 0] - 1.0), 0.0),
        grayscale=u("grayscale")[:, 0] < view.grayscale,
        blur_sigma=np.where(u("blur")[:, 0] < view.blur, sigma, 0.0),
        solarize=u("solarize")[:, 0] < view.solarize,
        noise_key=sample_keys(seed, "view/noise", samples, epoch, which),
    )


def centre(heights: npt.ArrayLike, widths: npt.ArrayLike, part: float) -> Floats:
    """Centre square boxes [B, 4] that cover `part` of the short side: the one view of evaluation.

    Example:
        >>> centre([10], [20], 0.8).tolist()
        [[1.0, 6.0, 8.0, 8.0]]
    """
    h, w = np.asarray(heights, np.float64), np.asarray(widths, np.float64)
    side = part * np.minimum(h, w)
    return np.stack([(h - side) / 2, (w - side) / 2, side, side], axis=1)
