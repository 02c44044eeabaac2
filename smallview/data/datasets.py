"""Anyone's map-style data set as a source of pictures: `len(data)` and `data[i]` are all that is asked of it.

An item is a picture or (picture, label), or a dict with `image` (or `img`) and `label`. A picture is a Pillow image, a uint8
array [H, W] or [H, W, C], or a torch tensor [H, W] or [C, H, W], uint8 or float in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from smallview.data.decoding import BadPicture, Pixels, from_pillow
from smallview.errors import DataError

_GRAY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_WANTED = "wanted a Pillow image, a uint8 array [H, W] or [H, W, C], or a tensor [C, H, W]"


class MapStyle:
    """Reads a map-style data set; `channels` is that of its first, middle and last picture (Pillow: 1 if all are gray)."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.channels = self._probe()

    def __len__(self) -> int:
        return len(self.data)

    def read(self, i: int) -> tuple[Pixels, int | None]:
        """(uint8 [H, W, C], label or None) of item i. Whatever the data set raises becomes a BadPicture."""
        picture, label = self._item(i)
        return self._pixels(picture), label

    def _item(self, i: int) -> tuple[Any, int | None]:
        try:
            item = self.data[i]
        except Exception as error:  # a data set of the user's may raise anything, and one bad picture is not the end
            text = " ".join(str(error).split())[:150]
            raise BadPicture(f"the data set raised {type(error).__name__}: {text}") from error
        if isinstance(item, Mapping):
            picture = item.get("image", item.get("img"))
            return picture, _whole(item.get("label", item.get("labels")))
        if isinstance(item, (tuple, list)) and item:
            return item[0], _whole(item[1]) if len(item) > 1 else None
        return item, None

    def _pixels(self, picture: Any) -> Pixels:
        if isinstance(picture, Image.Image):
            if self.channels == 1 and not _is_gray(picture):
                raise BadPicture(f"mode {picture.mode} in a set whose first, middle and last pictures are gray")
            try:
                return from_pillow(picture, self.channels)
            except BadPicture:
                raise
            except Exception as error:  # it may be opened and not decoded yet, and the decoders raise some ten classes
                raise BadPicture(" ".join(str(error).split())[:200] or type(error).__name__) from error
        pixels = as_pixels(picture)
        if pixels.shape[2] != self.channels:
            raise BadPicture(f"{pixels.shape[2]} channels in a set whose first picture has {self.channels}")
        return pixels

    def _probe(self) -> int:
        n = len(self.data)
        found: list[int] = []
        reason = "it is empty"
        for i in sorted({0, n // 2, n - 1}) if n else ():
            try:
                picture, _ = self._item(i)
                if isinstance(picture, Image.Image):
                    found.append(1 if _is_gray(picture) else 3)
                else:
                    return int(as_pixels(picture).shape[2])
            except BadPicture as error:
                reason = f"item {i}: {error}"
        if not found:
            wanted = "" if "wanted" in reason else f"; {_WANTED}, or (picture, label)"
            raise DataError(f"no picture could be had from the data set {type(self.data).__name__} ({reason}){wanted}")
        return max(found)


def as_pixels(picture: Any) -> Pixels:
    """uint8 [H, W, C] of an array [H, W] or [H, W, C], or a tensor [H, W] or [C, H, W]; BadPicture for anything else."""
    if hasattr(picture, "detach") and hasattr(picture, "numpy"):
        array = np.asarray(picture.detach().cpu().numpy())
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        if array.dtype.kind == "f":
            array = _from_float(array)
    elif isinstance(picture, np.ndarray):
        array = picture
    else:
        raise BadPicture(f"a {type(picture).__name__}; {_WANTED}")
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise BadPicture(f"{array.dtype} {list(array.shape)}; {_WANTED}")
    return np.ascontiguousarray(array[..., None] if array.ndim == 2 else array)


def _from_float(array: npt.NDArray[Any]) -> Pixels:
    if array.size and (not np.isfinite(array).all() or array.min() < -1e-3 or array.max() > 1 + 1e-3):
        raise BadPicture(f"floats from {array.min():g} to {array.max():g}; wanted 0..1, before any normalisation")
    pixels: Pixels = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return pixels


def _is_gray(image: Image.Image) -> bool:
    return image.mode in _GRAY_MODES


def _whole(label: Any) -> int | None:
    """A label as an int where it is one of 64 bits (Python's, numpy's, a tensor's), None for captions, boxes, hashes and the like."""
    try:
        value = label.item() if hasattr(label, "item") else label
    except Exception:
        return None
    return int(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else None
