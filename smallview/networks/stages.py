"""The stages of an encoder, each with what it gives out, averaged over its places.

Legend: B pictures, C channels, S the side of a view, W the width of a stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smallview.networks.dense_small import DenseSmall
from smallview.networks.patches import OnPatches


def stage_modules(net: nn.Module) -> dict[str, nn.Module]:
    """The modules at whose end the stages of an encoder end, in order: timm's own account, or the children of the module.

    Example:
        >>> list(stage_modules(DenseSmall()))
        ['body.2', 'body.5', 'body.8', 'body.11', 'body.14']
    """
    if isinstance(net, (DenseSmall, OnPatches)):
        return {f"body.{i}": module for i, module in enumerate(net.body) if isinstance(module, nn.ReLU)}
    told: Any = getattr(net, "feature_info", None)
    named = dict(net.named_modules())
    if told:
        names = [str(info["module"]) for info in (told.info if hasattr(told, "info") else told)]
        found = {name: named[name] for name in names if name in named}
        if found:
            return found
    blocks = getattr(net, "blocks", None)
    if isinstance(blocks, nn.Sequential):
        return {f"blocks.{i}": block for i, block in enumerate(blocks)}
    inner = net
    while len(children := list(inner.named_children())) == 1:
        inner = children[0][1]
    return {name: module for name, module in children if any(True for _ in module.parameters())}


def pooled(output: Tensor) -> Tensor | None:
    """A stage's output averaged over its places [B, W]: maps [B, W, h, w] and tokens [B, T, W]; None for anything else."""
    if output.dim() == 4:
        return output.mean((2, 3))
    if output.dim() == 3:
        return output.mean(1)
    return output if output.dim() == 2 else None


def pooled_stages(net: nn.Module, projector: nn.Module | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
    """What gives every stage's averaged output, then `features`, then each layer of the projector: [B, C, S, S] -> {name: [B, W]}.

    For a network in evaluation mode, by one pass; not for several threads at once.

    Example:
        >>> out = pooled_stages(DenseSmall().eval())(torch.zeros(2, 3, 32, 32))
        >>> [(name, value.shape[1]) for name, value in out.items()][-2:]
        [('body.14', 512), ('features', 512)]
    """

    @torch.no_grad()
    def run(images: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                value = pooled(output) if isinstance(output, Tensor) else None
                if value is not None:
                    # a copy: what comes next may write into it
                    out[name] = value.float().clone()

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in stage_modules(net).items()]
        try:
            features = net(images)
        finally:
            for hook in hooks:
                hook.remove()
        out["features"] = features.float()
        if projector is not None:
            value = features
            for i, layer in enumerate(projector.children()):
                value = layer(value)
                if isinstance(layer, (nn.Linear, nn.ReLU)):
                    out[f"projector.{i}"] = value.float().clone()
        return out

    return run
