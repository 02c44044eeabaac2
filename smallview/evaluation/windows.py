"""Windows of pictures: where to look for one, how it is cut out, and how it is moved to where it is most like another picture.

Legend: n pictures, W windows, H, S and s sides in pixels; a box is (left, top, right, bottom) in parts of a picture's sides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SLACK = 0.075  # between the places of two windows of a scale
LEAST = 0.6  # of each side: smaller parts are not looked for
STEPS, FAR = 6, 0.06  # how often, and how far at once, a box is moved
WHOLE = (0.0, 0.0, 1.0, 1.0)


def windows() -> Tensor:
    """Boxes [W, 4] of every scale, at places so dense that each crop of 70 to 95 % of each side lies near one.

    Example:
        >>> boxes = windows()
        >>> boxes.shape, boxes.min().item() >= 0.0, boxes.max().item() <= 1.0
        (torch.Size([50, 4]), True, True)
    """
    out = []
    for scale in SCALES:
        count = max(1, math.ceil((1.0 - scale) / SLACK - 1e-6))
        at = [(k + 0.5) / count * (1.0 - scale) for k in range(count)]
        out += [(left, top, left + scale, top + scale) for top in at for left in at]
    return torch.tensor(out)


def weights(start: Tensor, stop: Tensor, size: int, side: int) -> Tensor:
    """[n, side, size]: each of `side` pixels from start to stop [n] as a mean of `size` ones, as an antialiased resize takes it."""
    step = (stop - start)[:, None, None] * size / side
    centre = start[:, None, None] * size + (torch.arange(side)[None, :, None] + 0.5) * step - 0.5
    far = (torch.arange(size)[None, None] - centre).abs() / step.clamp(min=1.0)
    near = (1.0 - far).clamp(min=0.0)
    out: Tensor = near / near.sum(2, keepdim=True)
    return out


def cut(pictures: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The window [n, side, side] that its box [n, 4] cuts out of each picture [n, H, S].

    Example:
        >>> ramp = torch.arange(8.0).expand(1, 8, 8)
        >>> cut(ramp, torch.tensor([[0.5, 0.0, 1.0, 1.0]]), 4)[0, 0].tolist()
        [4.0, 5.0, 6.0, 7.0]
    """
    left, top, right, bottom = boxes.T
    rows = weights(top, bottom, pictures.shape[1], side)
    return rows @ pictures @ weights(left, right, pictures.shape[2], side).transpose(1, 2)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """How two pictures [n, s, s] correlate, [n]; 0 where one of them is flat."""
    a, b = (rows - rows.mean(1, keepdim=True) for rows in (one.flatten(1), other.flatten(1)))
    out: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)
    return out


def fitted(wholes: Tensor, parts: Tensor, boxes: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """(boxes moved to where the window is most like the part, how the two correlate): [n, 4], [n] of wholes [n, H, S] and parts [n, s, s].

    Gauss and Newton's steps on the four sides of a box, which need not keep its aspect; brightness and contrast are free. Of the
    boxes on the way, the best.

    Source: Lucas and Kanade, 1981, for a window that is moved and stretched.
    """
    side = parts.shape[-1]
    u = (torch.arange(side) + 0.5) / side
    height, width = wholes.shape[1:]
    down, across = torch.gradient(wholes, dim=(1, 2))
    aim, ones = parts.flatten(1)[:, :, None], torch.ones_like(parts)
    window = cut(wholes, boxes, side)
    best, found = boxes, correlation(window, parts)
    for _ in range(steps):
        gx, gy = width * cut(across, boxes, side), height * cut(down, boxes, side)
        slopes = gx * (1.0 - u), gy * (1.0 - u)[:, None], gx * u, gy * u[:, None], window, ones
        table = torch.stack([slope.flatten(1) for slope in slopes], 2)  # [n, s * s, 6]
        square = table.transpose(1, 2) @ table
        scale = square.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
        # a little on the diagonal: of a picture with stripes alone, or none, some sides cannot be told
        square = square / (scale[:, :, None] * scale[:, None]) + 1e-4 * torch.eye(6)
        answer = torch.linalg.solve(square, (table.transpose(1, 2) @ aim)[..., 0] / scale) / scale
        gain = answer[:, 4:5]
        moved = torch.where(gain > 0.05, answer[:, :4] / gain.clamp(min=0.05), torch.zeros(())).clamp(-FAR, FAR)
        boxes = _inside(boxes + moved)
        window = cut(wholes, boxes, side)
        now = correlation(window, parts)
        better = now > found
        best, found = torch.where(better[:, None], boxes, best), torch.where(better, now, found)
    return best, found


def _inside(boxes: Tensor) -> Tensor:
    """Boxes within the picture, at least LEAST of each side."""
    first, last = boxes[:, :2].clamp(0.0, 1.0 - LEAST), boxes[:, 2:].clamp(0.0, 1.0)
    return torch.cat([first, torch.maximum(last, first + LEAST)], 1)
