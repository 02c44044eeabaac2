"""What the claims share: a grid of arms and seeds, run and judged one by one into a ledger, and the table of it.

A claim is a file: what is said and by whom, arms that differ in what is in question and in nothing else, and what was found. Arms are what
`smallview pretrain` is asked for, so that each is a command as well (`--commands` prints them).
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import smallview
from smallview import ledger

Pair = tuple[Any, Any]
STOPPED = 75  # there is more to do: the same command goes on


@dataclass(frozen=True)
class Scale:
    """How large the runs are. pictures: of the training set; test: of the test set. resolution: what part of the size views have."""

    name: str
    encoder: str
    pictures: int
    test: int
    size: int
    epochs: float
    batch_size: int
    seeds: tuple[int, ...]
    resolution: str | None = None
    threads: int | None = None

    def given(self) -> dict[str, Any]:
        """As `pretrain` takes it."""
        named = {"encoder": self.encoder, "size": self.size, "epochs": self.epochs, "batch_size": self.batch_size}
        return named if self.resolution is None else {**named, "resolution": self.resolution}


SCALES = {
    "miniature": Scale("miniature", "dense_small:8-16", 96, 60, 12, 1.0, 32, (0,), threads=1),
    # views of half the size cost a quarter and lose nothing at this length: docs/small-is-beautiful.md
    "cpu": Scale("cpu", "dense_small", 5000, 5000, 32, 20.0, 128, (0, 1), resolution="0.5"),
    "gpu": Scale("gpu", "resnet18", 50_000, 10_000, 32, 100.0, 256, (0, 1, 2)),
}


@dataclass(frozen=True)
class Arm:
    """A run: a method, what `pretrain` is given beyond the scale's own, and settings by path."""

    name: str
    method: str = "simclr"
    given: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, Any] = field(default_factory=dict)

    def command(self, scale: Scale, data: str, seed: int) -> str:
        """What a shell would run."""
        tokens = ["smallview", "pretrain", data, "--method", self.method]
        for name, value in {**scale.given(), **self.given, "seed": seed}.items():
            if value is not None:
                tokens += [f"--{name.replace('_', '-')}", str(value)]
        for path, value in self.sets.items():
            tokens += ["--set", f"{path}={value}"]
        return shlex.join(tokens)


@dataclass(frozen=True)
class Pictures:
    """A set to train on and to judge by: unlabeled pictures, labeled ones, test pictures, by the ledger's name. masks: where they are known."""

    name: str
    unlabeled: Any
    train: Pair | Any
    test: Pair | Any
    masks: Any = None


Judge = Callable[[Path, Pictures, Scale], dict[str, float]]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and the runs that answer it.

    experiment: its name in the ledger. says: the claim in a sentence, with its source. arms: of a scale. against: the arm, by name,
    that differences are told from. columns: {title: metric} of the table. found: what was found, in two sentences. telling: arms that stand
    for it among the headlines. judge: what is measured of a run. pictures: what reads a set, where it is no plain one. more: what is said
    below the table, from one scale's lines. settings: of a scale.
    """

    experiment: str
    title: str
    says: str
    arms: Callable[[Scale], Sequence[Arm]]
    against: str
    found: str = ""
    telling: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=lambda: {"linear %": "linear", "kNN %": "knn20"})
    judge: Judge | None = None
    data: tuple[str, ...] = ("cifar10",)
    pictures: Callable[[str, Scale], Pictures] | None = None
    more: Callable[[Sequence[ledger.Entry]], str] | None = None
    settings: Callable[[Scale], Scale] = lambda scale: scale


def pictures(name: str, scale: Scale) -> Pictures:
    """A set by its name; for the miniature a made one, whatever the name."""
    if scale.name == "miniature":
        random = np.random.default_rng(len(name))
        y = np.arange(scale.pictures + scale.test) % 3
        bright = 60 + 40 * y + random.normal(0, 40, len(y))  # so that no arm is right about all of them
        x = np.clip(random.normal(bright[:, None, None, None], 50, (len(y), 12, 12, 3)), 0, 255).astype(np.uint8)
        n = scale.pictures
        return Pictures(name, x[:n], (x[:n], y[:n]), (x[n:], y[n:]))
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from shared_pictures import reader

    load = reader()
    if name == "cifar10":
        x, y, test_x, test_y = load.cifar10((1,) if scale.pictures <= 10_000 else (1, 2, 3, 4, 5))
    elif name == "fashion_mnist":
        x, y, test_x, test_y = load.fashion_mnist()
    else:
        parts = getattr(load, name)("train"), getattr(load, name)("test")
        return Pictures(name, parts[0], *parts)
    n, m = scale.pictures, scale.test
    return Pictures(name, x[:n], (x[:n], y[:n]), (test_x[:m], test_y[:m]))


def linear_and_knn(run: Path, data: Pictures, scale: Scale) -> dict[str, float]:
    """The linear probe and kNN at the full size, beside the untrained encoder and the raw pixels."""
    rows = smallview.evaluate(run, data.train, data.test, ("knn", "linear"), leaks=False, threads=scale.threads)
    out: dict[str, float] = {}
    for row in rows:
        kind = row.metric.split(" ")[0]
        if kind in ("linear", "knn20"):
            out |= {kind: row.value, f"{kind} untrained": row.floor_untrained, f"{kind} pixels": row.floor_pixels}
    return out


def last_record(run: Path, name: str) -> float:
    """The last value of that name in a run's metrics."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [record[name] for record in map(json.loads, lines) if name in record]
    return float(found[-1])


def train(arm: Arm, scale: Scale, data: Pictures, seed: int, folder: Path) -> Path:
    """The arm's run, finished, in this folder; what was trained already is left as it is."""
    settings = {name: value for name, value in {**scale.given(), **arm.given}.items() if value is not None}
    if settings.get("masks") == "known":
        settings["masks"] = data.masks
    return smallview.pretrain(
        data.unlabeled, arm.method, out=folder, seed=seed, sets=dict(arm.sets), threads=scale.threads, quiet=True, **settings
    ).path


def told(arm: Arm, scale: Scale) -> dict[str, Any]:
    """An arm's settings as the ledger has them."""
    settings = {"method": arm.method, "pictures": scale.pictures, **scale.given(), **arm.given, **arm.sets}
    return {name: v if isinstance(v, (int, float, str)) else str(v) for name, v in settings.items() if v is not None}


def measure(claim: Claim, arm: Arm, scale: Scale, data: Pictures, seed: int, out: Path) -> ledger.Entry:
    """One run, judged."""
    plain = "".join(c if c.isalnum() or c == "." else "-" for c in arm.name)
    run = train(arm, scale, data, seed, out / "-".join([claim.experiment, scale.name, data.name, plain, str(seed)]))
    rows = (claim.judge or linear_and_knn)(run, data, scale)
    cost = json.loads((run / "summary.json").read_text(encoding="utf-8"))["cost"]
    return ledger.entry(claim.experiment, arm.name, told(arm, scale), data.name, seed, cost, rows, scale.name)


def run_all(claim: Claim, scale: Scale, arms: Sequence[Arm], seeds: Sequence[int], out: Path, path: Path, until: float) -> bool:
    """Every arm and seed that the ledger does not have; whether all are there. A run that another claim has made as well counts for this one."""
    for name in claim.data:
        data = None
        for seed in seeds:
            for arm in arms:
                known = ledger.read(path) if path.exists() else []
                same = [e for e in known if (e.data, e.seed, e.scale, e.settings) == (name, seed, scale.name, told(arm, scale))]
                if any(e.experiment == claim.experiment and e.arm == arm.name for e in same):
                    continue
                if claim.judge is None and (others := [e for e in same if "linear" in e.rows]):
                    ledger.append(path, [replace(others[0], experiment=claim.experiment, arm=arm.name)])
                    continue
                if time.monotonic() > until:
                    return False
                data = data or (claim.pictures or pictures)(name, scale)
                one = measure(claim, arm, scale, data, seed, out)
                ledger.append(path, [one])
                shown = {metric: round(value, 4) for metric, value in one.rows.items() if " " not in metric}
                line = {"data": name, "arm": arm.name, "seed": seed, **shown, "seconds": one.cost.get("train_seconds")}
                print(json.dumps(line), flush=True)
    return True


def table(claim: Claim, entries: Sequence[ledger.Entry]) -> str:
    """The measured runs as Markdown: mean and standard deviation over seeds, differences by seed, floors, cost."""
    blocks = []
    for scale, name in sorted({(e.scale, e.data) for e in entries}):
        own = [e for e in entries if (e.scale, e.data) == (scale, name)]
        runs: dict[str, dict[int, ledger.Entry]] = {}
        for one in own:
            runs.setdefault(one.arm, {})[one.seed] = one
        first = next(iter(claim.columns.values()))
        base = runs.get(claim.against, {})
        flops = [e.cost.get("flops", 0.0) for e in base.values()]
        head = [
            "arm",
            *claim.columns,
            f"{next(iter(claim.columns))} against {claim.against}",
            "FLOPs, of it",
            "seconds",
            "seeds",
        ]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for arm, by_seed in runs.items():
            figures = [
                _mean([e.rows[metric] for e in by_seed.values() if metric in e.rows]) for metric in claim.columns.values()
            ]
            apart = [
                by_seed[s].rows[first] - base[s].rows[first] for s in sorted(by_seed) if s in base and first in by_seed[s].rows
            ]
            against = "-" if arm == claim.against or not apart else ", ".join(f"{value:+.1f}" for value in apart)
            cost = (
                statistics.fmean(e.cost.get("flops", 0.0) for e in by_seed.values()) / statistics.fmean(flops) if flops else 0.0
            )
            seconds = statistics.fmean(e.cost["train_seconds"] for e in by_seed.values())
            lines.append([arm, *figures, against, f"{cost:.2f}", f"{seconds:.0f}", str(len(by_seed))])
        encoders = dict.fromkeys(e.settings.get("encoder") for e in own)
        several = len(encoders) > 1
        floors = [(f", {one}" * several, "untrained", [e for e in own if e.settings.get("encoder") == one]) for one in encoders]
        for which, floor, some in [*floors, ("", "pixels", own)]:
            figures = [
                _mean([e.rows[f"{m} {floor}"] for e in some if f"{m} {floor}" in e.rows]) for m in claim.columns.values()
            ]
            if figures[0] != "-":
                lines.append([f"floor: {floor}{which}", *figures, "-", "-", "-", "-"])
        machines = sorted({e.machine for e in own})
        below = "" if claim.more is None else "\n" + claim.more(own)
        blocks.append(
            f"{name}, {scale} scale ({'; '.join(machines)}):\n\n"
            + "\n".join(f"| {' | '.join(line)} |" for line in lines)
            + "\n"
            + below
        )
    return "\n".join(blocks)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 and statistics.stdev(values) > 0.0 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def main(claim: Claim) -> None:
    """The command line of a claim's file."""
    parser = argparse.ArgumentParser(description=f"{claim.title}. {claim.says}")
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="where runs and ledger.jsonl go; a later call goes on there")
    parser.add_argument("--seeds", default=None, help="such as 0,1,2; the scale's own by default")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help=f"begin no run after so many; exit code {STOPPED} where some are left"
    )
    parser.add_argument(
        "--arms", default="", help="words that the names of the arms begin with, with | between; all by default"
    )
    parser.add_argument("--ledger", type=Path, default=None, help="where lines go, OUT/ledger.jsonl by default")
    parser.add_argument("--table", action="store_true", help="print what the shipped ledger, or --ledger, has")
    parser.add_argument("--commands", action="store_true", help="print each arm as a command")
    given = parser.parse_args()
    scale = claim.settings(SCALES[given.scale])
    seeds = scale.seeds if given.seeds is None else tuple(map(int, given.seeds.split(",")))
    arms = [arm for arm in claim.arms(scale) if arm.name.startswith(tuple(given.arms.split("|")))]
    if given.commands:
        for arm in arms:
            print(arm.command(scale, f"{claim.data[0]}/", seeds[0]))
        return
    if given.table:
        print(table(claim, ledger.read(given.ledger, claim.experiment)), end="")
        return
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        path = given.ledger or out / "ledger.jsonl"
        whole = run_all(claim, scale, arms, seeds, out, path, time.monotonic() + 60.0 * given.minutes)
        if path.exists():
            print(table(claim, ledger.read(path, claim.experiment)), end="")
        if not whole:
            sys.exit(STOPPED)
