"""After packing at the short side 256: two views of 224 px, without blur, against torchvision on the files as they were.

    python benchmarks/packed.py --json packed.json

Packing is paid once and told apart. Every arm reads from the page cache: the files are read once before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pipelines
import simplejpeg
import torch
from arms import Arm, copy_floor, parse, report
from photos import encode, photo_files
from PIL import Image

from smallview.data.decoding import decode, shrink
from smallview.data.packing import open_pack
from smallview.data.sources import open_source

SIZE, SHORT_SIDE, PACK_QUALITY = 224, 256, 90


def packed(folder: Path, cache: Path, batch: int, kind: Literal["raw", "jpeg"]) -> Arm:
    """This project's views from a pack of the photos, built before."""
    began = time.perf_counter()
    pack = open_pack(open_source(folder), short_side=SHORT_SIDE, cache=cache, threads=1, kind=kind)
    seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    print(f"{kind} pack: {len(pack)} pictures in {seconds:.1f} s with one thread, {size / 1e6:.1f} MB on disk", flush=True)
    return pipelines.ours(pack, SIZE, batch, blur=False, name=f"ours, {kind} pack")


def torchvision_files(folder: Path, batch: int) -> Arm:
    """Pillow decodes each file once, torchvision's transforms make both views."""
    one = pipelines.torchvision_transform(SIZE, blur=False)

    def make(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        return one(image), one(image)

    files = sorted(folder.iterdir())
    for path in files:
        path.read_bytes()
    note = "goals: jpeg pack 6, then 20; raw pack 10, then 50"
    return pipelines.picture_by_picture("torchvision PIL on the files", make, files, batch, None, note)


def decoded(folder: Path, batch: int, packed_size: bool) -> Arm:
    """The decoder alone, on the files or on the same ones shrunk and encoded anew."""
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    if packed_size:
        files = [encode([shrink(decode(data), SHORT_SIDE)], PACK_QUALITY)[0] for data in files]
    at = 0

    def call() -> int:
        nonlocal at
        for i in range(at, at + batch):
            simplejpeg.decode_jpeg(files[i % len(files)], "RGB", fastdct=True, fastupsample=True)
        at += batch
        return batch

    kilobytes = sum(map(len, files)) / len(files) / 1e3
    which = f"of {SHORT_SIDE} px, quality {PACK_QUALITY}" if packed_size else "the files"
    return Arm(f"floor: decoded, {which}, {kilobytes:.0f} kB", call, floor=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    given = parse(__doc__, argv, pictures=600, batch=64)
    with tempfile.TemporaryDirectory() as scratch:
        folder, what = photo_files(given.pictures, Path(scratch) / "photos")
        batch = given.batch_size
        makers: dict[str, Callable[[], Arm]] = {
            "raw": lambda: packed(folder, Path(scratch) / "raw", batch, "raw"),
            "jpeg": lambda: packed(folder, Path(scratch) / "jpeg", batch, "jpeg"),
            "torchvision": lambda: torchvision_files(folder, batch),
            "decoded": lambda: decoded(folder, batch, packed_size=False),
            "decoded-packed": lambda: decoded(folder, batch, packed_size=True),
            "floor": lambda: copy_floor(SIZE, batch),
        }
        return report(f"after packing at {SHORT_SIDE}: two views of 224 px, no blur", what, makers, given)


if __name__ == "__main__":
    main()
