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
    """N pictures of C channels, each of its own size, whose pixels come when asked for: what views are cut from.

    one_size is (height, width) when all agree. first is what the first of them is counted as: where a set is divided, its place in the
    whole, so that a picture's views are the same in every division.
    """

    @property
    def first(self) -> int:
        """0 but for a part of a set."""
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

    def gather(self, index: npt.NDArray[np.int64], threads: int = 1) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """(flat uint8, where each begins int64 [B]) of the pictures at these positions: [heights[i], widths[i], C] each.

        Decodes each once where they are packed as files; not to be written into, for it may be the pack itself.
        """
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Foregrounds:
    """What stands in front in each of N pictures, one bit a pixel.

    bits uint8, flat: the mask of picture i is np.unpackbits(bits[starts[i]:], count=H * W) as [H, W], 1 on the foreground. starts
    int64 [N]. usable bool [N]: false where the mask found nothing or everything, so that the picture stays whole. `hash` tells all of it.
    """

    bits: npt.NDArray[np.uint8] = field(repr=False)
    starts: npt.NDArray[np.int64] = field(repr=False)
    usable: npt.NDArray[np.bool_] = field(repr=False)
    hash: str


@dataclass(frozen=True)
class Batch:
    """One step's pictures: positions in the pack, int64 [B], in the order that (seed, epoch) fixes; `epoch` keys the views, and
    `progress` in [0, 1] is what their sizes follow.
    """

    index: npt.NDArray[np.int64]
    epoch: int
    step: int
    progress: float = 0.0


@dataclass(frozen=True)
class ViewBatch:
    """One view of every picture of a batch: images float [B, C, S, S], normalised, and who sees it."""

    images: Tensor
    seen_by: SeenBy = "both"


@dataclass(frozen=True)
class Embedded:
    """What the networks made of a batch: online [V, B, D], target [L, B, D], which view each came from, and fixed [M, D], the target
    side's embeddings of the fixed pictures, where the method has some. features [B, F], without gradient and never gathered: what the
    encoder made of the first online view, for those who look on.
    """

    online: Tensor
    target: Tensor
    online_views: tuple[int, ...]
    target_views: tuple[int, ...]
    fixed: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """What queries are pushed away from, and which of it counts for which picture; nothing here is [B, M] unless `is_negative` is given.

    embeddings: [M, D] for all, or [L, M, D], one set per target view. own: int64 [B, P], the entries that show picture i itself and
    are never its negatives. is_negative: bool [B, M], a further choice, true where an entry counts. pictures: int64 [B, K], the
    rows of the batch that picture i is contrasted with, where they were drawn; None is all others.
    """

    embeddings: Tensor
    own: Tensor | None = None
    is_negative: Tensor | None = None
    pictures: Tensor | None = None

    def of(self, target_view: int) -> Tensor:
        """The entries [M, D] that stand against the positives of that target view."""
        return self.embeddings if self.embeddings.dim() == 2 else self.embeddings[target_view]


@dataclass(frozen=True)
class Embeddings:
    """What a loss sees: the whole batch, gathered from all processes.

    online [V, B, D]; target [L, B, D]; candidates or None; online_views [V] and target_views [L] say which view each one came from,
    so that a view is not its own positive; key is (seed, step), for losses that draw. features: as in Embedded, not for losses.
    """

    online: Tensor
    target: Tensor
    candidates: Candidates | None
    online_views: tuple[int, ...]
    target_views: tuple[int, ...]
    key: tuple[int, int] = (0, 0)
    features: Tensor | None = None

    def pairs(self, same_view: bool = False) -> list[tuple[int, int]]:
        """(v, l) for every online and target embedding of two different views; with `same_view` also of one view.

        Example:
            >>> import torch
            >>> four_large, two_small = (0, 1, 2, 3), (4, 5)
            >>> e = Embeddings(torch.zeros(6, 1, 1), torch.zeros(4, 1, 1), None, four_large + two_small, four_large)
            >>> len(e.pairs()), len(e.pairs(same_view=True))
            (20, 24)
        """
        return [
            (v, target)
            for v, source in enumerate(self.online_views)
            for target, other in enumerate(self.target_views)
            if same_view or source != other
        ]


@dataclass(frozen=True)
class Row:
    """One judged figure with all that is needed to repeat and to doubt it; the same keys in rows.jsonl and --json.

    interval: half the width of the value's 95 % interval, over the test pictures or the draws; of one training, so without what
    another seed would change.
    """

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
    interval: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values, ready for JSON."""
        return asdict(self)
