"""Parity with torchvision: op by op on float pictures, whole views replayed from what was drawn, and the PIL pipeline of users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smallview.records import Batch
from smallview.views import kernel_torch, parity
from smallview.views.making import ViewMaker
from smallview.views.sampling import ViewParameters
from smallview.views.view import View

EXACT = 2e-6  # of single precision, in pixels' units of 0 to 1
BUSY = View(jitter=0.9, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.3, blur=0.6, blur_sigma=(0.5, 20.0), solarize=0.3)
MEAN, STD = [0.48, 0.45, 0.4], [0.25, 0.2, 0.3]


@pytest.fixture(scope="module")
def tv() -> Any:
    from torchvision.transforms.v2 import functional

    return functional


@pytest.fixture
def images() -> Tensor:
    """Six pictures [6, 3, 12, 12] with black, white, gray and pure colours in some corners."""
    images = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images[0, :, :4, :4], images[1, :, :4, :4], images[2, :, :6] = 0.0, 1.0, 0.4
    images[3, :, :2, :2] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    images[3, :, 2:4, :2] = torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    images[4, 0] = images[4, 1]  # yellows and blues: two channels are the largest
    return images


@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_ops_are_torchvisions(tv: Any, images: Tensor, name: str, channels: int) -> None:
    """Far outside of usual factors, so that the clamps are tested as well; each picture by its own factor."""
    images = images[:, :channels]
    factors = torch.linspace(-0.5, 0.5, 6) if name == "adjust_hue" else torch.tensor([0.0, 0.3, 1.0, 1.5, 3.0, 10.0])
    got = getattr(parity, name)(images, factors)
    wanted = torch.stack([getattr(tv, name)(x, float(f)) for x, f in zip(images, factors, strict=True)])
    torch.testing.assert_close(got, wanted, atol=EXACT, rtol=0)
    if channels == 3 or name in ("adjust_brightness", "adjust_contrast"):
        assert (got - images).abs().max() > 0.1


@pytest.mark.parametrize(("size", "taps"), [(12, 3), (12, 23), (40, 5), (4, 7)])
def test_blur_is_torchvisions(tv: Any, size: int, taps: int) -> None:
    images = torch.rand(4, 2, size, size, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.1, 0.0, 0.9, 3.0])
    got = parity.gaussian_blur(images, sigmas, taps)
    for n, sigma in enumerate(sigmas.tolist()):
        wanted = tv.gaussian_blur(images[n], [taps, taps], [sigma, sigma]) if sigma else images[n]
        torch.testing.assert_close(got[n], wanted, atol=EXACT, rtol=0)
    assert (got[3] - images[3]).abs().max() > 0.1


def disturbed(images: Tensor, drawn: ViewParameters, view: View) -> Tensor:
    return parity.disturb(images.clone(), view, drawn, torch.zeros(3), torch.ones(3))


def test_grayscale_and_solarise_are_torchvisions(tv: Any, images: Tensor, neutral: Callable[..., Any]) -> None:
    chosen = [True, False, True, True, False, True]
    got = disturbed(images, neutral(6, grayscale=chosen, size=12), View())
    gray = torch.where(torch.tensor(chosen)[:, None, None, None], tv.rgb_to_grayscale(images, 3), images)
    torch.testing.assert_close(got, gray, atol=EXACT, rtol=0)
    got = disturbed(images, neutral(6, solarize=chosen, size=12), View(solarize=0.5, solarize_threshold=0.4))
    turned = torch.where(torch.tensor(chosen)[:, None, None, None], tv.solarize(images, 0.4), images)
    torch.testing.assert_close(got, turned, atol=EXACT, rtol=0)


def test_neutral_parameters_return_the_very_input(images: Tensor, neutral: Callable[..., Any]) -> None:
    busy = View(jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0)
    assert torch.equal(disturbed(images, neutral(6, size=12), busy), images)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_the_order_is_the_drawn_one(tv: Any, images: Tensor, neutral: Callable[..., Any], order: tuple[int, ...]) -> None:
    factors = {"brightness": 1.6, "contrast": 0.6, "saturation": 1.7, "hue": 0.2}
    drawn = neutral(6, order=order, size=12, **factors)
    wanted = images
    for k in order:
        name = list(factors)[k]
        wanted = getattr(tv, f"adjust_{name}")(wanted, factors[name])
    torch.testing.assert_close(disturbed(images, drawn, View()), wanted, atol=EXACT, rtol=0)
    other = disturbed(images, replace(drawn, order=np.roll(drawn.order, 1, 1)), View())
    assert (other - wanted).abs().max() > 0.05


def replayed(tv: Any, image: Any, p: ViewParameters, n: int, view: View, number: Callable[[float], Any]) -> Any:
    """One view of a picture, float tensor or PIL, by torchvision's functions; `number` of a fraction is the picture's own unit."""
    top, left, h, w = (int(side) for side in p.box[n])
    image = tv.resized_crop(image, top, left, h, w, [p.size, p.size], tv.InterpolationMode.BILINEAR, antialias=True)
    image = tv.horizontal_flip(image) if p.flip[n] else image
    ops = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    factors = (p.brightness, p.contrast, p.saturation, p.hue)
    if any(factor[n] != neutral for factor, neutral in zip(factors, (1, 1, 1, 0), strict=True)):
        for k in p.order[n]:
            image = ops[k](image, float(factors[k][n]))
    image = tv.rgb_to_grayscale(image, 3) if p.grayscale[n] else image
    if p.blur_sigma[n] > 0:
        taps = parity.blur_taps(p.size)
        image = tv.gaussian_blur(image, [taps, taps], [float(p.blur_sigma[n])] * 2)
    return tv.solarize(image, number(view.solarize_threshold)) if p.solarize[n] else image


@pytest.mark.parametrize("executor", ["kernel", "torch"])
@pytest.mark.parametrize("size", [9, 32])
def test_whole_views_are_torchvisions_from_the_drawn_parameters(
    tv: Any, packed: Callable[..., Any], executor: Any, size: int
) -> None:
    pictures = packed([(40, 33, 3), (20, 61, 3), (3, 5, 3), (64, 64, 3)] * 15)
    maker = ViewMaker(pictures, (BUSY,), size, MEAN, STD, 0, mode="parity", executor=executor)
    index = np.arange(60)
    (p,), (made,) = maker.draw(Batch(index, 0, 0)), maker(Batch(index, 0, 0))
    least = torch.tensor(STD).min()
    for n, image in enumerate(pictures.images):
        as_tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        before = replayed(tv, as_tensor, replace(p, solarize=np.zeros(60, bool)), n, BUSY, float)
        wanted = tv.normalize(replayed(tv, as_tensor, p, n, BUSY, float), MEAN, STD)
        clear = (
            ((before - BUSY.solarize_threshold).abs() > 1e-5) if p.solarize[n] else torch.ones_like(before, dtype=torch.bool)
        )
        assert clear.float().mean() > 0.99
        assert float(((made.images[n] - wanted) * least).abs()[clear].max()) <= 1e-5
    assert p.solarize.any() and p.grayscale.any() and (p.blur_sigma > 0).any() and p.flip.any()


@pytest.mark.parametrize("size", [32, 96])
def test_views_of_pil_pictures_differ_by_roundings(tv: Any, size: int) -> None:
    """What users of PIL transforms get rounds to bytes after every op, hues to 256 parts: near, and not the same."""
    from PIL import Image

    y, x = np.mgrid[0:120, 0:150]
    waves = [128 + 90 * np.sin(x / (7 + 3 * k) + k) * np.cos(y / (11 - 2 * k)) for k in range(3)]
    image = np.clip(np.stack(waves, 2) + np.random.default_rng(0).normal(0, 8, (120, 150, 3)), 0, 255).astype(np.uint8)
    gentle = View(solarize=0.2)
    maker = ViewMaker(Many(image, 60), (gentle,), size, [0.0] * 3, [1.0] * 3, 0, mode="parity")
    (p,), (made,) = maker.draw(Batch(np.arange(60), 0, 0)), maker(Batch(np.arange(60), 0, 0))
    theirs = np.stack(
        [np.asarray(replayed(tv, Image.fromarray(image), p, n, gentle, lambda part: round(255 * part))) for n in range(60)]
    )

    def apart(made: Tensor) -> np.ndarray:
        return np.abs(255 * made.permute(0, 2, 3, 1).numpy() - theirs)

    assert apart(made.images).mean() < 1.6 and apart(made.images).mean((1, 2, 3)).max() < 2.5 and apart(made.images).max() < 20
    for wrong in (replace(p, hue=-p.hue), replace(p, contrast=2 - p.contrast), replace(p, order=p.order[:, ::-1])):
        assert apart(maker.make(np.arange(60), [wrong])[0].images).max() > 20


class Many:
    """One picture, many times."""

    def __init__(self, image: np.ndarray, n: int) -> None:
        self.image, self.n, self.channels = image, n, image.shape[2]
        self.one_size, self.first = image.shape[:2], 0
        self.heights, self.widths = (np.full(n, side, np.int32) for side in image.shape[:2])

    def gather(self, index: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        return self.image.reshape(-1), np.zeros(len(index), np.int64)

    def __len__(self) -> int:
        return self.n


def test_fast_views_are_near_parity_views_where_nothing_is_cut_off(packed: Callable[..., Any]) -> None:
    """The same boxes and factors, small ones: two algebras for one idea. Strong ones show what the modes do not share."""
    pictures = packed([(30, 40, 3)] * 20)
    mild = View(brightness=0.05, contrast=0.05, saturation=0.05, hue=0.01, grayscale=0.2, blur=0.0)
    pictures = type(pictures)([(77 + 0.4 * image).astype(np.uint8) for image in pictures.images])
    args, index = ((mild,), 12, [0.0] * 3, [1.0] * 3, 0), np.arange(20)
    fast, slow = ViewMaker(pictures, *args), ViewMaker(pictures, *args, mode="parity")
    drawn = slow.draw(Batch(index, 0, 0))
    a, b = fast.make(index, drawn)[0].images, slow.make(index, drawn)[0].images
    assert 1e-4 < float((a - b).abs().max()) < 4 / 255
    strong = [replace(drawn[0], saturation=np.full(20, 3.0), hue=np.full(20, 0.25))]
    a, b = fast.make(index, strong)[0].images, slow.make(index, strong)[0].images
    assert float((a - b).abs().max()) > 0.1


def test_the_blurs_kernel_grows_with_the_view() -> None:
    assert [parity.blur_taps(size) for size in (4, 32, 96, 224)] == [3, 3, 9, 23]


def test_noise_and_normalisation_come_last_in_both_modes(images: Tensor, neutral: Callable[..., Any]) -> None:
    view, drawn = View(noise=0.2), neutral(6, size=12)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    noise = kernel_torch.normal_noise(drawn.noise_key, (3, 12, 12), torch.device("cpu"))
    wanted = (images + 0.2 * noise - mean[:, None, None]) / std[:, None, None]
    for disturb in (parity.disturb, kernel_torch.disturb):
        torch.testing.assert_close(disturb(images.clone(), view, drawn, mean, std), wanted, atol=3e-5, rtol=0)
