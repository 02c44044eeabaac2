"""Views as values: crop size and scale, disturbances, and who sees them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from smallview.errors import UsageError
from smallview.records import SeenBy
from smallview.schedules import SPAN, Schedule, over, resolve

Background = Literal["gray", "mean", "random_gray", "noise", "blur"]
CENTRE = 0.875  # of the short side: what the one centre view of evaluation covers, as it is usual
NOISE, BLUR = -1, -2  # in place of a byte: what stands there differs from pixel to pixel


@dataclass(frozen=True)
class View:
    """One disturbed crop of a picture. Every field is neutral at 0 except the crop's scale and ratio.

    size: side in pixels; up to 1, a part of the run's size; or a schedule of one of both; None is the run's size. scale: part of
    the picture's area that the crop covers. ratio: width over height. jitter, grayscale, blur, solarize, flip: probabilities.
    brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x], never under 0; hue: turns of the colour circle from
    [-x, x]. blur_sigma: pixels at a 224-pixel view, scaled with the size, so that a 32-pixel view is hardly blurred. noise: standard
    deviation on pixels in [0, 1]. mask_background: probability that the view is cut from the picture without its background; background:
    what stands there instead: middle gray, the pictures' mean colour, a gray drawn for each, noise, the picture itself strongly
    blurred, or a colour of one's own, a byte for each channel, such as (124, 116, 104). strength: what brightness, contrast, saturation
    and hue are multiplied by, and how far the smallest scale goes down from the largest; a schedule lets disturbances grow as the training goes on.

    Source: the defaults are SimCLR's views (Chen et al., 2020, appendix A) with MoCo v2's strengths and crop area; sizes that grow:
    FFCV-SSL (Bordes et al., 2023); masked backgrounds: ReLICv2 (Tomasev et al., 2022).

    Raises:
        ValueError: a number outside its range, named.

    Example:
        >>> View(flip=0.0).flip
        0.0
    """

    size: int | float | Schedule | None = None
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    noise: float = 0.0
    mask_background: float = 0.0
    background: Background | tuple[int, ...] = "gray"
    strength: float | Schedule = 1.0
    seen_by: SeenBy = "both"

    def __post_init__(self) -> None:
        if self.size is not None:
            _check_size(self.size)
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "solarize_threshold", "mask_background"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a number from 0 to 1")
        for name in ("brightness", "contrast", "saturation", "noise"):
            if not 0.0 <= getattr(self, name) <= 10.0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a number from 0 to 10")
        if not 0.0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}; wanted a number from 0 to 0.5 turns")
        for name in ("scale", "ratio", "blur_sigma"):
            pair = getattr(self, name)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"{name} is {pair}; wanted two numbers, (smallest, largest)")
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"scale is {self.scale}; wanted (smallest, largest) part of the area, within 0 to 1")
        if not 0.05 <= self.ratio[0] <= self.ratio[1] <= 20.0:
            raise ValueError(f"ratio is {self.ratio}; wanted (narrowest, widest) width over height, within 0.05 to 20")
        if not 0.0 <= self.blur_sigma[0] <= self.blur_sigma[1] <= 50.0:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; wanted (smallest, largest), within 0 to 50")
        if isinstance(self.background, tuple):
            if not self.background or not all(type(byte) is int and 0 <= byte <= 255 for byte in self.background):
                raise ValueError(
                    f"background is {self.background}; wanted whole numbers from 0 to 255, one for each channel, such as (124, 116, 104)"
                )
        elif self.background not in get_args(Background):
            raise ValueError(
                f"background is {self.background!r}; wanted {', '.join(get_args(Background))}, or a colour such as (124, 116, 104)"
            )
        if not all(0.0 <= amount <= 1.0 for amount in over(self.strength)):
            raise ValueError(f"strength is {self.strength}; wanted numbers from 0 to 1")
        if self.seen_by not in ("both", "online", "target"):
            raise ValueError(f"seen_by is {self.seen_by!r}; wanted both, online or target")

    def at(self, progress: float) -> View:
        """The view as it is drawn at `progress` in [0, 1].

        Example:
            >>> View(strength=0.5, scale=(0.2, 1.0)).at(0.0).scale
            (0.6, 1.0)
        """
        amount = resolve(self.strength, progress)
        if amount == 1.0:
            return self
        strengths = {name: amount * getattr(self, name) for name in ("brightness", "contrast", "saturation", "hue")}
        smallest = self.scale[1] - amount * (self.scale[1] - self.scale[0])
        return replace(self, strength=1.0, scale=(smallest, self.scale[1]), **strengths)


def _check_size(size: int | float | Schedule) -> None:
    """Every size on the way is a part of the run's, or every size is in pixels.

    Raises:
        ValueError: another number, or both kinds in one schedule.
    """
    wanted = "wanted 4 to 1024 pixels, or a part of the run's size, above 0 and at most 1"
    sizes = {progress: resolve(size, progress) for progress in SPAN}
    for progress, side in sizes.items():
        if not (0.0 < side <= 1.0 or 4 <= side <= 1024):
            at = "" if isinstance(size, (int, float)) else f" at progress {progress:g}"
            raise ValueError(f"size is {side:g}{at}; {wanted}")
    if len({side <= 1.0 for side in sizes.values()}) > 1:
        raise ValueError(f"size is {sizes[0.0]:g} at first and {sizes[1.0]:g} at last; {wanted}, and one kind all the way")


def pixels(size: int | float | Schedule | None, run_size: int, progress: float) -> int:
    """The side of a view in pixels, at `progress` in [0, 1] of a run with views of `run_size` pixels.

    Parts and changing sizes are rounded to even numbers of at least 4, which networks that halve their maps like, and of which there
    are few enough to plan convolutions for. The whole of the run's size is the run's size.

    Example:
        >>> from smallview.schedules import Ramp
        >>> pixels(None, 64, 0.0), pixels(96, 64, 0.0), pixels(0.5, 64, 0.0), pixels(Ramp(0.5, 1.0, until=0.6), 64, 0.3)
        (64, 96, 32, 48)
    """
    if size is None:
        return run_size
    side = resolve(size, progress)
    if side == 1:
        return run_size
    return size if isinstance(size, int) else max(4, 2 * round((side * run_size if side < 1.0 else side) / 2))


def check_background(background: Background | tuple[int, ...], channels: int, where: str = "background") -> None:
    """Whether pictures of so many channels can have this background.

    Raises:
        UsageError: a colour of another number of bytes.
    """
    if isinstance(background, tuple) and len(background) != channels:
        raise UsageError(
            f"{where} is {background}, that is {len(background)} byte{'s' * (len(background) > 1)}; "
            f"wanted {channels}, one for each channel of the pictures"
        )


def backgrounds(
    kind: Background | tuple[int, ...], drawn: npt.NDArray[np.float64], mean: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """The bytes that a masked background is filled with, int64 [B, C]; NOISE or BLUR where every pixel has its own.

    drawn [B] in [0, 1): the grays of a background whose gray is drawn. mean [C]: the pictures' mean colour in [0, 1].

    Raises:
        UsageError: a colour of another number of bytes.

    Example:
        >>> backgrounds("random_gray", np.array([0.0, 0.5]), np.zeros(1, np.float32)).tolist()
        [[0], [128]]
    """
    if kind == "random_gray":
        return np.repeat(np.floor(256.0 * drawn).astype(np.int64)[:, None], len(mean), axis=1)
    check_background(kind, len(mean))
    fixed = (
        kind if isinstance(kind, tuple) else {"gray": 128, "mean": np.rint(255.0 * mean), "noise": NOISE, "blur": BLUR}[kind]
    )
    return np.repeat(np.broadcast_to(np.asarray(fixed, np.int64), len(mean))[None], len(drawn), axis=0)


def centre_side(size: int) -> int:
    """The short side that pictures are made smaller to, before the one centre view of this size is cut out of them and resized.

    Example:
        >>> centre_side(64), centre_side(224)
        (74, 256)
    """
    return math.ceil(size / CENTRE)
