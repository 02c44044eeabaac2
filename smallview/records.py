"""Values that travel between the parts.

Shape legend, used everywhere: B images, V online views, L target views, D embedding dimensions, F features, M bank entries,
C channels, S the side of a view, N pictures of a set.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

SeenBy = Literal["both", "online", "target"]


class Pictures(Protocol):
    """N decoded pictures back to back in one flat array: what views are cut from.

    pixels uint8, flat; picture i is [heights[i], widths[i], channels] at offsets[i]; one_size is (height, width) when all agree.
    """

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """All pictures, flat."""
        ...

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each picture begins, [N]."""
        ...

    @property
    def heights(self) -> npt.NDArray[np.int32]:
        """[N]."""
        ...

    @property
    def widths(self) -> npt.NDArray[np.int32]:
        """[N]."""
        ...

    @property
    def channels(self) -> int:
        """C of every picture."""
        ...

    @property
    def one_size(self) -> tuple[int, int] | None:
        """(height, width) when all agree."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Batch:
    """One step's pictures: positions in the pack, int64 [B], in the order that (seed, epoch) fixes; `epoch` keys the views."""

    index: npt.NDArray[np.int64]
    epoch: int
    step: int


@dataclass(frozen=True)
class ViewBatch:
    """One view of every picture of a batch: images float [B, C, S, S], normalised, and who sees it."""

    images: Tensor
    seen_by: SeenBy = "both"


@dataclass(frozen=True)
class Embeddings:
    """What a loss sees.

    online [V, B, D]; target [L, B, D]; bank [M, D] or None; is_negative bool [B, M], true where a bank entry is a negative of
    picture i; online_views [V] and target_views [L] say which view each one came from, so that a view is not its own positive.
    """

    online: Tensor
    target: Tensor
    bank: Tensor | None
    is_negative: Tensor | None
    online_views: tuple[int, ...]
    target_views: tuple[int, ...]

    def pairs(self) -> list[tuple[int, int]]:
        """(v, l) for every online and target embedding of two different views."""
        return [
            (v, target)
            for v, source in enumerate(self.online_views)
            for target, other in enumerate(self.target_views)
            if source != other
        ]


@dataclass(frozen=True)
class Row:
    """One judged figure with all that is needed to repeat and to doubt it; the same keys in rows.jsonl and --json."""

    protocol: str
    metric: str
    value: float
    floor_pixels: float | None
    floor_untrained: float | None
    seed: int
    n_train: int
    n_test: int
    settings: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values, ready for JSON."""
        return asdict(self)
