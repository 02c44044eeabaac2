"""Views of a batch: replay to the bit, whatever the order, company or threads; who sees them; the one centre view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smallview.records import Batch
from smallview.views.making import ViewMaker, centre_part, centre_views
from smallview.views.view import View

BUSY = View(solarize=0.5, noise=0.1, blur_sigma=(5.0, 10.0), seen_by="target")


def maker(
    pictures: Any, views: tuple[View, ...] = (View(), BUSY), seed: int = 0, threads: int = 1, size: int = 12
) -> ViewMaker:
    c = pictures.channels
    return ViewMaker(pictures, views, size, [0.5] * c, [0.25] * c, seed, threads=threads)


def batch(*index: int, epoch: int = 0) -> Batch:
    return Batch(np.array(index, np.int64), epoch, 0)


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
