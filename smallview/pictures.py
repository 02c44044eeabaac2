"""The pictures of a run: decoded, told about, and checked to be those that it began with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np

from smallview.config import RunConfig, smallest_side
from smallview.data.changes import difference, inventory, read_inventory, write_inventory
from smallview.data.pack import Pack, write_bad_files
from smallview.data.pack_coding import QUALITY
from smallview.data.packing import discard_older, open_pack
from smallview.data.sources import Source
from smallview.errors import DataError
from smallview.settings import load_toml

INVENTORY = "pictures.npz"
Say = Callable[[str], None]


def telling(doing: str, say: Say) -> Callable[[int, int], None]:
    """What says every ten seconds how many pictures are done."""
    shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 10.0:
            shown = time.monotonic()
            say(f"{doing} {done:,}/{total:,} pictures")

    return progress


@contextmanager
def told_when_stuck(
    progress: Callable[[int, int], None], say: Say, name: Callable[[int], str], patience: float = 60.0
) -> Iterator[Callable[[int, int], None]]:
    """The progress function, which counts pictures done; when none has been done for `patience` seconds, the next one's name is said."""
    done, moved, over = 0, time.monotonic(), threading.Event()

    def note(now_done: int, total: int) -> None:
        nonlocal done, moved
        done, moved = now_done, time.monotonic()
        progress(now_done, total)

    def look() -> None:
        nonlocal moved
        waited = 0.0
        while not over.wait(patience / 4):
            idle = time.monotonic() - moved
            if idle < patience:
                waited = 0.0
            elif idle - waited >= patience:
                waited = idle
                say(f"no picture for {idle:.0f} s; reading {name(done)}")

    thread = threading.Thread(target=look, name="smallview-patience", daemon=True)
    thread.start()
    try:
        yield note
    finally:
        over.set()
        thread.join()


def decoded(source: Source, config: RunConfig, folder: Path | None, say: Say, short_side: int | None = None) -> Pack:
    """Every picture decoded once; what is broken is named in the folder, if there is one, and counted.

    short_side: what the pictures are shrunk to, the settings' own need by default.

    Raises:
        DataError: fewer than two can be read.
    """
    told = telling("decoding", say)
    side = short_side or smallest_side(config)
    with told_when_stuck(told, say, lambda i: source.names[min(i, len(source) - 1)]) as told:
        pack = open_pack(source, short_side=side, kind=config.pack, threads=config.threads, progress=told, keep_older=True)
    if pack.kind == "jpeg":
        say(
            f"{len(pack):,} pictures are kept as JPEGs of quality {QUALITY}, their short side up to {side:,} px; "
            "--set pack=raw keeps every pixel and takes several times the room"
        )
    if source.skipped:
        say(f"{source.skipped:,} other file{'s' * (source.skipped > 1)} in {source.name} left out")
    if pack.bad and folder is not None:
        write_bad_files(pack, folder / "bad_files.jsonl")
        say(
            f"{len(pack.bad):,} unreadable picture{'s' * (len(pack.bad) > 1)} left out, e.g. {pack.bad[0].name} ({pack.bad[0].reason}); "
            f"all are named in {folder / 'bad_files.jsonl'}"
        )
    small = int(((pack.heights < config.size) | (pack.widths < config.size)).sum())
    if small:
        say(
            f"{small:,} of {len(pack):,} pictures are smaller than the views ({config.size} px) and will be enlarged; "
            "a smaller --size costs less"
        )
    if len(pack) < 2:
        raise DataError(f"{source.name} holds {len(pack)} readable picture; wanted at least 2")
    return pack


def changed_pictures(folder: Path, source: Source, pack: Pack, accept: bool) -> str:
    """In what the pictures differ from those that the run in the folder began with; empty where they are the same.

    Raises:
        DataError: they differ, and that is not accepted.
    """
    recorded = load_toml(folder / "run.toml").get("recorded", {})
    if recorded.get("data_hash") == pack.hash:
        return ""
    before = read_inventory(folder / INVENTORY)
    told = "" if before is None else str(difference(before, inventory(source, pack.index)))
    told = told or f"{recorded.get('pictures', '?')} then, {len(pack):,} now, with other content"
    return told if accept else _refuse(folder, told)


def changed_source(folder: Path, source: Source, accept: bool) -> str:
    """In what all the pictures of a source differ, by name, size and time, from those that `record_source` kept; empty where they do not.

    Raises:
        DataError: they differ, and that is not accepted.
    """
    if (
        source.fingerprint is not None
        and load_toml(folder / "run.toml").get("recorded", {}).get("fingerprint") == source.fingerprint
    ):
        return ""
    before = read_inventory(folder / INVENTORY)
    told = "" if before is None else str(difference(before, inventory(source, np.arange(len(source)))))
    return told if not told or accept else _refuse(folder, told)


def record_source(folder: Path, source: Source) -> None:
    """Keep in the folder what `changed_source` compares with."""
    write_inventory(inventory(source, np.arange(len(source))), folder / INVENTORY)


def _refuse(folder: Path, told: str) -> NoReturn:
    raise DataError(
        f"the pictures changed since {folder} began: {told}; bring the old ones back to go on, "
        "add --accept-data-change to go on with these, or --fresh to start anew"
    )


def record_pictures(folder: Path, source: Source, pack: Pack, config: RunConfig) -> None:
    """Keep beside the run by which names, sizes and times a change of its pictures will be told; older packs of them are done with."""
    write_inventory(inventory(source, pack.index), folder / INVENTORY)
    discard_older(source, short_side=smallest_side(config), kind=pack.kind)
