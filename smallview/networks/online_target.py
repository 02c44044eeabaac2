"""The online network, and the target that it is compared with.

Legend: V online views, L target views, B images, D embedding dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from smallview.networks.heads import Heads
from smallview.records import ViewBatch
from smallview.schedules import Schedule, resolve


@dataclass(frozen=True)
class Shared:
    """The target is the online network itself; with `stop_gradient`, nothing flows back through it (SimSiam)."""

    stop_gradient: bool = False


@dataclass(frozen=True)
class Momentum:
    """The target is a slow average of the online network: target = momentum * target + (1 - momentum) * online, after each step.

    buffers says where the target's BatchNorm statistics come from: "own", its own forward passes in training mode (as the
    codes of MoCo and BYOL do); "copy", the online network's; "average", averaged like the weights.

    Source: He et al., 2020, eq. 2; Grill et al., 2020, eq. 1.
    """

    momentum: float | Schedule = 0.99
    buffers: Literal["own", "copy", "average"] = "own"

    def __post_init__(self) -> None:
        if self.buffers not in ("own", "copy", "average"):
            raise ValueError(f"buffers is {self.buffers!r}; wanted own, copy or average")
        for progress in (0.0, 1.0):
            if not 0.0 <= resolve(self.momentum, progress) <= 1.0:
                raise ValueError(f"momentum is {self.momentum}; wanted numbers from 0 to 1")


Target = Shared | Momentum


@dataclass(frozen=True)
class Embedded:
    """What the two sides made of the views: online [V, B, D], target [L, B, D], and which view each came from."""

    online: Tensor
    target: Tensor
    online_views: tuple[int, ...]
    target_views: tuple[int, ...]


class Branch(nn.Module):
    """Encoder and projector: images [B, C, S, S] -> embeddings [B, D]."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, D]."""
        embeddings: Tensor = self.projector(self.encoder(images))
        return embeddings


def _embed(branch: Branch, views: Sequence[ViewBatch], which: Sequence[int]) -> dict[int, Tensor]:
    """Embeddings of the chosen views, one encoder call per crop size."""
    by_size: dict[int, list[int]] = {}
    for v in which:
        by_size.setdefault(views[v].images.shape[-1], []).append(v)
    out: dict[int, Tensor] = {}
    for group in by_size.values():
        stacked = branch(torch.cat([views[v].images for v in group]))
        out.update(zip(group, stacked.chunk(len(group)), strict=True))
    return out


class Networks(nn.Module):
    """Online encoder, projector and predictor, with their target; calling it embeds the views of a batch."""

    def __init__(self, encoder: nn.Module, features: int, heads: Heads, target: Target) -> None:
        super().__init__()
        self.online = Branch(encoder, heads.projector.build(features))
        self.predictor = None if heads.predictor is None else heads.predictor.build(heads.projector.out)
        self.target: Branch | None = None
        self.rule = target
        if isinstance(target, Momentum):
            self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, views: Sequence[ViewBatch]) -> Embedded:
        """Embed every view once per side that sees it; a momentum target runs without gradient."""
        online_views = tuple(v for v, view in enumerate(views) if view.seen_by in ("both", "online"))
        target_views = tuple(v for v, view in enumerate(views) if view.seen_by in ("both", "target"))
        if self.target is None:
            projected = _embed(self.online, views, sorted({*online_views, *target_views}))
            target = torch.stack([projected[v] for v in target_views])  # [L, B, D]
            if isinstance(self.rule, Shared) and self.rule.stop_gradient:
                target = target.detach()
        else:
            projected = _embed(self.online, views, online_views)
            own = not isinstance(self.rule, Momentum) or self.rule.buffers == "own"
            with torch.no_grad():
                # statistics that are copied or averaged must not move by the target's own passes as well
                kept = [] if own else [buffer.clone() for buffer in self.target.buffers()]
                keys = _embed(self.target, views, target_views)
                target = torch.stack([keys[v] for v in target_views])  # [L, B, D]
                for buffer, value in zip(self.target.buffers(), kept, strict=False):
                    buffer.copy_(value)
        online = torch.stack([projected[v] for v in online_views])  # [V, B, D]
        if self.predictor is not None:
            online = self.predictor(online.flatten(0, 1)).unflatten(0, online.shape[:2])
        return Embedded(online, target, online_views, target_views)

    @torch.no_grad()
    def follow(self, progress: float) -> None:
        """Move the target towards the online network, at `progress` in [0, 1]; nothing to do for a shared one."""
        if self.target is None or not isinstance(self.rule, Momentum):
            return
        toward = 1.0 - resolve(self.rule.momentum, progress)
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), toward)
        if self.rule.buffers == "own":
            return
        for mine, theirs in zip(self.target.buffers(), self.online.buffers(), strict=True):
            if self.rule.buffers == "average" and mine.is_floating_point():
                mine.lerp_(theirs, toward)
            else:
                mine.copy_(theirs)
