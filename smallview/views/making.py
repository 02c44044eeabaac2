"""From pictures in a pack to the views of a batch: draw, crop, disturb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.errors import UsageError
from smallview.records import Batch, Pictures, ViewBatch
from smallview.views import kernel_cpu, kernel_torch, sampling
from smallview.views.sampling import ViewParameters
from smallview.views.view import View, pixels


class ViewMaker:
    """Makes the views of a batch: the same bits for the same (seed, epoch, progress, pictures), whatever the threads or the order.

    Crops are cut by the compiled CPU kernel from the pack itself; with CUDA, equally large pictures are kept on the device and cut
    there (MPS has no float64, which the boxes need). mean and std float [C] are the run's normalisation. masked: the same pictures
    without background, from which a view's share `mask_background` is cut.

    Raises:
        UsageError: a view that masks the background without such a copy, or a copy of another geometry.
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
        masked: Pictures | None = None,
    ) -> None:
        _check_masked(views, pictures, masked)
        self.pictures, self.masked = pictures, masked
        self.views, self.size, self.seed, self.threads = tuple(views), size, seed, threads
        self.device = torch.device(device)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device)
        kept = self.device.type == "cuda" and pictures.one_size is not None
        self.resident = self._keep(pictures) if kept else None
        self.resident_masked = self._keep(masked) if kept and masked is not None else None

    def _keep(self, pictures: Pictures) -> Tensor:
        """Equally large pictures as uint8 [N, C, H, W] on the device."""
        assert pictures.one_size is not None
        copy = np.array(pictures.pixels).reshape(len(pictures), *pictures.one_size, pictures.channels)
        return torch.from_numpy(copy).permute(0, 3, 1, 2).contiguous().to(self.device)

    def draw(self, batch: Batch) -> list[ViewParameters]:
        """The parameters of every view of the batch, as plain arrays."""
        index, heights, widths = batch.index, self.pictures.heights[batch.index], self.pictures.widths[batch.index]
        return [
            sampling.draw(view, v, pixels(view.size, self.size, batch.progress), heights, widths, index, self.seed, batch.epoch)
            for v, view in enumerate(self.views)
        ]

    def crop(
        self,
        index: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float64],
        flips: npt.NDArray[np.bool_],
        size: int,
        masked: npt.NDArray[np.bool_] | None = None,
    ) -> Tensor:
        """Crops float [B, C, S, S] in [0, 1] on the maker's device; `masked` bool [B] are cut from the copy without background."""
        rows = np.empty(0, np.int64) if masked is None else np.flatnonzero(masked)
        if self.resident is not None:
            where = torch.from_numpy(index).to(self.device)
            images = self.resident[where]
            if len(rows):
                assert self.resident_masked is not None
                at = torch.from_numpy(rows).to(self.device)
                images[at] = self.resident_masked[where[at]]
            return kernel_torch.crop_resize(images, boxes, flips, size)
        crops = self._cut(self.pictures, index, boxes, flips, size)
        if len(rows):
            assert self.masked is not None
            crops[rows] = self._cut(self.masked, index[rows], boxes[rows], flips[rows], size)
        return torch.from_numpy(crops).to(self.device)

    def _cut(
        self,
        p: Pictures,
        index: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float64],
        flips: npt.NDArray[np.bool_],
        size: int,
    ) -> npt.NDArray[np.float32]:
        return kernel_cpu.crop_resize(
            pixels, starts, p.heights[index], p.widths[index], p.channels, np.arange(len(index)), boxes, flips, size, self.threads
        )

    def make(self, index: npt.NDArray[np.int64], parameters: Sequence[ViewParameters]) -> tuple[ViewBatch, ...]:
        """The views that the parameters describe: replaying drawn parameters gives the same bits again."""
        out = []
        for view, drawn in zip(self.views, parameters, strict=True):
            crops = self.crop(index, drawn.box, drawn.flip, drawn.size, drawn.masked)
            out.append(ViewBatch(kernel_torch.disturb(crops, view, drawn, self.mean, self.std), view.seen_by))
        return tuple(out)

    def __call__(self, batch: Batch) -> tuple[ViewBatch, ...]:
        """Draw and make: one ViewBatch [B, C, S, S] per view."""
        return self.make(batch.index, self.draw(batch))


def _check_masked(views: Sequence[View], pictures: Pictures, masked: Pictures | None) -> None:
    if masked is None:
        for v, view in enumerate(views):
            if view.mask_background > 0.0:
                raise UsageError(
                    f"view {v} masks the background (mask_background {view.mask_background:g}) and there are no masks; "
                    f"give masks=..., or set method.views.{v}.mask_background=0"
                )
    elif not (
        masked.channels == pictures.channels
        and np.array_equal(masked.heights, pictures.heights)
        and np.array_equal(masked.widths, pictures.widths)
    ):
        raise UsageError(
            f"{len(masked):,} masked pictures of {masked.channels} channels for {len(pictures):,} of {pictures.channels}; "
            "wanted a copy of the same pictures, each of its size: make it with mask_pictures"
        )


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
