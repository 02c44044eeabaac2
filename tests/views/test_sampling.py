"""The distribution of what is drawn for a view, and that it is a function of its keys alone."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from smallview.schedules import SPAN, Constant, Cosine, Ramp, Schedule, Steps
from smallview.views.sampling import ATTEMPTS, centre, draw, draw_boxes
from smallview.views.view import View, pixels

N = 20_000


def boxes_of(view: View, height: int, width: int, n: int = N, seed: int = 0) -> np.ndarray:
    return draw(view, 0, 32, np.full(n, height), np.full(n, width), np.arange(n), seed, 0).box


def uniform_distance(values: np.ndarray, low: float, high: float) -> float:
    """Kolmogorov's distance from uniform, times sqrt(n): above 2.2 once in ten thousand times."""
    ordered = np.sort((values - low) / (high - low))
    n = len(ordered)
    steps = np.arange(1, n + 1) / n
    return float(max((steps - ordered).max(), (ordered - steps + 1 / n).max()) * math.sqrt(n))


def test_area_and_log_ratio_are_uniform_where_all_fits() -> None:
    view = View(scale=(0.1, 0.5), ratio=(3 / 4, 4 / 3))
    top, left, h, w = boxes_of(view, 100, 100).T
    assert uniform_distance(h * w / 100**2, 0.1, 0.5) < 2.2
    assert uniform_distance(np.log(w / h), math.log(3 / 4), math.log(4 / 3)) < 2.2
    assert uniform_distance(top / (100 - h), 0, 1) < 2.2
    assert uniform_distance(left / (100 - w), 0, 1) < 2.2
    assert abs(np.corrcoef(h * w, np.log(w / h))[0, 1]) < 5 / math.sqrt(N)
    # power: neither the ratio itself nor the side is uniform
    assert uniform_distance(w / h, 3 / 4, 4 / 3) > 5
    assert uniform_distance(np.sqrt(h * w) / 100, math.sqrt(0.1), math.sqrt(0.5)) > 5


def test_distribution_given_that_the_box_fits() -> None:
    """On a wide picture, with large crops: the same as rejecting a plain sampler's boxes."""
    view = View(scale=(0.2, 1.0))
    _, _, h, w = boxes_of(view, 60, 100).T
    assert (h <= 60).all() and (w <= 100).all()
    random = np.random.default_rng(0)
    area = random.uniform(0.2, 1.0, 20 * N) * 6000
    ratio = np.exp(random.uniform(math.log(3 / 4), math.log(4 / 3), 20 * N))
    fits = (np.sqrt(area * ratio) <= 100) & (np.sqrt(area / ratio) <= 60)
    wanted = np.sort(area[fits])
    drawn = np.sort((h * w)[~np.isclose(h, 60)])
    grid = np.linspace(1200, 6000, 200)
    distance = np.abs(np.searchsorted(drawn, grid) / len(drawn) - np.searchsorted(wanted, grid) / len(wanted)).max()
    assert distance < 2.5 / math.sqrt(N)


@pytest.mark.parametrize(("height", "width"), [(1, 400), (1500, 2), (1, 1), (3, 3), (40, 60), (2, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (1.0, 1.0)])
def test_every_box_lies_within_its_picture(height: int, width: int, scale: tuple[float, float]) -> None:
    top, left, h, w = boxes_of(View(scale=scale), height, width, 2000).T
    slack = 1e-9 * max(height, width)
    assert (h > 0).all() and (w > 0).all()
    assert (top >= -slack).all() and (left >= -slack).all()
    assert (top + h <= height + slack).all() and (left + w <= width + slack).all()
    assert (w / h >= 3 / 4 - 1e-9).all() and (w / h <= 4 / 3 + 1e-9).all()


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [(1, 400, (0, 200 - 2 / 3, 1, 4 / 3)), (1500, 2, (750 - 4 / 3, 0, 8 / 3, 2)), (30, 30, (0, 0, 30, 30))],
)
def test_fallback_is_the_largest_allowed_centre_box(height: int, width: int, wanted: tuple[float, ...]) -> None:
    box = draw_boxes(View(scale=(1.0, 1.0)), np.array([height], float), np.array([width], float), np.full((1, 22), 0.9))
    np.testing.assert_allclose(box[0], wanted, atol=1e-9)


def test_ten_attempts_of_which_the_first_that_fits_counts() -> None:
    view = View(scale=(0.5, 1.0), ratio=(0.5, 2.0))
    u = np.full((1, 2 * ATTEMPTS + 2), 0.999)  # too wide by far
    u[0, 6:8] = 0.0, 0.5  # the fourth fits: half the area, square
    u[0, 8:10] = 0.1, 0.5
    top, left, h, w = draw_boxes(view, np.array([100.0]), np.array([100.0]), u)[0]
    assert (h, w) == pytest.approx((math.sqrt(5000), math.sqrt(5000)))
    assert (top, left) == pytest.approx((0.999 * (100 - h), 0.999 * (100 - w)))


def test_whole_square_picture_when_scale_and_ratio_are_one() -> None:
    box = boxes_of(View(scale=(1.0, 1.0), ratio=(1.0, 1.0)), 32, 32, 50)
    np.testing.assert_array_equal(box, np.tile([0.0, 0.0, 32.0, 32.0], (50, 1)))


def same(a: object, b: object, rows: object = slice(None)) -> None:
    for f in fields(a):
        value = getattr(a, f.name)
        np.testing.assert_array_equal(value if f.name == "size" else value[rows], getattr(b, f.name), err_msg=f.name)


def test_parameters_belong_to_the_picture_not_to_the_batch() -> None:
    view = View(solarize=0.3, noise=0.1)
    samples, heights = np.array([7, 3, 12, 900_000_000_000]), np.array([30, 40, 50, 60])
    whole = draw(view, 1, 32, heights, heights + 5, samples, 3, 4)
    order = np.array([2, 0, 3])
    same(whole, draw(view, 1, 32, heights[order], heights[order] + 5, samples[order], 3, 4), order)
    same(whole, draw(view, 1, 32, heights, heights + 5, samples, 3, 4))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"which": 1}, {"shift": 1}])
def test_every_key_matters_and_gives_independent_draws(change: dict[str, int]) -> None:
    def take(seed: int = 0, epoch: int = 0, which: int = 0, shift: int = 0) -> np.ndarray:
        n = 4000
        p = draw(
            View(jitter=1.0, mask_background=0.5), which, 32, np.full(n, 50), np.full(n, 50), np.arange(n) + shift, seed, epoch
        )
        return np.stack([p.box[:, 2], p.box[:, 0], p.brightness, p.contrast, p.saturation, p.hue, p.flip * 1.0, p.masked * 1.0])

    both = np.corrcoef(np.concatenate([take(), take(**change)]))
    assert np.abs(both[:8, 8:]).max() < 5.5 / math.sqrt(4000)
    between_ops = both[2:8, 2:8] - np.eye(6)
    assert np.abs(between_ops).max() < 5.5 / math.sqrt(4000)


def test_probabilities_and_factors() -> None:
    view = View(flip=0.3, jitter=0.6, grayscale=0.15, blur=0.4, solarize=0.25, hue=0.2, contrast=0.5, brightness=2.0)
    view = replace(view, mask_background=0.1)
    p = draw(view, 0, 112, np.full(N, 50), np.full(N, 50), np.arange(N), 0, 0)
    for name, drawn, part in (
        ("flip", p.flip, 0.3),
        ("grayscale", p.grayscale, 0.15),
        ("solarize", p.solarize, 0.25),
        ("mask_background", p.masked, 0.1),
        ("blur", p.blur_sigma > 0, 0.4),
        ("jitter", p.contrast != 1.0, 0.6),
    ):
        assert abs(drawn.mean() - part) < 5 * math.sqrt(part * (1 - part) / N), name
    on = p.contrast != 1.0
    assert ((p.hue != 0) == on).all() and ((p.saturation != 1) == on).all()
    assert uniform_distance(p.contrast[on], 0.5, 1.5) < 2.2
    assert uniform_distance(p.saturation[on], 0.6, 1.4) < 2.2
    assert uniform_distance(p.brightness[on], 0.0, 3.0) < 2.2  # never under 0, and no heap at 0
    assert uniform_distance(p.hue[on], -0.2, 0.2) < 2.2
    assert uniform_distance(p.blur_sigma[p.blur_sigma > 0], 0.05, 1.0) < 2.2  # 0.1 to 2 at 224 pixels, half of it at 112


def test_neutral_view_draws_nothing() -> None:
    view = View(flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
    p = draw(view, 0, 32, np.full(200, 9), np.full(200, 9), np.arange(200), 0, 0)
    assert not (p.masked.any() or p.flip.any() or p.grayscale.any() or p.solarize.any() or p.blur_sigma.any() or p.hue.any())
    assert (p.brightness == 1).all() and (p.contrast == 1).all() and (p.saturation == 1).all()


def test_centre() -> None:
    np.testing.assert_allclose(centre([10, 20], [20, 20], 0.875)[0], [0.625, 5.625, 8.75, 8.75])
    np.testing.assert_allclose(centre([10, 20], [20, 20], 1.0)[1], [0, 0, 20, 20])


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
        {"ratio": (0.0, 1.0)},
        {"blur_sigma": (2.0, 1.0)},
        {"noise": float("nan")},
        {"seen_by": "nobody"},
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


def test_only_the_blur_depends_on_the_size() -> None:
    small, large = (draw(View(blur=1.0), 0, size, [40] * 9, [60] * 9, np.arange(9), 0, 2) for size in (32, 64))
    assert (small.size, large.size) == (32, 64)
    np.testing.assert_allclose(2 * small.blur_sigma, large.blur_sigma)
    same(replace(small, size=64, blur_sigma=large.blur_sigma), large)


def test_which_are_masked_is_a_draw_of_its_own() -> None:
    plain, masked = (draw(View(mask_background=p), 0, 32, [40] * 99, [60] * 99, np.arange(99), 0, 2) for p in (0.0, 0.5))
    assert 0 < masked.masked.sum() < 99
    same(replace(masked, masked=plain.masked), plain)
