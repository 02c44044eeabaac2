"""Arms that take turns in one process, what each did per second, and the ratio of our arm over each, paired round by round.

One image is two views unless a script says otherwise. With the CPU clock every arm has one thread, and what counts is the CPU time of
the whole process, so that a thread an arm starts on its own counts too. Blocks of memory that are freed are kept, as training keeps
them, which helps every arm.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from smallview.training.precision import keep_big_blocks

PACKAGES = (
    *("smallview", "torch", "torchvision", "timm", "numpy", "numba", "pillow", "simplejpeg"),
    *("lightly", "kornia", "albumentations", "stable-pretraining", "lightning", "opencv-python-headless", "ffcv"),
)


@dataclass(frozen=True)
class Arm:
    """One way of doing the work.

    call: makes one batch and returns the number of images in it. goal: what our arm shall be over this one: what must be shown, and
    what to push to. floor: no pipeline, only a part of the work that none can do without. sample: some views, float [n, C, S, S],
    so that it can be seen that the arms do the same. note: what the arm does otherwise.
    """

    name: str
    call: Callable[[], int]
    ours: bool = False
    floor: bool = False
    goal: tuple[float, float] | None = None
    sample: Callable[[], Tensor] | None = None
    note: str = ""


def build(makers: dict[str, Callable[[], Arm]], chosen: Sequence[str] | None) -> tuple[list[Arm], list[str]]:
    """The arms that can be made here, and a line for each that cannot, which is also printed."""
    unknown = sorted(set(chosen or ()) - set(makers))
    if unknown:
        sys.exit(f"no arm is called {', '.join(unknown)}; there are {', '.join(makers)}")
    arms, left_out = [], []
    for name, make in makers.items():
        if chosen and name not in chosen:
            continue
        try:
            arms.append(make())
        except ImportError as error:
            left_out.append(f'{name}: {str(error).splitlines()[0]}; pip install ".[bench]"')
            print(f"left out: {left_out[-1]}", flush=True)
    return arms, left_out


def run_for(arm: Arm, seconds: float, clock: Callable[[], float]) -> float:
    """Images per second of one segment."""
    done, began = 0, clock()
    while (passed := clock() - began) < seconds:
        done += arm.call()
    return done / passed


def take_turns(
    arms: Sequence[Arm], rounds: int, seconds: float, clock: Callable[[], float] = time.process_time
) -> list[dict[str, Any]]:
    """A row per arm: its speed, and how much faster each of our arms is; first two calls are warm-up and told apart."""
    first = {}
    with threadpool_limits(1):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        keep_big_blocks()
        try:
            for arm in arms:
                times = [time.perf_counter()]
                for _ in range(2):
                    arm.call()
                    times.append(time.perf_counter())
                first[arm.name] = times[1] - times[0] - (times[2] - times[1])
            speeds: dict[str, list[float]] = {arm.name: [] for arm in arms}
            for _ in range(rounds):
                for arm in arms:
                    speeds[arm.name].append(run_for(arm, seconds, clock))
            looks = {arm.name: look(arm.sample()) for arm in arms if arm.sample is not None}
        finally:
            torch.set_num_threads(threads)
    return [describe(arm, arms, speeds, first[arm.name], looks.get(arm.name)) for arm in arms]


def describe(
    arm: Arm, arms: Sequence[Arm], speeds: dict[str, list[float]], first: float, seen: dict[str, float] | None
) -> dict[str, Any]:
    """What was found for one arm, as plain values."""
    found = speeds[arm.name]
    row: dict[str, Any] = {"arm": arm.name, "kind": "ours" if arm.ours else "floor" if arm.floor else "peer"}
    row |= {"median": statistics.median(found), "min": min(found), "max": max(found), "speeds": found}
    row |= {
        "microseconds": 1e6 / statistics.median(found),
        "warm_up_seconds": first,
        "note": arm.note,
        "goal": arm.goal,
        "looks": seen,
    }
    row["ours_over_it"] = {
        ours.name: spread([a / b for a, b in zip(speeds[ours.name], found, strict=True)]) for ours in arms if ours.ours
    }
    return row


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of paired ratios."""
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def look(views: Tensor) -> dict[str, float]:
    """Mean, deviation and roughness (mean step between neighbours) of normalised views: equal where arms do the same work."""
    steps = (views[..., 1:] - views[..., :-1]).abs()
    return {"mean": float(views.mean()), "deviation": float(views.std()), "roughness": float(steps.mean())}


def copy_floor(size: int, batch: int) -> Arm:
    """Read a picture's worth of bytes and write the two float views: what no augmentation can do without."""
    source: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), np.uint8)

    def call() -> int:
        for _ in range(2):
            source.astype(np.float32)
        return batch

    return Arm("floor: bytes to two float views", call, floor=True)


def table(rows: Sequence[dict[str, Any]], unit: str) -> str:
    """The rows in Markdown."""
    ours = [row["arm"] for row in rows if row["kind"] == "ours"]
    heads = [
        "arm",
        f"{unit}, median",
        "min to max",
        "us an image",
        *(f"{name} / arm" for name in ours),
        "goals",
        "first call, s",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        ratios = [
            "{median:.3g} ({min:.3g} to {max:.3g})".format(**row["ours_over_it"][name]) if name != row["arm"] else ""
            for name in ours
        ]
        goals = "{:g}, then {:g}".format(*row["goal"]) if row["goal"] else ""
        cells = [row["arm"], f"{row['median']:,.0f}", f"{row['min']:,.0f} to {row['max']:,.0f}", f"{row['microseconds']:,.1f}"]
        lines.append("| " + " | ".join([*cells, *ratios, goals, f"{max(0.0, row['warm_up_seconds']):.2f}"]) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where and when this was measured, and with what."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        model = platform.processor() or platform.machine()
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def parse(doc: str | None, argv: Sequence[str] | None, *, pictures: int, batch: int) -> argparse.Namespace:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of an arm's turn, at least")
    parser.add_argument("--pictures", type=int, default=pictures)
    parser.add_argument("--batch-size", type=int, default=batch)
    parser.add_argument("--arm", action="append", metavar="NAME", help="only this arm; may be given again")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything here")
    return parser.parse_args(argv)


def report(title: str, what: str, makers: dict[str, Callable[[], Arm]], given: argparse.Namespace) -> dict[str, Any]:
    """Build the arms, let them take turns, print the table and write the JSON."""
    found: dict[str, Any] = {"title": title, "pictures": what, "machine": machine()}
    arms, found["left_out"] = build(makers, given.arm)
    found |= {"unit": "images/s/core", "rounds": given.rounds, "seconds": given.seconds, "batch_size": given.batch_size}
    found["arms"] = take_turns(arms, given.rounds, given.seconds)
    print(f"{title}; {what}\n\n{table(found['arms'], found['unit'])}\n")
    for row in found["arms"]:
        seen = row["looks"] and "views: " + ", ".join(f"{name} {value:.3f}" for name, value in row["looks"].items())
        if said := "; ".join(part for part in (row["note"], seen) if part):
            print(f"{row['arm']}: {said}")
    save(found, given.json)
    return found


def save(found: dict[str, Any], path: Path | None) -> None:
    """Write what was found, where a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
