"""Pictures as vectors of an encoder: embedded once and kept by hash, or as `smallview embed` wrote them; never all in memory.

Legend: N pictures, F features.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from smallview.data.pack import Pack
from smallview.data.pack_folders import cache_folder, cache_in
from smallview.data.sources import Source, open_source
from smallview.embedding import embed_here, embed_into
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.evaluation.features import Judged, weights_hash
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.output import row_file
from smallview.output.embed import ABOUT
from smallview.settings.fitting import printable
from smallview.settle import thread_count
from smallview.training.precision import choose_device
from smallview.training.progress import Counting
from smallview.vectors import Vectors, norms_of
from smallview.written import about_of, bad_files_of, mapped_of, read_written

MOST = 8 * 2**30  # bytes of embeddings that the cache keeps; the longest unused go first
NAMED = 3
Say = Callable[[str], None]


def vectors_of(
    what: str | Path | nn.Module | Judged,
    data: Any,
    *,
    say: Say,
    pictures: Any = None,
    keep: bool = True,
    shown: bool = False,
    device: str = "auto",
    threads: int | None = None,
    command: Callable[[], str] | None = None,
    **options: Any,
) -> Vectors:
    """Vectors of any pictures by an encoder, or of those in a folder that `smallview embed` wrote.

    Pictures are embedded once and kept in the user's cache, by the hash of the encoder and theirs. what, options: as for embed. pictures:
    where the pictures of written embeddings lie now. keep: whether the cache is used. shown: whether a sheet will show them.
    command: gives the command that goes on.

    Raises:
        DataError: data that cannot be used, embeddings of another encoder, pictures that changed since, or that are to be shown and nobody
            knows where they are. UsageError: nothing that can embed. StoppedError: stopped by a signal, what there is being saved.

    Example:
        >>> made = vectors_of(nn.Flatten(), np.eye(4, dtype=np.uint8).reshape(4, 2, 2), size=2, say=print, keep=False)
        >>> len(made), made.features.shape, made.names[3], made.usable.all()
        (4, (4, 12), '3', np.True_)
    """
    own = copy.deepcopy(what) if isinstance(what, nn.Module) else what  # a module of the user's own stays where it is
    subject = own if isinstance(own, Judged) else open_subject(own, say=say, **options)
    more: dict[str, Any] = {"device": device, "threads": threads}
    if (folder := _embeddings_folder(data)) is not None:
        made = read_written(subject, folder, pictures, say, threads)
    elif pictures is not None:
        raise UsageError(
            "--pictures is for embeddings that smallview embed wrote, and these are pictures already; leave it out"
        )
    elif keep:
        made = _kept(subject, open_source(data), say, command, more)
    else:
        with cache_in_passing():
            features, pack = embed_here(subject, data, lines=_Told(say), **more)
            made = _of_pack(subject, weights_hash(subject.encoder), features, open_source(data), pack)
    if shown and made.source is None:
        raise DataError(
            f"a sheet needs the pictures of {made.name}, and it is not known where they are; name them with --pictures"
        )
    _tell(made, say)
    return made


def _of_pack(subject: Judged, sha256: str, features: npt.NDArray[np.float32], source: Source, pack: Pack) -> Vectors:
    return Vectors(
        *(subject, sha256, features, norms_of(features), pack.names, pack.labels, pack.classes, source, pack.index),
        left_out=tuple(pack.bad),
        name=pack.name,
    )


def _tell(made: Vectors, say: Say) -> None:
    if made.left_out:
        few = ", ".join(f"{printable(bad.name)} ({bad.reason})" for bad in made.left_out[:NAMED])
        rest = ", ..." * (len(made.left_out) > NAMED)
        say(f"{len(made.left_out):,} unreadable picture{'s' * (len(made.left_out) > 1)} left out: {few}{rest}")
    if not len(idle := np.flatnonzero(~made.usable)):
        return
    few = ", ".join(printable(made.names[int(i)]) for i in idle[:NAMED]) + ", ..." * (len(idle) > NAMED)
    if len(idle) == len(made):
        raise DataError(f"the encoder gives no picture of {made.name} a vector with a direction (all zeros, or not finite)")
    say(
        f"{len(idle):,} picture{'s' * (len(idle) > 1)} without a direction (a vector of zeros, or not finite) left aside: {few}"
    )


class _Told(Counting):
    """Progress as messages, one every ten seconds."""

    def __init__(self, tell: Say) -> None:
        super().__init__()
        self.live, self.tell = False, tell

    def say(self, message: str) -> None:
        self.tell(message)


# ---- pictures, embedded once ----


@contextlib.contextmanager
def cache_in_passing() -> Iterator[None]:
    """What is cached inside is gone afterwards: for a few pictures that nobody asks for again."""
    with tempfile.TemporaryDirectory(prefix="smallview-") as folder, cache_in(Path(folder)):
        yield


def _kept(subject: Judged, source: Source, say: Say, command: Callable[[], str] | None, more: Mapping[str, Any]) -> Vectors:
    """From the cache where it is there, else embedded into it."""
    sha256, config, count = weights_hash(subject.encoder), subject.config, thread_count(more["threads"])
    pack, content = None, source.fingerprint
    if content is None:
        pack = evaluation_pack(source, config, threads=count)[1]
        content = pack.hash
    told = (sha256, content, config.size, config.mean, config.std, choose_device(more["device"]).type)
    folder = cache_folder() / "embeddings" / hashlib.sha256(repr(told).encode()).hexdigest()[:40]
    if pack is None and (made := _again(subject, sha256, source, folder)) is not None:
        say(f"embeddings of these {len(made):,} pictures by this encoder were kept; used again")
        return made
    lines = _Told(say)
    if pack is None:
        # labels are no part of what is kept: the same array may come with others
        pack = evaluation_pack(
            *(open_source(source, labels=False), config),
            threads=count,
            progress=lambda done, total: lines("decoding", done, total),
        )[1]
    try:
        embed_into(subject, pack, folder, normalize=True, lines=lines, command=command, **more)
    except SmallviewError as error:
        if type(error) is not SmallviewError:
            raise
        raise SmallviewError(str(error).replace("choose another --out", "set SMALLVIEW_CACHE to another folder")) from error
    _prune(folder)
    labels = pack.labels if source.labels is None else source.labels[pack.index]
    made = _of_pack(subject, sha256, mapped_of(folder), source, pack)
    return replace(made, labels=labels, classes=source.classes or pack.classes)


def _again(subject: Judged, sha256: str, source: Source, folder: Path) -> Vectors | None:
    """What is kept of these pictures, if all of it is."""
    try:
        about = about_of(folder)
        bad = bad_files_of(folder)
        if row_file.digest_of(folder / row_file.NAME) != about["sha256"]:
            return None
        features = mapped_of(folder)
        os.utime(folder / ABOUT)
    except (OSError, ValueError, KeyError, TypeError, SmallviewError):
        return None
    lost = {each.name for each in bad}
    kept = [i for i, name in enumerate(source.names) if name not in lost] if lost else range(len(source))
    positions = np.fromiter(kept, np.int64, len(kept))
    if len(features) != len(positions) or features.shape[1] != subject.config.features:
        return None
    return Vectors(
        *(subject, sha256, features, norms_of(features), source.names if not lost else source.names.take(positions)),
        *(None if source.labels is None else source.labels[positions], source.classes, source, positions, bad),
        name=source.name,
    )


def _prune(newest: Path) -> None:
    """Keep the cache's embeddings below MOST bytes; only folders that are whole go."""
    found = []
    for folder in newest.parent.iterdir():
        with contextlib.suppress(OSError):
            found.append(((folder / ABOUT).stat().st_mtime, (folder / row_file.NAME).stat().st_size, folder))
    held = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if held <= MOST:
            return
        if folder != newest:
            shutil.rmtree(folder, ignore_errors=True)
            held -= size


# ---- embeddings that were written ----


def _embeddings_folder(data: Any) -> Path | None:
    """The folder that `smallview embed` wrote, or began, if that is what data names."""
    if not isinstance(data, (str, os.PathLike)) or (isinstance(data, str) and data.startswith("hf:")):
        return None
    folder = Path(data).expanduser()
    marks = (ABOUT, row_file.NAME, row_file.STATE)
    return folder if any((folder / mark).is_file() for mark in marks) else None
