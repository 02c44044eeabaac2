"""Views of a batch: replay to the bit, whatever the order, company or threads; who sees them; the one centre view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smallview.errors import UsageError
from smallview.records import Batch
from smallview.schedules import Ramp
from smallview.views.making import ViewMaker, centre_part, centre_views
from smallview.views.view import View

BUSY = View(solarize=0.5, noise=0.1, blur_sigma=(5.0, 10.0), seen_by="target")


def maker(
    pictures: Any, views: tuple[View, ...] = (View(), BUSY), seed: int = 0, threads: int = 1, size: int = 12
) -> ViewMaker:
    c = pictures.channels
    return ViewMaker(pictures, views, size, [0.5] * c, [0.25] * c, seed, threads=threads)


def batch(*index: int, epoch: int = 0, progress: float = 0.0) -> Batch:
    return Batch(np.array(index, np.int64), epoch, 0, progress)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_views_of_any_channels_replay_to_the_bit(packed: Callable[..., Any], channels: int) -> None:
    pictures = packed([(16 + n, 20 - n, channels) for n in range(6)])
    make = maker(pictures, (View(), BUSY, View(size=6, seen_by="online")))
    asked = batch(3, 0, 5, 1)
    first = make(asked)
    assert [tuple(view.images.shape) for view in first] == [(4, channels, 12, 12)] * 2 + [(4, channels, 6, 6)]
    assert [view.seen_by for view in first] == ["both", "target", "online"]
    assert all(view.images.dtype == torch.float32 and bool(torch.isfinite(view.images).all()) for view in first)
    again = make.make(asked.index, make.draw(asked))
    other_threads = maker(pictures, make.views, threads=3)(asked)
    for a, b, c in zip(first, again, other_threads, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.images, c.images)


def test_a_view_does_not_depend_on_order_and_company(packed: Callable[..., Any]) -> None:
    make = maker(packed([(16, 16, 3)] * 9))
    whole = make(batch(*range(9)))
    some = make(batch(7, 2))
    for a, b in zip(whole, some, strict=True):
        torch.testing.assert_close(b.images, a.images[[7, 2]], atol=2e-6, rtol=0)


@pytest.mark.parametrize("change", ["seed", "epoch", "view"])
def test_views_change_with_their_keys(packed: Callable[..., Any], change: str) -> None:
    pictures = packed([(16, 16, 3)] * 4)
    same = maker(pictures, (View(), View()))
    one = same(batch(0, 1, 2, 3))
    other = {
        "seed": lambda: maker(pictures, (View(), View()), seed=1)(batch(0, 1, 2, 3))[0],
        "epoch": lambda: same(batch(0, 1, 2, 3, epoch=1))[0],
        "view": lambda: one[1],
    }[change]()
    assert all(float((a - b).abs().max()) > 0.1 for a, b in zip(one[0].images, other.images, strict=True))


def test_centre_views_are_the_whole_of_small_equal_pictures(packed: Callable[..., Any]) -> None:
    pictures = packed([(8, 8, 3)] * 5)
    views = torch.cat(list(centre_views(pictures, 8, [0.0] * 3, [1.0] * 3, batch_size=2)))
    wanted = torch.from_numpy(np.stack(pictures.images)).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(views, wanted, atol=1e-6, rtol=0)
    some = torch.cat(list(centre_views(pictures, 8, [0.0] * 3, [1.0] * 3, which=np.array([4, 1]))))
    assert torch.equal(some, views[[4, 1]])
    normal = torch.cat(list(centre_views(pictures, 8, [0.5, 0.4, 0.3], [0.1, 0.2, 0.5])))
    torch.testing.assert_close(
        normal, (wanted - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.5])[:, None, None]
    )


def test_centre_part(packed: Callable[..., Any]) -> None:
    assert centre_part(packed([(32, 32, 3)] * 2), 32) == 1.0
    assert centre_part(packed([(36, 36, 3)] * 2), 32) == 1.0
    assert centre_part(packed([(40, 40, 3)] * 2), 32) == 0.875
    assert centre_part(packed([(32, 40, 3)] * 2), 32) == 0.875
    assert centre_part(packed([(32, 32, 3), (31, 32, 3)]), 32) == 0.875


def test_numbers_of_any_kind_make_float32_views(packed: Callable[..., Any]) -> None:
    pictures = packed([(8, 8, 1)] * 2)
    make = ViewMaker(pictures, (View(), View()), 8, np.array([0.5]), np.array([0.25]), 0)
    assert make(batch(0, 1))[0].images.dtype == torch.float32


def test_sizes_follow_the_progress(packed: Callable[..., Any]) -> None:
    growing = View(size=Ramp(0.5, 1.0, until=0.6))
    make = maker(packed([(30, 40, 3)] * 3), (growing, View(), View(size=0.5), View(size=Ramp(6.0, 10.0))), size=16)
    for progress, sides in ((0.0, (8, 16, 8, 6)), (0.3, (12, 16, 8, 8)), (0.6, (16, 16, 8, 8)), (1.0, (16, 16, 8, 10))):
        asked = batch(0, 2, progress=progress)
        assert tuple(view.images.shape for view in make(asked)) == tuple((2, 3, side, side) for side in sides)
        drawn = make.draw(asked)
        assert tuple(p.size for p in drawn) == sides
        for one, other in zip(drawn, make.draw(batch(0, 2)), strict=True):
            np.testing.assert_array_equal(one.box, other.box)


def test_a_growing_view_at_full_size_is_the_plain_view(packed: Callable[..., Any]) -> None:
    pictures = packed([(30, 40, 3)] * 3)
    growing, plain = (maker(pictures, (View(size=size),))(batch(0, 1, 2, progress=0.7)) for size in (Ramp(0.5, 1.0, 0.6), None))
    assert torch.equal(growing[0].images, plain[0].images)


def gray(pictures: Any, keep: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The pictures with gray where `keep` is false."""
    return type(pictures)([np.where(keep(image)[..., None], image, 128).astype(np.uint8) for image in pictures.images])


def left_half(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(image.shape[1]) < image.shape[1] // 2, image.shape[:2])


@pytest.mark.parametrize("shapes", [[(16, 20, 3)] * 8, [(16 + n, 20 - n, 1) for n in range(8)]])
@pytest.mark.parametrize("resident", [False, True])
def test_masked_views_are_those_of_the_masked_pictures(
    packed: Callable[..., Any], shapes: list[tuple[int, int, int]], resident: bool
) -> None:
    """Whatever the crop and the flip, a masked view is the view of the picture that was masked before."""
    pictures = packed(shapes)
    masked = gray(pictures, left_half)
    c = pictures.channels
    views = (View(mask_background=0.5), View(), View(mask_background=1.0))
    plain = tuple(View() for _ in views)

    def make(source: Any, views: tuple[View, ...], masked: Any = None) -> ViewMaker:
        made = ViewMaker(source, views, 12, [0.5] * c, [0.25] * c, 0, masked=masked)
        if resident and pictures.one_size is not None:  # as on a GPU
            made.resident = made._keep(source)
            made.resident_masked = None if masked is None else made._keep(masked)
        return made

    mixed = make(pictures, views, masked)
    asked = batch(3, 0, 5, 1, 7, 2)
    drawn = mixed.draw(asked)
    got, unmasked, all_masked = mixed(asked), make(pictures, plain)(asked), make(masked, plain)(asked)
    for v, parameters in enumerate(drawn):
        for row, is_masked in enumerate(parameters.masked):
            wanted = (all_masked if is_masked else unmasked)[v].images[row]
            torch.testing.assert_close(got[v].images[row], wanted, atol=2e-6, rtol=0)
    assert 0 < drawn[0].masked.sum() < 6 and not drawn[1].masked.any() and drawn[2].masked.all()
    assert float((all_masked[0].images - unmasked[0].images).abs().max()) > 0.1
    for a, b in zip(got, mixed.make(asked.index, drawn), strict=True):
        assert torch.equal(a.images, b.images)


def test_flip_and_crop_take_the_mask_along(packed: Callable[..., Any]) -> None:
    """The whole picture, flipped: the gray half changes its side, to the pixel."""
    pictures = packed([(8, 8, 1)] * 4)
    pictures = type(pictures)([np.where(image == 128, 129, image).astype(np.uint8) for image in pictures.images])
    masked = gray(pictures, left_half)
    for flip in (0.0, 1.0):
        view = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=flip, jitter=0.0, blur=0.0, grayscale=0.0, mask_background=1.0)
        made = ViewMaker(pictures, (view,), 8, [0.0], [1.0], 0, masked=masked)(batch(0, 1, 2, 3))[0].images
        levels = (255 * made).round().numpy()[:, 0]
        levels = levels[:, :, ::-1] if flip else levels
        assert (levels[:, :, 4:] == 128).all()
        np.testing.assert_array_equal(levels[:, :, :4], np.stack([image[:, :4, 0] for image in pictures.images]))
    top_left = ViewMaker(pictures, (view,), 4, [0.0], [1.0], 0, masked=masked)
    everyone = np.ones(4, bool)
    crop = top_left.crop(np.arange(4), np.tile([2.0, 2.0, 4.0, 4.0], (4, 1)), ~everyone, 4, everyone)
    wanted = np.stack([image[2:6, 2:6, 0] for image in masked.images])
    np.testing.assert_array_equal((255 * crop).round().numpy()[:, 0], wanted)


def test_without_masked_views_a_masked_copy_changes_no_bit(packed: Callable[..., Any]) -> None:
    pictures = packed([(16, 20, 3)] * 5)
    asked = batch(0, 1, 2, 3, 4)
    args = (pictures, (View(), BUSY), 12, [0.5] * 3, [0.25] * 3, 0)
    for a, b in zip(ViewMaker(*args)(asked), ViewMaker(*args, masked=gray(pictures, left_half))(asked), strict=True):
        assert torch.equal(a.images, b.images)


def test_masked_views_need_a_copy_of_the_same_geometry(packed: Callable[..., Any]) -> None:
    pictures = packed([(16, 20, 3)] * 5)
    views = (View(), View(mask_background=0.1))
    with pytest.raises(UsageError, match=r"view 1 masks the background .* 0\.1.*masks=.*method\.views\.1\.mask_background=0"):
        maker(pictures, views)
    for other in (packed([(16, 20, 3)] * 4), packed([(16, 21, 3)] * 5), packed([(16, 20, 1)] * 5)):
        with pytest.raises(UsageError, match="wanted a copy of the same pictures"):
            ViewMaker(pictures, views, 12, [0.5] * 3, [0.25] * 3, 0, masked=other)
