"""What a run folder tells of its run, whatever state it is in: damage is left out and said, never raised."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallview.continuing import finished
from smallview.errors import SmallviewError, UsageError
from smallview.files import close_path, jsonl_lines
from smallview.records import Row
from smallview.settings import load_toml

PARTS = ("run.toml", "metrics.jsonl", "rows.jsonl", "summary.json", "encoder", "stages")
PLACES = ("data", "weights_from", "online", "exclude")  # settings that name a place on somebody's disk
# a place on a disk: from the root, a drive or a home
_PATH = re.compile(r"""(?<![\w.])(?:~|[A-Za-z]:|file:/)?[/\\](?:[^\s/\\"'<>|;,()]+[/\\])*([^\s/\\"'<>|;,()]+)""")


@dataclass(frozen=True)
class Account:
    """A run as its folder tells it: its name, its settings as tables, what run.toml records beside them, its metrics, its rows, its
    summary; missing: what is not there or damaged, a sentence each. sound: whether rows and summary are whole.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    rows: tuple[Row, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    sound: bool = False

    @property
    def cost(self) -> Mapping[str, Any]:
        """What it cost: of a run that has not ended, so far."""
        told = self.summary.get("cost")
        if isinstance(told, Mapping):
            return told
        last = self.last()
        names = {"seconds": "train_seconds", "step": "steps", "epoch": "epochs", "flops": "flops", "images": "images"}
        known = {called: last[name] for name, called in names.items() if name in last}
        return {**known, **{name: last[name] for name in ("peak_memory_mib",) if name in last}, **self.forecast}

    @property
    def forecast(self) -> Mapping[str, Any]:
        """What it was said to cost before it began."""
        return {name: self.recorded[name] for name in ("forecast_seconds", "forecast_memory_mib") if name in self.recorded}

    @property
    def verdict(self) -> str | None:
        """What the watch said last."""
        for told in (self.cost, *reversed(self.metrics)):
            if isinstance(told.get("verdict"), str):
                return str(told["verdict"])
        return None

    def last(self) -> Mapping[str, Any]:
        """The last record of its metrics."""
        return self.metrics[-1] if self.metrics else {}


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    name: str
    runs: tuple[Account, ...]


def figure(tables: Mapping[str, Any], name: str) -> float | None:
    """A finite number of that name, None where there is none.

    Example:
        >>> figure({"a": 1, "b": "1", "c": True, "d": None}, "a"), figure({"b": "1"}, "b")
        (1.0, None)
    """
    value = tables.get(name)
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if known and math.isfinite(value) else None  # type: ignore[arg-type]
    except OverflowError:
        return None


def read_account(folder: str | Path, name: str | None = None) -> Account:
    """What there is in a run folder.

    Raises:
        UsageError: nothing of a run is there.
    """
    place = Path(folder)
    try:
        known = [part for part in PARTS if (place / part).exists()]
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot look into {str(folder)!r}: {getattr(error, 'strerror', None) or error}") from error
    if not known:
        there = "there is no folder" if not place.is_dir() else "there is no run in"
        raise UsageError(f"{there} {place}{close_path(place)}; wanted a run folder, as smallview pretrain writes it")
    missing: list[str] = []
    settings, recorded = _settings(place, missing)
    metrics = _metrics(place, missing)
    summary = _summary(place, missing)
    rows, whole = _rows(place, missing)
    if not finished(place):
        done, steps = figure(metrics[-1] if metrics else {}, "step"), figure(settings, "steps")
        reached = "no step is recorded yet" if done is None else f"its last record is of step {done:,.0f}"
        missing.insert(0, f"The run has not ended: {reached}" + (f" of {steps:,.0f}." if steps else "."))
    if not (place / "encoder" / "config.json").exists() and finished(place) is False and summary:
        missing.append("There is no encoder (encoder/).")
    return Account(
        *(place, name or place.resolve().name or "run", settings, recorded, metrics, rows, summary, tuple(missing)),
        sound=whole and bool(summary),
    )


def _settings(place: Path, missing: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        if not (place / "run.toml").exists():
            missing.append("There are no settings (run.toml).")
            return {}, {}
        tables = load_toml(place / "run.toml")
    except (SmallviewError, OSError) as error:
        missing.append(f"The settings cannot be read: {error}.")
        return {}, {}
    recorded = tables.pop("recorded", {})
    return tables, recorded if isinstance(recorded, dict) else {}


def _lines(path: Path, what: str, missing: list[str]) -> list[dict[str, Any]] | None:
    """The records of a file of JSON lines; None where it is not there."""
    if not path.exists():
        return None
    try:
        found = [record for _, _, record in jsonl_lines(path)]
    except OSError as error:
        missing.append(f"{path.name} cannot be read: {error.strerror}.")
        return []
    if damaged := found.count(None):
        missing.append(f"{damaged:,} damaged line{'s' * (damaged > 1)} of {path.name} left out: no {what}.")
    return [record for record in found if record is not None]


def _metrics(place: Path, missing: list[str]) -> list[dict[str, Any]]:
    found = _lines(place / "metrics.jsonl", "metrics", missing)
    if found is None:
        missing.append("There are no metrics (metrics.jsonl).")
    return [record for record in found or [] if figure(record, "step") is not None]


def _rows(place: Path, missing: list[str]) -> tuple[tuple[Row, ...], bool]:
    found = _lines(place / "rows.jsonl", "rows", missing)
    if found is None:
        missing.append("The encoder has not been judged: smallview evaluate does it.")
        return (), True
    rows = [_row(record) for record in found]
    if bad := rows.count(None):
        missing.append(f"{bad:,} row{'s' * (bad > 1)} of rows.jsonl left out: not as evaluate writes them.")
    return tuple(row for row in rows if row is not None), not bad


def _row(record: Mapping[str, Any]) -> Row | None:
    """A row with everything of the kind it should be, or None."""
    texts = all(isinstance(record.get(name), str) for name in ("protocol", "metric"))
    numbers = all(figure(record, name) is not None for name in ("value", "seed", "n_train", "n_test"))
    maybe = all(
        record.get(name) is None or figure(record, name) is not None for name in ("floor_pixels", "floor_untrained", "interval")
    )
    tables = all(isinstance(record.get(name, {}), dict) for name in ("settings", "cost"))
    if not (texts and numbers and maybe and tables and set(record) <= set(Row.__dataclass_fields__)):
        return None
    return Row(**record)


def _summary(place: Path, missing: list[str]) -> dict[str, Any]:
    if not (place / "summary.json").exists():
        return {}
    try:
        found = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("cost"), dict) and figure(found, "seed") is not None:
            return found
        missing.append("summary.json is damaged: no seed and cost in it.")
    except (OSError, ValueError, RecursionError) as error:
        missing.append(f"summary.json is damaged: {error}.")
    return {}


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each figure: what was judged twice counts once."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = row.protocol, row.metric, str(row.settings.get("test"))
        found.pop(key, None)
        found[key] = row
    return list(found.values())


def without_paths(text: str, known: Sequence[Path] = ()) -> str:
    r"""The text with every place on a disk shortened to its last part; `known` ones may have spaces in them.

    Example:
        >>> without_paths("step 40 of /home/ann/runs/a; see C:\\Users\\ann\\x.npy, 3/4 of photos/cat.jpg")
        'step 40 of a; see x.npy, 3/4 of photos/cat.jpg'
        >>> without_paths("in /mnt/my data/photos now", [Path("/mnt/my data/photos")])
        'in photos now'
    """
    for place in sorted({str(path) for path in (*known, Path.home()) if len(path.parts) > 1}, key=len, reverse=True):
        text = text.replace(place, "~" if place == str(Path.home()) else Path(place).name)
    return _PATH.sub(lambda found: found[1], text)


def private(value: Any, known: Sequence[Path] = (), name: str = "") -> Any:
    """Settings and records without places on a disk, however deep; those that are places by their name are cut to their last part.

    Example:
        >>> private({"data": "ann/photos/", "masks": {"source": "encoder:/home/ann/runs/a"}, "lr": 0.1})
        {'data': 'photos', 'masks': {'source': 'encoder:a'}, 'lr': 0.1}
    """
    if isinstance(value, Mapping):
        return {key: private(item, known, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [private(item, known) for item in value]
    if not isinstance(value, str):
        return value
    if name in PLACES or name in ("source", "chosen_by"):
        head, colon, rest = value.rpartition(":") if value.startswith(("encoder:", "hf:")) else ("", "", value)
        return head + colon + (re.split(r"[/\\]", rest.rstrip("/\\"))[-1] or rest)
    return without_paths(value, known)
