"""Raw values made to fit their slot, or refused in one line: what was received, what was wanted, an example."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

from smallview.errors import UsageError, suggest
from smallview.settings.slots import Call, Slot, fields_of, slot_of

ABSENT: Any = object()


class RefusedError(UsageError):
    """A setting that was refused, with its dotted path."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def join(path: str, name: str) -> str:
    """The path of `name` below `path`, printable."""
    return f"{path}.{printable(name)}" if path else printable(name)


def printable(text: str) -> str:
    """The text on one line, without control signs, for messages."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show(value: object) -> str:
    """What was received, as one short printable line."""
    if value is None:
        return "none"
    try:
        text = f"{value.name}(...)" if isinstance(value, Call) else repr(value)
    except (ValueError, RecursionError):
        return "a value too long to show"
    text = f'"{text[1:-1]}"' if isinstance(value, str) else text
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse(raw: object, slot: Slot, where: str, current: object) -> UsageError:
    shown = current if isinstance(current, (int, float, str)) and not isinstance(current, bool) else ABSENT
    example = slot.example() if shown is ABSENT else str(shown)
    return RefusedError(
        where,
        f"{where or 'settings'}: received {show(raw)}, wanted {slot.wanted()}" + (f", such as {example}" if example else ""),
    )


def construct(cls: type, given: dict[str, Any], where: str, current: object) -> object:
    """`cls(**given)`, or `current` with `given` replaced; what its own checks say becomes a UsageError with the path."""
    try:
        if current is not ABSENT:
            return dataclasses.replace(cast(Any, current), **given)
        return cls(**given)
    except (UsageError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise RefusedError(where, f"{_prefix(where)}{reason}") from None


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def removes(raw: object, inner: Any) -> bool:
    """Whether a raw value says that an entry of a mapping goes away: none, where the entries cannot be none themselves."""
    return (raw is None or (isinstance(raw, str) and raw.strip().lower() == "none")) and not slot_of(inner).optional


def unknown(name: str, parent: str, known: Mapping[str, object]) -> UsageError:
    """The complaint about a name that is not there, with the nearest one that is."""
    return RefusedError(
        join(parent, name), f"unknown key {show(name)}{f' in {parent}' if parent else ''}{suggest(name[:80], known)}"
    )


def fit(raw: Any, annotation: Any, where: str, current: Any) -> Any:
    """`raw` as a value of the annotated slot; `current` is what stands there now."""
    slot = slot_of(annotation)
    if slot.optional and (raw is None or (isinstance(raw, str) and raw.lower() == "none")):
        return None
    if dataclasses.is_dataclass(raw) and not isinstance(raw, (type, Call)):
        if type(raw) in (*slot.classes.values(), type(current)) or slot.anything or slot.opaque:
            return raw
    elif isinstance(raw, (Mapping, Call)):
        return _fit_table(raw, slot, where, current)
    elif isinstance(raw, (list, tuple)):
        return _fit_tuple(raw, slot, where, current)
    elif isinstance(raw, str):
        if str in slot.scalars or raw in slot.choices or slot.anything:
            return raw
        if raw in _classes(slot, current):
            return _fit_table(Call(raw), slot, where, current)
    elif isinstance(raw, bool):
        if bool in slot.scalars or slot.anything or any(raw is choice for choice in slot.choices):
            return raw
    elif isinstance(raw, (int, float)):
        fitted = _fit_number(raw, slot)
        if fitted is not None:
            return fitted
    elif slot.opaque or slot.anything:
        return raw
    raise _refuse(raw, slot, where, current)


def _fit_number(raw: int | float, slot: Slot) -> int | float | None:
    if math.isnan(raw) if isinstance(raw, float) else not -(2**63) <= raw < 2**63:
        return None
    if type(raw) in slot.scalars or slot.anything or (isinstance(raw, int) and raw in slot.choices):
        return raw
    return float(raw) if float in slot.scalars else None


def _fit_tuple(raw: list[Any] | tuple[Any, ...], slot: Slot, where: str, current: Any) -> Any:
    for kinds in slot.tuples:
        if kinds[-1] is ... or len(kinds) == len(raw):
            return tuple(
                fit(item, kinds[0] if kinds[-1] is ... else kinds[i], join(where, str(i)), ABSENT) for i, item in enumerate(raw)
            )
    if slot.anything:
        return tuple(fit(item, Any, join(where, str(i)), ABSENT) for i, item in enumerate(raw))
    if slot.tuples:
        wanted = " or ".join(str(len(kinds)) for kinds in slot.tuples)
        raise RefusedError(where, f"{where}: received a list of {len(raw)}, wanted a list of {wanted}")
    raise _refuse(list(raw), slot, where, current)


def _classes(slot: Slot, current: Any) -> dict[str, type]:
    here = type(current)
    return slot.classes | ({here.__name__: here} if dataclasses.is_dataclass(here) else {})


def _fit_table(raw: Mapping[str, Any] | Call, slot: Slot, where: str, current: Any) -> Any:
    classes = _classes(slot, current)
    if isinstance(raw, Mapping) and slot.mappings and not classes:
        return _fit_mapping(raw, slot.mappings[0], where, current)
    if not classes:
        if slot.anything and isinstance(raw, Mapping):
            return {key: fit(item, Any, join(where, key), ABSENT) for key, item in raw.items()}
        raise _refuse(dict(raw) if isinstance(raw, Mapping) else raw, slot, where, current)
    alone = next(iter(classes.values())) if len(classes) == 1 else type(current)
    if isinstance(raw, Call):
        kind, table = raw.name, raw.keywords
    else:
        kind = raw.get("kind", alone.__name__ if alone.__name__ in classes else None)
        table = {key: item for key, item in raw.items() if key != "kind"}
    if kind is None:
        raise RefusedError(
            where, f'{where}: received a table without a kind, wanted one of {", ".join(classes)}; add kind = "..."'
        )
    cls = classes.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise RefusedError(where, f"{_prefix(where)}unknown kind {show(kind)}{suggest(str(kind)[:80], classes)}")
    if isinstance(raw, Call):
        return _make(cls, _name_arguments(cls, raw, where), where, ABSENT)
    return _make(cls, table, where, current if type(current) is cls else ABSENT)


def _fit_mapping(raw: Mapping[str, Any], inner: Any, where: str, current: Any) -> dict[str, Any]:
    kept = dict(current) if isinstance(current, Mapping) else {}
    for key, item in raw.items():
        if removes(item, inner):
            kept.pop(key, None)
        else:
            kept[key] = fit(item, inner, join(where, key), kept.get(key, ABSENT))
    return kept


def _name_arguments(cls: type, call: Call, where: str) -> dict[str, Any]:
    names = [name for name, (field, _) in fields_of(cls).items() if not field.kw_only]
    if len(call.args) > len(names):
        raise RefusedError(
            where, f"{where}: {cls.__name__} takes {len(names)} values ({', '.join(names)}), received {len(call.args)}"
        )
    given = dict(zip(names, call.args, strict=False))
    twice = [name for name in given if name in call.keywords]
    if twice:
        raise RefusedError(where, f"{where}: {cls.__name__} received {twice[0]} twice; give it once")
    return given | call.keywords


def _make(cls: type, table: Mapping[str, Any], where: str, current: Any) -> object:
    known = fields_of(cls)
    for name in table:
        if name not in known:
            raise unknown(name, where, known)
    given = {name: fit(item, known[name][1], join(where, name), getattr(current, name, ABSENT)) for name, item in table.items()}
    missing = [
        name
        for name, (field, _) in known.items()
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing and current is ABSENT:
        raise RefusedError(where, f"{_prefix(where)}{cls.__name__} needs {', '.join(missing)}; add {missing[0]}")
    return construct(cls, given, where, current)
