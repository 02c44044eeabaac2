"""Passes of the networks as CUDA graphs: what a GPU does in one is launched at once, so that small nets do not wait for Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smallview.errors import SmallviewError
from smallview.training.prefetch import MAKING

MOST = 8  # shapes of one network; each graph holds its own activations


class Graphs:
    """Stands for `module(images)` in Networks.passes: the first call of a shape records a graph, later ones replay it.

    Forward and backward pass are recorded, nothing else: loss, bank, optimizer and the check for numbers that are not finite stay as they are,
    so that schedules and every method work. The same kernels run on the same numbers. Shapes after the eighth run without a graph.
    Recording leaves weights, statistics and random numbers as they were.
    """

    def __init__(self) -> None:
        self._recorded: dict[tuple[Any, ...], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        return Graphs()  # of the copied networks, none is recorded yet

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """What module(x) would give, [B, D]."""
        how = (module.training, torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type), x.requires_grad)
        key = (id(module), *how, tuple(x.shape), x.stride())
        graph = self._recorded.get(key)
        if graph is None:
            if not x.is_cuda or sum(known[0] == key[0] for known in self._recorded) >= MOST:
                return module(x)  # type: ignore[no-any-return]
            graph = self._recorded[key] = _record(module, x)
        # what a graph gives stands in its own memory, which the next replay writes over
        return graph(x).clone()  # type: ignore[no-any-return]


def _record(module: nn.Module, x: Tensor) -> Any:
    whole = _Whole(module).train(module.training)
    buffers = list(module.buffers())
    kept = [buffer.clone() for buffer in buffers]
    state = torch.cuda.get_rng_state(x.device)
    # the recorded passes keep their gradients' nodes on the stream that they were recorded on; torch would warn at each backward pass
    if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    sample = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.requires_grad)
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cached cast would be part of whichever graph came first
    try:
        with MAKING:  # whatever another thread asks of the device meanwhile would spoil the record
            return torch.cuda.make_graphed_callables(whole, (sample,), allow_unused_input=True)
    except RuntimeError as error:
        generator = torch.cuda.default_generators[x.device.index or 0]
        generator.graphsafe_set_state(generator.clone_state())  # the old one believes for ever that it is being recorded
        told = str(error).strip().splitlines() or ["no message"]
        raise SmallviewError(
            f"{type(module).__name__} cannot be recorded as a CUDA graph ({told[0]}); wanted passes that do the same at every "
            "step and never look at their numbers; use --set execution=eager"
        ) from None
    finally:
        torch.set_autocast_cache_enabled(caching)
        torch.cuda.set_rng_state(state, x.device)
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


class _Whole(nn.Module):
    """Stands before a module, so that recording replaces the forward pass of this one and not of the module itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out
