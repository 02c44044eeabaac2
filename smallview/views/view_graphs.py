"""The views of a batch as one CUDA graph, for pictures that are kept on the device: one launch for all of them."""

from __future__ import annotations

from collections.abc import Sequence
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


class ViewGraphs:
    """Makes all views of a batch of kept pictures [N, 3, H, W]; the second batch of a kind records a graph, later ones replay it.

    Same kernels, same numbers. Views with noise or masked backgrounds, and the ninth kind, are not for it.
    """

    def __init__(self, kept: Tensor, views: Sequence[View], mean: Tensor, std: Tensor) -> None:
        self.kept, self.views, self.moments = kept, tuple(views), torch.stack([mean, std])
        self._recorded: dict[tuple[int, Needs], Any] = {}
        self._seen: set[tuple[int, Needs]] = set()
        self._last: Any = None

    @staticmethod
    def able(views: Sequence[View]) -> bool:
        """Whether all these views can be made so."""
        return all(view.noise == 0.0 and view.mask_background == 0.0 for view in views)

    def __call__(
        self, index: npt.NDArray[np.int64], heights: npt.NDArray[np.int64], widths: npt.NDArray[np.int64],
        drawn: Sequence[ViewParameters],
    ) -> list[Tensor]:  # fmt: skip
        """One [B, 3, S, S] per view."""
        needed = tuple(kernel_triton.needs(one) for one in drawn)
        tables = np.stack([kernel_triton.table(one, heights, widths) for one in drawn])
        place, known = to_device(index, self.kept.device), to_device(tables, self.kept.device)
        key = (len(index), needed)
        if key not in self._recorded:
            if key not in self._seen or len(self._recorded) >= MOST:
                self._seen.add(key)
                return self._make(place, known, needed)  # the first call also compiles the kernels
            self._recorded[key] = self._record(place, known, needed)
        graph, static_place, static_known, made = self._recorded[key]
        if self._last is not None:
            torch.cuda.current_stream().wait_event(self._last)  # on another stream, the last batch may not be out yet
        static_place.copy_(place)
        static_known.copy_(known)
        graph.replay()
        out = [view.clone() for view in made]
        self._last = torch.cuda.current_stream().record_event()
        return out

    def _make(self, place: Tensor, known: Tensor, needed: Needs) -> list[Tensor]:
        images = self.kept[place].half()
        return [kernel_triton.cut(images, known[v], needed[v], view, self.moments) for v, view in enumerate(self.views)]

    def _record(self, place: Tensor, known: Tensor, needed: Needs) -> tuple[Any, Tensor, Tensor, list[Tensor]]:
        place, known = place.clone(), known.clone()
        graph = torch.cuda.CUDAGraph()
        # the thread that trains goes on meanwhile, and may ask the device for memory
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = self._make(place, known, needed)
        return graph, place, known, made
