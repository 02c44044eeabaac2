"""Whether an exported encoder gives the features of the one that it was made from, as someone without this library sees them.

Legend: B pictures, C channels, S the side of a view, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.networks.modes import evaluating
from smallview.seeds import generator

PICTURES = 64
BATCHES = (1, 2, 3, 4, 5)
TOLERANCE = 1e-4
TIE = 1e-6

Shown = npt.NDArray[np.uint8]  # [B, S, S, C]
Features = Callable[[Shown], npt.NDArray[np.float32]]  # [B, S, S, C] -> [B, F]


@dataclass(frozen=True)
class Parity:
    """What a comparison came to.

    shown: what the pictures were. difference: the greatest absolute one of any feature; scale: the root mean square of all features.
    moved: how many pictures have another nearest neighbour by cosine than before.
    """

    pictures: int
    shown: str
    difference: float
    scale: float
    moved: int

    @property
    def relative(self) -> float:
        """The difference as a part of the scale."""
        return self.difference / self.scale if self.scale else float(self.difference != 0.0)

    @property
    def holds(self) -> bool:
        """Whether the two encoders may be taken for one; false for features that are not finite."""
        return self.relative <= TOLERANCE and self.moved == 0

    def sentence(self) -> str:
        """The account in words.

        Example:
            >>> Parity(64, "made", 2e-7, 0.5, 0).sentence().partition(" in batches of 1 to 5: ")[2]
            'greatest difference of a feature 2.0e-07, 4.0e-07 of their scale; every nearest neighbour stays'
        """
        stays = "every nearest neighbour stays" if self.moved == 0 else f"{self.moved} have another nearest neighbour"
        return (
            f"{self.pictures} pictures ({self.shown}) in batches of {BATCHES[0]} to {BATCHES[-1]}: greatest difference of a feature "
            f"{self.difference:.1e}, {self.relative:.1e} of their scale; {stays}"
        )


def made_pictures(size: int, mean: Sequence[float], std: Sequence[float]) -> Shown:
    """Gradients with more and more noise, about as bright and as varied as the pictures that an encoder was trained on; always the same.

    Example:
        >>> made_pictures(8, (0.5,), (0.25,)).shape
        (64, 8, 8, 1)
    """
    draw = generator(0, "pictures of an export")
    channels = len(mean)
    slope = draw.normal(size=(PICTURES, 2, channels))
    steps = np.linspace(-1.5, 1.5, size)
    gradient = steps[:, None, None] * slope[:, None, None, 0] + steps[None, :, None] * slope[:, None, None, 1]
    noise = draw.normal(size=(PICTURES, size, size, channels)) * np.linspace(0.0, 1.0, PICTURES)[:, None, None, None]
    level = draw.normal(size=(PICTURES, 1, 1, channels))
    values = np.asarray(mean) + np.asarray(std) * (level + gradient + noise)
    return (255.0 * values.clip(0.0, 1.0)).round().astype(np.uint8)


def normalised(pictures: Shown, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images float [B, C, S, S] of pictures, as an encoder takes them."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255.0
    shape = (1, -1, 1, 1)
    return ((images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)).contiguous()


def features_of(net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Features:
    """A network of PyTorch, in evaluation mode, as what takes pictures."""

    def run(pictures: Shown) -> npt.NDArray[np.float32]:
        with torch.no_grad(), evaluating(net):
            features: npt.NDArray[np.float32] = net(normalised(pictures, mean, std)).float().numpy()
        return features

    return run


def compare(ours: Features, theirs: Features, pictures: Shown, shown: str) -> Parity:
    """Both encoders on the same pictures, in the same batches of one to five.

    Example:
        >>> mean = lambda pictures: pictures.mean((1, 2), dtype=np.float32)
        >>> compare(mean, mean, made_pictures(4, (0.5,) * 3, (0.2,) * 3), "made").holds
        True
    """
    starts = np.cumsum([count for count, _ in zip(itertools.cycle(BATCHES), range(len(pictures)), strict=False)])
    batches = np.split(pictures, starts[starts < len(pictures)])
    wanted, got = (np.concatenate([run(batch) for batch in batches]).astype(np.float64) for run in (ours, theirs))
    if got.shape != wanted.shape:
        return Parity(len(pictures), shown, float("inf"), 1.0, len(pictures))
    difference = float(np.abs(got - wanted).max())
    scale = float(np.sqrt(np.square(wanted).mean()))
    return Parity(len(pictures), shown, difference if np.isfinite(difference) else float("inf"), scale, _moved(wanted, got))


def _moved(wanted: npt.NDArray[np.float64], got: npt.NDArray[np.float64]) -> int:
    """How many rows have another nearest one; two that are equally near by rounding are the same."""
    if not np.isfinite(got).all():
        return len(got)
    near, other = (_similarities(features) for features in (wanted, got))
    rows = np.arange(len(near))
    return int((near.max(1) - near[rows, other.argmax(1)] > TIE).sum())


def _similarities(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosines: npt.NDArray[np.float64] = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines
