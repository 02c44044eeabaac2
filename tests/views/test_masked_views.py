"""What views make of foregrounds: filled behind, untouched in front, cut and flipped as the picture is, as often as drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallview.data.masking import find_foregrounds, masks_in_folder, masks_of_array
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import DataError
from smallview.presets import preset
from smallview.records import Batch, Foregrounds
from smallview.views.making import ViewMaker
from smallview.views.view import View

FILL = 128
PLAIN = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
LEFT = np.broadcast_to(np.arange(16) < 8, (16, 16))


def pictures(n: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(129, 255, (n, 16, 16, channels), dtype=np.uint8)


def pack_of(data: np.ndarray) -> Pack:
    return open_pack(open_source(data), short_side=None)


def found_of(data: np.ndarray, masks: np.ndarray, area: tuple[float, float] = (0.01, 0.95)) -> Foregrounds:
    every = np.broadcast_to(masks, (len(data), 16, 16))
    return find_foregrounds(pack_of(data), masks_of_array(every, len(data)), area)[0]


def maker_of(data: np.ndarray, found: Foregrounds | None, *views: View) -> ViewMaker:
    c = data.shape[3]
    return ViewMaker(pack_of(data), views, data.shape[1], [0.0] * c, [1.0] * c, seed=3, foregrounds=found)


def seen(data: np.ndarray, found: Foregrounds | None, view: View, epoch: int = 0) -> np.ndarray:
    """The views of all pictures, bytes [N, S, S, C]."""
    made = maker_of(data, found, view)(Batch(np.arange(len(data)), epoch, 0))[0].images
    return (made * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_pixels_are_filled_and_kept_ones_untouched(channels: int) -> None:
    data = pictures(6, channels)
    masks = np.random.default_rng(0).random((6, 16, 16)) < 0.5
    found = found_of(data, masks)
    masked = seen(data, found, replace(PLAIN, mask_background=1.0))
    np.testing.assert_array_equal(masked, np.where(masks[..., None], data, FILL))


def test_no_probability_and_masks_of_everything_are_the_identity() -> None:
    data = pictures(6)
    wild = View()
    plain = seen(data, None, wild)
    found = found_of(data, LEFT)
    np.testing.assert_array_equal(seen(data, found, wild), plain)
    everything = found_of(data, np.ones((16, 16)))
    assert not everything.usable.any()
    always = View(mask_background=1.0)
    np.testing.assert_array_equal(seen(data, everything, always), plain)
    whole = found_of(data, np.ones((16, 16)), area=(0.0, 1.0))
    assert whole.usable.all()
    np.testing.assert_array_equal(seen(data, whole, always), plain)
    assert (seen(data, found, always) != plain).any()


def test_masks_follow_crop_and_flip() -> None:
    data = pictures(64)
    masks = np.random.default_rng(0).random((64, 16, 16)) < 0.6
    cropped = View(scale=(0.1, 0.6), flip=0.5, jitter=0.0, grayscale=0.0, blur=0.0, mask_background=1.0)
    found = found_of(data, masks)
    filled = np.where(masks[..., None], data, FILL).astype(np.uint8)
    from_filled = seen(filled, None, replace(cropped, mask_background=0.0))
    np.testing.assert_array_equal(seen(data, found, cropped), from_filled)
    flips = maker_of(data, found, cropped).draw(Batch(np.arange(64), 0, 0))[0].flip
    assert 10 < flips.sum() < 54


def test_only_pictures_with_a_usable_mask_are_masked() -> None:
    data = pictures(8)
    masks = np.ones((8, 16, 16), bool)
    masks[::2, 8:] = False
    found = found_of(data, masks)
    masked = seen(data, found, replace(PLAIN, mask_background=1.0))
    np.testing.assert_array_equal(masked[1::2], data[1::2])
    assert (masked[::2, 8:] == FILL).all() and (masked[::2, :8] == data[::2, :8]).all()


def test_as_many_are_masked_as_the_probability_says() -> None:
    data = pictures(100)
    maker = maker_of(data, found_of(data, LEFT), View(mask_background=0.1), View())
    drawn = [maker.draw(Batch(np.arange(100), epoch, 0)) for epoch in range(100)]
    masked = sum(int(first.masked.sum()) for first, _ in drawn)
    assert abs(masked - 1000) < 3 * np.sqrt(10_000 * 0.1 * 0.9)
    assert not any(second.masked.any() for _, second in drawn)


@pytest.mark.parametrize("name", ["relic_v2", "combined"])
def test_presets_mask_large_views_only(name: str) -> None:
    views = preset(name).method.views
    large = [view for view in views if view.mask_background > 0.0]
    assert large and all(view.seen_by == "both" for view in large)
    assert all(view.mask_background == 0.0 for view in views if view.seen_by == "online")


def test_a_picture_with_two_masks_is_refused(tmp_path: Path) -> None:
    """A photo's copy beside its mask would be taken for the mask."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("photos/a.png", "masks/a.bmp", "masks/a.png", "masks/b.bmp", "masks/b.png"):
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / name)
    pack = open_pack(open_source(tmp_path / "photos"), short_side=None)
    with pytest.raises(DataError, match=r"a.bmp and a.png in .*masks may both be a picture's mask; wanted one file"):
        masks_in_folder(tmp_path / "masks", pack.names)
    (tmp_path / "masks" / "a.png").unlink()  # b is nobody's
    assert find_foregrounds(pack, masks_in_folder(tmp_path / "masks", pack.names)[0])[1] == 1.0
