"""JPEG files in memory to two views of 224 px, without blur: images per second of one core.

    python benchmarks/jpeg.py --json jpeg.json

The photos are cut to one size and encoded anew (quality 94, 4:2:0), so that every arm reads the same; ffcv's writer encodes the same
pixels once more at the same quality. ffcv is left out of the `bench` extra, because it needs libraries of the system: on Debian,
`apt install pkg-config g++ libopencv-dev libturbojpeg0-dev`, then `pip install ffcv`.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pipelines
import simplejpeg
import torch
from arms import Arm, copy_floor, parse, report
from photos import HEIGHT, QUALITY, WIDTH, Pixels, encode, photos
from PIL import Image

from smallview.data.decoding import decode

SIZE = 224


@dataclass
class FilesInMemory:
    """JPEG files of one size as Pictures, each decoded once a batch."""

    files: list[bytes] = field(repr=False)
    channels: int = 3
    one_size: tuple[int, int] = (HEIGHT, WIDTH)
    first: int = 0

    def __post_init__(self) -> None:
        self.heights, self.widths = (np.full(len(self.files), side, np.int32) for side in self.one_size)

    def __len__(self) -> int:
        return len(self.files)

    def gather(self, index: npt.NDArray[np.int64], threads: int = 1) -> tuple[Pixels, npt.NDArray[np.int64]]:
        flat = np.empty((len(index), *self.one_size, self.channels), np.uint8)
        for row, i in enumerate(index):
            flat[row] = decode(self.files[i])
        return flat.reshape(-1), np.arange(len(index)) * flat[0].size


def torchvision_pil(files: Sequence[bytes], batch: int) -> Arm:
    """Pillow decodes once, torchvision's transforms make both views."""
    one = pipelines.torchvision_transform(SIZE, blur=False)

    def make(data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        return one(image), one(image)

    return pipelines.picture_by_picture("torchvision PIL", make, files, batch, (4, 9))


def decoding(files: Sequence[bytes], batch: int, eighth: bool) -> Arm:
    """The decoder alone; at an eighth of the size it does little but the entropy decoding."""
    side = 1 if eighth else 0
    at = 0

    def call() -> int:
        nonlocal at
        for i in range(at, at + batch):
            simplejpeg.decode_jpeg(
                files[i % len(files)], "RGB", fastdct=True, fastupsample=True, min_height=side, min_width=side
            )
        at += batch
        return batch

    return Arm("floor: decoded at 1/8" if eighth else "floor: decoded", call, floor=True)


def ffcv(pictures: Pixels, batch: int, folder: Path, colour: bool) -> Arm:
    """Ffcv's loader, a pipeline per view, each with its own decoding; a call is an epoch, so that nothing runs on after it."""
    from ffcv.fields import RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import (
        NormalizeImage,
        RandomBrightness,
        RandomContrast,
        RandomHorizontalFlip,
        RandomSaturation,
        ToTensor,
    )
    from ffcv.transforms import ToTorchImage as ToChannelsFirst
    from ffcv.writer import DatasetWriter

    path = folder / f"colour-{colour}.beton"
    writer = DatasetWriter(str(path), {"image": RGBImageField(write_mode="jpg", jpeg_quality=QUALITY)}, num_workers=1)
    writer.from_indexed_dataset([(picture,) for picture in pictures])

    def view() -> PipelineSpec:
        brightness, contrast, saturation = pipelines.JITTER[:3]
        jitter = (RandomBrightness(brightness, 0.8), RandomContrast(contrast, 0.8), RandomSaturation(saturation, 0.8))
        normalise = NormalizeImage(np.array(pipelines.MEAN) * 255, np.array(pipelines.STD) * 255, np.float32)
        transforms = [RandomHorizontalFlip(), *(jitter if colour else ()), normalise, ToTensor(), ToChannelsFirst()]
        return PipelineSpec("image", RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=pipelines.SCALE), transforms)

    loader = Loader(
        str(path),
        batch_size=min(batch, len(pictures)),
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": view(), "second": view()},
        drop_last=True,
    )

    def call() -> int:
        return sum(len(views[0]) for views in loader)

    note = "no hue and no gray, which it has not; " if colour else "crop and flip alone; "
    return Arm(
        "ffcv" if colour else "ffcv, crop and flip",
        call,
        goal=(3.5, 7) if colour else None,
        note=note + "its own file, encoded anew at the same quality",
        sample=lambda: next(iter(loader))[0].clone(),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    given = parse(__doc__, argv, pictures=250, batch=64)
    pictures, what = photos(given.pictures)
    files, batch = encode(pictures, QUALITY), given.batch_size
    what += f" as JPEG of quality {QUALITY}, 4:2:0, {sum(map(len, files)) / len(files) / 1e3:.0f} kB on average"
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], Arm]] = {
            "ours": lambda: pipelines.ours(FilesInMemory(files), SIZE, batch, blur=False),
            "torchvision": lambda: torchvision_pil(files, batch),
            "ffcv": lambda: ffcv(pictures, batch, Path(folder), colour=True),
            "ffcv-crop": lambda: ffcv(pictures, batch, Path(folder), colour=False),
            "decoded": lambda: decoding(files, batch, eighth=False),
            "decoded-eighth": lambda: decoding(files, batch, eighth=True),
            "floor": lambda: copy_floor(SIZE, batch),
        }
        return report("JPEG in memory to two views of 224 px, no blur", what, makers, given)


if __name__ == "__main__":
    main()
