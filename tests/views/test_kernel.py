"""The CPU kernel against a slow loop written from the definition, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from smallview.errors import UsageError
from smallview.views import sampling
from smallview.views.sampling import ViewParameters
from smallview.views.view import View

YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
BUSY = View(jitter=1.0, blur_sigma=(0.0, 30.0), grayscale=0.2, solarize=0.3, noise=0.1)


def axis_weights(start: float, length: float, size: int, limit: int) -> np.ndarray:
    """Float [S, limit]: a triangle as wide as the step, never under a pixel, over the pixels that the crop touches."""
    step = length / size
    touched = [p for p in range(limit) if p + 1 > start + 1e-9 and p < start + length - 1e-9]
    # a crop that is nothing but a border between two pixels: the pixel behind it, or the last
    touched = touched or [min(int(start + 1e-9), limit - 1)]
    out = np.zeros((size, limit))
    for i in range(size):
        middle = start + (i + 0.5) * step
        for p in touched:
            out[i, p] = max(0.0, 1.0 - abs(p + 0.5 - middle) / max(step, 1.0))
        if out[i].sum() <= 0.0:
            out[i, min(touched, key=lambda p: abs(p + 0.5 - middle))] = 1.0
        out[i] /= out[i].sum()
    return out


def blur_weights(sigma: float, size: int) -> np.ndarray:
    """Float [S, S]: a Gaussian cut at 3 sigma, mirrored so that the border stands once; the identity up to 0.25."""
    if sigma <= 0.25:
        return np.eye(size)
    reach = min(size - 1, math.ceil(3 * sigma))
    out = np.zeros((size, size))
    for i in range(size):
        for t in range(-reach, reach + 1):
            place = abs(i + t)
            place = 2 * (size - 1) - place if place >= size else place
            out[i, place] += math.exp(-0.5 * (t / sigma) ** 2)
    return out / out.sum(1, keepdims=True)


def coloured(x: np.ndarray, p: ViewParameters, n: int) -> np.ndarray:
    """Hue, saturation or gray, brightness and contrast of [C, S, S], one after the other and without clamps."""
    if len(x) == 3:
        y, i, q = np.einsum("kc,cij->kij", YIQ, x)
        angle = -2 * math.pi * p.hue[n]  # against the colour plane's sense: red towards yellow
        i, q = i * math.cos(angle) - q * math.sin(angle), i * math.sin(angle) + q * math.cos(angle)
        colour = 0.0 if p.grayscale[n] else p.saturation[n]
        x = np.einsum("kc,cij->kij", np.linalg.inv(YIQ), np.stack([y, colour * i, colour * q]))
    x = p.brightness[n] * x
    mean = float((np.einsum("c,cij->ij", YIQ[0], x) if len(x) == 3 else x).mean())
    return p.contrast[n] * x + (1 - p.contrast[n]) * mean


def normal(key: int, n: int) -> list[float]:
    """Box and Muller's pairs from splitmix64 counted from the key."""
    out: list[float] = []
    for counter in range(1, n // 2 + 2):
        x = (int(key) + counter * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
        radius = math.sqrt(-2 * math.log(((x >> 32) + 0.5) / 2**32))
        angle = 2 * math.pi * (x % 2**32) / 2**32
        out += [radius * math.cos(angle), radius * math.sin(angle)]
    return out[:n]


def slow_view(image: np.ndarray, p: ViewParameters, n: int, view: View, mean: Any, std: Any) -> tuple[np.ndarray, np.ndarray]:
    """One view [C, S, S], and how far each value was from the threshold of solarisation."""
    top, left, h, w = p.box[n]
    height, width = image.shape[:2]
    rows, columns = axis_weights(top, h, p.size, height), axis_weights(left, w, p.size, width)
    if p.flip[n]:
        columns = columns[::-1]
    x = rows @ (image / 255.0).transpose(2, 0, 1) @ columns.T
    blur = blur_weights(p.blur_sigma[n], p.size)
    x = np.clip(coloured(blur @ x @ blur.T, p, n), 0.0, 1.0)
    margin = np.abs(x - view.solarize_threshold) if p.solarize[n] else np.ones_like(x)
    if p.solarize[n]:
        x = np.where(x >= view.solarize_threshold, 1.0 - x, x)
    if view.noise > 0:
        x = x + view.noise * np.reshape(normal(p.noise_key[n], x.size), x.shape)
    return (x - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1)), margin


def check(
    kernel: Callable[..., np.ndarray], pictures: Any, p: ViewParameters, view: View, index: Any = None, atol: float = 2e-5
) -> None:
    """The kernel's views are the slow loop's, wherever the threshold of solarisation is not within rounding."""
    mean, std = np.linspace(0.3, 0.6, pictures.channels), np.linspace(0.5, 0.2, pictures.channels)
    index = np.arange(len(pictures)) if index is None else np.asarray(index)
    got = kernel(pictures, p, view, index, mean=mean, std=std)
    assert got.dtype == np.float32 and np.isfinite(got).all()
    for n, i in enumerate(index):
        wanted, margin = slow_view(pictures.images[i], p, n, view, mean, std)
        clear = margin > 1e-5
        assert clear.mean() > 0.98
        np.testing.assert_allclose(got[n][clear], wanted[clear], atol=atol, rtol=0, err_msg=f"picture {i}, row {n}")


def drawn_for(pictures: Any, view: View, size: int, index: Any = None, seed: int = 0) -> ViewParameters:
    index = np.arange(len(pictures)) if index is None else np.asarray(index)
    return sampling.draw(view, 0, size, pictures.heights[index], pictures.widths[index], index, seed, 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [4, 5, 16, 19, 33])
def test_drawn_views_of_pictures_of_all_shapes(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], channels: int, size: int
) -> None:
    shapes = [(1, 1), (1, 10), (10, 1), (2, 3), (7, 5), (16, 16), (17, 31), (40, 33), (21, 90), (64, 8)]
    pictures = packed([(h, w, channels) for h, w in shapes], seed=size)
    p = drawn_for(pictures, BUSY, size, seed=channels)
    assert (p.blur_sigma > 0.25).any() and p.flip.any() and not p.flip.all()
    check(kernel, pictures, p, BUSY)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 15, 17, 32])
def test_boxes_on_real_numbers(
    packed: Callable[..., Any],
    kernel: Callable[..., np.ndarray],
    random_boxes: Callable[..., np.ndarray],
    channels: int,
    size: int,
) -> None:
    """Enlarging thirtyfold and shrinking tenfold, each axis for itself; boxes of a part of a pixel, and on its very border."""
    pictures = packed([(40, 52, channels)] * 14, seed=size)
    boxes = random_boxes([40] * 14, [52] * 14, smallest=0.05)
    boxes[:6] = [
        (0, 0, 40, 52),
        (39.7, 51.6, 0.3, 0.4),
        (3.0, 7.0, 1.0, 1.0),
        (3.5, 0, 1e-3, 52),
        (0, 51.0, 40, 1),
        (2.999999, 5.0000001, 4.0, 3.0),
    ]
    plain = sampling.neutral(boxes, np.arange(14) % 2 == 1, size)
    check(kernel, pictures, plain, View(), atol=1e-5)


def test_a_large_picture_and_a_large_view(packed: Callable[..., Any], kernel: Callable[..., np.ndarray]) -> None:
    """Long rows and many blocks: single precision is enough."""
    pictures = packed([(300, 700, 3), (3, 5000, 3)])
    p = replace(drawn_for(pictures, View(jitter=1.0), 70), box=np.array([[7.3, 11.9, 280.1, 680.2], [0.2, 3.7, 2.7, 4990.0]]))
    check(kernel, pictures, p, View(jitter=1.0), atol=5e-5)


@pytest.mark.parametrize("op", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("channels", [2, 3])
def test_each_colour_op_alone(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any], op: str, channels: int
) -> None:
    pictures = packed([(8, 8, channels)] * 5)
    factors = np.array([-0.4, -0.1, 0.0, 0.2, 0.5]) if op == "hue" else np.array([0.0, 0.5, 1.0, 1.4, 3.0])
    check(kernel, pictures, neutral(5, **{op: factors}), View())


@pytest.mark.parametrize("sigma", [0.2, 0.26, 0.5, 1.0, 3.3, 20.0])
@pytest.mark.parametrize("size", [4, 9, 20])
def test_blur(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any], sigma: float, size: int
) -> None:
    pictures = packed([(8, 8, 2)] * 2)
    p = neutral(2, blur_sigma=[sigma, 0.0], size=size)
    check(kernel, pictures, p, View(), atol=5e-6)
    flat = type(pictures)([np.full((8, 8, 2), 94, np.uint8)] * 2)
    np.testing.assert_allclose(kernel(flat, p), 94 / 255, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_solarise(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any], threshold: float
) -> None:
    pictures = packed([(8, 8, 3)] * 2)
    view = View(solarize=0.5, solarize_threshold=threshold)
    check(kernel, pictures, neutral(2, solarize=[True, False]), view)
    white = type(pictures)([np.full((8, 8, 3), 255, np.uint8)] * 2)
    np.testing.assert_allclose(kernel(white, neutral(2, solarize=[True, False]), view)[0], 0.0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [5, 8])
def test_noise(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any], channels: int, size: int
) -> None:
    """An odd number of values is where a pair is cut."""
    pictures = packed([(8, 8, channels)] * 3)
    view = View(noise=0.3)
    keys = np.array([0, 2**64 - 1, 12345678901234567890], np.uint64)
    p = neutral(3, noise_key=keys, size=size)
    check(kernel, pictures, p, view)
    plain, noisy = kernel(pictures, p), kernel(pictures, p, view)
    for n, key in enumerate(keys):
        wanted = 0.3 * np.reshape(normal(key, channels * size * size), (channels, size, size))
        np.testing.assert_allclose(noisy[n] - plain[n], wanted, atol=1e-6)
    assert noisy.min() < -0.3  # after the clamp


def test_neutral_parameters_give_the_picture_itself(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any]
) -> None:
    for channels in (1, 2, 3, 4, 13):
        pictures = packed([(8, 8, channels)] * 2)
        levels = 255 * kernel(pictures, neutral(2, flip=[False, True])).astype(np.float64)
        wanted = np.stack([pictures.images[0], pictures.images[1][:, ::-1]]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(np.rint(levels), wanted)
        np.testing.assert_allclose(levels, wanted, atol=2e-4)


def test_a_crop_never_looks_beyond_its_box(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any]
) -> None:
    """Pixels that the box does not touch have no influence, not on a bit: that is what a crop means."""
    pictures = packed([(24, 24, 3)])
    loud = pictures.images[0].copy()
    loud[:4], loud[13:], loud[:, :6], loud[:, 17:] = 255, 255, 255, 255
    for size in (6, 20):
        p = neutral(1, box=[4, 6, 9, 11], size=size, blur_sigma=1.0, contrast=0.5)
        np.testing.assert_array_equal(kernel(type(pictures)([loud]), p), kernel(pictures, p))


def test_flat_pictures_stay_flat_however_they_are_cut(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], random_boxes: Callable[..., np.ndarray]
) -> None:
    """Weights of every output sum to one, also where the border cuts the filter."""
    shapes = [(1, 1), (1, 9), (30, 47), (200, 3)] * 5
    pictures = packed([(1, 1, 3)])
    pictures = type(pictures)([np.full((h, w, 3), (200, 3, 77), np.uint8) for h, w in shapes])
    boxes = random_boxes(pictures.heights, pictures.widths, smallest=0.01)
    for size in (4, 13, 32):
        got = kernel(pictures, sampling.neutral(boxes, np.arange(20) % 2 == 0, size))
        wanted = np.broadcast_to(np.array([200, 3, 77])[:, None, None] / 255, got.shape)
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_the_slow_loop_reads_every_parameter(packed: Callable[..., Any], kernel: Callable[..., np.ndarray]) -> None:
    """What the comparison is worth: change any parameter, and the views differ visibly."""
    pictures = packed([(20, 20, 3)] * 6)
    p = replace(
        drawn_for(pictures, BUSY, 12), solarize=np.ones(6, bool), grayscale=np.zeros(6, bool), blur_sigma=np.full(6, 0.5)
    )
    before = kernel(pictures, p, BUSY)
    for f in fields(p):
        value = getattr(p, f.name)
        if f.name in ("size", "order", "masked", "background"):  # masks have tests of their own; only parity knows an order
            continue
        changed = ~value if value.dtype == bool else value + 1 if value.dtype == np.uint64 else 0.8 * value + 0.02
        after = kernel(pictures, replace(p, **{f.name: changed}), BUSY)
        assert np.abs(after - before).max((1, 2, 3)).min() > 1e-3, f.name


def test_no_sigma_is_too_large(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any]
) -> None:
    """Parameters may come from anywhere: a whole number that overflows would be a place in memory."""
    pictures = packed([(8, 8, 3)] * 4)
    got = kernel(pictures, neutral(4, blur_sigma=[1e3, 1e18, 1e300, np.inf]))
    flat = kernel(pictures, neutral(4, blur_sigma=1e4))
    np.testing.assert_allclose(got, flat, atol=1e-5)
    assert np.abs(flat - kernel(pictures, neutral(4))).max() > 0.1


@pytest.mark.parametrize("rows", [[0], [0, 1, 2, 3, 3], []])
def test_parameters_of_another_number_of_pictures_are_refused(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], neutral: Callable[..., Any], rows: list[int]
) -> None:
    p = neutral(4).take(np.array(rows, np.int64))
    with pytest.raises(UsageError, match=f"parameters of {len(rows)} pictures for 4; wanted a row for each"):
        kernel(packed([(8, 8, 3)] * 4), p)
