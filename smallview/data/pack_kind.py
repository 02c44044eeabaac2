"""Whether a set is packed as pixels or as JPEGs, and how much room that takes: rules of the pictures alone, never of the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from smallview.data.decoding import MOST_PIXELS, BadPicture
from smallview.data.pack_coding import coder
from smallview.data.pack_files import Kind
from smallview.data.pack_folders import sweep
from smallview.data.sources import Source
from smallview.errors import SmallviewError

# Pixels need no decoding, so they are the faster kind as long as they come from memory. 8 GiB is about what an ordinary machine
# of 16 GiB has left to keep files in while it trains; beyond, a JPEG of a tenth of the bytes beats reading pixels from the disk.
RAW_BYTES = 8 * 2**30
RAW_SIDE = 96  # decoding a JPEG this small costs as much as the views that are cut from it, and its blocks of 8 pixels show
_SAMPLE = 64
_SURE = 0.9  # an estimate is no reason to refuse what may just fit


def pack_kind(source: Source, short_side: int | None) -> Kind:
    """`raw` up to a short side of 96 pixels, and where all pixels come to 8 GiB at most; else `jpeg`.

    How many bytes the pixels are is told from 64 pictures spread over the source, but where even pictures twice as long as wide
    would fit. Other channels than 1 or 3 are always raw.

    Example:
        >>> from smallview.data.sources import open_source
        >>> pack_kind(open_source(np.zeros((2, 300, 300), np.uint8)), short_side=128)
        'raw'
    """
    if source.channels not in (1, 3) or (short_side is not None and short_side <= RAW_SIDE):
        return "raw"
    if source.array is not None and (short_side is None or min(source.array.shape[1:3]) <= short_side):
        return "raw"  # there already
    most = MOST_PIXELS if short_side is None else 2 * short_side**2
    if most * source.channels * len(source) <= RAW_BYTES:
        return "raw"
    return "raw" if estimated_bytes(source, short_side, "raw") <= RAW_BYTES else "jpeg"


def stored_kind(kind: str, channels: int) -> Kind:
    """What a wish for `raw` or `jpeg` comes to: JPEGs hold 1 or 3 channels."""
    return "jpeg" if kind == "jpeg" and channels in (1, 3) else "raw"


def estimated_bytes(source: Source, short_side: int | None, kind: Kind, most: int = _SAMPLE) -> int:
    """The size of the pack's data, told from up to `most` pictures."""
    which = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(np.int64)).tolist()
    if kind == "raw":
        sizes = [size for i in which if (size := _raw_bytes(source, i, short_side))]
    else:
        outcomes = map(coder(source, short_side, kind), which)
        sizes = [len(outcome[0].data) for outcome in outcomes if not isinstance(outcome, BadPicture)]
    return int(np.mean(sizes) * len(source)) if sizes else 0


def _raw_bytes(source: Source, i: int, short_side: int | None) -> float:
    """The pixels of a picture once it is shrunk, which need not be done to know; 0 for one that cannot be read."""
    try:
        height, width, channels = source.read(i, short_side).shape
    except BadPicture:
        return 0.0
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    return float(height * width * channels * scale**2)


def check_room(source: Source, short_side: int | None, kind: Kind, packs: Path, there: int) -> None:
    """Tells of a disk that is too small before hours are spent on filling it. there: bytes that a killed build has written already.

    Raises:
        SmallviewError: it is, even without what other killed builds left.
    """
    if not source.parallel or len(source) < 16:  # reading it twice may be dear or not allowed; and few pictures are soon packed
        return
    needed = _SURE * estimated_bytes(source, short_side, kind, min(_SAMPLE, len(source) // 8)) - there
    if needed > shutil.disk_usage(packs).free:
        sweep(packs, all_dead=True)
    free = shutil.disk_usage(packs).free
    if needed > free:
        raise SmallviewError(
            f"packing {len(source):,} pictures takes about {_size(needed)} more in {packs}, which has {_size(free)} free; make room"
            " there, or set SMALLVIEW_CACHE to a folder that has it"
        )


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
