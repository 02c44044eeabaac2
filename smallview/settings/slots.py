"""What may stand in a field: an annotation taken apart, and text or source-like expressions read for it, never evaluated."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Union

SCALARS: dict[type, tuple[str, str]] = {
    int: ("a whole number", "1"),
    float: ("a number", "0.1"),
    bool: ("true or false", "true"),
    str: ("text", "name"),
}
MAX_TEXT = 4_000


@dataclass
class Slot:
    """The values that an annotation lets in: members of its union, sorted by sort."""

    optional: bool = False
    scalars: set[type] = field(default_factory=set)
    choices: list[str | int | bool] = field(default_factory=list)
    classes: dict[str, type] = field(default_factory=dict)
    tuples: list[tuple[Any, ...]] = field(default_factory=list)
    mappings: list[Any] = field(default_factory=list)
    anything: bool = False
    opaque: bool = False

    def structured(self) -> bool:
        """Whether values other than plain words and numbers fit."""
        return bool(self.classes or self.tuples or self.mappings or self.anything)

    def wanted(self) -> str:
        """The slot in words, for messages."""
        words = [SCALARS[kind][0] for kind in SCALARS if kind in self.scalars]
        if self.choices:
            words.append(" or ".join(str(choice) for choice in self.choices))
        words += [f"{name}(...)" for name in self.classes]
        words += ["a list"] * bool(self.tuples) + ["a table"] * bool(self.mappings)
        words += ["none"] * self.optional
        return " or ".join(words) or "a value made in Python"

    def example(self) -> str | None:
        """A value that fits, as one would type it."""
        for kind, (_, text) in SCALARS.items():
            if kind in self.scalars:
                return text
        if self.choices:
            return str(self.choices[0])
        if self.classes:
            return f"{next(iter(self.classes))}(...)"
        return "none" if self.optional else None


@cache
def slot_of(annotation: Any) -> Slot:
    """The slot of a resolved annotation: scalars, None, Literal, dataclasses, tuples, str-keyed mappings and unions of them.

    Example:
        >>> slot_of(int | None).wanted()
        'a whole number or none'
    """
    slot = Slot()
    _sort_in(slot, annotation)
    return slot


def _sort_in(slot: Slot, annotation: Any) -> None:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        for arg in args:
            _sort_in(slot, arg)
    elif annotation in (None, types.NoneType):
        slot.optional = True
    elif origin is typing.Annotated:
        _sort_in(slot, args[0])
    elif origin is Literal:
        slot.choices += args
    elif annotation in SCALARS:
        slot.scalars.add(annotation)
    elif dataclasses.is_dataclass(origin or annotation):
        cls = origin or annotation
        slot.classes[cls.__name__] = cls
    elif origin is tuple or annotation is tuple:
        slot.tuples.append(args or (Any, ...))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        slot.mappings.append(args[1])
    elif annotation in (Any, object):
        slot.anything = True
    else:
        slot.opaque = True


@cache
def fields_of(cls: type) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """The fields that the constructor of a dataclass takes, each with its resolved annotation."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: (f, hints[f.name]) for f in dataclasses.fields(cls) if f.init}


@dataclass(frozen=True)
class Call:
    """A constructor as it was written, `Queue(4096)` or `Queue(size=4096)`; what it means is decided by the slot."""

    name: str
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)


class _Unreadable(Exception):
    """The text is not one of the few forms that are read."""


def read_text(text: str, slot: Slot) -> Any:
    """The plain value that `text` means for a slot; the text itself where it means nothing else.

    Example:
        >>> read_text("0.3", slot_of(float)), read_text("none", slot_of(int | None)), read_text("0.5", slot_of(int))
        (0.3, None, '0.5')
    """
    word = text.strip()
    if slot.optional and word.lower() == "none":
        return None
    if (bool in slot.scalars or slot.anything) and word.lower() in ("true", "false"):
        return word.lower() == "true"
    for choice in slot.choices:
        if word == str(choice):
            return choice
    for kind in (int, float):
        if (kind in slot.scalars or slot.anything) and len(word) < MAX_TEXT:
            try:
                return kind(word)
            except ValueError:
                continue
    if slot.structured():
        try:
            return _read_expression(word)
        except _Unreadable:
            return text
    return text


def _read_expression(text: str) -> Any:
    if len(text) > MAX_TEXT:
        raise _Unreadable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            node = ast.parse(text, mode="eval").body
        return _value_of(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _Unreadable from None


def _value_of(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            number = _value_of(operand)
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                return -number if isinstance(node.op, ast.USub) else number
        case ast.Name(id=word):
            return {"none": None, "true": True, "false": False, "inf": float("inf")}.get(word, word)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_value_of(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [_value_of(key) if key is not None else None for key in keys]
            if all(isinstance(name, str) for name in names):
                return dict(zip(names, map(_value_of, values), strict=True))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            given = {k.arg: _value_of(k.value) for k in keywords if k.arg is not None}
            if len(given) == len(keywords):
                return Call(name, tuple(_value_of(arg) for arg in args), given)
    raise _Unreadable
