"""Pictures of odd sizes and headers that lie about them, in every format that has a size in its header."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallview.data import decoding
from smallview.data.decoding import BadPicture, decode, from_pillow, shrink
from smallview.data.packing import open_pack
from smallview.data.sources import open_source

Encode = Callable[..., bytes]
FORMATS = ("PNG", "BMP", "PPM", "TGA", "TIFF", "GIF", "JPEG", "WEBP", "JPEG2000", "AVIF")


# --- headers that promise more than there is ---


def _put(data: bytes, at: int, *numbers: int, form: str) -> bytes:
    body = bytearray(data)
    struct.pack_into(form, body, at, *numbers)
    return bytes(body)


def headers(encode: Encode, side: int) -> dict[str, bytes]:
    """A valid 64 x 64 file of each format, with `side` written over both its sides where its header has them."""
    small = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    out = {}
    png = encode(small)
    head = _put(png[12:29], 4, side, side, form=">II")
    out["PNG"] = png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]
    for name, marker in (("JPEG", b"\xff\xc0"), ("progressive JPEG", b"\xff\xc2")):
        data = encode(small, "JPEG", progressive=name != "JPEG")
        out[name] = _put(data, data.index(marker) + 5, side, side, form=">HH")
    out["BMP"] = _put(encode(small, "BMP"), 18, side, side, form="<ii")
    gif = encode(small, "GIF")
    out["GIF"] = _put(_put(gif, 6, side, side, form="<HH"), gif.index(b",\0\0\0\0") + 5, side, side, form="<HH")
    out["PPM"] = encode(small, "PPM").replace(b"64 64", b"%d %d" % (side, side))
    out["TGA"] = _put(encode(small, "TGA"), 12, side, side, form="<HH")
    for compression in (None, "tiff_lzw", "tiff_deflate", "jpeg"):
        tiff = encode(small, "TIFF", compression=compression)
        (at,) = struct.unpack_from("<I", tiff, 4)
        (entries,) = struct.unpack_from("<H", tiff, at)
        for k in range(at + 2, at + 2 + 12 * entries, 12):
            tag = struct.unpack_from("<H", tiff, k)[0]
            if tag in (256, 257, 278):  # width, height, rows in a strip
                tiff = _put(tiff, k, tag, 4, 1, side, form="<HHII")
        out[f"TIFF {compression}"] = tiff
    jp2 = encode(small, "JPEG2000")
    jp2 = _put(jp2, jp2.index(b"ihdr") + 4, side, side, form=">II")
    stream = jp2.index(b"\xff\x4f\xff\x51")
    out["JPEG 2000 in tiles"] = jp2 = _put(jp2, stream + 8, side, side, form=">II")
    out["JPEG 2000"] = jp2 = _put(jp2, stream + 24, side, side, form=">II")
    out["JPEG 2000 stream"] = jp2[stream:]
    avif = encode(small, "AVIF")
    out["AVIF"] = _put(avif, avif.index(b"ispe") + 8, side, side, form=">II")
    most = min(side, 2**14 - 1)  # the two older headers of WebP hold no more
    webp = encode(small, "WEBP")
    out["WebP lossy"] = _put(webp, 26, most, most, form="<HH")
    lossless = encode(small, "WEBP", lossless=True)
    bits = struct.unpack_from("<I", lossless, 21)[0] & ~(2**28 - 1) | (most - 1) << 14 | (most - 1)
    out["WebP lossless"] = _put(lossless, 21, bits, form="<I")
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (side - 1).to_bytes(3, "little") * 2 + webp[12:]
    out["WebP extended"] = b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas
    return out


CODE = """
import json, pathlib, resource, sys, time
from smallview.data.decoding import BadPicture, decode_file
valid, *wrong = sorted(pathlib.Path(sys.argv[1]).iterdir())
for path in valid.iterdir():
    decode_file(path)  # each codec is loaded, and has its first buffers
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, resource.RLIM_INFINITY))
found = {}
for path in wrong:
    start = time.perf_counter()
    try:
        reason = str(decode_file(path).shape)
    except BadPicture as error:
        reason = str(error)
    found[path.stem] = [1e3 * (time.perf_counter() - start), reason]
print(json.dumps(found))
"""


def _in_50_mb(files: dict[str, bytes], valid: dict[str, bytes], folder: Path) -> dict[str, tuple[float, str]]:
    """{name: (ms, reason)} of decoding these in a process that may take 50 MB more than for its small valid pictures."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here: memory cannot be limited as this test does")
    (folder / "0").mkdir()
    for name, data in valid.items():
        (folder / "0" / name).write_bytes(data)
    for name, data in files.items():
        (folder / f"{name}.x").write_bytes(data)
    done = subprocess.run([sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[float, str]] = json.loads(done.stdout)
    assert set(found) == set(files)
    return found


def test_headers_of_400_megapixels_are_refused_from_the_header(encode: Encode, tmp_path: Path) -> None:
    files = headers(encode, 20_000)
    assert len(files) == 18
    for name, (milliseconds, reason) in _in_50_mb(files, headers(encode, 64), tmp_path).items():
        assert "megapixels (limit " in reason, f"{name}: {reason}"
        assert milliseconds < 50, f"{name}: {milliseconds:.1f} ms"


def test_sizes_below_the_limit_that_the_bytes_cannot_fill(encode: Encode, tmp_path: Path) -> None:
    files = {name: data for name, data in headers(encode, 7900).items() if not name.startswith("TIFF")}
    for name, (milliseconds, reason) in _in_50_mb(files, headers(encode, 64), tmp_path).items():
        if name.split()[0] in ("JPEG", "progressive") and "2000" not in name:
            assert reason == f"truncated: {len(files[name]):,} bytes for 976,144 blocks" and milliseconds < 50
        elif name.split()[0] in ("WebP", "JPEG", "AVIF"):  # whose decoders would take a gigabyte
            assert reason == "7900 x 7900 = 62.4 megapixels (limit 26)", name
        else:
            assert "truncated" in reason or "memory" in reason, f"{name}: {reason}"


def test_the_limit_of_hungry_decoders(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_PIXELS_OF_HUNGRY", 64 * 64)
    for name, data in (headers(encode, 64) | {"LA": encode(Image.new("LA", (64, 64)), "WEBP")}).items():
        assert decode(data).shape == (64, 64, 3), name
    for name, data in headers(encode, 65).items():
        if name.split()[0] in ("WebP", "AVIF") or name.startswith("JPEG 2000"):
            with pytest.raises(BadPicture, match=r"65 x 65 = 0\.0 megapixels \(limit 0\.004096\)"):
                decode(data)


def _progressive(scans: int, side: int = 64) -> bytes:
    """A flat gray JPEG of one bit a block and then so many scans that refine nothing, a few bytes each."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    blocks = (side // 8) ** 2
    assert side % 64 == 0 and blocks < 2**14
    out = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    # one code word of one bit each: DC difference 0, and AC "a run of 2^13 to 2^14 - 1 empty blocks"
    power = blocks.bit_length() - 1
    out += segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(0xC4, b"\x10\1" + bytes(15) + bytes([power << 4]))
    out += segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8)
    run = format(blocks - (1 << power), f"0{power}b")
    bits = f"0{run}" + "1" * (-(1 + power) % 8)
    orders = [(k, high) for k in range(1, 64) for high in range(13, -1, -1)][:scans]
    for k, low in orders:
        above = 0 if low == 13 else low + 1
        out += segment(0xDA, bytes([1, 1, 0, k, k, above << 4 | low])) + int(bits, 2).to_bytes(len(bits) // 8, "big")
    return out + b"\xff\xd9"


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    assert (decode(_progressive(63)) == 128).all()
    for scans in (64, 800):
        for data in (_progressive(scans), _progressive(scans).replace(b"\xff\xdb", b"\xff\xff\xdb", 1)):
            with pytest.raises(BadPicture, match=rf"^a JPEG of {scans + 1} scans \(limit 64\)$"):
                decode(data)
    # what stands behind the picture, a film of a phone, is none of its scans
    assert (decode(_progressive(9) + b"\xff\xda" * 1000) == 128).all()


# --- large pictures, strip by strip ---


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_make_the_whole_picture(mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (23, 17, 4), np.uint8)
    if mode in ("I;16", "I"):
        picture = Image.fromarray(noise[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    elif mode == "F":
        picture = Image.fromarray(noise[..., 0].astype(np.float32) / 255)
    else:
        picture = Image.fromarray(noise).convert("LA" if mode == "PA" else "RGB" if mode in ("CMYK", "YCbCr") else "RGBA")
        picture = picture.convert(mode)
    if mode == "P":
        picture.info["transparency"] = bytes(range(0, 256, 4))
    picture.getexif()[0x112] = orientation
    for channels in (1, 3):
        whole = from_pillow(picture, channels)
        assert whole.shape == ((17, 23, channels) if orientation >= 5 else (23, 17, channels))
        for strip in (1, 5 * 17, 22 * 17, 23 * 17):
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "_STRIP", strip)
                assert np.array_equal(from_pillow(picture, channels), whole)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "CMYK"])
def test_the_largest_pictures_take_under_500_mb(mode: str, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here: the peak of a process cannot be had as this test does")
    picture = Image.fromarray(np.zeros((7900, 7900), np.uint16)) if mode == "I;16" else Image.new(mode, (7900, 7900))
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "large"
    picture.save(path, "JPEG" if mode == "CMYK" else "PNG", exif=exif)
    code = (
        "import sys; from smallview.data.decoding import decode_file;"
        "peak = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "before = peak(); image = decode_file(sys.argv[1]); print(image.shape[0], (peak() - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=100)
    side, megabytes = map(int, done.stdout.split())
    assert side == 7900 and 150 < megabytes < 500


# --- thin and tiny ---


@pytest.mark.parametrize("format", FORMATS)
def test_thin_and_tiny_pictures(format: str, encode: Encode) -> None:
    for width, height in ((1, 1), (1, 10_000), (10_000, 1), (2, 3)):
        colour = np.full((height, width, 3), (200, 100, 40), np.uint8)
        data = encode(colour, format)
        image = decode(data)
        assert image.shape == (height, width, 3) and np.abs(image.astype(int) - (200, 100, 40)).max() <= 12
        assert shrink(image, 64) is image
        assert decode(data, channels=1, short_side=1).shape == (height, width, 1)


def test_thin_and_tiny_pictures_are_packed(encode: Encode, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (10_000, 100, 3), np.uint8)
    for k, (height, width) in enumerate(((1, 1), (10_000, 1), (1, 100), (10_000, 100), (100, 100))):
        (tmp_path / f"{k}.png").write_bytes(encode(noise[:height, :width]))
    for kind in ("raw", "jpeg"):
        pack = open_pack(open_source(tmp_path), short_side=20, kind=kind)
        assert (
            not pack.bad and pack.heights.tolist() == [1, 10_000, 1, 2000, 20] and pack.widths.tolist() == [1, 1, 100, 20, 20]
        )
        pixels, starts = pack.gather(np.arange(5)[::-1])
        for start, i in zip(starts, range(4, -1, -1), strict=True):
            picture = pixels[start : start + pack[i].size].reshape(pack[i].shape)
            assert np.array_equal(picture, pack[i])
        if kind == "raw":
            assert np.array_equal(pack[1], noise[:, :1]) and np.array_equal(pack[0], noise[:1, :1])


def test_a_file_of_nothing_but_a_header_is_truncated(encode: Encode) -> None:
    for name, data in headers(encode, 64).items():
        if name.startswith(("JPEG", "progressive", "PNG", "WebP", "AVIF")):
            with pytest.raises(BadPicture):
                decode(data[: len(data) // 2])
    with pytest.raises(BadPicture), Image.open(io.BytesIO(encode(np.zeros((8, 8, 3), np.uint8)))) as picture:
        picture._size = (0, 8)  # no file opens so; a picture in memory may
        from_pillow(picture)
