"""Packs that are killed, cut, flipped and filled up while they are made: the bytes in the end are always those of an undisturbed build."""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smallview.data import pack_build, pack_files, pack_folders, pack_kind
from smallview.data.decoding import BadPicture, Pixels, Unreadable
from smallview.data.listing import PathTable
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import Source
from smallview.errors import SmallviewError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
N, BLOCK = 150, 8
KILLS = [pytest.param(8, id="8"), pytest.param(50, id="50", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
Photos = Callable[..., Source]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_build, "BLOCK_PICTURES", BLOCK)
    monkeypatch.setattr(pack_build, "SHARD_BYTES", 60_000)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _picture(i: int) -> Pixels:
    """Smooth enough for a JPEG to be smaller, another size for each."""
    noise = np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)
    return np.ascontiguousarray(np.kron(noise, np.ones((5, 4, 1), np.uint8))[: 16 + i % 5])


class Counted:
    """A source whose reads leave a byte each in a file, so that those of killed processes count too."""

    def __init__(self, tmp_path: Path, seconds: float = 0.0) -> None:
        self.path = tmp_path / "reads"
        self.path.write_bytes(b"")
        self.seconds = seconds
        self.source = Source(
            name="noise", names=PathTable.numbered(N), channels=3, reader=self.read, fingerprint="ab" * 32, parallel=True
        )

    def read(self, i: int, short_side: int | None) -> tuple[Pixels, int | None]:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(handle, b"%4d" % i)
        os.close(handle)
        time.sleep(self.seconds)
        if i in (3, 77):
            raise BadPicture("not today")
        return _picture(i), None

    def take(self) -> list[int]:
        """The positions read since the last call."""
        data = self.path.read_bytes()
        self.path.write_bytes(b"")
        return [int(data[k : k + 4]) for k in range(0, len(data), 4)]


def _files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def _open(source: Source, cache: Path, kind: str = "raw", threads: int = 2, **options: object) -> Pack:
    return open_pack(source, short_side=None, kind=kind, cache=cache, threads=threads, **options)  # type: ignore[arg-type]


def _pack_folder(cache: Path) -> Path:
    return next(path for path in cache.rglob("meta.json") if ".building-" not in str(path)).parent


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.fixture
def no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets only the build itself read."""
    monkeypatch.setattr("smallview.data.packing.check_room", lambda *_: None)


@pytest.mark.parametrize("kills", KILLS)
def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_bytes(
    kills: int, tmp_path: Path, cache: Path, no_sample: None
) -> None:
    counted = Counted(tmp_path, seconds=0.002)
    wanted, took = {}, {}
    for kind in ("raw", "jpeg"):
        begin = time.monotonic()
        assert os.waitpid(_fork(lambda kind=kind: _open(counted.source, tmp_path / kind, kind)), 0)[1] == 0  # type: ignore[misc]
        took[kind] = time.monotonic() - begin
        wanted[kind] = _files(tmp_path / kind)
        assert len(wanted[kind]) > 6 and sorted(counted.take()) == list(range(N))
    draw = random.Random("kills")
    done = built = repeated = 0
    while done < kills:
        kind, threads, here = draw.choice(["raw", "jpeg"]), draw.choice([1, 2, 3]), 0
        while True:
            child = _fork(lambda kind=kind, threads=threads: _open(counted.source, cache, kind, threads))  # type: ignore[misc]
            if done < kills:
                time.sleep(draw.uniform(0.0, took[kind]))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if not os.WIFSIGNALED(status):
                assert status == 0
                break
            done, here = done + 1, here + 1
            for path in cache.rglob("meta.json"):  # what can be seen is whole
                if ".building-" not in str(path):
                    stored = pack_files.load(path.parent)
                    assert stored is not None and not stored.damage
        reads = counted.take()
        assert set(reads) >= set(range(N)) and len(reads) <= N + here * (BLOCK + 2 * threads), (
            f"{here} kills, {len(reads)} reads"
        )
        _open(counted.source, cache, kind)  # removes what one killed just after the end left
        assert counted.take() == [] and _files(cache) == wanted[kind], f"{kind} after {here} kills"
        built, repeated = built + 1, repeated + len(reads) - N
        pack_folders.discard(_pack_folder(cache), cache / "packs")
    print(f"{done} kills in {built} builds of {N} pictures; each cost {repeated / done:.1f} pictures decoded again")


@pytest.mark.parametrize(("what", "count"), [("fsync", k) for k in (2, 3, 6, 9)] + [("rename", 1), ("write", 40)])
def test_killed_at_a_call_of_the_disk(what: str, count: int, tmp_path: Path, cache: Path, no_sample: None) -> None:
    counted = Counted(tmp_path)
    _open(counted.source, tmp_path / "whole")
    counted.take()

    def work() -> None:
        real, left = getattr(os, what), count

        def stand_in(*args: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        setattr(os, what, stand_in)
        _open(counted.source, cache, threads=1)

    assert os.WIFSIGNALED(os.waitpid(_fork(work), 0)[1])
    _open(counted.source, cache)
    assert len(counted.take()) <= N + BLOCK and _files(cache) == _files(tmp_path / "whole")


def test_an_interruption_keeps_the_work_an_error_does_not(tmp_path: Path, cache: Path, no_sample: None) -> None:
    counted = Counted(tmp_path)

    def stop(error: type[BaseException]) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done == 100:
                raise error

        return progress

    with pytest.raises(ZeroDivisionError):
        _open(counted.source, cache, progress=stop(ZeroDivisionError))
    assert not _files(cache)
    with pytest.raises(KeyboardInterrupt):
        _open(counted.source, cache, progress=stop(KeyboardInterrupt))
    counted.take()
    seen: list[int] = []
    _open(counted.source, cache, progress=lambda done, total: seen.append(done))
    reads = counted.take()
    assert min(reads) == seen[0] - 1 > 80 and len(reads) < 70 and seen[-1] == N
    _open(counted.source, tmp_path / "whole")
    assert _files(cache) == _files(tmp_path / "whole")


def test_what_a_killed_build_wrote_is_believed_only_as_far_as_it_holds(
    tmp_path: Path, cache: Path, no_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(tmp_path)
    _open(counted.source, tmp_path / "whole")
    whole = _files(tmp_path / "whole")

    def interrupted() -> Path:
        with pytest.raises(KeyboardInterrupt):
            _open(
                counted.source,
                cache,
                threads=1,
                progress=lambda done, total: 1 // (130 - done) if done != 130 else _interrupt(),
            )
        counted.take()
        (folder,) = (cache / "packs").glob(".building-*")
        return folder

    def kept() -> int:
        _open(counted.source, cache)
        assert _files(cache) == whole
        pack_folders.discard(_pack_folder(cache), cache / "packs")
        return N - len(counted.take())

    interrupted()
    assert kept() > 120
    folder = interrupted()
    data = bytearray((folder / "data-00000.bin").read_bytes())
    data[30_000] ^= 1
    (folder / "data-00000.bin").write_bytes(data)
    assert 10 < kept() < 60
    folder = interrupted()
    journal = (folder / "journal").read_bytes()
    (folder / "journal").write_bytes(journal[: len(journal) // 2])
    assert 40 < kept() < 90
    folder = interrupted()
    (folder / "data-00001.bin").unlink()
    assert 30 < kept() < 90
    folder = interrupted()
    (folder / "journal").write_bytes(journal.replace(b'"raw"', b'"gif"', 1))
    assert kept() == 0
    interrupted()
    monkeypatch.setattr(pack_build.simplejpeg, "__version__", "0.1")  # another decoder, other pixels
    assert kept() == 0


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_what_could_not_be_read_before_the_kill_is_asked_again(tmp_path: Path, cache: Path, no_sample: None) -> None:
    counted = Counted(tmp_path)
    closed = True

    def read(i: int, short_side: int | None) -> tuple[Pixels, int | None]:
        if i == 60 and closed:
            raise Unreadable("no permission")
        return counted.read(i, short_side)

    source = replace(counted.source, reader=read)
    with pytest.raises(KeyboardInterrupt):
        _open(source, cache, progress=lambda done, total: _interrupt() if done == 140 else None)
    closed = False
    counted.take()
    pack = _open(source, cache)
    assert 60 in pack.index and 80 < len(counted.take()) < 100


def test_a_build_with_other_settings_or_an_old_one_goes(tmp_path: Path, cache: Path, no_sample: None) -> None:
    counted = Counted(tmp_path)
    stop = {"progress": lambda done, total: _interrupt() if done == 100 else None}
    packs = cache / "packs"

    def building() -> int:
        return len(list(packs.glob(".building-*")))

    rooted = replace(counted.source, root=tmp_path)
    for source, kind in ((rooted, "raw"), (rooted, "jpeg"), (counted.source, "raw")):
        with pytest.raises(KeyboardInterrupt):
            _open(source, cache, kind, **stop)
    assert building() == 3  # packs each of which may be wanted
    _open(replace(rooted, fingerprint="cd" * 32), cache)
    assert building() == 2  # its pictures have changed
    _open(replace(counted.source, fingerprint="cd" * 32), cache)
    assert building() == 2  # these may be others, the first ones of another list or split of the same name
    counted.take()
    _open(counted.source, cache)
    assert building() == 1 and len(counted.take()) < N - 90
    (left,) = packs.glob(".building-*")
    (left / "mine.txt").write_text("a user's")
    long_ago = time.time() - 8 * 86400
    for path in [*left.iterdir(), left]:
        os.utime(path, (long_ago, long_ago))
    _open(replace(counted.source, fingerprint="ef" * 32), cache)
    assert building() == 1 and (left / "data-00000.bin").exists()  # something in it is not ours
    (left / "mine.txt").unlink()
    for path in [*left.iterdir(), left]:
        os.utime(path, (long_ago, long_ago))
    _open(replace(counted.source, fingerprint="01" * 32), cache)
    assert building() == 0


def test_a_folder_with_a_users_file_in_it_stays(tmp_path: Path, cache: Path) -> None:
    counted = Counted(tmp_path)
    rooted = replace(counted.source, root=tmp_path)
    _open(rooted, cache)
    folder = _pack_folder(cache)
    (folder / "notes.txt").write_text("a user's")
    _open(replace(rooted, fingerprint="cd" * 32), cache)
    assert (folder / "notes.txt").exists() and (folder / "meta.json").exists()
    for name in pack_files.META:
        (folder / name).write_text("{}")
    with pytest.raises(SmallviewError, match="cannot write the pack"):
        _open(rooted, cache)
    assert (folder / "notes.txt").exists()


def test_a_users_files_in_a_half_made_pack_stay(tmp_path: Path, cache: Path, no_sample: None) -> None:
    counted = Counted(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _open(counted.source, cache, progress=lambda done, total: _interrupt() if done == 100 else None)
    (half,) = (cache / "packs").glob(".building-*")
    (half / "notes.txt").write_text("a user's")
    (half / "folder").mkdir()
    assert len(_open(counted.source, cache)) == N - 2
    assert (_pack_folder(cache) / "notes.txt").read_text() == "a user's" and (_pack_folder(cache) / "folder").is_dir()


def test_a_second_process_waits_for_the_first_and_takes_its_pack(tmp_path: Path, cache: Path, no_sample: None) -> None:
    counted = Counted(tmp_path, seconds=0.003)
    child = _fork(lambda: _open(counted.source, cache))
    while not counted.path.stat().st_size:
        time.sleep(0.01)
    pack = _open(counted.source, cache)
    assert os.waitpid(child, 0)[1] == 0
    assert len(pack) == N - 2 and sorted(counted.take()) == list(range(N))
    assert not list((cache / "packs").glob(".building-*"))


# --- repair ---


@pytest.fixture
def packed(tmp_path: Path, cache: Path, no_sample: None) -> Iterator[tuple[Counted, Path, dict[str, bytes]]]:
    counted = Counted(tmp_path)
    _open(counted.source, cache)
    counted.take()
    yield counted, _pack_folder(cache), _files(cache)


Packed = tuple[Counted, Path, dict[str, bytes]]


def test_a_flipped_bit_is_named_and_only_its_block_made_again(
    packed: Packed, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted, folder, wanted = packed
    path = folder / "data-00001.bin"
    stored = pack_files.load(folder)
    assert stored is not None and len(stored.tables) > 2
    rows = stored.tables[1]
    data = bytearray(path.read_bytes())
    data[int(rows["start"][11])] ^= 64  # in the second block of that shard
    path.write_bytes(data)
    first = len(stored.tables[0]) + BLOCK
    damaged = pack_files.load(folder)
    assert damaged is not None and damaged.damage == (pack_files.Damage("data-00001.bin", 1, first, first + BLOCK),)
    with caplog.at_level(logging.WARNING, "smallview.data"):
        _open(counted.source, cache)
    names = [counted.source.names[int(rows["index"][k])] for k in (8, 15)]
    said = f"data-00001.bin block 1 (pictures {first} to {first + BLOCK - 1}), {names[0]} to {names[1]}; making that again"
    assert said in caplog.text
    assert sorted(counted.take()) == rows["index"][8:16].tolist() and _files(cache) == wanted


def test_a_cut_or_lost_file_costs_what_was_in_it(packed: Packed, cache: Path) -> None:
    counted, folder, wanted = packed
    stored = pack_files.load(folder)
    assert stored is not None
    rows = stored.tables[1]
    path = folder / "data-00001.bin"
    path.write_bytes(path.read_bytes()[: int(rows["start"][20])])
    _open(counted.source, cache)
    assert sorted(counted.take()) == rows["index"][16:].tolist() and _files(cache) == wanted
    for name in ("data-00001.bin", "data-00001.npy"):
        (folder / name).unlink()
        _open(counted.source, cache)
        reads = counted.take()
        assert set(rows["index"].tolist()) <= set(reads) <= set(range(rows["index"][0] - 1, rows["index"][-1] + 2))
        assert _files(cache) == wanted
    path.write_bytes(path.read_bytes() + b"more")
    with (folder / "meta.copy.json").open("ab") as file:
        file.write(b" ")
    (folder / "meta.json").unlink()
    _open(counted.source, cache)
    assert len(counted.take()) == N and _files(cache) == wanted  # no copy of the meta was left: all of it anew
    (folder / "meta.json").unlink()
    path.write_bytes(path.read_bytes() + b"more")
    _open(counted.source, cache)
    assert counted.take() == [] and _files(cache) == wanted


def test_random_damage_to_several_files(packed: Packed, cache: Path) -> None:
    counted, folder, wanted = packed
    draw = random.Random(0)
    for _ in range(15):
        for path in draw.sample(sorted(folder.iterdir()), 2):
            data = bytearray(path.read_bytes())
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
        pack = _open(counted.source, cache)
        assert _files(cache) == wanted and np.array_equal(pack[0], _picture(0))


def test_where_the_source_gives_other_pixels_all_is_built_anew(
    packed: Packed, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted, folder, _ = packed
    before = _open(counted.source, cache).hash
    other = replace(counted.source, reader=lambda i, side: (255 - _picture(i), None))
    (folder / "data-00000.bin").write_bytes(b"")
    pack = _open(other, cache)
    assert "no longer give what was packed" in caplog.text
    assert pack.hash != before and np.array_equal(pack[140], 255 - _picture(140))


# --- a full disk ---


def test_a_disk_without_room_is_told_before_the_work(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _open(counted.source, cache, "jpeg", progress=lambda done, total: _interrupt() if done == 100 else None)
    counted.take()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pack_kind.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    message = r"^packing 150 pictures takes about 0\.1 MiB more in .*packs, which has 0\.1 MiB free; make room there, or set SMALLVIEW"
    with pytest.raises(SmallviewError, match=message):
        _open(counted.source, cache)
    assert len(counted.take()) <= N // 8 and not _files(cache)  # the other half-made pack went first


def test_a_disk_that_fills_up_takes_nothing_with_it(tmp_path: Path, cache: Path) -> None:
    counted = Counted(tmp_path)
    rooted = replace(counted.source, root=tmp_path)
    _open(rooted, cache)
    before = _files(cache)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        with pytest.raises(SmallviewError, match=r"^cannot write the pack of .*: File too large; set SMALLVIEW_CACHE"):
            _open(replace(rooted, fingerprint="cd" * 32), cache)

    assert os.waitpid(_fork(work), 0)[1] == 0
    assert _files(cache) == before and not list((cache / "packs").glob(".building-*"))
