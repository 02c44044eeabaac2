"""The kinds of flags that verbs share: whole numbers, switches, settings by their path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from smallview.errors import UsageError


def _whole(kind: type, tokens: Sequence[Any]) -> int:
    try:
        return int(tokens[0].value)  # cyclopts alone would round 3.5
    except ValueError:
        raise ValueError(f'"{tokens[0].value}" is no whole number.') from None


Whole = Annotated[int, Parameter(converter=_whole)]
On = Annotated[bool, Parameter(negative=(), show_default=False)]
Json = Annotated[bool, Parameter(name="--json", negative=(), show_default=False)]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), show_default=False)]
Sets = Annotated[tuple[str, ...], Parameter(name="--set", negative=(), consume_multiple=False, show_default=False)]


def sets_of(pairs: tuple[str, ...]) -> dict[str, object]:
    """What was given by --set, by its path.

    Raises:
        UsageError: no path=value.
    """
    out: dict[str, object] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path:
            raise UsageError(f'--set is "{pair}"; wanted path=value, as in --set optimizer.lr=0.1')
        out[path] = value
    return out
