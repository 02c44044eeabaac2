"""The views of a batch as one CUDA graph, for pictures that are kept on the device: one launch for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.views import kernel_triton
from smallview.views.kernel_torch import to_device
from smallview.views.sampling import ViewParameters
from smallview.views.view import View

MOST = 8
Needs = tuple[tuple[int, bool, bool], ...]


@dataclass(frozen=True)
class Recorded:
    """A graph, where it reads positions [B] and tables [V, B, WIDTH], and where it leaves views."""

    graph: Any
    place: Tensor
    known: Tensor
    made: list[Tensor]


class ViewGraphs:
    """Makes all views of a batch of kept pictures [N, 3, H, W] by a graph recorded for batches of its kind, if there is one.

    Same kernels, same numbers. Views with noise or masked backgrounds are not for it.
    """

    def __init__(self, kept: Tensor, views: Sequence[View], mean: Tensor, std: Tensor) -> None:
        self.kept, self.views, self.moments = kept, tuple(views), torch.stack([mean, std])
        self._recorded: dict[tuple[int, tuple[int, ...]], Recorded] = {}
        self._last: Any = None

    @staticmethod
    def able(views: Sequence[View]) -> bool:
        """Whether all these views can be made so."""
        return all(view.noise == 0.0 and view.mask_background == 0.0 for view in views)

    def record(self, batch_size: int, sizes: Iterable[tuple[int, ...]]) -> None:
        """Record graphs for batches of so many pictures and views of these sizes, the first eight of them.

        For one thread alone with the device: what others ask of it meanwhile would spoil the record.
        """
        for size in dict.fromkeys(sizes):
            if (batch_size, size) in self._recorded or len(self._recorded) >= MOST:
                continue
            place = torch.zeros(batch_size, dtype=torch.int64, device=self.kept.device)
            known = torch.zeros(len(self.views), batch_size, kernel_triton.WIDTH, device=self.kept.device)
            needed = tuple(
                (side, view.blur > 0.0, view.jitter > 0.0 and view.contrast > 0.0)
                for side, view in zip(size, self.views, strict=True)
            )
            self._make(place, known, needed)  # kernels are compiled and loaded
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made = self._make(place, known, needed)
            self._recorded[batch_size, size] = Recorded(graph, place, known, made)

    def __call__(
        self, index: npt.NDArray[np.int64], heights: npt.NDArray[np.int64], widths: npt.NDArray[np.int64],
        drawn: Sequence[ViewParameters],
    ) -> list[Tensor]:  # fmt: skip
        """One [B, 3, S, S] per view."""
        tables = np.stack([kernel_triton.table(one, heights, widths) for one in drawn])
        place, known = to_device(index, self.kept.device), to_device(tables, self.kept.device)
        recorded = self._recorded.get((len(index), tuple(one.size for one in drawn)))
        needed = tuple(kernel_triton.needs(one) for one in drawn)
        if recorded is None or not self._covers(needed):
            return self._make(place, known, needed)
        here = torch.cuda.current_stream(self.kept.device)
        if self._last is not None:
            here.wait_event(self._last)  # on another stream, the last batch may not be out yet
        recorded.place.copy_(place)
        recorded.known.copy_(known)
        recorded.graph.replay()
        out = [view.clone() for view in recorded.made]
        self._last = here.record_event()
        return out

    def _covers(self, needed: Needs) -> bool:
        """Whether nothing was drawn, or given by hand, that the views do not do by themselves."""
        return all(
            (view.blur > 0.0 or not blurred) and (not contrast or (view.jitter > 0.0 and view.contrast > 0.0))
            for view, (_, blurred, contrast) in zip(self.views, needed, strict=True)
        )

    def _make(self, place: Tensor, known: Tensor, needed: Needs) -> list[Tensor]:
        images = self.kept[place].half()
        return [kernel_triton.cut(images, known[v], needed[v], view, self.moments) for v, view in enumerate(self.views)]
