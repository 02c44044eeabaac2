"""What the view tests share: packed pictures, neutral parameters to change one at a time, and the kernel on one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from smallview.records import Foregrounds
from smallview.views import kernel_cpu, sampling
from smallview.views.sampling import ViewParameters
from smallview.views.view import View


@dataclass
class Packed:
    """The smallest thing that views can be cut from: pictures [H, W, C], back to back; it counts what it is asked for."""

    images: list[np.ndarray]
    heights: np.ndarray = field(init=False)
    widths: np.ndarray = field(init=False)
    channels: int = field(init=False)
    first: int = 0
    gathered: list[int] = field(init=False, default_factory=list)  # pictures of each call

    def __post_init__(self) -> None:
        self._pixels = np.concatenate([image.reshape(-1) for image in self.images])
        self._starts = np.cumsum([0, *(image.size for image in self.images[:-1])]).astype(np.int64)
        self.heights = np.array([image.shape[0] for image in self.images], np.int32)
        self.widths = np.array([image.shape[1] for image in self.images], np.int32)
        self.channels = self.images[0].shape[2]

    @property
    def one_size(self) -> tuple[int, int] | None:
        sizes = {image.shape[:2] for image in self.images}
        return sizes.pop() if len(sizes) == 1 else None

    def gather(self, index: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        self.gathered.append(len(index))
        return self._pixels, self._starts[index]

    def __len__(self) -> int:
        return len(self.images)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def packed() -> Callable[..., Packed]:
    def make(shapes: list[tuple[int, int, int]], seed: int = 0) -> Packed:
        random = np.random.default_rng(seed)
        return Packed([random.integers(0, 256, shape, np.uint8) for shape in shapes])

    return make


@pytest.fixture
def masks_of() -> Callable[..., Foregrounds]:
    """Foregrounds from masks [H, W], each beginning at a byte of its own."""

    def make(masks: list[np.ndarray], usable: Any = None) -> Foregrounds:
        bits = [np.packbits(mask.reshape(-1).astype(bool)) for mask in masks]
        starts = np.cumsum([0, *(len(b) for b in bits[:-1])]).astype(np.int64)
        useful = np.ones(len(masks), bool) if usable is None else np.asarray(usable, bool)
        return Foregrounds(np.concatenate(bits), starts, useful, "test")

    return make


@pytest.fixture
def neutral() -> Callable[..., ViewParameters]:
    """Parameters of B whole 8 x 8 crops with nothing done to them, but for the named changes."""

    def make(b: int, **changed: Any) -> ViewParameters:
        plain = sampling.neutral(np.tile([0.0, 0.0, 8.0, 8.0], (b, 1)), np.zeros(b, bool), int(changed.pop("size", 8)))
        plain = replace(plain, noise_key=np.arange(b, dtype=np.uint64))
        shaped = {f.name: getattr(plain, f.name) for f in fields(plain)}
        values = {
            name: np.broadcast_to(np.asarray(value), shaped[name].shape).astype(shaped[name].dtype)
            for name, value in changed.items()
        }
        return replace(plain, **values)

    return make


@pytest.fixture
def kernel() -> Callable[..., np.ndarray]:
    """The CPU kernel on pictures at `index`, all of them by default; not normalised unless asked for."""

    def make(
        pictures: Packed, drawn: ViewParameters, view: View | None = None, index: Any = None, mean: Any = None, std: Any = None,
        **more: Any,
    ) -> np.ndarray:  # fmt: skip
        index = np.arange(len(pictures)) if index is None else np.asarray(index, np.int64)
        moments = (np.zeros(pictures.channels) if mean is None else mean, np.ones(pictures.channels) if std is None else std)
        return kernel_cpu.make_views(
            *pictures.gather(index),
            *(pictures.heights[index], pictures.widths[index], view or View(), drawn),
            *(np.asarray(moment, np.float32) for moment in moments),
            index=index,
            **more,
        )

    return make


@pytest.fixture
def random_boxes() -> Callable[..., np.ndarray]:
    """Boxes [B, 4] on real numbers within pictures of these heights and widths."""

    def make(heights: Any, widths: Any, smallest: float = 0.5, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        high, wide = np.asarray(heights, float), np.asarray(widths, float)
        h, w = random.uniform(np.minimum(smallest, high), high), random.uniform(np.minimum(smallest, wide), wide)
        return np.stack([random.uniform(0, 1, len(h)) * (high - h), random.uniform(0, 1, len(h)) * (wide - w), h, w], 1)

    return make
