"""The last stages of an encoder, dropped and grown again.

Legend: B pictures, C channels, S the side of a view, F' features of the truncated encoder.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from smallview.errors import UsageError
from smallview.networks.dense_small import NAME, DenseSmall
from smallview.networks.patches import OnPatches

MOST_TOLD = 3
TRUNCATING = "1.0.31"


class Regrown(NamedTuple):
    """The names of the tensors of a full network: copied from the truncated one, and fresh."""

    copied: list[str]
    fresh: list[str]


def count_stages(net: nn.Module) -> int:
    """The stages of an encoder, by its own account: a ResNet's are conv1 to conv5, those of `dense_small` its convolutions, those of a
    vision transformer its blocks.

    Raises:
        UsageError: an encoder without stages that can be dropped.

    Example:
        >>> count_stages(DenseSmall())
        5
    """
    if isinstance(net, (DenseSmall, OnPatches)):
        return len(net.body) // 3
    told: Any = getattr(net, "feature_info", None)
    if not told or not callable(getattr(net, "prune_intermediate_layers", None)):
        raise UsageError(
            f"{name_of(net)} has no stages that can be dropped; wanted {NAME} or one of timm's encoders that have, such as resnet18"
        )
    return len(told)


def truncate(net: nn.Module, depth: int) -> nn.Module:
    """A copy of an encoder without its last stages: [B, C, S, S] -> [B, F'], the average of the last map that remains.

    depth: the number of stages that stay, with their names and values. What stands between the last stage and the features (the last
    convolution of a MobileNet, the norm of a ConvNeXt) belongs to that stage and goes with it; the norm of a transformer stays.

    Raises:
        UsageError: a depth that the encoder cannot have, or an encoder without stages.

    Source: S3L (arXiv 2103.13559), small architecture: a ResNet without conv5 is depth 4.

    Example:
        >>> small = truncate(DenseSmall(), 4)
        >>> small(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 256])
    """
    stages = count_stages(net)
    if not 1 <= depth <= stages:
        raise UsageError(f"depth is {depth} and {name_of(net)} has {stages} stages; wanted 1 to {stages}")
    cut = copy.deepcopy(net)
    if depth == stages:
        return cut
    if isinstance(cut, OnPatches):
        cut.cut(depth)
        return cut
    if isinstance(cut, DenseSmall):
        cut.body = cut.body[: 3 * depth]
        cut.num_features = cut.layers()[-1][0].out_channels
        return cut
    import timm

    timms: Any = cut
    pooling = timms.global_pool if isinstance(getattr(cut, "global_pool", None), str) else "avg"
    try:
        timms.prune_intermediate_layers([depth - 1], prune_norm=False, prune_head=False)
        timms.reset_classifier(0, pooling)  # timm takes the pooling away with the stages
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"timm cannot keep {depth} of the {stages} stages of {name_of(net)}: {error}") from error
    timms.feature_info = list(timms.feature_info)[:depth]
    # earlier versions leave a head that was made for the last stage behind another one
    if timms.num_features != timms.feature_info[-1]["num_chs"]:
        raise UsageError(
            f"timm {timm.__version__} does not truncate {name_of(net)} wholly; wanted another encoder, or timm {TRUNCATING} or later"
        )
    return cut


@torch.no_grad()
def regrow(small: nn.Module, full: nn.Module) -> Regrown:
    """Fill a full encoder, in place, with every tensor of a truncated one, statistics included, to the bit; the rest stays fresh.

    Raises:
        UsageError: the small encoder is not a truncation of the full one.

    Source: S3L (arXiv 2103.13559): conv1 to conv4 are copied, conv5 is random.

    Example:
        >>> full = DenseSmall()
        >>> regrow(truncate(DenseSmall(), 4), full).fresh[:2]
        ['body.12.weight', 'body.13.weight']
    """
    depth, most = count_stages(small), count_stages(full)
    wanted = truncate(full, min(depth, most))
    unlike = differences(small, wanted) + [f"{name} is in one of them only" for name in beyond(small, wanted)]
    if depth > most:
        unlike = [f"{depth} stages against {most}"]
    if unlike:
        refuse(f"{name_of(small)} is not {name_of(full)} without its last stages", unlike)
    tensors, kept = full.state_dict(), small.state_dict()
    for name, value in kept.items():
        tensors[name].copy_(value)
    return Regrown(list(kept), [name for name in tensors if name not in kept])


def beyond(small: nn.Module, full: nn.Module) -> list[str]:
    """The tensors of the full network whose names the small one does not have."""
    own = small.state_dict()
    return [name for name in full.state_dict() if name not in own]


def differences(small: nn.Module, full: nn.Module) -> list[str]:
    """What of the small network the full one lacks, or has otherwise: tensors by shape and type, layers by what they say of themselves."""
    tensors, layers = full.state_dict(), dict(full.named_modules())
    told = [f"{name} is in one of them only" for name in beyond(full, small)]
    for name, value in small.state_dict().items():
        other = tensors.get(name, value)
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            told.append(f"{name} is {_shape(value)} in the one and {_shape(other)} in the other")
    for name, layer in small.named_modules():
        twin = layers.get(name)
        own = any(True for _ in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))
        # strides are in no shape
        if own and twin is not None and (type(layer), layer.extra_repr()) != (type(twin), twin.extra_repr()):
            told.append(f"{name} is {layer} in the one and {twin} in the other")
    return told


def _shape(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def name_of(net: nn.Module) -> str:
    """What people call an encoder by."""
    if isinstance(net, DenseSmall):
        return f"{NAME}:{'-'.join(str(conv.out_channels) for conv, _ in net.layers())}"
    given: Any = getattr(net, "pretrained_cfg", None)
    return str((given or {}).get("architecture") or type(net).__name__)


def refuse(what: str, reasons: list[str]) -> NoReturn:
    """Tell what cannot be and the first few reasons, in one line."""
    more = f"; and {len(reasons) - MOST_TOLD} more" if len(reasons) > MOST_TOLD else ""
    raise UsageError(f"{what}: {'; '.join(reasons[:MOST_TOLD])}{more}")
