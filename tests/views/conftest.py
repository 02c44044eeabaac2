"""What the view tests share: packed pictures, and neutral parameters to change one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from smallview.views.sampling import ViewParameters


@dataclass
class Packed:
    """The smallest thing that views can be cut from: pictures [H, W, C], back to back."""

    images: list[np.ndarray]
    pixels: np.ndarray = field(init=False)
    offsets: np.ndarray = field(init=False)
    heights: np.ndarray = field(init=False)
    widths: np.ndarray = field(init=False)
    channels: int = field(init=False)

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
def neutral() -> Callable[..., ViewParameters]:
    def make(b: int, **changed: Any) -> ViewParameters:
        one, no = np.ones(b), np.zeros(b, bool)
        fields: dict[str, Any] = {
            "masked": no,
            "box": np.tile([0.0, 0.0, 8.0, 8.0], (b, 1)),
            "flip": no,
            "brightness": one,
            "contrast": one,
            "saturation": one,
            "hue": np.zeros(b),
            "grayscale": no,
            "blur_sigma": np.zeros(b),
            "solarize": no,
            "noise_key": np.arange(b, dtype=np.uint64),
        }
        fields["size"] = int(changed.pop("size", 8))
        for name, value in changed.items():
            fields[name] = np.broadcast_to(np.asarray(value), fields[name].shape).astype(fields[name].dtype)
        return ViewParameters(**fields)

    return make
