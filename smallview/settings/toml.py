"""Plain tables as TOML text and back: the standard library reads TOML, this file writes it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smallview.errors import UsageError

MAX_BYTES = 1_000_000
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
_WHERE = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)\s*\Z")


def dump_toml(tables: Mapping[str, Any]) -> str:
    """TOML text of str, int, float, bool, lists and nested tables; keys whose value is None are left out.

    Raises UsageError for text that is not valid Unicode and TypeError for any other type of value.

    Example:
        >>> print(dump_toml({"seed": 0, "optimizer": {"lr": 1e-3}, "views": [{"size": 32}]}), end="")
        seed = 0
        <BLANKLINE>
        [optimizer]
        lr = 0.001
        <BLANKLINE>
        [[views]]
        size = 32
    """
    return "\n".join(_lines(tables, ())).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    # TOML gives a bare `key = value` to the last header above it, so all of those come before the sub-tables.
    below: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) or _is_array_of_tables(value):
            below.append((key, value))
        elif value is not None:
            yield f"{_key(key)} = {toml_value(value)}"
    for key, value in below:
        inner = (*path, key)
        name = ".".join(_key(part) for part in inner)
        if isinstance(value, Mapping):
            yield f"\n[{name}]"
            yield from _lines(value, inner)
        else:
            for item in value:
                yield f"\n[[{name}]]"
                yield from _lines(item, inner)


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.match(key) else _text(key)


def _text(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{value!a} is not valid Unicode; TOML needs Unicode text, so rename it") from None
    safe = (_ESCAPES.get(c) or (f"\\u{ord(c):04X}" if ord(c) < 0x20 or ord(c) == 0x7F else c) for c in value)
    return f'"{"".join(safe)}"'


def toml_value(value: object) -> str:
    r"""One value on one line.

    Example:
        >>> toml_value([1e-5, True, "a\n", {"x": float("inf")}])
        '[1e-05, true, "a\\n", {x = inf}]'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(k)} = {toml_value(v)}' for k, v in value.items() if v is not None)}}}"
    raise TypeError(f"{type(value).__name__} has no form in TOML")


def load_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file of at most 1 MB; UsageError in one line, with the line's number, for anything else."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; give a TOML file, such as a run's run.toml") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES // 1_000_000} MB; settings were wanted, so give a TOML file")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} line {line}: not UTF-8 text; save the file as UTF-8") from None
    except RecursionError:
        raise UsageError(f"{path}: brackets nested too deeply; settings need a few levels only") from None
    except ValueError as error:
        # tomllib's own error is a ValueError; a number of too many digits is a plain one.
        raise UsageError(_syntax_message(path, raw, str(error))) from None


def _syntax_message(path: str | Path, raw: bytes, message: str) -> str:
    found = _WHERE.search(message)
    reason = " ".join((message[: found.start()] if found else message).split())
    last = raw.count(b"\n") + 1
    where = f" line {found[1] or last}" if found else ""
    return f"{path}{where}: {reason[:200]}; TOML was wanted, for example: epochs = 100"


_HEADER = re.compile(r"\s*\[(\[?)([^\[\]]+)\]{1,2}\s*(?:#.*)?\Z")
_SETTING = re.compile(r"\s*([^=#\[\]]+?)\s*=")


def line_of(path: str | Path, setting: str) -> int | None:
    """The line of a TOML file on which a dotted setting, or else the nearest table around it, stands; for messages only.

    The scan knows headers and keys, not strings of several lines; None where it finds nothing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    best: tuple[int, int] | None = None
    table: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        here = table
        if header := _HEADER.match(line):
            table = here = _parts(header[2])
            if header[1]:
                name = ".".join(table)
                seen[name] = seen.get(name, -1) + 1
                table = here = [*table, str(seen[name])]
        elif key := _SETTING.match(line):
            here = table + _parts(key[1])
        else:
            continue
        text = ".".join(here)
        if f"{setting}.".startswith(f"{text}.") and (best is None or len(here) > best[0]):
            best = len(here), number
    return best[1] if best else None


def _parts(dotted: str) -> list[str]:
    try:
        inner: Any = tomllib.loads(f"{dotted} = 0")
    except ValueError:
        return [dotted]
    parts = []
    while isinstance(inner, dict):
        name, inner = next(iter(inner.items()))
        parts.append(name)
    return parts
