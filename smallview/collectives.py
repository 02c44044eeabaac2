"""What processes tell each other, with gradient: the identity on one process, torch.distributed (gloo or nccl) on several.

Every process computes the whole loss from gathered tensors, so the backward pass of each collective sums over processes. Gradients
of parameters, averaged over processes as DDP does, are then exactly those of one process with the joined batch.

All processes call the same collectives in the same order, and run the backward pass together.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_LARGEST_RANK = 8  # dimensions that a message about shapes has room for
_checked: set[tuple[torch.dtype, tuple[int, ...], int]] = set()


def world() -> int:
    """How many processes train together; 1 where torch.distributed was not started.

    Example:
        >>> world(), rank()
        (1, 0)
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """The x of all processes, joined along dim in the order of ranks: [.., B, ..] -> [.., world * B, ..], with gradient.

    Any dtype, all processes with the same shape. On CPU shapes are compared at each call; on GPU, where that waits for the device,
    at the first call of this process with each shape.

    Raises:
        ValueError: x has no dimension, or processes come with different shapes or dtypes.

    Example:
        >>> gather(torch.arange(3))
        tensor([0, 1, 2])
    """
    if x.dim() == 0:
        raise ValueError("gather received a single number; wanted a tensor with a dimension to join along: x[None]")
    dim = range(x.dim())[dim]
    if world() == 1:
        return x
    if x.dtype is torch.bool:
        return gather(x.to(torch.uint8), dim).bool()
    seen = (x.dtype, tuple(x.shape), dim)
    if not x.is_cuda or seen not in _checked:
        _same_on_all(x)
        _checked.add(seen)
    joined: Tensor = _Gather.apply(x, dim)
    return joined


def total(x: Tensor) -> Tensor:
    """The sum of x over processes, with gradient; all processes with the same shape."""
    if world() == 1:
        return x
    summed: Tensor = _Total.apply(x)
    return summed


def mean(x: Tensor) -> Tensor:
    """The mean of x over processes, without gradient: for logs, and for gradients themselves."""
    if world() == 1:
        return x.detach()
    summed = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed / world()


def first(x: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The x of process 0 on all processes, with gradient to process 0 (the sum of what all send back).

    x: tensor of that shape on process 0; what the others pass is not looked at. like: the dtype and the device of the result.
    The result takes part in the gradient on all processes, if x does on process 0.

    Raises:
        ValueError: x of process 0 is missing, or has another shape; on all processes alike, so that none waits.
    """
    mine = x if rank() == 0 else None
    sizes = () if mine is None else tuple(mine.shape)
    wants_gradient = mine is not None and mine.requires_grad
    there = mine is not None
    if world() > 1:
        header = torch.tensor(
            [there, wants_gradient, len(sizes), *sizes[:_LARGEST_RANK], *[0] * (_LARGEST_RANK - len(sizes))],
            device=like.device,
        ).long()
        dist.broadcast(header, 0)
        said = header.tolist()
        there, wants_gradient, sizes = bool(said[0]), bool(said[1]), tuple(said[3 : 3 + said[2]])
    if not there or sizes != tuple(shape):
        raise ValueError(
            f"process 0 has {list(sizes) if there else 'nothing'} to give; wanted a tensor {list(shape)}, on process 0 at least"
        )
    if mine is None:
        mine = torch.zeros(shape, dtype=like.dtype, device=like.device)
        if wants_gradient:  # without this the others would have no backward pass, and process 0 would wait for it
            mine.requires_grad_()
    mine = mine.to(like)
    if world() == 1:
        return mine
    given: Tensor = _First.apply(mine)
    return given


def tell(text: str = "") -> str:
    """The text of process 0 on all processes."""
    if world() == 1:
        return text
    mine = bytearray(text.encode("utf-8", "surrogateescape")) if rank() == 0 else bytearray()
    length = torch.tensor(len(mine))
    dist.broadcast(length, 0)
    said = torch.frombuffer(mine, dtype=torch.uint8) if mine else torch.empty(int(length), dtype=torch.uint8)
    if int(length):
        dist.broadcast(said, 0)
    return said.numpy().tobytes().decode("utf-8", "surrogateescape")


def any_of(flag: bool) -> bool:
    """Whether it is so on any process."""
    if world() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def wait_for_all() -> None:
    """Goes on when all processes have come here."""
    if world() > 1:
        dist.barrier()


def lost(error: BaseException) -> bool:
    """Whether the error says only that another process is gone: what happened there is told there.

    Example:
        >>> lost(RuntimeError("Connection closed by peer [127.0.0.1]:4711")), lost(RuntimeError("no kernel"))
        (True, False)
    """
    told = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "gloo/transport",
        "Broken pipe",
        "NCCL",
        "recvBytes failed",
    )
    return isinstance(error, RuntimeError) and any(sign in told for sign in signs)


def _same_on_all(x: Tensor) -> None:
    """Compare shape and dtype over processes; a wrong one would hang, or shift rows without a word."""
    if x.dim() > _LARGEST_RANK:
        raise ValueError(f"gather received {x.dim()} dimensions; wanted {_LARGEST_RANK} at most")
    sizes = [*x.shape, *[-1] * (_LARGEST_RANK - x.dim())]
    mine = torch.tensor([crc32(str(x.dtype).encode()), *sizes], device=x.device)
    all_sizes = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(all_sizes, mine)
    if any(not torch.equal(other, mine) for other in all_sizes):
        shown = ", ".join(str([s for s in other.tolist()[1:] if s >= 0]) for other in all_sizes)
        raise ValueError(
            f"processes gather tensors of different shapes or dtypes: {shown}, here {x.dtype}; wanted the same on all: "
            "give each process equally many pictures"
        )


def _summed(x: Tensor) -> Tensor:
    """The sum over processes, in a tensor of its own."""
    out = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out)
    return out


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.length = dim, x.shape[dim]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient).narrow(ctx.dim, rank() * ctx.length, ctx.length), None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


class _First(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.broadcast(out, 0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor | None:
        back = _summed(gradient)
        return back if rank() == 0 else None
