"""The real loop against the same step on tensors that are already there: what data and views cost a training step.

    python benchmarks/step.py --json step.json          # resnet18, both small MobileNetV3 and dense_small, 32 px
    python benchmarks/step.py --encoder dense_small --rounds 9

Arms are interleaved (real, resident, real, resident, ...) in one process; a ratio is real speed over resident speed of one round, and
the median over the rounds counts. A segment begins with a few steps that do not count, so that views are made ahead as in the middle of
a run. `malloc` compares dense_small with and without glibc's big blocks kept, each arm in its own process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from arms import machine, save, spread
from torch import nn

from smallview.data.loading import batches
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.networks.encoders import EncoderConfig, build_encoder, describe
from smallview.networks.online_target import Networks, plain
from smallview.parts import DEPTH, views_ahead
from smallview.presets import Preset, preset
from smallview.records import Batch, ViewBatch
from smallview.training.graphs import Graphs
from smallview.training.loop import StepReport, train
from smallview.training.precision import BFLOAT16_FLAGS, Format, cpu_flags, fixed_rule, keep_big_blocks
from smallview.training.state import TrainState
from smallview.views.making import ViewMaker

ENCODERS = ("resnet18", "mobilenetv3_small_050", "mobilenetv3_small_100", "dense_small", "three_convolutions")
WARM = DEPTH + 1  # steps that do not count


def encoder_of(name: str, size: int, stem: str) -> tuple[nn.Module, EncoderConfig]:
    """An encoder by name; `three_convolutions` (2.6 million products a picture of 32 px) shows what data and views cost a tiny net."""
    if name != "three_convolutions":
        return build_encoder(name, size=size, stem=stem)
    layers: list[nn.Module] = []
    for few, many in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(few, many, 3, 2, 1, bias=False), nn.BatchNorm2d(many), nn.ReLU(inplace=True)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net, describe(net, in_channels=3, size=size)


def batch_for(encoder: str) -> int:
    """The batch that an encoder is measured with where none is asked for."""
    return {"resnet18": 64}.get(encoder, 256)


@dataclass
class Bench:
    """One encoder's training state and its views, ready to be stepped. pictures uint8 [N, H, W, 3], or random ones of `size`."""

    name: str
    size: int
    batch_size: int
    threads: int
    preset: Preset | None = None
    pictures: npt.NDArray[np.uint8] | None = None
    device_name: str = "cpu"
    stem: str = "auto"
    graph: bool = False
    keep: bool | None = None
    dtype: Format | None = None  # None is the rule's

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        self.device = torch.device(self.device_name)
        pictures = self.pictures
        if pictures is None:
            pictures = np.random.default_rng(0).integers(0, 256, (10_000, self.size, self.size, 3), np.uint8)
        self.pack = open_pack(open_source(pictures), short_side=None)
        self.preset = self.preset or preset("simclr")
        net, config = encoder_of(self.name, self.size, self.stem)
        method = self.preset.method
        networks = Networks(net, config.features, method.heads, method.target, Graphs() if self.graph else plain)
        flags = cpu_flags() if self.dtype is None else BFLOAT16_FLAGS if self.dtype == "bfloat16" else frozenset[str]()
        self.precision = fixed_rule(net, self.device, flags)
        if self.dtype is not None:
            self.precision = replace(self.precision, dtype=self.dtype)
        self.precision.place(networks, self.device)
        self.state = TrainState(networks, self.preset.optimizer.build(networks, self.device), {})
        self.maker = ViewMaker(self.pack, method.views, self.size, [0.5] * 3, [0.25] * 3, 0, self.device, keep=self.keep)
        first = next(iter(batches(len(self.pack), self.batch_size, 0, 0, 1)))
        self.resident = (first, self.maker(first))

    def run(self, steps: int, real: bool) -> float:
        """Images per second of `steps` steps through the loop itself, in the middle of training."""
        assert self.preset is not None
        times: list[float] = []

        def on_step(report: StepReport) -> bool:
            times.append(time.perf_counter())
            return len(times) == WARM + steps

        feed = self.feed(real)
        train(
            self.state,
            self.preset.method,
            feed,
            total_steps=self.state.step + 10**6,
            lr=0.0,  # the arms share their weights, which shall not follow the one resident batch
            seed=0,
            precision=self.precision,
            device=self.device,
            on_step=on_step,
        )
        feed.close()  # the thread that makes views ahead ends, so that it takes no time from other arms
        return steps * self.batch_size / (times[-1] - times[WARM - 1])

    def feed(self, real: bool) -> Generator[tuple[Batch, tuple[ViewBatch, ...]], None, None]:
        """Batches with their views without end: made ahead as in training, or always the same ones."""
        if not real:
            while True:
                yield self.resident
        start = self.state.step
        order = batches(len(self.pack), self.batch_size, 0, start, start + 10**6)
        yield from views_ahead(self.maker, self.batch_size, order)


def compare(name: str, size: int, batch_size: int, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Median speeds and the median of paired ratios for one encoder."""
    bench = Bench(name, size, batch_size, threads)
    bench.run(2, True)
    steps = max(2, math.ceil(seconds * bench.run(2, False) / batch_size))
    real, resident = [], []
    for _ in range(rounds):
        real.append(bench.run(steps, True))
        resident.append(bench.run(steps, False))
    ratios = [a / b for a, b in zip(real, resident, strict=True)]
    return {
        "encoder": name,
        "size": size,
        "batch_size": batch_size,
        "threads": threads,
        "steps_per_segment": steps,
        "rounds": rounds,
        "real": real,
        "resident": resident,
        "real_images_per_second": statistics.median(real),
        "resident_images_per_second": statistics.median(resident),
        "ratio": spread(ratios),
        "goal": (0.90, 0.97) if name in ("dense_small", "three_convolutions") else (0.97, 0.97),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| encoder | batch | real, images/s | resident, images/s | ratio, median | min to max | goals |",
        "|---|" + "---:|" * 6,
    ]
    for row in rows:
        found, (shown, pushed) = row["ratio"], row["goal"]
        speeds = f"{row['real_images_per_second']:,.1f} | {row['resident_images_per_second']:,.1f}"
        ratio = f"{found['median']:.3f} | {found['min']:.3f} to {found['max']:.3f} | {shown:g}, then {pushed:g}"
        lines.append(f"| {row['encoder']} | {row['batch_size']} | {speeds} | {ratio} |")
    return "\n".join(lines)


def malloc(threads: int, rounds: int) -> dict[str, Any]:
    """dense_small's resident step with freed blocks kept over without, paired runs of whole processes."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from step import Bench; from smallview.training.precision import keep_big_blocks\n"
        f"keep_big_blocks() if sys.argv[2] == 'keep' else None; b = Bench('dense_small', 32, 256, {threads}); b.run(3, False)\n"
        "print(b.run(12, False))"
    )
    folder = str(Path(__file__).parent)
    speeds: dict[str, list[float]] = {"keep": [], "plain": []}
    for _ in range(rounds):
        for arm, found in speeds.items():
            done = subprocess.run([sys.executable, "-c", code, folder, arm], capture_output=True, text=True, check=True)
            found.append(float(done.stdout))
    ratios = [a / b for a, b in zip(speeds["keep"], speeds["plain"], strict=True)]
    return {
        "arm": "freed blocks kept / plain",
        "ratio_median": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the comparisons and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", choices=ENCODERS)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a segment, at least")
    parser.add_argument("--malloc", action="store_true")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything here")
    given = parser.parse_args(argv)
    if given.malloc:
        found = {"machine": machine(), **malloc(given.threads, given.rounds)}
        print(json.dumps(found))
    else:
        title = "the real loop over the same step on resident tensors"
        found = {"title": title, "machine": machine(), "seconds": given.seconds, "rows": []}
        keep_big_blocks()
        for name in given.encoder or ENCODERS:
            batch = given.batch_size or batch_for(name)
            found["rows"].append(compare(name, given.size, batch, given.threads, given.rounds, given.seconds))
            print(table(found["rows"][-1:]), flush=True)
        print(f"\n{table(found['rows'])}")
    save(found, given.json)
    return found


if __name__ == "__main__":
    main()
