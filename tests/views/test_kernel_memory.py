"""What the CPU kernel touches: no byte beside its arrays, and no picture's leavings in another's view."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from smallview.views import kernel_cpu, sampling
from smallview.views.sampling import ViewParameters
from smallview.views.view import Background, View

BUSY = View(jitter=1.0, blur=0.5, blur_sigma=(0.0, 30.0), solarize=0.3, noise=0.1, mask_background=0.5, background="noise")
WHOLE = sampling.neutral


def rows_of(p: ViewParameters, rows: Any) -> ViewParameters:
    return replace(p, **{f.name: getattr(p, f.name)[rows] for f in fields(p) if f.name != "size"})


@contextmanager
def between_forbidden_pages(data: np.ndarray, at_the_end: bool) -> Iterator[np.ndarray]:
    """The bytes in memory of which not one before the first, or behind the last, can be read."""
    page = mmap.PAGESIZE
    pages = -(-data.nbytes // page)
    region = mmap.mmap(-1, (pages + 2) * page)
    place = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = page + (pages * page - data.nbytes if at_the_end else 0)
    inside = np.frombuffer(region, np.uint8, data.nbytes, start)
    inside[:] = data.reshape(-1)
    for edge in (place, place + (pages + 1) * page):
        assert libc.mprotect(edge, page, 0) == 0
    try:
        yield inside
    finally:
        for edge in (place, place + (pages + 1) * page):
            libc.mprotect(edge, page, 3)


def survives(work: Callable[[], None]) -> bool:
    """Whether a child process can do it without dying by a signal."""
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()  # pytest's would print the stack of a death that is wanted
            work()
            os._exit(0)
        except BaseException:
            os._exit(7)
    status = os.waitpid(child, 0)[1]
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "the work itself failed"
    return os.WIFEXITED(status)


@pytest.mark.skipif(sys.platform == "win32", reason="pages are protected by mprotect")
@pytest.mark.parametrize("background", ["noise", "blur"])
@pytest.mark.parametrize("at_the_end", [True, False])
def test_not_one_byte_beside_the_pack_is_read(
    packed: Callable[..., Any],
    kernel: Callable[..., np.ndarray],
    masks_of: Callable[..., Any],
    at_the_end: bool,
    background: Background,
) -> None:
    """Pictures of all widths around the vectors' and all channels, alone on their pages; their masks as well."""
    random = np.random.default_rng(0)
    kernel(packed([(8, 8, 3)]), WHOLE(np.array([[0.0, 0.0, 8.0, 8.0]]), np.zeros(1, bool), 8))  # compiled before the fork

    def work() -> None:
        for height, width, channels in [
            *((1, 1, c) for c in (1, 2, 3, 4)),
            *((3, width, c) for width in (2, 5, 6, 15, 16, 17, 21, 22, 33, 64, 65, 85, 100) for c in (1, 3, 4)),
            (1, 4096, 1),
            (4096, 1, 3),
        ]:
            image = random.integers(0, 256, (height, width, channels), np.uint8)
            masks = masks_of([random.random((height, width)) < 0.5])
            boxes = [
                (0, 0, height, width),
                (height - 0.3, width - 0.6, 0.3, 0.6),
                (0, 0, 0.4, 0.7),
                (0.5 * height, 0, 0.5, width),
            ]
            with between_forbidden_pages(image, at_the_end) as pixels, between_forbidden_pages(masks.bits, at_the_end) as bits:
                for box in boxes:
                    for size, flip, masked in ((4, False, False), (17, True, False), (40, False, True)):
                        p = WHOLE(np.array([box], np.float64), np.array([flip]), size)
                        p = replace(p, masked=np.array([masked]))
                        made = kernel_cpu.make_views(
                            *(
                                pixels,
                                np.zeros(1, np.int64),
                                np.array([height], np.int32),
                                np.array([width], np.int32),
                                replace(BUSY, background=background),
                                p,
                            ),
                            *(np.zeros(channels, np.float32), np.ones(channels, np.float32)),
                            foregrounds=replace(masks, bits=bits),
                            index=np.zeros(1, np.int64),
                        )
                        assert np.isfinite(made).all()

    assert survives(work)


@pytest.mark.skipif(sys.platform == "win32", reason="pages are protected by mprotect")
def test_a_byte_beside_the_pack_would_be_seen() -> None:
    data = np.arange(5, dtype=np.uint8)
    with between_forbidden_pages(data, True) as inside:
        assert inside.tolist() == data.tolist()
        assert not survives(lambda: ctypes.string_at(inside.ctypes.data + 5, 1) and None)
    with between_forbidden_pages(data, False) as inside:
        assert not survives(lambda: ctypes.string_at(inside.ctypes.data - 1, 1) and None)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [5, 16, 19])
def test_only_the_given_array_is_written(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], masks_of: Callable[..., Any], channels: int, size: int
) -> None:
    pictures = packed([(20, 30, channels), (9, 50, channels), (1, 1, channels)])
    masks = masks_of([np.eye(*shape.shape[:2]) for shape in pictures.images])
    p = sampling.draw(BUSY, 0, size, pictures.heights, pictures.widths, np.arange(3), 1, 0)
    around = np.full((5, channels, size, size), 12345.0, np.float32)
    before = [image.copy() for image in pictures.images]
    got = kernel(pictures, p, BUSY, out=around[1:4], foregrounds=masks)
    assert np.shares_memory(got, around) and (around[[0, 4]] == 12345.0).all()
    np.testing.assert_array_equal(got, kernel(pictures, p, BUSY, foregrounds=masks))
    for image, old in zip(pictures.images, before, strict=True):
        np.testing.assert_array_equal(image, old)


@pytest.mark.parametrize("background", ["gray", "noise", "random_gray", "blur"])
@pytest.mark.parametrize("size", [5, 16, 30])
def test_no_picture_leaves_anything_for_the_next(
    packed: Callable[..., Any],
    kernel: Callable[..., np.ndarray],
    masks_of: Callable[..., Any],
    size: int,
    background: Background,
) -> None:
    """Large and small boxes, strong blur and none, masked and whole, one after the other and in reverse: as each one alone."""
    view = replace(BUSY, background=background)
    shapes = [(60, 90, 3), (1, 1, 3), (90, 8, 3), (4, 4, 3), (60, 90, 3), (2, 80, 3), (33, 31, 3), (5, 7, 3)]
    pictures = packed(shapes)
    random = np.random.default_rng(1)
    masks = masks_of([random.random(shape[:2]) < 0.5 for shape in shapes])
    p = sampling.draw(replace(view, scale=(0.01, 1.0)), 0, size, pictures.heights, pictures.widths, np.arange(8), 1, 0)
    p = replace(p, blur_sigma=np.array([9.0, 0.3, 0.0, 2.0, 0.0, 5.0, 0.6, 0.0]), masked=np.arange(8) % 3 != 1)
    together = kernel(pictures, p, view, foregrounds=masks)
    backwards = kernel(pictures, rows_of(p, slice(None, None, -1)), view, np.arange(8)[::-1], foregrounds=masks)
    np.testing.assert_array_equal(backwards[::-1], together)
    for n in range(8):
        np.testing.assert_array_equal(kernel(pictures, rows_of(p, [n]), view, [n], foregrounds=masks)[0], together[n])
    twice = kernel(pictures, rows_of(p, [4, 4, 1]), view, [4, 4, 1], foregrounds=masks)
    np.testing.assert_array_equal(twice, together[[4, 4, 1]])


@pytest.mark.parametrize("channels", [2, 3])
def test_bits_do_not_depend_on_the_threads(
    packed: Callable[..., Any], kernel: Callable[..., np.ndarray], masks_of: Callable[..., Any], channels: int
) -> None:
    pictures = packed([(20 + n, 31 - n, channels) for n in range(11)])
    masks = masks_of([np.eye(*image.shape[:2]) for image in pictures.images])
    p = sampling.draw(BUSY, 0, 12, pictures.heights, pictures.widths, np.arange(11), 1, 0)
    one = kernel(pictures, p, BUSY, foregrounds=masks)
    for threads in (2, 3, 64):
        np.testing.assert_array_equal(kernel(pictures, p, BUSY, threads=threads, foregrounds=masks), one)


def test_pictures_of_a_pack_that_cannot_be_written(packed: Callable[..., Any], kernel: Callable[..., np.ndarray]) -> None:
    pictures = packed([(9, 12, 3)] * 4)
    p = sampling.draw(BUSY, 0, 8, pictures.heights, pictures.widths, np.arange(4), 1, 0)
    wanted = kernel(pictures, p, BUSY)
    pictures._pixels.flags.writeable = False
    np.testing.assert_array_equal(kernel(pictures, p, BUSY), wanted)


def test_no_pictures_give_no_views(packed: Callable[..., Any], kernel: Callable[..., np.ndarray]) -> None:
    none = sampling.draw(BUSY, 0, 8, [], [], [], 0, 0)
    assert kernel(packed([(4, 4, 3)]), none, BUSY, []).shape == (0, 3, 8, 8)
