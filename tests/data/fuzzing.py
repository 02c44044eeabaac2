"""Mutated picture files of ten formats, decoded one after another in this process: `python fuzzing.py FILES SEED`.

One JSON object comes out: per format how many files gave pixels, how many a BadPicture, whatever else there was, and the slowest
one in ms; and the memory of the process at its peak in MB. The same seed gives the same files with the same encoders.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smallview.data.decoding import BadPicture, decode

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 90}),
    "progressive JPEG": ("JPEG", {"progressive": True, "quality": 80}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "BMP": ("BMP", {}),
    "GIF": ("GIF", {}),
    "TIFF": ("TIFF", {}),
    "PPM": ("PPM", {}),
    "JPEG 2000": ("JPEG2000", {}),
    "AVIF": ("AVIF", {}),
}
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "PNG": ({"mode": "RGBA"}, {"mode": "P"}, {"mode": "I;16"}, {"frames": 3}),
    "JPEG": ({"mode": "CMYK"}, {"mode": "L"}, {"exif": True}),
    "WebP": ({"lossless": True}, {"mode": "RGBA"}, {"frames": 3}, {"exif": True}),
    "GIF": ({"frames": 3},),
    "BMP": ({"mode": "1"}, {"mode": "P"}),
    "TIFF": (
        {"compression": "tiff_lzw"},
        {"compression": "jpeg"},
        {"compression": "tiff_deflate"},
        {"mode": "F"},
        {"mode": "RGBA"},
    ),
    "PPM": ({"mode": "L"}, {"mode": "1"}),
    "JPEG 2000": ({"irreversible": True}, {"mode": "L"}),
    "AVIF": ({"mode": "RGBA"}, {"frames": 2}),
}
# 20,000 and 7,900 among them: as both sides, far above what is decoded and just below it
_NUMBERS = (
    b"\0\0\x1e\xdc",
    b"\xdc\x1e\0\0",
    b"\x1e\xdc\x1e\xdc",
    b"\xdc\x1e\xdc\x1e",
    b"\xff" * 4,
    bytes(4),
    b"\x7f\xff\xff\xff",
    b"\0\0\xff\xff",
    b"\xff\xff\0\0",
    b"\0\0\x4e\x20",
    b"\x20\x4e\0\0",
    b"\x80\0\0\0",
)


def seeds() -> dict[str, list[bytes]]:
    """A few valid files of each format: smooth and noisy, of several modes, with frames and orientation."""
    random = np.random.default_rng(7)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    photo = coarse.resize((96, 64), Image.Resampling.BICUBIC)
    noise = Image.fromarray(random.integers(0, 256, (33, 47, 3), np.uint8))
    return {
        name: [
            _encoded(picture, format, base | variant) for variant in ({}, *VARIANTS.get(name, ())) for picture in (photo, noise)
        ]
        for name, (format, base) in FORMATS.items()
    }


def _encoded(picture: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    options = dict(options)
    mode = options.pop("mode", "RGB")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(np.asarray(picture)[..., 0].astype(np.float32) / 255)
    elif mode == "RGBA":
        picture = picture.copy()
        picture.putalpha(picture.convert("L"))
    elif mode != "RGB":
        picture = picture.convert(mode)
    if frames := options.pop("frames", 0):
        options |= {"save_all": True, "append_images": [picture.rotate(9 * k) for k in range(1, frames)]}
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[0x112] = 6
        options["exif"] = exif
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def mutated(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """The bytes with flips, a cut, a splice with another file, a length field of an extreme value, or a run of noise or zeros."""
    body = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        kind, at = int(random.integers(7)), int(random.integers(len(body)))
        if kind == 0:
            for _ in range(int(random.integers(1, 12))):
                body[int(random.integers(len(body)))] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del body[max(at, 4) :]
        elif kind == 2:
            body[at:] = other[int(random.integers(len(other))) :]
        elif kind in (3, 4):  # most numbers that mean something stand at the front
            at = int(random.integers(min(200, len(body)))) if kind == 3 else at
            number = _NUMBERS[int(random.integers(len(_NUMBERS)))]
            field = number[: int(random.choice([1, 2, 4]))] * int(random.integers(1, 3))
            body[at : at + len(field)] = field
        elif kind == 5:
            length = int(random.integers(1, 64))
            body[at : at + length] = random.bytes(length) if random.integers(2) else bytes(length)
        else:
            body[at:at] = body[at : at + int(random.integers(1, 200))]
        if len(body) < 8:
            break
    return bytes(body)


def fuzz(files: int, seed: int) -> dict[str, Any]:
    """Decode so many mutated files, as many of each format; what came of them."""
    found = seeds()
    everything = [data for group in found.values() for data in group]
    names = list(found)
    table = {name: {"pixels": 0, "bad": 0, "other": [], "worst_ms": 0.0, "worst": -1} for name in names}
    for data in everything:
        decode(data)  # also loads each codec, so that the first file is not slow for that
    before = _peak()
    for k in range(files):
        name = names[k % len(names)]
        random = np.random.default_rng([seed, k])
        group = found[name]
        data = mutated(group[int(random.integers(len(group)))], everything[int(random.integers(len(everything)))], random)
        channels, short_side = (1 if random.integers(5) == 0 else 3), (8 if random.integers(3) == 0 else None)
        row, start = table[name], time.perf_counter()
        try:
            image = decode(data, channels, short_side=short_side)
            right = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == channels and image.size > 0
            row["pixels"] += 1
            if not right or not image.flags.c_contiguous:
                row["other"].append(f"file {k}: {image.dtype} {image.shape}")
        except BadPicture as error:
            row["bad"] += 1
            if not str(error) or "\n" in str(error) or "object at" in str(error) or len(str(error)) > 300:
                row["other"].append(f"file {k}: says {error!r}")
        except BaseException as error:
            row["other"].append(f"file {k}: {type(error).__name__}: {error}")
        milliseconds = 1e3 * (time.perf_counter() - start)
        if milliseconds > row["worst_ms"]:
            row["worst_ms"], row["worst"] = round(milliseconds, 1), k
    return {"files": files, "seed": seed, "formats": table, "peak_mb": _peak(), "before_mb": before}


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` would begin with the peak of the process that started this one
        return round(
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024, 1
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


if __name__ == "__main__":
    warnings.simplefilter("error")  # a warning of a library counts as a failure
    print(json.dumps(fuzz(int(sys.argv[1]), int(sys.argv[2]))))
