from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallview.data.changes import Inventory, difference, inventory, read_inventory, write_inventory
from smallview.data.listing import PathTable
from smallview.data.packing import open_pack
from smallview.data.sources import Source, open_source
from smallview.errors import DataError

Photos = Callable[..., Path]


def _all(source: Source) -> Inventory:
    return inventory(source, np.arange(len(source)))


def test_files_that_vanish_come_and_change(photos: Photos) -> None:
    folder = photos(*(f"{k}.png" for k in range(9)))
    before = _all(open_source(folder))
    assert not difference(before, _all(open_source(folder)))
    for name in ("0.png", "3.png", "4.png", "5.png"):
        (folder / name).unlink()
    (folder / "6.png").write_bytes((folder / "7.png").read_bytes())
    os.utime(folder / "8.png", ns=(0, (folder / "8.png").stat().st_mtime_ns + 1))
    os.rename(folder / "1.png", folder / "new\n.png")
    told = difference(before, _all(open_source(folder)))
    assert told.vanished == ("0.png", "1.png", "3.png", "4.png", "5.png")
    assert told.new == ("new\n.png",) and told.changed == ("6.png", "8.png")
    line = r"5 vanished (0.png, 1.png, 3.png, ...), 1 new (new\n.png), 2 changed (6.png, 8.png)"
    assert str(told) == line
    listed = open_source([folder / name for name in ("6.png", "7.png")])
    (folder / "7.png").unlink()
    assert difference(_all(listed), _all(open_source([folder / "6.png", folder / "7.png"]))).changed == ("7.png",)


def test_arrays_are_compared_by_their_pixels() -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    other = np.concatenate([array, array[:3]])
    other[4, 0, 0, 0] ^= 1
    told = difference(_all(open_source(array)), _all(open_source(other)))
    assert (told.vanished, told.new, told.changed) == ((), ("09", "10", "11"), ("04",))
    assert difference(_all(open_source(other)), _all(open_source(array))).vanished == ("09", "10", "11")


def test_only_the_pictures_of_the_pack_count(photos: Photos) -> None:
    source = open_source(photos("a.png", "b.png", "c.png"))
    told = difference(_all(source), inventory(source, np.array([0, 2])))
    assert str(told) == "1 vanished (b.png)"


def test_without_numbers_only_names_tell() -> None:
    before, now = (Inventory(PathTable.of(names), None) for names in ([b"a", b"b"], [b"b"]))
    assert str(difference(before, now)) == "1 vanished (a)"
    assert not difference(now, Inventory(now.names, np.array([1], np.uint64)))


@given(st.lists(st.binary(max_size=9)), st.booleans())
def test_written_and_read(tmp_path_factory: pytest.TempPathFactory, names: list[bytes], stamped: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "pictures.npz"
    stamps = np.arange(len(names), dtype=np.uint64) << np.uint64(55)
    write_inventory(Inventory(PathTable.of(names), stamps if stamped else None), path)
    read = read_inventory(path)
    assert read is not None and [read.names.raw(i) for i in range(len(read.names))] == names
    assert np.array_equal(read.stamps, stamps) if stamped else read.stamps is None


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    assert read_inventory(path) is None
    write_inventory(Inventory(PathTable.of([b"a.png", b"b.png"]), np.arange(2, dtype=np.uint64)), path)
    data = path.read_bytes()
    for cut in range(0, len(data), 17):
        path.write_bytes(data[:cut])
        assert read_inventory(path) is None
    np.savez(path, names=np.zeros(3, np.uint8), lengths=np.array([1, 1], np.uint32))
    assert read_inventory(path) is None
    np.savez(path, names=np.zeros(2, np.uint8), lengths=np.array([1, 1], np.uint32), stamps=np.zeros(3, np.uint64))
    assert read_inventory(path) is None
    np.savez(path, names=np.array([object()]), lengths=np.array([1], np.uint32))
    assert read_inventory(path) is None


# --- pictures that vanish or change while they are packed ---


def _during(folder: Path, act: Callable[[], None], **options: int) -> object:
    def progress(done: int, total: int) -> None:
        if done == 2:
            act()

    return open_pack(open_source(folder), short_side=None, progress=progress, **options)


def test_a_picture_that_vanishes_while_packing_is_left_out_and_named(photos: Photos) -> None:
    folder = photos(*(f"{k:02}.png" for k in range(30)))
    pack = _during(folder, (folder / "20.png").unlink, threads=1)
    assert [(bad.name, bad.reason) for bad in pack.bad] == [("20.png", "cannot be read: No such file or directory")]
    assert len(pack) == 29 and pack.index.tolist() == [k for k in range(30) if k != 20]
    assert open_pack(open_source(folder), short_side=None).hash == pack.hash


def test_many_that_vanish_while_packing_stop_it(photos: Photos) -> None:
    folder = photos(*(f"{k:02}.png" for k in range(30)))
    with pytest.raises(DataError, match=r"^15 of 30 pictures unreadable, e\.g\. 15\.png \(cannot be read: No such file"):
        _during(folder, lambda: [(folder / f"{k}.png").unlink() for k in range(15, 30)], threads=1)


def test_a_picture_that_changes_while_packing_is_packed_as_it_is_read_and_packed_anew(photos: Photos) -> None:
    folder = photos(*(f"{k:02}.png" for k in range(30)))
    late = (folder / "25.png").read_bytes()

    def change() -> None:
        (folder / "20.png").write_bytes(late)
        (folder / "00.png").write_bytes(late)

    first = _during(folder, change, threads=1)
    assert np.array_equal(first[20], first[25]) and not np.array_equal(first[0], first[25])
    second = open_pack(open_source(folder), short_side=None)
    assert np.array_equal(second[20], second[25]) and np.array_equal(second[0], second[25]) and second.hash != first.hash
