"""The records that a run appends to, line by line: its metrics, and the figures it was judged by."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from smallview.files import jsonl_line, jsonl_lines, read_jsonl, write_text
from smallview.records import Row

__all__ = ["MetricsLog", "append_row", "read_jsonl", "write_text"]


def _end_whole(path: Path) -> None:
    """Cuts off a torn last line, so that the next line does not grow on it."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        end = sum(len(raw) for raw in file if raw.endswith(b"\n"))
        file.truncate(end)


class MetricsLog:
    """An append-only JSON-lines file, one record per line, each line handed to the system at once.

    Numbers that are not finite are written as null, so that any JSON reader can follow.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _end_whole(self.path)
        self._file = open(self.path, "ab")  # noqa: SIM115 - kept open for the whole run

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record."""
        self._file.write(jsonl_line(record))
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Keeps the records up to and including `step`, and those without a step; for a run that goes on from there."""
        self._file.close()
        kept = [
            raw.decode()
            for _, raw, record in jsonl_lines(self.path)
            if record is not None and not (isinstance(record.get("step"), (int, float)) and record["step"] > step)
        ]
        write_text(self.path, "".join(kept))
        self._file = open(self.path, "ab")  # noqa: SIM115 - kept open for the whole run

    def close(self) -> None:
        """Closes the file; records that were written stay."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def append_row(path: str | Path, row: Row) -> None:
    """Appends one judged figure to rows.jsonl, durably."""
    path = Path(path)
    _end_whole(path)
    with open(path, "ab") as file:
        file.write(jsonl_line(row.as_dict()))
        file.flush()
        os.fsync(file.fileno())
