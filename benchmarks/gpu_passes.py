"""On a GPU: views a second through training steps of SimCLR, by how the networks' passes are called.

    python benchmarks/gpu_passes.py --json gpu_passes.json
    python benchmarks/gpu_passes.py --encoder resnet18 --size 96 --rounds 7
    python benchmarks/gpu_passes.py --device cpu --small    # the same in miniature

An arm's step is the library's own `train_step`: encoder and projector, loss, optimizer, and the check for numbers that are not finite. Its views
are two of each picture, random numbers that are there already.

The first arm is eager passes in float32 with all 24 bits; `over it` is an arm's speed over the first one's, the median of ratios within a round.
Arms take turns. `first` is the first step, which compiles or records, and `memory` the most that an arm's steps hold. Combinations that would begin
after `--budget` seconds are left out and said; `compile, float32` is an arm that has to be asked for.

On a CPU a clock stands in for the events and nothing is recorded as a graph: that tests this script and tells nothing of a GPU.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arms import machine, save, spread
from gpu import seconds

from smallview.networks.encoders import build_encoder
from smallview.networks.online_target import Networks, Passes, plain
from smallview.presets import preset
from smallview.records import ViewBatch
from smallview.training.compiled import Compiled
from smallview.training.graphs import Graphs
from smallview.training.loop import train_step
from smallview.training.memory import Recomputed
from smallview.training.precision import Format, Layout, Precision, choose_device, numerics
from smallview.training.state import TrainState

ENCODERS, SIZES, FEW = ("resnet18", "dense_small"), (32, 96), 10  # steps in a row


@dataclass(frozen=True)
class Way:
    """How numbers lie, how many bits they have, and how networks are called. passes: makes the value, given the compiler."""

    layout: Layout
    dtype: Format
    passes: Callable[[str], Passes]
    tf32: bool = False


WAYS = {
    "eager, float32": Way("channels_first", "float32", lambda _: plain),
    "eager, float32, TF32": Way("channels_first", "float32", lambda _: plain, tf32=True),
    "eager, bfloat16": Way("channels_last", "bfloat16", lambda _: plain),
    "graph, bfloat16": Way("channels_last", "bfloat16", lambda _: Graphs()),
    "compile, bfloat16": Way("channels_last", "bfloat16", Compiled),
    "recompute, bfloat16": Way("channels_last", "bfloat16", lambda _: Recomputed()),
    "compile, float32": Way("channels_last", "float32", Compiled),
}


class Arm:
    """One training, stepped on the same views again and again. Its rate is 0: arms shall do the same work."""

    def __init__(self, encoder: str, size: int, batch: int, way: Way, compiler: str, device: torch.device) -> None:
        self.way, self.device = way, device
        self.precision = Precision(way.layout, way.dtype, "")
        simclr = preset("simclr")
        self.method = simclr.method
        net, config = build_encoder(encoder, size=size)
        self.passes = way.passes(compiler)
        networks = Networks(net, config.features, self.method.heads, self.method.target, self.passes).train()
        self.precision.place(networks, device)
        self.state = TrainState(networks, simclr.optimizer.build(networks, device), {})
        drawn = torch.Generator().manual_seed(0)
        views = [torch.randn(batch, 3, size, size, generator=drawn).to(device) for _ in self.method.views]
        self.views = tuple(ViewBatch(x.contiguous(memory_format=self.precision.memory_format)) for x in views)
        began = time.perf_counter()
        self.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        self.first = time.perf_counter() - began

    def step(self) -> None:
        how: dict[str, Any] = {"precision": self.precision, "device": self.device}
        with numerics(self.way.tf32, deterministic=False):
            done = train_step(self.state, self.method, self.views, progress=0.5, lr=0.0, seed=0, **how)
        assert done.finite

    def memory(self) -> float:
        """MiB above what lies there between steps, at most; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(encoder: str, size: int, batch: int, given: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A row per arm."""
    arms = {}
    for name in given.way:
        arms[name] = Arm(encoder, size, batch, WAYS[name], given.backend, device)
        print(f"{encoder}, {size} pixels, {name}: first step in {arms[name].first:.1f} s", flush=True)
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(given.rounds):
        for name, arm in arms.items():
            speeds[name].append(batch * len(arm.views) / seconds(arm.step, given.steps, device))
    base = speeds[given.way[0]]
    return [
        {
            "encoder": encoder,
            "size": size,
            "batch_size": batch,
            "arm": name,
            "views_a_second": statistics.median(speeds[name]),
            "speeds": speeds[name],
            "over_first": spread([a / b for a, b in zip(speeds[name], base, strict=True)]),
            "first_s": arm.first,
            "compiling_s": arm.passes.seconds if isinstance(arm.passes, Compiled) else None,
            "memory_mib": arm.memory(),
        }
        for name, arm in arms.items()
    ]


HEADS = (
    "encoder",
    "size",
    "batch",
    "arm",
    "views a second",
    "min to max",
    "over it",
    "first, s",
    "compiling, s",
    "memory, MiB",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---:|---:|---|" + "---:|" * (len(HEADS) - 4)]
    for row in rows:
        cells = [row["encoder"], str(row["size"]), str(row["batch_size"])]
        if "left_out" in row:
            cells += [row["left_out"], *[""] * (len(HEADS) - 4)]
        else:
            cells += [row["arm"], f"{row['views_a_second']:,.0f}", f"{min(row['speeds']):,.0f} to {max(row['speeds']):,.0f}"]
            cells += ["{median:.2f} ({min:.2f} to {max:.2f})".format(**row["over_first"]), f"{row['first_s']:.1f}"]
            cells += ["" if row["compiling_s"] is None else f"{row['compiling_s']:.0f}", f"{row['memory_mib']:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure every combination asked for, while there is time."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", action="append")
    parser.add_argument("--size", action="append", type=int)
    parser.add_argument("--batch-size", type=int, default=512, help="pictures, of two views each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=FEW, help="steps of an arm's turn")
    parser.add_argument(
        "--way", action="append", choices=list(WAYS), help="only these arms; the first is what others are held to"
    )
    parser.add_argument("--budget", type=float, default=150.0, help="seconds after which no combination begins")
    parser.add_argument("--backend", default="inductor", help="torch's name of a compiler")
    parser.add_argument("--small", action="store_true", help="8 pixels, 4 pictures, one round, a compiler that only traces")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything here")
    given = parser.parse_args(argv)
    if given.small:
        given.size, given.batch_size, given.rounds, given.steps, given.backend = [8], 4, 1, 1, "aot_eager"
        given.encoder = given.encoder or ["dense_small"]
    given.way = given.way or [name for name in WAYS if name != "compile, float32"]
    device = choose_device(given.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    found: dict[str, Any] = {"title": "how passes are called", "device": name, "machine": machine(), "rows": []}
    for size in given.size or SIZES:
        for encoder in given.encoder or ENCODERS:
            what: dict[str, Any] = {"encoder": encoder, "size": size, "batch_size": given.batch_size}
            if time.perf_counter() - began > given.budget:
                rows = [what | {"left_out": f"left out: {given.budget:g} s were over"}]
            else:
                try:
                    rows = measure(encoder, size, given.batch_size, given, device)
                except torch.OutOfMemoryError:
                    rows = [what | {"left_out": "does not fit into memory"}]
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            found["rows"] += rows
            print("\n".join(table(rows).splitlines()[2:]), flush=True)
            save(found, given.json)
    print(f"\n{name}, {time.perf_counter() - began:.0f} s\n\n{table(found['rows'])}")
    return found


if __name__ == "__main__":
    main()
