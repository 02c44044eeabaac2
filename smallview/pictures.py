"""The pictures of a run: decoded, masked, told about, and checked to be those that it began with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from smallview.config import RunConfig, smallest_side
from smallview.data.masking import AREA, MaskedPictures, Masks, mask_pictures
from smallview.data.packing import Pack, open_pack, write_bad_files
from smallview.data.sources import Source
from smallview.errors import DataError
from smallview.settings import load_toml

Say = Callable[[str], None]


def _telling(doing: str, say: Say) -> Callable[[int, int], None]:
    """What says every ten seconds how many pictures are done."""
    shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 10.0:
            shown = time.monotonic()
            say(f"{doing} {done:,}/{total:,} pictures")

    return progress


def decoded(source: Source, config: RunConfig, folder: Path, say: Say) -> Pack:
    """Every picture decoded once; what is broken is named and counted.

    Raises:
        DataError: fewer than two can be read.
    """
    told = _telling("decoding", say)
    pack = open_pack(source, short_side=smallest_side(config), threads=config.threads, progress=told)
    if source.skipped:
        say(f"{source.skipped:,} other file{'s' * (source.skipped > 1)} in {source.name} left out")
    if pack.bad:
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


def without_backgrounds(pack: Pack, masks: Masks | None, say: Say) -> MaskedPictures | None:
    """The copy of the pictures without backgrounds, where masks are given."""
    if masks is None:
        return None
    masked, share = mask_pictures(pack, masks, progress=_telling("masking", say))
    low, high = 100 * AREA[0], 100 * AREA[1]
    rest = f"; the others have a foreground under {low:g} % or over {high:g} % of the area and stay as they are"
    say(f"{100 * share:.0f} % of {len(pack):,} pictures are masked{rest if share < 1.0 else ''}")
    return masked


def check_same_pictures(folder: Path, pack: Pack) -> None:
    """Whether they are those that the run in the folder began with.

    Raises:
        DataError: they are others.
    """
    recorded = load_toml(folder / "run.toml").get("recorded", {})
    if recorded.get("data_hash") != pack.hash:
        raise DataError(
            f"the pictures changed since {folder} began: {recorded.get('pictures', '?')} then, {len(pack):,} now, with other content; "
            "bring the old ones back to go on, or add --fresh to start anew"
        )


def check_same_masks(folder: Path, masked: MaskedPictures | None) -> None:
    """Whether they leave the pixels that the run in the folder began with.

    Raises:
        DataError: they leave others.
    """
    recorded = load_toml(folder / "run.toml").get("recorded", {})
    if recorded.get("masks_hash") != (None if masked is None else masked.hash):
        raise DataError(
            f"the masks changed since {folder} began: they leave other pixels of the pictures; "
            "give the old ones to go on, or add --fresh to start anew"
        )
