"""Views exactly as torchvision makes them: hue in HSV, a clamp after each colour op, the ops in a drawn order.

What it is for: to compare with work that used torchvision, and to measure what the fast views' algebra costs (docs/speed.md). Batched,
on any device; each op equals `torchvision.transforms.v2.functional` on float pictures in [0, 1].

Legend: B pictures, C channels, S the side of a view.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from smallview.views.kernel_torch import finish, mirrored
from smallview.views.sampling import ViewParameters
from smallview.views.view import View

_LUMA = (0.2989, 0.587, 0.114)


def _gray(x: Tensor) -> Tensor:
    """Luma [B, 1, S, S]; of pictures that have not three channels, themselves."""
    return (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True) if x.shape[1] == 3 else x


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Pictures [B, C, S, S] in [0, 1] times factor [B], clamped."""
    return (x * factor[:, None, None, None]).clamp(0.0, 1.0)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of each picture, factor [B], clamped."""
    f = factor[:, None, None, None]
    return (f * x + (1.0 - f) * _gray(x).mean((1, 2, 3), keepdim=True)).clamp(0.0, 1.0)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray picture, factor [B], clamped; nothing for pictures that have not three channels."""
    f = factor[:, None, None, None]
    return (f * x + (1.0 - f) * _gray(x)).clamp(0.0, 1.0) if x.shape[1] == 3 else x


def adjust_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of HSV by turns [B]; nothing for pictures that have not three channels."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)
    high, low = x.amax(1), x.amin(1)
    spread = high - low
    flat = spread == 0.0
    divisor = torch.where(flat, torch.ones_like(spread), spread)
    r, g, b = (high - red) / divisor, (high - green) / divisor, (high - blue) / divisor
    hue = torch.where(high == red, b - g, torch.where(high == green, 2.0 + r - b, 4.0 + g - r))
    hue = (hue / 6.0 + 1.0 + turns[:, None, None]) % 1.0
    saturation = spread / torch.where(flat, torch.ones_like(high), high)
    # each channel is a trapezium of the hue (Smith, 1978: the HSV hexcone)
    corners = x.new_tensor([5.0, 3.0, 1.0])[None, :, None, None]
    k = (corners + 6.0 * hue[:, None]) % 6.0
    fall = torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return high[:, None] * (1.0 - saturation[:, None] * fall)


def blur_taps(size: int) -> int:
    """Taps of the blur's kernel: an odd number near a tenth of the side, as SimCLR has it.

    Example:
        >>> blur_taps(224), blur_taps(32)
        (23, 3)
    """
    return max(3, 2 * (size // 20) + 1)


def gaussian_blur(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Blur pictures [B, C, S, S] by sigma [B] in pixels with a kernel of `taps`, mirrored at the borders; sigma 0 leaves one alone."""
    b, _, _, s = x.shape
    shift = torch.arange(taps, device=x.device) - taps // 2
    kernel = torch.exp(-0.5 * (shift[None] / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    place = mirrored(torch.arange(s, device=x.device)[:, None] + shift[None], s)
    rows = torch.zeros(b, s, s, device=x.device)
    rows.scatter_add_(2, place.expand(b, -1, -1), kernel[:, None].expand(-1, s, -1).contiguous())
    return torch.where((sigma > 0.0)[:, None, None, None], rows[:, None] @ x @ rows[:, None].transpose(2, 3), x)


def disturb(crops: Tensor, view: View, drawn: ViewParameters, mean: Tensor, std: Tensor) -> Tensor:
    """Jitter in the drawn order, grayscale, blur, solarise, noise and normalisation of crops [B, C, S, S] in [0, 1].

    A neutral op leaves a picture as it is, as torchvision skips it.
    """
    device = crops.device

    def on(array: object) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.float32)).to(device)

    ops: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    drawn_factors = (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue)
    x = crops
    if view.jitter > 0.0:
        for place in range(4):
            for k, (op, factors) in enumerate(zip(ops, drawn_factors, strict=True)):
                which = np.flatnonzero((drawn.order[:, place] == k) & (factors != (0.0 if k == 3 else 1.0)))
                if len(which):
                    rows = torch.from_numpy(which).to(device)
                    x = x.index_copy(0, rows, op(x[rows], on(factors[which])))
    if view.grayscale > 0.0 and x.shape[1] == 3:
        x = torch.where(torch.from_numpy(drawn.grayscale).to(device)[:, None, None, None], _gray(x).expand_as(x), x)
    if view.blur > 0.0 and bool((drawn.blur_sigma > 0.0).any()):
        x = gaussian_blur(x, on(drawn.blur_sigma), min(blur_taps(drawn.size), 2 * drawn.size - 1))
    return finish(x, view, drawn, mean, std)
