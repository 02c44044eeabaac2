"""Start small, then grow: is a small resolution, a small encoder or a part of the pictures enough at first, and who loses less by it?

    SMALLVIEW_DATA=... python experiments/small_is_beautiful.py --out runs/small                       # SimCLR, dense_small, CIFAR-10
    SMALLVIEW_DATA=... python experiments/small_is_beautiful.py --out runs/small --method moco_v2      # another method
    SMALLVIEW_DATA=... python experiments/small_is_beautiful.py --out runs/small --data flowers --size 64 --epochs 40
    SMALLVIEW_DATA=... python experiments/small_is_beautiful.py --out runs/small --supervised          # the same, trained with labels
    python experiments/small_is_beautiful.py --miniature                                               # shows that it runs
    python experiments/small_is_beautiful.py --table                                                   # the measured table

S3L's claim (Cao and Wu, 2021) is that training without labels needs less of everything than training with labels does. Every arm is one run of
`smallview pretrain`, judged by the linear probe and kNN at the full size. Arms of equal epochs see as many pictures as `full`, arms of
equal compute cost as many floating-point operations. `subset` arms see a part of the pictures, as many steps as `full`. A line per run
goes into the ledger; a call that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import smallview
from smallview import ledger
from smallview.assess import train_supervised
from smallview.data.subsets import Subset
from smallview.networks.encoders import build_encoder, count_features
from smallview.networks.heads import Heads
from smallview.networks.online_target import Branch
from smallview.networks.truncating import count_stages
from smallview.stages import Stage
from smallview.training.cost import forward_macs

EXPERIMENT = "small_is_beautiful"
FULL, SUPERVISED = "full", "supervised"
FIRST, RAMP = 0.7, 0.7  # what part of the steps is small
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Arm:
    """A schedule, as what it asks of `pretrain`."""

    name: str
    given: dict[str, Any] = field(default_factory=dict)


def arms(encoder: str, size: int, epochs: float, channels: int, heads: Heads) -> list[Arm]:
    """The schedules that stand side by side."""
    net, config = build_encoder(encoder, in_channels=channels, size=size)
    depth = count_stages(net)
    cut = build_encoder(encoder, in_channels=channels, size=size, stem=config.stem, depth=depth - 1)[0]
    half = size // 2

    def cost(part: nn.Module, side: int) -> int:
        projector = heads.projector.build(count_features(part, channels, size))
        return forward_macs(Branch(part, projector), channels, side)

    whole = cost(net, size)
    small, shallow = cost(net, half) / whole, cost(cut, size) / whole
    sides = [2 * round((0.5 + 0.5 * min((i + 0.5) / 100 / RAMP, 1.0)) * size / 2) for i in range(100)]
    known = {side: cost(net, side) for side in set(sides)}
    ramped = statistics.fmean(known[side] for side in sides) / whole
    two = FIRST * small + 1.0 - FIRST
    regrown = FIRST * shallow + 1.0 - FIRST
    ramp = f"Ramp(0.5, 1.0, until={RAMP})"

    def halves(length: float) -> tuple[Stage, ...]:
        return Stage(half, epochs=FIRST * length), Stage(size, epochs=(1.0 - FIRST) * length)

    def depths(length: float) -> tuple[Stage, ...]:
        return Stage(size, epochs=FIRST * length, depth=depth - 1), Stage(size, epochs=(1.0 - FIRST) * length, depth=depth)

    return [
        Arm(FULL, {"epochs": epochs}),
        Arm("half, then full; equal epochs", {"stages": halves(epochs)}),
        Arm("half, then full; equal compute", {"stages": halves(epochs / two)}),
        Arm("ramp; equal epochs", {"resolution": ramp, "epochs": epochs}),
        Arm("ramp; equal compute", {"resolution": ramp, "epochs": epochs / ramped}),
        Arm("half only; equal compute", {"stages": (Stage(half, epochs=epochs / small),), "size": size}),
        Arm("without the last stage, then regrown; equal epochs", {"stages": depths(epochs)}),
        Arm("without the last stage, then regrown; equal compute", {"stages": depths(epochs / regrown)}),
        Arm("half of the pictures; equal steps", {"subset": Subset(fraction=0.5, equal_steps=True), "epochs": epochs}),
        Arm("a fifth of the pictures; equal steps", {"subset": Subset(fraction=0.2, equal_steps=True), "epochs": epochs}),
    ]


def sets(name: str) -> tuple[Pair, Pair]:
    """(training pictures with labels, test pictures with labels)."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from shared_pictures import reader

    load = reader()
    if name == "cifar10":
        x, y, test_x, test_y = load.cifar10((1,))
        return (x[:5000], y[:5000]), (test_x[:5000], test_y[:5000])
    return load.flowers("train"), load.flowers("test")


def generated() -> tuple[Pair, Pair]:
    """Small made pictures for the miniature."""
    random = np.random.default_rng(0)
    y = np.arange(180) % 3
    x = np.clip(random.normal(60 + 40 * y[:, None, None, None], 50, (180, 12, 12, 3)), 0, 255).astype(np.uint8)
    return (x[:120], y[:120]), (x[120:], y[120:])


def measure(
    arm: Arm, given: argparse.Namespace, data: tuple[Pair, Pair], out: Path, seed: int, threads: int | None
) -> ledger.Entry:
    """One run, judged."""
    train, test = data
    unlabeled = train[0] if isinstance(train, tuple) else train
    folder = out / "-".join([given.data, given.encoder, given.method, f"{given.epochs:g}", _plain(arm.name), str(seed)])
    more = {"size": given.size, "batch_size": given.batch_size, "encoder": given.encoder, "seed": seed, "threads": threads}
    settings = {**more, **arm.given}
    run = smallview.pretrain(
        unlabeled,
        given.method,
        out=folder,
        quiet=True,
        **{name: value for name, value in settings.items() if value is not None},
    ).path
    if given.supervised:
        labelled = folder.with_name(f"{folder.name}-labels")
        if not (labelled / "summary.json").exists():
            train_supervised(run, _part(train, arm, seed), labelled, seed=seed, threads=threads)
        run = labelled
    rows = smallview.evaluate(run, train, test, ("knn", "linear"), leaks=False, threads=threads)
    summary = json.loads((run / "summary.json").read_text())
    told = {name: _said(value) for name, value in settings.items() if value is not None and name not in ("seed", "threads")}
    measured = {row.metric: row.value for row in rows if row.metric.startswith(("linear", "knn20"))}
    what = SUPERVISED if given.supervised else given.method
    return ledger.entry(EXPERIMENT, arm.name, {"method": what, **told}, given.data, seed, summary["cost"], measured)


def _part(train: Pair, arm: Arm, seed: int) -> Any:
    """The labeled pictures that an arm may see."""
    subset = arm.given.get("subset")
    if subset is None:
        return train
    from smallview.data.sources import open_source
    from smallview.data.subsets import positions, taken

    source = open_source(train)
    return taken(source, positions(source, subset, seed), "part")


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _said(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else str(value)


def table(entries: Sequence[ledger.Entry]) -> str:
    """The measured runs as Markdown: mean and standard deviation over seeds, and what they cost."""
    lines = []
    groups = sorted({(e.data, e.settings["encoder"], e.settings["method"]) for e in entries})
    for group in groups:
        own = [e for e in entries if (e.data, e.settings["encoder"], e.settings["method"]) == group]
        by_arm: dict[str, list[ledger.Entry]] = {}
        for one in own:
            by_arm.setdefault(one.arm, []).append(one)
        full = by_arm.get(FULL, [])
        lines += [
            f"{group[2]}, {group[1]}, {group[0]}:",
            "",
            "| schedule | linear % | kNN % | FLOPs, of full | seconds at best | seeds |",
            "|---|---|---|---|---|---|",
        ]
        for arm, runs in by_arm.items():
            flops = statistics.fmean(r.cost.get("flops", 0.0) for r in runs) / max(
                1.0, statistics.fmean(r.cost.get("flops", 0.0) for r in full or runs)
            )
            figures = [
                _mean([value for r in runs for metric, value in r.rows.items() if metric.startswith(kind)])
                for kind in ("linear ", "knn20 ")
            ]
            seconds = min(r.cost["train_seconds"] for r in runs)
            lines.append(f"| {arm} | {figures[0]} | {figures[1]} | {flops:.2f} | {seconds:.0f} | {len(runs)} |")
        lines.append("")
    return "\n".join([*lines, *_who_loses(entries)])


def _who_loses(entries: Sequence[ledger.Entry]) -> list[str]:
    """What each schedule loses or gains against `full`, without labels and with them: seed by seed, of the seeds that have both."""
    kinds = sorted({(e.data, str(e.settings["encoder"]), str(e.settings["method"])) for e in entries})
    lines: list[str] = []
    for data, encoder in sorted({kind[:2] for kind in kinds if kind[2] == SUPERVISED}):
        methods = [kind[2] for kind in kinds if kind[:2] == (data, encoder)]
        own = {
            (e.settings["method"], e.arm, e.seed): next(v for name, v in e.rows.items() if name.startswith("linear "))
            for e in entries
            if (e.data, e.settings["encoder"]) == (data, encoder)
        }
        lines += [
            f"Points against `full`, seed by seed, {encoder}, {data}:",
            "",
            f"| schedule | {' | '.join(methods)} |",
            f"|---{'|---' * len(methods)}|",
        ]
        for arm in dict.fromkeys(arm for _, arm, _ in own if arm != FULL):
            cells = []
            for method in methods:
                seeds = sorted(s for m, a, s in own if (m, a) == (method, arm) and (method, FULL, s) in own)
                cells.append(", ".join(f"{own[method, arm, s] - own[method, FULL, s]:+.1f}" for s in seeds) or "-")
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def main() -> None:
    """Run the arms, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--data", choices=("cifar10", "flowers"), default="cifar10")
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--encoder", default="dense_small")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="", help="words that the names of the arms begin with, with | between")
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--ledger", type=Path, default=None, help="where lines go, OUT/ledger.jsonl by default")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        print(table(ledger.read(given.ledger, EXPERIMENT)), end="")
        return
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        threads = None
        if given.miniature:
            given.size, given.epochs, given.batch_size, given.encoder, threads = 12, 2.0, 20, "dense_small:8-16-16", 1
        data = generated() if given.miniature else sets(given.data)
        path = given.ledger or out / "ledger.jsonl"
        known = ledger.read(path, EXPERIMENT) if path.exists() else []
        wanted = tuple(given.arms.split("|"))
        heads = smallview.method(given.method).heads
        chosen = [arm for arm in arms(given.encoder, given.size, given.epochs, 3, heads) if arm.name.startswith(wanted)]
        method = SUPERVISED if given.supervised else given.method
        for seed in map(int, given.seeds.split(",")):
            for arm in chosen:
                done = [
                    e
                    for e in known
                    if (e.arm, e.seed, e.data, e.settings["method"], e.settings["encoder"])
                    == (arm.name, seed, given.data, method, given.encoder)
                ]
                if not done:
                    one = measure(arm, given, data, out, seed, threads)
                    ledger.append(path, [one])
                    print(
                        json.dumps({"arm": one.arm, "seed": seed, **one.rows, "seconds": one.cost["train_seconds"]}), flush=True
                    )
        print(table(ledger.read(path, EXPERIMENT)), end="")


if __name__ == "__main__":
    main()
