"""Passes that hold fewer activations: computed again in the backward pass, or for a piece of the batch at a time.

Legend: B rows of a pass, n pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import checkpoint

from smallview.errors import SmallviewError, UsageError
from smallview.networks.online_target import Networks, Passes, plain
from smallview.training.compiled import Compiled
from smallview.training.graphs import Graphs

MOST_PIECES = 64
MEMORY = "auto, plain, recompute or pieces:N"
ALLOCATION = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")  # as CPU, CUDA, MPS, cuBLAS say it
Piece = tuple[Callable[..., Any], Sequence[nn.Module]]  # what runs as one, and the modules in it where they are to run twice


@dataclass(frozen=True)
class Recomputed:
    """Stands for `module(x)` in Networks.passes: between forward and backward pass only the inputs of its blocks are kept.

    Blocks are the members of a Sequential or ModuleList; of plain layers in a row, a convolution or linear layer with what follows
    it; a module with neither is one block. Loss, gradients and statistics have the same bits as without; the forward pass is computed
    twice. Random layers draw the same again, and buffers move once.

    Raises:
        SmallviewError: a block that writes over its own input, which is what it would be computed again from.

    Source: Chen et al., 2016 (Training deep nets with sublinear memory cost).

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU())
        >>> x = torch.randn(4, 3)
        >>> torch.equal(Recomputed()(net, x), net(x)), net[1].num_batches_tracked
        (True, tensor(2))
    """

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """What module(x) would give, [B, D]."""
        if not torch.is_grad_enabled():
            return plain(module, x)
        with ExitStack() as changed:
            for block in list(_blocks(module)) or [module]:
                pieces = _layers(block) if _is_chain(block) else [(_forward_of(block), [block])]
                # not what calls a module but its forward: hooks on it run once, as ever
                changed.enter_context(_instead(block, partial(_again, pieces)))
            return plain(module, x)


@dataclass(frozen=True)
class Pieces:
    """Stands for `module(x)` in Networks.passes: n parts of the batch one after the other, so that activations of one exist at once.

    The loss sees all embeddings as before, so that negatives never change: gradients equal those of the whole batch up to rounding.
    Random layers draw other numbers than for the whole batch, the same in both passes over a piece. Heads, which are called with
    features [B, F], run whole where they have BatchNorm: their activations are few.

    inner: how the module is called with a piece.

    Raises:
        ValueError: n is not 2 to 64. UsageError: BatchNorm before pictures [B, C, S, S], whose statistics would be a piece's own.

    Source: Gao et al., 2021 (Scaling deep contrastive learning batch size under memory limited setup).

    Example:
        >>> net, x = nn.Linear(3, 2), torch.randn(8, 3)
        >>> torch.allclose(Pieces(4)(net, x), net(x))
        True
    """

    n: int
    inner: Passes = plain

    def __post_init__(self) -> None:
        if not 2 <= self.n <= MOST_PIECES:
            raise ValueError(f"pieces is {self.n}; wanted 2 to {MOST_PIECES}")

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """What module(x) would give, [B, D]."""
        if mixes_rows(module):
            if x.dim() == 2:
                return self.inner(module, x)
            raise UsageError(
                f"memory is pieces:{self.n} and {type(module).__name__} has BatchNorm, whose statistics would be those of a piece; "
                "wanted memory=recompute, or a net without BatchNorm"
            )
        parts = x.tensor_split(min(self.n, len(x)))
        if not torch.is_grad_enabled():
            return torch.cat([self.inner(module, part) for part in parts])
        run = partial(self.inner, module)
        return torch.cat([_kept_by_input(run, [module], part) for part in parts])


def mixes_rows(module: nn.Module) -> bool:
    """Whether rows of a batch meet in it: BatchNorm that normalises by the batch, or statistics that run over batches.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        >>> mixes_rows(net), mixes_rows(net.eval()), mixes_rows(nn.LayerNorm(2))
        (True, False, False)
    """
    return any(
        m.training or m.running_mean is None
        if isinstance(m, _BatchNorm)
        else isinstance(m, _InstanceNorm) and m.training and m.running_mean is not None
        for m in module.modules()
    )


def check_memory(memory: str) -> None:
    """Whether it is a value of the setting `memory`.

    Raises:
        ValueError: it is none.

    Example:
        >>> check_memory("pieces:1")
        Traceback (most recent call last):
        ValueError: memory is "pieces:1"; wanted auto, plain, recompute or pieces:N, with N from 2 to 64
    """
    if memory in ("auto", "plain", "recompute"):
        return
    if not memory.startswith("pieces:"):
        raise ValueError(f'memory is "{memory}"; wanted {MEMORY}')
    count = memory.removeprefix("pieces:")
    if not (count.isascii() and count.isdigit() and 2 <= int(count) <= MOST_PIECES):
        raise ValueError(f'memory is "{memory}"; wanted {MEMORY}, with N from 2 to {MOST_PIECES}')


def passes_for(execution: str, memory: str, say: Callable[[str], None] | None = None) -> Passes:
    """How networks are called under the settings `execution` and `memory`; say: told how long compiling took.

    `auto` begins with plain passes, which `lighter` changes when they do not fit.

    Raises:
        UsageError: an unknown value, or memory that this execution cannot have.

    Example:
        >>> passes_for("eager", "pieces:4")
        Pieces(n=4, inner=Recomputed())
    """
    try:
        check_memory(memory)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if execution == "eager":
        if memory.startswith("pieces:"):
            return Pieces(int(memory.removeprefix("pieces:")), Recomputed())
        return Recomputed() if memory == "recompute" else plain
    if execution not in ("graph", "compile"):
        raise UsageError(f'execution is "{execution}"; wanted eager, graph or compile')
    if memory not in ("auto", "plain"):
        raise UsageError(
            f"memory is {memory} and execution {execution}, which keeps its own activations; wanted execution=eager"
        )
    return Graphs() if execution == "graph" else Compiled(say=say)


def name_of(passes: Passes) -> str:
    """The value of `memory` that asks for such passes: `plain`, `recompute` or `pieces:N`."""
    if isinstance(passes, Pieces):
        return f"pieces:{passes.n}"
    return "recompute" if isinstance(passes, Recomputed) else "plain"


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory did not suffice, on the CPU or a GPU.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
        True
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATION)


def lighter(networks: Networks, batch_size: int) -> str | None:
    """Call the networks in the next lighter way that keeps the mathematics, and say it; None where there is none.

    Plain passes become Recomputed; then, where the encoder has no BatchNorm, Pieces of 2, 4, up to 64. Graphs and compiled passes
    stay as they are. What the failed step left, gradients and moved statistics, is the caller's.
    """
    passes = networks.passes
    does_not = f"a batch of {batch_size:,} does not fit into memory"
    if passes is plain:
        networks.passes = Recomputed()
        return f"{does_not}; activations are computed again in the backward pass from here on (same bits, about a third slower)"
    if not isinstance(passes, Recomputed | Pieces) or mixes_rows(networks.online.encoder):
        return None
    n = 2 * passes.n if isinstance(passes, Pieces) else 2
    if n > min(MOST_PIECES, batch_size):
        return None
    networks.passes = Pieces(n, Recomputed())
    return (
        f"{does_not}; encoders take it in {n} pieces of {-(-batch_size // n):,} from here on (same mathematics, other rounding)"
    )


def advice(networks: Networks, batch_size: int) -> str:
    """One line on a batch that does not fit where `lighter` has nothing left: why, and what to change."""
    passes = networks.passes
    if not (passes is plain or isinstance(passes, Recomputed | Pieces)):
        why, first = f"{type(passes).__name__.lower()} keep their own activations", "--set execution=eager, "
    elif mixes_rows(networks.online.encoder):
        why, first = "in pieces the statistics of BatchNorm would change", ""
    else:
        why, first = "smaller pieces would not help", ""
    return f"a batch of {batch_size:,} does not fit into memory, and {why}; use {first}a smaller --batch-size or --size, or --set dtype=bfloat16"


def _is_chain(module: nn.Module) -> bool:
    """Plain layers called one after the other."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and not any(any(layer.children()) for layer in module)
        and any(_has_matrix(layer) for layer in module)
    )


def _has_matrix(layer: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in layer.parameters(recurse=False))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What is computed again as one, from the outside in; nothing where no container is found."""
    if _is_chain(module):
        yield module
        return
    container = isinstance(module, nn.Sequential | nn.ModuleList)
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) or not container:
            yield from _blocks(child)
        elif any(child.children()):
            yield child


def _layers(chain: nn.Module) -> list[Piece]:
    """The layers of a chain in pieces, each from a layer with a matrix on: none of these writes over its input, as activations do.

    What stands before the first of them runs as it is, and so does a layer alone, which keeps no more than its input.
    """
    layers = list(chain.children())
    starts = [i for i, layer in enumerate(layers) if _has_matrix(layer)]
    pieces = [layers[start:stop] for start, stop in pairwise([0, *starts, len(layers)])]
    return [(partial(_run, piece), piece if len(piece) > 1 and _has_matrix(piece[0]) else ()) for piece in pieces if piece]


def _run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _forward_of(module: nn.Module) -> Callable[..., Any]:
    forward: Callable[..., Any] = module.forward
    return forward


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward pass for one instance, for a while."""
    own = vars(module)
    before = own.get("forward")  # a layer may have one of its own already, as BatchNorm over processes does
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def _again(pieces: Sequence[Piece], *inputs: Any, **named: Any) -> Any:
    for run, modules in pieces:
        out = _kept_by_input(run, modules, *inputs, **named) if modules else run(*inputs, **named)
        inputs, named = (out,), {}
    return out


def _kept_by_input(run: Callable[..., Any], modules: Sequence[nn.Module], *inputs: Any, **named: Any) -> Any:
    """run(*inputs), of which nothing but the inputs is kept for the backward pass."""
    tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor)]
    versions = [tensor._version for tensor in tensors]
    buffers = _Buffers(modules)
    out = checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), buffers), **named)
    if [tensor._version for tensor in tensors] != versions:
        raise SmallviewError(
            f"{type(modules[0]).__name__} writes over its own input and cannot be computed again from it; use --set memory=plain, "
            "or inplace=False in its first layer"
        )
    return out


class _Buffers(AbstractContextManager[None]):
    """Gives modules, while they compute a second time, the buffers of the first time, as copies: the real ones have moved once and stay.

    BatchNorm in training mode does not look at its running statistics, so that a copy of any will do.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        owners = [m for module in modules for m in module.modules() if m._buffers]
        self._first = [
            (m, None if isinstance(m, _BatchNorm) and m.training else {k: _copied(b) for k, b in m._buffers.items()})
            for m in owners
        ]
        self._real: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        for module, first in self._first:
            real = dict(module._buffers)
            self._real.append(real)
            module._buffers.update({k: _copied(b) for k, b in (real if first is None else first).items()})

    def __exit__(self, *_: object) -> None:
        for module, _first in self._first:
            module._buffers.update(self._real.pop(0))


def _copied(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.detach().clone()
