"""Corruptions against direct formulas and published strengths; the same draws for all, and none that gets weaker by mistake."""

from __future__ import annotations

import colorsys
import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from smallview.errors import UsageError
from smallview.evaluation import corruption_tools, corruption_weather
from smallview.evaluation import corruptions as module
from smallview.evaluation.corruption_strengths import CORRUPTIONS, EXTRA, LARGE, SMALL
from smallview.evaluation.corruptions import corrupt
from smallview.evaluation.robust import Corrupted, Robust, _some


def photographs(n: int, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth pictures with edges and colour, as photographs have."""
    random = np.random.default_rng(0)
    coarse = ndimage.zoom(random.random((n, 4, 4, channels)), (1, height / 4, width / 4, 1), order=1)
    edges = (ndimage.gaussian_filter(random.normal(size=(n, height, width, 1)), (0, 2, 2, 0)) > 0.05) * 0.3
    return np.clip(255 * (0.1 + 0.6 * coarse + edges), 0, 255).astype(np.uint8)


ALL = (*CORRUPTIONS, *EXTRA)
NUMBERS = np.arange(8)


def pictures(side: int = 32, channels: int = 3, n: int = 8) -> np.ndarray:
    return photographs(n, side, side, channels)


def one(x: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    return corrupt(x, name, severity, seed, np.arange(len(x)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(32, 32, 3), (33, 47, 3), (40, 28, 1), (96, 80, 3)])
def test_shape_range_and_draws(name: str, shape: tuple[int, int, int]) -> None:
    x = photographs(4, *shape)
    before = x.copy()
    made = corrupt(x, name, 3, 0, np.arange(4))
    assert made.shape == x.shape and made.dtype == np.uint8 and np.array_equal(x, before)
    # a picture's draws are its own, whoever is beside it
    alone = np.concatenate([corrupt(x[i : i + 1], name, 3, 0, np.array([i])) for i in range(4)])
    assert np.abs(made.astype(int) - alone).max() <= 1
    random = name not in (
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
        "gaussian_blur",
        "saturate",
    )
    twins = np.repeat(x[:1], 2, 0)
    drawn = corrupt(twins, name, 3, 0, np.array([0, 1]))
    assert np.array_equal(drawn[0], drawn[1]) is not random
    assert np.array_equal(corrupt(twins, name, 3, 1, np.array([0, 1]))[0], drawn[0]) is not random


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", [32, 112])
def test_stronger_with_severity(name: str, side: int) -> None:
    x = pictures(side, n=12)
    change = [float(np.abs(one(x, name, s).astype(float) - x).mean()) for s in range(1, 6)]
    assert change[0] > 0.3
    # published strengths of these four do not rise in the mean: their parameters trade one thing for another
    if name not in ("elastic_transform", "saturate", "spatter", "frost", "glass_blur", "motion_blur", "snow", "fog"):
        assert all(b > a for a, b in itertools.pairwise(change)), change
    assert change[4] > 0.7 * change[0] or name == "elastic_transform"


def flat(value: int, side: int = 32, n: int = 40) -> np.ndarray:
    return np.full((n, side, side, 3), value, np.uint8)


@pytest.mark.parametrize(("side", "table"), [(32, SMALL), (96, LARGE)])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_the_published_strength(side: int, table: dict[str, tuple[float, ...]], severity: int) -> None:
    x = flat(128, side, 12)
    s = severity - 1
    clipped = min(1.0, 0.5 / (3 * table["gaussian_noise"][s]))
    if clipped == 1.0:
        assert one(x, "gaussian_noise", severity).std() / 255 == pytest.approx(table["gaussian_noise"][s], rel=0.03)
    if severity == 1:
        assert one(x, "speckle_noise", 1).std() / 255 == pytest.approx(128 / 255 * table["speckle_noise"][0], rel=0.03)
        level = 128 / 255
        assert one(x, "shot_noise", 1).std() / 255 == pytest.approx((level / table["shot_noise"][0]) ** 0.5, rel=0.05)
    made = one(x, "impulse_noise", severity)
    for value in (0, 255):
        assert float((made == value).mean()) == pytest.approx(table["impulse_noise"][s] / 2, rel=0.15)
    assert set(np.unique(made).tolist()) == {0, 128, 255}


@pytest.mark.parametrize("severity", [1, 5])
def test_plain_formulas(severity: int) -> None:
    x = pictures()
    mean = x.mean((1, 2), keepdims=True)
    c = SMALL["contrast"][severity - 1]
    wanted = np.clip(np.rint((x - mean) * c + mean), 0, 255)
    assert np.abs(one(x, "contrast", severity) - wanted).max() <= 1
    c = SMALL["brightness"][severity - 1]
    gain, move = SMALL["saturate"][severity - 1]
    brighter, vivid = one(x, "brightness", severity), one(x, "saturate", severity)
    for i, y, z in ((0, 3, 4), (1, 20, 9), (5, 31, 0), (7, 16, 16)):
        h, s, v = colorsys.rgb_to_hsv(*(x[i, y, z] / 255.0))
        raised = np.array(colorsys.hsv_to_rgb(h, s, min(1.0, v + c))) * 255
        assert np.abs(brighter[i, y, z] - raised).max() <= 1.01
        stretched = np.array(colorsys.hsv_to_rgb(h, min(1.0, max(0.0, s * gain + move)), v)) * 255
        assert np.abs(vivid[i, y, z] - stretched).max() <= 1.01
    black = np.zeros((1, 32, 32, 3), np.uint8)
    assert one(black, "brightness", 5).max() == one(black, "brightness", 5).min() == round(0.3 * 255)
    held = io.BytesIO()
    Image.fromarray(x[0]).save(held, "JPEG", quality=SMALL["jpeg_compression"][severity - 1])
    assert np.array_equal(one(x, "jpeg_compression", severity)[0], np.asarray(Image.open(held)))
    few = int(32 * SMALL["pixelate"][severity - 1])
    small = Image.fromarray(x[0]).resize((few, few), Image.Resampling.BOX).resize((32, 32), Image.Resampling.NEAREST)
    assert np.array_equal(one(x, "pixelate", severity)[0], np.asarray(small))


@pytest.mark.parametrize("severity", [1, 5])
def test_blurs_are_convolutions(severity: int) -> None:
    x = pictures(n=2)
    sigma = SMALL["gaussian_blur"][severity - 1]
    taps = np.exp(-0.5 * (np.arange(-8, 9) / sigma) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(x[0, :, :, 0].astype(float), 8, mode="edge")
    slow = np.array([[(padded[i : i + 17, j : j + 17] * kernel).sum() for j in range(32)] for i in range(32)])
    assert np.abs(one(x, "gaussian_blur", severity)[0, :, :, 0] - slow).max() <= 1.5
    disk = module._disk(*SMALL["defocus_blur"][severity - 1])
    assert disk.sum() == pytest.approx(1.0, abs=1e-5) and np.allclose(disk, disk.T, atol=1e-6)
    mirrored = ndimage.correlate(x[0, :, :, 1].astype(float), disk, mode="mirror")
    assert np.abs(one(x, "defocus_blur", severity)[0, :, :, 1] - mirrored).max() <= 1.0
    reach = module._disk(3.0, 0.1)
    assert ((reach > 1e-3).sum()) == sum(a * a + b * b <= 9 for a in range(-8, 9) for b in range(-8, 9))


def test_motion_goes_one_way_along_its_angle() -> None:
    point = np.zeros((2, 65, 65, 1), np.float32)
    point[:, 32, 32] = 1.0
    straight, slanted = corruption_tools.moved(point, np.array([0.0, 45.0]), 6, 4.0)[..., 0]
    weights = np.exp(-0.5 * (np.arange(13) / 4.0) ** 2)  # 2 * radius + 1 of them
    assert np.allclose(straight[32, 32:19:-1], weights / weights.sum(), atol=1e-6)
    assert straight.sum() == pytest.approx(1.0, abs=1e-5) and np.count_nonzero(straight) == 13
    assert slanted[32, 32] > 0 and slanted[31, 31] > 0 and slanted[33, 31] == 0


@pytest.mark.parametrize("reach", [1, 2])
def test_glass_takes_from_neighbours_as_published(reach: int) -> None:
    side = 32
    places = np.stack(np.mgrid[:side, :side], -1).astype(np.float32)
    moves = np.random.default_rng(0).integers(-reach, reach, (2, side, side, 2))
    moved, slow = places.copy(), places.copy()
    corruption_tools.shifts()(moved, moves, reach)
    for turn in range(2):
        for h in range(side - reach, reach, -1):
            for w in range(side - reach, reach, -1):
                slow[h, w] = slow[h + moves[turn, h, w, 0], w + moves[turn, h, w, 1]]
    assert np.array_equal(moved, slow) and (moved != places).any(-1).mean() > 0.5
    if reach == 1:  # a swap would carry a pixel on and on: two turns go two steps
        assert np.abs(moved - places).max() == 2


@pytest.mark.parametrize("name", ["spatter", "defocus_blur", "elastic_transform", "motion_blur", "glass_blur"])
@pytest.mark.parametrize(("side", "published"), [(28, 32), (64, 32), (128, 224)])
def test_strength_hardly_depends_on_the_size(name: str, side: int, published: int) -> None:
    large = pictures(224, n=6)
    for severity in (1, 3, 4, 5):
        changes = []
        for one_side in (side, published):
            x = np.stack([np.asarray(Image.fromarray(p).resize((one_side, one_side), Image.Resampling.BOX)) for p in large])
            changes.append(float(np.abs(one(x, name, severity).astype(float) - x).mean()))
        assert 0.4 < changes[0] / changes[1] < 2.5, (severity, changes)


@pytest.mark.parametrize("side", [28, 32])
def test_defocus_spreads_more_at_each_severity(side: int) -> None:
    kept = [float((module._disk(*c, side / 32) ** 2).sum()) for c in SMALL["defocus_blur"]]
    assert all(a > b for a, b in itertools.pairwise(kept)), kept


def test_values_past_the_range_are_cut() -> None:
    """Not taken modulo 256, as a cast alone would."""
    for name in ("gaussian_noise", "speckle_noise", "shot_noise"):
        made = one(flat(254, n=4), name, 1)
        assert made.min() > 180 and (made == 255).mean() > 0.3
    assert one(flat(1, n=4), "gaussian_noise", 1).max() < 70
    assert one(flat(254, n=4), "snow", 5).min() > 180


@pytest.mark.parametrize("side", [32, 112])
@pytest.mark.parametrize("name", ["snow", "fog", "glass_blur", "motion_blur", "spatter"])
def test_the_strongest_is_stronger_than_the_weakest(name: str, side: int) -> None:
    x = pictures(side, n=24)
    first, last = (float(np.abs(one(x, name, s).astype(float) - x).mean()) for s in (1, 5))
    assert last > 1.05 * first, (first, last)


def test_zoom_keeps_the_middle_and_plasma_is_a_cloud() -> None:
    x = np.zeros((1, 33, 33, 1), np.uint8)
    x[0, 16, 16] = 255
    spread = corrupt(x, "zoom_blur", 3, 0, np.array([0]))[0, :, :, 0].astype(float)
    assert np.unravel_index(spread.argmax(), spread.shape) == (16, 16)
    cloud = corruption_weather.plasma(np.random.default_rng(0), 60, 2.0)
    assert cloud.shape == (64, 64) and (cloud.min(), cloud.max()) == (0.0, 1.0)
    rough = [
        float(np.abs(np.diff(corruption_weather.plasma(np.random.default_rng(0), 64, decay), axis=0)).mean())
        for decay in (1.2, 2.0, 3.0)
    ]
    assert rough[0] > rough[1] > rough[2]


def test_refusals() -> None:
    x = pictures(n=1)
    with pytest.raises(UsageError, match='did you mean "fog"'):
        one(x, "fogg", 1)
    with pytest.raises(UsageError, match="severity is 6"):
        one(x, "fog", 6)
    with pytest.raises(ValueError, match='did you mean "snow"'):
        Robust(corruptions=("snoww",))
    assert Robust().names() == CORRUPTIONS and Robust(corruptions=("all",)).names() == ALL
    assert Robust(corruptions=("fog", "common")).names()[0] == "fog"


def test_corrupted_pictures_are_those_of_the_positions(packed: Callable[..., Any]) -> None:
    images = [*photographs(3, 32, 32, 3), *photographs(2, 20, 28, 3)]
    pack = packed(images)
    which = np.array([4, 1, 2])
    for keep in (False, True):
        some = Corrupted(pack, which, "gaussian_noise", 2, 0, keep)
        assert len(some) == 3 and some.heights.tolist() == [20, 32, 32] and some.one_size is None
        for _ in range(2):
            flat_, starts = some.gather(np.array([2, 0]))
            for start, position in zip(starts, (2, 4), strict=True):
                picture = images[position]
                wanted = corrupt(picture[None], "gaussian_noise", 2, 0, np.array([position]))[0]
                assert np.array_equal(flat_[start : start + picture.size].reshape(picture.shape), wanted)


def test_a_part_of_the_test_pictures_has_every_class_in_its_share() -> None:
    from smallview.evaluation.bench import Labeled

    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    part = Labeled(np.zeros(100), labels, "x")
    chosen = _some(part, 20, 0)
    assert np.bincount(labels[chosen]).tolist() == [12, 6, 2] and np.array_equal(chosen, _some(part, 20, 0))
    assert _some(part, 500, 0).tolist() == list(range(100))


def test_frost_elastic_and_draws_know_their_severity() -> None:
    for severity in (1, 3, 5):  # what frost leaves of the picture's own contrast, where nothing is cut
        under, over = (one(flat(value, n=4), "frost", severity).astype(float) for value in (10, 60))
        assert float(np.median(over - under)) == pytest.approx(50 * SMALL["frost"][severity - 1][0], abs=1.0)
    x = pictures(n=24)
    first, last = (float(np.abs(one(x, "elastic_transform", s).astype(float) - x).mean()) for s in (1, 5))
    assert first > 1.1 * last  # published: at 32 pixels the first moves the whole picture furthest
    noise = [one(flat(128, n=1), "gaussian_noise", s).astype(float).ravel() - 128 for s in (2, 3)]
    assert abs(float(np.corrcoef(noise)[0, 1])) < 0.1
