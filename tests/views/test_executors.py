"""The kernel and the torch executor: the same views from the same parameters, pictures kept on the device or sent there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from smallview.errors import UsageError
from smallview.records import Batch
from smallview.views import kernel_torch, noise, sampling
from smallview.views.making import ViewMaker
from smallview.views.sampling import Mode
from smallview.views.view import Background, View

STD = 0.25
# 2/255 is what is promised; single precision on both sides does far better
PROMISED, REACHED = 2 / 255, 0.02 / 255
BUSY = View(jitter=1.0, blur_sigma=(0.0, 30.0), noise=0.1)
EQUAL = [(24, 31)] * 9
UNEQUAL = [(24, 31), (1, 1), (5, 60), (33, 8), (16, 16), (1, 10), (41, 40), (17, 3), (8, 8)]


def maker(
    pictures: Any,
    views: tuple[View, ...],
    executor: Literal["kernel", "torch"],
    masks: Any = None,
    mode: Mode = "fast",
    keep: bool | None = None,
    size: int = 14,
) -> ViewMaker:
    c = pictures.channels
    moments = (np.linspace(0.4, 0.6, c), np.full(c, STD))
    return ViewMaker(pictures, views, size, *moments, 0, foregrounds=masks, mode=mode, executor=executor, keep=keep)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference in pixels' units, of 0 to 1."""
    assert a.shape == b.shape and a.dtype == b.dtype == torch.float32
    return STD * float((a - b).abs().max())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("shapes", "keep"), [(EQUAL, True), (EQUAL, False), (UNEQUAL, None)])
@pytest.mark.parametrize("mode", ["fast", "parity"])
def test_both_executors_agree(
    packed: Callable[..., Any],
    masks_of: Callable[..., Any],
    channels: int,
    shapes: list[tuple[int, int]],
    keep: bool | None,
    mode: Mode,
) -> None:
    pictures = packed([(*shape, channels) for shape in shapes])
    random = np.random.default_rng(0)
    masks = masks_of([random.random(shape) < 0.5 for shape in shapes], np.arange(9) != 4)
    kinds: tuple[Background, ...] = get_args(Background)
    views = (BUSY, View(size=5), View(size=40), *(replace(BUSY, mask_background=0.7, background=kind) for kind in kinds))
    ours = maker(pictures, views, "kernel", masks, mode)
    theirs = maker(pictures, views, "torch", masks, mode, keep)
    assert theirs.on_device is not None and (theirs.on_device.kept is not None) == bool(keep)
    for index in ([3, 0, 8, 4, 1, 7, 2, 5, 6], [1], [8, 8, 0]):
        batch = Batch(np.array(index), 1, 0)
        for v, (a, b) in enumerate(zip(ours(batch), theirs(batch), strict=True)):
            assert apart(a.images, b.images) <= REACHED < PROMISED, f"view {v}"


@pytest.mark.parametrize("height_width_size", [(40, 52, 16), (12, 9, 32), (64, 64, 5), (3, 3, 16), (1, 700, 8), (300, 200, 48)])
def test_plain_crops_agree(
    packed: Callable[..., Any], random_boxes: Callable[..., np.ndarray], height_width_size: tuple[int, int, int]
) -> None:
    height, width, size = height_width_size
    pictures = packed([(height, width, 3)] * 30)
    boxes = random_boxes([height] * 30, [width] * 30, smallest=0.05)
    flips = np.arange(30) % 2 == 0
    ours, theirs = (maker(pictures, (), kind) for kind in ("kernel", "torch"))
    index = np.arange(30)
    a, b = ours.crop(index, boxes, flips, size), theirs.crop(index, boxes, flips, size)
    assert float((a - b).abs().max()) <= REACHED
    assert float((a - ours.crop(index, boxes, ~flips, size)).abs().max()) > 10 / 255


@pytest.mark.parametrize("mode", ["fast", "parity"])
def test_solarised_pixels_may_differ_at_the_threshold_only(packed: Callable[..., Any], mode: Mode) -> None:
    """Rounding decides which side of the threshold a pixel is on; a wrong side shows as up to 1 - 2 * threshold."""
    pictures = packed([(24, 31, 3)] * 40)
    view, index = replace(BUSY, solarize=0.5, solarize_threshold=0.3, noise=0.0), np.arange(40)
    ours, theirs = (maker(pictures, (view,), kind, mode=mode) for kind in ("kernel", "torch"))
    drawn = ours.draw(Batch(index, 0, 0))
    plain = [replace(drawn[0], solarize=np.zeros(40, bool))]
    mean = torch.linspace(0.4, 0.6, 3)[:, None, None]
    near = ((ours.make(index, plain)[0].images * STD + mean) - 0.3).abs() < REACHED
    a, b = (made.make(index, drawn)[0].images for made in (ours, theirs))
    assert float(near.float().mean()) < 0.001
    assert apart(torch.where(near, 0.0, a), torch.where(near, 0.0, b)) <= REACHED
    assert apart(a, ours.make(index, plain)[0].images) > 0.3


def test_masks_end_and_begin_within_bytes(packed: Callable[..., Any], masks_of: Callable[..., Any]) -> None:
    """Widths and areas that are no multiple of eight: both executors read each pixel's own bit."""
    shapes = [(3, 3), (5, 7), (1, 9), (2, 4), (11, 13)]
    pictures = packed([(h, w, 1) for h, w in shapes])
    pictures = type(pictures)([np.where(image == 128, 129, image).astype(np.uint8) for image in pictures.images])
    random = np.random.default_rng(2)
    masks = [random.random(shape) < 0.5 for shape in shapes]
    view = View(scale=(1, 1), flip=0.0, jitter=0.0, blur=0.0, grayscale=0.0, mask_background=1.0)
    for kind in ("kernel", "torch"):
        made = ViewMaker(pictures, (view,), 13, [0.0], [1.0], 0, foregrounds=masks_of(masks), executor=kind)
        for n, (height, width) in enumerate(shapes):
            everything = sampling.neutral(np.array([[0.0, 0.0, height, width]]), np.zeros(1, bool), 13)
            # one pixel a time: a view of 13 x 13 of a box of one pixel is that pixel
            for y in range(height):
                for x in range(width):
                    p = replace(everything, box=np.array([[y, x, 1.0, 1.0]]), masked=np.ones(1, bool))
                    level = float(made.make(np.array([n]), [p])[0].images[0, 0, 6, 6]) * 255
                    wanted = float(pictures.images[n][y, x, 0]) if masks[n][y, x] else 128.0
                    assert level == pytest.approx(wanted, abs=1e-3)


def normal_noise(keys: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What the CPU kernel adds, number by number."""
    pairs = (np.prod(shape) + 1) // 2
    drawn = np.array([[noise.normal_pair(key, place) for place in range(pairs)] for key in keys], np.float32)
    return drawn.reshape(len(keys), -1)[:, : np.prod(shape)].reshape(len(keys), *shape)


def test_noise_agrees_and_is_normal_and_keyed() -> None:
    keys = np.array([5, 9, 5, 2**64 - 1], np.uint64)
    ours = normal_noise(keys, (3, 64, 65))
    theirs = kernel_torch.normal_noise(keys, (3, 64, 65), torch.device("cpu")).numpy()
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    np.testing.assert_array_equal(ours[0], ours[2])
    np.testing.assert_array_equal(ours[1], normal_noise(keys[1:2], (3, 64, 65))[0])
    np.testing.assert_array_equal(ours[:, 0, 0, :5], normal_noise(keys, (5,)))  # a place's noise is not the shape's
    flat = ours[[0, 1, 3]].reshape(3, -1).astype(np.float64)
    n = flat.shape[1]
    assert abs(flat.mean(1)).max() < 5 / np.sqrt(n)
    assert abs(flat.std(1) - 1).max() < 5 / np.sqrt(2 * n)
    assert abs((flat**3).mean(1)).max() < 5 * np.sqrt(15 / n) and abs((flat**4).mean(1) - 3).max() < 5 * np.sqrt(96 / n)
    assert abs(np.corrcoef(flat) - np.eye(3)).max() < 5 / np.sqrt(n)
    for lag in (1, 2, 65):
        assert abs(np.corrcoef(flat[0, :-lag], flat[0, lag:])[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(flat[0, :-lag] ** 2, flat[0, lag:] ** 2)[0, 1]) < 5 / np.sqrt(n)  # the pairs share a radius


def test_the_kernel_is_for_the_cpu(packed: Callable[..., Any]) -> None:
    pictures = packed([(8, 8, 3)])
    with pytest.raises(UsageError, match="executor is kernel and the device meta; wanted torch"):
        ViewMaker(pictures, (View(),), 8, [0.5] * 3, [0.5] * 3, 0, "meta", executor="kernel")
    for mode in ("fast", "parity"):
        assert ViewMaker(pictures, (View(),), 8, [0.5] * 3, [0.5] * 3, 0, mode=mode).on_device is None
