"""Pictures in WebDataset tar shards: the headers are read once, then any picture by its place in the file.

A sample is a run of members with one key, the path up to the first dot of its base name: `n01/0042.jpg`, `n01/0042.cls`. Its
picture is the member with a picture's ending (`0042.jpg` before `0042.left.jpg`, else the first), its label the whole number in
`.cls`, or in `.json` under "label". Nothing is unpacked, names are never paths, and a size counts only as far as there are bytes.
Plain tar alone (ustar, GNU, pax): in a compressed one no picture can be reached without reading all before it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from smallview.data.arrays import Labels
from smallview.data.decoding import MOST_BYTES, BadPicture, Unreadable
from smallview.data.listing import ENDINGS, BadFile, PathTable, fingerprint, stamp
from smallview.errors import DataError

BLOCK = 512
MOST_SHARDS = 1_000_000
_MOST_NAME = 2**16  # a long name or pax record above this is no name
_MOST_LABEL = 2**20
_REGULAR = (b"0", b"\0", b"7")
_MOST_SIZE = 2**62
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_OCTAL = re.compile(rb"[0-7]+")
_RANGE = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")


@dataclass(frozen=True, eq=False)
class Shards:
    """N pictures in tar files: picture i is sizes[i] bytes at offsets[i] of files[shard[i]].

    shard int32 [N]; offsets, sizes int64 [N]; names [N] ("shard.tar/member"); labels int64 [N] where every sample has one, else
    None; stamps uint64 [N] of (size, time); `bad` names cut shards, `skipped` counts members that are no part of a sample.
    """

    files: tuple[Path, ...]
    states: tuple[tuple[int, int], ...]
    shard: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    names: PathTable
    labels: Labels | None
    stamps: npt.NDArray[np.uint64]
    fingerprint: str
    skipped: int
    bad: tuple[BadFile, ...]

    def read(self, i: int) -> bytes:
        """The bytes of picture i, from any thread; BadPicture where the shard ends too early, is another by now, or is gone."""
        k, size = int(self.shard[i]), int(self.sizes[i])
        there = max(0, self.states[k][0] - int(self.offsets[i]))
        if there < size:
            raise BadPicture(f"cut: the shard holds {there:,} of its {size:,} bytes")
        if size > MOST_BYTES:
            raise BadPicture(f"{size / 2**20:,.0f} MiB in its shard (limit {MOST_BYTES // 2**20:,})")
        try:
            with open(self.files[k], "rb", buffering=0) as file:
                if _state(file) != self.states[k]:
                    raise Unreadable(f"{self.files[k].name} changed since it was listed")
                return _bytes_at(file, int(self.offsets[i]), size)
        except OSError as error:
            raise Unreadable(f"{self.files[k].name} cannot be read: {error.strerror or type(error).__name__}") from error


@dataclass(frozen=True)
class Member:
    """One regular file in a tar: its name, where its bytes begin, how many it promises, its time in seconds.

    key and ending are the name's parts around the first dot of its last part, the ending in lower case; None and empty where the
    name has no ending or is hidden.
    """

    name: bytes
    key: bytes | None
    ending: bytes
    offset: int
    size: int
    time: int


class Damaged(Exception):
    """A tar whose next header cannot be one; its text says where and why."""


def looks_like_tar(head: bytes) -> bool:
    """Whether a file's first 512 bytes are the header of a tar's member."""
    return len(head) >= BLOCK and _checks(head[:BLOCK])


def is_shard(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a tar shard, compressed ones included: those are told what to do."""
    return os.fspath(path).lower().endswith((".tar", *_COMPRESSED))


def expand(pattern: str) -> list[Path]:
    """The paths of a brace pattern; both ends belong to it, zeros in front are kept.

    Raises:
        DataError: over a million of them.

    Example:
        >>> [path.name for path in expand("shards/train-{008..010}.tar")]
        ['train-008.tar', 'train-009.tar', 'train-010.tar']
    """
    parts = _RANGE.split(pattern)
    ends = list(zip(parts[1::3], parts[2::3], strict=True))
    counts = [abs(int(last) - int(first)) + 1 for first, last in ends]
    if np.prod(counts, dtype=float) > MOST_SHARDS:
        raise DataError(f"{pattern} stands for more than {MOST_SHARDS:,} shards; wanted a range of files that there are")
    runs = [[f"{k:0{len(first)}d}" for k in _between(int(first), int(last))] for first, last in ends]
    return [
        Path("".join(word for pair in zip(parts[::3], (*numbers, ""), strict=True) for word in pair))
        for numbers in product(*runs)
    ]


def find_shards(folder: Path) -> list[Path]:
    """The .tar files below a folder, at any depth, bytewise by relative path; hidden ones and linked folders are left out."""
    found = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top) / name for name in files if is_shard(name) and not name.startswith(".")]
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(folder).as_posix()))


def index_shards(files: list[Path]) -> Shards:
    """Read the headers of these tar files, and the labels; 100,000 pictures with labels take some 2 s.

    Raises:
        DataError: a shard is missing, cannot be read, is compressed or no tar, or a header within it is damaged; no picture.
    """
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
    titles = [os.fsencode(os.path.relpath(os.path.abspath(path), common).replace(os.sep, "/")) for path in files]
    names: list[bytes] = []
    labels: list[int | None] = []
    places: list[tuple[int, int, int, int]] = []
    states, bad, skipped = [], [], 0
    for k, path in enumerate(files):
        if path.name.lower().endswith(_COMPRESSED):
            raise DataError(
                f"{path} is compressed, and in a compressed tar no picture can be reached alone; unpack it once to plain .tar"
                " (gunzip, unxz, ...), which is hardly larger, since pictures are compressed already"
            )
        if not path.is_file():  # opening a named pipe would wait for ever
            raise DataError(
                f"there is no shard {path}; wanted {len(files):,} .tar file{'s' * (len(files) > 1)}, {files[0]} to {files[-1]}"
            )
        try:
            with open(path, "rb", buffering=0) as file:
                states.append(_state(file))
                rest = Rest()
                for sample in _samples(members(file, rest)):
                    picture = _picture(sample)
                    if picture is None:
                        skipped += len(sample)
                        continue
                    names.append(titles[k] + b"/" + picture.name)
                    labels.append(_label(sample, file))
                    places.append((k, picture.offset, picture.size, picture.time))
        except OSError as error:
            raise DataError(f"the shard {path} cannot be read: {error.strerror}; wanted a .tar file") from error
        except Damaged as error:
            raise DataError(f"{path} {error}") from error
        skipped += rest.skipped
        if rest.cut:
            bad.append(BadFile(os.fsdecode(titles[k]), f"cut: {rest.cut}; what stood behind is lost"))
    if not names:
        raise DataError(
            f"no pictures in {len(files):,} tar shard{'s' * (len(files) > 1)}, e.g. {files[0]}; wanted members such as"
            " 000001.jpg and 000001.cls"
        )
    table = np.array(places, np.int64)
    return Shards(
        files=tuple(files),
        states=tuple(states),
        shard=table[:, 0].astype(np.int32),
        offsets=table[:, 1],
        sizes=table[:, 2],
        names=PathTable.of(names),
        labels=None if None in labels else np.array(labels, np.int64),
        stamps=stamp(table[:, 2], table[:, 3]),
        fingerprint=fingerprint((title, *state) for title, state in zip(titles, states, strict=True)),
        skipped=skipped,
        bad=tuple(bad),
    )


@dataclass
class Rest:
    """What `members` met beside members: how many it left out (folders, links, devices), and how the file was cut, if it was."""

    skipped: int = 0
    cut: str = ""


def members(file: BinaryIO, rest: Rest) -> Iterator[Member]:
    """The regular files of a plain tar in their order; names and sizes of GNU and pax extensions are followed.

    Raises:
        Damaged: where a header should be is none.
    """
    end = os.fstat(file.fileno()).st_size
    position, long_name, long_size = 0, b"", -1
    while True:
        header = _bytes_at(file, position, BLOCK)
        if len(header) < BLOCK:
            rest.cut = "it ends without the two empty blocks that close a tar"
            return
        if header == bytes(BLOCK):
            return
        if not _checks(header):
            what = "is no tar file" if position == 0 else f"is damaged: no header at byte {position:,}"
            raise Damaged(f"{what}; get it again, or leave it out")
        kind, size = header[156:157], _number(header[124:136])
        extension = kind in (b"L", b"x")
        if long_size >= 0 and not extension:
            size = long_size
        if not 0 <= size <= _MOST_SIZE:
            raise Damaged(f"is damaged: no size in the header at byte {position:,}; get it again, or leave it out")
        body = position + BLOCK
        position = body + -(-size // BLOCK) * BLOCK
        if extension:
            if size > _MOST_NAME:
                raise Damaged(f"is damaged: a name of {size:,} bytes at byte {body:,}; get it again, or leave it out")
            data = _bytes_at(file, body, size)
            if kind == b"L":
                long_name = data.split(b"\0", 1)[0]
            else:
                long_name, long_size = _pax(data, long_name, long_size)
            continue
        if kind in _REGULAR:
            name = long_name or _name(header)
            yield Member(name, *_split(name), body, size, min(max(0, _number(header[136:148])), _MOST_SIZE))
        else:
            rest.skipped += kind not in (b"5", b"g", b"K")
        long_name, long_size = b"", -1
        if body + size > end:
            rest.cut = f"its last member promises {size:,} bytes and {max(0, end - body):,} are there"
            return


def _samples(found: Iterator[Member]) -> Iterator[list[Member]]:
    """Runs of members with one key; a member without an ending or with a hidden name has no key and stands alone."""
    sample = list[Member]()
    for member in found:
        if sample and (member.key is None or member.key != sample[-1].key):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _split(name: bytes) -> tuple[bytes | None, bytes]:
    folder, slash, base = name.rpartition(b"/")
    stem, dot, ending = base.partition(b".")
    return (folder + slash + stem, ending.lower()) if stem and dot and ending else (None, b"")


def _picture(sample: list[Member]) -> Member | None:
    pictures = [member for member in sample if b"." + member.ending.rpartition(b".")[2] in ENDINGS]
    return min(pictures, key=lambda member: b"." in member.ending, default=None)


def _label(sample: list[Member], file: BinaryIO) -> int | None:
    members = {member.ending: member for member in sample}
    for ending in (b"cls", b"json"):
        if ending not in members or members[ending].size > _MOST_LABEL:
            continue
        data = _bytes_at(file, members[ending].offset, members[ending].size)
        if ending == b"cls":
            return int(data) if re.fullmatch(rb"\s*-?[0-9]{1,18}\s*", data) else None
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            return None
        label = record.get("label") if isinstance(record, dict) else None
        return label if type(label) is int and abs(label) < 2**63 else None
    return None


def _checks(header: bytes) -> bool:
    """Whether the header's own checksum is right: the sum of its bytes, the checksum's field taken as spaces."""
    wanted = _number(header[148:156])
    return wanted == sum(header) - sum(header[148:156]) + 8 * 32


def _number(field: bytes) -> int:
    """An octal number, or one of base 256 where the first bit is set; -1 where it is neither."""
    if field[:1] in (b"\x80", b"\xff"):
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    text = field.split(b"\0", 1)[0].strip()
    return int(text, 8) if _OCTAL.fullmatch(text) else (0 if not text else -1)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(data: bytes, name: bytes, size: int) -> tuple[bytes, int]:
    """The path and size among the records of a pax header, each `length key=value` and a line's end."""
    while match := re.match(rb"([0-9]{1,6}) ([^=]+)=", data):
        length = int(match[1])
        value = data[match.end() : length - 1]
        if match[2] == b"path":
            name = value.split(b"\0", 1)[0]
        elif match[2] == b"size" and re.fullmatch(rb"[0-9]{1,18}", value):
            size = int(value)
        data = data[max(length, match.end()) :]
    return name, size


def _between(first: int, last: int) -> range:
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)


def _bytes_at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):  # file systems over a network may give less at a time
        data += more
    return data


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
