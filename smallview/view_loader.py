"""Views for a training loop of one's own: an iterable of batches, made as `pretrain` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smallview.config import smallest_crop
from smallview.data.loading import batches
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import UsageError
from smallview.records import Batch
from smallview.settle import picture_side, thread_count
from smallview.training.prefetch import ahead
from smallview.views.making import ViewMaker
from smallview.views.view import View

DEPTH = 2
DEFAULT_SIZE = 64


class ViewLoader:
    """Batches of views of pictures without labels: iterating once is one epoch of tuples, one tensor float [B, C, S, S] for each view.

    data: as for `pretrain`. views: values, as `smallview.method("byol").views` has them; two of SimCLR's by default. size: pixels of
    a view's side; None: the pictures' side up to 32, else 64. mean, std: what pixels in [0, 1] are normalised by, a number or one for
    each channel; the defaults are what `embed` and `evaluate` feed a module. epochs: how many there will be, for views whose size or
    strength follows the training's progress. threads: all processors by default.

    An epoch is N // B batches in an order of its own, the same for the same seed whatever came before: `epoch` counts them from 0 and
    may be set to go on. On a CPU the next batches are made in a thread while this one is used.

    Raises:
        DataError: pictures that cannot be used. UsageError: a batch larger than the set, or views that mask the background.

    Example:
        >>> import numpy as np
        >>> pictures = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), np.uint8)
        >>> loader = ViewLoader(pictures, batch_size=4, seed=0)
        >>> len(loader), [tuple(first.shape) for first, second in loader]
        (2, [(4, 3, 8, 8), (4, 3, 8, 8)])
    """

    def __init__(
        self,
        data: Any,
        views: Sequence[View] = (View(), View()),
        *,
        size: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        epochs: int | None = None,
        threads: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        source = open_source(data, labels=False)
        side = picture_side(source)
        self.size = size or (max(4, side) if side <= 32 else DEFAULT_SIZE)
        self.batch_size, self.seed, self.epoch, self.epochs = batch_size, seed, 0, epochs
        threads = thread_count(threads)
        self.pack = open_pack(source, short_side=smallest_crop(views, self.size), threads=threads)
        if not 1 <= batch_size <= len(self.pack):
            raise UsageError(f"batch_size is {batch_size:,} and there are {len(self.pack):,} pictures; wanted 1 to that")
        self.channels, self.device = self.pack.channels, torch.device(device)
        means, stds = (np.broadcast_to(moment, self.channels).tolist() for moment in (mean, std))
        self.maker = ViewMaker(self.pack, views, self.size, means, stds, seed, self.device, threads)

    def __len__(self) -> int:
        return len(self.pack) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch, steps = self.epoch, len(self)
        if self.epochs is not None and epoch >= self.epochs:
            raise UsageError(f"epoch {epoch + 1} of {self.epochs}; wanted epochs={epoch + 1} or more, or epoch set back")
        self.epoch += 1
        total = None if self.epochs is None else self.epochs * steps
        order = batches(len(self.pack), self.batch_size, self.seed, epoch * steps, (epoch + 1) * steps, total_steps=total)
        return self._made(order)

    def _made(self, order: Iterator[Batch]) -> Iterator[tuple[Tensor, ...]]:
        if self.device.type != "cpu":
            for batch in order:
                yield tuple(view.images for view in self.maker(batch))
            return
        with closing(ahead(self.maker, order, DEPTH)) as made:
            for _, views in made:
                yield tuple(view.images for view in views)
