"""Pictures as directions: unit rows of features that need not fit into memory, with the pictures that they are of.

Legend: N pictures, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.data.arrays import Labels
from smallview.data.decoding import BadPicture, Pixels
from smallview.data.listing import BadFile
from smallview.data.sources import Source
from smallview.errors import DataError
from smallview.evaluation.features import Judged
from smallview.output.embed import plain_name

ROWS = 8192  # taken at a time
_TINY = 1e-15


@dataclass(frozen=True, eq=False)
class Vectors:
    """N pictures as directions: `unit` gives rows of length 1 of features float32 [N, F], which may be a map of a file.

    usable bool [N]: rows that have a direction; the others, of zeros or of numbers that are not finite, come out as zeros. names [N] as
    the source has them; labels int64 [N] with the names of their classes, or None. source and positions int64 [N]: the pictures
    themselves, or None where only their vectors are known. left_out: pictures that could not be read. written: by smallview embed.
    """

    subject: Judged = field(repr=False)
    encoder_sha256: str
    features: npt.NDArray[np.float32] = field(repr=False)
    norms: npt.NDArray[np.float32] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    labels: Labels | None = field(default=None, repr=False)
    classes: tuple[str, ...] | None = None
    source: Source | None = field(default=None, repr=False)
    positions: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    left_out: tuple[BadFile, ...] = ()
    name: str = "pictures"
    written: bool = False

    def __len__(self) -> int:
        return len(self.features)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Which rows have a direction, bool [N]."""
        return self.norms > 0

    def unit(self, which: slice | npt.NDArray[np.int64]) -> Tensor:
        """These rows at length 1, float32 [n, F], in memory; a row without a direction is all zeros.

        Example:
            >>> two = np.array([[3, 4], [0, 0]], np.float32)
            >>> Vectors(None, "", two, norms_of(two), ["a", "b"]).unit(slice(None)).tolist()
            [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
        """
        norms = self.norms[which][:, None]
        return torch.from_numpy(np.where(norms > 0, self.features[which] / np.where(norms > 0, norms, 1), np.float32(0)))

    def parts(self, rows: int = ROWS) -> Iterator[tuple[int, Tensor]]:
        """(where it begins, unit rows [n, F]) for one part after the other, in order."""
        for first in range(0, len(self), rows):
            yield first, self.unit(slice(first, first + rows))

    def cosines(self, first: int, stop: int, asked: Tensor) -> Tensor:
        """Cosine similarity [n, Q] of rows first to stop with unit rows asked [Q, F]; -2 for rows without a direction.

        The rows are read where they lie: a product is divided by its row's length, and no copy is made.
        """
        norms = torch.from_numpy(self.norms[first:stop])[:, None]
        products = torch.from_numpy(self.features[first:stop]) @ asked.T
        return torch.where(norms > 0, products / norms, torch.tensor(-2.0))

    def class_of(self, i: int) -> str | None:
        """The class of picture i in words, where it is known."""
        if self.labels is None:
            return None
        label = int(self.labels[i])
        return plain_name(self.classes[label]) if self.classes else str(label)

    def words(self, i: int, number: float) -> tuple[str, ...]:
        """A number of picture i, and its class where that is known, for below it on a sheet."""
        called = self.class_of(i)
        return (f"{number:.3f}",) if called is None else (f"{number:.3f}", called)

    def short_name(self, i: int) -> str:
        """The name of picture i without the folder that is its class, which `words` tells."""
        return self.names[i].removeprefix(f"{self.class_of(i)}/")

    def picture(self, i: int, short_side: int | None = None) -> Pixels:
        """Picture i as its source has it, uint8 [H, W, C]; a large one may come back smaller, its short side at least `short_side`.

        Raises:
            DataError: only the vectors are known, or the picture is gone.
        """
        if self.source is None or self.positions is None:
            raise DataError(f"the pictures of {self.name} are not known; name their folder with --pictures")
        try:
            return self.source.read(int(self.positions[i]), short_side)
        except BadPicture as error:
            raise DataError(f"{self.names[i]} cannot be read any more: {error}") from error


def norms_of(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The length of each row [N]; 0 for a row without a direction: of zeros, or of numbers that are not finite."""
    norms = np.empty(len(features), np.float32)
    for first in range(0, len(features), ROWS):
        part = torch.from_numpy(features[first : first + ROWS])
        lengths = torch.linalg.vector_norm(part, dim=1)
        if len(odd := torch.nonzero(~torch.isfinite(lengths) | (lengths < _TINY))[:, 0]):  # squares that left float32's range
            lengths[odd] = torch.linalg.vector_norm(part[odd].double(), dim=1).float()
        norms[first : first + ROWS] = lengths.numpy()
    norms[~np.isfinite(norms)] = 0.0
    return norms
