"""Write what the ledger has of the records into docs/records.md, between its marks.

python experiments/records/table.py            # writes
python experiments/records/table.py --check    # ends with 1 where the page says something else than the ledger
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from ladder import EXPERIMENT, STEPS, Step

from smallview import ledger

PAGE = Path(__file__).parents[2] / "docs" / "records.md"
BEGIN, END = "<!-- ladders -->", "<!-- end of the ladders -->"
TITLES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST"}
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
    lines += [_row(step, runs[step.name], runs.get(step.of, {})) for step in STEPS if step.name in runs]
    for floor in ("untrained", "pixels"):
        found = [[e.rows[f"{kind} {floor}"] for e in entries if f"{kind} {floor}" in e.rows] for kind in ("linear", "knn20")]
        if floor == "untrained":  # of as many encoders as there are
            found = [[e.rows[f"{kind} {floor}"] for e in runs.get("plain", {}).values()] for kind in ("linear", "knn20")]
        if found[0]:
            what = {"untrained": "dense_small as it begins", "pixels": "no encoder"}[floor]
            lines.append([f"floor: {floor}", what, *(f"{statistics.fmean(values):.2f}" for values in found), *["-"] * 5])
    machines = "; ".join(sorted({f"{e.machine}, torch {e.versions.get('torch', '?')}" for e in entries}))
    head = f"### {TITLES.get(track, track)}, {minutes:g} minutes\n\n{machines}\n\n"
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page() -> str:
    """The page as it should be."""
    entries = ledger.read(experiment=EXPERIMENT)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    kinds = sorted({(e.data, float(e.settings["minutes"])) for e in entries})
    made = [
        ladder(data, minutes, [e for e in entries if (e.data, e.settings["minutes"]) == (data, minutes)])
        for data, minutes in kinds
    ]
    return f"{before}{BEGIN}\n\n" + "\n".join(made or ["Not measured yet.\n"]) + f"\n{END}{after}"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    wanted = page()
    if parser.parse_args().check:
        same = PAGE.read_text(encoding="utf-8") == wanted
        sys.exit(0 if same else f"{PAGE.name} is not what the ledger says; run this without --check")
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
