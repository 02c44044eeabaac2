"""Views without background: what is filled, with what, how often, and that crop and flip take the mask along."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from smallview.errors import UsageError
from smallview.output.sheet import plain
from smallview.records import Batch, Foregrounds
from smallview.views import sampling
from smallview.views.blurred import blur_pictures, blur_window
from smallview.views.making import ViewMaker
from smallview.views.sampling import Mode, ViewParameters
from smallview.views.view import Background, View

KINDS: tuple[Background, ...] = get_args(Background)
OWN = (124, 0, 255)
FIXED = {"gray": [128] * 3, "mean": [51, 102, 204]}
MEAN = [0.2, 0.4, 0.8]
# the whole picture and nothing else
STILL = View(scale=(1.0, 1.0), ratio=(0.05, 20.0), flip=0.0, jitter=0.0, blur=0.0, grayscale=0.0, mask_background=1.0)
Executor = Literal["kernel", "torch"]
either = pytest.mark.parametrize("executor", ["kernel", "torch"])


def levels(
    pictures: Any, view: View, masks: Foregrounds, drawn: Any = None, executor: Executor = "kernel", mode: Mode = "fast"
) -> np.ndarray:
    """The bytes [B, C, S, S] of the view of whole 8 x 8 pictures."""
    maker = ViewMaker(pictures, (view,), 8, MEAN, [1.0] * 3, 0, foregrounds=masks, executor=executor, mode=mode)
    index = np.arange(len(pictures))
    drawn = maker.draw(Batch(index, 0, 0)) if drawn is None else drawn
    made = maker.make(index, drawn)[0].images + torch.tensor(MEAN)[:, None, None]
    rounded = (255 * made).round()
    assert float((255 * made - rounded).abs().max()) < 1e-3  # nothing was mixed
    return rounded.numpy().astype(int)


def blurred_slowly(image: np.ndarray) -> np.ndarray:
    """A picture [H, W, C] whose background is blur, as docs/saliency.md has it: means of 8 x 8 cells, linear between their middles."""
    (h, w, channels), grid = image.shape, [min(8, side) for side in image.shape[:2]]
    cells = np.zeros((*grid, channels), np.int64)
    for i in range(grid[0]):
        for j in range(grid[1]):
            part = image[i * h // grid[0] : (i + 1) * h // grid[0], j * w // grid[1] : (j + 1) * w // grid[1]]
            for c in range(channels):
                cells[i, j, c] = math.floor(Fraction(int(part[:, :, c].sum()), part[:, :, c].size) + Fraction(1, 2))
    weights = []
    for side, count in zip((h, w), grid, strict=True):
        table = np.zeros((side, count), np.int64)
        for x in range(side):
            at = min(max(Fraction(2 * x + 1, 2) * count / side - Fraction(1, 2), Fraction(0)), Fraction(count - 1))
            second = math.floor(256 * (at - math.floor(at)) + Fraction(1, 2))
            table[x, math.floor(at)] += 256 - second
            table[x, min(math.floor(at) + 1, count - 1)] += second
        weights.append(table)
    mixed = np.einsum("yi,ijc,xj->yxc", weights[0], cells, weights[1])
    return ((mixed + 2**15) // 2**16).astype(np.uint8)


def whole(n: int, **more: Any) -> list[Any]:
    plain = sampling.neutral(np.tile([0.0, 0.0, 8.0, 8.0], (n, 1)), np.zeros(n, bool), 8)
    keys = np.arange(100, 100 + n, dtype=np.uint64)
    return [replace(plain, masked=np.ones(n, bool), background=np.linspace(0, 0.99, n), noise_key=keys, **more)]


@either
@pytest.mark.parametrize("mode", ["fast", "parity"])
@pytest.mark.parametrize("kind", [*KINDS, OWN])
def test_fills_are_exact_and_kept_pixels_untouched(
    packed: Callable[..., Any], masks_of: Callable[..., Any], executor: Executor, mode: Mode, kind: Background | tuple[int, ...]
) -> None:
    pictures, random = packed([(8, 8, 3)] * 6), np.random.default_rng(3)
    masks = [random.random((8, 8)) < part for part in (0.1, 0.3, 0.5, 0.7, 0.9, 0.5)]
    drawn = whole(6)
    got = levels(pictures, replace(STILL, background=kind), masks_of(masks), drawn, executor, mode)
    for n, (image, mask) in enumerate(zip(pictures.images, masks, strict=True)):
        np.testing.assert_array_equal(got[n][:, mask], image.transpose(2, 0, 1)[:, mask])
        filled = got[n][:, ~mask]
        if kind == "noise":
            assert len(np.unique(filled)) > filled.size // 2  # each channel of each pixel for itself
            assert filled.min() >= 0 and filled.max() <= 255
        elif kind == "blur":
            np.testing.assert_array_equal(filled, blurred_slowly(image).transpose(2, 0, 1)[:, ~mask])
        else:
            wanted = kind if isinstance(kind, tuple) else FIXED.get(kind) or [int(256 * drawn[0].background[n])] * 3
            np.testing.assert_array_equal(filled, np.broadcast_to(np.array(wanted)[:, None], filled.shape))


@either
def test_noise_is_uniform_and_belongs_to_the_picture(
    packed: Callable[..., Any], masks_of: Callable[..., Any], executor: Executor
) -> None:
    n = 120
    pictures, masks = packed([(8, 8, 3)] * n), masks_of([np.zeros((8, 8))] * n)
    view, drawn = replace(STILL, background="noise"), whole(n)
    got = levels(pictures, view, masks, drawn, executor)
    counts = np.bincount(got.reshape(-1), minlength=256)
    expected = got.size / 256
    assert ((counts - expected) ** 2).sum() / expected < 330  # chi-square of 255 degrees: 330 once in a thousand times
    assert abs(np.corrcoef(got.reshape(n, -1)) - np.eye(n)).max() < 5.5 / math.sqrt(192)
    backwards = [replace(drawn[0], noise_key=drawn[0].noise_key[::-1])]
    np.testing.assert_array_equal(levels(pictures, view, masks, backwards, executor)[::-1], got)
    noise_of_pixels = [replace(drawn[0], masked=np.zeros(n, bool))]
    assert (levels(pictures, replace(view, noise=0.0), masks, noise_of_pixels, executor) != got).mean() > 0.9


@either
@pytest.mark.parametrize("flip", [False, True])
def test_masks_follow_crop_and_flip(
    packed: Callable[..., Any], masks_of: Callable[..., Any], executor: Executor, flip: bool
) -> None:
    """A mask without any symmetry; a box of 4 x 4 pixels in a corner, and the whole."""
    pictures = packed([(9, 13, 3)])
    mask = np.random.default_rng(5).random((9, 13)) < 0.5
    maker = ViewMaker(pictures, (STILL,), 4, [0.0] * 3, [1.0] * 3, 0, foregrounds=masks_of([mask]), executor=executor)
    filled = np.where(mask[..., None], pictures.images[0], 128)
    for top, left in ((0, 0), (5, 9), (2, 3)):
        p = sampling.neutral(np.array([[top, left, 4.0, 4.0]]), np.array([flip]), 4)
        got = 255 * maker.make(np.zeros(1, np.int64), [replace(p, masked=np.ones(1, bool))])[0].images[0].numpy()
        wanted = filled[top : top + 4, left : left + 4].transpose(2, 0, 1)
        np.testing.assert_allclose(got, wanted[:, :, ::-1] if flip else wanted, atol=1e-3)


@either
@pytest.mark.parametrize("background", ["gray", "blur", "own"])
@pytest.mark.parametrize("shapes", [[(16, 20, 3)] * 8, [(16 + n, 20 - n, 1) for n in range(8)]])
def test_masked_views_are_those_of_pictures_filled_before(
    packed: Callable[..., Any],
    masks_of: Callable[..., Any],
    shapes: list[tuple[int, int, int]],
    executor: Executor,
    background: str,
) -> None:
    """Whatever the crop, the blur and the colours: filling comes first."""
    pictures, random = packed(shapes), np.random.default_rng(7)
    masks = [random.random(shape[:2]) < 0.6 for shape in shapes]
    c = pictures.channels
    kind: Any = OWN[:c] if background == "own" else background
    paints = [blurred_slowly(image) if kind == "blur" else np.array(FIXED.get(kind, kind)[:c]) for image in pictures.images]
    before = [
        np.where(m[..., None], image, paint).astype(np.uint8)
        for image, m, paint in zip(pictures.images, masks, paints, strict=True)
    ]
    views = (View(mask_background=0.5, noise=0.1, background=kind), View(), View(mask_background=1.0, size=30, background=kind))

    def make(images: list[np.ndarray], views: tuple[View, ...]) -> ViewMaker:
        args = (type(pictures)(images), views, 12, [0.5] * c, [0.25] * c, 0)
        return ViewMaker(*args, foregrounds=masks_of(masks), executor=executor)

    index = np.array([3, 0, 5, 1, 7, 2])
    mixed, bare = make(pictures.images, views), tuple(replace(view, mask_background=0.0) for view in views)
    drawn = mixed.draw(Batch(index, 0, 0))
    got = mixed.make(index, drawn)
    plain, filled = make(pictures.images, bare).make(index, drawn), make(before, bare).make(index, drawn)
    for v, p in enumerate(drawn):
        for row, masked in enumerate(p.masked):
            wanted = (filled if masked else plain)[v].images[row]
            torch.testing.assert_close(got[v].images[row], wanted, atol=0 if executor == "kernel" else 2e-6, rtol=0)
    assert 0 < drawn[0].masked.sum() < 6 and not drawn[1].masked.any() and drawn[2].masked.all()
    assert float((filled[0].images - plain[0].images).abs().max()) > 0.1


SHAPES = [(1, 1), (1, 10_000), (10_000, 1), (2, 3), (7, 9), (8, 8), (17, 23), (100, 301), (512, 40)]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_blurred_bytes_are_those_of_a_slow_loop(channels: int) -> None:
    random = np.random.default_rng(channels)
    images = [random.integers(0, 256, (*shape, channels), np.uint8) for shape in SHAPES]
    images += [np.full((40, 50, channels), byte, np.uint8) for byte in (0, 255)]
    for image in images:
        (h, w), wanted = image.shape[:2], blurred_slowly(image)
        flat = np.concatenate([random.integers(0, 256, 5, np.uint8), image.reshape(-1)])
        flat.flags.writeable = False
        top, left = h // 3, w // 4
        for window in ((0, h, 0, w), (top, top + 1, 0, w), (top, h, left, w - left // 2)):
            y, x = slice(*window[:2]), slice(*window[2:])
            got = np.zeros(wanted[y, x].size, np.uint8)
            blur_window(flat, 5, h, w, channels, *window, got)
            np.testing.assert_array_equal(got.reshape(wanted[y, x].shape), wanted[y, x])
    small = [image for image in images if max(image.shape) < 1000]
    padded = random.integers(0, 256, (len(small), channels, 512, 301), np.uint8)  # beside a picture lies anything
    for n, image in enumerate(small):
        padded[n, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    sides = torch.tensor([image.shape[:2] for image in small])
    together = blur_pictures(torch.from_numpy(padded), sides[:, 0], sides[:, 1]).permute(0, 2, 3, 1).numpy()
    for n, image in enumerate(small):
        np.testing.assert_array_equal(together[n, : image.shape[0], : image.shape[1]], blurred_slowly(image))
    for image in images:
        alone, (h, w) = torch.from_numpy(image).permute(2, 0, 1)[None], image.shape[:2]
        got = blur_pictures(alone, torch.tensor([h]), torch.tensor([w]))[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(got, blurred_slowly(image))


def test_blur_keeps_the_colours_and_nothing_finer() -> None:
    """Stripes vanish; halves of a picture stay two colours."""
    image = np.zeros((64, 64, 1), np.uint8)
    image[:, ::2], image[32:] = 200, 255
    got = blurred_slowly(image)
    assert (got[:4] == 100).all() and (got[-4:] == 255).all() and (np.diff(got[:, 0, 0].astype(int)) >= 0).all()
    flat, out = image.reshape(-1), np.zeros(image.size, np.uint8)
    flat.flags.writeable = False
    blur_window(flat, 0, 64, 64, 1, 0, 64, 0, 64, out)
    np.testing.assert_array_equal(out, got.reshape(-1))


@either
@pytest.mark.parametrize("background", ["blur", OWN])
def test_own_backgrounds_are_replayed_and_know_no_batch(
    packed: Callable[..., Any], masks_of: Callable[..., Any], executor: Executor, background: Any
) -> None:
    """What was kept as text gives the view again; a picture alone is as it is among others, of other sizes too."""
    pictures = packed([(16, 20, 3), (9, 31, 3), (40, 7, 3), (1, 1, 3), (1, 300, 3)])
    masks = masks_of([np.random.default_rng(n).random(image.shape[:2]) < 0.4 for n, image in enumerate(pictures.images)])
    views = (View(mask_background=1.0, background=background),)
    maker = ViewMaker(pictures, views, 12, [0.5] * 3, [0.25] * 3, 0, foregrounds=masks, executor=executor)
    index = np.arange(5)
    drawn = maker.draw(Batch(index, 3, 0))
    made = maker.make(index, drawn)[0].images
    again = [ViewParameters(**json.loads(json.dumps(plain(p)))) for p in drawn]
    assert torch.equal(maker.make(index, again)[0].images, made)
    for n in range(5):
        alone = maker.make(index[n : n + 1], [drawn[0].take(np.array([n]))])[0].images[0]
        torch.testing.assert_close(alone, made[n], atol=0 if executor == "kernel" else 4e-6, rtol=0)


@either
def test_a_colour_of_another_number_of_bytes_is_refused(
    packed: Callable[..., Any], masks_of: Callable[..., Any], executor: Executor
) -> None:
    views = (View(mask_background=1.0, background=(1, 2)),)
    masks = masks_of([np.zeros((8, 8))] * 2)
    maker = ViewMaker(packed([(8, 8, 3)] * 2), views, 8, [0.5] * 3, [1.0] * 3, 0, foregrounds=masks, executor=executor)
    with pytest.raises(UsageError, match=r"background is \(1, 2\), that is 2 bytes; wanted 3, one for each channel"):
        maker(Batch(np.arange(2), 0, 0))


@either
@pytest.mark.parametrize("case", ["never drawn", "all in front", "of no use", "no masks at all"])
def test_nothing_is_filled_without_reason(
    packed: Callable[..., Any], masks_of: Callable[..., Any], executor: Executor, case: str
) -> None:
    pictures = packed([(16, 20, 3), (9, 11, 3), (7, 30, 3)])
    busy = View(blur_sigma=(1.0, 30.0), noise=0.1)
    args = (12, [0.5] * 3, [0.25] * 3, 0)
    random = np.random.default_rng(0)
    masks = [np.ones(s.shape[:2]) if case == "all in front" else random.random(s.shape[:2]) < 0.3 for s in pictures.images]
    view = replace(busy, mask_background=0.0 if case == "never drawn" else 1.0)
    foregrounds = masks_of(masks, [case != "of no use"] * 3)
    if case == "no masks at all":
        view, foregrounds = busy, None
    made = ViewMaker(pictures, (view, view), *args, foregrounds=foregrounds, executor=executor)
    plain = ViewMaker(pictures, (busy, busy), *args, executor=executor)
    for a, b in zip(made(Batch(np.arange(3), 0, 0)), plain(Batch(np.arange(3), 0, 0)), strict=True):
        assert torch.equal(a.images, b.images)
    if case == "of no use":  # one that is: power
        made = ViewMaker(pictures, (view, view), *args, foregrounds=masks_of(masks, [False, True, False]), executor=executor)
        changed = (made(Batch(np.arange(3), 0, 0))[0].images != plain(Batch(np.arange(3), 0, 0))[0].images).flatten(1).any(1)
        assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("part", [0.1, 0.5])
def test_views_are_masked_as_often_as_asked(part: float) -> None:
    n = 10_000
    masked = sampling.draw(View(mask_background=part), 0, 8, np.full(n, 9), np.full(n, 9), np.arange(n), 0, 0).masked
    assert abs(masked.mean() - part) < 3 * math.sqrt(part * (1 - part) / n)


def test_only_views_that_ask_for_it_are_masked(packed: Callable[..., Any], masks_of: Callable[..., Any]) -> None:
    """Large views with masks beside small ones without."""
    pictures = packed([(16, 16, 3)] * 50)
    views = (View(mask_background=0.5), View(size=0.5, mask_background=0.0))
    maker = ViewMaker(pictures, views, 16, [0.5] * 3, [0.5] * 3, 0, foregrounds=masks_of([np.zeros((16, 16))] * 50))
    large, small = maker.draw(Batch(np.arange(50), 0, 0))
    assert large.masked.any() and not small.masked.any()


def test_masked_views_need_a_mask_for_each_picture(packed: Callable[..., Any], masks_of: Callable[..., Any]) -> None:
    pictures = packed([(16, 20, 3)] * 5)
    views = (View(), View(mask_background=0.1))
    args = (12, [0.5] * 3, [0.25] * 3, 0)
    with pytest.raises(UsageError, match=r"view 1 masks the background .* 0\.1.*masks=.*method\.views\.1\.mask_background=0"):
        ViewMaker(pictures, views, *args)
    with pytest.raises(UsageError, match="masks of 4 pictures for 5; wanted one for each"):
        ViewMaker(pictures, views, *args, foregrounds=masks_of([np.ones((16, 20))] * 4))
