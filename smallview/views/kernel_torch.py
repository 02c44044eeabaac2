"""The torch executor: crops, colour, blur, solarise, noise and normalisation as batched algebra on any device.

Legend: B pictures, C channels, S the side of a view, H and W source sides. Colour acts as ONE affine map per picture, clamped once
at the end: without clamps in between brightness, contrast, saturation, hue and grayscale commute, so no order is drawn. Hue turns the
YIQ colour plane, so gray stays gray.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.views.kernel_cpu import gaussian_noise
from smallview.views.sampling import ViewParameters
from smallview.views.view import View

_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def _axis_weights(start: Tensor, length: Tensor, limit: int, size: int, flip: Tensor | None = None) -> Tensor:
    """Triangle-filter weights [B, S, limit] of one axis; the same numbers as the CPU executor's tables."""
    step = (length / size)[:, None, None]
    middle = start[:, None, None] + (torch.arange(size, device=start.device)[None, :, None] + 0.5) * step
    place = torch.arange(limit, device=start.device)[None, None, :]
    low = torch.floor(start + 1e-9).clamp(0, limit - 1)
    high = torch.minimum(torch.maximum(torch.ceil(start + length - 1e-9), low + 1), torch.full_like(low, limit))
    weights = (1.0 - ((place + 0.5 - middle) / step.clamp(min=1.0)).abs()).clamp(min=0.0)
    weights = weights * ((place >= low[:, None, None]) & (place < high[:, None, None]))
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-12)
    return weights if flip is None else torch.where(flip[:, None, None], weights.flip(1), weights)


def crop_resize(images: Tensor, boxes: npt.NDArray[np.float64], flips: npt.NDArray[np.bool_], size: int) -> Tensor:
    """Crops of equally large pictures: uint8 [B, C, H, W] to float32 [B, C, S, S] in [0, 1], on the pictures' device."""
    box = torch.from_numpy(boxes).to(images.device)  # [B, 4], float64 so that both executors round alike
    flip = torch.from_numpy(flips).to(images.device)
    rows = _axis_weights(box[:, 0], box[:, 2], images.shape[2], size).float()  # [B, S, H]
    columns = _axis_weights(box[:, 1], box[:, 3], images.shape[3], size, flip).float()  # [B, S, W]
    pixels = images.float() / 255.0
    return rows[:, None] @ pixels @ columns[:, None].transpose(2, 3)


def colour_matrix(parameters: ViewParameters, mean: Tensor) -> Tensor:
    """One affine colour map per picture, float32 [B, 3, 4], from the drawn factors and the crop's mean colour [B, 3].

    In YIQ: brightness and contrast scale everything, saturation scales the colour plane, hue turns it, grayscale empties it; contrast
    then moves towards the crop's mean gray.
    """
    b = len(parameters.flip)
    yiq = torch.tensor(_YIQ, dtype=torch.float64)
    brightness, contrast = torch.from_numpy(parameters.brightness), torch.from_numpy(parameters.contrast)
    colour = torch.from_numpy(np.where(parameters.grayscale, 0.0, parameters.saturation))
    angle = torch.from_numpy(parameters.hue) * (-2.0 * math.pi)  # red towards yellow, as elsewhere
    plane = torch.zeros(b, 3, 3, dtype=torch.float64)
    plane[:, 0, 0] = 1.0
    plane[:, 1, 1] = plane[:, 2, 2] = colour * angle.cos()
    plane[:, 2, 1] = colour * angle.sin()
    plane[:, 1, 2] = -plane[:, 2, 1]
    matrix = (brightness * contrast)[:, None, None] * (torch.linalg.inv(yiq) @ plane @ yiq)
    towards = (1.0 - contrast) * brightness * (mean.cpu().double() @ yiq[0])  # [B]
    return torch.cat([matrix, towards[:, None, None].expand(b, 3, 1)], 2).float()


def gaussian_rows(sigma: Tensor, size: int) -> Tensor:
    """Blur along one axis as matrices [B, S, S]: a Gaussian cut at 3 sigma, mirrored at the borders.

    The cut matters: an uncut Gaussian fills the matrix with denormal numbers, which slow the product two to three times.
    """
    reach = max(1, min(size - 1, math.ceil(3.0 * float(sigma.max()))))
    shift = torch.arange(-reach, reach + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (shift[None, :] / sigma[:, None]) ** 2)
    weights = weights * (shift.abs()[None, :] <= torch.ceil(3.0 * sigma)[:, None])
    weights = weights / weights.sum(1, keepdim=True)  # [B, taps]
    place = torch.arange(size, device=sigma.device)[:, None] + shift[None, :]  # [S, taps]
    place = place.abs()
    place = torch.where(place >= size, 2 * (size - 1) - place, place)
    out = torch.zeros(len(sigma), size, size, device=sigma.device)
    return out.scatter_add_(2, place.expand(len(sigma), -1, -1), weights[:, None, :].expand(-1, size, -1).contiguous())


def disturb(crops: Tensor, view: View, parameters: ViewParameters, mean: Tensor, std: Tensor) -> Tensor:
    """Apply the drawn colours, blur, solarisation and noise to crops [B, C, S, S] in [0, 1]; then (x - mean) / std.

    mean, std float [C]. Pictures that have not three channels know brightness and contrast only.
    """
    b, c, s, _ = crops.shape
    if c == 3:
        matrix = colour_matrix(parameters, crops.mean((2, 3))).to(crops.device)  # [B, 3, 4]
        crops = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], crops.reshape(b, 3, s * s)).view(b, 3, s, s).clamp_(0.0, 1.0)
    elif view.jitter > 0.0:
        bright = torch.from_numpy(parameters.brightness).float().to(crops.device)[:, None, None, None]
        factor = torch.from_numpy(parameters.contrast).float().to(crops.device)[:, None, None, None]
        crops = crops * bright
        crops = (factor * crops + (1.0 - factor) * crops.mean((1, 2, 3), keepdim=True)).clamp_(0.0, 1.0)
    # under a quarter of a pixel the neighbours' weight is below 0.0004: nothing to see
    blurred = np.flatnonzero(parameters.blur_sigma > 0.25)
    if len(blurred):
        which = torch.from_numpy(blurred).to(crops.device)
        rows = gaussian_rows(torch.from_numpy(parameters.blur_sigma[blurred]).float().to(crops.device), s)[:, None]
        crops = crops.index_copy(0, which, rows @ crops[which] @ rows.transpose(2, 3))
    if view.solarize > 0.0:
        chosen = torch.from_numpy(parameters.solarize).to(crops.device)[:, None, None, None]
        crops = torch.where(chosen & (crops >= view.solarize_threshold), 1.0 - crops, crops)
    if view.noise > 0.0:
        noise = torch.from_numpy(gaussian_noise(parameters.noise_key, (c, s, s))).to(crops.device)
        crops = crops + view.noise * noise
    return (crops - mean[:, None, None]) / std[:, None, None]
