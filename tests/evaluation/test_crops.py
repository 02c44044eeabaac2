"""Crops: found where they were planted and with the box that was cut, by the same sums as slow loops, and none where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from smallview.data.decoding import BadPicture
from smallview.data.sources import open_source
from smallview.data.survey import survey
from smallview.evaluation import crops
from smallview.evaluation.crops import CANDIDATES, LIKELY, find_crops, likely, thumbnail_crops
from smallview.evaluation.windows import WHOLE, correlation, cut, fitted, windows


def photos(n: int, side: int = 64, seed: int = 0) -> list[Image.Image]:
    """Pictures with structure of two sizes, in colour, each another one."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        coarse, fine = (
            Image.fromarray(random.integers(0, 256, (k, k, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
            for k in (6, 14)
        )
        out.append(Image.blend(coarse, fine, 0.4))
    return out


def found_in(pictures: list[Image.Image], mirrored: bool = True) -> list[crops.Crop]:
    seen = survey(_source(pictures), most=0, threads=1)
    return find_crops(seen, np.arange(len(seen)), mirrored=mirrored)


def _source(pictures: list[Image.Image]):  # type: ignore[no-untyped-def]
    arrays = [np.asarray(picture) for picture in pictures]
    base = open_source(np.zeros((len(arrays), 2, 2, 3), np.uint8))
    return replace(base, reader=lambda i, short_side: (arrays[i], None))


@pytest.mark.parametrize(
    ("box", "turned"),
    [
        ((3, 3, 61, 61), False),
        ((0, 0, 54, 54), False),
        ((10, 8, 64, 62), True),
        ((18, 2, 63, 47), False),
        ((2, 12, 60, 60), False),
        ((16, 6, 64, 64), True),
    ],
)
def test_a_planted_crop_is_found_with_its_box(box: tuple[int, int, int, int], turned: bool) -> None:
    pictures = photos(30)
    part = pictures[7].crop(box)
    pictures.append(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turned else part)
    (crop,) = found_in(pictures)
    assert (crop.whole, crop.part, crop.mirrored) == (7, 30, turned) and crop.alike > 0.98
    np.testing.assert_allclose(crop.box, np.array(box) / 64, atol=0.015)
    assert found_in(pictures, mirrored=False) == ([] if turned else [crop])


def test_what_is_no_copy_is_no_crop() -> None:
    random = np.random.default_rng(0)
    # the same texture elsewhere, plain and graded skies, and the same crop in other colours
    texture = Image.fromarray(random.integers(0, 256, (400, 400), np.uint8)).resize((512, 512), Image.Resampling.BICUBIC)
    places = [(int(x), int(y)) for x, y in random.integers(0, 440, (12, 2))]
    pictures = [texture.crop((x, y, x + 64, y + 64)).convert("RGB") for x, y in places]
    ramp = np.linspace(0, 1, 64)[:, None, None] * np.ones((1, 64, 3))
    for k in range(12):
        sky = (40 + 10 * k) + 60 * ramp * (1 + 0.1 * k) + random.normal(0, 1.5, (64, 64, 3))
        pictures.append(Image.fromarray(np.uint8(sky.clip(0, 255))))
        pictures.append(Image.fromarray(np.full((64, 64, 3), 20 * k, np.uint8)))
    assert found_in(pictures) == []
    pictures += photos(6)
    other = np.asarray(pictures[-1].crop((4, 4, 60, 60)))
    assert len(found_in([*pictures, Image.fromarray(other)])) == 1
    gray = other.mean(2)
    tinted = np.uint8(np.stack([gray * 1.0, gray * 0.5, gray * 0.2], 2))
    assert found_in([*pictures, Image.fromarray(tinted)]) == []


def test_outlines_that_are_all_alike_make_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(200):
        left, right, top, gap = (float(at) for at in random.uniform((24, 84, 6, 4), (40, 104, 20, 10)))
        y, x = np.mgrid[:128, :128]
        leg = np.abs(x - 64) < gap * (y > 56)
        picture = random.uniform(140, 250) * ((x > left) & (x < right) & (y > top) & (y < 120) & ~leg)
        pictures.append(Image.fromarray(np.uint8(picture)).convert("RGB").resize((32, 32), Image.Resampling.BOX))
    seen = survey(_source(pictures), most=0, threads=1)
    once = np.sort(np.unique(seen.hash, return_index=True)[1])
    pairs = likely(seen.thumbs, once)
    assert len(pairs) > 3 * len(once)
    found = thumbnail_crops(seen.thumbs, once, 0.97)
    assert len(found) < 0.08 * len(once)
    monkeypatch.setattr(crops, "OUTSTANDING", 10.0)
    assert len(thumbnail_crops(seen.thumbs, once, 0.97)) > len(once), "the guard has something to keep out"


def test_windows_are_what_pillow_cuts() -> None:
    picture = photos(1)[0].convert("L")
    levels = torch.from_numpy(np.array(picture, np.float32))[None]
    for box in ((0.1, 0.2, 0.85, 0.95), (0.0, 0.0, 1.0, 1.0), (0.25, 0.1, 0.95, 0.8)):
        at = tuple(64 * side for side in box)
        for side in (16, 60):
            wanted = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=at), np.float32)
            np.testing.assert_allclose(cut(levels, torch.tensor([box]), side)[0], wanted, atol=1.5)  # Pillow rounds twice


def coarse(picture: np.ndarray) -> np.ndarray:
    rows = picture.reshape(8, -1, 8, picture.shape[1] // 8).mean((1, 3)).ravel()
    rows = rows - rows.mean()
    return rows / max(1e-12, np.linalg.norm(rows))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_search_finds_what_a_slow_loop_finds(mirrored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in (("ORIGINALS", 7), ("FEW", 2), ("WHOLES", 5), ("TRIED", 4)):
        monkeypatch.setattr(crops, name, small)
    smooth = photos(24, side=32, seed=1)
    thumbs = np.stack([np.asarray(picture.convert("L").resize((32, 32))) for picture in smooth])
    thumbs[20:] = [np.asarray(Image.fromarray(thumbs[k]).crop((2, 3, 27, 28)).resize((32, 32))) for k in range(4)]
    thumbs[23] = thumbs[23][:, ::-1]
    among = np.array([k for k in range(24) if k != 9])
    wanted: dict[tuple[int, int], float] = {}
    for part in among:
        whole_row = coarse(thumbs[part] / 255.0)
        best = {}
        for whole in among[among != part]:
            values = []
            for box in windows():
                window = cut(torch.from_numpy(thumbs[whole][None].astype(np.float32)) / 255, box[None], 8)[0].numpy()
                values += [float(coarse(turn) @ whole_row) for turn in ((window, window[:, ::-1]) if mirrored else (window,))]
            best[whole] = max(values)
        for whole in sorted(best, key=lambda k: -best[k])[:CANDIDATES]:
            if best[whole] >= LIKELY:
                wanted[int(whole), int(part)] = best[whole]
    pairs = likely(thumbs, among, mirrored=mirrored)
    found = {(w, p): a for w, p, a in zip(pairs.whole.tolist(), pairs.part.tolist(), pairs.alike.tolist(), strict=True)}
    assert {(0, 20), (1, 21), (2, 22)} <= set(found) and ((3, 23) in found) == mirrored
    assert found == pytest.approx(wanted, abs=1e-4)


def test_a_fitted_box_is_the_best_of_a_fine_grid() -> None:
    picture = torch.from_numpy(np.array(photos(1)[0].convert("L"), np.float32))[None] / 255
    truth = torch.tensor([[0.13, 0.07, 0.91, 0.83]])
    part = cut(picture, truth, 24) * 0.7 + 0.1
    box, alike = fitted(picture, part, truth + torch.tensor([[0.03, -0.03, 0.02, -0.03]]))
    grid = [
        (float(correlation(cut(picture, at[None], 24), part)), at)
        for dx in np.linspace(-0.04, 0.04, 9)
        for dy in np.linspace(-0.04, 0.04, 9)
        for at in [truth[0] + torch.tensor([dx, dy, dx, dy], dtype=torch.float32)]
    ]
    best, at = max(grid, key=lambda pair: pair[0])
    assert float(alike) >= best - 1e-4 and float((box - at).abs().max()) < 0.005
    # nothing to hold on to: the box stays a box, and no number is lost
    box, alike = fitted(torch.full((1, 32, 32), 0.5), torch.full((1, 24, 24), 0.5), torch.tensor([WHOLE]))
    assert float(alike) == 0.0 and torch.isfinite(box).all()


def test_small_sets_and_pictures_that_vanish() -> None:
    assert thumbnail_crops(np.zeros((1, 32, 32), np.uint8), np.arange(1), 0.97) == []
    assert thumbnail_crops(np.zeros((0, 32, 32), np.uint8), np.arange(0), 0.97) == []
    pictures = photos(5)
    seen = survey(_source([*pictures, pictures[2].crop((5, 5, 60, 60))]), most=0, threads=1)

    def gone(i: int, short_side: int | None) -> tuple[np.ndarray, None]:
        raise BadPicture("vanished")

    assert len(find_crops(seen, np.arange(6))) == 1
    assert find_crops(replace(seen, source=replace(seen.source, reader=gone)), np.arange(6)) == []
