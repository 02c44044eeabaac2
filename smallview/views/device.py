"""Pictures on the device that views are made on: kept there as bytes where they fit, sent there batch by batch where they do not.

Legend: B pictures, C channels, H and W the largest sides among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.records import Foregrounds, Pictures
from smallview.views.compiling import compiled
from smallview.views.kernel_torch import Front, to_device
from smallview.views.resampling import copy_values

CHUNK = 2**28
MOST_PADDING = 4
MOST_KEPT = 0.5  # of the device's free memory: the rest is for the networks and their activations


@compiled
def _collect(pixels: Any, starts: Any, sizes: Any, ends: Any, out: Any) -> None:
    for n in range(starts.shape[0]):
        copy_values(pixels[starts[n] : starts[n] + sizes[n]], out[ends[n] - sizes[n] : ends[n]])


class DevicePictures:
    """The pictures of a pack as uint8 [B, C, H, W] on a device; smaller ones stand in the top left corner, the rest is undefined.

    keep: hold all of them on the device; None keeps equally large ones on a GPU while they take at most half of its free memory.
    Otherwise a batch's bytes go there as they are, one copy for all of its views, from pinned memory and without waiting.
    """

    def __init__(
        self,
        pictures: Pictures,
        device: torch.device,
        foregrounds: Foregrounds | None = None,
        keep: bool | None = None,
        threads: int = 1,
    ) -> None:
        self.pictures, self.device, self.foregrounds, self.threads = pictures, device, foregrounds, threads
        sides = pictures.one_size
        if keep is None:
            needed = 0 if sides is None else len(pictures) * sides[0] * sides[1] * pictures.channels
            keep = device.type == "cuda" and sides is not None and needed <= MOST_KEPT * torch.cuda.mem_get_info(device)[0]
        self.kept: Tensor | None = None
        if keep and sides is not None:
            n, channels = len(pictures), pictures.channels
            self.kept = torch.empty(n, channels, *sides, dtype=torch.uint8, device=device)
            step = max(1, CHUNK // (sides[0] * sides[1] * channels))
            for first in range(0, n, step):  # a second copy of everything would not fit
                some = np.arange(first, min(n, first + step), dtype=np.int64)
                self.kept[first : first + step] = self._send(some).view(len(some), *sides, channels).permute(0, 3, 1, 2)

    def _send(self, index: npt.NDArray[np.int64]) -> Tensor:
        """The bytes of these pictures, back to back, on the device."""
        pixels, starts = self.pictures.gather(index, self.threads)
        sizes = self.pictures.heights[index].astype(np.int64) * self.pictures.widths[index] * self.pictures.channels
        ends = np.cumsum(sizes)
        flat = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        read_only = pixels.view()
        read_only.flags.writeable = False
        _collect(read_only, np.ascontiguousarray(starts), sizes, ends, flat.numpy())
        return flat.to(self.device, non_blocking=True)

    def groups(self, index: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """The rows of a batch in parts that padding makes at most MOST_PADDING times larger; one part for all but the oddest sizes."""
        heights, widths = (sides[index].astype(np.int64) for sides in (self.pictures.heights, self.pictures.widths))
        if self.kept is not None or len(index) * heights.max(initial=0) * widths.max(initial=0) <= MOST_PADDING * (
            heights @ widths
        ):
            return [np.arange(len(index))]
        parts: list[list[int]] = []
        tall = wide = area = 0
        for row in np.lexsort((widths, heights)).tolist():
            h, w = int(heights[row]), int(widths[row])
            tall, wide, area = max(tall, h), max(wide, w), area + h * w
            if not parts or (len(parts[-1]) + 1) * tall * wide > MOST_PADDING * area:
                parts.append([])
                tall, wide, area = h, w, h * w
            parts[-1].append(row)
        return [np.array(part) for part in parts]

    def images(self, index: npt.NDArray[np.int64]) -> Tensor:
        """Uint8 [B, C, H, W] of the pictures at these positions."""
        if self.kept is not None:
            return self.kept[to_device(index, self.device)]
        heights, widths, channels = self.pictures.heights[index], self.pictures.widths[index], self.pictures.channels
        if not len(index):
            return torch.empty(0, channels, 1, 1, dtype=torch.uint8, device=self.device)
        flat = self._send(index)
        tall, wide = int(heights.max()), int(widths.max())
        if bool((heights == tall).all() and (widths == wide).all()):
            return flat.view(len(index), tall, wide, channels).permute(0, 3, 1, 2)
        sizes = heights.astype(np.int64) * widths * channels
        start = to_device(np.cumsum(sizes) - sizes, self.device)[:, None, None, None]
        channel = torch.arange(channels, device=self.device)[None, :, None, None]
        place = start + pixel_numbers(widths, tall, wide, self.device)[:, None] * channels + channel
        return flat[place.clamp(max=len(flat) - 1)]

    def front(self, index: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_], tall: int, wide: int) -> Front:
        """The foreground of these pictures as [B, H, W], everything where `rows`, bool [B], is false."""
        assert self.foregrounds is not None
        f, widths, heights = self.foregrounds, self.pictures.widths[index], self.pictures.heights[index].astype(np.int64)
        lengths = (heights * widths + 7) // 8
        most = int(lengths.max())
        places = np.minimum(f.starts[index][:, None] + np.arange(most)[None], len(f.bits) - 1)
        packed = to_device(f.bits[places], self.device)  # [B, bytes]
        pixel = pixel_numbers(widths, tall, wide, self.device).clamp(max=8 * most - 1)
        byte = packed.gather(1, (pixel >> 3).flatten(1)).view_as(pixel)
        front = (byte.long() >> (7 - (pixel & 7))) & 1 == 1
        whole = to_device(~rows, self.device)
        sides = (to_device(heights, self.device), to_device(widths.astype(np.int64), self.device))
        return Front(front | whole[:, None, None], *sides)


def pixel_numbers(widths: npt.NDArray[np.int32], tall: int, wide: int, device: torch.device) -> Tensor:
    """Number of each pixel within its picture, int64 [B, H, W]."""
    stride = to_device(widths.astype(np.int64), device)[:, None, None]
    down = torch.arange(tall, device=device)[None, :, None]
    return down * stride + torch.arange(wide, device=device)[None, None, :]
