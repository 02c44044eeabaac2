"""Negatives as values: which other embeddings a query is pushed away from.

Each one has the same pair: init(...) -> state, draw(state, target, key) -> (bank [M, D], is_negative [B, M], state). The state is
a dict of tensors and travels in the checkpoint. Legend: L target views, B images, D dimensions, M bank entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.seeds import derive

State = dict[str, Tensor]
Key = tuple[int, int]
Drawn = tuple[Tensor | None, Tensor | None, State]


@dataclass(frozen=True)
class NoNegatives:
    """No other embeddings at all (BYOL, SimSiam)."""

    def init(self, seed: int, dimensions: int, device: torch.device) -> State:
        """Nothing to remember."""
        return {}

    def draw(self, state: State, target: Tensor, key: Key) -> Drawn:
        """No bank."""
        return None, None, state


@dataclass(frozen=True)
class InBatch:
    """The other pictures of the batch, in every target view: with two views 2B - 2 negatives per query (SimCLR).

    Source: Chen et al., 2020, eq. 1.
    """

    def init(self, seed: int, dimensions: int, device: torch.device) -> State:
        """Nothing to remember."""
        return {}

    def draw(self, state: State, target: Tensor, key: Key) -> Drawn:
        """The target embeddings themselves, gradient and all; a picture is never its own negative."""
        views, b, d = target.shape
        other = ~torch.eye(b, dtype=torch.bool, device=target.device)
        return target.reshape(views * b, d), other.repeat(1, views), state


@dataclass(frozen=True)
class Queue:
    """The target embeddings of the last steps, first in, first out: `size` negatives at the cost of a small batch (MoCo).

    It starts with random directions (as He et al., 2020, do), takes in every target view after the loss has seen it, wraps at
    any size, and holds unit vectors without gradient.

    Source: He et al., 2020, section 3.2.
    """

    size: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 2**22:
            raise ValueError(f"size is {self.size}; wanted 1 to {2**22} embeddings")

    def init(self, seed: int, dimensions: int, device: torch.device) -> State:
        """Keys float [size, D]: random unit vectors; position int64: where the next one goes."""
        source = torch.Generator().manual_seed(derive(seed, "queue"))
        keys = F.normalize(torch.randn(self.size, dimensions, generator=source), dim=1)
        return {"keys": keys.to(device), "position": torch.zeros((), dtype=torch.int64)}

    def draw(self, state: State, target: Tensor, key: Key) -> Drawn:
        """The queue as it is, and the state after the new embeddings [L * B, D] came in."""
        keys, position = state["keys"], int(state["position"])
        new = F.normalize(target.detach().flatten(0, 1).float(), dim=1)[-self.size :]
        places = (position + torch.arange(len(new))) % self.size
        # a copy: the bank in hand is needed again in the backward pass
        after = keys.index_copy(0, places.to(keys.device), new)
        everything = torch.ones(target.shape[1], self.size, dtype=torch.bool, device=keys.device)
        return keys, everything, {"keys": after, "position": torch.tensor((position + len(new)) % self.size)}


Negatives = InBatch | Queue | NoNegatives
