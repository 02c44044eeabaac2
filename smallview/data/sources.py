"""Where pictures come from: files, tar shards, arrays, a published set or anyone's data set, all behind one small value."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import Labels, Place, as_labels, as_pictures, load_npy, load_npz
from smallview.data.datasets import MapStyle
from smallview.data.decoding import Pixels, decode, decode_file, describe, looks_like_picture
from smallview.data.hugging_face import image_column, is_stream, open_named, stored_pictures
from smallview.data.listing import ENDINGS, BadFile, Entry, Listing, PathTable, fingerprint, scan, stamps
from smallview.data.published import find_published
from smallview.data.tar_shards import expand, find_shards, index_shards, is_shard, looks_like_tar
from smallview.errors import DataError
from smallview.files import close_path

ACCEPTED = (
    "a folder of pictures or of tar shards, a list of paths, shard-{000..099}.tar, hf:NAME, a uint8 array [N, H, W] or"
    " [N, H, W, C], (images, labels), .npy, .npz, CIFAR .bin or idx files"
)
_SPLITS = frozenset({"train", "test", "val", "valid", "validation"})
Reader = Callable[[int, int | None], tuple[Pixels, int | None]]


@dataclass(frozen=True, eq=False)
class Source:
    """Pictures in a fixed order, undecoded where they are files.

    names [N] are relative paths ("/" between the parts) or numbers; labels int64 [N] or None, and `classes` their names or
    None. `array` is uint8 [N, H, W, C] where the pictures are one array already, `place` its file where it is too large to be in
    memory. `fingerprint` changes with the pictures (None:
    only reading all of them would tell). `skipped` counts files left out quietly, `bad` names folders that could not be listed.
    `reader(i, short_side)` gives (pixels, label or None); `parallel` says whether several threads may call it at once.
    `stamps` uint64 [N] tells each picture from its earlier or later self without reading it, where files say their times.
    """

    name: str
    names: PathTable
    channels: int
    reader: Reader = field(repr=False)
    labels: Labels | None = field(default=None, repr=False)
    classes: tuple[str, ...] | None = None
    array: Pixels | None = field(default=None, repr=False)
    fingerprint: str | None = None
    skipped: int = 0
    root: Path | None = None
    bad: tuple[BadFile, ...] = ()
    parallel: bool = True
    stamps: npt.NDArray[np.uint64] | None = field(default=None, repr=False)
    place: Place | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int, short_side: int | None = None) -> Pixels:
        """Picture i, uint8 [H, W, C]; raises BadPicture. With `short_side` a large JPEG may come back smaller (`decode`)."""
        return self.reader(i, short_side)[0]


def open_source(data: Any, *, labels: bool = True) -> Source:
    """The pictures of `data` as a Source: see ACCEPTED, and any data set with `__len__` and `__getitem__`.

    Labels come from class folders (each picture below one of two or more top-level folders, unless these are all called train,
    test, val, valid or validation), from .cls or .json members of tar shards, from the published set, the .npz, the pair or the
    data set; `labels=False` ignores them. Nothing is decoded yet. Only `hf:NAME` of no folder uses the network.

    Raises:
        DataError: data that cannot be meant. SmallviewError: `hf:` without the library it needs.

    Example:
        >>> source = open_source((np.zeros((3, 8, 8), np.uint8), [0, 1, 1]))
        >>> len(source), source.channels, source.labels.tolist(), source.read(2).shape
        (3, 1, [0, 1, 1], (8, 8, 1))
    """
    source = _open(data)
    if labels:
        return source
    reader = source.reader
    return replace(source, labels=None, classes=None, reader=lambda i, short_side: (reader(i, short_side)[0], None))


def content_hash(pixels: Pixels, heights: Any, widths: Any, channels: int) -> str:
    """SHA-256 over the pixels of all pictures, back to back, then their sizes: the same for an array and for a pack of it."""
    return finish_hash(hashlib.sha256(pixels.reshape(-1).data), heights, widths, channels)


def finish_hash(digest: Any, heights: Any, widths: Any, channels: int) -> str:
    """`content_hash` from a digest that the pixels have gone through already."""
    for sizes in (heights, widths, [channels]):
        digest.update(np.ascontiguousarray(sizes, dtype="<i8").tobytes())
    return str(digest.hexdigest())


def _open(data: Any) -> Source:
    if isinstance(data, Source):
        return data
    if isinstance(data, str) and data.startswith("hf:"):
        return replace(_from_dataset(open_named(data[3:])), name=data[3:].rstrip("/").rpartition("/")[2] or "pictures")
    if isinstance(data, (str, os.PathLike)):
        return _from_path(Path(data).expanduser())
    if isinstance(data, tuple) and len(data) == 2 and not _is_path(data[1]):
        source = _open(data[0])
        numbers, classes = as_labels(data[1], len(source))
        return replace(source, labels=numbers, classes=classes)
    if isinstance(data, np.ndarray):
        return _from_array(as_pictures(data), "arrays")
    if isinstance(data, Sequence) and (len(data) == 0 or all(_is_path(entry) for entry in data)):
        return _from_list([Path(entry).expanduser() for entry in data])
    if is_stream(data):
        raise DataError(
            f"data is a {type(data).__name__}, a stream: every epoch needs each picture once, in another order, and a stream has"
            " neither number nor order; save it as tar shards or files and name these"
            f" (wanted {ACCEPTED}, or a data set with __len__ and __getitem__)"
        )
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, (dict, bytes)):
        return _from_dataset(data)
    if isinstance(data, dict) and any(image_column(part) is not None for part in data.values()):
        raise DataError(
            f"data is a {type(data).__name__} with the splits {', '.join(map(str, data))}; pass one of them: data[...]"
        )
    raise DataError(f"data is a {type(data).__name__}; wanted {ACCEPTED}, or a data set with __len__ and __getitem__")


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _from_path(path: Path) -> Source:
    try:
        if not path.exists():
            shards = expand(str(path))
            if len(shards) > 1 or shards[0] != path:
                return _from_shards(shards)
            raise DataError(f"there is no {path}{close_path(path)}; wanted {ACCEPTED}")
        published = find_published(path)
        if published is not None:
            source = _from_array(published.images, published.name, path)
            return replace(source, labels=published.labels, classes=published.classes)
        if path.is_dir():
            return _from_folder(path)
        if path.suffix == ".npy":
            array, place = load_npy(path)
            return replace(_from_array(array, path.stem, path), place=place)
        if path.suffix == ".npz":
            images, numbers = load_npz(path)
            source = _from_array(images, path.stem, path)
            if numbers is None:
                return source
            labels, classes = as_labels(numbers, len(source))
            return replace(source, labels=labels, classes=classes)
        with path.open("rb") as file:
            head = file.read(512)
        if is_shard(path) or looks_like_tar(head):
            return replace(_from_shards([path]), root=path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; wanted {ACCEPTED}") from error
    if looks_like_picture(head) or os.fsencode(path.suffix.lower()) in ENDINGS:
        return replace(_from_list([path]), name=path.stem)
    raise DataError(f"{path} is no set of pictures ({describe(head)}); wanted {ACCEPTED}")


def _from_folder(path: Path) -> Source:
    listing = scan(path)
    if len(listing.names) == 0:
        if shards := find_shards(path):
            return replace(_from_shards(shards), name=path.resolve().name or "shards", root=path)
        raise DataError(_empty(path, listing))
    labels, classes = _class_folders(listing)
    return Source(
        name=path.resolve().name or "pictures",
        names=listing.names,
        channels=3,
        reader=_file_reader(os.fsencode(path), listing.names),
        labels=labels,
        classes=classes,
        fingerprint=listing.fingerprint,
        skipped=listing.skipped,
        root=path,
        bad=listing.bad,
        stamps=listing.stamps,
    )


def _from_shards(files: list[Path]) -> Source:
    shards = index_shards(files)
    return Source(
        name=files[0].stem if len(files) == 1 else os.path.basename(os.path.dirname(os.path.abspath(files[0]))) or "shards",
        names=shards.names,
        channels=3,
        reader=lambda i, short_side: (decode(shards.read(i), short_side=short_side), None),
        labels=shards.labels,
        fingerprint=shards.fingerprint,
        skipped=shards.skipped,
        bad=shards.bad,
        stamps=shards.stamps,
    )


def _file_reader(root: bytes, names: PathTable) -> Reader:
    def read(i: int, short_side: int | None) -> tuple[Pixels, int | None]:
        return decode_file(os.path.join(root, names.raw(i)), 3, short_side=short_side), None

    return read


def _empty(path: Path, listing: Listing) -> str:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in listing.left_out.most_common(4))
    others = f"{listing.skipped:,} other file{'' if listing.skipped == 1 else 's'}" + (f" ({kinds})" if kinds else "")
    closed = f" and {len(listing.bad)} folder(s) that cannot be listed" if listing.bad else ""
    return (
        f"no pictures in {path}: found 0 images and {others}{closed}; wanted jpg, png, gif, webp, bmp, ppm, tga, tif, jp2 or"
        " avif files at any depth; check the path"
    )


def _class_folders(listing: Listing) -> tuple[Labels | None, tuple[str, ...] | None]:
    """Labels where every picture lies below a top-level folder and there are two or more of these, empty ones counted."""
    folders = listing.folders
    if len(folders) < 2 or all(folder.lower() in _SPLITS for folder in folders):
        return None, None
    number = {folder.encode("utf-8", "surrogateescape"): k for k, folder in enumerate(folders)}
    labels = np.empty(len(listing.names), np.int64)
    for i in range(len(labels)):
        top, slash, _ = listing.names.raw(i).partition(b"/")
        if not slash:
            return None, None
        labels[i] = number[top]
    return labels, folders


def _from_list(paths: list[Path]) -> Source:
    """Files in the order given; a missing one is a bad picture like any other, told when it is read."""
    if not paths:
        raise DataError(f"an empty list of paths; wanted {ACCEPTED}")
    if all(is_shard(path) for path in paths):
        return _from_shards(paths)
    absolute = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    names = PathTable.of(os.fsencode(os.path.relpath(path, common).replace(os.sep, "/")) for path in absolute)
    entries = [_entry(path) for path in absolute]
    return Source(
        name=os.path.basename(common) or "pictures",
        names=names,
        channels=3,
        reader=_file_reader(os.fsencode(common), names),
        fingerprint=fingerprint(entries),
        stamps=stamps(entries),
    )


def _entry(path: str) -> Entry:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.fsencode(path), -1, -1
    return os.fsencode(path), status.st_size, status.st_mtime_ns


def _from_array(images: Pixels, name: str, root: Path | None = None) -> Source:
    n, height, width, channels = images.shape
    return Source(
        name=name,
        names=PathTable.numbered(n),
        channels=channels,
        reader=lambda i, short_side: (images[i], None),
        array=images,
        fingerprint=content_hash(images, np.full(n, height), np.full(n, width), channels),
        root=root,
    )


def _from_dataset(data: Any) -> Source:
    column = image_column(data)
    if column is not None and len(data):
        stored = stored_pictures(data, column)
        return Source(
            name=stored.name,
            names=PathTable.numbered(len(data)),
            channels=3,
            reader=lambda i, short_side: (stored.read(i, short_side), None),
            labels=stored.labels,
            classes=stored.classes,
            fingerprint=stored.fingerprint,
        )
    pictures = MapStyle(data)
    classes = getattr(data, "classes", None)
    named = isinstance(classes, (list, tuple)) and len(classes) > 0 and all(isinstance(entry, str) for entry in classes)
    return Source(
        name=type(data).__name__,
        names=PathTable.numbered(len(pictures)),
        channels=pictures.channels,
        reader=lambda i, short_side: pictures.read(i),
        classes=tuple(classes) if named and classes else None,
        parallel=False,  # nobody promised that this data set may be read from two threads
    )
