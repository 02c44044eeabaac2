"""Parameters of views, drawn per picture from keys (seed, epoch, sample, view, op) and returned as plain arrays.

They depend on nothing else: not on the batch, its order, the step, the number of threads or the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from smallview.seeds import derive
from smallview.views.compiling import compiled
from smallview.views.view import View

ATTEMPTS = 10
Mode = Literal["fast", "parity"]
Floats = npt.NDArray[np.float64]
# each op draws from a key of its own: a new one changes no other
_OPS = (
    *("crop", "jitter", "brightness", "contrast", "saturation", "flip", "grayscale", "blur", "solarize", "mask"),
    *("hue", "sigma", "noise", "order", "background"),
)


@dataclass(frozen=True)
class ViewParameters:
    """Everything that was drawn for one view of B pictures: replaying it gives the view again, to the bit.

    size: the view's side in pixels. box float64 [B, 4]: top, left, height, width in source pixels. flip, grayscale, solarize
    bool [B]. brightness, contrast, saturation float64 [B]: factors, 1 is neutral. hue float64 [B]: turns. order int64 [B, 4]: which of
    brightness, contrast, saturation, hue comes first, second, ... (parity only; in fast views they commute). blur_sigma float64 [B]:
    pixels of the view, 0 is none. masked bool [B]: cut without its background. background float64 [B]: the gray of a background whose
    gray is drawn. noise_key uint64 [B]. Lists and numbers of other kinds become these arrays, so that what was kept as text can be
    replayed as it was read.

    Raises:
        ValueError: rows that are not B, or numbers that were rounded on the way; named.
    """

    size: int
    box: Floats
    flip: npt.NDArray[np.bool_]
    brightness: Floats
    contrast: Floats
    saturation: Floats
    hue: Floats
    grayscale: npt.NDArray[np.bool_]
    blur_sigma: Floats
    solarize: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int64]
    masked: npt.NDArray[np.bool_]
    background: Floats
    noise_key: npt.NDArray[np.uint64]

    def __post_init__(self) -> None:
        b = len(self.box)
        for name, kind in _KINDS.items():
            given = getattr(self, name)
            if isinstance(given, np.ndarray) and given.dtype.kind == "f" and kind.kind != "f":
                raise ValueError(f"{name} is {given.dtype}, which may have lost digits; wanted {kind}")
            array = np.asarray(given, kind)
            wanted = (b, 4) if name in ("box", "order") else (b,)
            if array.shape != wanted:
                raise ValueError(f"{name} is {list(array.shape)} beside boxes of {b} pictures; wanted {list(wanted)}")
            object.__setattr__(self, name, array)

    def take(self, rows: npt.NDArray[np.int64]) -> ViewParameters:
        """The parameters of some of the pictures."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _KINDS})


_KINDS = {
    **dict.fromkeys(("flip", "grayscale", "solarize", "masked"), np.dtype(np.bool_)),
    **dict.fromkeys(("box", "brightness", "contrast", "saturation", "hue", "blur_sigma", "background"), np.dtype(np.float64)),
    "order": np.dtype(np.int64),
    "noise_key": np.dtype(np.uint64),
}


@compiled
def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _key(sample: Any, base: Any) -> Any:
    """seeds.sample_keys, for one sample."""
    return _mix(_mix(np.uint64(sample) * np.uint64(0x9E3779B97F4A7C15) + base) + base)


@compiled
def _uniform(key: Any, n: int) -> Any:
    """Number n of seeds.uniforms."""
    return np.float64(_mix(key + np.uint64(0x9E3779B97F4A7C15) * np.uint64(n + 1)) >> np.uint64(11)) * 2.0**-53


@compiled
def _box(key: Any, height: float, width: float, crop: Any, out: Any) -> None:
    """Random resized crop: area uniform in scale, log ratio uniform, the first of ten attempts that fits, else the centre.

    The place has numbers of its own, so that it is uniform whichever attempt fits. Boxes lie on whole pixels: on real numbers every
    view is a little blurred where the one of evaluation is not, which cost 0.9 points on pictures of 32 pixels (docs/speed.md).
    """
    for attempt in range(ATTEMPTS):
        area = height * width * (crop[0] + (crop[1] - crop[0]) * _uniform(key, 2 * attempt))
        ratio = math.exp(crop[2] + (crop[3] - crop[2]) * _uniform(key, 2 * attempt + 1))
        w, h = float(np.rint(math.sqrt(area * ratio))), float(np.rint(math.sqrt(area / ratio)))
        if 0.0 < w <= width and 0.0 < h <= height:
            down, right = _uniform(key, 2 * ATTEMPTS), _uniform(key, 2 * ATTEMPTS + 1)
            out[0], out[1] = math.floor((height - h + 1.0) * down), math.floor((width - w + 1.0) * right)
            out[2], out[3] = h, w
            return
    ratio = min(max(width / height, math.exp(crop[2])), math.exp(crop[3]))
    h = max(1.0, float(np.rint(min(height, width / ratio))))
    w = max(1.0, float(np.rint(min(width, height * ratio))))
    out[0], out[1] = math.floor((height - h) / 2.0), math.floor((width - w) / 2.0)
    out[2], out[3] = h, w


@compiled
def _draw(
    samples: Any, heights: Any, widths: Any, bases: Any, shares: Any, crop: Any, sigma: Any,
    box: Any, factors: Any, hits: Any, order: Any, noise_key: Any,
) -> None:  # fmt: skip
    for n in range(samples.shape[0]):
        sample = samples[n]
        _box(_key(sample, bases[0]), float(heights[n]), float(widths[n]), crop, box[n])
        for k in range(5):  # flip, grayscale, blur, solarize, mask
            hits[k, n] = _uniform(_key(sample, bases[5 + k]), 0) < shares[k]
        jitter = _uniform(_key(sample, bases[1]), 0) < shares[5]
        for k in range(3):  # brightness, contrast, saturation
            low = max(0.0, 1.0 - shares[6 + k])
            u = _uniform(_key(sample, bases[2 + k]), 0)
            factors[k, n] = low + (1.0 + shares[6 + k] - low) * u if jitter else 1.0
        factors[3, n] = shares[9] * (2.0 * _uniform(_key(sample, bases[10]), 0) - 1.0) if jitter else 0.0
        factors[4, n] = sigma[0] + (sigma[1] - sigma[0]) * _uniform(_key(sample, bases[11]), 0) if hits[2, n] else 0.0
        factors[5, n] = _uniform(_key(sample, bases[14]), 0)
        noise_key[n] = _key(sample, bases[12])
        key = _key(sample, bases[13])
        for k in range(4):
            order[n, k] = k
        for k in range(3, 0, -1):  # Fisher and Yates
            other = int(_uniform(key, k) * (k + 1))
            order[n, k], order[n, other] = order[n, other], order[n, k]


@lru_cache(maxsize=64)
def _bases(seed: int, epoch: int, which: int) -> npt.NDArray[np.uint64]:
    return np.array([derive(seed, f"view/{op}", epoch, which) for op in _OPS], np.uint64)


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

    samples: int [B], the pictures' own numbers. size: the view's side in pixels. Both modes draw alike; parity alone looks at `order`.

    Source: Szegedy et al., 2015, for the boxes, as torchvision draws them.

    Example:
        >>> p = draw(View(), 0, 32, [40, 40], [60, 60], [7, 8], seed=0, epoch=2)
        >>> q = draw(View(), 0, 32, [40], [60], [8], seed=0, epoch=2)
        >>> bool((p.box[1] == q.box[0]).all())
        True
    """
    index = np.ascontiguousarray(samples, np.int64)
    b = len(index)
    shares = np.array(
        [
            *(view.flip, view.grayscale, view.blur, view.solarize, view.mask_background),
            *(view.jitter, view.brightness, view.contrast, view.saturation, view.hue),
        ]
    )
    crop = np.array([*view.scale, math.log(view.ratio[0]), math.log(view.ratio[1])])
    sigma = np.array(view.blur_sigma, np.float64) * size / 224
    box, factors, hits = np.empty((b, 4)), np.empty((6, b)), np.empty((5, b), np.bool_)
    order, noise_key = np.empty((b, 4), np.int64), np.empty(b, np.uint64)
    _draw(
        index,
        np.ascontiguousarray(heights, np.int64),
        np.ascontiguousarray(widths, np.int64),
        *(_bases(seed, epoch, which), shares, crop, sigma),
        *(box, factors, hits, order, noise_key),
    )
    return ViewParameters(
        size=size,
        box=box,
        flip=hits[0],
        brightness=factors[0],
        contrast=factors[1],
        saturation=factors[2],
        hue=factors[3],
        grayscale=hits[1],
        blur_sigma=factors[4],
        solarize=hits[3],
        order=order,
        masked=hits[4],
        background=factors[5],
        noise_key=noise_key,
    )


def neutral(boxes: Floats, flips: npt.NDArray[np.bool_], size: int) -> ViewParameters:
    """Parameters that cut boxes [B, 4], flip and leave everything else alone."""
    b = len(boxes)
    none, zero, one = np.zeros(b, np.bool_), np.zeros(b), np.ones(b)
    order = np.tile(np.arange(4, dtype=np.int64), (b, 1))
    return ViewParameters(
        size=size,
        box=boxes,
        flip=flips,
        brightness=one,
        contrast=one,
        saturation=one,
        hue=zero,
        grayscale=none,
        blur_sigma=zero,
        solarize=none,
        order=order,
        masked=none,
        background=zero,
        noise_key=np.zeros(b, np.uint64),
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
