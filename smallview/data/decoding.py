"""The bytes of one picture file to pixels, or one reason why not.

What comes out is uint8 [H, W, C] with the orientation of the file's EXIF applied and the first frame of an animation.
Transparent pictures are laid on white, as most programs show them: a colour hidden under full transparency never becomes a
pixel. 16-bit gray is scaled to 8 bits (not clipped), float gray in 0..1 too; other ranges are refused, because any scaling
would be a guess.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

MOST_PIXELS = 64_000_000
# The decoders of these formats take 15 to 19 bytes a pixel besides ours: 450 MB at this size, as the others at theirs.
MOST_PIXELS_OF_HUNGRY = 26_000_000
HUNGRY = ("WEBP", "JPEG2000", "AVIF")
MOST_SCANS = 64  # of a progressive JPEG; encoders write 10, and each costs a pass over all blocks, in some 100 bytes of file
MOST_BYTES = 2**30
# TGA has no magic number and goes last, so that it sees only what nothing else claimed
FORMATS = ("PNG", "GIF", "WEBP", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF", "TGA")
_JPEG = b"\xff\xd8\xff"
_STRIP = 2**22
_ORIENTATION = 0x112


class BadPicture(Exception):
    """A picture that cannot be used; its text is the reason in one line, without the path, which the caller adds."""


class Unreadable(BadPicture):
    """A picture whose bytes could not be had (no permission, vanished): another try may go better."""


class _Quiet:
    """Silences Pillow's warnings while any thread decodes; counted, since `catch_warnings` alone is not safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b|smallview\.data\b")
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_quiet = _Quiet()


def decode(data: bytes, channels: int = 3, *, short_side: int | None = None) -> Pixels:
    """Pixels uint8 [H, W, channels] of a picture file's bytes; channels 3 is RGB, 1 is gray. The bytes decide, never an ending.

    With `short_side` a JPEG more than twice as large may come back at 1/2, 1/4 or 1/8 of its size, its short side still at
    least 2 * short_side, which is several times faster; `shrink` does the rest. Pictures over 64 megapixels (WebP, JPEG 2000 and
    AVIF: over 26) are refused from the header; no picture takes over some 500 MB. Raises BadPicture and nothing else.

    Example:
        >>> decode(b"P5 2 1 255 " + bytes([7, 200]), channels=1).tolist()
        [[[7], [200]]]
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; wanted 1 (gray) or 3 (RGB)")
    try:
        if data.startswith(_JPEG):
            return _decode_jpeg(data, channels, short_side)
        return _decode_other(data, channels, FORMATS)
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        raise BadPicture(describe(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit came first
        found = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(found[1]) / 1e6:,.1f}" if found else "too many"
        raise BadPicture(f"{size} megapixels (limit {MOST_PIXELS / 1e6:g})") from error
    except Exception as error:  # the decoders raise some ten classes on broken files
        raise BadPicture(_one_line(error)) from error


def decode_file(path: str | bytes | os.PathLike[str], channels: int = 3, *, short_side: int | None = None) -> Pixels:
    """`decode` of a file. A file that cannot be read, is a folder, or is over 1 GiB raises BadPicture like a broken one."""
    try:
        # without O_NONBLOCK, opening a named pipe would wait for a writer for ever
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BadPicture("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
            if status.st_size > MOST_BYTES:
                raise BadPicture(f"{status.st_size / 2**20:,.0f} MiB on disk (limit {MOST_BYTES // 2**20:,})")
            data = file.read()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or type(error).__name__}") from error
    except (ValueError, MemoryError) as error:
        raise BadPicture(_one_line(error)) from error
    return decode(data, channels, short_side=short_side)


def shrink(image: Pixels, short_side: int | None) -> Pixels:
    """The picture [H, W, C] made smaller, antialiased, to this short side; as it is where it is not larger, or for None.

    The aspect is kept, the long side rounded, and no side falls under 1.

    Example:
        >>> shrink(np.zeros((90, 200, 3), np.uint8), 30).shape
        (30, 67, 3)
    """
    height, width, channels = image.shape
    short = min(height, width)
    if short_side is None or short <= short_side:
        return image
    size = (max(1, round(width * short_side / short)), max(1, round(height * short_side / short)))
    if channels == 3:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    planes = [Image.fromarray(image[..., c]).resize(size, Image.Resampling.BILINEAR) for c in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def from_pillow(image: Image.Image, channels: int = 3) -> Pixels:
    """Pixels uint8 [H, W, channels] of an open Pillow image by the rules of this module; BadPicture or Pillow's errors."""
    most = MOST_PIXELS_OF_HUNGRY if image.format in HUNGRY else MOST_PIXELS
    check_size(*image.size, most)
    image.load()
    check_size(*image.size, most)  # a GIF may grow to its first frame
    (width, height), orientation = image.size, _orientation(image)
    pixels = np.empty((width, height, channels) if orientation in (5, 6, 7, 8) else (height, width, channels), np.uint8)
    # by strips, and turned as they are laid down: whole copies in between took a large picture to a gigabyte
    unturned = _turn(pixels, {6: 8, 8: 6}.get(orientation, orientation))  # the inverse of a turn, as a view [H, W, C]
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        unturned[top : top + rows] = _to_8_bits(strip, channels)
    return pixels


def check_size(width: int, height: int, most: int = MOST_PIXELS) -> None:
    """Raise BadPicture where a picture of this many pixels is not worth its memory."""
    if width * height > most:
        raise BadPicture(f"{width} x {height} = {width * height / 1e6:,.1f} megapixels (limit {most / 1e6:g})")
    if width < 1 or height < 1:
        raise BadPicture(f"{width} x {height}: no pixels")


def looks_like_picture(head: bytes) -> bool:
    """Whether a file's first 16 bytes are those of a picture format read here (TGA, which has no magic number, aside).

    Example:
        >>> looks_like_picture(b"GIF89a" + bytes(10)), looks_like_picture(b"once upon a time")
        (True, False)
    """
    return (
        head.startswith((_JPEG, b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
        or head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n"
        or head[4:12] in (b"ftypavif", b"ftypavis")
    )


def describe(data: bytes) -> str:
    """What bytes that are no picture seem to be, with advice where there is some.

    Example:
        >>> describe(b"")
        'an empty file'
    """
    start = data[:512].lstrip().lower()
    if not data:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture; run `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a picture"
    if start.startswith((b"<svg", b"<?xml")):
        return "a vector drawing or other XML, not a picture of pixels"
    if start.startswith(b"%pdf"):
        return "a PDF document, not a picture"
    if data.startswith(b"\0\x05\x16\x07"):
        return "a leftover of macOS (AppleDouble), not a picture"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "a HEIC photo; convert it to JPEG or PNG"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in data[:512]):
        return "text, not a picture"
    return "damaged, or no picture format known here"


def _decode_jpeg(data: bytes, channels: int, short_side: int | None) -> Pixels:
    header = simplejpeg.decode_jpeg_header(data)
    height, width, colours = int(header[0]), int(header[1]), header[2]
    check_size(width, height)
    _check_scans(data, -(-width // 8) * -(-height // 8))
    if colours in ("CMYK", "YCCK"):
        return _decode_other(data, channels, ("JPEG",))
    wanted_height = wanted_width = 0
    if short_side is not None:
        for factor in (8, 4, 2):
            if min(height, width) >= 2 * short_side * factor:
                wanted_height, wanted_width = -(-height // factor), -(-width // factor)
                break
    space = "RGB" if channels == 3 else "GRAY"
    try:
        image = simplejpeg.decode_jpeg(data, space, min_height=wanted_height, min_width=wanted_width, strict=True)
    except ValueError as error:
        # Pillow reads more colour spaces, and headers with the odd but harmless scan parameters that some phones write
        if not re.search("color|Invalid SOS", str(error)):
            raise
        return _decode_other(data, channels, ("JPEG",))
    # opening with Pillow costs as much as a small decode; most JPEGs have no word about orientation
    if b"Exif" in data or b"iff:Orientation" in data:
        return np.ascontiguousarray(_turn(image, _orientation_of_jpeg(data)))
    return np.asarray(image, np.uint8)


def _check_scans(data: bytes, blocks: int) -> None:
    """Refuse a JPEG whose bytes cannot fill its blocks, or whose scans are endless, before libjpeg works through all of them."""
    kind, start = _frame(data)
    if kind in (0xC0, 0xC1, 0xC2) and 8 * len(data) < blocks:  # a block takes a bit or more
        raise BadPicture(f"truncated: {len(data):,} bytes for {blocks:,} blocks")
    if kind in (0xC0, 0xC1):
        return
    end = data.find(b"\xff\xd9", start)
    scans = data.count(b"\xff\xda", start, end if end > 0 else len(data))
    if scans > MOST_SCANS:
        raise BadPicture(f"a JPEG of {scans:,} scans (limit {MOST_SCANS})")


def _frame(data: bytes) -> tuple[int, int]:
    """(marker, place) of a JPEG's frame header; (0, 0) where its segments do not lead to one."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, at
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _decode_other(data: bytes, channels: int, formats: tuple[str, ...]) -> Pixels:
    for size in _early_sizes(data):
        check_size(*size, MOST_PIXELS_OF_HUNGRY)
    with _quiet, Image.open(io.BytesIO(data), formats=formats) as image:
        return from_pillow(image, channels)


def _early_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """The sizes in the headers of WebP and AVIF: Pillow makes room for a WebP, and libavif gives up, before they are told."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        kind = data[12:16]
        if kind == b"VP8X":
            yield int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            yield (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
        elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            yield width & 0x3FFF, height & 0x3FFF
    elif data[4:12] in (b"ftypavif", b"ftypavis"):
        for box in re.finditer(b"ispe....(....)(....)", data[:65536], re.DOTALL):
            yield int.from_bytes(box[1], "big"), int.from_bytes(box[2], "big")


def _to_8_bits(image: Image.Image, channels: int) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise BadPicture(f"32-bit gray from {low} to {high} has no known range; save it with 8 or 16 bits")
        gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.mode == "F":
        levels = np.asarray(image)
        if not np.isfinite(levels).all() or levels.min() < -1e-3 or levels.max() > 1 + 1e-3:
            raise BadPicture(f"float gray from {levels.min():g} to {levels.max():g}; wanted 0..1")
        gray = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    else:
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        mode = "RGB" if channels == 3 else "L"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], channels)
    return gray[..., None]


def _orientation_of_jpeg(data: bytes) -> int:
    try:
        with _quiet, Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _orientation(image)
    except Exception:  # the pixels are fine; noise where the EXIF should be only means that nothing is known
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as above
        return 1
    return value if isinstance(value, int) else 1


def _turn(image: Pixels, orientation: int) -> Pixels:
    """[H, W, C] as `ImageOps.exif_transpose` would turn it; anything but 2 to 8 leaves it alone."""
    if orientation == 2:
        return image[:, ::-1]
    if orientation == 3:
        return image[::-1, ::-1]
    if orientation == 4:
        return image[::-1]
    if orientation == 5:
        return image.swapaxes(0, 1)
    if orientation == 6:
        return np.rot90(image, -1)
    if orientation == 7:
        return image[::-1, ::-1].swapaxes(0, 1)
    if orientation == 8:
        return np.rot90(image, 1)
    return image


def _one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
