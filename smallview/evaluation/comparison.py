"""What rows of several trainings say together: means and spreads over seeds, paired differences, and what may not be compared.

Legend: G groups of trainings that differ by their seed alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from smallview.errors import UsageError
from smallview.evaluation.metrics import t_factor
from smallview.records import Row

COSTS = {
    "flops": "training, PFLOP",
    "train_seconds": "training, s",
    "peak_memory_mib": "peak memory, MiB",
    "parameters": "parameters, M",
}
_SCALE = {"flops": 1e-15, "parameters": 1e-6}


@dataclass(frozen=True)
class Trained:
    """One training: the group it belongs to, its seed, its rows and what it cost."""

    name: str
    group: str
    seed: int
    rows: tuple[Row, ...]
    cost: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A figure of one group: its mean, its standard deviation over seeds (None of one), and the value of each seed.

    interval: half the width of the 95 % interval over test pictures, where the figure has one.
    """

    mean: float
    std: float | None
    by_seed: dict[int, float]
    floor_pixels: float | None
    floor_untrained: float | None
    interval: float | None


@dataclass(frozen=True)
class Difference:
    """One group against the first: mean difference, half the width of its 95 % interval (None of one pair), and what that says."""

    group: str
    metric: str
    part: str
    value: float
    interval: float | None
    pairs: int
    paired: bool
    sentence: str


@dataclass(frozen=True)
class Line:
    """One figure of all groups: a metric on a test part; groups without it are absent."""

    protocol: str
    metric: str
    part: str
    text: str
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Comparison:
    """A table: lines by protocol, groups as columns, costs, differences to the first group, and who is best for its cost."""

    groups: tuple[str, ...]
    lines: tuple[Line, ...]
    costs: dict[str, dict[str, float]]
    differences: tuple[Difference, ...]
    front: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def identity(row: Row) -> str:
    """What must be equal before two figures may stand side by side: the protocol's settings and both parts, not the encoder."""
    said = row.settings
    return json.dumps(
        [
            said.get("protocol"),
            said.get("protocol_settings"),
            *(said.get("train_sha256") or said.get("train"), said.get("test_sha256") or said.get("test")),
            *(row.n_train, row.n_test),
        ],
        sort_keys=True,
    )


def compare(trained: Sequence[Trained], by: str | None = None) -> Comparison:
    """The table of these trainings; groups in the order of their first training, each set against the first group.

    by: the metric that decides who is best for its cost; the first of `linear` by default, else the first there is.

    Raises:
        UsageError: nothing to compare, or figures of one name that come from different protocols or data.
    """
    if not any(one.rows for one in trained):
        raise UsageError("none of these runs has been judged; run smallview evaluate on each of them first")
    groups = tuple(dict.fromkeys(one.group for one in trained))
    keys = list(
        dict.fromkeys(
            (row.settings.get("protocol", ""), row.metric, row.settings.get("test", "")) for one in trained for row in one.rows
        )
    )
    lines = tuple(_line(key, trained, groups) for key in keys)
    differences = tuple(d for line in lines for d in _differences(line, groups))
    costs = {
        group: {
            name: fmean(values)
            for name in COSTS
            if (values := [float(one.cost[name]) for one in trained if one.group == group and one.cost.get(name) is not None])
        }
        for group in groups
    }
    wanted = (
        [line for line in lines if line.metric == by]
        if by
        else [line for line in lines if line.protocol == "linear"] or list(lines)
    )
    if not wanted:
        raise UsageError(f'no figure is called "{by}"; there are: {", ".join(dict.fromkeys(line.metric for line in lines))}')
    chosen = wanted[0]
    notes = []
    if len(differences) > 1:
        notes.append(f"{len(differences)} differences were looked at; intervals are not widened for that")
    return Comparison(groups, lines, costs, differences, {chosen.metric: _front(chosen, costs)}, tuple(notes))


def _line(key: tuple[str, str, str], trained: Sequence[Trained], groups: tuple[str, ...]) -> Line:
    protocol, metric, part = key
    found: dict[str, dict[str, Row]] = {}
    for one in trained:
        for row in one.rows:  # the newest of each identity
            if (row.settings.get("protocol", ""), row.metric, row.settings.get("test", "")) == key:
                found.setdefault(one.name, {}).pop(identity(row), None)
                found[one.name][identity(row)] = row
    shared = set.intersection(*(set(rows) for rows in found.values()))
    if not shared:
        (first, mine), (second, others) = next(
            ((a, x), (b, y)) for a, x in found.items() for b, y in found.items() if not set(x) & set(y)
        )
        raise UsageError(
            f"{metric} on {part} of {first} and of {second} come from different protocols or data: "
            f"{_unequal(list(mine.values())[-1], list(others.values())[-1])}; judge both in the same way, or leave one out"
        )
    newest = [name for name in next(iter(found.values())) if name in shared][-1]
    cells: dict[str, Cell] = {}
    text = ""
    for group in groups:
        rows = {one.seed: found[one.name][newest] for one in trained if one.group == group and one.name in found}
        if not rows:
            continue
        values = {seed: row.value for seed, row in rows.items()}
        text = text or next(iter(rows.values())).protocol

        def mean(name: str, rows: list[Row]) -> float | None:
            known = [value for row in rows if (value := getattr(row, name)) is not None]
            return fmean(known) if known else None

        judged = list(rows.values())

        cells[group] = Cell(
            fmean(values.values()),
            stdev(values.values()) if len(values) > 1 else None,
            values,
            mean("floor_pixels", judged),
            mean("floor_untrained", judged),
            # an interval over draws of labels says nothing of the test pictures
            mean("interval", [row for row in judged if "draws" not in row.settings]),
        )
    return Line(protocol, metric, part, text, cells)


def _unequal(a: Row, b: Row) -> str:
    told = []
    for name in ("protocol_settings", "train", "train_sha256", "test", "test_sha256"):
        one, other = a.settings.get(name), b.settings.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            told += [f"{k} {one.get(k)} and {other.get(k)}" for k in {**one, **other} if one.get(k) != other.get(k)]
        elif one != other:
            short = [str(value)[:12] if name.endswith("sha256") else value for value in (one, other)]
            told.append(f"{name} {short[0]} and {short[1]}")
    for name in ("n_train", "n_test"):
        if getattr(a, name) != getattr(b, name):
            told.append(f"{name} {getattr(a, name):,} and {getattr(b, name):,}")
    return ", ".join(told) or "other data of the same name"


def _differences(line: Line, groups: tuple[str, ...]) -> list[Difference]:
    if not groups or groups[0] not in line.cells:
        return []
    base = line.cells[groups[0]]
    return [_difference(line, groups[0], base, group, line.cells[group]) for group in groups[1:] if group in line.cells]


def _difference(line: Line, first: str, base: Cell, group: str, cell: Cell) -> Difference:
    shared = sorted(set(base.by_seed) & set(cell.by_seed))
    value, interval, paired = cell.mean - base.mean, None, True
    n = len(shared)
    if n > 1:
        apart = [cell.by_seed[seed] - base.by_seed[seed] for seed in shared]
        value, interval = fmean(apart), t_factor(n) * stdev(apart) / math.sqrt(n)
        seeds = f"{n} seeds"
    elif cell.std is not None and base.std is not None:  # other seeds on either side: Welch
        paired, n = False, min(len(base.by_seed), len(cell.by_seed))
        a, b = base.std**2 / len(base.by_seed), cell.std**2 / len(cell.by_seed)
        freedom = (a + b) ** 2 / max(1e-300, a**2 / (len(base.by_seed) - 1) + b**2 / (len(cell.by_seed) - 1)) if a + b else 1.0
        interval = t_factor(max(2, math.floor(freedom) + 1)) * math.sqrt(a + b)
        seeds = f"{len(base.by_seed)} and {len(cell.by_seed)} seeds"
    else:
        seeds = "one seed"
    what = f"{line.metric} on {line.part}: {group} against {first}"
    if interval is None:
        noise = base.interval or 0.0
        alone = f"; the test pictures alone leave ± {math.sqrt(2.0) * noise:.2f}" if noise else ""
        sentence = f"{what} {value:+.2f} at {seeds}: no difference can be shown without more seeds{alone}"
    elif abs(value) <= interval:
        sentence = f"{what} {value:+.2f} ± {interval:.2f}: no difference shown at {seeds}"
    else:
        higher = "higher" if value > 0 else "lower"
        sentence = f"{what} {value:+.2f} ± {interval:.2f}: {higher} at {seeds}"
        noise = math.sqrt(2.0) * (base.interval or 0.0)
        if noise > abs(value):
            sentence += (
                f", on these test pictures; others of their kind could move it by {noise:.2f}, so more test pictures are wanted"
            )
    return Difference(group, line.metric, line.part, value, interval, n, paired, sentence)


def _front(line: Line, costs: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """The groups that no other one beats in quality at the same training compute or less, cheapest first."""
    known = [
        (costs[group]["flops"], -cell.mean, group) for group, cell in line.cells.items() if "flops" in costs.get(group, {})
    ]
    front: list[str] = []
    best = -math.inf
    for _, negative, group in sorted(known):
        if -negative > best:
            best = -negative
            front.append(group)
    return tuple(front)


def cost_text(name: str, value: float) -> str:
    """A cost in the unit of its column.

    Example:
        >>> cost_text("peak_memory_mib", 1054.2), cost_text("peak_memory_mib", 0.12345)
        ('1,054', '0.123')
    """
    scaled = value * _SCALE.get(name, 1.0)
    return f"{scaled:,.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"
