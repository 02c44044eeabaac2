"""A list of pictures as a text file: a name a line, as a source has them; for people, their scripts, and `pretrain --exclude`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallview.data.sources import Source
from smallview.errors import DataError, UsageError

MOST_BYTES = 2**30
NAMED = 3


def list_text(names: Iterable[str], comments: Sequence[str] = ()) -> str:
    r"""The text of a list; comments are lines that begin with "# ". A name that a line cannot hold as it is stands in quotes, as JSON.

    Example:
        >>> print(list_text(["a/1.jpg", "two\nlines.jpg"], ["made by hand"]), end="")
        # made by hand
        a/1.jpg
        "two\nlines.jpg"
    """
    lines = [f"# {' '.join(comment.split())}" for comment in comments] + [_line(name) for name in names]
    return "".join(f"{line}\n" for line in lines)


def _line(name: str) -> str:
    plain = name == name.strip() and name.isprintable() and not name.startswith(("#", '"', "./"))
    return name if plain and name else json.dumps(name)


def read_list(path: str | Path, flag: str = "--exclude") -> list[str]:
    """The names in such a file, each once, in its order; empty lines and comments are no names, and "./" before one says nothing.

    Raises:
        UsageError: no file of names, told by its flag.

    Example:
        >>> read_list("no/such/list.txt")
        Traceback (most recent call last):
        smallview.errors.UsageError: --exclude no/such/list.txt cannot be read (No such file or directory); wanted a text file of names, one a line
    """
    wanted = "wanted a text file of names, one a line"
    try:
        file = Path(path)
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            raise UsageError(f"{flag} {path} has {file.stat().st_size / 1e9:.1f} GB; {wanted}")
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{flag} {path} cannot be read ({reason}); {wanted}") from None
    if b"\0" in data:
        raise UsageError(f"{flag} {path} is no text; {wanted}")
    # bytes of a name that are no UTF-8 come as they come from a folder
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    names = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip("\r\t ")
        if not line or line.startswith("#"):
            continue
        if not line.startswith('"'):
            names.append(line.removeprefix("./"))
            continue
        try:
            name = json.loads(line)
        except ValueError:
            name = None
        if not isinstance(name, str):
            raise UsageError(f"{flag} {path} line {number} begins with a quote and is no name in quotes; {wanted}")
        names.append(name)
    return list(dict.fromkeys(names))


def found_in(source: Source, names: Sequence[str], what: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """(positions of these names in a source, rising; the names that it does not have). what: where the names come from, for the error.

    Raises:
        DataError: none of them is there.

    Example:
        >>> from smallview.data.sources import open_source
        >>> found_in(open_source(np.zeros((12, 4, 4), np.uint8)), ["11", "03", "100"], "a list")
        (array([ 3, 11]), ['100'])
    """
    wanted = set(names)
    places = {name: i for i, name in enumerate(source.names) if name in wanted}
    absent = [name for name in names if name not in places]
    if names and not places:
        raise DataError(
            f"{what} has {len(names):,} name{'s' * (len(names) != 1)} ({few(names)}), and {source.name} has none of them; "
            f"wanted names as in {_line(source.names[0])}"
        )
    return np.array(sorted(places.values()), np.int64), absent


def few(names: Sequence[str]) -> str:
    """The first of some names, as they stand in a list."""
    return ", ".join(_line(name) for name in names[:NAMED]) + ", ..." * (len(names) > NAMED)
