"""Negatives as values: which other embeddings a query is pushed away from.

Each one has the same methods: init(seed, dimensions, device, cut) -> state; images(state) -> pictures that the networks shall embed
along with the batch, or None; draw(state, seen, key) -> (candidates or None, state); count(batch_size, target_views) -> K. The
state is a dict of tensors and travels in the checkpoint. What is drawn is a function of key = (seed, step), so all processes draw
alike without a word.

Legend: L target views, B images of the whole batch, D dimensions, M bank entries, K negatives per query, C channels, S side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.records import Candidates, Embedded
from smallview.seeds import derive, generator

State = dict[str, Tensor]
Key = tuple[int, int]
Drawn = tuple[Candidates | None, State]
# (positions of pictures in the data, patches of each, part of their area) -> normalised patches [M, C, S, S]
Cut = Callable[[tuple[int, ...], int, tuple[float, float]], Tensor]


@dataclass(frozen=True)
class NoNegatives:
    """No other embeddings at all (BYOL, SimSiam)."""

    def init(self, seed: int, dimensions: int, device: torch.device, cut: Cut | None = None) -> State:
        """Nothing to remember."""
        return {}

    def count(self, batch_size: int, target_views: int) -> int:
        """None."""
        return 0

    def images(self, state: State) -> Tensor | None:
        """None."""
        return None

    def draw(self, state: State, seen: Embedded, key: Key) -> Drawn:
        """No candidates."""
        return None, state


@dataclass(frozen=True)
class InBatch:
    """The other pictures of the batch, from all processes.

    views: "all" target views of them, with two views 2B - 2 negatives per query (SimCLR); or only the target view that the
    "positive" comes from, B - 1 (MoCo v3, SiMo, ReLIC). per_query: how many of these are kept, by one permutation per step that all
    queries and processes share; it numbers each query's list with the query's own picture left out. None, or more than there are:
    all.

    Source: Chen et al., 2020, eq. 1; Zhu et al., 2020 (SiMo).

    Raises:
        ValueError: per_query under 1, or other views.
    """

    per_query: int | None = None
    views: Literal["all", "positive"] = "all"

    def __post_init__(self) -> None:
        if self.views not in ("all", "positive"):
            raise ValueError(f"views is {self.views!r}; wanted all or positive")
        if self.per_query is not None and self.per_query < 1:
            raise ValueError(f"per_query is {self.per_query}; wanted 1 or more negatives, or none for all there are")

    def init(self, seed: int, dimensions: int, device: torch.device, cut: Cut | None = None) -> State:
        """Nothing to remember."""
        return {}

    def count(self, batch_size: int, target_views: int) -> int:
        """How many negatives a query has, in a batch of so many pictures over all processes."""
        total = (1 if self.views == "positive" else target_views) * (batch_size - 1)
        return total if self.per_query is None else min(total, self.per_query)

    def images(self, state: State) -> Tensor | None:
        """None."""
        return None

    def draw(self, state: State, seen: Embedded, key: Key) -> Drawn:
        """The target embeddings themselves, gradient and all; a picture is never its own negative."""
        views, b, _ = seen.target.shape
        device = seen.target.device
        row = torch.arange(b, device=device)[:, None]  # [B, 1]
        per_view = 1 if self.views == "positive" else views
        bank = seen.target if self.views == "positive" else seen.target.flatten(0, 1)  # [L, B, D] or [L * B, D]
        own = row + b * torch.arange(per_view, device=device)  # [B, 1 or L]
        total = per_view * (b - 1)
        if self.per_query is None or self.per_query >= total:
            return Candidates(bank, own), state
        order = generator(key[0], "negatives", key[1]).permutation(total)
        kept = torch.from_numpy(order[: self.per_query]).to(device)  # [K]
        view, place = kept // (b - 1), (kept % (b - 1))[None, :]  # places in a list that lacks the query's own picture
        picture = place + (place >= row)  # [B, K]
        columns = view[None, :] * b + picture
        # at most two columns per place are anyone's negative: the others need not be looked at
        used = torch.unique(torch.cat([columns[0], columns[-1]]))
        is_negative = torch.zeros(b, len(used), dtype=torch.bool, device=device)
        is_negative.scatter_(1, torch.searchsorted(used, columns), True)
        return Candidates(bank[..., used, :], None, is_negative, picture if self.views == "positive" else None), state


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

    def init(self, seed: int, dimensions: int, device: torch.device, cut: Cut | None = None) -> State:
        """Keys float [size, D]: random unit vectors; position int64: where the next one goes."""
        source = torch.Generator().manual_seed(derive(seed, "queue"))
        keys = F.normalize(torch.randn(self.size, dimensions, generator=source), dim=1)
        return {"keys": keys.to(device), "position": torch.zeros((), dtype=torch.int64)}

    def count(self, batch_size: int, target_views: int) -> int:
        """How many negatives a query has."""
        return self.size

    def images(self, state: State) -> Tensor | None:
        """None."""
        return None

    def draw(self, state: State, seen: Embedded, key: Key) -> Drawn:
        """The queue as it is, and the state after the new embeddings, all of one target view after the other, came in."""
        keys, position = state["keys"], int(state["position"])
        new = F.normalize(seen.target.detach().flatten(0, 1).to(keys.dtype), dim=1)[-self.size :]
        places = (position + torch.arange(len(new))) % self.size
        # a copy: the bank in hand is needed again in the backward pass
        after = keys.index_copy(0, places.to(keys.device), new)
        return Candidates(keys), {"keys": after, "position": torch.tensor((position + len(new)) % self.size)}


@dataclass(frozen=True)
class Fixed:
    """A few fixed pictures are the negatives of every query, embedded anew at each step by the same networks.

    pictures: their positions in the data. patches: how many patches are cut from each, once, at the start of the run. scale: part
    of the picture's area that a patch covers. The default, one patch of one picture, is the extreme case of Bordes et al.

    Source: Bordes et al., 2023; how the authors cut their patch is not known.

    Raises:
        ValueError: no picture, a position under 0, no patch, or a scale outside (0, 1].
    """

    pictures: tuple[int, ...] = (0,)
    patches: int = 1
    scale: tuple[float, float] = (0.1, 0.1)

    def __post_init__(self) -> None:
        if not self.pictures or min(self.pictures) < 0:
            raise ValueError(f"pictures is {self.pictures}; wanted one or more positions in the data, counted from 0")
        if self.patches < 1:
            raise ValueError(f"patches is {self.patches}; wanted 1 or more")
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"scale is {self.scale}; wanted (smallest, largest) part of the area, within 0 to 1")

    def init(self, seed: int, dimensions: int, device: torch.device, cut: Cut | None = None) -> State:
        """Images float [M, C, S, S]: the patches."""
        if cut is None:
            raise ValueError("Fixed negatives need a way to the pictures; wanted `cut` in init(seed, dimensions, device, cut)")
        return {"images": cut(self.pictures, self.patches, self.scale).to(device)}

    def count(self, batch_size: int, target_views: int) -> int:
        """How many negatives a query has."""
        return len(self.pictures) * self.patches

    def images(self, state: State) -> Tensor | None:
        """The patches [M, C, S, S]."""
        return state["images"]

    def draw(self, state: State, seen: Embedded, key: Key) -> Drawn:
        """Their embeddings [M, D]."""
        if seen.fixed is None:
            raise ValueError(
                "the fixed pictures were not embedded; wanted networks(views, images) with negatives.images(state)"
            )
        return Candidates(seen.fixed), state


Negatives = InBatch | Queue | Fixed | NoNegatives
