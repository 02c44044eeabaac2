"""The recipes that are known to be best for a budget: settings, and the measured runs that speak for them.

What is chosen depends on the pictures, the minutes and the kind of device alone, never on how fast the machine happened to be: the same
command finds the same recipe again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from smallview import ledger

Task = Literal["linear", "few-labels", "retrieval"]
EXPERIMENT = "plan"
METRIC: dict[Task, str] = {"linear": "linear", "few-labels": "lowshot", "retrieval": "knn20"}
FEWEST = 100  # pictures
LEAST_SEEN = 5.0  # times that a picture is seen


@dataclass(frozen=True)
class Recipe:
    """Settings by name, as `pretrain` takes them, and `sets` by path; why, in a few words."""

    name: str
    why: str
    given: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)

    def flags(self) -> list[str]:
        """As they stand on a command line.

        Example:
            >>> Recipe("a", "b", {"method": "simclr"}, {"optimizer.lr": 0.1}).flags()
            ['--method', 'simclr', '--set', 'optimizer.lr=0.1']
        """
        out: list[str] = []
        for name, value in self.given.items():
            out += [f"--{name.replace('_', '-')}", str(value)]
        for path, value in self.sets.items():
            out += ["--set", f"{path}={value}"]
        return out


SMALL_FIRST = Recipe(
    "small pictures first",
    "views of half the size for 70 % of the training, then of the whole",
    {"method": "simclr", "resolution": "Steps((0.5, 1.0), (0.7,))"},
)
SMALL = Recipe(
    "small pictures",
    "views of half the size all the way: four times as many pictures in the same time",
    {"method": "simclr", "resolution": "0.5"},
)
PLAIN = Recipe("plain", "views of one size all the way", {"method": "simclr"})
KNOWN = (SMALL_FIRST, SMALL, PLAIN)


@dataclass(frozen=True)
class Evidence:
    """What runs of a recipe came to: points above the untrained encoder, from the least to the most, on which data, in how many runs."""

    low: float
    high: float
    data: tuple[str, ...]
    runs: int
    minutes: tuple[float, ...]

    def sentence(self, task: Task) -> str:
        """In words."""
        shown = f"{self.low:.0f} to {self.high:.0f}" if round(self.low) != round(self.high) else f"{self.low:.0f}"
        lengths = " and ".join(f"{m:g}" for m in self.minutes)
        return (
            f"{shown} points of {METRIC[task]} accuracy above the untrained encoder in {self.runs} measured run{'s' * (self.runs > 1)} of "
            f"{lengths} minutes ({', '.join(self.data)})"
        )


def _near(entry: ledger.Entry, minutes: float) -> bool:
    """Whether a run was of such a length, within a factor of three; minutes that cannot be meant are refused elsewhere."""
    return minutes <= 3.0 * float(entry.settings["minutes"]) <= 9.0 * minutes


def evidence(recipe: Recipe, task: Task, minutes: float, entries: Sequence[ledger.Entry] | None = None) -> Evidence | None:
    """The measured runs of a recipe, those of the nearest length: within a factor of three; None where there are none.

    Example:
        >>> evidence(PLAIN, "linear", 5.0, [])
    """
    metric = METRIC[task]
    known = [
        e
        for e in (ledger.read(experiment=EXPERIMENT) if entries is None else entries)
        if e.arm == recipe.name and metric in e.rows and f"{metric} untrained" in e.rows
    ]
    near = [e for e in known if _near(e, minutes)]
    if not near:
        return None
    gains = [e.rows[metric] - e.rows[f"{metric} untrained"] for e in near]
    lengths = tuple(sorted({float(e.settings["minutes"]) for e in near}))
    return Evidence(min(gains), max(gains), tuple(sorted({e.data for e in near})), len(near), lengths)


def ranked(task: Task = "linear", minutes: float = 5.0, entries: Sequence[ledger.Entry] | None = None) -> list[Recipe]:
    """The known recipes, the best first: by the mean of what they came to on the data sets that all of them were measured on.

    Without measured runs of this length they stand in the order that they are known in.
    """
    known = ledger.read(experiment=EXPERIMENT) if entries is None else entries
    metric = METRIC[task]
    means: dict[str, dict[str, float]] = {}
    for recipe in KNOWN:
        for data in {e.data for e in known}:
            values = [
                e.rows[metric]
                for e in known
                if e.arm == recipe.name and e.data == data and metric in e.rows and _near(e, minutes)
            ]
            if values:
                means.setdefault(recipe.name, {})[data] = sum(values) / len(values)
    measured = [recipe for recipe in KNOWN if recipe.name in means]
    common = set.intersection(*(set(means[recipe.name]) for recipe in measured)) if measured else set()
    if not common:
        return list(KNOWN)
    best = sorted(measured, key=lambda recipe: -sum(means[recipe.name][data] for data in common))
    return best + [recipe for recipe in KNOWN if recipe not in best]


def bare(given: Mapping[str, Any], config: object, sets: Mapping[str, object] | None) -> bool:
    """Whether minutes were asked for and nothing about how: then the first recipe is taken."""
    about_how = (
        "method",
        "preset",
        "encoder",
        "stem",
        "size",
        "epochs",
        "batch_size",
        "resolution",
        "stages",
        "subset",
        "depth",
    )
    return (
        given.get("minutes") is not None and config is None and not sets and all(given.get(name) is None for name in about_how)
    )
