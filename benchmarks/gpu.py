"""On a GPU: what loader and views cost a training step, and how many views a second an encoder takes forward and backward.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --encoder resnet18 --size 32 --batch-size 1024 --compile
    python benchmarks/gpu.py --device cpu --batch-size 8 --size 32 --pictures 64 --rounds 1 --seconds 0.1    # the same in miniature

Per encoder, size and batch, everything in the format that training takes (bfloat16 where the GPU has it), pictures resident as uint8:

- `views` is the device's time for both views: they are launched while the GPU is held up, so that Python's time does not count. `by torch`
  is the same by torch's own operations in float32, without Triton and graphs.
- `step` is a step of the real loop with passes as CUDA graphs (`--set execution=graph`), `eager` without.
- `share` is views over the shorter of the two steps.
- `loop` is what that loop loses to the same loop on resident tensors, 1 - real / resident; `sent` the same with pictures that are sent to the GPU
  batch by batch. Both count the loader and Python's own time.
- `views a second` counts the encoder's forward and backward passes alone; `--compile` adds the same through torch.compile.

On a CPU a clock stands in for the events, which tests this script and tells nothing of a GPU.
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
from torch import nn

from smallview.data.loading import batches
from smallview.training.precision import choose_device
from smallview.views.making import ViewMaker

FEW, HELD = 10, 300_000_000  # pieces of work in a row; clock cycles, some 0.15 s, in which they are launched
SIZES, BATCHES, GOAL_SHARE, GOAL_VIEWS = (32, 64, 96, 128, 224), (256, 1024, 4096), 0.02, 100_000


def seconds(work: Callable[[], object], times: int, device: torch.device, held: bool = False) -> float:
    """Seconds of one piece of work, the mean of so many in a row, after two that do not count. held: the device's own time."""
    work()
    work()
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if held:
        torch.cuda._sleep(HELD)
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
    arms = {
        name: Bench(encoder, size, batch, torch.get_num_threads(), None, pictures, device.type, graph=graph, keep=keep)
        for name, graph, keep in (("eager", False, None), ("graph", True, None), ("sent", True, False))
    }
    bench = arms["graph"]
    assert bench.preset is not None
    order = batches(len(bench.pack), batch, 0, 0, 10**9)
    both = torch.cat([view.images for view in bench.resident[1]]).contiguous(memory_format=bench.precision.memory_format)
    net = bench.state.networks.online.encoder
    torch_maker = ViewMaker(bench.pack, bench.preset.method.views, size, [0.5] * 3, [0.25] * 3, 0, device, executor="torch")

    def passes(through: nn.Module) -> None:
        with bench.precision.autocast(device):
            loss = through(both).float().square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)

    net.train()
    speeds = {name: arm.run(2, True) for name, arm in arms.items()}  # kernels are compiled and chosen, graphs recorded
    steps = max(3, round(given.seconds * speeds["graph"] / batch))
    compiled = torch.compile(net) if given.compile else None
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(given.rounds):
        add("torch", seconds(lambda: torch_maker(next(order)), FEW, device, held=True))
        add("views", seconds(lambda: bench.maker(next(order)), FEW, device, held=True))
        add("passes", seconds(lambda: passes(net), FEW, device))
        if compiled is not None:
            add("compiled", seconds(lambda: passes(compiled), FEW, device))
        for name, arm in arms.items():
            add(name, arm.run(steps, True))
        add("resident", bench.run(steps, False))
    middle = {name: statistics.median(values) for name, values in found.items()}
    step = batch / max(middle["graph"], middle["eager"])
    return {
        "encoder": encoder,
        "size": size,
        "batch_size": batch,
        "format": bench.precision.dtype,
        "executor": bench.maker.executor,
        "torch_ms": 1e3 * middle["torch"],
        "views_ms": 1e3 * middle["views"],
        "step_ms": 1e3 * batch / middle["graph"],
        "eager_ms": 1e3 * batch / middle["eager"],
        "share": middle["views"] / step,
        "loop": statistics.median(1 - a / b for a, b in zip(found["graph"], found["resident"], strict=True)),
        "sent": statistics.median(1 - a / b for a, b in zip(found["sent"], found["resident"], strict=True)),
        "images_a_second": batch / step,
        "views_a_second": len(both) / middle["passes"],
        "compiled_views_a_second": len(both) / middle["compiled"] if compiled is not None else None,
        "steps_of_a_segment": steps,
        "rounds": found,
    }


HEADS = (
    *("encoder", "size", "batch", "views by torch, ms", "views, ms", "eager step, ms", "step, ms", "share", "loop", "sent"),
    *("images a second, training", "views a second, fwd + bwd", "compiled"),
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|" + "---:|" * (len(HEADS) - 1)]
    for row in rows:
        cells = [row["encoder"], str(row["size"]), str(row["batch_size"])]
        if "left_out" in row:
            cells += [row["left_out"], *[""] * (len(HEADS) - 4)]
        else:
            cells += [f"{row[name]:.2f}" for name in ("torch_ms", "views_ms", "eager_ms", "step_ms")]
            cells += [f"{row[name]:.1%}" for name in ("share", "loop", "sent")]
            cells += [f"{row[name]:,.0f}" for name in ("images_a_second", "views_a_second")]
            cells += ["" if row["compiled_views_a_second"] is None else f"{row['compiled_views_a_second']:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
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
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a segment of steps")
    parser.add_argument("--compile", action="store_true", help="also time the encoder's passes through torch.compile")
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
