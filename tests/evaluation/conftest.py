"""What the evaluation tests share: pictures of classes that can be told apart, and one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from smallview.evaluation.bench import Labeled


@dataclass
class Packed:
    """The smallest thing that views can be cut from: pictures [H, W, C], back to back."""

    images: list[np.ndarray]
    pixels: np.ndarray = field(init=False)
    offsets: np.ndarray = field(init=False)
    heights: np.ndarray = field(init=False)
    widths: np.ndarray = field(init=False)
    channels: int = field(init=False)
    first: int = 0

    def __post_init__(self) -> None:
        self.pixels = np.concatenate([image.reshape(-1) for image in self.images])
        self.offsets = np.cumsum([0, *(image.size for image in self.images[:-1])]).astype(np.int64)
        self.heights = np.array([image.shape[0] for image in self.images], np.int32)
        self.widths = np.array([image.shape[1] for image in self.images], np.int32)
        self.channels = self.images[0].shape[2]

    @property
    def one_size(self) -> tuple[int, int] | None:
        sizes = {image.shape[:2] for image in self.images}
        return sizes.pop() if len(sizes) == 1 else None

    def gather(self, index: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        return self.pixels, self.offsets[index]

    def __len__(self) -> int:
        return len(self.images)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def labeled() -> Callable[..., Labeled]:
    """N pictures of `classes` classes, one brightness each, as a folder lists them: class after class."""

    def make(n: int = 60, side: int | tuple[int, ...] = 8, classes: int = 3, seed: int = 0, channels: int = 3) -> Labeled:
        random = np.random.default_rng(seed)
        labels = np.sort(np.arange(n) % classes)
        sides = (side,) if isinstance(side, int) else side
        images = [
            np.clip(random.normal(60 + 60 * label, 25, (sides[i % len(sides)],) * 2 + (channels,)), 0, 255).astype(np.uint8)
            for i, label in enumerate(labels)
        ]
        return Labeled(Packed(images), labels.astype(np.int64), f"set {seed}")

    return make


@pytest.fixture
def packed() -> Callable[[list[np.ndarray]], Packed]:
    """Pictures of any sizes as something that views can be cut from."""
    return Packed
