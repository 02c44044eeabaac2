"""What comes out of packs: both kinds, in shards, in parts for several machines, and by the page that describes the format."""

from __future__ import annotations

import gc
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from smallview.data import arrays, pack_build, pack_files, pack_folders, pack_kind, pack_reading
from smallview.data.arrays import Labels
from smallview.data.decoding import BadPicture, Pixels, decode
from smallview.data.listing import PathTable
from smallview.data.loading import epoch_order
from smallview.data.pack import Pack
from smallview.data.pack_coding import encode
from smallview.data.pack_kind import pack_kind as kind_of
from smallview.data.packing import open_pack, read_pack
from smallview.data.sources import Source, open_source
from smallview.errors import DataError, UsageError

PAGE = Path(__file__).parents[2] / "docs" / "pack-format.md"
N = 40


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_build, "BLOCK_PICTURES", 4)
    monkeypatch.setattr(pack_build, "SHARD_BYTES", 15_000)


def _picture(i: int, channels: int = 3) -> Pixels:
    noise = np.random.default_rng(i).integers(0, 256, (4, 5, channels), np.uint8)
    return np.ascontiguousarray(np.kron(noise, np.ones((6, 8, 1), np.uint8))[: 18 + i % 5])


def _source(n: int = N, channels: int = 3, labels: Labels | None = None) -> Source:
    def read(i: int, short_side: int | None) -> tuple[Pixels, int | None]:
        if i == 5:
            raise BadPicture("not today")
        return _picture(i, channels), None

    return Source("noise", PathTable.numbered(n), channels, read, labels, fingerprint="ab" * 32)


def _open(kind: str, **options: int) -> Pack:
    return open_pack(_source(**options), short_side=None, kind=kind)


def _gathered(pack: Pack, index: list[int], threads: int = 1) -> list[Pixels]:
    flat, starts = pack.gather(np.array(index, np.int64), threads)
    assert flat.dtype == np.uint8 and flat.ndim == 1 and starts.dtype == np.int64 and starts.shape == (len(index),)
    shapes = [(int(pack.heights[i]), int(pack.widths[i]), pack.channels) for i in index]
    return [flat[start:][: np.prod(shape)].reshape(shape) for start, shape in zip(starts, shapes, strict=True)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_gathered_pictures_are_the_packs(kind: str, channels: int, cache: Path, small_blocks: None) -> None:
    pack = _open(kind, channels=channels)
    assert pack.kind == kind and len(list(cache.rglob("*.bin"))) > 1
    truth = [_picture(int(i), channels) for i in pack.index]
    for i in range(len(pack)):
        error = np.abs(pack[i].astype(int) - truth[i])
        assert error.max() == 0 if kind == "raw" else error.mean() < 15, i
    for index in ([7], [0, 1, 2], [30, 2, 38, 9, 30, 30], list(range(39))[::-1]):
        for threads in (1, 2, 5):
            got = _gathered(pack, index, threads)
            assert all(np.array_equal(a, pack[i]) for a, i in zip(got, index, strict=True))
    assert pack.gather(np.empty(0, np.int64), 2)[1].shape == (0,)
    with pytest.raises(IndexError):
        pack.gather(np.array([39]))


def test_stored_jpegs_are_small_and_of_the_settings_stated(cache: Path) -> None:
    raw, jpeg = _open("raw"), _open("jpeg")
    small, large = (next(_folder(cache, pack).glob("*.bin")).stat().st_size for pack in (jpeg, raw))
    assert raw.hash != jpeg.hash and small < 0.8 * large
    data = encode(_picture(0), "jpeg").data
    assert data.startswith(b"\xff\xd8\xff") and encode(_picture(0), "jpeg").data == data
    fast = simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True)
    assert np.array_equal(jpeg[0], fast) and not np.array_equal(simplejpeg.decode_jpeg(data, "RGB"), fast)
    frame = data.index(b"\xff\xc0")
    assert data[frame + 9] == 3 and [data[frame + 11 + 3 * c] for c in range(3)] == [0x22, 0x11, 0x11]  # 4:2:0
    assert list(data[data.index(b"\xff\xdb") + 5 :][:3]) == [3, 2, 2]  # luminance 16, 11, 12 at quality 90
    gray = encode(_picture(0, 1), "jpeg").data
    assert gray[gray.index(b"\xff\xc0") + 9] == 1


def test_what_a_jpeg_would_not_make_smaller_stays_pixels(cache: Path) -> None:
    shapes = [(1, 1), (3, 2), (1, 66_000), (40, 50)]
    pictures = [np.full((*shape, 3), k + 7, np.uint8) for k, shape in enumerate(shapes)]
    source = Source("odd", PathTable.numbered(4), 3, lambda i, side: (pictures[i], None), fingerprint="cd" * 32)
    pack = open_pack(source, short_side=None, kind="jpeg")
    assert all(np.array_equal(pack[i], pictures[i]) for i in range(3)) and np.ptp(pack[3]) <= 2
    rows = np.load(next(cache.rglob("*.npy")))
    assert [int(row["bytes"]) < row["height"] * row["width"] * 3 for row in rows] == [False, False, False, True]
    two = Source("two", PathTable.numbered(1), 2, lambda i, side: (pictures[3][..., :2], None), fingerprint="ef" * 32)
    pack = open_pack(two, short_side=None, kind="jpeg")
    assert pack.kind == "raw" and np.array_equal(pack[0], pictures[3][..., :2])


def test_each_picture_of_a_batch_is_decoded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = _open("jpeg")
    sizes: list[int] = []
    real = pack_reading.decode_into

    def counted(data: bytearray, out: Pixels, *shape: int) -> None:
        sizes.append(out.size)
        real(data, out, *shape)

    monkeypatch.setattr(pack_reading, "decode_into", counted)
    index = np.array([4, 9, 4, 31, 9, 4])
    flat, starts = pack.gather(index, threads=3)
    assert len(sizes) == 3 and len(flat) == sum(sizes) and len(set(starts.tolist())) == 3


def test_arrays_stay_arrays_unless_jpegs_are_wanted(cache: Path) -> None:
    array = np.stack([np.resize(_picture(i), (20, 40, 3)) for i in range(6)])
    assert np.shares_memory(open_pack(open_source(array), short_side=None)[1], array) and not list(cache.iterdir())
    jpeg = open_pack(open_source(array), short_side=None, kind="jpeg")
    assert jpeg.kind == "jpeg" and jpeg.one_size == (20, 40) and not np.array_equal(jpeg[1], array[1])
    with pytest.raises(UsageError, match=r"kind is 'png'; wanted auto, raw or jpeg"):
        open_pack(open_source(array), short_side=None, kind="png")


def test_files_that_change_under_an_open_pack_are_told(cache: Path, small_blocks: None) -> None:
    for kind in ("raw", "jpeg"):
        pack = _open(kind)
        path = next(path for path in cache.rglob("data-00000.bin") if path.parent == _folder(cache, pack))
        os.truncate(path, 100)
        for threads in (1, 2):
            with pytest.raises(DataError, match=r"^picture 1?\d can no longer be read .* run the same command again"):
                pack.gather(np.arange(4, 20), threads)
        assert np.array_equal(_open(kind)[3], _open(kind)[3])


def _folder(cache: Path, pack: Pack) -> Path:
    return next(path.parent for path in cache.rglob("meta.json") if pack.hash in path.read_text())


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_pack_that_is_open_outlives_its_folder(
    kind: str, cache: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = _open(kind)
    wanted = list(map(np.array, pack))
    monkeypatch.setattr(pack_files, "_MOST_OPEN", 1)
    few_files = _open(kind)  # more shards than files that may be open
    assert all(np.array_equal(a, b) for a, b in zip(few_files, wanted, strict=True))
    pack_folders.discard(_folder(cache, pack), cache / "packs")
    assert not list(cache.rglob("*.bin"))
    assert all(np.array_equal(a, b) for a, b in zip(pack, wanted, strict=True))


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_batch_that_is_held_is_not_written_over(kind: str, cache: Path, small_blocks: None) -> None:
    pack = _open(kind)
    held = [_gathered(pack, [k, k + 1]) for k in range(30)]
    kept = [pack.gather(np.array([k]))[0][10:].view() for k in range(30)]
    for k in range(30):
        assert all(np.array_equal(a, pack[k + j]) for j, a in enumerate(held[k]))
        assert np.array_equal(kept[k], pack[k].reshape(-1)[10:])


# --- parts ---


@pytest.mark.parametrize("kind", ["raw", "jpeg", "array"])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_parts_are_disjoint_and_cover_all(kind: str, world: int, cache: Path, small_blocks: None) -> None:
    if kind == "array":
        array = np.random.default_rng(0).integers(0, 256, (N, 6, 7, 3), np.uint8)
        pack = open_pack(open_source((array, np.arange(N) % 3)), short_side=None)
    else:
        pack = open_pack(_source(labels=np.arange(N) % 3), short_side=None, kind=kind)
    parts = [pack.part(rank, world) for rank in range(world)]
    assert np.concatenate([part.index for part in parts]).tolist() == pack.index.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len({part.hash for part in [pack, *parts]}) == world + (world > 1)
    begin = 0
    for part in parts:
        for i in range(len(part)):
            assert np.array_equal(part[i], pack[begin + i]) and part.names[i] == pack.names[begin + i]
            assert part.labels is not None and pack.labels is not None and part.labels[i] == pack.labels[begin + i]
        begin += len(part)
    assert begin == len(pack)


def test_a_machine_with_its_own_shards_alone_opens_its_part(cache: Path, tmp_path: Path, small_blocks: None) -> None:
    whole = _open("raw")
    folder = _folder(cache, whole)
    assert read_pack(folder).hash == whole.part(0, 1).hash == whole.hash and len(read_pack(folder)) == len(whole)
    shards, world = len(list(folder.glob("*.bin"))), 3
    assert shards >= 5
    needed: set[str] = set()
    for rank in range(world):
        there = tmp_path / f"machine-{rank}"
        there.mkdir()
        (there / "meta.json").write_bytes((folder / "meta.json").read_bytes())
        part = whole.part(rank, world)
        own = [k for k in range(shards) if set(np.load(folder / f"data-{k:05d}.npy")["index"]) & set(part.index.tolist())]
        assert len(own) < shards
        for k in own:
            for ending in ("bin", "npy"):
                (there / f"data-{k:05d}.{ending}").write_bytes((folder / f"data-{k:05d}.{ending}").read_bytes())
                needed.add(f"{k}.{ending}")
        alone = read_pack(there, rank, world)
        assert (
            alone.hash == part.hash
            and alone.index.tolist() == part.index.tolist()
            and list(alone.names) == [str(i) for i in part.index]
        )
        assert all(np.array_equal(a, b) for a, b in zip(alone, part, strict=True))
        with pytest.raises(DataError, match=r"the pack in .* is damaged: .*data-0000\d\.npy \(pictures \d+ to \d+\)"):
            read_pack(there, (rank + 1) % world, world)
    assert len(needed) == 2 * shards


def test_parts_that_cannot_be(cache: Path) -> None:
    pack = _open("raw")
    for rank, world in ((3, 3), (-1, 2), (0, 0), (0, 40)):
        with pytest.raises(UsageError):
            pack.part(rank, world)
    with pytest.raises(DataError, match="holds no pack that can be read"):
        read_pack(cache)


# --- the rule, the memory, the page ---


def test_which_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def big(n: int, side: int, channels: int = 3) -> Source:
        def read(i: int, short_side: int | None) -> tuple[Pixels, None]:
            looked.append(i)
            return np.zeros((side, side, channels), np.uint8), None

        return Source("big", PathTable.numbered(n), channels, read, fingerprint="ab" * 32)

    assert kind_of(big(10**5, 500), 96) == "raw" and kind_of(big(10**5, 500, 4), 256) == "raw"
    assert kind_of(big(20_000, 500), 256) == "raw" and not looked
    # 8 GiB of 256 x 256 x 3 bytes are 43,690 pictures
    assert kind_of(big(43_600, 500), 256) == "raw" and kind_of(big(43_700, 500), 256) == "jpeg"
    assert len(looked) == 128 and looked[0] == 0 and looked[63] == 43_599
    assert kind_of(big(100_000, 64), 144) == "raw"  # never enlarged, so small although many
    assert kind_of(big(3_000, 1000), None) == "jpeg" and kind_of(big(2_800, 1000), None) == "raw"
    monkeypatch.setattr(pack_kind, "RAW_BYTES", 10**5)
    assert kind_of(open_source(np.zeros((9, 300, 300), np.uint8)), 300) == "raw"  # there already
    assert kind_of(open_source(np.zeros((9, 300, 300), np.uint8)), 200) == "jpeg"


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_the_memory_stated_is_what_reading_takes(kind: str, cache: Path, small_blocks: None) -> None:
    pack = _open(kind)
    tables = pack.memory(0)
    buffers = pack.memory(7, batches=2) - tables
    largest = np.sort(pack.heights.astype(int) * pack.widths * 3)[-7:].sum()
    stored = 0 if kind == "raw" else max(len(encode(_picture(int(i)), "jpeg").data) for i in pack.index)
    assert buffers == 2 * (largest + largest // 8 + stored)
    index = np.argsort(pack.heights.astype(int) * pack.widths)[-7:]
    _open(kind).gather(index)
    tracemalloc.start()
    held = [pack.gather(index) for _ in range(2)]
    peak = tracemalloc.get_traced_memory()[1]
    assert 2 * largest <= peak <= buffers + 20_000
    del held
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for k in range(10):
        pack.gather(np.arange(k, k + 6))
    assert tracemalloc.get_traced_memory()[1] - before < 10_000  # what nobody holds any more is used again
    tracemalloc.stop()
    assert open_pack(open_source(np.zeros((9, 8, 8), np.uint8)), short_side=None).memory(5, batches=3) < 9 * 50 + 9 * 64


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_the_memory_stated_holds_the_tables(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_build, "SHARD_BYTES", 200_000)
    n, flat = 10_000, np.zeros((8, 8, 3), np.uint8)

    def opened() -> Pack:
        names = PathTable.of(b"train/n01440764/n01440764_%06d.JPEG" % i for i in range(n))
        source = Source("flat", names, 3, lambda i, _: (flat, None), np.zeros(n, np.int64), fingerprint="cd" * 32)
        return open_pack(source, short_side=None, kind=kind, threads=1)

    opened()  # builds it
    tracemalloc.start()
    pack = opened()
    orders = [epoch_order(n, seed=0, epoch=epoch) for epoch in (0, 1)]
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(orders) == 2 and 0.8 * held <= pack.memory(0) <= 1.1 * held


def test_a_large_npy_is_read_and_told_when_it_was_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 256, (N, 20, 30, 3), np.uint8)
    path = tmp_path / "set.npy"

    def opened() -> Pack:
        np.save(path, array)
        return open_pack(open_source(path), short_side=None)

    loaded = opened()
    np.save(path, array[:3])
    assert all(np.array_equal(a, b) for a, b in zip(loaded, array, strict=True))
    assert loaded.memory(0) > array.nbytes
    monkeypatch.setattr(arrays, "MOST_LOADED", array.nbytes - 1)
    pack = opened()
    assert pack.hash == loaded.hash and pack.memory(8) < array.nbytes // 2 and len(pack.part(1, 3)) == 13
    assert all(np.array_equal(a, b) for a, b in zip(pack, array, strict=True))
    index = [30, 2, 2, 39]
    assert all(np.array_equal(a, array[i]) for a, i in zip(_gathered(pack, index, 3), index, strict=True))
    assert np.array_equal(pack.part(1, 3)[0], array[13])
    np.save(tmp_path / "other.npy", array[::-1])
    os.replace(tmp_path / "other.npy", path)  # which leaves the open one as it is
    assert np.array_equal(pack[7], array[7])
    for change, why in ((array[:3], "the file ends at"), (array[::-1], "it was written to")):
        pack = opened()
        np.save(path, change)
        os.utime(path, (1, 1))
        with pytest.raises(DataError, match=rf"set\.npy changed or failed while it was in use: {why}.*; run the same command"):
            pack.gather(np.array([N - 1]))


def test_the_reader_of_the_page_reads_a_pack(cache: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)[0]
    assert len(code.strip().splitlines()) <= 14
    for kind in ("raw", "jpeg"):
        pack = _open(kind)
        monkeypatch.chdir(_folder(cache, pack))
        seen: dict[str, Callable[..., list[Pixels]]] = {}
        exec(code, {"decode_jpeg": lambda data: decode(bytes(data))}, seen)
        for i, theirs in zip(pack.index, seen["pictures"], strict=True):
            error = np.abs(_picture(int(i)).astype(int) - theirs)
            assert error.max() == 0 if kind == "raw" else error.mean() < 15
