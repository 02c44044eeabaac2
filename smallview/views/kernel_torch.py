"""The torch executor of views: the same algebra as the CPU kernel, as batched products on any device, with no loop over pictures.

Legend: B pictures, C channels, S the side of a view, H and W source sides. What was drawn goes to the device once per view; nothing
comes back, so that a GPU never waits. It agrees with the CPU kernel within 2/255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.views.blurred import blur_pictures
from smallview.views.colour import LUMA, colour_maps
from smallview.views.noise import GOLDEN, MIX_1, MIX_2
from smallview.views.sampling import ViewParameters
from smallview.views.view import View, backgrounds


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array of parameters on the device, in single precision where it has a point (MPS knows no other).

    From pinned memory and without waiting on CUDA: a copy that waits would wait for the whole step in front of it.
    """
    array = array.astype(np.float32) if array.dtype == np.float64 else np.ascontiguousarray(array)
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def axis(
    start: npt.NDArray[np.float64], length: npt.NDArray[np.float64], limits: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.float64], ...]:
    """Of one axis of boxes [B]: first pixel, the one behind the last, where the box begins from the first on, pixels a step.

    Counted from the window's first pixel, numbers stay small enough for single precision.
    """
    low = np.clip(np.floor(start + 1e-9), 0, None)
    high = np.minimum(limits, np.maximum(low + 1, np.ceil(start + length - 1e-9)))
    low = np.minimum(low, high - 1)
    return low, high, start - low, length / size


def reach(sigma: npt.NDArray[np.float64], size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(sigma, how many taps to either side) of a blur that is none up to 0.25, where one tap of any width does nothing."""
    sharp = sigma <= 0.25
    return np.where(sharp, 1.0, sigma), np.where(sharp, 0.0, np.minimum(np.ceil(3.0 * sigma), size - 1))


def _axis_weights(
    start: npt.NDArray[np.float64], length: npt.NDArray[np.float64], limits: npt.NDArray[np.int64], size: int, most: int,
    device: torch.device, flip: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Triangle-filter weights [B, S, most] of one axis, zero outside the crop; the numbers of the CPU kernel's tables."""
    first, last, origin, step = (to_device(a, device)[:, None, None] for a in axis(start, length, limits, size))
    middle = origin + (torch.arange(size, device=device)[None, :, None] + 0.5) * step  # [B, S, 1]
    place = torch.arange(most, device=device)[None, None, :]
    inside = (place >= first) & (place < last)
    weights = (1.0 - ((place - first + 0.5 - middle) / step.clamp(min=1.0)).abs()).clamp(min=0.0) * inside
    total = weights.sum(2, keepdim=True)
    # a box on the last fraction of a pixel meets no middle of one: its nearest pixel then
    nearest = inside & (place - first == torch.minimum(middle.floor().clamp(min=0.0), last - first - 1))
    weights = torch.where(total > 0.0, weights / total.clamp(min=1e-12), nearest.to(weights.dtype))
    return weights if flip is None else torch.where(flip[:, None, None], weights.flip(1), weights)


def gaussian_rows(sigma: npt.NDArray[np.float64], size: int, device: torch.device) -> Tensor:
    """Blur along one axis as matrices [B, S, S]: a Gaussian cut at 3 sigma, mirrored at the borders; the identity up to 0.25.

    The cut matters: an uncut Gaussian fills the matrix with denormal numbers, which slow the product two to three times.
    """
    wide, taps = reach(sigma, size)
    most = max(1, int(taps.max()))
    shift = torch.arange(-most, most + 1, device=device)
    weights = torch.exp(-0.5 * (shift[None, :] / to_device(wide, device)[:, None]) ** 2)
    weights = weights * (shift.abs()[None, :] <= to_device(taps, device)[:, None])
    weights = weights / weights.sum(1, keepdim=True)  # [B, taps]
    place = mirrored(torch.arange(size, device=device)[:, None] + shift[None, :], size)  # [S, taps]
    out = torch.zeros(len(sigma), size, size, device=device)
    return out.scatter_add_(2, place.expand(len(sigma), -1, -1), weights[:, None, :].expand(-1, size, -1).contiguous())


def mirrored(place: Tensor, size: int) -> Tensor:
    """Places beyond the borders, mirrored so that the border itself stands once."""
    place = place.abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)


def crop_resize(
    images: Tensor, heights: npt.NDArray[np.int64], widths: npt.NDArray[np.int64], drawn: ViewParameters, *, blur: bool = True
) -> Tensor:
    """Crops uint8 [B, C, H, W] to float32 [B, C, S, S] in [0, 1] on their device; picture n is the top left heights[n], widths[n].

    Blur, where drawn and wanted, is one more factor of each axis' weights.
    """
    device, box = images.device, drawn.box
    flip = to_device(drawn.flip, device)
    rows = _axis_weights(box[:, 0], box[:, 2], heights, drawn.size, images.shape[2], device)  # [B, S, H]
    columns = _axis_weights(box[:, 1], box[:, 3], widths, drawn.size, images.shape[3], device, flip)  # [B, S, W]
    if blur and bool((drawn.blur_sigma > 0.25).any()):
        matrices = gaussian_rows(drawn.blur_sigma, drawn.size, device)
        rows, columns = matrices @ rows, matrices @ columns
    return rows[:, None] @ (images.float() * (1.0 / 255.0)) @ columns[:, None].transpose(2, 3)


def _hashed(keys: npt.NDArray[np.uint64], places: int, device: torch.device) -> Tensor:
    """splitmix64 as noise.py counts it, int64 [B, places]: the bits of its unsigned numbers."""

    def signed(number: int) -> int:
        return number - 2**64 if number >= 2**63 else number

    def shifted(x: Tensor, by: int) -> Tensor:
        return (x >> by) & ((1 << (64 - by)) - 1)

    counter = torch.arange(1, places + 1, device=device, dtype=torch.int64) * signed(GOLDEN)
    x = to_device(keys.view(np.int64), device)[:, None] + counter[None]
    x = (x ^ shifted(x, 30)) * signed(MIX_1)
    x = (x ^ shifted(x, 27)) * signed(MIX_2)
    return x ^ shifted(x, 31)


def normal_noise(keys: npt.NDArray[np.uint64], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The pairs of noise.normal_pair one after the other, float32 [B, *shape], on a device; equal within rounding."""
    n = math.prod(shape)
    x = _hashed(keys, (n + 1) // 2, device)
    radius = (-2.0 * ((((x >> 32) & 0xFFFFFFFF).float() + 0.5) / 4294967296.0).clamp(min=1e-12).log()).sqrt()
    angle = (x & 0xFFFFFFFF).float() * (2.0 * math.pi / 4294967296.0)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 2).flatten(1)[:, :n].reshape(len(keys), *shape)


@dataclass(frozen=True, eq=False)
class Front:
    """What stands in front, bool [B, H, W], in pictures that are the top left heights[n], widths[n]; int64 [B] on the same device."""

    mask: Tensor
    heights: Tensor
    widths: Tensor


def fill(
    images: Tensor, front: Front, view: View, drawn: ViewParameters, numbers: Tensor, mean: npt.NDArray[np.float32]
) -> Tensor:
    """Pictures uint8 [B, C, H, W] with a filled background where nothing stands in front; numbers [B, H, W] count pixels."""
    b, c, h, w = images.shape
    if view.background == "noise":
        hashed = _hashed(~drawn.noise_key, h * w * c, images.device)
        places = numbers[:, None] * c + torch.arange(c, device=images.device)[None, :, None, None]
        drawn_bytes = hashed.gather(1, places.clamp(max=h * w * c - 1).flatten(1)) >> 56
        paint = (drawn_bytes & 0xFF).to(torch.uint8).view(b, c, h, w)
    elif view.background == "blur":
        paint = blur_pictures(images, front.heights, front.widths)
    else:
        colours = backgrounds(view.background, drawn.background, mean)
        paint = to_device(colours.astype(np.uint8), images.device)[:, :, None, None].expand_as(images)
    return torch.where(front.mask[:, None], images, paint)


def disturb(crops: Tensor, view: View, drawn: ViewParameters, mean: Tensor, std: Tensor) -> Tensor:
    """Colour, solarise, noise and normalisation of crops [B, C, S, S] in [0, 1]; blur has been a part of the crop.

    mean, std float [C]. Pictures that have not three channels know brightness and contrast only.
    """
    b, c, s, _ = crops.shape
    device = crops.device
    if c == 3:
        saturation = np.where(drawn.grayscale, 0.0, drawn.saturation)
        matrices, shares = colour_maps(drawn.brightness, drawn.contrast, saturation, drawn.hue)
        shift = to_device(shares, device) * (crops.mean((2, 3)) @ to_device(LUMA, device))  # [B]
        crops = torch.baddbmm(shift[:, None, None], to_device(matrices, device), crops.reshape(b, 3, s * s)).view(b, 3, s, s)
    elif view.jitter > 0.0:
        factor, share = drawn.brightness * drawn.contrast, (1.0 - drawn.contrast) * drawn.brightness
        shift = to_device(share, device) * crops.mean((1, 2, 3))
        crops = to_device(factor, device)[:, None, None, None] * crops + shift[:, None, None, None]
    crops = crops.clamp_(0.0, 1.0)
    return finish(crops, view, drawn, mean, std)


def finish(crops: Tensor, view: View, drawn: ViewParameters, mean: Tensor, std: Tensor) -> Tensor:
    """What comes last in every mode: solarise, noise, normalise."""
    if view.solarize > 0.0:
        chosen = to_device(drawn.solarize, crops.device)[:, None, None, None]
        crops = torch.where(chosen & (crops >= view.solarize_threshold), 1.0 - crops, crops)
    if view.noise > 0.0:
        crops = crops + view.noise * normal_noise(drawn.noise_key, tuple(crops.shape[1:]), crops.device)
    return (crops - mean[:, None, None]) / std[:, None, None]
