"""Checkpoints: written whole or not at all, verified by SHA-256 before anything older goes, and never any code inside.

`folder/step-000123/` holds tensors.safetensors, state.json and manifest.json (sizes, hashes, versions, and its own hash);
the file `folder/latest` names the newest one for people and scripts. Loading trusts the hashes, not that file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from smallview.errors import SmallviewError
from smallview.files import sync_folder, write_text
from smallview.training.manifest import MANIFEST, STATE, TENSORS, Damaged, is_milestone, load, manifest, problem
from smallview.training.tensor_file import Piece, pieces_of

# A step that is saved again moves the earlier one aside to `.old-<pid>` until the new one has its name.
_NAME = re.compile(r"step-(\d{6,12})(\.old-\d+)?\Z")
_TEMPORARY = re.compile(r"step-\d+\.tmp-(\d+)\Z")
_CHUNK = 1 << 20
_good: set[tuple[Any, ...]] = set()

Loaded = tuple[int, dict[str, Tensor], dict[str, Any], list[str]]


def _point(name: str) -> None:
    """Named moments between the system calls of a save; tests end the process here."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    milestone: bool = False,
) -> Path:
    """Saves one step and gives the path of its folder; afterwards the newest `keep` verified checkpoints remain, and all milestones.

    `tensors` may share memory and have any layout or device; `state` is what JSON can hold. SmallviewError when it cannot be
    written; every earlier checkpoint is then as it was, and training may go on.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder), 12, {"weight": torch.zeros(2)}, {"epoch": 0}).name
        ...     load_latest(Path(folder))
        'step-000012'
        (12, {'weight': tensor([0., 0.])}, {'epoch': 0}, [])
    """
    files: dict[str, list[Piece]] = {STATE: [json.dumps(dict(state)).encode()], TENSORS: pieces_of(tensors)}
    files[MANIFEST] = [manifest(step, files, milestone)]
    needed = sum(len(piece) for pieces in files.values() for piece in pieces)
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{final.name}.tmp-{os.getpid()}"
    placed = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < 2 * needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _point("folder made")
        for name, pieces in files.items():
            _write(temporary / name, pieces)
            _point(f"{name} written")
        sync_folder(temporary)
        _point("folder synced")
        _put_in_place(temporary, final)
        placed = True
        sync_folder(folder)
        _point("name synced")
        wrong = _problem(final)
        if wrong:
            raise OSError(errno.EIO, f"read back wrong ({wrong})")
        write_text(folder / "latest", final.name + "\n")
        _point("latest replaced")
    except OSError as error:
        shutil.rmtree(final if placed else temporary, ignore_errors=True)
        _take_back(final)
        raise SmallviewError(_cannot_save(folder, step, needed, error)) from error
    _prune(folder, final, keep)
    return final


def load_latest(folder: Path) -> Loaded | None:
    """(step, tensors, state, notes) of the newest checkpoint whose hashes hold, on the CPU; None where there is none at all.

    A note tells of each newer one that had to be passed over. SmallviewError when there are some and none can be trusted.
    """
    notes: list[str] = []
    for path, step in _checkpoints(folder):
        try:
            tensors, state = load(path, step)
        except Damaged as damage:
            notes.append(f"step {step:,} is damaged ({damage})")
        else:
            return step, tensors, state, [f"{note}; using step {step:,}" for note in notes]
    if notes:
        raise SmallviewError(f"no checkpoint in {folder} can be used: {'; '.join(notes)}; start anew with --fresh")
    return None


def load_step(folder: Path, step: int) -> Loaded:
    """The checkpoint of one step, as `load_latest` gives the newest: for processes that read what another one chose.

    Raises:
        SmallviewError: there is none, with those that there are; or it is damaged.
    """
    found = [(path, at) for path, at in _checkpoints(folder) if not path.suffix]
    for path, at in found:
        if at == step:
            try:
                tensors, state = load(path, step)
            except Damaged as damage:
                raise SmallviewError(f"step {step:,} in {folder} is damaged ({damage}); take another checkpoint") from None
            return step, tensors, state, []
    there = ", ".join(f"{at:,}" for _, at in sorted(found, key=lambda pair: pair[1]))
    raise SmallviewError(f"there is no step {step:,} in {folder}; {f'there are {there}' if there else 'there is none at all'}")


def sweep(folder: Path) -> None:
    """Clears what a crash left: unfinished saves of ended processes go, a checkpoint moved aside gets its name back."""
    for path in _entries(folder):
        unfinished = _TEMPORARY.match(path.name) or re.match(r"\.latest\.tmp-(\d+)\Z", path.name)
        if unfinished and not _runs_elsewhere(int(unfinished[1])):
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        aside = _NAME.match(path.name)
        if aside and aside[2]:
            final = path.with_name(path.name.removesuffix(aside[2]))
            if final.exists() and _problem(final) is None:
                shutil.rmtree(path, ignore_errors=True)
            elif not final.exists():
                with contextlib.suppress(OSError):
                    path.rename(final)


def _runs_elsewhere(pid: int) -> bool:
    if pid == os.getpid():
        return False
    if os.name == "nt":  # where asking a process by signal 0 would end it
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _write(path: Path, pieces: Iterable[Piece]) -> None:
    # Made by open(), not by a library: so its mode follows the umask.
    with open(path, "wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view[:_CHUNK]) :]
        os.fsync(file.fileno())


def _aside(final: Path) -> Path:
    return final.with_name(f"{final.name}.old-{os.getpid()}")


def _put_in_place(temporary: Path, final: Path) -> None:
    if final.exists():
        if _problem(final) is None:
            shutil.rmtree(_aside(final), ignore_errors=True)
            final.rename(_aside(final))
        else:
            shutil.rmtree(final)
        _point("earlier one aside")
    temporary.rename(final)
    _point("renamed")


def _take_back(final: Path) -> None:
    """Gives the earlier checkpoint of a step its name again when the new one failed."""
    with contextlib.suppress(OSError):
        if not final.exists() and _aside(final).exists():
            _aside(final).rename(final)


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None; files that this process has found good are hashed again only if they changed."""
    found = _NAME.match(path.name)
    files = _identity(path)
    if files is not None and files in _good:
        return None
    told = problem(path, int(found[1]) if found else -1)
    if told is None and files is not None:
        _good.add(files)
    return told


def _identity(path: Path) -> tuple[Any, ...] | None:
    """What changes when one of a checkpoint's files is written to or exchanged, or the folder gets another name."""
    try:
        seen = [os.stat(path / name) for name in (TENSORS, STATE, MANIFEST)]
    except OSError:
        return None
    return path.name, *((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in seen)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SmallviewError(f"cannot read {folder}: {error.strerror}; wanted a folder of checkpoints") from None


def _checkpoints(folder: Path) -> Iterator[tuple[Path, int]]:
    """The checkpoints by descending step; of one step, the one in place before the one moved aside."""
    found = [(int(match[1]), match[2] is None, path) for path in _entries(folder) if (match := _NAME.match(path.name))]
    for step, _, path in sorted(found, reverse=True):
        yield path, step


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Takes away what is older than the `keep` newest that verify, and what is damaged; the one just saved counts first."""
    good = 1
    for path, _ in _checkpoints(folder):
        if path == newest:
            continue
        wrong = _problem(path)
        if wrong and wrong.startswith("cannot be read"):
            continue  # perhaps only for now
        aside = bool(path.suffix)
        if not wrong and not aside and is_milestone(path):
            continue
        if not wrong and not aside and good < keep:
            good += 1
            continue
        shutil.rmtree(path, ignore_errors=True)
        _point("older one removed")


def _cannot_save(folder: Path, step: int, needed: int, error: OSError) -> str:
    earlier = next((s for path, s in _checkpoints(folder) if _problem(path) is None), None)
    after = f"the checkpoint of step {earlier:,}" if earlier is not None else "no checkpoint yet"
    reason = f"{error.strerror or error} ({folder})"
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            if free < 2 * needed:
                reason = f"{_size(free)} free, {_size(2 * needed)} needed"
    return f"cannot save step {step:,}: {reason}; training goes on with {after}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"
