"""The records that a run appends to, line by line: its metrics, and the figures it was judged by."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from smallview.files import jsonl_line, jsonl_lines, read_jsonl, write_text
from smallview.records import Row

__all__ = ["Guarded", "Logger", "MetricsLog", "append_row", "read_jsonl", "write_text"]


class Logger(Protocol):
    """What a logger of one's own has: three methods."""

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        """The run's settings as tables; where step is above 0 a run goes on, and records after that step are void."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run ended, or was stopped; what it cost so far."""


class Guarded:
    """Passes everything on to loggers; one that raises is named once and left out, and the training goes on."""

    def __init__(self, loggers: Sequence[Logger], say: Callable[[str], None]) -> None:
        self._loggers, self._say = list(loggers), say

    def _all(self, tell: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                tell(logger)
            except Exception as error:
                self._loggers.remove(logger)
                told = (str(error).splitlines() or [""])[0]
                self._say(f"{type(logger).__name__} is left out from here on: {type(error).__name__}: {told}")

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        """See Logger."""
        self._all(lambda logger: logger.begin(settings, step))

    def write(self, record: Mapping[str, Any]) -> None:
        """See Logger."""
        self._all(lambda logger: logger.write(record))

    def end(self, summary: Mapping[str, Any]) -> None:
        """See Logger."""
        self._all(lambda logger: logger.end(summary))


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
