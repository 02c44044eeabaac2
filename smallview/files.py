"""Text files that survive a crash: replaced as a whole, or written line by line where a torn last line is left out."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from smallview.errors import SmallviewError, UsageError


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replaces a file as a whole: after a crash it holds the old bytes or the new ones, never a part.

    The file's mode follows the umask. OSError as from writing; the old file is then untouched and no temporary file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def check_folder(path: str | Path) -> None:
    """Tells early, and leaving no trace, of a folder that cannot be made or written: before anything slow begins.

    SmallviewError where a file stands in its way or the nearest folder above is closed to us.
    """
    there = Path(path)
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise SmallviewError(f"cannot make the folder {path}: a file is in its place; choose another --out")
        if not os.access(there, os.W_OK | os.X_OK):
            raise SmallviewError(f"cannot write to the folder {path}: {there} is closed to you; choose another --out")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SmallviewError(f"cannot write to the folder {str(path)!r}: {reason}; choose another --out") from None


def close_path(path: str | Path) -> str:
    """` (did you mean "x"?)` for a path that is not there, where a name beside its first missing part is close; else nothing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "labeled" / "train").mkdir(parents=True)
        >>> close_path(folder / "labelled" / "train").replace(str(folder), "...")
        ' (did you mean ".../labeled/train"?)'
        >>> close_path(folder / "zzz"), close_path(folder)
        ('', '')
    """
    path = Path(path)
    with contextlib.suppress(OSError, ValueError):
        missing = next((part for part in reversed((path, *path.parents)) if not part.exists()), None)
        close = difflib.get_close_matches(missing.name, os.listdir(missing.parent), n=1) if missing else []
        if missing and close:
            return f' (did you mean "{missing.with_name(close[0]) / path.relative_to(missing)}"?)'
    return ""


def check_version(told: Any, newest: int, what: str, key: str = "format_version") -> None:
    """UsageError for what a newer smallview wrote: what it says could be misread, and would look like damage.

    Example:
        >>> check_version({"format_version": 3}, 2, "run.toml")
        Traceback (most recent call last):
            ...
        smallview.errors.UsageError: run.toml has format_version 3; this version reads up to 2: use the smallview that wrote it, or a newer one
    """
    version = told.get(key) if isinstance(told, dict) else None
    if isinstance(version, int) and version > newest:
        raise UsageError(
            f"{what} has {key} {version}; this version reads up to {newest}: use the smallview that wrote it, or a newer one"
        )


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable; some systems cannot, and then the files alone have to do."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    """JSON values: numbers of numpy and torch become Python's, and what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is not None and not isinstance(value, (str, int, float)):
        item: Callable[[], Any] | None = getattr(value, "item", None)
        return str(value) if item is None else _plain(item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def jsonl_line(record: Mapping[str, Any]) -> bytes:
    r"""One record as one line of JSON; numbers that are not finite become null, so that any reader can follow.

    Example:
        >>> jsonl_line({"step": 1, "loss": float("nan")})
        b'{"step": 1, "loss": null}\n'
    """
    return (json.dumps(_plain(record), allow_nan=False) + "\n").encode()


def jsonl_lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """(number, bytes, record) of each complete line; the record is None where the line holds none."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                record = json.loads(raw)
            except (ValueError, RecursionError):
                record = None
            yield number, raw, record if isinstance(record, dict) else None


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that a crash tore is left out, damage anywhere else is a SmallviewError."""
    records = []
    for number, _, record in jsonl_lines(Path(path)):
        if record is None:
            raise SmallviewError(f"{path} line {number} is damaged: not a JSON object; remove that line")
        records.append(record)
    return records
