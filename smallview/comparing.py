"""`compare`: runs from their folders, grouped by what they were told but for the seed, as one table in several forms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallview.config import RunConfig, mathematics
from smallview.continuing import stored_config
from smallview.errors import UsageError
from smallview.evaluation.comparison import COSTS, Cell, Comparison, Trained, cost_text
from smallview.evaluation.comparison import compare as compared
from smallview.files import close_path
from smallview.records import Row
from smallview.settings import diff
from smallview.stages import write_stages
from smallview.training.log import read_jsonl

MOST_TOLD = 3


def read_trained(folders: Sequence[str | Path]) -> list[Trained]:
    """The trainings in these folders; those whose settings differ by the seed alone are of one group, named by what tells it apart.

    Raises:
        UsageError: a folder that is no run, or one named twice.
    """
    places = [Path(folder) for folder in folders]
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError("a run is named twice; wanted each once")
    told: list[tuple[Path, dict[str, Any], dict[str, Any]]] = []
    kinds: list[dict[str, Any]] = []
    shorts: list[dict[str, Any]] = []
    for place in places:
        path = place / "summary.json"
        if not path.is_file():
            raise UsageError(
                f"{place} holds no finished run (summary.json){close_path(place)}; wanted run folders that smallview evaluate has judged"
            )
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            seed, method, cost = int(summary["seed"]), str(summary["method"]), dict(summary["cost"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged ({error}); leave {place} out") from error
        config = stored_config(place) if (place / "run.toml").is_file() else None
        if config is None:  # trained with labels: one of a kind but for its seed
            tables: dict[str, Any] = {"preset": method, "encoder": _architecture(place)}
            short = tables
        else:
            tables = {k: v for k, v in mathematics(config).items() if k != "seed"}
            short = _in_short(config, tables)
        told.append((place, {"seed": seed, "cost": cost, "method": method}, tables))
        if tables not in kinds:
            kinds.append(tables)
            shorts.append(short)
    names = _names(shorts)
    out = []
    for place, summary, tables in told:
        rows = tuple(Row(**record) for record in read_jsonl(place / "rows.jsonl")) if (place / "rows.jsonl").exists() else ()
        out.append(Trained(str(place), names[kinds.index(tables)], summary["seed"], rows, summary["cost"]))
    taken: dict[tuple[str, int], str] = {}
    for one in out:
        if (one.group, one.seed) in taken:
            raise UsageError(
                f"{taken[one.group, one.seed]} and {one.name} are the same training with the same seed {one.seed}; wanted one of them"
            )
        taken[one.group, one.seed] = one.name
    return out


def _in_short(config: RunConfig, tables: dict[str, Any]) -> dict[str, Any]:
    """Settings as a name tells them: stages and subset first, in a word each, and not what follows from the stages."""
    subset = "all" if config.subset is None else str(config.subset)
    told = {"stages": write_stages(config.stages) or "none", "subset": subset}
    follows = {"epochs"} if config.stages else set()
    return {**told, **{name: value for name, value in tables.items() if name not in {*told, *follows}}}


def _architecture(place: Path) -> str:
    try:
        return str(json.loads((place / "encoder" / "config.json").read_text(encoding="utf-8"))["architecture"])
    except (OSError, ValueError, KeyError):
        return "?"


def _names(kinds: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each kind of training: its method, its encoder where there are several, and what else differs from the first of that name."""
    encoders = {kind.get("encoder") for kind in kinds}
    short = [str(kind.get("preset")) + (f" · {kind.get('encoder')}" if len(encoders) > 1 else "") for kind in kinds]
    out = []
    for i, (name, kind) in enumerate(zip(short, kinds, strict=True)):
        first = kinds[short.index(name)]
        # what is "auto" in a run of stages, each stage settles for itself
        lines = (
            [] if kind is first else [line for line in diff(first, kind) if '"auto"' not in line and "-> absent" not in line]
        )
        told = "; ".join(
            line.replace(": ", " ", 1).split(" -> ")[0].split(" ")[0] + "=" + line.split(" -> ")[1]
            for line in lines[:MOST_TOLD]
        )
        more = f"; and {len(lines) - MOST_TOLD} more" if len(lines) > MOST_TOLD else ""
        called = f"{name} ({told}{more})" if told else name
        out.append(called if called not in out else f"{called} #{i + 1}")
    return out


def compare(folders: Sequence[str | Path], by: str | None = None) -> Comparison:
    """The table of the runs in these folders, each set against the first: values by seed, differences in words, costs.

    by: the metric that decides who is best for its cost. `markdown`, `csv_text`, `table` and `sentences` put it into words.

    Raises:
        UsageError: folders that are no runs, or figures that may not be compared.
    """
    return compared(read_trained(folders), by)


def cell_text(cell: Cell | None) -> str:
    """Mean, and the spread over seeds where there are several."""
    if cell is None:
        return "-"
    return f"{cell.mean:.2f}" if cell.std is None else f"{cell.mean:.2f} ± {cell.std:.2f}"


def _floors(cells: Sequence[Cell], name: str) -> str:
    known = sorted({round(value, 2) for cell in cells if (value := getattr(cell, name)) is not None})
    if not known:
        return "-"
    return f"{known[0]:.2f}" if len(known) == 1 else f"{known[0]:.2f} to {known[-1]:.2f}"


def table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of the table as text: figures by protocol, floors, groups; then costs."""
    head = ["metric", "on", "raw pixels", "untrained", *found.groups]
    rows = [
        [
            line.metric,
            line.part,
            _floors(list(line.cells.values()), "floor_pixels"),
            _floors(list(line.cells.values()), "floor_untrained"),
            *(cell_text(line.cells.get(group)) for group in found.groups),
        ]
        for line in found.lines
    ]
    seeds = {
        group: max((len(line.cells[group].by_seed) for line in found.lines if group in line.cells), default=0)
        for group in found.groups
    }
    rows.append(["seeds", "", "", "", *(str(seeds[group]) for group in found.groups)])
    for name, called in COSTS.items():
        if any(name in found.costs[group] for group in found.groups):
            rows.append(
                [
                    called,
                    "",
                    "",
                    "",
                    *(cost_text(name, found.costs[g][name]) if name in found.costs[g] else "-" for g in found.groups),
                ]
            )
    if len({line.part for line in found.lines}) == 1:  # said in the sentences
        return [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    return head, rows


def sentences(found: Comparison) -> list[str]:
    """What the table says, in words: differences, who is best for its cost, and what to keep in mind."""
    out = [difference.sentence for difference in found.differences]
    for metric, front in found.front.items():
        if front:
            out.append(f"best for their training compute by {metric}, cheapest first: {', '.join(front)}")
    return [*out, *found.notes]


def markdown(found: Comparison) -> str:
    """The table, the sentences, and each protocol in full, as Markdown."""
    head, rows = table(found)
    lines = [f"| {' | '.join(head)} |", f"|{''.join('---|' if name in ('metric', 'on') else '---:|' for name in head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    lines += ["", *(f"- {sentence}" for sentence in sentences(found)), ""]
    lines += [f"{line.metric} on {line.part}: {line.text}." for line in found.lines]
    return "\n".join(lines) + "\n"


def csv_text(found: Comparison) -> str:
    """One line per metric, test part, group and seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["protocol", "metric", "test", "group", "seed", "value", "floor_pixels", "floor_untrained", *COSTS])
    for line in found.lines:
        for group, cell in line.cells.items():
            for seed, value in cell.by_seed.items():
                costs = (found.costs[group].get(name, "") for name in COSTS)
                writer.writerow(
                    [line.protocol, line.metric, line.part, group, seed, value, cell.floor_pixels, cell.floor_untrained, *costs]
                )
    return out.getvalue()
