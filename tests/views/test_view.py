"""Views as values: refused numbers, sizes in pixels, and what masked backgrounds are filled with."""

from __future__ import annotations

import numpy as np
import pytest

from smallview.schedules import SPAN, Constant, Cosine, Ramp, Schedule, Steps
from smallview.views.view import Background, View, backgrounds, pixels


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 2},
        {"size": 5000},
        {"size": 0},
        {"size": -0.5},
        {"size": 1.5},
        {"size": float("nan")},
        {"size": Constant(2.0)},
        {"size": Ramp(0.0, 1.0)},
        {"size": Ramp(0.5, 64.0)},
        {"size": Steps((0.5, 64.0, 1.0), (0.3, 0.6))},
        {"size": Steps((16.0, 2000.0, 32.0), (0.3, 0.6))},
        {"mask_background": 1.1},
        {"flip": 1.5},
        {"jitter": -0.1},
        {"hue": 0.6},
        {"brightness": -1.0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.6, 0.5)},
        {"scale": (0.5,)},
        {"ratio": (0.75, 1.0, 1.3)},
        {"blur_sigma": 1.0},
        {"ratio": (0.0, 1.0)},
        {"blur_sigma": (2.0, 1.0)},
        {"noise": float("nan")},
        {"seen_by": "nobody"},
        {"background": "green"},
        {"background": ()},
        {"background": (1, 2, 256)},
        {"background": (-1, 2, 3)},
        {"background": (0.5, 0.5, 0.5)},
        {"background": (True, 2, 3)},
        {"background": ("1", "2", "3")},
    ],
)
def test_refused_numbers_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        View(**wrong)


@pytest.mark.parametrize(
    ("size", "progress", "wanted"),
    [
        (None, 0.5, 33),
        (7, 0.5, 7),
        (7.0, 0.5, 8),
        (96.9, 0.5, 96),
        (0.5, 0.5, 16),
        (0.01, 0.5, 4),
        (1, 0.5, 33),
        (1.0, 0.5, 33),
        (0.999, 0.5, 32),
        (Ramp(0.5, 1.0, until=0.6), 0.0, 16),
        (Ramp(0.5, 1.0, until=0.6), 0.3, 24),
        (Ramp(0.5, 1.0, until=0.6), 0.6, 33),
        (Ramp(0.5, 1.0, until=0.6), 1.0, 33),
        (Steps((16, 31.5), (0.5,)), 0.4, 16),
        (Steps((16, 31.5), (0.5,)), 0.5, 32),
        (Cosine(128.0, 32.0), 0.5, 80),
    ],
)
def test_sizes_in_pixels(size: int | float | Schedule | None, progress: float, wanted: int) -> None:
    assert View(size=size).size == size
    side = pixels(size, 33, progress)
    assert side == wanted and type(side) is int


@pytest.mark.parametrize("run_size", [4, 5, 32, 97, 224])
def test_parts_are_even_and_never_over_the_whole(run_size: int) -> None:
    sides = [pixels(part, run_size, 0.0) for part in SPAN if part > 0.0]
    assert sides == sorted(sides) and sides[-1] == run_size
    assert all(side % 2 == 0 and side >= 4 for side in sides[:-1])
    assert all(abs(side - part * run_size) <= 1 + 1e-9 or side == 4 for side, part in zip(sides, SPAN[1:], strict=True))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("gray", [[128, 128]] * 3),
        ("mean", [[51, 204]] * 3),
        ("random_gray", [[0, 0], [128, 128], [255, 255]]),
        ("noise", [[-1, -1]] * 3),
        ("blur", [[-2, -2]] * 3),
        ((0, 255), [[0, 255]] * 3),
    ],
)
def test_backgrounds_in_bytes(kind: Background | tuple[int, ...], wanted: list[list[int]]) -> None:
    got = backgrounds(kind, np.array([0.0, 0.5, 1.0 - 2**-53]), np.array([0.2, 0.8], np.float32))
    assert got.tolist() == wanted and got.dtype == np.int64
