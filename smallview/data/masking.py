"""What stands in front in every picture of a pack, found once: masks of an estimator or of the user, as bits.

The background is not filled here: a view does that when it is cut.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from smallview.data.decoding import BadPicture, Pixels, decode_file
from smallview.data.listing import scan
from smallview.errors import DataError, UsageError
from smallview.records import Foregrounds, Pictures

AREA = (0.01, 0.95)
Bools = npt.NDArray[np.bool_]
# (pictures of one size uint8 [B, H, W, C], their positions int64 [B]) to [B, H, W], true on the foreground
Estimate = Callable[[Pixels, npt.NDArray[np.int64]], Bools]
_WINDOW = 1024  # pictures among which those of one size are looked for
_BATCH = 32
_MOST_PIXELS = 2**22  # of a batch


@dataclass(frozen=True)
class MaskRule:
    """Where masks of the foreground come from, for views that mask the background, and how a map of numbers becomes a mask.

    source: border_colour, centre_prior, spectral_residual, none, encoder:RUN, a folder of masks, or `given`: what was passed in
    Python. threshold: a number from 0 to 1 or otsu (each map's own); auto is otsu for estimators by name and 0.5 for masks of your
    own. area: a picture whose foreground is a part of it outside this range stays whole: its mask found nothing, or everything.

    Raises:
        ValueError: a number outside its range, named.
    """

    source: str = "border_colour"
    threshold: float | Literal["auto", "otsu"] = "auto"
    area: tuple[float, float] = AREA

    def __post_init__(self) -> None:
        if isinstance(self.threshold, str):
            if self.threshold not in ("auto", "otsu"):
                raise ValueError(f"threshold is {self.threshold!r}; wanted auto, otsu or a number from 0 to 1")
        elif not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold:g}; wanted above 0 and at most 1")
        if not 0.0 <= self.area[0] < self.area[1] <= 1.0:
            raise ValueError(f"area is {self.area}; wanted (smallest, largest) part of the picture, within 0 to 1")


def find_foregrounds(
    pictures: Pictures,
    estimate: Estimate,
    area: tuple[float, float] = AREA,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    out: IO[bytes] | None = None,
) -> tuple[Foregrounds, float]:
    """(the foreground of every picture, the share of the pictures that have a usable one).

    Pictures of one size go to `estimate` together, at most 32 of them; which ones is fixed by their sizes alone. A picture whose
    foreground is a part outside `area` is not usable. out: a file that takes the bits, which then stay out of memory and out of
    the result. threads: batches estimated at once. `progress(done, total)` is called now and then.

    Example:
        >>> from smallview.data.packing import open_pack
        >>> from smallview.data.sources import open_source
        >>> images = np.full((2, 4, 4, 1), 200, np.uint8)
        >>> images[0, :2] = 10
        >>> pack = open_pack(open_source(images), short_side=None)
        >>> found, share = find_foregrounds(pack, lambda batch, index: batch[..., 0] > 100)
        >>> np.unpackbits(found.bits[found.starts[0] :], count=16).reshape(4, 4)[:, 0].tolist(), found.usable.tolist(), share
        ([0, 0, 1, 1], [True, False], 0.5)
    """
    n = len(pictures)
    starts, usable = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    file = io.BytesIO() if out is None else out
    digest, at, done = hashlib.sha256(), 0, 0
    work = partial(_of_batch, pictures, estimate, area)
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, n, _WINDOW):
            window = list(_batches(pictures, begin, min(n, begin + _WINDOW)))
            found = map(work, window) if threads == 1 else pool.map(work, window)
            for index, (bits, good) in zip(window, found, strict=True):
                kept = index[good]
                starts[kept] = at + np.arange(len(kept)) * bits.shape[1]
                usable[kept] = True
                file.write(bits.data)
                digest.update(bits.data)
                at += bits.size
                done += len(index)
                if progress is not None:
                    progress(done, n)
    for part in (starts.astype("<i8"), usable):
        digest.update(part.data)
    bits = np.frombuffer(file.getvalue(), np.uint8) if isinstance(file, io.BytesIO) else np.empty(0, np.uint8)
    return Foregrounds(bits, starts, usable, f"sha256:{digest.hexdigest()}"), float(usable.mean())


def no_foregrounds(n: int) -> Foregrounds:
    """For masks that are switched off: every one of n pictures stays whole."""
    return Foregrounds(np.empty(0, np.uint8), np.zeros(n, np.int64), np.zeros(n, np.bool_), "none")


def _batches(pictures: Pictures, begin: int, end: int) -> Iterator[npt.NDArray[np.int64]]:
    """The positions begin to end - 1 in batches of one size."""
    heights, widths = pictures.heights[begin:end], pictures.widths[begin:end]
    order = np.lexsort((widths, heights))
    sizes = np.stack([heights[order], widths[order]], 1)
    for same in np.split(order, np.flatnonzero((sizes[1:] != sizes[:-1]).any(1)) + 1):
        most = max(1, min(_BATCH, _MOST_PIXELS // int(heights[same[0]]) // int(widths[same[0]])))
        for first in range(0, len(same), most):
            yield begin + same[first : first + most].astype(np.int64)


def _of_batch(
    pictures: Pictures, estimate: Estimate, area: tuple[float, float], index: npt.NDArray[np.int64]
) -> tuple[Pixels, Bools]:
    """(bits uint8 [kept, bytes], which are usable bool [B]) of pictures of one size."""
    height, width, channels = int(pictures.heights[index[0]]), int(pictures.widths[index[0]]), pictures.channels
    pixels, starts = pictures.gather(index)
    size = height * width * channels
    batch = np.stack([pixels[start : start + size] for start in starts]).reshape(-1, height, width, channels)
    masks = estimate(batch, index)
    share = masks.mean((1, 2))
    good = (area[0] <= share) & (share <= area[1])
    return np.packbits(masks[good].reshape(int(good.sum()), height * width), axis=1), good


def as_mask(given: Any, shape: tuple[int, ...], name: str, threshold: float = 0.5) -> Bools:
    """What was given as truth values of this shape; `name` says whose masks they are.

    Raises:
        UsageError: another shape, or something else than truth values or numbers from 0 to 1.
    """
    array = np.asarray(given)
    wanted = f"wanted {list(shape)}, true or 1 on the foreground and false or 0 on the background"
    if array.shape != shape:
        raise UsageError(f"{name}: {list(array.shape)}; {wanted}")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf":
        raise UsageError(f"{name}: {array.dtype}; {wanted}")
    low, high = float(array.min()), float(array.max())
    if not 0.0 <= low <= high <= 1.0:  # NaN fails as well
        advice = "; divide by 255" if 1.0 < high <= 255.0 and low >= 0.0 else ""
        raise UsageError(f"{name}: numbers from {low:g} to {high:g}; {wanted}{advice}")
    return np.asarray(array >= threshold)


def masks_of_array(masks: npt.NDArray[Any], n: int, threshold: float = 0.5) -> Estimate:
    """The masks of n pictures as one array [N, H, W], brought to the pictures' sizes.

    Raises:
        UsageError: another number of masks; when asked, a mask of another shape or with other values.
    """
    if masks.ndim != 3 or len(masks) != n:
        raise UsageError(
            f"masks is an array {list(masks.shape)} with {n:,} readable pictures; wanted [{n}, H, W], one mask for each in its order"
        )

    def estimate(batch: Pixels, index: npt.NDArray[np.int64]) -> Bools:
        height, width = batch.shape[1:3]
        found = []
        for i in index:
            whole = as_mask(masks[i], masks.shape[1:], f"the mask of picture {i}", threshold)
            found.append(_resized(whole, height, width, f"the mask of picture {i}"))
        return np.stack(found)

    return estimate


def masks_in_folder(folder: Path, names: Any, threshold: float = 0.5) -> tuple[Estimate, str]:
    """(the masks of pictures with these names, what changes when the files do) from a folder: the same names, any picture's ending.

    A mask is gray, white on the foreground, of its picture's shape in any size.

    Raises:
        DataError: masks that are missing, or several for one picture; when asked, a mask that cannot be read. UsageError: one of
            another shape.
    """
    listing = scan(folder)
    stems: dict[bytes, int] = {}
    twice: dict[bytes, int] = {}
    for i, name in enumerate(_raw(listing.names)):
        if stems.setdefault(_stem(name), i) != i:
            twice[_stem(name)] = i
    several = next((stem for stem in map(_stem, _raw(names)) if stem in twice), None) if twice else None
    if several is not None:
        one, other = (listing.names[found[several]] for found in (stems, twice))
        raise DataError(
            f"{one} and {other} in {folder} may both be a picture's mask; wanted one file of this name, whatever its ending"
        )
    places = np.array([stems.get(_stem(name), -1) for name in _raw(names)], np.int64)
    lacking = np.flatnonzero(places < 0)
    if len(lacking):
        raise DataError(
            f"{len(lacking):,} of {len(places):,} pictures have no mask in {folder}, e.g. {names[int(lacking[0])]}; "
            "wanted a file of the same name there for each, with any picture's ending"
        )

    def estimate(batch: Pixels, index: npt.NDArray[np.int64]) -> Bools:
        found = []
        for i in index:
            path = folder / listing.names[int(places[i])]
            try:
                gray = decode_file(path, 1)[..., 0]
            except BadPicture as error:
                raise DataError(f"the mask {path} cannot be used: {error}; repair or replace it") from error
            level = 1.0 if gray.max() == 1 else threshold * 255.0  # files of zeros and ones are common
            found.append(_resized(gray >= level, batch.shape[1], batch.shape[2], f"the mask {path}"))
        return np.stack(found)

    return estimate, listing.fingerprint


def _raw(names: Any) -> Iterator[bytes]:
    return (names.raw(i) for i in range(len(names)))


def _stem(name: bytes) -> bytes:
    """A relative path without its ending."""
    folder, slash, last = name.rpartition(b"/")
    return folder + slash + (last.rpartition(b".")[0] or last)


def _resized(mask: Bools, height: int, width: int, name: str) -> Bools:
    """A mask of the whole picture at the size that the picture has in the pack."""
    if mask.shape == (height, width):
        return mask
    tall, wide = mask.shape
    # sides are rounded when pictures shrink, half a pixel each
    if abs(tall * width - wide * height) > 0.5 * max(tall + wide, height + width):
        raise UsageError(f"{name}: {[tall, wide]}; wanted {[height, width]}, or another size of the same shape")
    image = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) >= 128
