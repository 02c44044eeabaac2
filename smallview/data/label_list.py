"""A list of labels: a .csv with the columns `name` and `label`, as `smallview select` writes it and people fill it in; or names alone."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from smallview.data.name_list import MOST_BYTES, read_list
from smallview.errors import UsageError

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute
SIGNS = ",;\t"  # between columns: what spreadsheets of all countries save
Pairs = list[tuple[str, str | None]]


def shielded(name: str) -> str:
    """A name as a cell that no spreadsheet computes.

    Example:
        >>> shielded("=a.png"), bare(shielded("=a.png")), bare("'tis.png")
        ("'=a.png", '=a.png', "'tis.png")
    """
    return f"'{name}" if name.startswith(FORMULA) else name


def bare(cell: str) -> str:
    """The name in a cell that `shielded` made."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def read_labels(path: str | Path, flag: str = "--labeled") -> Pairs:
    """(name, label) for each picture of a list that has a label; None for the label where the list has names alone.

    A .csv has the columns `name` and `label`, between commas, semicolons or tabs; rows without a label are left out. Any other file is a name
    a line.

    Raises:
        UsageError: no such list, told by its flag.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        return [(name, None) for name in read_list(path, flag)]
    head, rows = read_table(path, flag)
    if "name" not in head or not rows:
        raise UsageError(
            f"{flag} {path} has no column `name`, or no rows; wanted a .csv as smallview select writes it, with labels filled in"
        )
    name = head.index("name")
    if "label" not in head:
        return [(each, None) for each in dict.fromkeys(bare(row[name]) for row in rows if row[name])]
    label = head.index("label")
    return [(bare(row[name]), row[label].strip()) for row in rows if row[name] and row[label].strip()]


def read_table(path: Path, flag: str) -> tuple[list[str], list[list[str]]]:
    """(names of the columns in small letters, rows as long as these) of a .csv; an empty file has neither.

    Raises:
        UsageError: a file that cannot be read as one.
    """
    wanted = "wanted a .csv with a column `name`"
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{flag} {path} has {path.stat().st_size / 1e9:.1f} GB; {wanted}")
        data = path.read_bytes()
        if b"\0" in data:
            raise UsageError(f"{flag} {path} is no text in UTF-8; {wanted}")
        # bytes of a name that are no UTF-8 come as they come from a folder
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        first = text.split("\n", 1)[0]
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=max(SIGNS, key=first.count)))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{flag} {path} cannot be read ({getattr(error, 'strerror', None) or error}); {wanted}") from None
    if not rows:
        return [], []
    head = [cell.strip().lower() for cell in rows[0]]
    return head, [(row + [""] * len(head))[: len(head)] for row in rows[1:] if any(row)]
