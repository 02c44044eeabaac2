"""The second copy of a pack, whose backgrounds are gray: views cut from it tell a picture by what stands in front."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.decoding import Pixels, shrink
from smallview.data.packing import Pack, Progress
from smallview.errors import UsageError
from smallview.records import Pictures

FILL = 128
AREA = (0.01, 0.95)
Bools = npt.NDArray[np.bool_]
# [H, W, C] of bytes to [H, W], true or 1 where the foreground is; or all masks as one array [N, H, W].
Masks = Callable[[Pixels], Any] | npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class MaskedPictures:
    """Pictures without background, of the geometry of those they were made from; `hash` tells the pixels and sizes."""

    pixels: Pixels = field(repr=False)
    offsets: npt.NDArray[np.int64] = field(repr=False)
    heights: npt.NDArray[np.int32] = field(repr=False)
    widths: npt.NDArray[np.int32] = field(repr=False)
    channels: int
    one_size: tuple[int, int] | None
    hash: str

    def __len__(self) -> int:
        return len(self.heights)


def mask_pictures(
    pictures: Pictures, masks: Masks, area: tuple[float, float] = AREA, *, progress: Progress | None = None
) -> tuple[MaskedPictures, float]:
    """(a copy of the pictures in memory whose background is gray, the share of them that were masked).

    masks: a function of one picture uint8 [H, W, C] that gives its mask [H, W], or the masks of all N as an array [N, H, W], which
    are shrunk as the pictures were. Foreground is where a mask is true or at least 0.5. A picture whose foreground covers a part
    outside `area` stays as it is: its mask has found nothing, or everything. `progress(done, total)` is called after each picture.

    Raises:
        UsageError: a mask of another shape, or that holds something else than truth values or numbers from 0 to 1.

    Source: Tomasev et al., 2022: ReLICv2, section 3 (there the masks come from an unsupervised saliency network).

    Example:
        >>> from smallview.data.packing import open_pack
        >>> from smallview.data.sources import open_source
        >>> images = np.full((2, 4, 4, 1), 200, np.uint8)
        >>> images[0, :2] = 10
        >>> masked, share = mask_pictures(open_pack(open_source(images), short_side=None), lambda x: x[..., 0] > 100)
        >>> masked.pixels.reshape(2, 4, 4)[:, :, 0].tolist(), share
        ([[128, 128, 200, 200], [200, 200, 200, 200]], 0.5)
    """
    n, c = len(pictures), pictures.channels
    if not callable(masks):
        masks = np.asarray(masks)
        if masks.ndim != 3 or len(masks) != n:
            raise UsageError(
                f"masks is an array {list(masks.shape)} with {n:,} readable pictures; wanted [{n}, H, W], one mask for each in its order"
            )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(pictures.heights.astype(np.int64) * pictures.widths * c)])
    out = np.empty(int(offsets[-1]), np.uint8)
    masked = 0
    for i in range(n):
        height, width, start = int(pictures.heights[i]), int(pictures.widths[i]), int(pictures.offsets[i])
        picture = np.array(pictures.pixels[start : start + height * width * c]).reshape(height, width, c)
        name = f"{i} ({pictures.names[i]})" if isinstance(pictures, Pack) else str(i)
        # the function is given a copy of its own: what it writes into it stays out of the pack
        foreground = (
            _as_mask(masks(picture.copy()), (height, width), name)
            if callable(masks)
            else _as_mask(_shrunk(masks[i], (height, width), name), (height, width), name)
        )
        if area[0] <= foreground.mean() <= area[1]:
            picture[~foreground] = FILL
            masked += 1
        out[offsets[i] : offsets[i + 1]] = picture.reshape(-1)
        if progress is not None:
            progress(i + 1, n)
    content = hashlib.sha256(f"{n}/{c}/".encode())
    for part in (pictures.heights.astype("<i4"), pictures.widths.astype("<i4"), out):
        content.update(np.ascontiguousarray(part).data)
    copy = MaskedPictures(
        out, offsets[:-1], pictures.heights, pictures.widths, c, pictures.one_size, f"sha256:{content.hexdigest()}"
    )
    return copy, masked / n


def _as_mask(given: Any, shape: tuple[int, int], name: str) -> Bools:
    """What was given as true where the foreground is, [H, W]."""
    array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    wanted = f"wanted {list(shape)}, true or 1 on the foreground and false or 0 on the background"
    if array.shape != shape:
        raise UsageError(f"the mask of picture {name} is {list(array.shape)}; {wanted}")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf":
        raise UsageError(f"the mask of picture {name} holds {array.dtype}; {wanted}")
    low, high = float(array.min()), float(array.max())
    if not 0.0 <= low <= high <= 1.0:  # NaN fails as well
        advice = "; divide by 255" if 1.0 < high <= 255.0 and low >= 0.0 else ""
        raise UsageError(f"the mask of picture {name} holds numbers from {low:g} to {high:g}; {wanted}{advice}")
    return np.asarray(array >= 0.5)


def _shrunk(mask: npt.NDArray[Any], shape: tuple[int, int], name: str) -> Bools:
    """A mask of the whole picture at the size that the picture was shrunk to in the pack."""
    if mask.shape == shape or min(mask.shape) <= min(shape):
        return mask
    whole = _as_mask(mask, (mask.shape[0], mask.shape[1]), name)
    return shrink(np.where(whole, 255, 0).astype(np.uint8)[..., None], min(shape))[..., 0] >= FILL
