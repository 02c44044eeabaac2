"""The distributions of what is drawn: torchvision's own draws, and uniform laws where they are known.

Kolmogorov's distances are scaled by the root of the number of draws, so that 1.95 is passed once in a thousand times by chance and
2.2 once in ten thousand; the seeds are fixed, so that each test passes always or never. Frequencies may miss by 4 sigma.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from smallview.views.sampling import ViewParameters, draw
from smallview.views.view import View

N = 20_000
FEW = 8_000  # draws of torchvision's
HARDLY, NEVER = 1.95, 2.2


def drawn(view: View, height: int, width: int, n: int = N) -> ViewParameters:
    return draw(view, 0, 112, np.full(n, height), np.full(n, width), np.arange(n), 0, 0)


def from_uniform(values: np.ndarray, low: float, high: float) -> float:
    """Kolmogorov's distance from the uniform distribution, scaled."""
    ordered = np.sort((values - low) / (high - low))
    n = len(ordered)
    steps = np.arange(1, n + 1) / n
    return float(max((steps - ordered).max(), (ordered - steps + 1 / n).max()) * math.sqrt(n))


def between(a: Any, b: Any) -> float:
    """Kolmogorov's and Smirnov's distance of two samples, scaled; ties make it smaller, never larger."""
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    places = np.concatenate([a, b])
    apart = np.abs(np.searchsorted(a, places, "right") / len(a) - np.searchsorted(b, places, "right") / len(b)).max()
    return float(apart * math.sqrt(len(a) * len(b) / (len(a) + len(b))))


@pytest.fixture(scope="module")
def tv() -> Iterator[Any]:
    from torchvision import transforms

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield transforms


def their_boxes(tv: Any, view: View, height: int, width: int) -> np.ndarray:
    image = torch.empty(1, 1, 1).expand(3, height, width)
    ask = tv.RandomResizedCrop.get_params
    return np.array([ask(image, list(view.scale), list(view.ratio)) for _ in range(FEW)], float).T  # top, left, h, w


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(375, 500, (0.08, 1.0)), (375, 500, (0.9, 1.0)), (96, 96, (0.2, 1.0)), (32, 32, (0.08, 0.3))]
)
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.9, 2.5)])
def test_boxes_are_distributed_like_torchvisions(
    tv: Any, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    """Ratios that are not as often wide as tall tell width over height from height over width."""
    view = View(scale=scale, ratio=ratio)
    theirs, ours = their_boxes(tv, view, height, width), drawn(view, height, width).box.T
    for a, b in zip(ours, theirs, strict=True):  # top, left, height, width
        assert between(a, b) < HARDLY
    (top, left, h, w), (top_2, left_2, h_2, w_2) = ours, theirs
    assert between(h * w, h_2 * w_2) < HARDLY and between(w / h, w_2 / h_2) < HARDLY
    assert between(top - left, top_2 - left_2) < HARDLY and between(h - w, h_2 - w_2) < HARDLY


def test_the_distances_have_power(tv: Any) -> None:
    """Draws that are slightly wrong are seen: other areas, the ratio itself uniform, places away from the border."""
    view = View(scale=(0.08, 1.0))
    top, _, h, w = their_boxes(tv, view, 375, 500)
    wrong = drawn(View(scale=(0.14, 1.0)), 375, 500).box.T
    assert between(wrong[2] * wrong[3], h * w) > 2.5
    right = drawn(view, 375, 500).box.T
    assert between(np.maximum(right[0] - 8, 0), top) > 2.5
    _, _, h, w = their_boxes(tv, View(scale=(0.1, 0.5)), 224, 224)
    ratio = np.random.default_rng(0).uniform(3 / 4, 4 / 3, N)
    assert between(np.log(ratio), np.log(w / h)) > 2.5


def test_area_and_log_ratio_are_uniform_where_all_fits() -> None:
    view = View(scale=(0.1, 0.5), ratio=(3 / 4, 4 / 3))
    # so large that whole pixels make no difference
    top, left, h, w = drawn(view, 4000, 4000).box.T
    assert from_uniform(h * w / 4000**2, 0.1, 0.5) < NEVER
    assert from_uniform(np.log(w / h), math.log(3 / 4), math.log(4 / 3)) < NEVER
    assert from_uniform((top + 0.5) / (4001 - h), 0, 1) < NEVER
    assert from_uniform((left + 0.5) / (4001 - w), 0, 1) < NEVER
    assert abs(np.corrcoef(h * w, np.log(w / h))[0, 1]) < 5 / math.sqrt(N)
    # power: neither the ratio itself nor the side is uniform
    assert from_uniform(w / h, 3 / 4, 4 / 3) > 5
    assert from_uniform(np.sqrt(h * w) / 4000, math.sqrt(0.1), math.sqrt(0.5)) > 5


def test_crops_of_photographs_are_of_all_shapes() -> None:
    """Of 500 x 375 pixels, areas from 0.08 to 1: a mean area of 0.43, hardly any square, ratios all over +-log(4/3)."""
    _, _, h, w = drawn(View(scale=(0.08, 1.0)), 375, 500, 5000).box.T
    logs, most = np.log(w / h), math.log(4 / 3)
    assert (h == w).mean() < 0.02
    assert logs.min() < -0.95 * most and logs.max() > 0.95 * most
    assert 0.12 < logs.std() < 0.2 and (np.histogram(logs, 8, (-most - 0.01, most + 0.01))[0] > 300).all()
    assert (h * w).mean() / (375 * 500) == pytest.approx(0.43, abs=0.015)


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.1), (0.8, 2.0, 0.2, 0.5)])
def test_jitter_is_distributed_like_torchvisions(tv: Any, strengths: tuple[float, float, float, float]) -> None:
    brightness, contrast, saturation, hue = strengths
    view = View(jitter=1.0, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    p, jitter = drawn(view, 50, 50), tv.ColorJitter(*strengths)
    asked = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(FEW)]
    theirs = np.array([factors for _, *factors in asked]).T
    for mine, other in zip((p.brightness, p.contrast, p.saturation, p.hue), theirs, strict=True):
        assert between(mine, other) < HARDLY
    orders, ours = np.array([order.tolist() for order, *_ in asked]), p.order
    digits = np.array([64, 16, 4, 1])
    assert {*(orders @ digits)} == {*(ours @ digits)} and (np.sort(ours, 1) == np.arange(4)).all()
    for place in range(4):
        for op in range(4):
            assert abs((ours[:, place] == op).mean() - 0.25) < 4 * math.sqrt(0.1875 / N)


def test_orders_are_uniform_over_all_24() -> None:
    _, counts = np.unique(drawn(View(), 50, 50).order @ np.array([64, 16, 4, 1]), return_counts=True)
    assert len(counts) == 24
    chi_square = float(((counts - N / 24) ** 2).sum() / (N / 24))
    assert 5.0 < chi_square < 49.7  # of 23 degrees of freedom: above 49.7 once in a thousand times, and under 5 never


def test_probabilities_and_factors() -> None:
    view = View(
        flip=0.3,
        jitter=0.6,
        grayscale=0.15,
        blur=0.4,
        solarize=0.25,
        hue=0.2,
        contrast=0.5,
        brightness=2.0,
        mask_background=0.1,
    )
    p = drawn(view, 50, 50)
    for name, rows, part in (
        ("flip", p.flip, 0.3),
        ("grayscale", p.grayscale, 0.15),
        ("solarize", p.solarize, 0.25),
        ("mask_background", p.masked, 0.1),
        ("blur", p.blur_sigma > 0, 0.4),
        ("jitter", p.contrast != 1.0, 0.6),
    ):
        assert abs(rows.mean() - part) < 4 * math.sqrt(part * (1 - part) / N), name
    on = p.contrast != 1.0
    assert ((p.hue != 0) == on).all() and ((p.saturation != 1) == on).all() and ((p.brightness != 1) == on).all()
    assert from_uniform(p.contrast[on], 0.5, 1.5) < NEVER
    assert from_uniform(p.saturation[on], 0.6, 1.4) < NEVER
    assert from_uniform(p.brightness[on], 0.0, 3.0) < NEVER  # never under 0, and no heap at 0
    assert from_uniform(p.hue[on], -0.2, 0.2) < NEVER
    assert (p.hue < 0).any() and (p.hue > 0).any()
    assert from_uniform(p.blur_sigma[p.blur_sigma > 0], 0.05, 1.0) < NEVER  # 0.1 to 2 at 224 pixels, half of it at 112
    assert from_uniform(p.background, 0.0, 1.0) < NEVER


@pytest.mark.parametrize("seed", range(3))
def test_of_a_thousand_pictures_half_are_flipped(seed: int) -> None:
    p = draw(View(), 0, 32, [40] * 1000, [60] * 1000, np.arange(1000), seed, 0)
    assert 450 <= p.flip.sum() <= 550 and 450 <= (p.hue > 0).sum() / (p.hue != 0).mean() <= 550
