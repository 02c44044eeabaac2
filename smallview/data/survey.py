"""One pass over all pictures before training: sizes, colours, a hash and a thumbnail of each; what is broken is named.

Legend: N pictures that can be read, n of them in the sample, C channels, S the side of a thumbnail.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from smallview.data.arrays import Labels
from smallview.data.decoding import BadPicture, Pixels
from smallview.data.listing import BadFile
from smallview.data.pack_coding import in_order
from smallview.data.pack_folders import cache_folder, explained
from smallview.data.sources import Source
from smallview.seeds import generator

SIDE = 32
PROBE = 64  # rows and columns at most that colours are taken from
COLOURED, COLOURED_SHARE = 12, 0.001  # levels between channels, and the part of pixels, above which a picture is not gray
FLAT = 2.0  # levels of standard deviation
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass found: heights, widths, hash, gray, flat [N], mean and square [N, C] in 0..1, thumbs uint8 [N, S, S].

    index: positions in the source. hash: 64 bits of the pixels. square: mean squares. sample: which of the N stand in the sample, and
    colours uint8 [n, S, S, 3] their thumbnails. labels: int64 [N] or None.
    """

    source: Source
    index: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    hash: npt.NDArray[np.uint64]
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    gray: Bools
    flat: Bools
    thumbs: Pixels
    sample: npt.NDArray[np.int64]
    colours: Pixels
    labels: Labels | None
    broken: tuple[BadFile, ...]

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        """What picture i of the N is called in the source."""
        return self.source.names[int(self.index[i])]


@dataclass(frozen=True, eq=False)
class _Seen:
    size: tuple[int, int]
    hash: int
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    gray: bool
    flat: bool
    thumb: Pixels
    colour: Pixels | None
    label: int | None


def survey(
    source: Source,
    *,
    most: int,
    seed: int = 0,
    threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Read every picture once; `most` of them, picked by the seed, keep a thumbnail in colour.

    Memory holds half a kilobyte a picture; gray thumbnails lie in a nameless file in the cache folder.

    Raises:
        SmallviewError: no room for the thumbnails, a kilobyte a picture.

    Example:
        >>> from smallview.data.sources import open_source
        >>> seen = survey(open_source(np.full((3, 8, 8, 3), 255, np.uint8)), most=2)
        >>> len(seen), seen.flat.all(), len(set(seen.hash)), seen.colours.shape, seen.mean[0].tolist()
        (3, np.True_, 1, (2, 32, 32, 3), [1.0, 1.0, 1.0])
    """
    total = len(source)
    chosen = np.zeros(total, np.bool_)
    chosen[generator(seed, "survey").permutation(total)[:most]] = True

    def read(i: int) -> _Seen | BadPicture:
        try:
            pixels, label = source.reader(i, None)
            return _seen(pixels, label, bool(chosen[i]))
        except BadPicture as error:
            return error

    found: list[tuple[int, int, int, int, bool, bool]] = []
    colour_sums: list[npt.NDArray[np.float64]] = []
    sample, colours, labels = [], [], []
    broken = list(source.bad)
    folder = cache_folder()
    with explained(folder, "the thumbnails of the check"):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the map below outlives it
    with file, closing(in_order(read, range(total), threads if source.parallel else 1)) as outcomes:
        for i, seen in enumerate(outcomes):
            if isinstance(seen, BadPicture):
                broken.append(BadFile(source.names[i], str(seen)))
            else:
                if seen.colour is not None:
                    sample.append(len(found))
                    colours.append(seen.colour)
                found.append((i, *seen.size, seen.hash, seen.gray, seen.flat))
                colour_sums.append(np.stack([seen.mean, seen.square]))
                labels.append(seen.label)
                with explained(folder, "the thumbnails of the check"):
                    file.write(seen.thumb.data)
            progress(i + 1, total)
        with explained(folder, "the thumbnails of the check"):
            file.flush()
        n = len(found)
        thumbs = (
            np.memmap(file, np.uint8, "r", shape=(n, SIDE, SIDE)).view(np.ndarray) if n else np.zeros((0, SIDE, SIDE), np.uint8)
        )
    table = np.array(found, [("i", "i8"), ("h", "i8"), ("w", "i8"), ("hash", "u8"), ("gray", "?"), ("flat", "?")])
    sums = np.array(colour_sums, np.float64).reshape(n, 2, source.channels)
    index = table["i"]
    known = None if not labels or any(label is None for label in labels) else np.array(labels, np.int64)
    return Survey(
        source=source,
        index=index,
        heights=table["h"],
        widths=table["w"],
        hash=table["hash"],
        mean=sums[:, 0],
        square=sums[:, 1],
        gray=table["gray"],
        flat=table["flat"],
        thumbs=thumbs,
        sample=np.array(sample, np.int64),
        colours=np.array(colours, np.uint8).reshape(-1, SIDE, SIDE, 3),
        labels=known if source.labels is None else source.labels[index],
        broken=tuple(broken),
    )


def _seen(pixels: Pixels, label: int | None, chosen: bool) -> _Seen:
    height, width, channels = pixels.shape
    planes = np.ascontiguousarray(pixels[:: -(-height // PROBE), :: -(-width // PROBE)].reshape(-1, channels).T)
    levels = planes.astype(np.float32)
    mean, square = levels.mean(1) / 255, np.square(levels).mean(1) / 255**2
    apart = np.abs(levels[1:] - levels[:-1]) > COLOURED
    small = _thumbnail(pixels if channels in (1, 3) else np.asarray(pixels.mean(2, keepdims=True) + 0.5, np.uint8))
    thumb = np.asarray((small[..., 0].astype(np.uint16) + small[..., small.shape[2] // 2] + small[..., -1] + 1) // 3, np.uint8)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    digest.update(b"%d,%d" % (height, width))
    return _Seen(
        size=(height, width),
        hash=int.from_bytes(digest.digest()[:8], "little"),
        mean=mean,
        square=square,
        gray=channels != 3 or bool(apart.mean(1).max() <= COLOURED_SHARE),
        flat=bool(levels.std(1).max() < FLAT and thumb.std() < FLAT),
        thumb=thumb,
        colour=np.ascontiguousarray(np.broadcast_to(small, (SIDE, SIDE, 3))) if chosen else None,
        label=label,
    )


def _thumbnail(pixels: Pixels) -> Pixels:
    """The whole picture [S, S, C] without its aspect; averages where it was larger."""
    if pixels.shape[:2] == (SIDE, SIDE):
        return pixels
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)).reshape(SIDE, SIDE, -1)
