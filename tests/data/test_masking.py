"""Foregrounds found once for a whole pack: batches of one size, the area guard, arrays of masks, and what is kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallview.data.mask_files import kept_foregrounds
from smallview.data.masking import find_foregrounds, masks_of_array
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import SmallviewError, UsageError
from smallview.records import Foregrounds

Fronts = Callable[[Foregrounds, Any], list[np.ndarray | None]]


def pack_of(data: Any, short_side: int | None = None) -> Pack:
    return open_pack(open_source(data), short_side=short_side)


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(129, 255, (n, 16, 16, 3), dtype=np.uint8)


def odd_pictures(channels: int = 3) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    shapes = [(9, 14), (8, 13), (9, 14), (5, 3), (8, 13), (9, 14), (13, 8)]
    return [draw.integers(0, 256, (*shape, channels), np.uint8) for shape in shapes]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_picture_keeps_its_own_foreground(fronts: Fronts, threads: int) -> None:
    data = odd_pictures()
    pack = pack_of(data)
    seen: list[tuple[int, ...]] = []

    def dark(batch: np.ndarray, index: np.ndarray) -> np.ndarray:
        seen.append(batch.shape)
        assert all((batch[k] == data[i]).all() for k, i in enumerate(index))
        return batch.mean(3) < 128

    found, share = find_foregrounds(pack, dark, threads=threads)
    assert share == 1.0 and sorted(seen) == [(1, 5, 3, 3), (1, 13, 8, 3), (2, 8, 13, 3), (3, 9, 14, 3)]
    for image, front in zip(data, fronts(found, pack), strict=True):
        np.testing.assert_array_equal(front, image.mean(2) < 128)
    again, _ = find_foregrounds(pack, dark)
    assert again.hash == found.hash and (again.bits == found.bits).all()
    assert find_foregrounds(pack, lambda batch, index: ~dark(batch, index))[0].hash != found.hash


def test_pictures_that_are_packed_as_files_are_decoded_for_their_masks(fronts: Fronts, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(5):
        flat = np.zeros((40, 50 + i % 2, 3), np.uint8)
        flat[10:30, 10 + i : 30] = draw.integers(150, 255, 3)
        Image.fromarray(flat).save(tmp_path / f"{i}.png")
    packs = [open_pack(open_source(tmp_path), short_side=40, kind=kind) for kind in ("raw", "jpeg")]
    assert packs[1].kind == "jpeg"
    bright = [find_foregrounds(pack, lambda batch, index: batch.mean(3) > 60, threads=2)[0] for pack in packs]
    for a, b in zip(fronts(bright[0], packs[0]), fronts(bright[1], packs[1]), strict=True):
        assert a is not None and b is not None and (a == b).mean() > 0.99
        assert a[12:28, 16:28].all() and not a[:9].any()


def test_many_pictures_come_in_small_batches(fronts: Fronts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallview.data.masking._WINDOW", 50)
    data = np.random.default_rng(0).integers(0, 256, (120, 4, 5, 1), np.uint8)
    pack, done = pack_of(data), []
    sizes: list[int] = []

    def estimate(batch: np.ndarray, index: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return batch[..., 0] > 60

    found, _ = find_foregrounds(pack, estimate, progress=lambda n, of: done.append((n, of)))
    # a slow estimator is heard of after every batch
    assert sizes == [32, 18, 32, 18, 20] and done == [(k, 120) for k in (32, 50, 82, 100, 120)]
    for image, front, usable in zip(data, fronts(found, pack), found.usable, strict=True):
        share = (image > 60).mean()
        assert usable == (share <= 0.95)
        if front is not None:
            np.testing.assert_array_equal(front, image[..., 0] > 60)


def test_masks_that_found_nothing_or_everything_leave_the_picture(fronts: Fronts) -> None:
    pack = pack_of(pictures(5))
    counts = np.array([2, 3, 243, 244, 256])  # of 256: under 1 %, over 1 %, under 95 %, over 95 %, all

    def estimate(batch: np.ndarray, index: np.ndarray) -> np.ndarray:
        return (np.arange(256) < counts[index, None]).reshape(-1, 16, 16)

    found, share = find_foregrounds(pack, estimate)
    assert share == 0.4 and found.usable.tolist() == [False, True, True, False, False]
    assert [None if front is None else front.sum() for front in fronts(found, pack)] == [None, 3, 243, None, None]
    assert find_foregrounds(pack, estimate, area=(0.0, 1.0))[1] == 1.0
    assert find_foregrounds(pack, estimate, area=(2 / 256, 243 / 256))[0].usable.tolist() == [True, True, True, False, False]


def test_an_array_of_masks_is_shrunk_as_the_pictures_are(fronts: Fronts) -> None:
    data = np.random.default_rng(0).integers(129, 255, (3, 40, 60, 3), np.uint8)
    pack = pack_of(data, short_side=10)
    assert pack.one_size == (10, 15)
    masks = np.zeros((3, 40, 60))
    masks[:, 8:32, 20:] = 1.0
    for front in fronts(find_foregrounds(pack, masks_of_array(masks, 3))[0], pack):
        assert front is not None and not front[:2].any() and not front[8:].any() and not front[:, :5].any()
        assert front[2:8, 5:].all()
    with pytest.raises(
        UsageError, match=r"mask of picture 0: \[40, 40\]; wanted \[10, 15\], or another size of the same shape"
    ):
        find_foregrounds(pack, masks_of_array(np.zeros((3, 40, 40)), 3))


def test_nothing_is_kept_of_masks_that_could_not_be_found(cache: Path) -> None:
    def broken(out: Any) -> Foregrounds:
        out.write(b"some")
        raise UsageError("no")

    with pytest.raises(UsageError):
        kept_foregrounds("key", broken)
    assert list((cache / "foregrounds").iterdir()) == []
    nothing = kept_foregrounds(
        "key", lambda out: find_foregrounds(pack_of(pictures(3)), lambda b, i: b[..., 0] < 0, out=out)[0]
    )
    assert not nothing.usable.any() and len(nothing.bits) == 0


def found_in(out: Any, data: np.ndarray) -> Foregrounds:
    return find_foregrounds(pack_of(data), lambda batch, index: batch[..., 0] > 190, out=out)[0]


def test_two_runs_that_find_the_same_at_once_never_take_it_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    data, replace = pictures(6), Path.replace

    def replaced(path: Path, target: Path) -> Path:
        moved = replace(path, target)
        kept_foregrounds("key", lambda out: pytest.fail("what the other one wrote is gone"))
        return moved

    def find(out: Any) -> Foregrounds:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            kept_foregrounds("key", lambda other: found_in(other, data))
        monkeypatch.setattr(Path, "replace", replaced)
        return found_in(out, data)

    assert kept_foregrounds("key", find).hash == found_in(None, data).hash


def test_only_trouble_in_writing_is_told_as_such(cache: Path) -> None:
    resource = pytest.importorskip("resource")

    def lost(out: Any) -> Foregrounds:
        out.write(b"some")
        raise FileNotFoundError("no weights")

    with pytest.raises(FileNotFoundError, match="no weights"):
        kept_foregrounds("key", lost)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for count in (2**20, 2**13):  # which comes to the disk when written, and when the file is closed
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, limits[1]))
        try:
            with pytest.raises(
                SmallviewError, match=r"cannot write masks to .*foregrounds: File too large; set SMALLVIEW_CACHE"
            ):
                kept_foregrounds("key", lambda out, count=count: found_in(out, pictures(out.write(bytes(count)) and 2)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((cache / "foregrounds").iterdir()) == []
