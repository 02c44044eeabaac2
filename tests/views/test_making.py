"""Views of a batch: replay to the bit, whatever the order, company, threads or buffers; one decode; the one centre view."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smallview.records import Batch, ViewBatch
from smallview.schedules import Ramp, Steps
from smallview.views.making import ViewMaker, centre_part, centre_views
from smallview.views.sampling import ViewParameters
from smallview.views.view import View

BUSY = View(solarize=0.5, noise=0.1, blur_sigma=(5.0, 10.0), seen_by="target")
KINDS = [("fast", "kernel"), ("fast", "torch"), ("parity", "kernel"), ("parity", "torch")]
every_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)


def maker(
    pictures: Any,
    views: tuple[View, ...] = (View(), BUSY),
    seed: int = 0,
    threads: int = 1,
    size: int = 12,
    kind: Any = KINDS[0],
) -> ViewMaker:
    c, (mode, executor) = pictures.channels, kind
    return ViewMaker(pictures, views, size, [0.5] * c, [0.25] * c, seed, threads=threads, mode=mode, executor=executor)


def batch(*index: int, epoch: int = 0, progress: float = 0.0) -> Batch:
    return Batch(np.array(index, np.int64), epoch, 0, progress)


def equal(a: tuple[ViewBatch, ...], b: tuple[ViewBatch, ...]) -> bool:
    return all(torch.equal(x.images, y.images) and x.seen_by == y.seen_by for x, y in zip(a, b, strict=True))


def through_json(p: ViewParameters, folder: Path) -> ViewParameters:
    text = json.dumps({f.name: np.asarray(getattr(p, f.name)).tolist() for f in fields(p)})
    kept = json.loads(text)
    return ViewParameters(**{n: v if n == "size" else np.array(v, getattr(p, n).dtype) for n, v in kept.items()})


def through_npz(p: ViewParameters, folder: Path) -> ViewParameters:
    np.savez(folder / "drawn.npz", **asdict(p))
    with np.load(folder / "drawn.npz", allow_pickle=False) as kept:
        return ViewParameters(**{n: int(kept[n]) if n == "size" else kept[n] for n in kept.files})


@every_kind
@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_views_of_any_channels_replay_to_the_bit(
    packed: Callable[..., Any], tmp_path: Path, channels: int, kind: tuple[str, str]
) -> None:
    pictures = packed([(16 + n, 20 - n, channels) for n in range(6)])
    make = maker(pictures, (View(), BUSY, View(size=6, seen_by="online")), kind=kind)
    asked = batch(3, 0, 5, 1)
    first = make(asked)
    assert [tuple(view.images.shape) for view in first] == [(4, channels, 12, 12)] * 2 + [(4, channels, 6, 6)]
    assert [view.seen_by for view in first] == ["both", "target", "online"]
    assert all(view.images.dtype == torch.float32 and bool(torch.isfinite(view.images).all()) for view in first)
    drawn = make.draw(asked)
    for again in (drawn, [through_json(p, tmp_path) for p in drawn], [through_npz(p, tmp_path) for p in drawn]):
        assert equal(first, make.make(asked.index, again))
    assert equal(first, maker(pictures, make.views, threads=3, kind=kind)(asked))
    assert not equal(first, make.make(asked.index, [drawn[1], drawn[0], drawn[2]]))


@every_kind
def test_a_view_does_not_depend_on_order_and_company(packed: Callable[..., Any], kind: tuple[str, str]) -> None:
    """To the bit where the kernel cuts; products of other batches round otherwise on a device."""
    make = maker(packed([(16, 16, 3)] * 9), kind=kind)
    whole = make(batch(*range(9)))
    for index in ((7, 2), (4,), tuple(range(8, -1, -1))):
        for a, b in zip(whole, make(batch(*index)), strict=True):
            atol = 0 if kind == ("fast", "kernel") else 5e-6
            torch.testing.assert_close(b.images, a.images[list(index)], atol=atol, rtol=0)


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


@every_kind
@pytest.mark.parametrize("views", [1, 2, 8])
def test_any_number_of_views_costs_one_decode(packed: Callable[..., Any], views: int, kind: tuple[str, str]) -> None:
    pictures = packed([(16 + n, 16, 3) for n in range(9)])
    make = maker(pictures, tuple(View(size=4 + n) for n in range(views)), kind=kind)
    for index in ((3, 1, 7), (0, 0), (8,)):
        made = make(batch(*index))
        assert len(made) == views and all(len(view.images) == len(index) for view in made)
    assert pictures.gathered == [3, 2, 1]


@every_kind
def test_no_pictures_give_no_views(packed: Callable[..., Any], kind: tuple[str, str]) -> None:
    made = maker(packed([(9, 8, 3), (8, 8, 3)]), kind=kind)(batch())
    assert [tuple(view.images.shape) for view in made] == [(0, 3, 12, 12)] * 2


def test_pictures_that_stay_on_the_device_are_decoded_once(packed: Callable[..., Any]) -> None:
    pictures = packed([(16, 16, 3)] * 9)
    args = (pictures, (View(), BUSY), 12, [0.5] * 3, [0.25] * 3, 0)
    kept = ViewMaker(*args, executor="torch", keep=True)
    assert pictures.gathered == [9]
    sent = ViewMaker(*args, executor="torch", keep=False)
    assert pictures.gathered == [9]
    assert equal(kept(batch(5, 2)), sent(batch(5, 2)))
    assert pictures.gathered == [9, 2]


def test_buffers_hold_the_same_bits_until_their_next_use(packed: Callable[..., Any]) -> None:
    make = maker(packed([(16, 20, 3)] * 9))
    batches = [batch(n, n + 1, n + 2) for n in range(6)]
    fresh = [make(asked) for asked in batches]
    made = []
    for n, asked in enumerate(batches):
        made.append(make(asked, slot=n % 3))
        for back in range(min(n + 1, 3)):
            assert equal(made[n - back], fresh[n - back])
        if n >= 3:
            assert made[n][0].images.data_ptr() == made[n - 3][0].images.data_ptr()
            assert not equal(made[n - 3], fresh[n - 3])
    assert len({view.images.data_ptr() for views in made for view in views}) == 6  # three slots of two views
    assert all(equal(make(asked), wanted) for asked, wanted in zip(batches, fresh, strict=True))
    ring = make.into_slots(2)
    a, b = ring(batches[0]), ring(batches[1])
    assert equal(a, fresh[0]) and equal(b, fresh[1])
    assert equal(ring(batches[2]), fresh[2]) and equal(b, fresh[1]) and not equal(a, fresh[0])


def test_buffers_follow_the_size_and_the_batch(packed: Callable[..., Any]) -> None:
    pictures = packed([(16, 20, 3)] * 9)
    views = (View(size=Steps((0.5, 1.0), (0.5,))), View())
    make = maker(pictures, views)
    for asked in (batch(0, 1, 2), batch(3, 4, 5, progress=0.6), batch(6), batch(7, 8, 1, progress=0.6), batch(1, 2, 3)):
        assert equal(make(asked, slot=0), maker(pictures, views)(asked))
    held = [view.images.nbytes for slot in range(3) for view in make(batch(0, 1, progress=1.0), slot)]
    assert make.memory(2, 3) == sum(held)


def test_crops_are_pixels_and_nothing_else(packed: Callable[..., Any]) -> None:
    pictures = packed([(9, 12, 3)] * 3)
    for kind in KINDS:
        got = maker(pictures, kind=kind).crop(
            np.array([2, 0]), np.array([[1.0, 2.0, 4.0, 4.0]] * 2), np.array([False, True]), 4
        )
        wanted = np.stack([pictures.images[2][1:5, 2:6], pictures.images[0][1:5, 2:6][:, ::-1]]).transpose(0, 3, 1, 2) / 255
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-6)


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


def test_centre_views_of_large_pictures_are_the_middle(packed: Callable[..., Any]) -> None:
    pictures = packed([(32, 48, 3)])
    (views,) = centre_views(pictures, 28, [0.0] * 3, [1.0] * 3)
    wanted = torch.from_numpy(pictures.images[0][2:30, 10:38]).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(views, wanted, atol=1e-6, rtol=0)


def test_centre_part(packed: Callable[..., Any]) -> None:
    assert centre_part(packed([(32, 32, 3)] * 2), 32) == 1.0
    assert centre_part(packed([(36, 36, 3)] * 2), 32) == 1.0
    assert centre_part(packed([(40, 40, 3)] * 2), 32) == 0.875
    assert centre_part(packed([(32, 40, 3)] * 2), 32) == 0.875
    assert centre_part(packed([(32, 32, 3), (31, 32, 3)]), 32) == 0.875


def test_numbers_of_any_kind_make_float32_views(packed: Callable[..., Any]) -> None:
    pictures = packed([(8, 8, 1)] * 2)
    for moments in ((np.array([0.5]), np.array([0.25])), ((0.5,), (0.25,)), ([torch.tensor(0.5)], [torch.tensor(0.25)])):
        make = ViewMaker(pictures, (View(), View()), 8, *moments, 0)
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
    assert equal(growing, plain)
