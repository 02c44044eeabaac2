"""Estimators of the foreground: what they find on generated pictures and on photos, and that each picture is looked at alone."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smallview.data.decoding import shrink
from smallview.views.saliency import (
    ESTIMATORS,
    FeatureComponent,
    _border_distance,
    border_colour,
    foreground,
    otsu,
    per_picture,
)


def ellipses(n: int = 48, side: int = 64) -> tuple[torch.Tensor, np.ndarray]:
    """Noisy ellipses of one colour on a noisy ground of another: (uint8 [n, 3, S, S], truth bool [n, S, S])."""
    draw = np.random.default_rng(7)
    y, x = np.mgrid[:side, :side] / side * 64
    pictures, truth = [], []
    while len(pictures) < n:
        colours = draw.uniform(0, 255, (2, 3))
        middle, axes, turn = draw.uniform(20, 44, 2), draw.uniform(9, 20, 2), draw.uniform(0, np.pi)
        if np.abs(colours[0] - colours[1]).max() < 60:
            continue
        u, v = y - middle[0], x - middle[1]
        a, b = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
        truth.append((a / axes[0]) ** 2 + (b / axes[1]) ** 2 < 1)
        pictures.append((np.where(truth[-1][..., None], *colours) + draw.normal(0, 15, (side, side, 3))).clip(0, 255))
    return torch.from_numpy(np.stack(pictures).astype(np.uint8)).permute(0, 3, 1, 2), np.stack(truth)


def iou(found: torch.Tensor, truth: np.ndarray) -> float:
    mask = found[:, 0].numpy()
    return float(np.mean((mask & truth).sum((1, 2)) / (mask | truth).sum((1, 2))))


def test_on_ellipses_the_border_beats_the_centre_and_the_centre_the_spectrum() -> None:
    pictures, truth = ellipses()
    score = {name: iou(foreground(estimate(pictures), "otsu"), truth) for name, estimate in ESTIMATORS.items()}
    assert score["border_colour"] > 0.8 > 0.5 > score["centre_prior"] > score["spectral_residual"] > 0.1
    gray = pictures[:, :1].contiguous()
    apart = np.array(
        [
            abs(float(p[:, t].mean()) - float(p[:, ~t].mean()))
            for p, t in zip(gray.float(), torch.from_numpy(truth), strict=True)
        ]
    )
    clear = apart > 60
    assert iou(foreground(border_colour(gray), "otsu")[torch.from_numpy(clear)], truth[clear]) > 0.8
    small, small_truth = ellipses(side=32)
    assert iou(foreground(border_colour(small), "otsu"), small_truth) > 0.75


@pytest.mark.parametrize("name", ESTIMATORS)
def test_maps_are_from_0_to_1_and_of_one_picture_alone(name: str) -> None:
    estimate = ESTIMATORS[name]
    pictures, _ = ellipses(12)
    maps = estimate(pictures)
    assert maps.shape == (12, 1, 64, 64) and maps.dtype == torch.float32
    assert float(maps.min()) >= 0.0 and float(maps.max()) <= 1.0 and float(maps.amax((1, 2, 3)).min()) > 0.9
    torch.testing.assert_close(estimate(pictures[5:6]), maps[5:6], rtol=0, atol=2e-3)
    torch.testing.assert_close(estimate(pictures.float() / 255), maps, rtol=0, atol=1e-4)
    mirrored = estimate(pictures.flip(3)).flip(3)
    assert float((mirrored - maps).abs().mean()) < 0.01


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 5, 300), (1, 3, 1, 5000), (2, 4, 33, 7), (1, 2, 2, 2)])
def test_odd_shapes_and_flat_pictures_give_finite_maps(name: str, shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    for pictures in (torch.zeros(shape), torch.ones(shape), torch.from_numpy(draw.integers(0, 256, shape, np.uint8))):
        maps = ESTIMATORS[name](pictures)
        assert maps.shape == (shape[0], 1, *shape[2:])
        assert bool(torch.isfinite(maps).all()) and 0.0 <= float(maps.min()) <= float(maps.max()) <= 1.0


def test_a_flat_picture_has_no_colour_that_stands_out() -> None:
    for level in (0, 77, 255):
        maps = border_colour(torch.full((1, 3, 40, 40), level, dtype=torch.uint8))
        top = foreground(maps, "otsu")[0, 0, 0]  # only the prior is left: never up to the corners
        assert not bool(top[0]) and not bool(top[-1])


def test_the_lower_border_is_not_taken_for_background() -> None:
    picture = torch.full((1, 3, 64, 64), 220, dtype=torch.uint8)
    picture[:, 0, 20:, 20:44] = 30
    found = foreground(border_colour(picture), "otsu")[0, 0]
    assert bool(found[60:, 24:40].all()) and not bool(found[60:, :12].any())


def test_otsu_is_the_best_of_all_cuts() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = torch.cat([torch.rand(5, 1, 8, 8, generator=draw) * 0.3, 0.6 + 0.4 * torch.rand(5, 1, 8, 4, generator=draw)], 3)

    def between(values: torch.Tensor, cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        if len(low) == 0 or len(high) == 0:
            return 0.0
        return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2)

    for each, cut in zip(maps, otsu(maps), strict=True):
        values = (each.flatten() * 255).round() / 255
        assert between(values, float(cut)) >= max(between(values, c) for c in np.linspace(0, 1, 511)) * (1 - 1e-5)
        assert 0.3 < cut < 0.6
    assert otsu(torch.zeros(2, 1, 4, 4)).tolist() == [0.5, 0.5] and otsu(torch.ones(1, 1, 1, 1)).tolist() == [0.5]
    assert bool(foreground(torch.ones(1, 1, 4, 4), "otsu").all()) and not bool(
        foreground(torch.zeros(1, 1, 4, 4), "otsu").any()
    )
    assert foreground(torch.tensor([[[[0.4, 0.5, 0.6]]]]), 0.5).tolist() == [[[[False, True, True]]]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_first_component_parts_what_the_features_part(sign: float) -> None:
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, :, 8:24, 8:24] = 1.0
    truth[1, :, 4:20, 10:28] = 1.0
    noise = torch.Generator().manual_seed(0)

    def features(images: torch.Tensor) -> torch.Tensor:
        place = F.avg_pool2d(images[:, :1], 2)
        weak = 0.1 * torch.rand(len(images), 6, *place.shape[2:], generator=noise)
        return torch.cat([sign * place, weak], 1)

    found = foreground(FeatureComponent(features, 32)(truth.expand(-1, 3, -1, -1).contiguous()), "otsu")
    assert iou(found, truth[:, 0].numpy() > 0) > 0.9


def test_a_function_of_one_picture_becomes_one_of_a_batch() -> None:
    pictures, _ = ellipses(3)

    def bright(picture: np.ndarray) -> np.ndarray:
        found = picture.mean(2) > 128
        picture[:] = 0
        return found

    before = pictures.clone()
    found = per_picture(bright)(pictures)
    assert torch.equal(found, (pictures.double().mean(1, keepdim=True) > 128)) and torch.equal(pictures, before)
    assert per_picture(lambda picture: torch.from_numpy(bright(picture)).requires_grad_(False).tolist())(pictures).shape == (
        3,
        1,
        64,
        64,
    )


@pytest.fixture(scope="module")
def photos() -> list[tuple[np.ndarray, np.ndarray]]:
    root = os.environ.get("SMALLVIEW_DATA")
    if root is None or not (Path(root) / "people-masks").is_dir():
        pytest.skip("SMALLVIEW_DATA is unset or holds no people-masks/: masks of photos are not judged")
    spec: Any = importlib.util.spec_from_file_location("load", Path(root) / "load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    out = []
    for photo, mask in load.people_masks()[::8]:
        picture, truth = load.read_pair(photo, mask)
        out.append((shrink(picture, 96), shrink(np.where(truth, 255, 0).astype(np.uint8)[..., None], 96)[..., 0] >= 128))
    return out


def test_on_photos_the_default_is_the_best_of_the_cheap_ones(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scores = {}
    for name, estimate in ESTIMATORS.items():
        each = []
        for picture, truth in photos:
            maps = estimate(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None])
            each.append(iou(foreground(maps, "otsu"), truth[None]))
        scores[name] = np.mean(each)
    assert scores["border_colour"] > scores["centre_prior"] + 0.12 > scores["spectral_residual"] + 0.2
    assert scores["border_colour"] > 0.5


def test_colours_of_the_upper_border_are_background_and_those_of_the_lower_are_not() -> None:
    colours = torch.full((1, 3, 64, 64), 0.8)
    colours[:, 0, :6, 8:56] = 0.1
    colours[:, 1, -6:, 8:56] = 0.1
    distance = _border_distance(colours)[0, 0]
    assert float(distance[3, 12:52].max()) < 2.0 < 10.0 < float(distance[-3, 12:52].min())
    assert float(distance[20:40].max()) < 2.0
