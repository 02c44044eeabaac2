"""The real loop against the same step on tensors that are already there: what data and views cost a training step.

    python benchmarks/step.py                       # resnet18 and dense_small, 32 px
    python benchmarks/step.py --encoder dense_small --rounds 9

Arms are interleaved (real, resident, real, resident, ...) in one process; a ratio is real speed over resident speed of one round, and
the median over the rounds counts. `malloc` compares dense_small with and without glibc's big blocks kept, each arm in its own process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from smallview.data.loading import batches
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.networks.encoders import build_encoder
from smallview.networks.online_target import Networks
from smallview.presets import preset
from smallview.training.loop import TrainState, train
from smallview.training.precision import cpu_flags, fixed_rule, keep_big_blocks
from smallview.training.prefetch import ahead
from smallview.views.making import ViewMaker


@dataclass
class Bench:
    """One encoder's training state and its views, ready to be stepped."""

    name: str
    size: int
    batch_size: int
    threads: int

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        self.device = torch.device("cpu")
        pictures = np.random.default_rng(0).integers(0, 256, (10_000, self.size, self.size, 3), np.uint8)
        self.pack = open_pack(open_source(pictures), short_side=None)
        self.preset = preset("simclr")
        net, config = build_encoder(self.name, size=self.size)
        method = self.preset.method
        networks = Networks(net, config.features, method.heads, method.target)
        self.precision = fixed_rule(net, self.device, cpu_flags())
        self.precision.place(networks, self.device)
        self.state = TrainState(networks, self.preset.optimizer.build(networks, self.device), {})
        self.maker = ViewMaker(self.pack, method.views, self.size, [0.5] * 3, [0.25] * 3, 0)
        first = next(iter(batches(len(self.pack), self.batch_size, 0, 0, 1)))
        self.resident = (first, self.maker(first))

    def run(self, steps: int, real: bool) -> float:
        """Images per second of `steps` steps through the loop itself."""
        start = self.state.step
        order = batches(len(self.pack), self.batch_size, 0, start, start + steps)
        feed = ahead(self.maker, order) if real else (self.resident for _ in range(steps))
        began = time.perf_counter()
        train(
            self.state,
            self.preset.method,
            feed,
            total_steps=start + steps + 1,
            lr=0.01,
            seed=0,
            precision=self.precision,
            device=self.device,
            on_step=lambda report: False,
        )
        return steps * self.batch_size / (time.perf_counter() - began)


def compare(name: str, size: int, batch_size: int, threads: int, rounds: int, seconds: float) -> dict[str, object]:
    """Median speeds and the median of paired ratios for one encoder."""
    bench = Bench(name, size, batch_size, threads)
    bench.run(2, True)
    steps = max(2, round(seconds * bench.run(2, False) / batch_size))
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
        "real_images_per_second": round(statistics.median(real), 1),
        "resident_images_per_second": round(statistics.median(resident), 1),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
    }


def malloc(threads: int, rounds: int) -> dict[str, object]:
    """dense_small's resident step with freed blocks kept over without, paired runs of whole processes."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from step import Bench; from smallview.training.precision import keep_big_blocks\n"
        f"keep_big_blocks() if sys.argv[2] == 'keep' else None; b = Bench('dense_small', 32, 256, {threads}); b.run(3, False)\n"
        "print(b.run(12, False))"
    )
    folder = str(__file__).rsplit("/", 1)[0]
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


def main() -> None:
    """Run the comparisons and print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", choices=["resnet18", "dense_small", "mobilenetv3_small_050"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a segment, about")
    parser.add_argument("--malloc", action="store_true")
    given = parser.parse_args()
    print(
        json.dumps(
            {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": given.threads}
        )
    )
    if given.malloc:
        print(json.dumps(malloc(given.threads, given.rounds)))
        return
    keep_big_blocks()
    for name in given.encoder or ["resnet18", "dense_small"]:
        batch = given.batch_size or (64 if name == "resnet18" else 256)
        print(json.dumps(compare(name, given.size, batch, given.threads, given.rounds, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
