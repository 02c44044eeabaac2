"""From pictures in a pack to the views of a batch: draw, crop, disturb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.records import Batch, Pictures, ViewBatch
from smallview.views import kernel_cpu, kernel_torch, sampling
from smallview.views.sampling import ViewParameters
from smallview.views.view import View


class ViewMaker:
    """Makes the views of a batch: the same bits for the same (seed, epoch, pictures), whatever the threads or the order.

    Crops are cut by the compiled CPU kernel from the pack itself; with CUDA, equally large pictures are kept on the device and cut
    there (MPS has no float64, which the boxes need). mean and std float [C] are the run's normalisation.
    """

    def __init__(
        self,
        pictures: Pictures,
        views: Sequence[View],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        device: torch.device | str = "cpu",
        threads: int = 1,
    ) -> None:
        self.pictures, self.views, self.size, self.seed, self.threads = pictures, tuple(views), size, seed, threads
        self.device = torch.device(device)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self.resident: Tensor | None = None
        if self.device.type == "cuda" and pictures.one_size is not None:
            shape = (len(pictures), *pictures.one_size, pictures.channels)
            copy = np.array(pictures.pixels).reshape(shape)
            self.resident = torch.from_numpy(copy).permute(0, 3, 1, 2).contiguous().to(self.device)

    def draw(self, batch: Batch) -> list[ViewParameters]:
        """The parameters of every view of the batch, as plain arrays."""
        index, pictures = batch.index, self.pictures
        return [
            sampling.draw(
                view, v, view.size or self.size, pictures.heights[index], pictures.widths[index], index, self.seed, batch.epoch
            )
            for v, view in enumerate(self.views)
        ]

    def crop(
        self, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64], flips: npt.NDArray[np.bool_], size: int
    ) -> Tensor:
        """Crops float [B, C, S, S] in [0, 1] on the maker's device."""
        if self.resident is not None:
            return kernel_torch.crop_resize(self.resident[torch.from_numpy(index).to(self.device)], boxes, flips, size)
        p = self.pictures
        crops = kernel_cpu.crop_resize(
            p.pixels, p.offsets, p.heights, p.widths, p.channels, index, boxes, flips, size, self.threads
        )
        return torch.from_numpy(crops).to(self.device)

    def make(self, index: npt.NDArray[np.int64], parameters: Sequence[ViewParameters]) -> tuple[ViewBatch, ...]:
        """The views that the parameters describe: replaying drawn parameters gives the same bits again."""
        out = []
        for view, drawn in zip(self.views, parameters, strict=True):
            crops = self.crop(index, drawn.box, drawn.flip, view.size or self.size)
            out.append(ViewBatch(kernel_torch.disturb(crops, view, drawn, self.mean, self.std), view.seen_by))
        return tuple(out)

    def __call__(self, batch: Batch) -> tuple[ViewBatch, ...]:
        """Draw and make: one ViewBatch [B, C, S, S] per view."""
        return self.make(batch.index, self.draw(batch))


def centre_part(pictures: Pictures, size: int) -> float:
    """How much of the short side the one centre view covers: all of it for small pictures of one square size, else 0.875."""
    plain = (
        pictures.one_size is not None and pictures.one_size[0] == pictures.one_size[1] and pictures.one_size[0] <= size / 0.875
    )
    return 1.0 if plain else 0.875


def centre_views(
    pictures: Pictures,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    threads: int = 1,
    which: npt.NDArray[np.int64] | None = None,
) -> Iterator[Tensor]:
    """The one centre view of evaluation, in the pack's order or of the positions `which`: float [B, C, S, S], normalised, on the CPU."""
    which = np.arange(len(pictures)) if which is None else which
    maker = ViewMaker(pictures, (), size, mean, std, seed=0, threads=threads)
    part = centre_part(pictures, size)
    for start in range(0, len(which), batch_size):
        index = which[start : start + batch_size]
        boxes = sampling.centre(pictures.heights[index], pictures.widths[index], part)
        crops = maker.crop(index, boxes, np.zeros(len(index), np.bool_), size)
        yield (crops - maker.mean[:, None, None]) / maker.std[:, None, None]
