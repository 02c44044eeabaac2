from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallview.data import tar_shards
from smallview.data.decoding import BadPicture, decode
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.data.tar_shards import expand, index_shards
from smallview.errors import DataError

Encode = Callable[..., bytes]
Members = list[tuple[str, bytes]]


def write_shard(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    """A shard as WebDataset's writer makes one: a stream of members without folders, closed by two empty blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w|", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o444, 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def noise(encode: Encode) -> Callable[..., bytes]:
    """The bytes of noise picture k, at most 512 of them as PNG."""

    def make(k: int, format: str = "PNG") -> bytes:
        return encode(np.random.default_rng(k).integers(0, 256, (9 + k % 3, 12, 3), np.uint8), format)

    return make


def test_samples_labels_and_names(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    members = [
        ("__meta__", b"made by hand"),
        ("000.JPG", noise(0, "JPEG")),
        ("000.cls", b" 7\n"),
        ("a/001.seg.png", noise(10)),
        ("a/001.png", noise(1)),
        ("a/001.json", json.dumps({"label": 3, "caption": "x"}).encode()),
        ("b/001.webp", noise(2, "WEBP")),
        ("b/001.txt", b"a caption"),
        ("b/001.cls", b"0"),
        ("c/only.txt", b"no picture"),
        (".hidden.png", noise(3)),
        ("x.y/003.left.png", noise(4)),
        ("x.y/003.right.png", noise(5)),
        ("x.y/003.cls", b"-1"),
    ]
    source = open_source(write_shard(tmp_path / "train-000.tar", members))
    wanted = {"000.JPG": 1, "a/001.png": 4, "b/001.webp": 6, "x.y/003.left.png": 11}
    assert list(source.names) == [f"train-000.tar/{name}" for name in wanted]
    assert source.name == "train-000" and source.channels == 3 and source.parallel and source.skipped == 3 and not source.bad
    for i, at in enumerate(wanted.values()):
        assert np.array_equal(source.read(i), decode(members[at][1]))
    assert source.labels is not None and source.labels.dtype == np.int64 and source.labels.tolist() == [7, 3, 0, -1]
    assert open_source(tmp_path / "train-000.tar", labels=False).labels is None


@pytest.mark.parametrize(
    "label",
    [("cls", b"cat"), ("cls", b"9" * 30), ("json", b'{"label": "cat"}'), ("json", b"[" * 10**5), ("json", b"{"), ("txt", b"")],
    ids=lambda label: f"{label[0]}-{label[1][:9].decode()}",
)
def test_a_sample_without_a_number_leaves_all_without_labels(
    label: tuple[str, bytes], tmp_path: Path, noise: Callable[..., bytes]
) -> None:
    members = [("0.png", noise(0)), ("0.cls", b"1"), ("1.png", noise(1)), (f"1.{label[0]}", label[1])]
    source = open_source(write_shard(tmp_path / "a.tar", members))
    assert len(source) == 2 and source.labels is None


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_long_and_strange(format: int, tmp_path: Path, noise: Callable[..., bytes]) -> None:
    names = [
        "../../../etc/a.png",
        "/absolute.png",
        "a/" + "n" * 90 + ".png",
        "deep/" * 30 + "x.png",
        "ä☕.png",
        "new\nline.png",
    ]
    if format != tarfile.USTAR_FORMAT:
        names.append("m" * 400 + ".png")
    members = [(name, noise(k)) for k, name in enumerate(names)]
    source = open_source(write_shard(tmp_path / "deep" / "a.tar", members, format))
    assert list(source.names) == [f"a.tar/{name}" for name in names]
    assert all(np.array_equal(source.read(k), decode(data)) for k, (_, data) in enumerate(members))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "deep"]


def test_folders_and_links_in_a_tar_are_no_pictures(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    path = tmp_path / "a.tar"
    kinds = {"d": tarfile.DIRTYPE, "l.png": tarfile.SYMTYPE, "h.png": tarfile.LNKTYPE, "p.png": tarfile.FIFOTYPE}
    with tarfile.open(path, "w") as tar:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("d/a.png")
        info.size = len(noise(0))
        tar.addfile(info, io.BytesIO(noise(0)))
    source = open_source(path)
    assert list(source.names) == ["a.tar/d/a.png"] and source.skipped == 3


def test_each_way_to_name_shards_gives_the_pack_of_a_folder(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    shards, folder = tmp_path / "shards", tmp_path / "files"
    folder.mkdir()
    for s in range(11):
        members = [(f"{s:03}-{k}.png", noise(10 * s + k)) for k in range(4)]
        write_shard(shards / f"train-{s:03}.tar", members)
        for name, data in members:
            (folder / name).write_bytes(data)
    (shards / "sizes.json").write_text("{}")
    wanted = open_pack(open_source(folder), short_side=None)
    ways = [shards, str(shards / "train-{000..010}.tar"), [shards / f"train-{s:03}.tar" for s in range(11)]]
    for threads, way in zip((1, 2, 4), ways, strict=True):
        source = open_source(way)
        assert len(source) == 44 and source.name == "shards" and source.names[43] == "train-010.tar/010-3.png"
        assert open_pack(source, short_side=None, threads=threads).hash == wanted.hash
    backwards = open_source(shards / "train-{010..009}.tar")
    assert list(backwards.names)[:5:4] == ["train-010.tar/010-0.png", "train-009.tar/009-0.png"]
    source = open_source(shards)
    with ThreadPoolExecutor(8) as pool:
        for i, pixels in enumerate(pool.map(source.read, list(range(44)) * 5)):
            assert np.array_equal(pixels, decode((folder / source.names[i % 44].split("/")[1]).read_bytes()))


def test_fingerprint_and_stamps_follow_the_files(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    path = write_shard(tmp_path / "s" / "a.tar", [("0.png", noise(0)), ("1.png", noise(1))])
    first = open_source(tmp_path / "s")
    assert open_source(tmp_path / "s").fingerprint == first.fingerprint
    write_shard(path, [("0.png", noise(0)), ("1.png", noise(1) + b"more")])
    with pytest.raises(BadPicture, match=r"a\.tar changed since it was listed"):
        first.read(0)
    second = open_source(tmp_path / "s")
    assert second.fingerprint != first.fingerprint
    assert (second.stamps == first.stamps).tolist() == [True, False]
    path.unlink()
    with pytest.raises(BadPicture, match=r"a\.tar cannot be read: No such file"):
        second.read(0)


def test_pictures_stand_before_shards_in_a_folder(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    write_shard(tmp_path / "a.tar", [("0.png", noise(0))])
    (tmp_path / "1.png").write_bytes(noise(1))
    assert list(open_source(tmp_path).names) == ["1.png"]


# --- errors ---


def test_what_cannot_be_meant_is_told_in_one_line(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    good = write_shard(tmp_path / "good-0.tar", [("0.png", noise(0))])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "text.tar").write_text("once upon a time\n" * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()
    write_shard(tmp_path / "bare.tar", [("0.txt", b"x")])
    write_shard(tmp_path / "closed.tar", [])
    cases = [
        (tmp_path / "a.tar.gz", r"a\.tar\.gz is compressed.*unpack it once to plain \.tar"),
        (tmp_path / "text.tar", r"text\.tar is no tar file; get it again"),
        (tmp_path / "empty.tar", "no pictures in 1 tar shard"),
        (tmp_path / "bare.tar", r"no pictures in 1 tar shard, e\.g\. .*bare\.tar; wanted members such as"),
        (tmp_path / "closed.tar", "no pictures in 1 tar shard"),
        (
            tmp_path / "good-{0..2}.tar",
            r"there is no shard .*good-1\.tar; wanted 3 \.tar files, .*good-0\.tar to .*good-2\.tar",
        ),
        ([good, tmp_path / "gone.tar"], r"there is no shard .*gone\.tar"),
        (tmp_path / "{0..99999999999}.tar", "stands for more than 1,000,000 shards"),
        (tmp_path / "{0..9999}{0..9999}{0..9999}.tar", "stands for more than 1,000,000 shards"),
        (tmp_path / "folder.tar", "found 0 images"),
    ]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.tar")
        cases.append(([tmp_path / "pipe.tar"], "there is no shard"))
    for data, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            open_source(data)
        assert "\n" not in str(caught.value)


def test_braces() -> None:
    assert [str(path) for path in expand("a{8..10}-{1..0}.tar")] == [f"a{n}-{k}.tar" for n in (8, 9, 10) for k in (1, 0)]
    assert expand("{a..b}/plain.tar") == [Path("{a..b}/plain.tar")]


def test_a_file_system_that_gives_less_than_was_asked_for(
    tmp_path: Path, noise: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(100, size or 0))

    path = write_shard(tmp_path / "a.tar", [(f"{k}.png", noise(k)) for k in range(4)])
    monkeypatch.setattr(tar_shards, "open", lambda path, *_, **__: Slow(path), raising=False)
    source = open_source(path)
    assert len(source) == 4 and not source.bad
    assert all(np.array_equal(source.read(i), decode(noise(i))) for i in range(4))


def test_a_cut_shard_loses_only_what_is_gone(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    path = write_shard(tmp_path / "a.tar", [(f"{k}.png", noise(k)) for k in range(4)])
    data, whole = path.read_bytes(), open_source(path)
    ends = [1024 * (k + 1) for k in range(4)]  # a header and one block each
    assert all(len(noise(k)) <= 512 for k in range(4)) and data[ends[3] :].strip(b"\0") == b""
    for length, kept in ((ends[1] + 700, 3), (ends[1] + 200, 2), (ends[1], 2), (ends[3], 4), (ends[3] + 300, 4)):
        path.write_bytes(data[:length])
        source = open_source(path)
        assert len(source) == kept
        assert [(bad.name, bad.reason[:5]) for bad in source.bad] == [("a.tar", "cut: ")]
        readable = kept - (length == ends[1] + 700)
        assert all(np.array_equal(source.read(i), decode(noise(i))) for i in range(readable))
        if readable < kept:
            with pytest.raises(BadPicture, match=rf"cut: the shard holds 188 of its {len(noise(2))} bytes"):
                source.read(2)
            assert "promises" in source.bad[0].reason
        pack = open_pack(source, short_side=None)
        assert len(pack) == readable and any(bad.name == "a.tar" for bad in pack.bad)
    with pytest.raises(BadPicture, match="changed since"):
        whole.read(0)


def test_every_flipped_bit_of_a_header_is_found(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    path = write_shard(tmp_path / "a.tar", [("0.png", noise(0)), ("1.png", noise(1))])
    data, found = path.read_bytes(), 0
    for start in (0, 1024):
        for bit in range(start * 8, (start + 512) * 8, 5):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            try:
                names = list(index_shards([path]).names)
            except DataError as error:
                assert "no tar file" in str(error) if start == 0 else "is damaged: no header at byte 1,024" in str(error)
                found += 1
            else:  # bytes of the checksum's own field that mean nothing
                assert names == ["a.tar/0.png", "a.tar/1.png"] and 148 <= bit // 8 - start < 156
    assert found > 1600


def _header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with whatever in its fields, and a right checksum."""
    header = bytearray(512)
    header[: len(name)], header[124 : 124 + len(size)], header[156:157], header[257:265] = name, size, kind, b"ustar\00000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_sizes_count_only_as_far_as_there_are_bytes(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    path = tmp_path / "a.tar"
    first = _header(b"0.png", b"%011o" % len(noise(0))) + noise(0).ljust(512, b"\0")
    huge = [b"77777777777", b"\x80\0\0\0\0\0\x01\0\0\0\0\0"]
    for size in [*huge, b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1", b"9", b"0x10", b"1e9"]:
        path.write_bytes(first + _header(b"1.png", size) + bytes(600))
        start = time.perf_counter()
        try:
            source = open_source(path)
        except DataError as error:
            assert size not in huge and "is damaged: no size in the header at byte 1,024" in str(error)
        else:
            assert size in huge and len(source) == 2 and np.array_equal(source.read(0), decode(noise(0)))
            with pytest.raises(BadPicture, match=r"^cut: the shard holds 600 of its"):
                source.read(1)
        assert time.perf_counter() - start < 0.5


def test_extension_headers_are_believed_as_far_as_they_make_sense(tmp_path: Path, noise: Callable[..., bytes]) -> None:
    path = tmp_path / "a.tar"
    first = _header(b"0.png", b"%011o" % len(noise(0))) + noise(0).ljust(512, b"\0")
    for kind, records, name in (
        (b"x", b"14 path=b.png\n", "b.png"),
        (b"x", b"9" * 400, "0.png"),
        (b"x", b"1 size=3", "0.png"),
        (b"x", b"11 size=-5\n", "0.png"),
        (b"x", b"11 time=99\n14 path=b.png\n", "b.png"),
        (b"L", b"long.png\0rest", "long.png"),
        (b"g", b"14 path=b.png\n", "0.png"),
    ):
        path.write_bytes(_header(b"x", b"%o" % len(records), kind) + records.ljust(512, b"\0") + first + bytes(1024))
        source = open_source(path)
        assert list(source.names) == [f"a.tar/{name}"] and np.array_equal(source.read(0), decode(noise(0))), records
    record = b"12 size=%d\n" % len(noise(0))
    second = _header(b"1.png", b"%o" % len(noise(1))) + noise(1).ljust(512, b"\0")
    wrong = _header(b"0.png", b"0") + noise(0).ljust(512, b"\0")
    path.write_bytes(_header(b"x", b"14", b"x") + record.ljust(512, b"\0") + wrong + second + bytes(1024))
    source = open_source(path)  # the size of pax counts, for one member
    assert [np.array_equal(source.read(i), decode(noise(i))) for i in range(2)] == [True, True]
    path.write_bytes(_header(b"x", b"77777777", b"L") + bytes(512) + first)
    with pytest.raises(DataError, match="a name of 16,777,215 bytes"):
        open_source(path)


@given(st.binary(max_size=3000), st.integers(0, 4000), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_a_tar(tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, whole: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tar"
    good = bytearray(write_shard(path, [(f"{k}.png", b"\x89PNG\r\n\x1a\n" * 99) for k in range(3)]).read_bytes())
    good[at : at + len(data)] = data
    path.write_bytes(data if whole else good)
    try:
        source = open_source(path)
    except DataError:
        return
    for i in range(len(source)):
        with pytest.raises(BadPicture):
            source.read(i)


def test_many_members_are_listed_quickly(tmp_path: Path) -> None:
    members = [(f"{k:06}.{ending}", b"1") for k in range(5000) for ending in ("jpg", "cls")]
    path = write_shard(tmp_path / "a.tar", members)
    start = time.perf_counter()
    assert len(index_shards([path]).names) == 5000
    assert time.perf_counter() - start < 2
