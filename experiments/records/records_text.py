"""What the ledger has of the records, as Markdown for docs/records.md and README.md; `experiments/results.py` writes it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ladder import TRACKS, Step

from smallview import ledger

TITLES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "cifar10_resnet18": "CIFAR-10, ResNet-18 on a GPU"}
HEAD = ("step", "what it is", "linear %", "kNN %", "gain", "seconds", "epochs", "TFLOP", "seeds")


def _figure(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _row(step: Step, runs: dict[int, ledger.Entry], before: dict[int, ledger.Entry]) -> list[str]:
    own = list(runs.values())
    apart = [runs[seed].rows["linear"] - before[seed].rows["linear"] for seed in sorted(runs) if seed in before]
    costs = {name: [e.cost[name] for e in own if name in e.cost] for name in ("train_seconds", "epochs", "flops")}
    return [
        step.name,
        step.change + f", from {step.of}" * bool(step.of),
        *(_figure([e.rows[name] for e in own]) for name in ("linear", "knn20")),
        ", ".join(f"{value:+.1f}" for value in apart) or "-",
        f"{statistics.fmean(costs['train_seconds']):.0f}",
        f"{statistics.fmean(costs['epochs']):.1f}" if costs["epochs"] else "-",
        f"{statistics.fmean(costs['flops']) / 1e12:.0f}" if costs["flops"] else "-",
        str(len(own)),
    ]


def ladder(track: str, minutes: float, entries: Sequence[ledger.Entry]) -> str:
    """One track at one length, as Markdown; the gain is told seed by seed."""
    runs: dict[str, dict[int, ledger.Entry]] = {}
    for one in entries:
        runs.setdefault(one.arm, {})[one.seed] = one
    lines = [list(HEAD), ["---", "---", *["---:"] * (len(HEAD) - 2)]]
    lines += [_row(step, runs[step.name], runs.get(step.of, {})) for step in TRACKS[track].steps if step.name in runs]
    plain, encoder = ("plain", "dense_small") if TRACKS[track].scale == "cpu" else ("resnet18", "resnet18")
    for floor in ("untrained", "pixels"):
        found = [[e.rows[f"{kind} {floor}"] for e in entries if f"{kind} {floor}" in e.rows] for kind in ("linear", "knn20")]
        if floor == "untrained":  # of as many encoders as there are
            found = [[e.rows[f"{kind} {floor}"] for e in runs.get(plain, {}).values()] for kind in ("linear", "knn20")]
        if found[0]:
            what = {"untrained": f"{encoder} as it begins", "pixels": "no encoder"}[floor]
            lines.append([f"floor: {floor}", what, *(f"{statistics.fmean(values):.2f}" for values in found), *["-"] * 5])
    machines = "; ".join(sorted({f"{e.machine}, torch {e.versions.get('torch', '?')}" for e in entries}))
    head = f"### {TITLES.get(track, track)}, {minutes:g} minutes\n\n{machines}\n\n"
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def ladders(entries: Sequence[ledger.Entry]) -> str:
    """All of them."""
    made = []
    for name, track in TRACKS.items():
        own = [e for e in entries if (e.data, e.scale) == (track.data, track.scale)]
        for minutes in sorted({float(e.settings["minutes"]) for e in own}):
            made.append(ladder(name, minutes, [e for e in own if e.settings["minutes"] == minutes]))
    return "\n".join(made or ["Not measured yet.\n"])


def five_minutes(entries: Sequence[ledger.Entry]) -> str:
    """What the bare command gives beside another library's loop and the floors, CIFAR-10."""
    of = [e for e in entries if (e.data, float(e.settings["minutes"])) == ("cifar10", 5.0)]

    def row(name: str, arm: str, floor: str = "") -> str:
        runs = [e.rows for e in of if e.arm == arm]
        cells = [_figure([rows[kind + floor] for rows in runs]) if runs else "-" for kind in ("linear", "knn20")]
        return f"| {name} | {' | '.join(cells)} | {'-' if floor == ' pixels' else len(runs) or '-'} |"

    lines = [
        "| CIFAR-10, 10,000 test pictures read right, % | linear | kNN | seeds |",
        "|---|---:|---:|---:|",
        row("raw pixels", "plain", " pixels"),
        row("`dense_small` untrained", "plain", " untrained"),
        row("`dense_small`, lightly's SimCLR tutorial loop", "lightly"),
        row("`dense_small`, the preset `simclr`", "plain"),
        row("`patches` untrained", "default", " untrained"),
        row("**`smallview pretrain --minutes 5` and nothing else: `patches`**", "default"),
    ]
    return "\n".join(lines) + "\n"
