from __future__ import annotations

import gzip
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smallview.data import arrays
from smallview.data.decoding import BadPicture
from smallview.data.listing import PathTable, scan
from smallview.data.sources import open_source
from smallview.errors import DataError

Photos = Callable[..., Path]
Encode = Callable[..., bytes]
links = pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")


# --- names ---


@given(st.lists(st.binary(max_size=12)))
def test_path_table_holds_any_bytes(paths: list[bytes]) -> None:
    table = PathTable.of(paths)
    assert len(table) == len(paths)
    assert [name.encode("utf-8", "surrogateescape") for name in table] == paths
    assert table[:2] == list(table)[:2]
    assert list(table.take(np.arange(len(paths))[::-1])) == list(table)[::-1]


def test_numbered_names() -> None:
    assert list(PathTable.numbered(11))[::5] == ["00", "05", "10"]
    assert list(PathTable.numbered(1)) == ["0"] and list(PathTable.numbered(0)) == []
    with pytest.raises(IndexError):
        PathTable.numbered(3)[3]


# --- folders ---


def test_nested_folder_in_bytewise_order(photos: Photos) -> None:
    names = ["b.png", "a/z.png", "a.png", "a-b/c.jpg", "B.PNG", "ä.png", "a/deep/er/x.jpeg"]
    source = open_source(photos(*names))
    assert list(source.names) == sorted(names, key=os.fsencode)
    assert source.name == "photos" and source.channels == 3 and source.labels is None and source.array is None
    assert source.read(0).shape == (24, 30, 3)


def test_order_and_fingerprint_do_not_hang_on_creation_order(photos: Photos) -> None:
    names = [f"{k % 3}/{k}.png" for k in range(20)]
    one, two = photos(*names, root="one"), photos(*names, root="two")
    for name in reversed(names):
        data = (one / name).read_bytes()
        (two / name).unlink()
        (two / name).write_bytes(data)
        os.utime(two / name, ns=(0, (one / name).stat().st_mtime_ns))
    a, b = open_source(one), open_source(two)
    assert list(a.names) == list(b.names) and a.fingerprint == b.fingerprint
    os.utime(two / names[3], ns=(0, 5))
    assert open_source(two).fingerprint != b.fingerprint
    (two / names[3]).unlink()
    assert len(open_source(two)) == 19


def test_what_is_left_out_is_counted(photos: Photos, encode: Encode, pattern: np.ndarray) -> None:
    folder = photos("a.jpg", "b.png")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(encode(pattern))
    (folder / "plain").write_bytes(encode(pattern, "JPEG"))
    for name in ("README", "Thumbs.db", "drawing.svg", ".hidden.jpg", "._a.jpg", "notes.txt", "movie.mp4"):
        (folder / name).write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "picture.png").write_bytes(encode(pattern))
    source = open_source(folder)
    assert list(source.names) == ["a.jpg", "b.png", "folder.jpg/inside.png", "plain"]
    assert source.skipped == 8
    assert [source.read(i).shape[2] for i in range(4)] == [3] * 4


def test_a_broken_picture_is_listed_and_told_when_read(photos: Photos) -> None:
    folder = photos("a.jpg")
    (folder / "b.jpg").write_bytes(b"")
    source = open_source(folder)
    with pytest.raises(BadPicture, match="an empty file"):
        source.read(1)
    (folder / "a.jpg").unlink()
    with pytest.raises(BadPicture, match="No such file"):
        source.read(0)


def test_class_folders(photos: Photos) -> None:
    folder = photos("cat/1.png", "dog/deep/2.png", "cat/0.png")
    (folder / "empty").mkdir()
    source = open_source(folder)
    assert source.classes == ("cat", "dog", "empty")
    assert source.labels is not None and source.labels.dtype == np.int64 and source.labels.tolist() == [0, 0, 1]
    without = open_source(folder, labels=False)
    assert without.labels is None and without.classes is None and without.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    "names",
    [
        ("cat/1.png", "dog/2.png", "loose.png"),
        ("only/1.png", "only/2.png"),
        ("train/1.png", "test/2.png"),
        ("Train/a/1.png", "val/a/2.png", "valid/b/3.png"),
        ("1.png", "2.png"),
    ],
)
def test_folders_that_are_no_classes(names: tuple[str, ...], photos: Photos) -> None:
    source = open_source(photos(*names))
    assert source.labels is None and source.classes is None and len(source) == len(names)


@links
def test_links_are_followed_once(photos: Photos) -> None:
    folder, outside = photos("sub/a.png", "sub/b.png"), photos("far/c.png", root="outside")
    (folder / "0-loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to("..")
    (folder / "above").symlink_to(folder.parent)
    (folder / "alias.png").symlink_to(folder / "sub" / "a.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "ring1").symlink_to("ring2")
    (folder / "ring2").symlink_to("ring1")
    (folder / "x").symlink_to(outside)
    (folder / "y").symlink_to(outside / "far")
    (folder / "z.png").symlink_to(outside / "far" / "c.png")
    (outside / "back").symlink_to(folder)
    os.link(folder / "sub" / "b.png", folder / "sub" / "c.png")
    source = open_source(folder)
    assert list(source.names) == ["sub/a.png", "sub/b.png", "x/far/c.png"]
    assert source.skipped == 3
    assert all(source.read(i).size for i in range(3))
    (folder.parent / "link").symlink_to(folder)
    assert list(open_source(folder.parent / "link").names) == list(source.names)


@pytest.mark.skipif(os.name != "posix", reason="needs file names that are bytes")
def test_awkward_names(tmp_path: Path, encode: Encode, pattern: np.ndarray) -> None:
    names = [
        b"invalid \xff\xfe.png",
        b"new\nline.png",
        "☕ 空.png".encode(),
        b"-dash.png",
        b"n" * 251 + b".png",
        b"%s#?'\".png",
        b"two..png",
    ]
    kept = []
    for name in names:
        try:
            (Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))).write_bytes(encode(pattern))
        except OSError:  # a file system with opinions about names
            continue
        kept.append(name)
    source = open_source(tmp_path)
    assert [os.fsencode(name) for name in source.names] == sorted(kept)
    assert all(np.array_equal(source.read(i), pattern) for i in range(len(kept)))


def test_a_closed_folder_is_named(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos("a.png", "closed/b.png")
    real = os.scandir

    def scandir(path: bytes) -> object:
        if path.endswith(b"closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        source = open_source(folder)
        assert list(source.names) == ["a.png"]
        assert [(bad.name, bad.reason) for bad in source.bad] == [("closed", "folder cannot be listed: Permission denied")]
        patch.setattr(os, "scandir", lambda path: scandir(b"closed"))
        with pytest.raises(DataError, match="cannot be listed: Permission denied"):
            open_source(folder)


def test_a_folder_that_may_be_read_but_not_entered_is_named(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos("a.png", "closed/b.png", "closed/c.png", "open/d.png")
    real = os.scandir

    class Refused:
        def __init__(self, entry: os.DirEntry[bytes]) -> None:
            self.entry = entry

        def __getattr__(self, name: str) -> object:
            return getattr(self.entry, name)

        def stat(self, **_: object) -> None:
            raise PermissionError(13, "Permission denied")

    def scandir(path: str | bytes) -> list[Any]:
        with real(path) as entries:
            closed = os.fsencode(path).rstrip(b"/").endswith(b"closed")
            return [Refused(entry) if closed else entry for entry in entries]

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        source = open_source(folder)
        assert list(source.names) == ["a.png", "open/d.png"]
        assert [(bad.name, bad.reason) for bad in source.bad] == [("closed", "folder cannot be listed: Permission denied")]
        with pytest.raises(DataError, match="closed cannot be listed: Permission denied"):
            open_source(folder / "closed")


def test_many_files_are_listed_quickly(tmp_path: Path) -> None:
    for k in range(100):
        (tmp_path / f"{k:03}").mkdir()
        for j in range(50):
            (tmp_path / f"{k:03}" / f"{j}.jpg").touch()
    start = time.perf_counter()
    assert len(scan(tmp_path).names) == 5000
    assert time.perf_counter() - start < 1  # 100,000 files in 3 s would be 0.15 s


# --- errors: one line, what was received and what was wanted ---


def test_errors_name_what_was_received(tmp_path: Path, photos: Photos) -> None:
    photos("a.png")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a.txt", "b.txt", "c.heic", ".d.jpg"):
        (other / name).write_text("hello")
    array = np.zeros((4, 8, 8, 3), np.uint8)
    cases = [
        (tmp_path / "fotos", r'there is no .*fotos \(did you mean ".*photos"\?\); wanted a folder'),
        (str(tmp_path / "empty"), "found 0 images and 0 other files; wanted jpg"),
        (other, r"found 0 images and 4 other files \(\.txt 2, .*\.heic 1.*\); wanted jpg"),
        (other / "a.txt", r"is no set of pictures \(text, not a picture\); wanted a folder"),
        ([], "empty list"),
        (array.astype(np.float32), r"float32 \[4, 8, 8, 3\]; wanted uint8.*\(255 \* x\)\.round\(\)\.astype\(np\.uint8\)"),
        (array.astype(np.int64), r"int64.*astype"),
        (array.transpose(0, 3, 1, 2), r"looks like \[N, C, H, W\]: x\.transpose\(0, 2, 3, 1\)"),
        (array[0, :, :, 0], r"\[8, 8\].*x\[None\]"),
        (array[:0], "no picture in it"),
        ((array, [1, 2, 3]), r"labels of shape \[3\] for 4 pictures"),
        ((array, np.zeros(4)), "labels are float64; wanted whole numbers"),
        ("n" * 999, "cannot be read: File name too long|there is no n"),
        (17, "data is a int; wanted a folder"),
        ({"a": 1}, "data is a dict; wanted a folder"),
        (iter([array]), "wanted a folder"),
        (["a.png", 3], r"data set list \(item 1: a int; wanted a Pillow image"),
        (np.array([None]), "object"),
    ]
    for data, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            open_source(data)
        assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


# --- lists of files, single files ---


def test_list_of_paths_keeps_its_order(photos: Photos) -> None:
    folder = photos("b/2.png", "a/1.png", "c.png")
    paths = [folder / "c.png", str(folder / "b" / "2.png"), folder / "gone.png", folder / "c.png"]
    source = open_source(paths)
    assert list(source.names) == ["c.png", "b/2.png", "gone.png", "c.png"] and source.name == "photos"
    assert source.labels is None and source.read(0).shape == (22, 30, 3)
    with pytest.raises(BadPicture, match="No such file"):
        source.read(2)
    assert open_source((paths, [1, 0, 1, 1])).labels.tolist() == [1, 0, 1, 1]
    assert open_source(tuple(paths[:2])).fingerprint != source.fingerprint


def test_one_picture_is_a_source(photos: Photos) -> None:
    folder = photos("one.png")
    assert len(open_source(folder)) == 1
    assert list(open_source(folder / "one.png").names) == ["one.png"] and open_source(folder / "one.png").name == "one"


# --- arrays and files of arrays ---


def test_arrays_are_views(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 9), np.uint8)
    source = open_source(array)
    assert source.array is not None and source.array.shape == (6, 8, 9, 1) and np.shares_memory(source.array, array)
    assert source.name == "arrays" and source.channels == 1 and list(source.names)[:2] == ["0", "1"]
    assert np.array_equal(source.read(3)[..., 0], array[3])
    many = open_source((array[..., None].repeat(5, -1), ["b", "a", "b", "a", "c", "c"]))
    assert many.channels == 5 and many.classes == ("a", "b", "c") and many.labels.tolist() == [1, 0, 1, 0, 2, 2]
    assert many.fingerprint != source.fingerprint and open_source(array.copy()).fingerprint == source.fingerprint
    assert open_source(source) is source


def test_large_npy_is_memory_mapped_and_npz_has_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.save(tmp_path / "set.npy", array)
    for most in (array.nbytes, array.nbytes - 1):
        monkeypatch.setattr(arrays, "MOST_LOADED", most)
        source = open_source(tmp_path / "set.npy")
        assert source.name == "set" and np.array_equal(source.array, array)
        assert source.fingerprint == open_source(array).fingerprint
        assert arrays.is_mapped(source.array) == (source.place is not None) == (most < array.nbytes)
    np.save(tmp_path / "turned.npy", np.asfortranarray(array))
    source = open_source(tmp_path / "turned.npy")
    assert np.array_equal(source.array, array) and not arrays.is_mapped(source.array) and source.place is None
    for keys in ({"images": array, "labels": np.arange(6)}, {"x": array, "y": np.arange(6)}):
        np.savez(tmp_path / "pair.npz", **keys)
        source = open_source(str(tmp_path / "pair.npz"))
        assert source.labels.tolist() == list(range(6)) and np.array_equal(source.array, array)
    np.savez_compressed(tmp_path / "bare.npz", array)
    assert open_source(tmp_path / "bare.npz").labels is None
    np.savez(tmp_path / "wrong.npz", x_train=array)
    with pytest.raises(DataError, match="holds x_train; wanted the pictures under `images`"):
        open_source(tmp_path / "wrong.npz")


def test_array_files_never_unpickle(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "trap.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "trap.npz", images=np.array([Trap()], object))
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "short.npy").write_bytes(
        b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9999999, 99), }"
    )
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    for name in ("trap.npy", "trap.npz", "bare.npy", "short.npy", "noise.npz"):
        with pytest.raises(DataError, match="cannot be read as numpy arrays"):
            open_source(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


# --- published sets ---


def _cifar(path: Path, n: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, 32, 32, 3), np.uint8)
    numbers = random.integers(0, 10, (n, labels), np.uint8)
    path.write_bytes(np.concatenate([numbers, images.transpose(0, 3, 1, 2).reshape(n, -1)], axis=1).tobytes())
    return images, numbers[:, -1]


def test_cifar_10_binary(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    parts = [_cifar(folder / f"data_batch_{k}.bin", 7, 1, k) for k in (1, 2)]
    test = _cifar(folder / "test_batch.bin", 5, 1, 9)
    source = open_source(folder)
    assert np.array_equal(source.array, np.concatenate([part[0] for part in parts]))
    assert source.labels.tolist() == np.concatenate([part[1] for part in parts]).tolist()
    assert source.name == "cifar-10-batches-bin" and source.classes is None
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    source = open_source(folder / "test_batch.bin")
    assert np.array_equal(source.array, test[0]) and source.classes == tuple(names) and source.name == "test_batch"
    (folder / "test_batch.bin").write_bytes((folder / "test_batch.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"not a multiple of 3,073"):
        open_source(folder / "test_batch.bin")
    with pytest.raises(DataError, match="no whole number of CIFAR rows"):
        (tmp_path / "other.bin").write_bytes(bytes(100))
        open_source(tmp_path / "other.bin")
    (folder / "test_batch.bin").write_bytes(b"\xff" * 3073)
    with pytest.raises(DataError, match="label 255"):
        open_source(folder / "test_batch.bin")


def test_cifar_100_binary_gives_fine_labels(tmp_path: Path) -> None:
    images, fine = _cifar(tmp_path / "train.bin", 6, 2)
    _cifar(tmp_path / "test.bin", 3, 2, 1)
    source = open_source(tmp_path)
    assert np.array_equal(source.array, images) and source.labels.tolist() == fine.tolist()
    assert len(open_source(tmp_path / "test.bin")) == 3


@pytest.mark.parametrize("name", ["data_batch_1", "train"])
def test_cifar_pickles_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({b"data": 1}))
    for data in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=r"Python version of CIFAR.*wanted the binary version"):
            open_source(data)


@pytest.mark.parametrize(
    "stem", ["train-images-idx3-ubyte", "t10k-images.idx3-ubyte", "emnist-letters-train-images-idx3-ubyte"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(stem: str, packed: bool, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 20), np.uint8)
    squeeze, ending = (gzip.compress, ".gz") if packed else (bytes, "")
    path = tmp_path / (stem + ending)
    path.write_bytes(squeeze(b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes() + images.tobytes()))
    assert open_source(path).labels is None
    beside = tmp_path / (stem.replace("images", "labels").replace("idx3", "idx1") + ending)
    beside.write_bytes(squeeze(b"\0\0\x08\x01" + np.array([5], ">u4").tobytes() + bytes([3, 1, 4, 1, 5])))
    for source in (open_source(path), open_source(tmp_path)):
        assert (
            np.array_equal(source.array[..., 0], images) and source.labels.tolist() == [3, 1, 4, 1, 5] and source.channels == 1
        )
    assert open_source(path).name.endswith("images")
    path.write_bytes(squeeze(b"\0\0\x08\x03" + np.array([2**31, 28, 20], ">u4").tobytes() + images.tobytes()))
    with pytest.raises(DataError, match="promises"):
        open_source(path)
    path.write_bytes(squeeze(b"\0\0\x08\x03" + np.array([6, 28, 20], ">u4").tobytes() + images.tobytes()))
    with pytest.raises(DataError, match="and has 2,800; download it again"):
        open_source(path)
    path.write_bytes(b"not an idx file at all")
    with pytest.raises(DataError, match="download it again"):
        open_source(path)


# --- anyone's data sets ---


class Set:
    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        item = self.items[i]
        if isinstance(item, Exception):
            raise item
        return item


def test_map_style_data_sets() -> None:
    gray, colour = np.full((4, 5), 9, np.uint8), np.full((4, 5, 3), 9, np.uint8)
    for items, channels in [
        ([gray, gray], 1),
        ([colour, colour], 3),
        ([(colour, 1), (colour, 0)], 3),
        ([Image.fromarray(gray), Image.fromarray(gray)], 1),
        ([Image.fromarray(gray), Image.fromarray(colour)], 3),
        ([{"image": Image.fromarray(colour), "label": 1}] * 2, 3),
        ([colour[..., :2]] * 2, 2),
    ]:
        source = open_source(Set(*items))
        assert source.channels == channels and source.name == "Set" and source.fingerprint is None and not source.parallel
        assert all((source.read(i) == 9).all() and source.read(i).shape == (4, 5, channels) for i in range(2))
    labels = [1, np.int64(0), "a cat", True, np.uint64(2**64 - 1), -(2**63), 2**63]
    labelled = open_source(Set(*[(colour, label) for label in labels]))
    assert [labelled.reader(i, None)[1] for i in range(7)] == [1, 0, None, 1, None, -(2**63), None]
    assert [open_source(labelled, labels=False).reader(i, None)[1] for i in range(7)] == [None] * 7
    assert open_source([colour, colour]).read(1).shape == (4, 5, 3)


def test_map_style_data_sets_that_fail() -> None:
    colour = np.zeros((4, 5, 3), np.uint8)
    source = open_source(Set(colour, KeyError("row 7"), colour / 255, colour[..., :1], "text", colour))
    for i, message in [(1, "raised KeyError: 'row 7'"), (2, "float64"), (3, "1 channels"), (4, "a str; wanted")]:
        with pytest.raises(BadPicture, match=message):
            source.read(i)
    for data, message in [(Set(), "it is empty"), (Set("a", "b"), "item 1: a str"), (Set(OSError("no disk")), "no disk")]:
        with pytest.raises(DataError, match=message):
            open_source(data)

    class Lazy(Image.Image):
        def load(self) -> None:
            raise EOFError

    with pytest.raises(BadPicture, match=r"^EOFError$"):
        lazy = Lazy()
        lazy._size, lazy._mode = (4, 4), "RGB"
        open_source(Set(colour, lazy, colour, colour)).read(1)
    late = open_source(Set(*[Image.new("L", (4, 4))] * 3, Image.new("RGB", (4, 4)), Image.new("L", (4, 4))))
    assert late.channels == 1
    with pytest.raises(BadPicture, match="mode RGB in a set whose first"):
        late.read(3)


def test_tensors_are_channels_first() -> None:
    torch = pytest.importorskip("torch")
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    source = open_source(Set((values, torch.tensor(3)), (values / 255, 4), (values.float(), 5), (values[0], 6)))
    assert source.channels == 2
    assert np.array_equal(source.read(0), values.permute(1, 2, 0).numpy())
    assert np.array_equal(source.read(1), source.read(0)) and source.reader(0, None)[1] == 3
    with pytest.raises(BadPicture, match=r"floats from 0 to 23; wanted 0\.\.1"):
        source.read(2)
    with pytest.raises(BadPicture, match="1 channels"):
        source.read(3)
    assert open_source(values.reshape(1, 2, 3, 4)).read(0).shape == (3, 4, 2)
