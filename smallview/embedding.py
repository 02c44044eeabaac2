"""Embeddings of any number of pictures, written as they come: one that was stopped goes on where it was, to the same bytes."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.data.pack import Pack, write_bad_files
from smallview.data.sources import Source
from smallview.errors import SmallviewError, StoppedError
from smallview.evaluation.features import Judged, features_of, view_text, weights_hash
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.files import check_folder, write_text
from smallview.output import row_file
from smallview.output.embed import ABOUT, BAD_FILES, INDEX, VERSION, shown, source_from, write_index
from smallview.output.row_file import RowFile
from smallview.records import Pictures
from smallview.settle import kept_threads, thread_count
from smallview.training.launch import StopRequest, lock_folder
from smallview.training.precision import choose_device, cpu_flags, fixed_rule
from smallview.training.prefetch import ahead
from smallview.training.progress import Counting
from smallview.views.making import centre_maker

BATCH = 256
DEPTH = 2
# What rows do not depend on; a number of threads stays as it was, another torch is told.
_FREE = ("encoder", "pictures", "source", "threads", "torch")
_CALLED = {
    "encoder_sha256": "another encoder",
    "pictures_sha256": "other pictures",
    "index_sha256": "pictures with other names or labels",
    "device": "another device",
}


@dataclass(frozen=True)
class Embedded:
    """Finished embeddings: their folder, the files in it, N, F and how many pictures were left out."""

    path: Path
    files: tuple[Path, ...]
    rows: int
    features: int
    left_out: int


@dataclass(frozen=True)
class _Work:
    """What is to be embedded, by what, and how."""

    subject: Judged
    pack: Pack
    pictures: Pictures
    normalize: bool
    threads: int
    device: torch.device
    source: Source | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.pack), self.subject.config.features

    def made_of(self, index: str, folder: Path) -> dict[str, Any]:
        """All that the rows depend on, what they are called, and where from this folder their pictures lie."""
        config = self.subject.config
        return {
            "format_version": VERSION,
            "encoder": self.subject.name,
            "encoder_sha256": weights_hash(self.subject.encoder),
            "architecture": config.architecture,
            "view": view_text(self.pictures, config.size),
            "mean": list(config.mean),
            "std": list(config.std),
            "normalize": self.normalize,
            "pictures": self.pack.name,
            "pictures_sha256": getattr(self.pictures, "hash", ""),
            "index_sha256": index,
            "source": source_from(self.source, folder),
            "batch_size": BATCH,
            "device": self.device.type,
            "threads": self.threads,
            "torch": torch.__version__,
        }

    def batches(self, start: int, lines: Counting) -> Generator[Tensor, None, None]:
        """Features [B, F] of the pictures from `start` on; views are made ahead of the encoder."""
        config, n = self.subject.config, len(self.pack)
        rule = fixed_rule(self.subject.encoder, self.device, cpu_flags())
        # at once: one with the encoder, DEPTH that wait, and one being made
        make = centre_maker(self.pictures, config.size, config.mean, config.std, self.threads, slots=DEPTH + 2)
        encoder = self.subject.encoder.to(self.device).to(memory_format=rule.memory_format)

        def on_wait(first: int, seconds: float) -> None:
            lines.say(f"no pictures for {seconds:.0f} s; reading {self.pack.names[first]} and those after it")

        def views_from(first: int) -> Tensor:
            return make(np.arange(first, min(first + BATCH, n)))

        with closing(ahead(views_from, range(start, n, BATCH), DEPTH, on_wait=on_wait)) as made:
            for features in features_of(encoder, (views for _, views in made), self.device, rule.memory_format):
                yield torch.nn.functional.normalize(features, dim=1) if self.normalize else features


def embed(
    what: str | Path | nn.Module,
    data: Any,
    *,
    out: str | Path | None = None,
    normalize: bool = False,
    size: int | None = None,
    weights: str | Path | None = None,
    weights_coverage: float = 1.0,
    stem: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    quiet: bool = False,
) -> npt.NDArray[np.float32]:
    """Backbone features float32 [N, F] of any data, in the source's order; what cannot be decoded is left out and said.

    what: a run folder, an encoder folder, the name of timm's weights on this machine, or a module [B, C, S, S] -> [B, F], which is fed
    pictures of `size` (32), normalised by mean 0.5 and deviation 0.25. data: as for `pretrain`; of each picture one centre view.
    normalize: rows of unit length. size: pixels of the view's side, where it is not the encoder's own. out: a folder to write them to as they come,
    as `smallview embed` does; what is returned is then a map of the file, so that they need not fit into memory, and the same call goes on
    with one that was stopped. weights: a file of weights for the named encoder or the module, with at least this share of its tensors.

    Raises:
        DataError: data that cannot be used, or of another number of channels. UsageError: nothing that can embed. SmallviewError:
        damaged weights, or a folder that cannot be written. StoppedError: stopped by a signal, what there is being saved.

    Example:
        >>> pictures = np.zeros((3, 8, 8, 3), np.uint8)
        >>> embed(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures, size=8).shape
        (3, 3)
    """
    options: dict[str, Any] = {"size": size, "weights": weights, "weights_coverage": weights_coverage, "stem": stem}
    options |= {"normalize": normalize, "device": device, "threads": threads}
    with Counting(quiet=quiet) as lines:
        if out is not None:
            embed_into(what, data, out, lines=lines, **options)
            return np.load(Path(out) / row_file.NAME, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        features, pack = embed_here(what, data, lines=lines, **options)
        if not quiet:
            for bad in pack.bad:
                print(f"left out: {bad.name} ({bad.reason})", file=sys.stderr)
        return features


def embed_here(
    what: str | Path | nn.Module | Judged, data: Any, *, lines: Counting, **options: Any
) -> tuple[npt.NDArray[np.float32], Pack]:
    """Backbone features float32 [N, F] in memory and the pack that they are of; options and errors as for embed."""
    with kept_threads():
        work = _open(what, data, lines=Counting(quiet=True), say=_say(lines), **options)
        features = np.empty(work.shape, np.float32)
        done = 0
        for batch in work.batches(0, lines):
            features[done : done + len(batch)] = batch.numpy()
            done += len(batch)
    return features, work.pack


def embed_into(
    what: str | Path | nn.Module | Judged,
    data: Any,
    out: str | Path,
    *,
    lines: Counting,
    command: Callable[[], str] | None = None,
    **options: Any,
) -> Embedded:
    """Write embeddings.npy, index.jsonl, embeddings.json, and bad_files.jsonl where some are, as the features come; options as for embed.

    The same call goes on with an unfinished one, to the same bytes; where encoder, pictures or settings are others, it starts anew, and
    says so. What an earlier call has finished stays until the new one is whole. command: gives the command that goes on. What is open
    already, an encoder or a pack, may be passed as it is.

    Raises:
        As embed, and LockedError: another process writes there.
    """
    folder = Path(out)
    check_folder(folder)
    say = _say(lines)
    with kept_threads():
        work = _open(what, data, lines=lines, say=say, **options)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return _embed_locked(work, folder, lines, say, command)


def _embed_locked(
    work: _Work, folder: Path, lines: Counting, say: Callable[[str], None], command: Callable[[], str] | None
) -> Embedded:
    with lock_folder(folder, warn=say):
        part = folder / f".{INDEX}.part"
        with _writing(folder):
            made_of = work.made_of(write_index(work.pack, part), folder)
        if _finished(folder, made_of):
            with _writing(folder):
                _tell_source(folder, made_of["source"])
                _clear(folder)
                _name_rest(work.pack, folder, part)
            say(f"{folder} has the embeddings of these pictures by this encoder already; nothing was left to do")
            return _embedded(folder, work)
        file = _begin(folder, work, made_of, say)
        try:
            _fill(file, work if file.made_of == made_of else _with_threads(work, file.made_of["threads"]), lines, command)
            with _writing(folder, file):
                _name_rest(work.pack, folder, part)
                file.finish(folder / ABOUT)
        finally:
            file.close()
        return _embedded(folder, work)


def _say(lines: Counting) -> Callable[[str], None]:
    return (lambda message: None) if lines.quiet else lines.say


def _tell_source(folder: Path, source: dict[str, str] | None) -> None:
    """The same pictures may lie elsewhere now."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if source is not None and about.get("source") != source:
        write_text(folder / ABOUT, json.dumps({**about, "source": source}, indent=1) + "\n")


def _open(
    what: str | Path | nn.Module | Judged,
    data: Any,
    *,
    lines: Counting,
    say: Callable[[str], None],
    normalize: bool = False,
    device: str = "auto",
    threads: int | None = None,
    **options: Any,
) -> _Work:
    threads, place = thread_count(threads), choose_device(device)
    torch.set_num_threads(threads)
    # a module of the user's own stays on its device and in its layout
    own = copy.deepcopy(what) if isinstance(what, nn.Module) else what
    subject = own if isinstance(own, Judged) else open_subject(own, say=say, **options)
    if isinstance(data, Pack):
        return _Work(subject, data, shown(data, subject.config), normalize, threads, place)
    source, pack = evaluation_pack(
        data, subject.config, threads=threads, progress=lambda done, total: lines("decoding", done, total)
    )
    return _Work(subject, pack, shown(pack, subject.config), normalize, threads, place, source)


def _with_threads(work: _Work, threads: int) -> _Work:
    torch.set_num_threads(threads)
    return replace(work, threads=threads)


def _differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what two embeddings differ, in words; empty where they are the same."""
    names = [name for name in other if name not in _FREE and one.get(name) != other[name]]
    if not names and not other["pictures_sha256"]:
        return "pictures that cannot be told from others"
    return ", ".join(_CALLED.get(name, f"another {name}") for name in names)


def _finished(folder: Path, made_of: Mapping[str, Any]) -> bool:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return not _differs(about, made_of) and row_file.digest_of(folder / row_file.NAME) == about["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _begin(folder: Path, work: _Work, made_of: dict[str, Any], say: Callable[[str], None]) -> RowFile:
    """The file to write to, at the row that is next."""
    before = row_file.begun(folder)
    differs = _differs(before, made_of) if before else ""
    go_on = bool(before) and not differs
    if differs:
        say(f"starting anew: what was begun in {folder} is of {differs}")
    elif not before and (folder / row_file.NAME).exists():
        say(f"the embeddings in {folder} are others; they stay until these are whole, which then take their place")
    if go_on:
        told = made_of
        made_of = {**made_of, "threads": before["threads"]}
        if before["threads"] != told["threads"]:
            say(f"going on with {before['threads']} threads as it began, not {told['threads']}: other threads give other bits")
        if before["torch"] != told["torch"]:
            say(f"it began with torch {before['torch']} and goes on with {told['torch']}: rounding may differ")
    with _writing(folder):
        room = 4 * work.shape[0] * work.shape[1]
        there = (folder / row_file.PART).stat().st_size if before else 0
        free = shutil.disk_usage(folder).free + there
        if free < room:
            raise SmallviewError(
                f"cannot write to {folder}: {free / 1e6:,.0f} MB free, {room / 1e6:,.0f} MB needed; make room, or choose another --out"
            )
        file = RowFile(folder, work.shape, made_of, go_on=go_on)
    if file.damaged:
        say(f"what was begun in {folder} is damaged; starting anew")
    elif go_on:
        say(f"going on at picture {file.rows:,} of {work.shape[0]:,}")
    return file


def _fill(file: RowFile, work: _Work, lines: Counting, command: Callable[[], str] | None) -> None:
    """Write the rows that are missing.

    Raises:
        StoppedError: by a signal; what there is was saved.
    """
    n = work.shape[0]
    with (
        StopRequest(lambda _: lines.say("stopping after this batch")) as stop,
        closing(work.batches(file.rows, lines)) as batches,
    ):
        for features in batches:
            with _writing(file.folder, file):
                file.write(features.numpy())
                if stop.requested:
                    file.save()
            lines("embedding", file.rows, n)
            if stop.requested and file.rows < n:
                told = f"; go on with: {command()}" if command is not None else "; the same call goes on"
                raise StoppedError(f"stopped at picture {file.rows:,} of {n:,}, and saved{told}")


def _name_rest(pack: Pack, folder: Path, part: Path) -> None:
    """The files beside the features."""
    part.replace(folder / INDEX)
    row_file._point("index named")
    if pack.bad:
        write_bad_files(pack, folder / BAD_FILES)
    elif (folder / ABOUT).exists():  # those of an earlier call
        (folder / BAD_FILES).unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """What a call left that was killed after its last step, or was begun for something else."""
    for name in (row_file.PART, row_file.STATE):
        (folder / name).unlink(missing_ok=True)


def _embedded(folder: Path, work: _Work) -> Embedded:
    names = [row_file.NAME, INDEX, ABOUT, *([BAD_FILES] if work.pack.bad else [])]
    return Embedded(folder, tuple(folder / name for name in names), *work.shape, len(work.pack.bad))


@contextlib.contextmanager
def _writing(folder: Path, file: RowFile | None = None) -> Iterator[None]:
    """Tells of a disk that cannot be written, and where the same command would go on."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        after = (
            "choose another --out"
            if file is None
            else "make room and run the same command again: it goes on with what is saved"
        )
        raise SmallviewError(f"cannot write to {folder}: {reason}; {after}") from error
