"""Pictures to measure with: real ones where SMALLVIEW_DATA points to some, else made with the spectrum of photos.

SMALLVIEW_DATA is a folder with `load.py`, which reads CIFAR-10, and with class folders of JPEG photos in `clothing/train`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

Pixels = npt.NDArray[np.uint8]
HEIGHT, WIDTH, QUALITY = 500, 400, 94


def data_folder() -> Path | None:
    """The folder that SMALLVIEW_DATA names, where it is one."""
    named = os.environ.get("SMALLVIEW_DATA")
    return Path(named) if named and (Path(named) / "load.py").is_file() else None


def make_natural(n: int, height: int, width: int, seed: int = 0) -> Pixels:
    """Pictures uint8 [n, H, W, 3] whose amplitudes fall as one over the frequency, as those of photos do, and mostly gray."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.divide(1.0, frequency, out=np.zeros_like(frequency), where=frequency > 0)
    out = np.empty((n, height, width, 3), np.uint8)
    for image in out:
        spectrum = np.fft.rfft2(rng.standard_normal((4, height, width))) * amplitude
        gray, *colours = np.fft.irfft2(spectrum, s=(height, width))
        picture = np.stack([gray + 0.3 * colour for colour in colours], axis=-1)
        image[...] = np.clip(120 + 60 * picture / picture.std(), 0, 255)
    return out


def small_pictures(n: int) -> tuple[Pixels, str]:
    """(uint8 [n, 32, 32, 3], what they are)."""
    root = data_folder()
    if root is None:
        return make_natural(n, 32, 32), f"{n:,} made pictures of 32 px"
    spec = importlib.util.spec_from_file_location("load", root / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pictures = np.ascontiguousarray(module.cifar10((1,))[0][:n])
    return pictures, f"{len(pictures):,} pictures of CIFAR-10"


def photo_files(n: int, folder: Path) -> tuple[Path, str]:
    """(a folder with at most n JPEG photos, what they are); written into `folder`."""
    root = data_folder()
    found = sorted((root / "clothing" / "train").rglob("*.jpg"))[:n] if root is not None else []
    folder.mkdir(parents=True, exist_ok=True)
    if found:
        for i, path in enumerate(found):
            shutil.copyfile(path, folder / f"{i:05d}.jpg")
        mean = sum(path.stat().st_size for path in found) / len(found) / 1e3
        return folder, f"{len(found)} photos of the short side 400 as their files are, {mean:.0f} kB on average"
    files = encode(make_natural(n, HEIGHT, WIDTH), QUALITY)
    for i, data in enumerate(files):
        (folder / f"{i:05d}.jpg").write_bytes(data)
    return folder, f"{n} made pictures of {WIDTH} x {HEIGHT} as JPEG, {sum(map(len, files)) / n / 1e3:.0f} kB on average"


def photos(n: int) -> tuple[Pixels, str]:
    """(uint8 [n, 500, 400, 3], what they are): the middle of upright photos whose short side is 400."""
    root = data_folder()
    out: list[Pixels] = []
    for path in sorted((root / "clothing").rglob("*.jpg")) if root is not None else ():
        with Image.open(path) as image:
            if len(out) < n and image.width == WIDTH and image.height >= HEIGHT:
                top = (image.height - HEIGHT) // 2
                out.append(np.asarray(image.convert("RGB"))[top : top + HEIGHT])
    if out:
        return np.stack(out), f"{len(out)} photos cut to {WIDTH} x {HEIGHT}"
    return make_natural(n, HEIGHT, WIDTH), f"{n} made pictures of {WIDTH} x {HEIGHT}"


def encode(pictures: Iterable[Pixels], quality: int) -> list[bytes]:
    """Each picture [H, W, 3] as a JPEG file with halved colour planes (4:2:0)."""
    return [
        simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=quality, colorspace="RGB", colorsubsampling="420")
        for picture in pictures
    ]
