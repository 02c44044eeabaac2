"""What stands in front in a picture, guessed without labels and without weights of others; and the cut from a guess to a mask.

An estimator takes pictures [B, C, H, W], bytes or numbers from 0 to 1, and gives a map [B, 1, H, W] from 0 to 1, higher in front. Each
picture is looked at alone: the map does not depend on what else is in the batch. These are substitutes for the trained saliency network
of ReLICv2 (DeepUSPS), not that network; docs/saliency.md says how far they reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Callable[[Tensor], Tensor]
# Part of the key under which masks are kept: a change of what an estimator computes raises it.
VERSION = 1
BORDER_SIDE = 64  # pixels at which border colours are measured
GRID = 24  # nodes of a side at which colours vote
BINS = 256
_AT_ONCE = 8  # a kernel of 1.3 MB for each, so that they stay in the cache


def border_colour(images: Tensor) -> Tensor:
    """Foreground where the colour is unlike the colours of the left, upper and right border: [B, C, H, W] -> [B, 1, H, W] in [0, 1].

    Three steps. (1) Mahalanobis distance of each pixel's colour (CIE Lab for three channels) to the Gaussian of each of three borders, the
    least of the three; the lower border is left out, for what is photographed often reaches it. (2) That distance times a prior which
    falls off to the sides and the top is a first guess on a grid of 24 x 24. (3) Two rounds of Bayes: every node's colour and place is
    compared with those of all nodes guessed in front and of all guessed behind (kernel densities).

    Source: border prior and Gaussian of Wei et al., 2012; the combination is this project's, chosen on half of a set of photos.

    Example:
        >>> images = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
        >>> images[:, 0, 8:24, 10:22] = 20
        >>> found = foreground(border_colour(images), "otsu")[0, 0]
        >>> bool(found[8:24, 10:22].all()), bool(found[:6].any())
        (True, False)
    """
    return torch.cat([_border_colour(part) for part in _unit(images).split(_AT_ONCE)])


def _border_colour(images: Tensor) -> Tensor:
    colours = _lab(images)
    work = _at_most(colours, BORDER_SIDE)
    distance = _scaled(_blurred(_border_distance(work), 1.5 * max(work.shape[2:]) / BORDER_SIDE))
    nodes = _at_most(colours, GRID)
    high, wide = nodes.shape[2:]
    y, x = _places(high, wide)
    down = torch.where(y > 0.0, 0.25 * y, y)  # nearly flat below the middle, for the reason of (1)
    prior = 0.1 + 0.4 * torch.exp(-0.5 * ((down / 0.6) ** 2 + (x / 0.6) ** 2)).flatten()
    guess = _resized(distance, high, wide).flatten(1) * prior
    # one vector of colour and place for each node, each in units of its kernel's width
    at = torch.stack([y, x]).flatten(1).T.expand(len(nodes), -1, -1) / 1.2
    alike = torch.cat([nodes.flatten(2).transpose(1, 2) / 0.045, at], 2)
    half, one = 0.5 * alike.square().sum(2, keepdim=True), torch.ones_like(alike[..., :1])
    # minus half the squared distance of every two nodes, in one product
    kernel = torch.cat([alike, -half, one], 2) @ torch.cat([alike, one, -half], 2).transpose(1, 2)
    kernel = kernel.clamp_(max=0.0).exp_()  # [B, nodes, nodes]
    odds = 0.75 * torch.log(prior / (1.0 - prior))
    for _ in range(2):
        guess = guess.clamp(0.02, 0.98)
        both = torch.stack([guess / guess.sum(1, keepdim=True), (1.0 - guess) / (1.0 - guess).sum(1, keepdim=True)], 2)
        front, behind = torch.log(kernel @ both + 1e-6).unbind(2)
        guess = torch.sigmoid(front - behind + odds)
    return _resized(_scaled(guess.view(-1, 1, high, wide)), *images.shape[2:])


def centre_prior(images: Tensor) -> Tensor:
    """The same round hill for every picture, whatever it shows: what any estimator has to beat. [B, C, H, W] -> [B, 1, H, W]."""
    y, x = _places(images.shape[2], images.shape[3], images.device)
    return torch.exp(-0.5 * (y**2 + x**2) / 0.6**2).expand(len(images), 1, -1, -1).clone()


def spectral_residual(images: Tensor) -> Tensor:
    """Foreground where the spectrum departs from its own smooth course: contours more than regions. [B, C, H, W] -> [B, 1, H, W].

    Source: Hou and Zhang, 2007, at 64 pixels.
    """
    x = _unit(images)
    gray = _at_most(x.mean(1, keepdim=True), BORDER_SIDE)
    spectrum = torch.fft.fft2(gray)
    amplitude = torch.log(spectrum.abs() + 1e-6)
    residual = amplitude - F.avg_pool2d(F.pad(amplitude, (1, 1, 1, 1), mode="replicate"), 3, 1)
    saliency = torch.fft.ifft2(torch.polar(torch.exp(residual), spectrum.angle())).abs() ** 2
    return _resized(_scaled(_blurred(saliency, 2.5)), *x.shape[2:])


@dataclass(frozen=True, eq=False)
class FeatureComponent:
    """An estimator from an encoder of one's own: the first principal component of its feature map, in each picture by itself.

    features: float [B, C, S, S] in [0, 1] -> [B, F, h, w]; S is size and half as much again, for the picture is mirrored at its borders.
    Features are cut to unit length. The side of the component that the left, upper and right border lie on is the background.

    Example:
        >>> FeatureComponent(lambda x: F.avg_pool2d(x, 4), 16)(torch.rand(2, 3, 20, 30)).shape
        torch.Size([2, 1, 20, 30])
    """

    features: Callable[[Tensor], Tensor]
    size: int

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 1, H, W] in [0, 1]."""
        beyond = self.size // 4
        x = _resized(_unit(images), self.size, self.size)
        # without it, the zeros that convolutions see beyond the border are the strongest component of all
        maps = self.features(F.pad(x, (beyond, beyond, beyond, beyond), mode="reflect")).float()
        rows, columns = (round(n * beyond / (self.size + 2 * beyond)) for n in maps.shape[2:])
        maps = F.normalize(maps[:, :, rows : maps.shape[2] - rows, columns : maps.shape[3] - columns], dim=1)
        high, wide = maps.shape[2:]
        tokens = maps.flatten(2)
        tokens = tokens - tokens.mean(2, keepdim=True)  # [B, F, n]
        component = torch.linalg.eigh(tokens.transpose(1, 2) @ tokens)[1][:, :, -1].view(-1, 1, high, wide)
        border = torch.ones(high, wide, dtype=torch.bool, device=maps.device)
        border[1:, 1:-1] = False
        away = component.mean((1, 2, 3)) - component[:, :, border].mean((1, 2))
        component = torch.where(away[:, None, None, None] < 0.0, -component, component)
        return _resized(_scaled(component), *images.shape[2:])


ESTIMATORS: dict[str, Estimator] = {
    "border_colour": border_colour,
    "centre_prior": centre_prior,
    "spectral_residual": spectral_residual,
}


def per_picture(function: Callable[[npt.NDArray[np.uint8]], Any]) -> Estimator:
    """An estimator from a function of one picture: uint8 [H, W, C] -> [H, W], truth values or numbers from 0 to 1.

    Example:
        >>> bright = per_picture(lambda picture: picture.mean(2) > 100)
        >>> bright(torch.full((2, 3, 4, 5), 200, dtype=torch.uint8)).shape
        torch.Size([2, 1, 4, 5])
    """

    def estimate(images: Tensor) -> Tensor:
        pictures = images.permute(0, 2, 3, 1).cpu().numpy()
        return torch.stack([torch.as_tensor(np.array(_on_cpu(function(picture.copy())))) for picture in pictures])[:, None]

    return estimate


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def otsu(maps: Tensor) -> Tensor:
    """The threshold [B] of each map [B, 1, H, W] in [0, 1] that parts it into two classes as far apart as they can be.

    In the middle of the gap where a map has one; 0.5 for a map of one value.

    Source: Otsu, 1979, on 256 equal bins.

    Example:
        >>> otsu(torch.tensor([0.2, 0.2, 0.6, 0.6]).view(1, 1, 2, 2))
        tensor([0.4000])
    """
    b = len(maps)
    bins = (maps.reshape(b, -1).double() * (BINS - 1)).round().long()
    counts = torch.zeros(b, BINS, dtype=torch.float64, device=maps.device).scatter_add_(1, bins, torch.ones_like(bins).double())
    weight = (counts / counts.sum(1, keepdim=True)).cumsum(1)
    moment = (counts / counts.sum(1, keepdim=True) * torch.arange(BINS, device=maps.device)).cumsum(1)
    apart = (moment[:, -1:] * weight - moment) ** 2 / (weight * (1.0 - weight)).clamp(min=1e-12)
    best = apart.max(1, keepdim=True)[0]
    # all cuts inside an empty gap are equally good
    equal = (apart >= best * (1.0 - 1e-9)).double()
    middle = ((equal * torch.arange(BINS, device=maps.device)).sum(1) / equal.sum(1) + 0.5) / (BINS - 1)
    return torch.where(best[:, 0] > 1e-9, middle, 0.5).float()


def foreground(maps: Tensor, threshold: float | Literal["otsu"]) -> Tensor:
    """Truth values [B, 1, H, W] of maps in [0, 1]: at or above the threshold, or above each map's own by `otsu`."""
    if threshold == "otsu":
        return maps > otsu(maps)[:, None, None, None]
    return maps >= threshold


def _unit(images: Tensor) -> Tensor:
    """Bytes as numbers from 0 to 1; numbers as they are."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images.float()


def _places(high: int, wide: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """(y, x) [H, W] of every pixel, from -1 at one border to 1 at the other."""
    y, x = ((torch.arange(n, device=device) + 0.5) / n * 2.0 - 1.0 for n in (high, wide))
    return y[:, None].expand(high, wide), x[None, :].expand(high, wide)


def _resized(maps: Tensor, high: int, wide: int) -> Tensor:
    return F.interpolate(maps, size=(high, wide), mode="bilinear", antialias=True, align_corners=False)


def _at_most(maps: Tensor, side: int) -> Tensor:
    """Shrunk to at most `side` pixels a side."""
    return _resized(maps, min(side, maps.shape[2]), min(side, maps.shape[3]))


def _scaled(maps: Tensor) -> Tensor:
    """Each map [B, 1, H, W] from 0 at its least to 1 at its most; a map of one value is 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    # what differs by rounding alone is one value
    flat = high - low < 1e-5 * high.abs().clamp(min=1e-30)
    return torch.where(flat, torch.zeros_like(maps), (maps - low) / (high - low).clamp(min=1e-30))


def _blurred(maps: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(3.0 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=maps.device) / sigma) ** 2)
    line = line / line.sum()
    maps = F.pad(maps, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(maps, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))


def _border_distance(colours: Tensor) -> Tensor:
    """Mahalanobis distance [B, 1, H, W] of every colour [B, C, H, W] to the nearest of the Gaussians of three borders."""
    b, c, high, wide = colours.shape
    deep, far = max(1, round(high / 32)), max(1, round(wide / 32))
    least: Tensor | None = None
    for border in (colours[:, :, :deep], colours[..., :far], colours[..., -far:]):
        sample = border.flatten(2)
        mean = sample.mean(2, keepdim=True)
        spread = (sample - mean) @ (sample - mean).transpose(1, 2) / sample.shape[2]
        # a flat border has no spread; 0.03 is three steps of Lab's hundred
        spread = spread + 1e-3 * torch.eye(c, device=colours.device)
        away = colours.flatten(2) - mean
        distance = (away * torch.linalg.solve(spread, away)).sum(1).clamp(min=0.0).sqrt().view(b, 1, high, wide)
        least = distance if least is None else torch.minimum(least, distance)
    assert least is not None
    return least


def _lab(images: Tensor) -> Tensor:
    """CIE Lab over 100 of sRGB pictures of three channels (white D65), where distances are as the eye sees them; others unchanged."""
    if images.shape[1] != 3:
        return images
    linear = torch.where(images > 0.04045, ((images.clamp(min=0.0) + 0.055) / 1.055) ** 2.4, images / 12.92)
    to_xyz = torch.tensor(
        [[0.433953, 0.376219, 0.189828], [0.212673, 0.715152, 0.072175], [0.017758, 0.109477, 0.872765]], device=images.device
    )  # rows divided by white
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear)
    cube = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1.0 / 3.0), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = cube.unbind(1)
    return torch.stack([1.16 * y - 0.16, 5.0 * (x - y), 2.0 * (y - z)], 1)
