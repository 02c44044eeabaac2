"""How a run goes on: the settings that it began with, what may differ from them, and where its first step comes from."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smallview import collectives
from smallview import config as configuration
from smallview.config import RunConfig, mathematics
from smallview.errors import UsageError
from smallview.files import write_text
from smallview.settings import apply_tables, diff, dump_toml, from_tables, load_toml, to_tables
from smallview.settle import cores

MOST_TOLD = 6
Say = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """A run that another one starts from: its folder, and the step of one of its checkpoints; None is the newest."""

    folder: Path
    step: int | None


def origin_of(path: str | Path) -> Origin:
    """What --resume-from names: a run folder, or one of its checkpoints.

    Raises:
        UsageError: neither of them.

    Example:
        >>> origin_of("no/such/run")
        Traceback (most recent call last):
        smallview.errors.UsageError: there is no run in no/such/run; wanted a run folder, or DIR/checkpoints/step-000123 in one
    """
    place = Path(path)
    named = re.fullmatch(r"step-(\d{6,12})", place.name)
    folder = place.parent.parent if named and place.parent.name == "checkpoints" else place
    if not (folder / "run.toml").exists():
        raise UsageError(f"there is no run in {folder}; wanted a run folder, or DIR/checkpoints/step-000123 in one")
    if stages := stages_of(folder):
        raise UsageError(f"{folder} is a run of {len(stages)} stages; wanted one of them, such as {stages[-1]}")
    return Origin(folder, int(named[1]) if named and folder != place else None)


def finished(folder: Path) -> bool:
    """Whether the run in this folder is done."""
    return (folder / "encoder" / "config.json").exists() and (folder / "summary.json").exists()


def stages_of(folder: Path) -> list[Path]:
    """The folders of a run's stages, in order; none where it was trained in one piece.

    Example:
        >>> stages_of(Path("no/such/run"))
        []
    """
    place = folder / "stages"
    if not place.is_dir():
        return []
    found = [(int(named[1]), inner) for inner in place.iterdir() if (named := re.fullmatch(r"(\d+)-\d+px", inner.name))]
    return [inner for _, inner in sorted(found)]


def checkpoints_of(folder: Path) -> Path:
    """Where a run's last checkpoints are: its own, or those of the last of its stages."""
    stages = stages_of(folder)
    return (stages[-1] if stages else folder) / "checkpoints"


def stored_config(folder: Path, wanted: RunConfig | None = None) -> RunConfig | None:
    """The settings of a run that began in this folder; None where none did.

    wanted: settings whose parts may be of classes that this package does not have; a record that names these is read by them.

    Raises:
        UsageError: a damaged record, or one of another version.
    """
    path = folder / "run.toml"
    if not path.exists():
        return None
    try:
        tables = load_toml(path)
        version = tables.pop("format_version", configuration.FORMAT_VERSION)
        tables.pop("recorded", None)
        if version == configuration.FORMAT_VERSION:
            try:
                return from_tables(RunConfig, tables, source=str(path))
            except UsageError:
                own = None if wanted is None else _by_own_classes(wanted, tables)
                if own is None:
                    raise
                return own
    except UsageError as error:
        raise UsageError(f"the record of the run is damaged: {error}; put it right, or add --fresh or another --out") from None
    if version not in range(1, configuration.FORMAT_VERSION):
        raise UsageError(
            f"{path} has format_version {version}; this version goes on with {configuration.FORMAT_VERSION}: add --fresh or another --out"
        )
    began = "was made by" if finished(folder) else "began with"
    finish = "" if finished(folder) else "finish it there, or "
    raise UsageError(f"{folder} {began} an earlier version of smallview, whose views were others; {finish}add --fresh")


def _by_own_classes(wanted: RunConfig, tables: dict[str, Any]) -> RunConfig | None:
    """A record laid over settings that have the classes it names; None where that does not give the record itself."""
    try:
        found = apply_tables(wanted, tables)
    except UsageError:
        return None
    return found if dump_toml(to_tables(found)) == dump_toml(tables) else None


def going_on(wanted: RunConfig, stored: RunConfig, explicit: set[str], folder: Path, say: Say) -> RunConfig:
    """The settings to go on with: the stored ones, if the mathematics agree.

    Raises:
        UsageError: they do not, with what differs.
    """
    # what was left to the defaults stays as the first start resolved it
    left = {name: getattr(stored, name) for name in ("batch_size", "stem", "layout", "dtype", "pack") if name not in explicit}
    if wanted.stem == "auto":
        left["stem"] = stored.stem
    wanted = replace(wanted, **left)
    changed = [line for line in diff(mathematics(stored), mathematics(wanted)) if not line.startswith("data:")]
    if changed:
        told = "; ".join(changed[:MOST_TOLD]) + (f"; and {len(changed) - MOST_TOLD} more" if len(changed) > MOST_TOLD else "")
        raise UsageError(
            f"{folder} holds a run with other settings ({told}); "
            "repeat its settings to go on with it, or add --fresh or another --out to start anew"
        )
    if "threads" in explicit and wanted.threads != stored.threads:
        say(f"going on with {stored.threads} threads as the run began, not {wanted.threads}: other threads give other bits")
    return replace(wanted, steps=stored.steps, threads=stored.threads)


def check_same_weights(folder: Path, weights: str | None) -> None:
    """Whether the weights that a run starts from are those that it began with, by their SHA-256.

    Raises:
        UsageError: they are others.
    """
    recorded = load_toml(folder / "run.toml")
    if recorded.get("recorded", {}).get("weights_sha256") != weights:
        raise UsageError(
            f"the weights in {recorded.get('weights_from')} are others than those that the run began with; bring the old ones back, "
            "or add --fresh to start anew"
        )


def tell_other_processes(folder: Path, say: Say) -> None:
    """Say it when another number of processes goes on with a run, or another version of torch."""
    recorded = load_toml(folder / "run.toml").get("recorded", {})
    before, now = int(recorded.get("processes", 1)), collectives.world()
    if before != now:
        say(f"{before} -> {now} processes: the same batches in the same order; rounding may differ")
    if recorded.get("torch", torch.__version__) != torch.__version__:
        say(f"the run began with torch {recorded['torch']} and goes on with {torch.__version__}: rounding may differ")


def write_config(folder: Path, config: RunConfig, recorded: dict[str, Any], changed: str = "") -> None:
    """Write run.toml: every setting, and what was found out about data and machine; `changed` pictures are added to those before."""
    path = folder / "run.toml"
    changes = load_toml(path).get("recorded", {}).get("data_changes", []) if changed and path.exists() else []
    recorded = {
        **recorded,
        **({"data_changes": [*changes, changed]} if changed else {}),
        "processes": collectives.world(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {cores()} cores",
    }
    tables = {"format_version": configuration.FORMAT_VERSION, **to_tables(config), "recorded": recorded}
    write_text(folder / "run.toml", dump_toml(tables))
