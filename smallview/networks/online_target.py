"""The online network, and the target that it is compared with.

Legend: V online views, L target views, B images, D embedding dimensions, M fixed pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallview.networks.heads import Heads
from smallview.records import Embedded, ViewBatch
from smallview.schedules import Schedule, over, resolve


@dataclass(frozen=True)
class Shared:
    """The target is the online network itself; with `stop_gradient`, nothing flows back from its embeddings (SimSiam).

    Views of one size go through in one batch, whoever sees them, and share its BatchNorm statistics.
    """

    stop_gradient: bool = False


@dataclass(frozen=True)
class Momentum:
    """The target is a slow average of the online network: target = momentum * target + (1 - momentum) * online, after each step.

    reference_steps: the length of the training that `momentum` was chosen for; in a training of n steps it becomes
    momentum ** (reference_steps / n), so that the target remembers the same part of the training. None: taken as it is.
    buffers says where the target's BatchNorm statistics come from: "own", its own forward passes in training mode (as the
    codes of MoCo and BYOL do); "copy", the online network's; "average", averaged like the weights. In training its passes
    normalise by their own batch in any case: the choice is what a target that is kept would be used with.

    Source: He et al., 2020, eq. 2; Grill et al., 2020, eq. 1; the rescaling is Busbridge et al., 2023.

    Example:
        >>> Momentum(0.996, reference_steps=1000).at(0.0, 1000), round(Momentum(0.996, reference_steps=1000).at(0.0, 250), 6)
        (0.996, 0.984096)
    """

    momentum: float | Schedule = 0.99
    buffers: Literal["own", "copy", "average"] = "own"
    reference_steps: int | None = None

    def __post_init__(self) -> None:
        if self.buffers not in ("own", "copy", "average"):
            raise ValueError(f"buffers is {self.buffers!r}; wanted own, copy or average")
        if not all(0.0 <= at <= 1.0 for at in over(self.momentum)):
            raise ValueError(f"momentum is {self.momentum}; wanted numbers from 0 to 1")
        if self.reference_steps is not None and self.reference_steps < 1:
            raise ValueError(f"reference_steps is {self.reference_steps}; wanted 1 or more, or none")

    def at(self, progress: float, total_steps: int) -> float:
        """The momentum at `progress` in [0, 1] of a training of so many steps."""
        momentum = resolve(self.momentum, progress)
        return momentum if self.reference_steps is None else momentum ** (self.reference_steps / total_steps)


Target = Shared | Momentum


FIXED = -1  # stands for the fixed pictures where views have their numbers


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class Branch(nn.Module):
    """Encoder and projector: images [B, C, S, S] -> embeddings [B, D]."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, D]."""
        embeddings: Tensor = self.projector(self.encoder(images))
        return embeddings


Passes = Callable[[nn.Module, Tensor], Tensor]


def plain(module: nn.Module, x: Tensor) -> Tensor:
    """module(x): what passes are where nothing else is asked for."""
    out: Tensor = module(x)
    return out


def _embed(branch: Branch, images: dict[int, Tensor], passes: Passes) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Embeddings and features of images by number, one encoder call per size."""
    by_size: dict[int, list[int]] = {}
    for number, x in images.items():
        by_size.setdefault(x.shape[-1], []).append(number)
    embeddings: dict[int, Tensor] = {}
    features: dict[int, Tensor] = {}
    for group in by_size.values():
        encoded = passes(branch.encoder, torch.cat([images[number] for number in group]))
        lengths = [len(images[number]) for number in group]
        embeddings.update(zip(group, passes(branch.projector, encoded).split(lengths), strict=True))
        features.update(zip(group, encoded.detach().split(lengths), strict=True))
    return embeddings, features


class First(nn.Module):
    """The first n columns of [B, F]."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """[B, n]."""
        return x[:, : self.n]


def projector_of(encoder: nn.Module, features: int, heads: Heads) -> nn.Module:
    """The projector behind an encoder: of all its features, or of the first ones, where it says that the others are fixed (`projected`)."""
    seen = int(getattr(encoder, "projected", features))
    projector = heads.projector.build(seen)
    return projector if seen == features else nn.Sequential(First(seen), *projector.children())


class Networks(nn.Module):
    """Online encoder, projector and predictor, with their target; calling it embeds the views of a batch.

    passes: how a network is called, `plain` or as CUDA graphs (training/graphs.py).
    """

    def __init__(self, encoder: nn.Module, features: int, heads: Heads, target: Target, passes: Passes = plain) -> None:
        super().__init__()
        self.online = Branch(encoder, projector_of(encoder, features, heads))
        self.predictor = None if heads.predictor is None else heads.predictor.build(heads.projector.out)
        self.target: Branch | None = None
        self.rule, self.passes = target, passes
        if isinstance(target, Momentum):
            self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, views: Sequence[ViewBatch], fixed: Tensor | None = None) -> Embedded:
        """Embed every view once per side that sees it, and the fixed pictures [M, C, S, S] on the target's side, which in a momentum
        target runs without gradient.

        The fixed pictures go through in one batch with the views, at their size: alone, they would have BatchNorm statistics of
        their own and be as good as told apart by it.
        """
        online_views = tuple(v for v, view in enumerate(views) if view.seen_by in ("both", "online"))
        target_views = tuple(v for v, view in enumerate(views) if view.seen_by in ("both", "target"))
        online_images = {v: views[v].images for v in online_views}
        target_images = {v: views[v].images for v in target_views}
        if fixed is not None:
            like = views[target_views[0]].images
            if fixed.shape[-1] != like.shape[-1]:
                fixed = F.interpolate(fixed, size=like.shape[-2:], mode="bilinear", antialias=True)
            target_images[FIXED] = fixed.to(like).contiguous(memory_format=_layout(like))
        if self.target is None:
            projected, features = _embed(self.online, online_images | target_images, self.passes)
            keys = projected
        else:
            projected, features = _embed(self.online, online_images, self.passes)
            keys = self._target_embeddings(self.target, target_images)
        online = torch.stack([projected[v] for v in online_views])  # [V, B, D]
        target = torch.stack([keys[v] for v in target_views])  # [L, B, D]
        patches = keys.get(FIXED)  # [M, D]
        if isinstance(self.rule, Shared) and self.rule.stop_gradient:
            target, patches = target.detach(), None if patches is None else patches.detach()
        if self.predictor is not None:
            online = self.passes(self.predictor, online.flatten(0, 1)).unflatten(0, online.shape[:2])
        return Embedded(online, target, online_views, target_views, patches, features[online_views[0]])

    @torch.no_grad()
    def _target_embeddings(self, target: Branch, images: dict[int, Tensor]) -> dict[int, Tensor]:
        own = not isinstance(self.rule, Momentum) or self.rule.buffers == "own"
        # statistics that are copied or averaged must not move by the target's own passes as well
        kept = [] if own else [buffer.clone() for buffer in target.buffers()]
        keys, _ = _embed(target, images, self.passes)
        for buffer, value in zip(target.buffers(), kept, strict=False):
            buffer.copy_(value)
        return keys

    @torch.no_grad()
    def follow(self, progress: float, total_steps: int) -> None:
        """Move the target towards the online network, at `progress` in [0, 1] of so many steps; a shared one needs no move."""
        if self.target is None or not isinstance(self.rule, Momentum):
            return
        toward = 1.0 - self.rule.at(progress, total_steps)
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), toward)
        if self.rule.buffers == "own":
            return
        for mine, theirs in zip(self.target.buffers(), self.online.buffers(), strict=True):
            if self.rule.buffers == "average" and mine.is_floating_point():
                mine.lerp_(theirs, toward)
            else:
                mine.copy_(theirs)
