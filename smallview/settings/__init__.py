"""Settings are frozen values: one changed by its path, all as TOML tables and back, unknown keys refused.

Everything here is generic over frozen dataclasses, so one definition serves flags, TOML, Python and the record of a run.
A dataclass that shares its slot with others is a table with a key `kind`; None is written as "none", so that tables laid over
any other value give back exactly the value they were written from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from smallview.errors import UsageError
from smallview.settings.fitting import ABSENT, RefusedError, construct, fit, join, printable, removes, show, unknown
from smallview.settings.slots import fields_of, read_text, slot_of
from smallview.settings.toml import dump_toml, line_of, load_toml, toml_value

__all__ = ["apply_tables", "diff", "dump_toml", "from_tables", "load_toml", "override", "to_tables", "to_toml"]

T = TypeVar("T")


def override(value: T, path: str, new: object) -> T:
    """A copy of a frozen value with `new` at `path`: field names, tuple indices and dict keys, joined by dots.

    Text is read as the type of the field: "0.3", "none", "true", "(1, 2)", "Queue(size=4096)"; only constructors of dataclasses
    that the field allows are understood and nothing is evaluated. "none" at a dict key takes the entry out. UsageError for an
    unknown name, a wrong type, or a value that its dataclass refuses.

    Example:
        >>> from smallview.schedules import Ramp
        >>> override(Ramp(0.5, 1.0), "until", "0.6")
        Ramp(start=0.5, end=1.0, until=0.6)
    """
    return cast(T, _set(value, type(value), path.split("."), 0, new))


def apply_tables(value: T, tables: Mapping[str, Any], *, source: str | Path = "") -> T:
    """A copy of a frozen value with (possibly partial) tables laid over it.

    `source`, best the path of the file they were read from, names their origin in errors.
    A table with another `kind` than the present value is built anew from that class; a list replaces a tuple as a whole; "none"
    at a dict key takes the entry out.
    """
    return cast(T, _from(source, lambda: fit(tables, type(value), "", value)))


def from_tables(cls: type[T], tables: Mapping[str, Any], *, source: str | Path = "") -> T:
    """The value of class `cls` that complete tables describe, with nothing beneath them but the defaults of the classes."""
    return cast(T, _from(source, lambda: fit(tables, cls, "", ABSENT)))


def to_tables(value: object) -> dict[str, Any]:
    """A frozen value as plain tables: the fields in order, `kind` where a slot has several classes, "none" for None.

    Example:
        >>> from smallview.schedules import Ramp
        >>> to_tables(Ramp(0.5, 1.0))
        {'start': 0.5, 'end': 1.0, 'until': 1.0}
    """
    return cast(dict[str, Any], _plain(value, type(value)))


def to_toml(value: object) -> str:
    """A frozen value as TOML text."""
    return dump_toml(to_tables(value))


def diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What changed from tables a to tables b, one line per setting.

    Example:
        >>> diff({"optimizer": {"lr": 0.3}}, {"optimizer": {"lr": 0.5}, "seed": 1})
        ['optimizer.lr: 0.3 -> 0.5', 'seed: absent -> 1']
    """
    old, new = dict(_leaves(a, "")), dict(_leaves(b, ""))
    return [
        f"{path}: {old.get(path, 'absent')} -> {new.get(path, 'absent')}"
        for path in {**old, **new}
        if old.get(path) != new.get(path)
    ]


def _from(source: str | Path, make: Callable[[], object]) -> object:
    """Runs `make`; a complaint gets the origin of the tables put in front, with the line where that is a file."""
    try:
        return make()
    except RefusedError as error:
        if not source:
            raise
        line = line_of(source, error.path) if error.path else None
        raise UsageError(f"{source}{f' line {line}' if line else ''}: {error}") from None


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, join(path, key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, join(path, str(i)))
    else:
        yield path, "none" if value in (None, "none") else toml_value(value)


def _plain(value: Any, annotation: Any) -> Any:
    slot = slot_of(annotation)
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        alone = list(slot.classes.values()) == [type(value)] and not (slot.anything or slot.opaque)
        head = {} if alone else {"kind": type(value).__name__}
        return head | {name: _plain(getattr(value, name), hint) for name, (_, hint) in fields_of(type(value)).items()}
    if isinstance(value, (tuple, list)):
        parts = slot.tuples[0] if slot.tuples else (Any, ...)
        return [_plain(item, parts[0] if parts[-1] is ... else parts[i]) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        inner = slot.mappings[0] if slot.mappings else Any
        return {key: _plain(item, inner) for key, item in value.items()}
    if type(value) is int and float in slot.scalars and int not in slot.scalars:
        return float(value)  # as it will be read back
    if isinstance(value, (str, int, float)):
        return value
    raise UsageError(f"a {type(value).__name__} cannot be written down as a setting; give it by name, or as a dataclass")


def _set(value: Any, annotation: Any, parts: list[str], depth: int, new: object) -> object:
    where, name = printable(".".join(parts)), printable(".".join(parts[:depth]))
    if depth == len(parts):
        return fit(read_text(new, slot_of(annotation)) if isinstance(new, str) else new, annotation, where, value)
    part = parts[depth]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = fields_of(type(value))
        if part not in known:
            raise unknown(part, name, known)
        changed = _set(getattr(value, part), known[part][1], parts, depth + 1, new)
        return construct(type(value), {part: changed}, where, value)
    if isinstance(value, tuple):
        if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(value)):
            raise UsageError(f'{where}: "{part}" is no place in {name}; it has {len(value)} entries, counted from 0')
        i, kinds = int(part), (slot_of(annotation).tuples or [(Any, ...)])[0]
        changed = _set(value[i], kinds[0] if kinds[-1] is ... else kinds[i], parts, depth + 1, new)
        return (*value[:i], changed, *value[i + 1 :])
    if isinstance(value, Mapping):
        inner = (slot_of(annotation).mappings or [Any])[0]
        if depth + 1 < len(parts) and part not in value:
            raise unknown(part, name, value)
        if depth + 1 == len(parts) and removes(new, inner):
            if part not in value:
                raise unknown(part, name, value)
            return {key: item for key, item in value.items() if key != part}
        return {**value, part: _set(value.get(part, ABSENT), inner, parts, depth + 1, new)}
    raise UsageError(f"{where}: {name} is {show(value)} and has no settings of its own; set {name} itself")
