"""BatchNorm whose training statistics come from the batches of all processes, on CPU as on GPU.

Legend: B pictures of this process, F channels, R processes, n values per channel over all processes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from smallview import collectives

M = TypeVar("M", bound=nn.Module)


def synchronize(module: M) -> M:
    """The module itself, whose BatchNorm layers from now on take their training statistics over all processes.

    Names and values of the state dict stay, and so does evaluation mode; on one process nothing changes. Running statistics are
    those of one process with the joined batch. Processes may have different numbers of rows, one at least.

    All processes must run the layers together: a forward pass in training mode on one process alone waits for the others.

    Raises:
        TypeError: a BatchNorm layer with a forward pass of its own, that is not known here.

    Source: Ioffe and Szegedy, 2015, algorithm 1, over the joined batch; Peng et al., 2018 (MegDet).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> synchronize(net) is net, list(net.state_dict())[-1]
        (True, '1.num_batches_tracked')
    """
    if collectives.world() == 1:
        return module
    for layer in module.modules():
        if not isinstance(layer, _BatchNorm) or isinstance(layer, SyncBatchNorm):
            continue
        if not _known(layer):
            raise TypeError(
                f"{type(layer).__name__} computes its own batch normalisation; wanted torch's BatchNorm or timm's BatchNormAct2d: "
                "exchange the layer, or train on one process"
            )
        # a partial and not a subclass: the class stays what others look for, and the layer can be copied and pickled
        vars(layer)["forward"] = partial(_forward, layer)
    return module


def _known(layer: _BatchNorm) -> bool:
    return type(layer).forward is _BatchNorm.forward or _activates(layer)


def _activates(layer: _BatchNorm) -> bool:
    """Whether it is timm's BatchNormAct2d: a dropout and an activation follow the norm."""
    owner = next(c for c in type(layer).__mro__ if "forward" in vars(c))
    return owner.__name__ == "BatchNormAct2d" and owner.__module__.split(".")[0] == "timm"


def _forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    """What the layer's own forward pass does, with the statistics of all processes: [B, F] or [B, F, ..] -> the same."""
    if not layer.training or collectives.world() == 1:
        out: Tensor = type(layer).forward(layer, x)
        return out
    layer._check_input_dim(x)
    out, average, squares, n = _Normalise.apply(x, layer.weight, layer.bias, layer.eps)
    if layer.track_running_stats:
        _track(layer, average, squares / (n - 1))
    if _activates(layer):
        timms: Any = layer
        out = timms.act(timms.drop(out))
    return out


@torch.no_grad()
def _track(layer: _BatchNorm, average: Tensor, unbiased: Tensor) -> None:
    """Move the running statistics; momentum None is the plain average over all steps so far."""
    share = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if share is None:
            share = 1.0 / float(layer.num_batches_tracked)
    if layer.running_mean is not None and layer.running_var is not None:
        share = share or 0.0
        layer.running_mean.lerp_(average.to(layer.running_mean), share)
        layer.running_var.lerp_(unbiased.to(layer.running_var), share)


class _Normalise(Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the pictures of all processes; one collective each way.

    Each process sends its mean and its sum of squares around that mean, and these are combined as by Chan, Golub and LeVeque, 1979.
    A sum of squares minus a squared sum would cost the same collective and lose all digits where the mean is large.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over = [0, *range(2, x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1]
        average = wide.mean(over)
        parts = torch.zeros(collectives.world(), 2, x.shape[1] + 1, dtype=torch.float64, device=x.device)
        parts[collectives.rank(), 0, :-1] = average
        parts[collectives.rank(), 1, :-1] = (wide - _per_channel(average, x)).square_().sum(over)
        parts[collectives.rank(), :, -1] = count
        parts = collectives.total(parts)  # all but one summand are zero: this gathers them
        averages, squares, counts = parts[:, 0, :-1], parts[:, 1, :-1], parts[:, 0, -1:]  # [R, F], [R, F], [R, 1]
        n = counts.sum()
        joined = (averages * counts).sum(0) / n  # [F]
        joined_squares = (squares + counts * (averages - joined).square()).sum(0)
        variance = (joined_squares / n).to(wide)
        ctx.save_for_backward(x, weight, joined.to(wide), (variance + eps).rsqrt(), n.to(wide))
        scale, shift = (None if p is None else p.to(wide) for p in (weight, bias))
        # with statistics given, torch's own layer is one pass over memory
        out = F.batch_norm(wide, joined.to(wide), variance, scale, shift, training=False, eps=eps).to(x.dtype)
        ctx.mark_non_differentiable(joined, joined_squares, n)
        return out, joined, joined_squares, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, average, inverse, n = ctx.saved_tensors
        over = [0, *range(2, x.dim())]
        gradient = gradient.to(average.dtype)
        normal = (x.to(average.dtype) - _per_channel(average, x)).mul_(_per_channel(inverse, x))
        mine = torch.stack([gradient.sum(over), (gradient * normal).sum(over)])  # [2, F]
        along = collectives.total(mine) / n
        scale = inverse if weight is None else inverse * weight
        back = normal.mul_(_per_channel(-along[1], x)).add_(gradient).sub_(_per_channel(along[0], x))
        back = back.mul_(_per_channel(scale, x)).to(x.dtype)
        # the parameters' gradients stay this process's own: they are averaged with all others
        return (
            back,
            mine[1].to(weight.dtype) if ctx.needs_input_grad[1] else None,
            mine[0].to(weight.dtype) if ctx.needs_input_grad[2] else None,
            None,
        )


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values [F] in the shape that stands against x [B, F, ..]."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
