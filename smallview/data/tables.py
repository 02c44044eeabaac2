"""Rows of numbers as pictures: the shape that a row has, the range that its numbers span, and the bytes that they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.decoding import Pixels

Shape = tuple[int, int, int]  # height, width, channels
Range = tuple[float, float]
LEAST_GUESSED = 8  # pixels: tables of 16 or 49 columns are everywhere, pictures of 4 or 7 pixels are not
_WANTED = "wanted image_shape=(height, width) or (height, width, channels), one of which may be -1"


def check_shape(image_shape: Any) -> tuple[int, int, int] | None:
    """(height, width, channels) of what a user gave, one of them perhaps -1; None where it is None.

    Raises:
        ValueError: anything else.

    Example:
        >>> check_shape((8, 8)), check_shape((1, -1)), check_shape([32, 32, 3])
        ((8, 8, 1), (1, -1, 1), (32, 32, 3))
    """
    if image_shape is None:
        return None
    sides = tuple(image_shape) if isinstance(image_shape, (Sequence, np.ndarray)) and not isinstance(image_shape, str) else ()
    whole = all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in sides)
    if (
        len(sides) not in (2, 3)
        or not whole
        or sum(side == -1 for side in sides) > 1
        or any(side < 1 and side != -1 for side in sides)
    ):
        raise ValueError(f"image_shape is {image_shape!r}; {_WANTED}")
    height, width, channels = (*map(int, sides), 1)[:3]
    return height, width, channels


def shape_of_row(columns: int, image_shape: Any, *, least: float = 0.0) -> Shape:
    """The shape of the picture that a row of so many numbers is. Without `image_shape` a square gray one is taken for granted where it
    has 8 pixels a side or more and no number is below 0, as `least`, the smallest one, says.

    Raises:
        ValueError: a shape of another number of pixels, or none where none can be guessed.

    Example:
        >>> shape_of_row(64, None), shape_of_row(3072, (32, 32, 3)), shape_of_row(10, (1, -1))
        ((8, 8, 1), (32, 32, 3), (1, 10, 1))
    """
    shape = check_shape(image_shape)
    if shape is None:
        side = math.isqrt(columns)
        if side < LEAST_GUESSED or side * side != columns or least < 0.0:
            why = f", and numbers down to {least:g}" if least < 0.0 else ""
            raise ValueError(f"a row has {columns:,} numbers{why}: its picture's shape is not certain; {_WANTED}")
        return side, side, 1
    known = math.prod(side for side in shape if side != -1)
    if columns % known or (-1 not in shape and columns != known):
        raise ValueError(f"image_shape is {image_shape!r}, and a row has {columns:,} numbers; {_WANTED}")
    height, width, channels = (columns // known if side == -1 else side for side in shape)
    return height, width, channels


def check_range(value_range: Any) -> Range | None:
    """(black, white) of what a user gave; None where it is None.

    Raises:
        ValueError: anything but two finite numbers, the smaller one first.
    """
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range is {value_range!r}; wanted (black, white), two numbers, the smaller one first")
    return low, high


def range_of(values: npt.NDArray[Any]) -> Range:
    """The numbers that become 0 and 255: bytes stay as they are, what lies within 0..1 is of 0..1, all else spans its own extremes.

    Example:
        >>> range_of(np.array([[0.1, 0.9]])), range_of(np.array([[0.0, 16.0]])), range_of(np.zeros((1, 2), np.uint8))
        ((0.0, 1.0), (0.0, 16.0), (0.0, 255.0))
    """
    if values.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(values.min()), float(values.max())
    if low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    return (low, high) if low < high else (low, low + 1.0)


def as_bytes(values: npt.NDArray[Any], value_range: Range) -> Pixels:
    """The nearest of 256 levels from black to white; what lies outside is cut off. Bytes with the range of bytes are not copied.

    Example:
        >>> as_bytes(np.array([-1.0, 0.0, 8.0, 16.0]), (0.0, 16.0)).tolist()
        [0, 0, 128, 255]
    """
    low, high = value_range
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return values
    # halved first: the difference of two large floats may be infinite
    part = (values.astype(np.float64) / 2 - low / 2) / (high / 2 - low / 2)
    pixels: Pixels = np.rint(255.0 * np.clip(part, 0.0, 1.0)).astype(np.uint8)
    return pixels


def far_outside(values: npt.NDArray[Any], value_range: Range) -> bool:
    """Whether the numbers are of another scale than the range: one of them lies outside by more than its width.

    Example:
        >>> far_outside(np.array([0.0, 1.2]), (0.0, 1.0)), far_outside(np.array([0.0, 255.0]), (0.0, 1.0))
        (False, True)
    """
    low, high = value_range
    return bool(float(values.min()) / 2 < low - high / 2 or float(values.max()) / 2 > high - low / 2)
