"""From what the user gave to the settled run: the source's facts, the defaults that follow from them, the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallview.config import FORMAT_VERSION, RunConfig, smallest_side
from smallview.data.decoding import BadPicture
from smallview.data.pack_kind import pack_kind, stored_kind
from smallview.data.sources import Source
from smallview.errors import DataError, UsageError, suggest
from smallview.networks.dense_small import widths_of
from smallview.networks.encoders import OWN
from smallview.networks.patches import words_of
from smallview.recipes import bare, ranked
from smallview.resolving import Facts, read_config_file, resolve_config
from smallview.settings import dump_toml, to_tables
from smallview.training.compiled import check_views
from smallview.training.memory import passes_for
from smallview.training.precision import choose_device
from smallview.training.processes import local_world

NO_JPEGS = "JPEGs hold 1 or 3 channels and these pictures have others"


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """The threads asked for, or all processors that this process may use.

    Raises:
        UsageError: fewer than one.
    """
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads}; wanted 1 or more")
    return threads or cores()


@contextmanager
def kept_threads() -> Iterator[None]:
    """Whatever number of threads torch is given inside, the caller's is back afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_encoder(name: str) -> None:
    """Tells of an encoder that nobody knows before anything slow begins.

    Raises:
        UsageError: neither ours nor timm's, or widths that cannot be built.
    """
    if widths_of(name) is not None or words_of(name) is not None or name.startswith("custom:"):
        return
    import timm

    known = timm.list_models()
    if name.split(".")[0] not in known:
        close = suggest(name[:80], [*OWN, *known])
        hint = close if "did you mean" in close else f"; wanted {', '.join(OWN)} or a timm name, such as resnet18"
        raise UsageError(f'no encoder is called "{name[:80]}"{hint}')


def picture_side(source: Source, most: int = 8) -> int:
    """The short side of the largest of a few pictures, spread evenly over the source; what the default size follows."""
    if source.array is not None:
        return int(min(source.array.shape[1:3]))
    sides = []
    for i in range(0, len(source), max(1, len(source) // most)):
        try:
            sides.append(min(source.read(i).shape[:2]))
        except BadPicture:
            continue  # told when the pack is made
    return max(sides, default=64)


def settle(
    data: Any,
    source: Source,
    given: Mapping[str, Any],
    config_file: str | None = None,
    sets: Mapping[str, object] | None = None,
    encoder: str | nn.Module | None = None,
) -> tuple[RunConfig, dict[str, str]]:
    """The resolved settings of a run on this source, and the reason of each.

    Raises:
        UsageError: settings that cannot be meant. DataError: fewer than two pictures.
    """
    if len(source) < 2:
        raise DataError(f"{source.name} holds {len(source)} picture; wanted at least 2 to tell pictures apart, better hundreds")
    file = None if config_file is None else read_config_file(config_file)
    device = choose_device(str(given.get("device") or (file or {}).get("device") or "auto"))
    name = str(data) if isinstance(data, (str, os.PathLike)) else source.name
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # run.toml is Unicode text
    facts = Facts(name, len(source), picture_side(source), device.type, max(1, cores() // local_world()))
    flags, chosen = dict(given), ""
    if isinstance(encoder, nn.Module):
        flags["encoder"] = f"custom:{type(encoder).__name__}"
    elif encoder is not None:
        flags["encoder"] = encoder
    elif bare(given, config_file, sets):
        recipe = ranked(minutes=float(given["minutes"]))[0]
        flags, sets = {**flags, **recipe.given}, recipe.sets
        chosen = recipe.name
    config, reasons = resolve_config(facts, flags, file, sets, origin=config_file or "the file")
    if chosen:
        reasons |= {name: f"recipe: {chosen}" for name in (*recipe.given, *recipe.sets, "preset") if name in reasons}
    check_encoder(config.encoder)
    passes_for(config.execution, config.memory)  # refuses what does not go together
    if config.execution == "compile":
        check_views(config.method, config.size)
    if config.pack == "auto":  # the kind changes what is seen, and is settled like every other default
        config = replace(config, pack=pack_kind(source, smallest_side(config)))
    elif config.pack != stored_kind(config.pack, source.channels):
        config = replace(config, pack=stored_kind(config.pack, source.channels))
        reasons["pack"] = NO_JPEGS
    return config, reasons


def explain(config: RunConfig, reasons: Mapping[str, str], *, as_json: bool = False) -> str:
    """Every setting with the reason for its value: TOML with comments, or JSON."""
    tables = to_tables(config)
    if as_json:
        return json.dumps({"settings": tables, "reasons": dict(reasons)}) + "\n"
    lines: list[str] = []
    table, seen = "", dict[str, int]()
    for line in dump_toml({"format_version": FORMAT_VERSION, **tables}).splitlines():
        if line.startswith("["):
            table = path = line.strip("[]")
            if line.startswith("[["):
                seen[table] = seen.get(table, -1) + 1
                table = path = f"{table}.{seen[table]}"
        else:
            key = line.split(" = ")[0]
            path = f"{table}.{key}" if table else key
        lines.append(f"{line}  # {reasons[path]}" if line and path in reasons else line)
    return "\n".join(lines) + "\n"


def default_out(source: Source, config: RunConfig) -> Path:
    """runs/<data name>-<method>-<encoder>."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in source.name)
    return Path("runs") / f"{plain}-{config.preset}-{config.encoder.replace('custom:', '').replace('/', '-').replace(':', '-')}"


def next_free(out: Path) -> Path:
    """The folder itself while it is unused, else DIR-2, DIR-3, ...: --fresh moves on and deletes nothing."""
    candidate, n = out, 1
    while candidate.is_dir() and any(candidate.iterdir()):
        n += 1
        candidate = out.with_name(f"{out.name}-{n}")
    return candidate
