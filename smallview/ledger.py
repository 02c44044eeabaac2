"""The measured runs that documents and recommendations stand on: one JSON line each, shipped with the library.

A line says what was run (experiment, arm, settings), on what (data, seed, machine, versions), what it cost and what came out.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from smallview.errors import DataError
from smallview.files import check_version, jsonl_line

FORMAT_VERSION = 1
SHIPPED = "results/ledger.jsonl"
COSTS = ("train_seconds", "flops", "steps", "epochs", "epochs_224", "peak_memory_mib", "parameters", "forward_mmacs")


@dataclass(frozen=True)
class Entry:
    """One measured run. settings: what differs from the defaults, as flags and paths. rows: {metric: value}. scale: cpu or gpu."""

    experiment: str
    arm: str
    settings: dict[str, Any]
    data: str
    seed: int
    scale: str
    machine: str
    versions: dict[str, str]
    cost: dict[str, float]
    rows: dict[str, float]
    format_version: int = FORMAT_VERSION


def this_machine() -> str:
    """What kind of machine this is; no name of it.

    Example:
        >>> "cores" in this_machine()
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass
    return f"{model}, {cores} cores"


def these_versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    out = {}
    for name in ("smallview", "torch"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:  # run from its source
            continue
    return out


def entry(
    experiment: str,
    arm: str,
    settings: Mapping[str, Any],
    data: str,
    seed: int,
    cost: Mapping[str, Any],
    rows: Mapping[str, float],
    scale: str = "cpu",
) -> Entry:
    """A run measured here and now."""
    kept = {name: cost[name] for name in COSTS if name in cost}
    return Entry(experiment, arm, dict(settings), data, seed, scale, this_machine(), these_versions(), kept, dict(rows))


def append(path: str | Path, entries: Iterable[Entry]) -> None:
    """Add measured runs to a ledger; a line is written whole."""
    with open(path, "ab") as file:
        for one in entries:
            file.write(jsonl_line(asdict(one)))
            file.flush()


def read(path: str | Path | None = None, experiment: str | None = None) -> list[Entry]:
    """The runs of a ledger, of the one that the library ships by default; of one experiment, if so asked. A torn last line is left out.

    Raises:
        DataError: a line that is no entry, by its number. UsageError: one of a newer version.

    Example:
        >>> read(experiment="no such experiment")
        []
    """
    text = (files("smallview") / SHIPPED if path is None else Path(path)).read_text(encoding="utf-8")
    out = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line or number == len(lines):
            continue
        try:
            told = json.loads(line)
            check_version(told, FORMAT_VERSION, f"line {number} of the ledger {path or SHIPPED}")
            one = Entry(**told)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"line {number} of the ledger {path or SHIPPED} is no entry: {error}; put it right or take it out"
            ) from None
        if experiment is None or one.experiment == experiment:
            out.append(one)
    return out
