"""The fast views' crop, colours, blur and solarisation in both executors: torchvision's formulas where nothing is cut off, or their meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smallview.views import kernel_torch
from smallview.views.making import ViewMaker
from smallview.views.view import View

Neutral = Callable[..., Any]
Disturb = Callable[..., Tensor]
SIDE = 16


@pytest.fixture(scope="module")
def tv() -> Any:
    from torchvision.transforms.v2 import functional

    return functional


@pytest.fixture(params=["kernel", "torch"])
def disturb(request: pytest.FixtureRequest, packed: Callable[..., Any]) -> Disturb:
    """Whole views in [0, 1] of pictures that are bytes / 255."""

    def make(images: Tensor, drawn: Any, view: View | None = None) -> Tensor:
        b, c = images.shape[:2]
        pictures = type(packed([(1, 1, 1)]))(list((255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()))
        maker = ViewMaker(pictures, (view or View(),), SIDE, [0.0] * c, [1.0] * c, 0, executor=request.param)
        made = maker.make(np.arange(b), [drawn])[0].images
        assert made.shape == (b, c, SIDE, SIDE) and bool(torch.isfinite(made).all())
        return made

    return make


@pytest.fixture
def whole(neutral: Neutral) -> Neutral:
    return lambda b, **changed: neutral(b, box=[0, 0, SIDE, SIDE], size=SIDE, **changed)


def in_bytes(images: Tensor) -> Tensor:
    return (255 * images).round() / 255


@pytest.fixture
def crops() -> Tensor:
    """Mid-gray, so that factors from 0.7 to 1.3 are not cut off."""
    return in_bytes(0.3 + 0.4 * torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("size", [4, 7, 16, 48])
@pytest.mark.parametrize("executor", ["kernel", "torch"])
def test_crops_are_torchvisions_on_whole_boxes(tv: Any, packed: Callable[..., Any], size: int, executor: Any) -> None:
    pictures = packed([(40, 33, 3)] * 12, seed=size)
    random = np.random.default_rng(size)
    h, w = random.integers(1, 41, 12), random.integers(1, 34, 12)
    top, left = random.integers(0, 41 - h), random.integers(0, 34 - w)
    maker = ViewMaker(pictures, (), size, [0.5] * 3, [0.5] * 3, 0, executor=executor)
    boxes = np.stack([top, left, h, w], 1).astype(float)
    got = maker.crop(np.arange(12), boxes, np.arange(12) % 2 == 0, size)
    for n, image in enumerate(pictures.images):
        as_tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        box = [int(side) for side in (top[n], left[n], h[n], w[n])]
        wanted = tv.resized_crop(as_tensor, *box, [size, size], tv.InterpolationMode.BILINEAR, antialias=True)
        torch.testing.assert_close(got[n], tv.horizontal_flip(wanted) if n % 2 == 0 else wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_neutral_parameters_are_the_identity(disturb: Disturb, whole: Neutral, channels: int) -> None:
    crops = in_bytes(torch.rand(4, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(disturb(crops, whole(4)), crops, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("name", "atol"), [("brightness", 2e-6), ("contrast", 3e-4), ("saturation", 3e-4)])
def test_factors_are_torchvisions_and_each_pictures_own(
    tv: Any, disturb: Disturb, whole: Neutral, crops: Tensor, name: str, atol: float
) -> None:
    """Torchvision's gray has 0.2989 and 0.114 where the standard has 0.299 and 0.114."""
    factors = np.array([0.0, 0.7, 0.9, 1.0, 1.3])
    got = disturb(crops, whole(5, **{name: factors}))
    wanted = [getattr(tv, f"adjust_{name}")(crop, float(f)) for crop, f in zip(crops, factors, strict=True)]
    torch.testing.assert_close(got, torch.stack(wanted), atol=atol, rtol=0)


def test_colours_are_cut_off_once_and_at_the_end(disturb: Disturb, whole: Neutral, crops: Tensor) -> None:
    """Too bright and brought back by contrast: what a clamp in between would have lost is there."""
    got = disturb(crops, whole(5, brightness=3.0, contrast=0.2))
    bright = 3 * crops
    gray = (bright * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    torch.testing.assert_close(got, (0.2 * bright + 0.8 * gray).clamp(0, 1), atol=1e-5, rtol=0)
    far = disturb(crops, whole(5, brightness=3.0))
    torch.testing.assert_close(far, bright.clamp(0, 1), atol=1e-5, rtol=0)
    assert float(far.max()) == 1.0 and float(disturb(crops, whole(5, contrast=9.0)).min()) == 0.0


def test_hue_turns_colours_and_leaves_gray_and_luma(tv: Any, disturb: Disturb, whole: Neutral, crops: Tensor) -> None:
    luma = torch.tensor((0.299, 0.587, 0.114))[:, None, None]
    turned = disturb(crops, whole(5, hue=0.1))
    assert (turned - crops).abs().max() > 0.05
    torch.testing.assert_close((turned * luma).sum(1), (crops * luma).sum(1), atol=1e-5, rtol=0)
    gray = crops[:, :1].expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(disturb(gray, whole(5, hue=0.37)), gray, atol=1e-5, rtol=0)
    # the same sense as torchvision's, and nearly the same angle: red goes towards yellow, then green
    red = in_bytes(torch.tensor([0.55, 0.45, 0.45]))[None, :, None, None].expand(1, 3, SIDE, SIDE).contiguous()

    def likeness(ours: Tensor, theirs: Tensor) -> float:
        return float(torch.cosine_similarity((ours - ours.mean()).flatten(), (theirs - theirs.mean()).flatten(), dim=0))

    theirs = tv.adjust_hue(red, 1 / 6)
    assert likeness(disturb(red, whole(1, hue=1 / 6)), theirs) > 0.85
    assert likeness(disturb(red, whole(1, hue=-1 / 6)), theirs) < 0.5


def test_grayscale_gives_equal_channels(tv: Any, disturb: Disturb, whole: Neutral, crops: Tensor) -> None:
    got = disturb(crops, whole(5, grayscale=[True, False, True, True, True], hue=0.1, saturation=1.2))
    for n in (0, 2, 3, 4):
        torch.testing.assert_close(got[n, 0], got[n, 1], atol=1e-6, rtol=0)
        torch.testing.assert_close(got[n, 1], got[n, 2], atol=1e-6, rtol=0)
    assert (got[1, 0] - got[1, 1]).abs().max() > 0.05
    torch.testing.assert_close(disturb(crops, whole(5, grayscale=True)), tv.rgb_to_grayscale(crops, 3), atol=2e-4, rtol=0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_one_map_is_the_four_ops_in_any_order(neutral: Neutral, crops: Tensor, order: tuple[int, ...]) -> None:
    """On tensors that were not rounded to bytes in between, which only the torch executor takes."""

    def disturb(x: Tensor, **changed: float) -> Tensor:
        return kernel_torch.disturb(x.clone(), View(), neutral(5, **changed), torch.zeros(3), torch.ones(3))

    settings = {"brightness": 0.9, "contrast": 0.7, "saturation": 1.2, "hue": 0.05}
    names = list(settings)
    together = disturb(crops, **settings)
    one_by_one = crops
    for op in order:
        one_by_one = disturb(one_by_one, **{names[op]: settings[names[op]]})
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)
    for left_out in settings:
        assert (disturb(crops, **{k: v for k, v in settings.items() if k != left_out}) - together).abs().max() > 0.01


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_channel_counts_know_brightness_and_contrast(tv: Any, disturb: Disturb, whole: Neutral, channels: int) -> None:
    crops = in_bytes(0.3 + 0.4 * torch.rand(3, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    bright = 0.9 * crops
    wanted = 0.7 * bright + 0.3 * bright.mean((1, 2, 3), keepdim=True)
    got = disturb(crops, whole(3, brightness=0.9, contrast=0.7, hue=0.3, saturation=0.0, grayscale=True))
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=0)
    if channels == 1:
        torch.testing.assert_close(wanted, tv.adjust_contrast(tv.adjust_brightness(crops, 0.9), 0.7), atol=1e-6, rtol=0)


def test_blur_is_torchvisions_and_each_pictures_own(tv: Any, disturb: Disturb, whole: Neutral, crops: Tensor) -> None:
    sigmas = np.array([0.0, 0.5, 1.0, 2.0, 0.2])
    got = disturb(crops, whole(5, blur_sigma=sigmas))
    for n, sigma in enumerate(sigmas):
        taps = 2 * int(np.ceil(3 * sigma)) + 1
        wanted = tv.gaussian_blur(crops[n], [taps, taps], [float(sigma)] * 2) if sigma > 0.25 else crops[n]
        torch.testing.assert_close(got[n], wanted, atol=5e-6, rtol=0)
    assert (got[3] - crops[3]).abs().max() > 0.05
    flat = in_bytes(torch.full((3, 3, SIDE, SIDE), 0.37))
    torch.testing.assert_close(disturb(flat, whole(3, blur_sigma=[0.4, 1.1, 9.0])), flat, atol=1e-6, rtol=0)


def test_blur_comes_before_colour(disturb: Disturb, whole: Neutral, crops: Tensor) -> None:
    """A clamp before the blur would show: colours far beyond white, blurred to white."""
    dark = torch.zeros(1, 3, SIDE, SIDE)
    dark[0, :, 8:] = 1.0
    got = disturb(dark, whole(1, blur_sigma=2.0, brightness=4.0))
    blurred = disturb(dark, whole(1, blur_sigma=2.0))
    torch.testing.assert_close(got, (4 * blurred).clamp(0, 1), atol=2e-6, rtol=0)
    assert float((got - blurred).max()) > 0.5


@pytest.mark.parametrize("size", [4, 7, 32])
def test_the_strongest_blur_of_a_small_view(size: int) -> None:
    rows = kernel_torch.gaussian_rows(np.array([50.0 * size / 224, 0.3, 0.0]), size, torch.device("cpu"))
    assert rows.shape == (3, size, size) and bool(torch.isfinite(rows).all()) and float(rows.min()) >= 0
    torch.testing.assert_close(rows.sum(2), torch.ones(3, size))
    assert torch.equal(rows[2], torch.eye(size))


def test_solarise_is_torchvisions_where_chosen(tv: Any, disturb: Disturb, whole: Neutral) -> None:
    crops = in_bytes(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    got = disturb(crops, whole(2, solarize=[True, False]), View(solarize=0.5, solarize_threshold=0.401))
    torch.testing.assert_close(got[0], tv.solarize(crops[0], 0.401), atol=2e-6, rtol=0)
    torch.testing.assert_close(got[1], crops[1], atol=2e-6, rtol=0)
    assert (got[0] - crops[0]).abs().max() > 0.5


def test_noise_has_its_deviation_and_belongs_to_the_picture(disturb: Disturb, whole: Neutral) -> None:
    crops = in_bytes(torch.full((2, 13, SIDE, SIDE), 0.5))
    got = disturb(crops, whole(2, noise_key=[7, 8]), View(noise=0.1)) - crops
    n = got[0].numel()
    for one in got:
        assert abs(float(one.mean())) < 0.1 * 5 / n**0.5
        assert abs(float(one.std()) - 0.1) < 0.1 * 5 / (2 * n) ** 0.5
    swapped = disturb(crops, whole(2, noise_key=[8, 7]), View(noise=0.1)) - crops
    torch.testing.assert_close(swapped.flip(0), got, atol=0, rtol=0)
    assert (got[0] - got[1]).abs().max() > 0.1
