"""One picture as the bytes that a pack holds, and back: plain pixels, or a JPEG of our own making where that is smaller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import simplejpeg

from smallview.data.decoding import BadPicture, Pixels, shrink
from smallview.data.pack_files import Kind
from smallview.data.sources import Source

QUALITY = 90
_MOST_SIDE = 65500  # libjpeg's
Result = TypeVar("Result")
Outcome = tuple["Coded", int | None] | BadPicture


@dataclass(frozen=True)
class Coded:
    """A picture's bytes as they are stored, and its size. Fewer bytes than pixels * channels say that it is a JPEG."""

    data: Any  # bytes, or the pixels' memory
    height: int
    width: int


def encode(pixels: Pixels, kind: Kind) -> Coded:
    """A picture uint8 [H, W, C] as a pack of this kind stores it.

    Example:
        >>> len(encode(np.zeros((64, 64, 3), np.uint8), "jpeg").data) < 64 * 64 * 3
        True
    """
    height, width, channels = pixels.shape
    pixels = np.ascontiguousarray(pixels)
    if kind == "jpeg" and channels in (1, 3) and max(height, width) <= _MOST_SIDE:
        space, chroma = ("RGB", "420") if channels == 3 else ("GRAY", "Gray")
        data: bytes = simplejpeg.encode_jpeg(pixels, QUALITY, space, chroma, fastdct=False)
        if len(data) < pixels.size:
            return Coded(data, height, width)
    return Coded(pixels.reshape(-1).data, height, width)


def decode_into(data: bytearray, out: Pixels, height: int, width: int, channels: int) -> None:
    """The pixels of a stored JPEG into `out`, uint8 [H * W * C]; ValueError where the bytes are not such a picture."""
    # always both fast ways, so that the same bytes are the same pixels everywhere
    image = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", fastdct=True, fastupsample=True, buffer=out)
    if image.shape != (height, width, channels):
        raise ValueError(f"a JPEG of {image.shape}; wanted {(height, width, channels)}")


def coder(source: Source, short_side: int | None, kind: Kind) -> Callable[[int], Outcome]:
    """What reads a position of the source, shrinks the picture and encodes it; a picture that cannot be used is returned as why."""

    def read(i: int) -> Outcome:
        try:
            pixels, label = source.reader(i, short_side)
            return encode(shrink(pixels, short_side), kind), label
        except BadPicture as error:
            return error

    return read


def in_order(read: Callable[[int], Result], positions: Iterable[int], threads: int) -> Generator[Result, None, None]:
    """read(i) for each position, in their order, from a few threads; at most twice as many results as threads wait at any time."""
    if threads <= 1:
        yield from map(read, positions)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for i in positions:
                waiting.append(pool.submit(read, i))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
