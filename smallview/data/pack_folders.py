"""Folders of packs and of packs in the making: where they are, whose they are, and how they go without taking anything else along."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from smallview.errors import SmallviewError

try:
    import fcntl
except ImportError:  # Windows: leftovers are told by their age
    fcntl = None  # type: ignore[assignment]

BUILDING = ".building-"
LOCKS = fcntl is not None
_KEPT = 7 * 86400.0  # seconds that a killed build waits to be gone on with
_RESUMABLE = re.compile(r"\.building-(?P<family>[A-Za-z0-9_-]+)\.(?P<key>[0-9a-z]{1,32})")
_OURS = re.compile(
    r"lock|journal|meta(\.copy)?\.json|data-\d{5,}\.(bin|npy)|pixels\.bin|(heights|widths|index|labels)\.npy"  # the last: format 1
)

_instead: ContextVar[Path | None] = ContextVar("cache folder instead", default=None)


@contextlib.contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """What is cached inside goes to this folder: for pictures that nobody will ask for again."""
    token = _instead.set(folder)
    try:
        yield
    finally:
        _instead.reset(token)


def cache_folder(cache: Path | None = None) -> Path:
    """Where packs are kept: `cache`, or what `cache_in` says, or $SMALLVIEW_CACHE, or smallview/ in $XDG_CACHE_HOME or ~/.cache."""
    if cache is not None:
        return Path(cache)
    if (instead := _instead.get()) is not None:
        return instead
    if own := os.environ.get("SMALLVIEW_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "smallview"
    return Path("~/.cache/smallview").expanduser()


def remove(folder: Path) -> bool:
    """Remove a folder that holds nothing but files of ours; whether it is gone. One with anything else in it is left as it is."""
    try:
        if foreign(folder):
            return False
        for name in sorted(os.listdir(folder), key=lambda name: name == "lock"):
            (folder / name).unlink()
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True


def foreign(folder: Path) -> list[str]:
    """The names in a folder that no pack has; OSError."""
    return [name for name in os.listdir(folder) if not _OURS.fullmatch(name)]


def discard(folder: Path, packs: Path) -> None:
    """Remove a pack: renamed away first, so that no half of it is ever seen."""
    with contextlib.suppress(OSError):
        if foreign(folder):
            return
        away = Path(tempfile.mkdtemp(prefix=BUILDING, dir=packs))
        away.rmdir()
        os.rename(folder, away)
        remove(away)


def discard_others(target: Path, packs: Path) -> None:
    """Remove the older packs beside this one: the same pictures' root and settings, before the pictures changed."""
    with contextlib.suppress(OSError):
        for folder in list(target.parent.iterdir()):
            if folder != target and (folder / "meta.json").is_file():
                discard(folder, packs)


def sweep(packs: Path, family: str = "", key: str = "", *, rooted: bool = False, all_dead: bool = False) -> None:
    """Remove what dead builders left and nobody will go on with: of no key, or over a week old.

    rooted: also of this family under another key, which are the same root's pictures before they changed; without a root they may
    be other pictures of that name. all_dead: everything that a dead builder left but for this very pack.
    """
    for folder in packs.glob(f"{BUILDING}*"):
        named = _RESUMABLE.fullmatch(folder.name)
        if named is not None and (named["family"], named["key"]) == (family, key):
            continue
        if named is None or (rooted and named["family"] == family) or all_dead or _age(folder) > _KEPT:
            _remove_dead(folder)


def building_folder(packs: Path, family: str, key: str) -> Path:
    """Where the pack of this family and key is made; a killed build of it is found again by that name."""
    return packs / f"{BUILDING}{family}.{key}"


def try_lock(folder: Path) -> IO[bytes] | None:
    """The lock of a building folder, or None where another builder has it; OSError where there are no locks."""
    try:
        lock = (folder / "lock").open("ab")
    except FileNotFoundError:  # swept away between its making and now
        return None
    try:
        if fcntl is None:
            raise OSError("no file locks on this system")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino == (folder / "lock").stat().st_ino:  # not the one of a pack renamed just now
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        lock.close()
        raise
    lock.close()
    return None


def _remove_dead(folder: Path) -> None:
    try:
        # a builder makes its folder an instant before its lock
        if fcntl is None or not (folder / "lock").exists():
            if _age(folder) > (3600 if fcntl is not None else 86400):
                remove(folder)
            return
        lock = try_lock(folder)
        if lock is not None:
            with lock:
                remove(folder)
    except OSError:
        return


def _age(folder: Path) -> float:
    """Seconds since anything in it was written."""
    with contextlib.suppress(OSError):
        return time.time() - max(entry.stat().st_mtime for entry in [folder, *folder.iterdir()])
    return 0.0


@contextlib.contextmanager
def explained(folder: Path, what: str = "the pack of decoded pictures") -> Iterator[None]:
    """Turns what the disk says while something is written to a folder into one line."""
    try:
        yield
    except OSError as error:
        raise SmallviewError(
            f"cannot write {what} to {folder}: {error.strerror or error}; set SMALLVIEW_CACHE to a folder"
            " that can be written and has room"
        ) from error


def sync_file(file: IO[bytes]) -> None:
    """Have what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())
