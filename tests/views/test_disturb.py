"""Colours, blur, solarisation and noise: each against torchvision's formula where nothing is cut off, or against its meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from smallview.views import kernel_torch
from smallview.views.view import View

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0, 1, 2, 3
Neutral = Callable[..., Any]


def disturb(crops: Tensor, parameters: Any, view: View | None = None) -> Tensor:
    c = crops.shape[1]
    return kernel_torch.disturb(crops.clone(), view or View(), parameters, torch.zeros(c), torch.ones(c))


@pytest.fixture
def crops() -> Tensor:
    """Mid-gray, so that factors from 0.7 to 1.3 are not cut off."""
    return 0.3 + 0.4 * torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_neutral_parameters_are_the_identity(neutral: Neutral, channels: int) -> None:
    crops = torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(disturb(crops, neutral(4)), crops, atol=2e-6, rtol=0)


def test_normalisation_comes_last(neutral: Neutral, crops: Tensor) -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    got = kernel_torch.disturb(crops.clone(), View(), neutral(5), mean, std)
    torch.testing.assert_close(got, tv.normalize(crops, mean.tolist(), std.tolist()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3])
def test_brightness_is_torchvisions(neutral: Neutral, crops: Tensor, factor: float) -> None:
    torch.testing.assert_close(
        disturb(crops, neutral(5, brightness=factor)), tv.adjust_brightness(crops, factor), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3])
def test_contrast_is_torchvisions(neutral: Neutral, crops: Tensor, factor: float) -> None:
    # torchvision's gray has 0.2989 and 0.114 where the standard has 0.299 and 0.114
    torch.testing.assert_close(
        disturb(crops, neutral(5, contrast=factor)), tv.adjust_contrast(crops, factor), atol=3e-4, rtol=0
    )


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3])
def test_saturation_is_torchvisions(neutral: Neutral, crops: Tensor, factor: float) -> None:
    torch.testing.assert_close(
        disturb(crops, neutral(5, saturation=factor)), tv.adjust_saturation(crops, factor), atol=3e-4, rtol=0
    )


def test_factors_are_each_pictures_own(neutral: Neutral, crops: Tensor) -> None:
    factors = np.linspace(0.7, 1.3, 5)
    for name, function in (
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
    ):
        got = disturb(crops, neutral(5, **{name: factors}))
        wanted = torch.stack([function(crop, float(f)) for crop, f in zip(crops, factors, strict=True)])
        torch.testing.assert_close(got, wanted, atol=3e-4, rtol=0)


def test_hue_turns_colours_and_leaves_gray_and_luma(neutral: Neutral, crops: Tensor) -> None:
    luma = torch.tensor((0.299, 0.587, 0.114))[:, None, None]
    turned = disturb(crops, neutral(5, hue=0.1))
    assert (turned - crops).abs().max() > 0.05
    torch.testing.assert_close((turned * luma).sum(1), (crops * luma).sum(1), atol=1e-5, rtol=0)
    gray = crops[:, :1].expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(disturb(gray, neutral(5, hue=0.37)), gray, atol=1e-5, rtol=0)
    # the same sense as torchvision's, and nearly the same angle: red goes towards yellow, then green
    red = torch.tensor([0.55, 0.45, 0.45])[None, :, None, None].expand(1, 3, 4, 4).contiguous()
    ours, theirs = disturb(red, neutral(1, hue=1 / 6)) - 0.45, tv.adjust_hue(red, 1 / 6) - 0.45
    assert float(torch.cosine_similarity((ours - ours.mean()).flatten(), (theirs - theirs.mean()).flatten(), dim=0)) > 0.85
    back = disturb(red, neutral(1, hue=-1 / 6)) - 0.45
    assert float(torch.cosine_similarity((back - back.mean()).flatten(), (theirs - theirs.mean()).flatten(), dim=0)) < 0.5


def test_grayscale_gives_equal_channels(neutral: Neutral, crops: Tensor) -> None:
    got = disturb(crops, neutral(5, grayscale=[True, False, True, True, True], hue=0.1, saturation=1.2))
    for n in (0, 2, 3, 4):
        torch.testing.assert_close(got[n, 0], got[n, 1], atol=1e-6, rtol=0)
        torch.testing.assert_close(got[n, 1], got[n, 2], atol=1e-6, rtol=0)
    assert (got[1, 0] - got[1, 1]).abs().max() > 0.05
    torch.testing.assert_close(disturb(crops, neutral(5, grayscale=True)), tv.rgb_to_grayscale(crops, 3), atol=2e-4, rtol=0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_one_map_is_the_four_ops_in_any_order(neutral: Neutral, crops: Tensor, order: tuple[int, ...]) -> None:
    settings = {"brightness": 0.9, "contrast": 0.7, "saturation": 1.2, "hue": 0.05}
    names = list(settings)
    together = disturb(crops, neutral(5, **settings))
    one_by_one = crops
    for op in order:
        one_by_one = disturb(one_by_one, neutral(5, **{names[op]: settings[names[op]]}))
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)
    for left_out in settings:
        assert (
            disturb(crops, neutral(5, **{k: v for k, v in settings.items() if k != left_out})) - together
        ).abs().max() > 0.01


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_channel_counts_know_brightness_and_contrast(neutral: Neutral, channels: int) -> None:
    crops = 0.3 + 0.4 * torch.rand(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    parameters = neutral(3, brightness=0.9, contrast=0.7, hue=0.3, saturation=0.0, grayscale=True)
    bright = 0.9 * crops
    wanted = 0.7 * bright + 0.3 * bright.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(disturb(crops, parameters), wanted, atol=1e-6, rtol=0)
    if channels == 1:
        torch.testing.assert_close(wanted, tv.adjust_contrast(tv.adjust_brightness(crops, 0.9), 0.7), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.7])
def test_blur_is_torchvisions(neutral: Neutral, crops: Tensor, sigma: float) -> None:
    taps = 2 * int(np.ceil(3 * sigma)) + 1
    wanted = tv.gaussian_blur(crops, [taps, taps], [sigma, sigma])
    torch.testing.assert_close(disturb(crops, neutral(5, blur_sigma=sigma)), wanted, atol=2e-5, rtol=0)
    assert (wanted - crops).abs().max() > 1e-3


def test_blur_is_each_pictures_own_and_keeps_flat_pictures(neutral: Neutral, crops: Tensor) -> None:
    sigmas = np.array([0.0, 0.5, 1.0, 2.0, 0.2])
    got = disturb(crops, neutral(5, blur_sigma=sigmas))
    for n, sigma in enumerate(sigmas):
        taps = 2 * int(np.ceil(3 * sigma)) + 1
        wanted = tv.gaussian_blur(crops[n], [taps, taps], [float(sigma)] * 2) if sigma > 0.25 else crops[n]
        torch.testing.assert_close(got[n], wanted, atol=2e-5, rtol=0)
    flat = torch.full((3, 3, 5, 5), 0.37)
    torch.testing.assert_close(disturb(flat, neutral(3, blur_sigma=[0.4, 1.1, 1.3])), flat, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [4, 7, 32])
def test_the_strongest_blur_of_a_small_view(neutral: Neutral, size: int) -> None:
    rows = kernel_torch.gaussian_rows(torch.tensor([50.0 * size / 224, 0.3]), size)
    assert rows.shape == (2, size, size) and bool(torch.isfinite(rows).all()) and float(rows.min()) >= 0
    torch.testing.assert_close(rows.sum(2), torch.ones(2, size))


def test_solarise_is_torchvisions_where_chosen(neutral: Neutral) -> None:
    crops = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    got = disturb(crops, neutral(2, solarize=[True, False]), View(solarize=0.5, solarize_threshold=0.4))
    torch.testing.assert_close(got[0], tv.solarize(crops[0], 0.4), atol=2e-6, rtol=0)
    torch.testing.assert_close(got[1], crops[1], atol=2e-6, rtol=0)


def test_noise_has_its_deviation_and_belongs_to_the_picture(neutral: Neutral) -> None:
    crops = torch.full((2, 3, 64, 64), 0.5)
    got = disturb(crops, neutral(2, noise_key=[7, 8]), View(noise=0.1)) - 0.5
    n = got[0].numel()
    for one in got:
        assert abs(float(one.mean())) < 0.1 * 5 / n**0.5
        assert abs(float(one.std()) - 0.1) < 0.1 * 5 / (2 * n) ** 0.5
    swapped = disturb(crops, neutral(2, noise_key=[8, 7]), View(noise=0.1)) - 0.5
    torch.testing.assert_close(swapped.flip(0), got, atol=0, rtol=0)
    assert (got[0] - got[1]).abs().max() > 0.1
