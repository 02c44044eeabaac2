"""Both executors of crops: against each other, against torchvision, and exactly where the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from smallview.views import kernel_cpu, kernel_torch


def cut(pictures: Any, boxes: Any, size: int, flips: Any = None, index: Any = None, threads: int = 1) -> np.ndarray:
    index = np.arange(len(pictures)) if index is None else np.asarray(index)
    flips = np.zeros(len(index), bool) if flips is None else np.asarray(flips)
    p = pictures
    return kernel_cpu.crop_resize(
        p.pixels, p.offsets, p.heights, p.widths, p.channels, index, np.asarray(boxes, np.float64), flips, size, threads
    )


def random_boxes(n: int, height: int, width: int, smallest: float = 0.5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    h, w = random.uniform(smallest, height, n), random.uniform(smallest, width, n)
    return np.stack([random.uniform(0, 1, n) * (height - h), random.uniform(0, 1, n) * (width - w), h, w], 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_full_box_at_native_size_is_the_identity_and_flip_is_numpys(packed: Callable[..., Any], channels: int) -> None:
    pictures = packed([(9, 9, channels)] * 2)
    wanted = np.stack([image.transpose(2, 0, 1) for image in pictures.images]) / 255
    boxes = [[0, 0, 9, 9]] * 2
    np.testing.assert_allclose(cut(pictures, boxes, 9), wanted, atol=1e-6)
    np.testing.assert_allclose(cut(pictures, boxes, 9, [True, False])[0], np.flip(wanted[0], 2), atol=1e-6)
    np.testing.assert_allclose(cut(pictures, boxes, 9, [True, False])[1], wanted[1], atol=1e-6)


@pytest.mark.parametrize("size", [5, 16, 41])
def test_flipping_a_crop_is_flipping_the_result(packed: Callable[..., Any], size: int) -> None:
    pictures = packed([(20, 30, 3)] * 6)
    boxes = random_boxes(6, 20, 30)
    plain, flipped = cut(pictures, boxes, size), cut(pictures, boxes, size, [True] * 6)
    np.testing.assert_allclose(flipped, plain[..., ::-1], atol=1e-6)
    assert np.abs(flipped - plain).max() > 0.05


@pytest.mark.parametrize("size", [4, 7, 16, 48])
def test_cpu_crop_is_torchvisions_on_whole_boxes(packed: Callable[..., Any], size: int) -> None:
    pictures = packed([(40, 33, 3)] * 12, seed=size)
    random = np.random.default_rng(size)
    h, w = random.integers(1, 41, 12), random.integers(1, 34, 12)
    top, left = random.integers(0, 41 - h), random.integers(0, 34 - w)
    got = cut(pictures, np.stack([top, left, h, w], 1), size)
    for n, image in enumerate(pictures.images):
        as_tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        wanted = tv.resized_crop(
            as_tensor,
            int(top[n]),
            int(left[n]),
            int(h[n]),
            int(w[n]),
            [size, size],
            tv.InterpolationMode.BILINEAR,
            antialias=True,
        )
        np.testing.assert_allclose(got[n], wanted.numpy(), atol=1 / 255)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 52, 16), (12, 9, 32), (64, 64, 5), (3, 3, 16)])
def test_both_executors_agree(packed: Callable[..., Any], height: int, width: int, size: int) -> None:
    pictures = packed([(height, width, 3)] * 30)
    boxes = random_boxes(30, height, width)
    flips = np.arange(30) % 2 == 0
    stacked = torch.from_numpy(np.stack(pictures.images)).permute(0, 3, 1, 2)
    ours = cut(pictures, boxes, size, flips)
    theirs = kernel_torch.crop_resize(stacked, boxes, flips, size).numpy()
    assert np.abs(ours - theirs).max() <= 2 / 255
    assert np.abs(ours - kernel_torch.crop_resize(stacked, boxes, ~flips, size).numpy()).max() > 10 / 255


def test_a_crop_never_reads_beyond_its_box(packed: Callable[..., Any]) -> None:
    """Pixels outside of the box's pixels have no influence: that is what a crop means."""
    pictures = packed([(24, 24, 3)])
    before = cut(pictures, [[4, 6, 9, 11]], 6)
    loud = pictures.images[0].copy()
    loud[:4], loud[13:], loud[:, :6], loud[:, 17:] = 255, 255, 255, 255
    pictures.pixels = loud.reshape(-1)
    np.testing.assert_array_equal(cut(pictures, [[4, 6, 9, 11]], 6), before)


def test_pictures_of_any_shape(packed: Callable[..., Any]) -> None:
    pictures = packed([(1, 400, 3), (1500, 2, 3), (1, 1, 3), (2, 2, 3)])
    boxes = np.array([[0, 100.3, 1, 1.3], [700, 0, 2, 2], [0, 0, 1, 1], [0.6, 0.7, 0.2, 0.1]])
    got = cut(pictures, boxes, 8)
    assert np.isfinite(got).all() and got.min() >= 0 and got.max() <= 1 + 1e-6
    np.testing.assert_allclose(got[2], np.broadcast_to(pictures.images[2].reshape(3, 1, 1) / 255, (3, 8, 8)), atol=1e-6)
    whole = cut(pictures, [[0, 0, 1, 400], [0, 0, 1500, 2]], 8, index=[0, 1])
    np.testing.assert_allclose(
        whole[1].mean((1, 2)), pictures.images[1].mean((0, 1)) / 255, atol=0.03
    )  # nothing falls between the filters


def test_bits_do_not_depend_on_threads_order_or_company(packed: Callable[..., Any]) -> None:
    pictures = packed([(20 + n, 31 - n, 3) for n in range(11)])
    boxes = random_boxes(11, 20, 21)
    together = cut(pictures, boxes, 12)
    for threads in (2, 3, 64):
        np.testing.assert_array_equal(cut(pictures, boxes, 12, threads=threads), together)
    order = np.random.default_rng(0).permutation(11)
    np.testing.assert_array_equal(cut(pictures, boxes[order], 12, index=order), together[order])
    np.testing.assert_array_equal(cut(pictures, boxes[4:5], 12, index=[4])[0], together[4])


def test_no_pictures_give_no_crops(packed: Callable[..., Any]) -> None:
    assert cut(packed([(4, 4, 3)]), np.zeros((0, 4)), 8, index=np.zeros(0, np.int64)).shape == (0, 3, 8, 8)


def test_noise_is_normal_and_keyed_per_picture() -> None:
    keys = np.array([5, 9, 5], np.uint64)
    noise = kernel_cpu.gaussian_noise(keys, (3, 64, 64))
    np.testing.assert_array_equal(noise[0], noise[2])
    np.testing.assert_array_equal(noise[1], kernel_cpu.gaussian_noise(keys[1:2], (3, 64, 64))[0])
    flat = noise[:2].reshape(2, -1).astype(np.float64)
    n = flat.shape[1]
    assert abs(flat.mean(1)).max() < 5 / np.sqrt(n)
    assert abs(flat.std(1) - 1).max() < 5 / np.sqrt(2 * n)
    assert abs((flat**3).mean(1)).max() < 5 * np.sqrt(15 / n) and abs((flat**4).mean(1) - 3).max() < 5 * np.sqrt(96 / n)
    assert abs(np.corrcoef(flat)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(flat[0, :-1], flat[0, 1:])[0, 1]) < 5 / np.sqrt(n)
