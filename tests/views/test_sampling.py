"""What is drawn for a view: a slow loop gives the same numbers, which are a function of their keys alone."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from smallview.seeds import sample_keys, uniforms
from smallview.views.sampling import ViewParameters, centre, draw, neutral
from smallview.views.view import View

BUSY = View(
    scale=(0.3, 1.0), ratio=(0.6, 1.5), flip=0.4, jitter=0.7, brightness=1.5, contrast=0.3, hue=0.2, grayscale=0.3, blur=0.6,
    solarize=0.2, mask_background=0.35,
)  # fmt: skip
SIDES = [(1, 1), (1, 10), (7, 3), (3, 3), (40, 33), (375, 500), (5, 90)]


def slow_box(view: View, height: int, width: int, u: np.ndarray) -> list[float]:
    """Szegedy's crop as torchvision draws it, from 22 uniform numbers: (area, log ratio) of ten attempts, then the place."""
    narrow, wide = view.ratio
    for attempt in range(10):
        area = (view.scale[0] + (view.scale[1] - view.scale[0]) * u[2 * attempt]) * height * width
        ratio = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * u[2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int((height - h + 1) * u[20]), int((width - w + 1) * u[21]), h, w]
    w, h = width, height
    if width / height < narrow:
        h = max(1, round(width / narrow))
    elif width / height > wide:
        w = max(1, round(height * wide))
    return [(height - h) // 2, (width - w) // 2, h, w]


def slow(view: View, which: int, size: int, sides: list[tuple[int, int]], samples: list[int]) -> ViewParameters:
    """Every op from numbers of its own key, one picture after the other; seed 3, epoch 4."""

    def numbers(op: str, sample: int, n: int) -> np.ndarray:
        return uniforms(sample_keys(3, f"view/{op}", [sample], 4, which), n)[0]

    def hit(op: str, part: float, sample: int) -> bool:
        return bool(numbers(op, sample, 1)[0] < part)

    def within(op: str, low: float, high: float, sample: int) -> float:
        return float(low + (high - low) * numbers(op, sample, 1)[0])

    rows = []
    for (height, width), i in zip(sides, samples, strict=True):
        jittered, blurred = hit("jitter", view.jitter, i), hit("blur", view.blur, i)
        order, u = [0, 1, 2, 3], numbers("order", i, 4)
        for k in (3, 2, 1):
            other = int(u[k] * (k + 1))
            order[k], order[other] = order[other], order[k]
        row = {
            "box": [float(x) for x in slow_box(view, height, width, numbers("crop", i, 22))],
            "order": order,
            "flip": hit("flip", view.flip, i),
            "grayscale": hit("grayscale", view.grayscale, i),
            "solarize": hit("solarize", view.solarize, i),
            "masked": hit("mask", view.mask_background, i),
            "hue": within("hue", -view.hue, view.hue, i) if jittered else 0.0,
            "blur_sigma": within("sigma", *view.blur_sigma, i) * size / 224 if blurred else 0.0,
            "background": within("background", 0.0, 1.0, i),
            "noise_key": sample_keys(3, "view/noise", [i], 4, which)[0],
        }
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(view, name)
            row[name] = within(name, max(0.0, 1 - strength), 1 + strength, i) if jittered else 1.0
        rows.append(row)
    return ViewParameters(size=size, **{name: np.array([row[name] for row in rows]) for name in rows[0]})


@pytest.mark.parametrize("which", [0, 5])
def test_a_slow_loop_draws_the_same(which: int) -> None:
    sides = SIDES * 30
    samples = [*range(100), *range(2**31, 2**31 + 109), 900_000_000_000]
    got = draw(BUSY, which, 48, *np.array(sides).T, samples, 3, 4)
    wanted = slow(BUSY, which, 48, sides, samples)
    for f in fields(got):
        ours, theirs = getattr(got, f.name), getattr(wanted, f.name)
        assert f.name == "size" or (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), f.name
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-11, err_msg=f.name)
        if f.name in ("box", "noise_key", "order", "flip"):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("height", "width"), [(1, 400), (1500, 2), (1, 1), (3, 3), (40, 60), (2, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (1.0, 1.0), (0.001, 0.002)])
def test_every_box_lies_within_its_picture_on_whole_pixels(height: int, width: int, scale: tuple[float, float]) -> None:
    n = 2000
    drawn = draw(View(scale=scale), 0, 32, np.full(n, height), np.full(n, width), np.arange(n), 0, 0)
    top, left, h, w = drawn.box.T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    np.testing.assert_array_equal(drawn.box, np.rint(drawn.box))


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [(1, 400, (0, 199, 1, 1)), (1500, 2, (748, 0, 3, 2)), (60, 31, (9, 0, 41, 31)), (30, 30, (0, 0, 30, 30))],
)
def test_where_nothing_fits_it_is_the_largest_allowed_centre_box(height: int, width: int, wanted: tuple[float, ...]) -> None:
    n = 40
    boxes = draw(View(scale=(1.0, 1.0)), 0, 32, np.full(n, height), np.full(n, width), np.arange(n), 0, 0).box
    np.testing.assert_array_equal(boxes[:1], [wanted])
    assert height == width or (boxes == wanted).all()


def test_whole_square_picture_when_scale_and_ratio_are_one() -> None:
    view = View(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    box = draw(view, 0, 32, [32] * 50, [32] * 50, np.arange(50), 0, 0).box
    np.testing.assert_array_equal(box, np.tile([0.0, 0.0, 32.0, 32.0], (50, 1)))


def same(a: object, b: object, rows: object = slice(None)) -> None:
    for f in fields(a):
        value = getattr(a, f.name)
        np.testing.assert_array_equal(value if f.name == "size" else value[rows], getattr(b, f.name), err_msg=f.name)


def test_parameters_belong_to_the_picture_not_to_the_batch() -> None:
    samples, heights = np.array([7, 3, 12, 900_000_000_000]), np.array([30, 40, 50, 60])
    whole = draw(BUSY, 1, 32, heights, heights + 5, samples, 3, 4)
    order = np.array([2, 0, 3])
    same(whole, draw(BUSY, 1, 32, heights[order], heights[order] + 5, samples[order], 3, 4), order)
    same(whole, draw(BUSY, 1, 32, heights.astype(np.int32), heights + 5, samples.tolist(), 3, 4))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"which": 1}, {"shift": 1}])
def test_every_key_matters_and_gives_independent_draws(change: dict[str, int]) -> None:
    n = 4000
    view = View(jitter=1.0, blur=1.0, mask_background=0.5, solarize=0.5, grayscale=0.5)

    def take(seed: int = 0, epoch: int = 0, which: int = 0, shift: int = 0) -> np.ndarray:
        p = draw(view, which, 32, np.full(n, 50), np.full(n, 50), np.arange(n) + shift, seed, epoch)
        chosen = (p.box[:, 2], p.box[:, 0], p.brightness, p.contrast, p.saturation, p.hue, p.blur_sigma, p.background)
        keys = (p.noise_key >> np.uint64(32), p.order[:, 0], p.flip, p.masked, p.solarize, p.grayscale)
        return np.stack([column.astype(np.float64) for column in (*chosen, *keys)])

    both = np.corrcoef(np.concatenate([take(), take(**change)]))
    assert np.abs(both[:14, 14:]).max() < 5.5 / math.sqrt(n)
    between_ops = both[2:14, 2:14] - np.eye(12)
    assert np.abs(between_ops).max() < 5.5 / math.sqrt(n)


def test_neutral_view_draws_nothing() -> None:
    view = View(flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
    p = draw(view, 0, 32, np.full(200, 9), np.full(200, 9), np.arange(200), 0, 0)
    plain = neutral(p.box, np.zeros(200, bool), 32)
    same(replace(p, order=plain.order, background=plain.background, noise_key=plain.noise_key), plain)


def test_certain_ops_always_happen() -> None:
    view = View(flip=1.0, jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0, mask_background=1.0)
    p = draw(view, 0, 32, np.full(999, 9), np.full(999, 9), np.arange(999), 0, 0)
    assert p.flip.all() and p.grayscale.all() and p.solarize.all() and p.masked.all()
    assert (p.blur_sigma > 0).all() and (p.contrast != 1).all() and (p.hue != 0).all()


def test_centre() -> None:
    np.testing.assert_allclose(centre([10, 20], [20, 20], 0.875)[0], [0.625, 5.625, 8.75, 8.75])
    np.testing.assert_allclose(centre([10, 20], [20, 20], 1.0)[1], [0, 0, 20, 20])


def test_only_the_blur_depends_on_the_size() -> None:
    small, large = (draw(View(blur=1.0), 0, size, [40] * 9, [60] * 9, np.arange(9), 0, 2) for size in (32, 64))
    assert (small.size, large.size) == (32, 64)
    np.testing.assert_allclose(2 * small.blur_sigma, large.blur_sigma)
    same(replace(small, size=64, blur_sigma=large.blur_sigma), large)


@pytest.mark.parametrize(
    ("op", "names"),
    [
        ("mask_background", ["masked"]),
        ("solarize", ["solarize"]),
        ("grayscale", ["grayscale"]),
        ("flip", ["flip"]),
        ("blur", ["blur_sigma"]),
        ("jitter", ["brightness", "contrast", "saturation", "hue"]),
    ],
)
def test_an_op_changes_no_other_ones_draws(op: str, names: list[str]) -> None:
    off, on = (
        draw(replace(BUSY, **{op: p}), 0, 32, [40] * 99, [60] * 99, np.arange(99), 0, 2) for p in (0.0, getattr(BUSY, op))
    )
    for name in names:
        assert 0 < (getattr(off, name) != getattr(on, name)).sum() < 99
    same(replace(on, **{name: getattr(off, name) for name in names}), off)


def test_parameters_read_back_as_lists_are_the_arrays_they_were() -> None:
    p = draw(BUSY, 1, 32, [40] * 99, [60] * 99, np.arange(99), 0, 2)
    kept = json.loads(json.dumps({f.name: np.asarray(getattr(p, f.name)).tolist() for f in fields(p)}))
    again = ViewParameters(**kept)
    same(p, again)
    assert all(getattr(p, f.name).dtype == getattr(again, f.name).dtype for f in fields(p) if f.name != "size")
    same(p, replace(p, flip=p.flip.astype(int), box=p.box.astype(np.float32), order=p.order.astype(np.int8)))


def test_parameters_that_cannot_be_replayed_are_refused() -> None:
    p = draw(BUSY, 1, 32, [40] * 9, [60] * 9, np.arange(9), 0, 2)
    with pytest.raises(ValueError, match="noise_key is float64, which may have lost digits; wanted uint64"):
        replace(p, noise_key=p.noise_key.astype(float))
    with pytest.raises(ValueError, match=r"hue is \[8\] beside boxes of 9 pictures; wanted \[9\]"):
        replace(p, hue=p.hue[1:])
    with pytest.raises(ValueError, match=r"box is \[9, 3\] beside boxes of 9 pictures; wanted \[9, 4\]"):
        replace(p, box=p.box[:, :3])
