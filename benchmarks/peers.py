"""A SimCLR training step at 32 px, images per second: this project's loop beside lightly's tutorial and stable-pretraining's module.

    python benchmarks/peers.py --json peers.json
    python benchmarks/peers.py --encoder dense_small --arm ours --arm lightly --rounds 3

Every arm trains the same encoder with the same batch, recipe (no blur), a projector F-512-128 and SGD, on the same cores; workers that an
arm starts share them. Each arm is a process of its own, as its users run it (this project keeps freed memory, which would help the others
too), and waits for its turn without using the processor. A turn begins with steps that do not count, which use up what workers made in
advance, and ends when the workers are idle. `resident` is our step on tensors that are already there: the limit.
`ours-bfloat16` computes in bfloat16, which is the rule on CPUs that have it but for depthwise nets; all others compute in float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pipelines
import torch
from arms import Arm, describe, machine, save, table
from photos import small_pictures
from step import ENCODERS, Bench, batch_for, encoder_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from smallview.optimizers import SGD
from smallview.presets import simclr
from smallview.training.precision import Format, keep_big_blocks

SIZE, HIDDEN, OUT, LR, TEMPERATURE = 32, 512, 128, 0.06, 0.5
WARM = 5  # two workers have two batches ready each
NAMES = (
    "ours",
    "ours-bfloat16",
    "resident",
    "lightly",
    "lightly-2-workers",
    "stable-pretraining",
    "stable-pretraining-2-workers",
)
GOALS = {"resnet18": (1.5, 1.6), "dense_small": (6.0, 9.0), "three_convolutions": (6.0, 9.0)}
MARK = "result: "
Segment = Callable[[int], float]


class PillowPictures(Dataset[Any]):
    """Pillow pictures, each through a transform and with a label, as data sets of torchvision give them."""

    def __init__(self, count: int, transform: Callable[[Any], Any] | None) -> None:
        self.images, self.transform = pipelines.in_pillow(small_pictures(count)[0]), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = self.images[i]
        return (image if self.transform is None else self.transform(image)), 0


def loader_of(data: Dataset[Any], batch: int, workers: int) -> DataLoader[Any]:
    """A loader as the tutorials make it, whose workers stay from epoch to epoch."""
    return DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def our_loop(encoder: str, batch: int, pictures: int, threads: int, stem: str, arm: str) -> Segment:
    """This project's loop as a run has it, on views made ahead or on resident ones."""
    keep_big_blocks()
    base = simclr()
    method = replace(base.method, views=tuple(replace(view, blur=0.0) for view in base.method.views))
    preset = replace(base, method=method, optimizer=SGD(lr=LR))
    dtype: Format = "bfloat16" if arm == "ours-bfloat16" else "float32"
    bench = Bench(encoder, SIZE, batch, threads, preset, small_pictures(pictures)[0], stem=stem, dtype=dtype)
    return lambda steps: bench.run(steps, arm != "resident")


def lightly_loop(encoder: str, batch: int, pictures: int, workers: int, stem: str) -> Segment:
    """The loop of lightly's SimCLR tutorial in plain torch."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    net, config = encoder_of(encoder, SIZE, stem)
    head = SimCLRProjectionHead(config.features, HIDDEN, OUT)
    criterion = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=LR)
    loader = loader_of(PillowPictures(pictures, pipelines.lightly_transform(SIZE)), batch, workers)

    def endless() -> Iterator[list[Tensor]]:
        while True:
            for views, _ in loader:
                yield views

    feed = endless()

    def segment(steps: int) -> float:
        began = 0.0
        for step in range(WARM + steps):
            if step == WARM:
                began = time.perf_counter()
            first, second = next(feed)
            loss = criterion(head(net(first).flatten(1)), head(net(second).flatten(1)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return steps * batch / (time.perf_counter() - began)

    return segment


def stable_pretraining_loop(encoder: str, batch: int, pictures: int, workers: int, stem: str) -> Segment:
    """stable-pretraining's module, forward, loss and transforms under Lightning's trainer, all that watches switched off."""
    import lightning
    import stable_pretraining as spt
    from stable_pretraining.data import transforms as t
    from stable_pretraining.forward import simclr as forward

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watchers = ("logging", "env_dump", "trainer_info", "module_summary", "slurm_info", "unused_params", "hf_checkpoint")
    spt.set(verbose="ERROR", progress_bar="none", default_callbacks=dict.fromkeys(watchers, False), cache_dir=os.getcwd())
    brightness, contrast, saturation, hue = pipelines.JITTER
    view = t.Compose(
        t.RGB(),
        t.RandomResizedCrop((SIZE, SIZE), scale=pipelines.SCALE),
        t.RandomHorizontalFlip(p=0.5),
        t.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=0.8),
        t.RandomGrayscale(p=0.2),
        t.ToImage(mean=pipelines.MEAN, std=pipelines.STD),
    )
    views = t.MultiViewTransform([view, view])
    data = spt.data.FromTorchDataset(PillowPictures(pictures, None), names=["image", "label"], transform=views)
    loader = loader_of(data, batch, workers)
    net, config = encoder_of(encoder, SIZE, stem)
    hidden = (nn.Linear(config.features, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True))
    module = spt.Module(
        backbone=net,
        projector=nn.Sequential(*hidden, nn.Linear(HIDDEN, OUT)),
        forward=forward,
        simclr_loss=spt.losses.NTXEntLoss(temperature=TEMPERATURE),
        optim={"optimizer": partial(torch.optim.SGD, lr=LR), "scheduler": {"type": "ConstantLR", "factor": 1.0}},
    )

    steps_wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
    speeds: queue.SimpleQueue[float | BaseException] = queue.SimpleQueue()

    class Turns(lightning.pytorch.callbacks.Callback):  # type: ignore[misc]
        """Lets the trainer go on only while it is this arm's turn."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.wanted = 0

        def on_train_batch_start(self, *_: object, **__: object) -> None:
            self.wanted = self.wanted or steps_wanted.get()

        def on_train_batch_end(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())
            if len(self.times) == WARM + self.wanted:
                speeds.put(self.wanted * batch / (self.times[-1] - self.times[WARM - 1]))
                self.times, self.wanted = [], 0

    def work() -> None:
        quiet = {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
        try:
            lightning.Trainer(accelerator="cpu", max_epochs=-1, logger=False, callbacks=[Turns()], **quiet).fit(module, loader)
        except BaseException as error:
            speeds.put(error)

    # one call of fit for all turns, in a thread: starting it anew would start its workers anew
    threading.Thread(target=work, daemon=True).start()

    def segment(steps: int) -> float:
        steps_wanted.put(steps)
        found = speeds.get()
        if isinstance(found, BaseException):
            raise found
        return found

    return segment


def build_loop(arm: str, encoder: str, batch: int, pictures: int, threads: int, stem: str) -> Segment:
    """What trains for so many steps and tells images per second.

    Raises:
        ImportError: the arm's library is not installed.
    """
    torch.set_num_threads(threads)
    if arm in ("ours", "ours-bfloat16", "resident"):
        return our_loop(encoder, batch, pictures, threads, stem, arm)
    workers = 2 if arm.endswith("-2-workers") else 0
    make = lightly_loop if arm.startswith("lightly") else stable_pretraining_loop
    return make(encoder, batch, pictures, workers, stem)


def used(pid: int) -> float:
    """CPU seconds of a process so far, as Linux tells them; 0 elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(longest: float = 20.0) -> None:
    """Wait until this process's workers have nothing more to do in advance."""
    before, end = -1.0, time.monotonic() + longest
    while time.monotonic() < end:
        now = sum(used(child.pid) for child in multiprocessing.active_children() if child.pid)
        if now <= before:
            return
        before = now
        time.sleep(0.2)


def serve(values: dict[str, Any]) -> None:
    """One arm in a process of its own: for each line with a number of steps, a line with its speed."""
    warnings.simplefilter("ignore")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: values["threads"]])
    try:
        segment = build_loop(**values)
    except ImportError as error:
        print(f"{MARK}{json.dumps({'missing': str(error).splitlines()[0]})}", flush=True)
        return
    print(f"{MARK}{{}}", flush=True)
    # not sys.stdin: a forked worker closes it, and would wait for ever for the lock that the reader in this process holds
    with open(os.dup(0)) as turns:
        for line in turns:
            speed = segment(int(line))
            settle()
            print(f"{MARK}{json.dumps({'speed': speed})}", flush=True)


class Worker:
    """An arm's process, seen from the one that gives the turns."""

    def __init__(self, arm: str, given: argparse.Namespace, encoder: str, batch: int) -> None:
        values = {"arm": arm, "encoder": encoder, "batch": batch, "pictures": given.pictures}
        values |= {"threads": given.threads, "stem": given.stem}
        self.arm, self.last = arm, "it said nothing"
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(values)]
        self.folder = tempfile.TemporaryDirectory()  # for what a library thinks it must write
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder.name,
        )
        self.missing = self.read().get("missing")

    def read(self) -> dict[str, Any]:
        """The next answer; what libraries print in between is passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
            self.last = line.strip() or self.last
        sys.exit(f"{self.arm} ended: {self.last}")

    def run(self, steps: int) -> float:
        """Images per second of so many steps."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        speed: float = self.read()["speed"]
        return speed

    def end(self) -> None:
        """Let the process go."""
        self.process.communicate()
        self.folder.cleanup()


def compare(encoder: str, given: argparse.Namespace) -> dict[str, Any]:
    """One encoder: a row per arm."""
    batch = given.batch_size or batch_for(encoder)
    workers, left_out, goal = [], [], GOALS.get(encoder, (5.0, 6.0))
    for name in given.arm or NAMES:
        worker = Worker(name, given, encoder, batch)
        if worker.missing:
            left_out.append(f'{name}: {worker.missing}; pip install ".[bench]"')
            print(f"left out: {left_out[-1]}", flush=True)
            worker.end()
        else:
            workers.append(worker)
    first = {w.arm: time.perf_counter() for w in workers}
    steps = {}
    for worker in workers:
        first[worker.arm] = time.perf_counter()
        worker.run(1)
        first[worker.arm] = time.perf_counter() - first[worker.arm]
        steps[worker.arm] = max(2, math.ceil(given.seconds * worker.run(2) / batch))
    speeds: dict[str, list[float]] = {worker.arm: [] for worker in workers}
    for _ in range(given.rounds):
        for worker in workers:
            speeds[worker.arm].append(worker.run(steps[worker.arm]))
    for worker in workers:
        worker.end()
    arms = [
        Arm(
            w.arm,
            lambda: 0,
            ours=w.arm == "ours",
            floor=w.arm == "resident",
            goal=goal if w.arm.startswith("lightly") else None,
        )
        for w in workers
    ]
    rows = [describe(arm, arms, speeds, first[arm.name], None) for arm in arms]
    print(f"{encoder}, batch {batch}\n\n{table(rows, 'images/s')}\n", flush=True)
    return {"encoder": encoder, "batch_size": batch, "steps": steps, "arms": rows, "left_out": left_out}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the encoders asked for and print a table of each."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--worker"]:
        serve(json.loads(arguments[1]))
        return {}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", choices=ENCODERS)
    parser.add_argument("--arm", action="append", choices=NAMES)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--stem", choices=("auto", "standard", "small"), default="auto", help="auto is small at this size")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of an arm's turn, at least")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything here")
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {
        "title": "SimCLR step at 32 px",
        "machine": machine(),
        "threads": given.threads,
        "stem": given.stem,
    }
    found |= {"pictures": small_pictures(given.pictures)[1], "rounds": given.rounds, "seconds": given.seconds}
    found["encoders"] = [compare(name, given) for name in given.encoder or ENCODERS]
    save(found, given.json)
    return found


if __name__ == "__main__":
    main()
