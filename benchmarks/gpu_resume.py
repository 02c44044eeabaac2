"""On a GPU: whether a run that is killed and started again serves the pictures, and has the losses, of one that is left alone.

    python benchmarks/gpu_resume.py
    python benchmarks/gpu_resume.py --execution graph --encoder resnet18
    python benchmarks/gpu_resume.py --device cpu --small    # the same in miniature

Three processes train: one to the end; one that SIGKILL ends in the middle of a step, with no last words; and one that goes on in the folder of the
second. Each writes a line for each step that it trained on: the step, the SHA-256 of the pictures' positions in their order, and the loss. Every
line of the second and third must be the first one's. Pictures that differ are an error; losses and weights are told, whose bits are the same too
where every kernel is deterministic (`--set deterministic=true`, taken here).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arms import machine, save

import smallview
from smallview.training.loop import StepReport

Served = dict[int, tuple[str, str]]  # by step: the pictures' hash, and the loss in hexadecimal


def child(given: argparse.Namespace) -> None:
    """Train in `out`, a line for each step into `lines`, and end by SIGKILL after step `kill`."""
    single: Any = importlib.import_module("smallview.single")
    train = single.train

    def watched(*args: Any, on_step: Any, **named: Any) -> bool:
        def told(report: StepReport) -> bool:
            hashed = hashlib.sha256(report.batch.index.tobytes()).hexdigest()
            with given.lines.open("a") as lines:
                lines.write(json.dumps([report.step, hashed, report.done.loss.hex()]) + "\n")
            if report.step == given.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return bool(on_step(report))

        return bool(train(*args, on_step=told, **named))

    single.train = watched
    pictures = np.random.default_rng(0).integers(0, 256, (given.pictures, given.size, given.size, 3), np.uint8)
    smallview.pretrain(
        pictures,
        *("simclr", given.encoder),
        out=given.out,
        epochs=given.steps / (given.pictures // given.batch_size),
        batch_size=given.batch_size,
        size=given.size,
        device=given.device,
        execution=given.execution,
        save_every=given.save_every,
        sets={"deterministic": True},
    )


def served(given: argparse.Namespace, folder: Path, name: str, kill: int) -> tuple[Served, int, str]:
    """What a process served, its exit status, and what it said. folder: the run's; name: of the lines."""
    lines = folder.parent / f"{name}.jsonl"
    words = [sys.executable, __file__, "--child", "--out", str(folder), "--lines", str(lines), "--kill", str(kill)]
    for key in ("device", "encoder", "execution", "size", "batch_size", "pictures", "steps", "save_every"):
        words += [f"--{key.replace('_', '-')}", str(getattr(given, key))]
    done = subprocess.run(words, capture_output=True, text=True)
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return {step: (hashed, loss) for step, hashed, loss in found}, done.returncode, done.stderr


def compare(whole: Served, killed: Served, resumed: Served) -> dict[str, Any]:
    """How many steps of the second and third process served what the first did."""
    parts = [*killed.items(), *resumed.items()]
    return {
        "steps": len(whole),
        "killed_after": max(killed, default=0),
        "resumed_at": min(resumed, default=0),
        "every_step_served": set(whole) == set(killed) | set(resumed),
        "same_pictures": sum(whole.get(step, ("",))[0] == pictures for step, (pictures, _) in parts),
        "same_losses": sum(whole.get(step) == line for step, line in parts),
        "compared": len(parts),
    }


def weights(folder: Path) -> str:
    """The SHA-256 of the encoder's file."""
    return hashlib.sha256((folder / "encoder" / "model.safetensors").read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train three times and compare; ends with an error where pictures differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", default="dense_small")
    parser.add_argument("--execution", default="eager", choices=("eager", "graph", "compile"))
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=160, help="of the whole run; the second is killed after 5/8 of them")
    parser.add_argument("--save-every", type=float, default=0.3, help="seconds between checkpoints")
    parser.add_argument("--small", action="store_true", help="8 pixels, 12 pictures, 8 steps, each saved")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child:
        child(given)
        return {}
    if given.small:
        given.size, given.batch_size, given.pictures, given.steps, given.save_every = 8, 4, 12, 8, 1e-3
    kill = 5 * given.steps // 8
    with tempfile.TemporaryDirectory() as place:
        alone, other = Path(place) / "alone", Path(place) / "killed"
        runs = []
        for folder, name, after in ((alone, "alone", 0), (other, "killed", kill), (other, "resumed", 0)):
            found, status, said = served(given, folder, name, after)
            print(f"{name}: {len(found)} steps, exit status {status}", flush=True)
            if status != (-signal.SIGKILL if after else 0):
                sys.exit(f"{name} ended with {status}; wanted {-signal.SIGKILL if after else 0}\n{said[-3000:]}")
            runs.append(found)
        told = compare(*runs) | {"same_weights": weights(alone) == weights(other)}
    found = {"title": "killed and resumed", "machine": machine(), "device": given.device, "execution": given.execution, **told}
    print(
        "killed after step {killed_after} of {steps}, resumed at step {resumed_at}: {same_pictures} of {compared} steps served the same "
        "pictures, {same_losses} had the same loss; same weights in the end: {same_weights}".format(**told)
    )
    save(found, given.json)
    if told["same_pictures"] != told["compared"] or not told["every_step_served"]:
        sys.exit("the resumed run did not serve the pictures of the uninterrupted one")
    return found


if __name__ == "__main__":
    main()
