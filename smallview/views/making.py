"""From pictures in a pack to the views of a batch: draw, cut, disturb."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.errors import UsageError
from smallview.records import Batch, Foregrounds, Pictures, ViewBatch
from smallview.schedules import SPAN
from smallview.views import kernel_cpu, kernel_torch, kernel_triton, parity, sampling
from smallview.views.device import DevicePictures, pixel_numbers
from smallview.views.sampling import Mode, ViewParameters
from smallview.views.view import CENTRE, View, pixels
from smallview.views.view_graphs import ViewGraphs

_PLAIN = View(flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)


class ViewMaker:
    """Makes the views of a batch: the same for the same (seed, epoch, progress, pictures), whatever the threads or the order.

    To the bit with the kernel; the torch executor rounds by the shape of the batch, some 1e-6.

    mean and std float [C] are the run's normalisation. foregrounds: what stands in front, for views that mask the background. mode:
    fast, one algebra for all; parity, torchvision's own semantics. executor: `kernel`, compiled, cuts views from the pack itself on
    the CPU; `torch` makes them on any device; `triton` in few launches on CUDA, fast views of three channels. auto: the kernel on a
    CPU, triton where it can, else torch. Every view of a batch is cut from one decode.

    Raises:
        UsageError: a view that masks the background without foregrounds, or those of another number of pictures; an executor that
            cannot make these views on this device.
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
        foregrounds: Foregrounds | None = None,
        *,
        mode: Mode = "fast",
        executor: Literal["auto", "kernel", "torch", "triton"] = "auto",
        keep: bool | None = None,
    ) -> None:
        _check_masks(views, pictures, foregrounds)
        self.pictures, self.foregrounds = pictures, foregrounds
        self.views, self.size, self.seed, self.threads, self.mode = tuple(views), size, seed, threads, mode
        self.device = torch.device(device)
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        self.executor = self._executor(executor)
        self.on_device = (
            None if self.executor == "kernel" else DevicePictures(pictures, self.device, foregrounds, keep, threads)
        )
        self._moments = tuple(kernel_torch.to_device(moment, self.device) for moment in (self.mean, self.std))
        kept = None if self.on_device is None else self.on_device.kept
        self.graphs: ViewGraphs | None = None
        if self.executor == "triton" and kept is not None and ViewGraphs.able(self.views):
            self.graphs = ViewGraphs(kept, self.views, *self._moments)
        self._slots: dict[tuple[int, int], npt.NDArray[np.float32]] = {}

    def _executor(self, wanted: str) -> str:
        on_cpu = self.device.type == "cpu"
        if wanted == "kernel" and not on_cpu:
            raise UsageError(f"executor is kernel and the device {self.device}; wanted torch there")
        if wanted == "triton" and (why := self._no_triton()):
            raise UsageError(f"executor is triton and {why}; wanted auto or torch")
        if wanted != "auto":
            return wanted
        return "kernel" if on_cpu else "torch" if self._no_triton() else "triton"

    def _no_triton(self) -> str | None:
        if self.mode != "fast":
            return f"views are in {self.mode} mode"
        if self.pictures.channels != 3:
            return f"pictures have {self.pictures.channels} channels"
        return kernel_triton.unusable(self.device)

    def draw(self, batch: Batch) -> list[ViewParameters]:
        """The parameters of every view of the batch, as plain arrays."""
        index, heights, widths = batch.index, self.pictures.heights[batch.index], self.pictures.widths[batch.index]
        samples = self.pictures.first + index
        return [
            sampling.draw(
                view.at(batch.progress),
                v,
                pixels(view.size, self.size, batch.progress),
                heights,
                widths,
                samples,
                self.seed,
                batch.epoch,
            )
            for v, view in enumerate(self.views)
        ]

    def make(
        self, index: npt.NDArray[np.int64], parameters: Sequence[ViewParameters], slot: int | None = None
    ) -> tuple[ViewBatch, ...]:
        """The views that the parameters describe: replaying drawn parameters gives the same bits again.

        slot: write into buffers of this number, which the next call with it writes over; None makes new ones.
        """
        pairs = list(zip(self.views, parameters, strict=True))
        for v, (_, drawn) in enumerate(pairs):
            if len(drawn.box) != len(index):
                raise UsageError(
                    f"parameters of view {v} are of {len(drawn.box):,} pictures and {len(index):,} are asked for; wanted one row each"
                )
            if not np.isfinite(drawn.box).all():
                raise UsageError(
                    f"boxes of view {v} hold numbers that are not finite; wanted top, left, height and width in pixels"
                )
        if self.graphs is not None and len(index):
            cut = self.graphs(index, *self._sides(index), parameters)
            return tuple(ViewBatch(made, view.seen_by) for made, view in zip(cut, self.views, strict=True))
        if self.on_device is not None:
            return tuple(
                ViewBatch(made, view.seen_by) for made, view in zip(self._on_device(index, pairs), self.views, strict=True)
            )
        flat, starts = self.pictures.gather(index, self.threads)
        out = []
        for v, (view, drawn) in enumerate(pairs):
            into = self._buffer(slot, v, (len(index), self.pictures.channels, drawn.size, drawn.size))
            if self.mode == "fast":
                made = torch.from_numpy(self._cut(flat, starts, index, view, drawn, into))
            else:
                crops = self._cut(flat, starts, index, view, drawn, into, crop_only=True)
                made = parity.disturb(torch.from_numpy(crops), view, drawn, *self._moments)
            out.append(ViewBatch(made, view.seen_by))
        return tuple(out)

    def __call__(self, batch: Batch, slot: int | None = None) -> tuple[ViewBatch, ...]:
        """Draw and make: one ViewBatch [B, C, S, S] per view."""
        return self.make(batch.index, self.draw(batch), slot)

    def record(self, batch_size: int) -> None:
        """Get ready for batches of so many pictures: on CUDA, views of kept pictures are recorded as graphs.

        For one thread alone with the device, before views are made ahead.
        """
        if self.graphs is not None:
            sizes = (tuple(pixels(view.size, self.size, progress) for view in self.views) for progress in SPAN)
            self.graphs.record(batch_size, sizes)

    def into_slots(self, slots: int) -> Callable[[Batch], tuple[ViewBatch, ...]]:
        """The maker with a ring of so many buffers: what it gives is valid until the slots - 1 next calls are over."""
        turn = itertools.count()
        return lambda batch: self(batch, next(turn) % slots)

    def crop(
        self, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64], flips: npt.NDArray[np.bool_], size: int
    ) -> Tensor:
        """Crops float [B, C, S, S] in [0, 1] and nothing else done to them, on the maker's device."""
        drawn = sampling.neutral(boxes, flips, size)
        if self.on_device is not None:
            images = self.on_device.images(index)
            return kernel_torch.crop_resize(images, *self._sides(index), drawn)
        flat, starts = self.pictures.gather(index, self.threads)
        return torch.from_numpy(self._cut(flat, starts, index, _PLAIN, drawn, None, crop_only=True))

    def memory(self, batch_size: int, slots: int) -> int:
        """Bytes that the buffers of this many slots hold, views at their largest."""
        sides = [max(pixels(view.size, self.size, progress) for progress in SPAN) for view in self.views]
        return 4 * slots * batch_size * self.pictures.channels * sum(side * side for side in sides)

    def _sides(self, index: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return self.pictures.heights[index].astype(np.int64), self.pictures.widths[index].astype(np.int64)

    def _cut(
        self,
        flat: npt.NDArray[np.uint8],
        starts: npt.NDArray[np.int64],
        index: npt.NDArray[np.int64],
        view: View,
        drawn: ViewParameters,
        out: npt.NDArray[np.float32] | None,
        crop_only: bool = False,
    ) -> npt.NDArray[np.float32]:
        heights, widths = self.pictures.heights[index], self.pictures.widths[index]
        return kernel_cpu.make_views(
            *(flat, starts, heights, widths, view, drawn, self.mean, self.std),
            foregrounds=self.foregrounds,
            index=index,
            out=out,
            threads=self.threads,
            crop_only=crop_only,
        )

    def _on_device(self, index: npt.NDArray[np.int64], pairs: list[tuple[View, ViewParameters]]) -> list[Tensor]:
        assert self.on_device is not None
        groups = self.on_device.groups(index) if pairs else []
        parts = []
        for rows in groups:
            images = self.on_device.images(index[rows])
            if self.executor == "triton" and all(view.mask_background == 0.0 for view, _ in pairs):
                images = images.half()  # once for all views
            few = len(groups) > 1
            parts.append(
                [self._view_of(index[rows], images, view, drawn.take(rows) if few else drawn) for view, drawn in pairs]
            )
        if len(parts) < 2:
            return parts[0] if parts else []
        back = kernel_torch.to_device(np.argsort(np.concatenate(groups)), self.device)
        return [torch.cat(made)[back] for made in zip(*parts, strict=True)]

    def _view_of(self, index: npt.NDArray[np.int64], images: Tensor, view: View, drawn: ViewParameters) -> Tensor:
        assert self.on_device is not None
        if view.mask_background > 0.0 and self.foregrounds is not None:
            masked = drawn.masked & self.foregrounds.usable[index]
            if bool(masked.any()):
                tall, wide = images.shape[2:]
                numbers = pixel_numbers(self.pictures.widths[index], tall, wide, self.device)
                front = self.on_device.front(index, masked, tall, wide)
                images = kernel_torch.fill(images, front, view, drawn, numbers, self.mean)
        if self.executor == "triton":
            return kernel_triton.make_view(images, *self._sides(index), view, drawn, *self._moments)
        crops = kernel_torch.crop_resize(images, *self._sides(index), drawn, blur=self.mode == "fast")
        disturb = kernel_torch.disturb if self.mode == "fast" else parity.disturb
        return disturb(crops, view, drawn, *self._moments)

    def _buffer(self, slot: int | None, view: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
        if slot is None:
            return None
        kept = self._slots.get((slot, view))
        if kept is None or kept.shape != shape:
            kept = self._slots[slot, view] = np.empty(shape, np.float32)
        return kept


def _check_masks(views: Sequence[View], pictures: Pictures, foregrounds: Foregrounds | None) -> None:
    if foregrounds is None:
        for v, view in enumerate(views):
            if view.mask_background > 0.0:
                raise UsageError(
                    f"view {v} masks the background (mask_background {view.mask_background:g}) and there are no masks; "
                    f"give masks=..., or set method.views.{v}.mask_background=0"
                )
    elif len(foregrounds.starts) != len(pictures):
        raise UsageError(f"masks of {len(foregrounds.starts):,} pictures for {len(pictures):,}; wanted one for each")


def centre_part(pictures: Pictures, size: int) -> float:
    """How much of the short side the one centre view covers: all of it for small pictures of one square size, else 0.875."""
    one = pictures.one_size
    return 1.0 if one is not None and one[0] == one[1] and one[0] <= size / CENTRE else CENTRE


def centre_maker(
    pictures: Pictures, size: int, mean: Sequence[float], std: Sequence[float], threads: int = 1, slots: int = 0
) -> Callable[[npt.NDArray[np.int64]], Tensor]:
    """What makes the one centre view of evaluation of the pictures at these positions: float [B, C, S, S], normalised, on the CPU.

    slots: as ViewMaker.into_slots has it; 0 makes new views each time.
    """
    maker = ViewMaker(pictures, (_PLAIN,), size, mean, std, seed=0, threads=threads)
    part, turn = centre_part(pictures, size), itertools.count()

    def make(index: npt.NDArray[np.int64]) -> Tensor:
        boxes = sampling.centre(pictures.heights[index], pictures.widths[index], part)
        slot = next(turn) % slots if slots else None
        (made,) = maker.make(index, [sampling.neutral(boxes, np.zeros(len(index), np.bool_), size)], slot)
        return made.images

    return make


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
    make = centre_maker(pictures, size, mean, std, threads)
    for start in range(0, len(which), batch_size):
        yield make(which[start : start + batch_size])
