"""Networks made wider or deeper that compute what they did before.

Legend: B pictures; O outputs, I inputs of a layer, F features; ' after growth.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from smallview.errors import UsageError
from smallview.networks.dense_small import NAME, DenseSmall
from smallview.networks.truncating import beyond, differences, name_of, refuse
from smallview.seeds import derive


def grow(old: nn.Module, new: nn.Module, seed: int = 0) -> Tensor:
    """Fill a wider or deeper encoder, in place, so that it computes what the old one does; -> from which feature each is copied, [F'].

    `dense_small` grows in width, in depth, or both; a ResNet by blocks of its own kind. In evaluation mode features stay as they are,
    up to rounding. In training mode that holds for widths, and for the blocks of a ResNet, whose last scale is zero. A convolution that is
    inserted into `dense_small` is the identity by its running statistics; with the statistics of a batch it comes close to it, and no more.

    One seed makes the same choices for every network of these shapes: an online network and its target grow alike.

    Raises:
        UsageError: the one network cannot be grown into the other.

    Source: Chen, Goodfellow and Shlens, 2016 (Net2Net), section 2; residual blocks: Goyal et al., 2017, section 5.1.

    Example:
        >>> old, new = DenseSmall(3, "small", (4, 8)).eval(), DenseSmall(3, "small", (6, 10)).eval()
        >>> mapping, images = grow(old, new), torch.rand(2, 3, 8, 8)
        >>> torch.allclose(new(images), old(images)[:, mapping], atol=1e-6)
        True
    """
    if isinstance(old, DenseSmall) and isinstance(new, DenseSmall):
        return _grow_dense(old, new, seed)
    if all(type(net).__module__ == "timm.models.resnet" for net in (old, new)):
        return _grow_resnet(old, new)
    return refuse(
        f"{name_of(old)} cannot be grown into {name_of(new)}", [f"known for {NAME} and for ResNets of one kind of block"]
    )


@torch.no_grad()
def split_inputs(linear: nn.Linear, mapping: Tensor, seed: int = 0) -> nn.Linear:
    """A linear layer [B, F'] -> [B, O] that gives for grown features what `linear` gave for the old ones: [B, F] -> [B, O].

    mapping: int64 [F'], what `grow` returned. Copies of a feature share its weight unequally, so that they can drift apart.

    Raises:
        UsageError: a mapping of features that the layer does not have.

    Source: Chen, Goodfellow and Shlens, 2016 (Net2Net), eq. 3, with unequal shares.

    Example:
        >>> layer, mapping = nn.Linear(2, 3), torch.tensor([0, 1, 1])
        >>> features = torch.rand(4, 2)
        >>> torch.allclose(split_inputs(layer, mapping)(features[:, mapping]), layer(features), atol=1e-6)
        True
    """
    if sorted(set(mapping.tolist())) != list(range(linear.in_features)):
        raise UsageError(
            f"the layer takes {linear.in_features} features; wanted a mapping that copies each of them at least once"
        )
    kind = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    wide: nn.Linear = nn.utils.skip_init(nn.Linear, len(mapping), linear.out_features, linear.bias is not None, **kind)
    wide.weight.copy_(_shared(linear.weight, mapping, _generator(seed, "split inputs")))
    if linear.bias is not None:
        wide.bias.copy_(linear.bias)
    wide.train(linear.training)
    return wide


@torch.no_grad()
def _grow_dense(old: DenseSmall, new: DenseSmall, seed: int) -> Tensor:
    before, after = old.layers(), new.layers()
    places = _places(before, after)
    if places is None:
        wanted = "wanted equal channels and stem, no width under an old one, and layers added where no layer halves the map"
        refuse(f"{name_of(old)} cannot be grown into {name_of(new)}", [wanted])
    draws = _generator(seed, "grow")
    mapping = torch.arange(before[0][0].in_channels)
    norm = before[0][1]
    for (conv, to), place in zip(after, places, strict=True):
        if place is None:
            kernel = nn.init.dirac_(torch.empty(norm.num_features, norm.num_features, 3, 3))
            statistics = _standing(norm, to.eps)
        else:
            source, norm = before[place]
            kernel, statistics = source.weight, _tensors(norm)
        chosen = _copies(len(kernel), conv.out_channels, draws)  # [O']
        conv.weight.copy_(_shared(kernel[chosen], mapping, draws))
        for name, value in statistics.items():
            _tensors(to)[name].copy_(value[chosen] if value.dim() else value)
        mapping = chosen
    return mapping


def _places(
    before: list[tuple[nn.Conv2d, nn.BatchNorm2d]], after: list[tuple[nn.Conv2d, nn.BatchNorm2d]]
) -> list[int | None] | None:
    """Which old layer each new one comes from, None for one that is inserted: of all ways, the one that widens least, inserts latest."""
    best: tuple[int, list[int | None]] | None = None
    if before[0][0].in_channels != after[0][0].in_channels:
        return None
    for kept in combinations(range(len(after)), len(before)):
        places: list[int | None] = [kept.index(i) if i in kept else None for i in range(len(after))]
        width, widths = 0, list[int]()
        for (conv, _), place in zip(after, places, strict=True):
            if place is not None:
                width = before[place][0].out_channels
            fits = conv.stride == ((1, 1) if place is None else before[place][0].stride)
            # what is inserted stands behind a ReLU, whose outputs pass a further one unchanged
            if not fits or not 0 < width <= conv.out_channels:
                break
            widths.append(width)
        if len(widths) == len(after) and (best is None or sum(widths) > best[0]):
            best = sum(widths), places
    return best and best[1]


def _standing(norm: nn.BatchNorm2d, eps: float) -> dict[str, Tensor]:
    """Tensors of a batch normalisation that changes nothing behind relu(norm(x)): mean and variance are those of a rectified normal
    distribution, and shift and scale undo them. After six epochs of SimCLR on 2,000 pictures of CIFAR-10 (one run) a batch's own
    statistics then moved features by 6 % of their norm; with a mean of 0 and a variance of 1, by 21 %.
    """
    shift, scale = norm.bias.double(), norm.weight.double().abs().clamp(min=1e-12)
    below = torch.special.ndtr(shift / scale)
    density = torch.exp(-0.5 * (shift / scale).square()) / math.sqrt(2.0 * math.pi)
    mean = shift * below + scale * density
    variance = ((shift.square() + scale.square()) * below + shift * scale * density - mean.square()).clamp(min=1e-4)
    return {"weight": (variance + eps).sqrt(), "bias": mean, "running_mean": mean, "running_var": variance}


def _grow_resnet(old: Any, new: Any) -> Tensor:
    """By blocks behind those that each stage has: the first one halves the map and stays the first."""
    stages = [(name, getattr(old, name), getattr(new, name)) for name in ("layer1", "layer2", "layer3", "layer4")]
    kinds = {type(block) for _, before, after in stages for block in (*before, *after)}
    added = {f"{name}.{i}.": after[i] for name, before, after in stages if len(before) for i in range(len(before), len(after))}
    unlike = differences(old, new)
    unlike += [f"{name} is only in the new one" for name in beyond(old, new) if not name.startswith(tuple(added))]
    if len(kinds) != 1 or not all(type(_ends(block)[1]) is nn.ReLU for block in added.values()):
        unlike.append("wanted blocks of one kind that end with a ReLU")
    if unlike:
        refuse(f"{name_of(old)} cannot be grown into {name_of(new)}", unlike)
    tensors = new.state_dict()
    with torch.no_grad():
        for name, value in old.state_dict().items():
            tensors[name].copy_(value)
        for block in added.values():
            for p in _ends(block)[0].parameters():
                p.zero_()
    return torch.arange(int(new.num_features))


def _ends(block: Any) -> tuple[nn.Module, nn.Module]:
    """The last norm and the last activation of a residual block."""
    return (block.bn3, block.act3) if hasattr(block, "bn3") else (block.bn2, block.act2)


def _tensors(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    return dict(norm.state_dict())


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, purpose))


def _copies(before: int, after: int, draws: torch.Generator) -> Tensor:
    """From which channel each is copied, [after]: the old ones in their order, then as evenly spread as their numbers allow."""
    rounds = [torch.randperm(before, generator=draws) for _ in range(-(-after // before) - 1)]
    return torch.cat([torch.arange(before), *rounds])[:after]


def _shared(weight: Tensor, mapping: Tensor, draws: torch.Generator) -> Tensor:
    """Weights [O, I, ..] for copied inputs, float64 [O, I', ..]: the copies' shares sum to one and differ by output.

    Shares that were the same for all outputs would give copies gradients in one direction, which Adam and LARS make equal.
    """
    shares = 0.5 + torch.rand(len(weight), len(mapping), generator=draws, dtype=torch.float64)
    shares /= torch.zeros(weight.shape[:2], dtype=torch.float64).index_add_(1, mapping, shares)[:, mapping]
    return weight[:, mapping].double() * shares.view(*shares.shape, *[1] * (weight.dim() - 2)).to(weight.device)
