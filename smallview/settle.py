"""From what the user gave to the settled run: the source's facts, the defaults that follow from them, the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from smallview.config import FORMAT_VERSION, Facts, RunConfig, read_config_file, resolve_config
from smallview.data.decoding import BadPicture
from smallview.data.sources import Source
from smallview.errors import DataError
from smallview.settings import dump_toml, to_tables
from smallview.training.precision import choose_device


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    facts = Facts(name, len(source), picture_side(source), device.type, cores())
    flags = dict(given)
    if isinstance(encoder, nn.Module):
        flags["encoder"] = f"custom:{type(encoder).__name__}"
    elif encoder is not None:
        flags["encoder"] = encoder
    return resolve_config(facts, flags, file, sets)


def explain(config: RunConfig, reasons: Mapping[str, str], *, as_json: bool = False) -> str:
    """Every setting with the reason for its value: TOML with comments, or JSON."""
    tables = to_tables(config)
    if as_json:
        return json.dumps({"settings": tables, "reasons": dict(reasons)}) + "\n"
    lines: list[str] = []
    for line in dump_toml({"format_version": FORMAT_VERSION, **tables}).splitlines():
        head = line.split(" = ")[0] if " = " in line else line.strip("[]")
        top = not lines or not any(made.startswith("[") for made in lines)
        reason = reasons.get(head) if top or line.startswith("[") else None
        lines.append(f"{line}  # {reason}" if reason else line)
    return "\n".join(lines) + "\n"


def default_out(source: Source, config: RunConfig) -> Path:
    """runs/<data name>-<method>-<encoder>."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in source.name)
    return Path("runs") / f"{plain}-{config.preset}-{config.encoder.replace('custom:', '').replace('/', '-')}"


def next_free(out: Path) -> Path:
    """The folder itself while it is unused, else DIR-2, DIR-3, ...: --fresh moves on and deletes nothing."""
    candidate, n = out, 1
    while candidate.exists() and any(candidate.iterdir()):
        n += 1
        candidate = out.with_name(f"{out.name}-{n}")
    return candidate
