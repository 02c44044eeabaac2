"""On a GPU: what loader and views cost a training step, and how many views a second an encoder takes forward and backward.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --device cpu --batch-size 8 --size 32 --pictures 64 --rounds 1 --steps 1    # the same in miniature

Per encoder, size and batch, everything in the format that training takes (bfloat16 where the GPU has it), pictures resident as uint8:
`views` is the time between two events around the making of both views, by the executor that a run takes and by torch's own operations;
`step` around a whole step on resident tensors, `passes` around the encoder's forward and backward pass alone, from which `views a second`
follows. `share` is views over views and step, as if nothing overlapped; `loop` is what the real loop loses to the same loop on resident
tensors, 1 - real / resident, which counts the loader too. `graph` is the real loop's speed with passes as CUDA graphs over its speed
without. On a CPU a clock stands in for the events, which tests this script and tells nothing of a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import machine, save
from step import ENCODERS, Bench

from smallview.data.loading import batches
from smallview.training.loop import train_step
from smallview.training.precision import choose_device
from smallview.views.making import ViewMaker

NAMES = ("torch", "views", "step", "passes", "real", "resident", "graph")
SIZES, BATCHES, GOAL_SHARE, GOAL_VIEWS = (32, 64, 96, 128, 224), (256, 1024, 4096), 0.02, 100_000


def seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one piece of work, the mean of so many in a row, after one that does not count."""
    work()
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def measure(encoder: str, size: int, batch: int, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One row: medians over the rounds."""
    count = max(given.pictures, batch)
    pictures = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    torch.backends.cudnn.benchmark = given.cudnn_benchmark
    bench = Bench(encoder, size, batch, torch.get_num_threads(), None, pictures, device.type)
    assert bench.preset is not None
    method, order = bench.preset.method, batches(len(bench.pack), batch, 0, 0, 10**9)
    resident = bench.resident[1]
    both = torch.cat([view.images for view in resident]).contiguous(memory_format=bench.precision.memory_format)
    net = bench.state.networks.online.encoder
    recorded = Bench(encoder, size, batch, torch.get_num_threads(), None, pictures, device.type, graph=True)
    torch_maker = ViewMaker(bench.pack, method.views, size, [0.5] * 3, [0.25] * 3, 0, device, executor="torch")

    def step() -> None:
        train_step(
            bench.state, method, resident, progress=0.0, lr=0.0, seed=0, precision=bench.precision, device=device, look=False
        )

    def passes() -> None:
        with bench.precision.autocast(device):
            loss = net(both).float().square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)

    bench.state.networks.train()
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for each in (bench, recorded):
        each.run(given.steps, True)  # kernels are compiled and chosen, graphs recorded
    for _ in range(given.rounds):
        found["torch"].append(seconds(lambda: torch_maker(next(order)), given.steps, device))
        found["views"].append(seconds(lambda: bench.maker(next(order)), given.steps, device))
        found["step"].append(seconds(step, given.steps, device))
        found["passes"].append(seconds(passes, given.steps, device))
        found["real"].append(bench.run(given.steps, True))
        found["resident"].append(bench.run(given.steps, False))
        found["graph"].append(recorded.run(given.steps, True))
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {
        "encoder": encoder,
        "size": size,
        "batch_size": batch,
        "format": bench.precision.dtype,
        "executor": bench.maker.executor,
        "torch_ms": 1e3 * middle["torch"],
        "views_ms": 1e3 * middle["views"],
        "step_ms": 1e3 * middle["step"],
        "share": statistics.median(v / (v + s) for v, s in zip(found["views"], found["step"], strict=True)),
        "loop": statistics.median(1 - a / b for a, b in zip(found["real"], found["resident"], strict=True)),
        "graph": statistics.median(a / b for a, b in zip(found["graph"], found["real"], strict=True)),
        "images_a_second": middle["real"],
        "views_a_second": len(both) / middle["passes"],
        "rounds": found,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    heads = (
        *("encoder", "size", "batch", "format", "views by torch, ms", "views, ms", "step, ms", "share", "loop", "graph"),
        *("images a second, training", "views a second, fwd + bwd"),
    )
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        start = f"| {row['encoder']} | {row['size']} | {row['batch_size']} |"
        if "left_out" in row:
            lines.append(f"{start} {row['left_out']} |" + " |" * 8)
            continue
        shares = f"{row['share']:.1%} | {row['loop']:.1%}"
        times = f"{row['format']} | {row['torch_ms']:.2f} | {row['views_ms']:.2f} | {row['step_ms']:.2f}"
        speeds = f"{row['graph']:.2f} | {row['images_a_second']:,.0f} | {row['views_a_second']:,.0f}"
        lines.append(f"{start} {times} | {shares} | {speeds} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure every combination asked for; one that does not fit into the device's memory is said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", action="append", choices=ENCODERS)
    parser.add_argument("--size", action="append", type=int)
    parser.add_argument("--batch-size", action="append", type=int)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps of a segment")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN time its algorithms first")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything here")
    given = parser.parse_args(argv)
    device = choose_device(given.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    goals = {"share": GOAL_SHARE, "views_a_second": GOAL_VIEWS}
    found: dict[str, Any] = {
        "title": "views and steps on a GPU",
        "device": name,
        "machine": machine(),
        "goals": goals,
        "rows": [],
    }
    for encoder in given.encoder or ("resnet18", "dense_small"):
        for size in given.size or SIZES:
            for batch in given.batch_size or BATCHES:
                try:
                    row = measure(encoder, size, batch, given, device)
                except torch.OutOfMemoryError:
                    row = {"encoder": encoder, "size": size, "batch_size": batch, "left_out": "does not fit into memory"}
                    torch.cuda.empty_cache()
                found["rows"].append(row)
                print(table([row]).splitlines()[-1], flush=True)
    print(f"\n{name}\n\n{table(found['rows'])}")
    save(found, given.json)
    return found


if __name__ == "__main__":
    main()
