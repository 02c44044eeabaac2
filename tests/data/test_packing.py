from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smallview.data import pack_build, pack_files, pack_folders
from smallview.data.decoding import BadPicture, shrink
from smallview.data.pack import Pack, write_bad_files
from smallview.data.packing import BadFile, open_pack, pack_short_side
from smallview.data.sources import open_source
from smallview.errors import DataError, SmallviewError, UsageError

Photos = Callable[..., Path]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def _files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def _damage(folder: Path) -> tuple[pack_files.Damage, ...]:
    stored = pack_files.load(folder)
    assert stored is not None
    return stored.damage


def _same(one: Pack, two: Pack) -> bool:
    return one.hash == two.hash and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_pack_of_a_folder(photos: Photos, cache: Path) -> None:
    source = open_source(photos("cat/a.png", "cat/b.png", "dog/c.png"))
    seen: list[tuple[int, int]] = []
    pack = open_pack(source, short_side=None, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(pack) == 3 and pack.name == "photos" and pack.channels == 3 and pack.one_size is None and not pack.bad
    assert pack.kind == "raw" and pack.index.dtype == np.int64
    assert pack.heights.tolist() == [20, 21, 22] and pack.widths.tolist() == [30] * 3 and pack.heights.dtype == np.int32
    assert list(pack.names) == list(source.names) and pack.labels.tolist() == [0, 0, 1] and pack.classes == ("cat", "dog")
    for i in range(3):
        assert np.array_equal(pack[i], source.read(i)) and pack[i].dtype == np.uint8
    flat, starts = pack.gather(np.array([2, 0]))
    assert flat.dtype == np.uint8 and flat.ndim == 1 and starts.dtype == np.int64 and np.shares_memory(flat, pack[1])
    assert starts.tolist() == [source.read(0).size + source.read(1).size, 0]
    assert np.array_equal(pack[-1], pack[2])
    with pytest.raises(IndexError):
        pack[3]
    names = {Path(name).name for name in _files(cache)}
    assert names == {"data-00000.bin", "data-00000.npy", "meta.json", "meta.copy.json"}


def test_pack_is_shrunk_and_reused(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(photos("a.png", "b.png", sides=(40, 50)))
    pack = open_pack(source, short_side=16)
    assert all(np.array_equal(pack[i], shrink(source.read(i), 16)) for i in range(2)) and pack.heights.tolist() == [16, 16]
    monkeypatch.setattr(pack_build.Building, "__enter__", lambda self: pytest.fail("built again"))
    calls: list[int] = []
    again = open_pack(open_source(source.root), short_side=16, progress=lambda *_: calls.append(1))
    assert _same(pack, again) and not calls


def test_changed_pictures_are_packed_anew_and_the_old_pack_goes(photos: Photos, cache: Path) -> None:
    folder = photos("a.png", "b.png")
    first = open_pack(open_source(folder), short_side=None)
    other = open_pack(open_source(folder), short_side=8)
    photos("a.png", "b.png", "c.png")
    second = open_pack(open_source(folder), short_side=None)
    assert len(second) == 3 and second.hash != first.hash
    assert len(first[1]) == 21 and int(first[0].astype(np.int64).sum()) > 0  # whoever has the old one open keeps it
    assert sorted(len(Path(name).parts) for name in _files(cache) if name.endswith("meta.json")) == [4, 4]
    assert _same(
        open_pack(open_source(photos("b.png", root="elsewhere")), short_side=8),
        open_pack(open_source(folder / ".." / "elsewhere"), short_side=8),
    )
    assert len(other) == 2


def test_equal_for_any_number_of_threads(photos: Photos, tmp_path: Path) -> None:
    folder = photos(*[f"{k}.{'jpg' if k % 2 else 'png'}" for k in range(60)], sides=(90, 70))
    (folder / "33.jpg").write_bytes(b"broken")
    stored = []
    for threads in (1, 2, 5):
        cache = tmp_path / f"cache-{threads}"
        pack = open_pack(open_source(folder), short_side=20, cache=cache, threads=threads)
        assert pack.bad == [BadFile("33.jpg", "text, not a picture")] and len(pack) == 59
        stored.append(_files(cache))
    assert stored[0] == stored[1] == stored[2]


def test_arrays_are_wrapped_not_copied(cache: Path, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), np.uint8)
    pack = open_pack(open_source((array, [0, 1, 2, 3, 4])), short_side=10)
    assert np.shares_memory(pack[2], array) and pack.one_size == (12, 10) and not _files(cache)
    assert np.array_equal(pack[3], array[3]) and pack.labels.tolist() == [0, 1, 2, 3, 4]
    np.save(tmp_path / "set.npy", array)
    mapped = open_pack(open_source(tmp_path / "set.npy"), short_side=None)
    assert _same(mapped, pack) and not _files(cache) and mapped[0].base is not None
    small = open_pack(open_source(array), short_side=5)
    assert small.one_size == (6, 5) and _files(cache) and np.array_equal(small[2], shrink(array[2], 5))
    labelled = open_pack(open_source((array, [4, 3, 2, 1, 0])), short_side=5)
    assert _same(small, labelled) and labelled.labels.tolist() == [4, 3, 2, 1, 0] and small.labels is None


def test_an_array_and_a_folder_of_it_have_one_hash(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), np.uint8)
    for k, image in enumerate(array):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    assert open_pack(open_source(tmp_path), short_side=None).hash == open_pack(open_source(array), short_side=None).hash


def test_data_sets_are_read_once_with_their_labels(cache: Path) -> None:
    reads: list[int] = []

    class Faces:
        classes = ("a", "b")

        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            reads.append(i)
            if i == 5:
                raise ValueError("no such row")
            return np.full((6 + i, 8, 3), i, np.uint8), i % 2

    source = open_source(Faces())
    reads.clear()
    pack = open_pack(source, short_side=None, threads=4)
    assert reads == list(range(12))
    assert pack.bad == [BadFile("05", "the data set raised ValueError: no such row")]
    assert pack.index.tolist() == [*range(5), *range(6, 12)] and pack.labels.tolist() == [i % 2 for i in pack.index]
    assert pack.classes == ("a", "b") and pack.names[5] == "06" and pack.name == "Faces"
    assert _same(pack, open_pack(open_source(Faces()), short_side=None))
    assert len([name for name in _files(cache) if name.endswith(".bin")]) == 1
    unlabelled = open_pack(open_source(Faces(), labels=False), short_side=None)
    assert unlabelled.labels is None and unlabelled.classes is None


def test_odd_shapes(tmp_path: Path) -> None:
    for k, (width, height) in enumerate([(1, 400), (1500, 2), (1, 1), (64, 64)]):
        Image.new("RGB", (width, height), (k, k, k)).save(tmp_path / f"{k}.png")
    pack = open_pack(open_source(tmp_path), short_side=1)
    assert [pack[i].shape for i in range(4)] == [(400, 1, 3), (1, 750, 3), (1, 1, 3), (1, 1, 3)]
    assert open_pack(open_source(tmp_path), short_side=32)[1].shape == (2, 1500, 3)


# --- broken pictures ---


def test_few_broken_pictures_are_left_out_and_written_down(photos: Photos, tmp_path: Path) -> None:
    folder = photos(*[f"{k:02}/a.png" for k in range(14)])
    for k in range(10):
        (folder / f"{k:02}" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(k))
    (folder / "03" / os.fsdecode(b"b\xff.png")).write_bytes(b"")
    (folder / "00" / "a.png").unlink()
    source = open_source(folder)
    pack = open_pack(source, short_side=None)
    assert len(pack) == 4 and len(pack.bad) == 10 and pack.index.tolist() == [10, 11, 12, 13]
    assert list(pack.names) == [source.names[i] for i in pack.index] and pack.labels.tolist() == [10, 11, 12, 13]
    path = tmp_path / "bad_files.jsonl"
    write_bad_files(pack, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(line) for line in lines] == [{"path", "error"}] * 10
    assert {line["path"] for line in lines} == {bad.name for bad in pack.bad} and "an empty file" in {
        line["error"] for line in lines
    }
    assert sorted(path.parent.glob("bad_files*")) == [path]
    assert open_pack(source, short_side=None).bad == pack.bad


def test_many_broken_pictures_stop(photos: Photos, cache: Path) -> None:
    folder = photos(*[f"{k:03}.png" for k in range(30)])
    for k in range(11):
        (folder / f"{k:03}.png").write_bytes(b"<html>" if k else b"")
    (folder / "000.png").rename(folder / "-\x1b[31m\n.png")
    message = r"^11 of 30 pictures unreadable, e\.g\. -\\x1b\[31m\\n\.png \(an empty file\), 001\.png \(a web page.*than 10 and"
    with pytest.raises(DataError, match=message) as caught:
        open_pack(open_source(folder), short_side=None)
    assert caught.value.exit_code == 3 and not _files(cache)


def test_only_broken_pictures_stop(photos: Photos, cache: Path) -> None:
    folder = photos("a.png", "b.png")
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 2 pictures unreadable.*not one is left"):
        open_pack(open_source(folder), short_side=None)
    assert not _files(cache)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_rule_of_ten_and_one_percent(total: int, share: float) -> None:
    from smallview.data.packing import _refuse_too_many

    bad = [BadFile("x", "y")] * int(share * total)
    wrong = (len(bad) > 10 and len(bad) > 0.01 * total) or len(bad) == total
    if wrong:
        with pytest.raises(DataError):
            _refuse_too_many(bad, total)
    else:
        _refuse_too_many(bad, total)


def test_a_file_that_opens_later_is_not_left_out_for_ever(photos: Photos) -> None:
    folder = photos("a.png", "b.png")
    data = (folder / "b.png").read_bytes()
    source = open_source(folder)
    (folder / "b.png").unlink()  # vanishes between listing and reading
    pack = open_pack(source, short_side=None)
    assert len(pack) == 1 and "No such file" in pack.bad[0].reason
    (folder / "b.png").write_bytes(data)
    assert len(open_pack(source, short_side=None)) == 2


# --- faults while building and after ---


@pytest.mark.parametrize("name", ["data-00000.bin", "data-00000.npy", "meta.json", "meta.copy.json"])
def test_any_flipped_bit_is_found(name: str, photos: Photos, cache: Path) -> None:
    source = open_source(photos("a.png", "b.png", sides=(5, 4)))
    pack = open_pack(source, short_side=None)
    wanted = _files(cache)
    (path,) = cache.rglob(name)
    original = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(12):
        damaged = bytearray(original)
        damaged[random.integers(len(damaged))] ^= 1 << int(random.integers(8))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        path.write_bytes(damaged)
        assert [damage.file for damage in _damage(path.parent)] == [name]
        assert _same(open_pack(source, short_side=None), open_pack(replace(source), short_side=None))
        assert _files(cache) == wanted
    for damaged in (b"", original[:-1], original + b"\0", original[: len(original) // 2]):
        path.write_bytes(damaged)
        assert [damage.file for damage in _damage(path.parent)] == [name]
        assert open_pack(source, short_side=None).hash == pack.hash and _files(cache) == wanted
    path.unlink()
    assert open_pack(source, short_side=None).hash == pack.hash and _files(cache) == wanted


@needs_fork
def test_killed_at_any_moment_leaves_no_half_pack(photos: Photos, cache: Path, tmp_path: Path) -> None:
    source = open_source(photos(*[f"{k}.png" for k in range(12)]))
    whole = tmp_path / "whole"
    open_pack(source, short_side=10, cache=whole)
    wanted = _files(whole)
    steps: list[tuple[str, int]] = [("progress", k) for k in (1, 5, 12)]
    steps += [("fsync", k) for k in range(1, 8)] + [("rename", 1)]
    for what, count in steps:
        child = os.fork()
        if child == 0:
            _build_and_die(source, what, count)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{what} {count}: the build was not killed there"
        half = [path for path in (cache / "packs").rglob("meta.json") if ".building-" not in str(path)]
        for path in half:  # killed after the rename: whole, or not there
            assert not _damage(path.parent)
        pack = open_pack(source, short_side=10)
        assert _files(cache) == wanted and len(pack) == 12, f"{what} {count}"
        pack_folders.discard(next((cache / "packs").rglob("meta.json")).parent, cache / "packs")
        assert not _files(cache)


def _build_and_die(source: object, what: str, count: int) -> None:
    left = count

    def die(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        if what != "progress":
            real = getattr(os, what)

            def stand_in(*args: object) -> object:
                die()
                return real(*args)

            setattr(os, what, stand_in)
        open_pack(source, short_side=10, progress=die if what == "progress" else None, threads=1)  # type: ignore[arg-type]
    finally:
        os._exit(0)


def test_an_interrupted_build_removes_its_traces(photos: Photos, cache: Path) -> None:
    source = open_source(photos(*[f"{k}.png" for k in range(9)]))

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_pack(source, short_side=10, progress=interrupt)
    assert not _files(cache) and not list((cache / "packs").iterdir())


def test_a_living_builders_work_is_left_alone(photos: Photos, cache: Path) -> None:
    pytest.importorskip("fcntl")
    with pack_build.Building(cache / "packs", "set-0", None, "raw", 3) as building:
        open_pack(open_source(photos("a.png")), short_side=None)
        assert building.folder.exists()
    assert not list((cache / "packs").glob(".building-*"))


def test_two_builders_of_one_pack(photos: Photos, cache: Path) -> None:
    source = open_source(photos("a.png", "b.png"))
    nested: list[Pack] = []

    def build_inside(done: int, total: int) -> None:
        if done == 1:
            nested.append(open_pack(source, short_side=None))

    pack = open_pack(source, short_side=None, progress=build_inside)
    assert _same(pack, nested[0]) and len(list(cache.rglob("meta.json"))) == 1


def test_a_cache_that_cannot_be_written(photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(photos("a.png"))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "file"))
    with pytest.raises(SmallviewError, match=r"cannot write the pack .*set SMALLVIEW_CACHE to a folder") as caught:
        open_pack(source, short_side=None)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_a_full_disk(photos: Photos, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(photos("a.png"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SmallviewError, match="No space left on device; set SMALLVIEW_CACHE"):
        open_pack(source, short_side=None)
    assert not _files(cache)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "own"))
    assert pack_folders.cache_folder() == tmp_path / "own" and pack_folders.cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("SMALLVIEW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert pack_folders.cache_folder() == tmp_path / "xdg" / "smallview"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert pack_folders.cache_folder() == tmp_path / "home" / ".cache" / "smallview"


def test_settings() -> None:
    assert pack_short_side(64, 0.2) == 144 and pack_short_side(32, 1.0) == 32 and pack_short_side(224, 0.08) == 792
    for size, area in ((0, 0.2), (64, 0.0), (64, 1.5), (64, float("nan"))):
        with pytest.raises(UsageError):
            pack_short_side(size, area)
    with pytest.raises(UsageError, match="short_side is 0"):
        open_pack(open_source(np.zeros((2, 4, 4), np.uint8)), short_side=0)


def test_a_reader_that_breaks_is_not_swallowed(photos: Photos, cache: Path) -> None:
    def reader(i: int, short_side: int | None) -> tuple[np.ndarray, None]:
        if i == 1:
            raise RuntimeError("a mistake of ours")
        raise BadPicture("fine")

    source = replace(open_source(photos("a.png", "b.png", "c.png")), reader=reader)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        open_pack(source, short_side=None)
    assert not _files(cache)
