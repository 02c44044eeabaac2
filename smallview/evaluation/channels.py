"""Gray pictures for an encoder of three channels."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt


class ThreeChannels:
    """The same pictures with their one channel three times: uint8 [H, W, 3] each, made when asked for."""

    def __init__(self, pictures: Any) -> None:
        if pictures.channels != 1:
            raise ValueError(f"pictures have {pictures.channels} channels; wanted 1")
        self._pictures = pictures
        self.first, self.heights, self.widths, self.one_size = (
            *(pictures.first, pictures.heights, pictures.widths),
            pictures.one_size,
        )
        self.channels = 3
        told = getattr(pictures, "hash", "")
        self.hash = hashlib.sha256(f"{told} as three channels".encode()).hexdigest() if told else ""

    def gather(self, index: npt.NDArray[np.int64], threads: int = 1) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """(flat uint8, where each begins int64 [B]) of the pictures at these positions."""
        flat, starts = self._pictures.gather(index, threads)
        sizes = self.heights[index].astype(np.int64) * self.widths[index]
        parts = [np.repeat(flat[start : start + size], 3) for start, size in zip(starts, sizes, strict=True)]
        ends = np.cumsum(3 * sizes)
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8), ends - 3 * sizes

    def __len__(self) -> int:
        return len(self._pictures)
