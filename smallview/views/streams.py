"""Views made on a CUDA stream of their own, so that a step and the next step's views share the GPU."""

from __future__ import annotations

from typing import Any

import torch

from smallview.records import Batch, ViewBatch
from smallview.views.making import ViewMaker


class OnStream:
    """Makes views where the maker makes them; on CUDA, beside the step that is running.

    `make` belongs into the thread that works ahead, `take` into the one that trains. batch_size: what most batches hold. slots:
    buffers of the ring on a CPU.
    """

    def __init__(self, maker: ViewMaker, batch_size: int, slots: int) -> None:
        maker.record(batch_size)
        self._maker = maker.into_slots(slots)
        self._stream: Any = None
        if maker.device.type == "cuda":
            self._stream = torch.cuda.Stream(maker.device, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(maker.device))  # pictures are still on their way there

    def make(self, batch: Batch) -> tuple[tuple[ViewBatch, ...], Any]:
        """(views, what to wait for before they are looked at)."""
        if self._stream is None:
            return self._maker(batch), None
        with torch.cuda.stream(self._stream):
            return self._maker(batch), self._stream.record_event()

    def take(self, made: tuple[tuple[ViewBatch, ...], Any]) -> tuple[ViewBatch, ...]:
        """The views, for the current stream."""
        views, ready = made
        if ready is not None:
            here = torch.cuda.current_stream(views[0].images.device)
            here.wait_event(ready)
            for view in views:
                view.images.record_stream(here)  # else their memory is used again while the step still reads it
        return views
