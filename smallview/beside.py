"""What is done beside the steps, each by its own clock: progress, watch, log, online evaluation, and saves.

Of several processes the first one does it all; the others only listen for signals.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from smallview.collectives import rank
from smallview.config import steps_per_epoch
from smallview.errors import DivergedError, SmallviewError, StoppedError
from smallview.files import write_text
from smallview.online import online_of
from smallview.parts import Parts
from smallview.settings import to_tables
from smallview.training import checkpoint
from smallview.training.cost import Ledger, peak_memory
from smallview.training.launch import StopRequest
from smallview.training.log import Guarded, Logger, MetricsLog
from smallview.training.loop import StepReport
from smallview.training.probe import Look, look
from smallview.training.progress import Progress
from smallview.training.tensorboard import TensorBoardLog
from smallview.training.verdicts import Verdict, Watch, chance

LOG_EVERY = 10
MOST_FAILED_SAVES = 3
BAD = ("collapsed", "diverging")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


class Beside:
    """Enter it around the training; `on_step` after every step says whether to stop, `end` is for when the loop came back."""

    def __init__(
        self,
        parts: Parts,
        folder: Path,
        steps: int,
        *,
        quiet: bool = False,
        command: Callable[[Path], str] | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.parts, self.config, self.state = parts, parts.config, parts.state
        self.folder, self.steps, self.command = folder, steps, command
        self.leads = rank() == 0
        self.progress = Progress(steps, quiet=quiet or not self.leads)
        self.stop = StopRequest((lambda message: None) if quiet or not self.leads else self.progress.say)
        self.ledger = Ledger()
        rate = self.config.optimizer.lr if isinstance(self.config.optimizer.lr, float) else None
        self.watch = Watch(chance(self.config.method, self.config.batch_size), lr=rate, threads=self.config.threads)
        self.verdict: Verdict | None = None
        self.figures: dict[str, float] = {}
        self.flops = parts.flops() * self.config.batch_size if self.leads else 0.0
        self.failed_saves = 0
        self.given_up: str | None = None
        self.spent = 0.0
        self.started: float | None = None
        self.loggers = list(loggers)
        if self.config.tensorboard and self.leads:
            self.loggers.append(TensorBoardLog(folder / "tensorboard"))

    def load(self, extra: dict[str, Any]) -> None:
        """Take over what a checkpoint holds beside tensors."""
        self.spent = float(extra.get("seconds", 0.0))
        self.ledger.load(extra.get("ledger", {}))
        self.watch.load(extra.get("watch", {}))

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(self.progress)
            held.enter_context(self.stop)
            if self.leads:
                self.log = held.enter_context(MetricsLog(self.folder / "metrics.jsonl"))
                self.log.truncate_after(self.state.step)
                self.views = self.parts.probe_views()
                if self.state.step == 0:  # what it is later compared with, and never a verdict
                    self.watch.judge(self._look(0))
                self.online = online_of(self.parts, self.progress.say)
                self.others = Guarded(self.loggers, self.progress.say)
                self.others.begin(to_tables(self.config), self.state.step)
            self.judged_before = self.ledger.seconds.get("online", 0.0)
            held.enter_context(self.ledger.clock("train"))
            self._held = held.pop_all()
        self.started = self.last_save = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()
        self.spent, self.started = self.seconds(), None

    def seconds(self) -> float:
        """Seconds of training so far: saves and looks counted, evaluation not."""
        if self.started is None:
            return self.spent
        return self.spent + time.monotonic() - self.started - (self.ledger.seconds.get("online", 0.0) - self.judged_before)

    def on_step(self, report: StepReport) -> bool:
        """Do what is due after a step; whether to stop."""
        if self.leads:
            self._watch(report)
            self._evaluate(report)
            self._tell(report)
            due = time.monotonic() - self.last_save >= self.config.save_every
            if due and report.warning is None and report.step < self.steps:
                self.save()
        return self.stop.requested or self.given_up is not None

    def _watch(self, report: StepReport) -> None:
        done = report.done
        with self.ledger.clock("watch"):
            self.watch.step(report.step, done.loss, done.losses, report.lr, done.gradient, report.seconds, report.waited)
            self.figures = {}
            if report.step % self.config.watch_every and report.step < self.steps:
                return
            seen = self._look(report.step)
            self.figures = {f"watch/{name}": value for name, value in seen.as_dict().items() if name != "step"}
            self.figures |= {f"watch/chance/{name}": value for name, value in self.watch.against_chance().items()}
            before, self.verdict = self.verdict, self.watch.judge(seen)
        verdict = self.verdict
        if verdict is not None and (before is None or before.name != verdict.name):
            if verdict.name != "healthy" or before is not None:
                self.progress.say(verdict.line())
            if verdict.name in BAD and self.config.stop_on_collapse:
                self.given_up = verdict.line()

    def _look(self, step: int) -> Look:
        return look(self.state.networks, self.views, step, self.parts.precision.autocast(self.parts.device))

    def _evaluate(self, report: StepReport) -> None:
        if self.online is not None:
            with self.ledger.clock("online"):
                self.figures |= self.online.step(report, last=report.step == self.steps)

    def _tell(self, report: StepReport) -> None:
        with self.ledger.clock("log"):
            self.progress.update(report, None if self.verdict is None else self.verdict.name)
            if report.warning is not None:
                names = [self.parts.pack.names[int(i)] for i in report.batch.index]
                write_text(
                    self.folder / f"skipped-step-{report.step:06d}.json",
                    json.dumps({"warning": report.warning, "pictures": names}) + "\n",
                )
            if self.figures or report.step % LOG_EVERY == 0 or report.step == self.steps or report.warning:
                record = self._record(report)
                self.log.write(record)
                self.others.write(record)

    def _record(self, report: StepReport) -> dict[str, Any]:
        images = len(report.batch.index)
        pictures = len(self.parts.pack)
        return {
            "step": report.step,
            "epoch": round(report.step / steps_per_epoch(pictures, self.config.batch_size), 4),
            "loss": report.done.loss,
            **{f"loss/{name}": value for name, value in report.done.losses.items()},
            "gradient": report.done.gradient,
            **self.figures,
            **({} if self.verdict is None or not self.figures else {"verdict": self.verdict.name}),
            "lr": report.lr,
            "images": report.step * images,
            "images_per_second": round(images / max(report.seconds, 1e-9), 1),
            "waiting": round(report.waited / max(report.seconds, 1e-9), 4),
            "seconds": round(self.seconds(), 3),
            "flops": float(f"{report.step * self.flops:.4g}"),
            "peak_memory_mib": round(peak_memory(self.parts.device) / 2**20),
        }

    def save(self, last: bool = False) -> bool:
        """Write a checkpoint; whether it could be written. The third failure in a row ends the training.

        Weights that are not finite are never written: the checkpoints before them would go for nothing.

        Raises:
            SmallviewError: the third failure. DivergedError: the last weights are not finite.
        """
        self.last_save = time.monotonic()
        broken = [name for name, value in self.state.tensors().items() if not _finite(value)]
        if broken:
            told = f"step {self.state.step:,}: {len(broken)} tensors are not finite, e.g. {broken[0]}"
            if last:
                raise DivergedError(
                    f"{told}; the last good checkpoint is kept; start anew with --fresh and a lower --set optimizer.lr"
                )
            self.progress.say(f"{told}; not saved, the last good checkpoint is kept")
            return False
        with self.ledger.clock("save"):
            try:
                extra = {
                    "seconds": self.seconds(),
                    "skipped": self.state.skipped,
                    "watch": self.watch.state(),
                    "ledger": self.ledger.seconds,
                }
                checkpoint.save(self.folder / "checkpoints", self.state.step, self.state.tensors(), extra, milestone=last)
                self.failed_saves = 0
            except SmallviewError as error:
                self.failed_saves += 1
                if self.failed_saves >= MOST_FAILED_SAVES:
                    told = str(error).split("; training goes on")[0]
                    raise SmallviewError(f"{told}; the third failure in a row, and training stops") from error
                self.progress.say(str(error))
        return self.failed_saves == 0

    def end(self, done: bool) -> None:
        """Save the last state.

        Raises:
            StoppedError: the run was stopped before its last step. DivergedError: it stopped itself, as it was told to.
        """
        saved = self.save(last=done) if self.leads else True
        if self.leads:
            self.others.end(self.summary())
        if done:
            return
        state = f"at step {self.state.step:,} of {self.steps:,} and {'saved' if saved else 'NOT saved'}"
        if self.given_up is not None:
            raise DivergedError(f"{self.given_up}; stopped {state}, as stop_on_collapse asks")
        again = f"go on with: {self.command(self.folder)}" if self.command else "the same call goes on with it"
        raise StoppedError(f"stopped {state}; {again}")

    def summary(self) -> dict[str, Any]:
        """What the run came to, for summary.json and loggers."""
        spent = self.seconds()
        return {
            "train_seconds": round(spent, 1),
            "shares": {name: round(share, 5) for name, share in self.ledger.shares().items()},
            "flops": float(f"{self.state.step * self.flops:.4g}"),
            "peak_memory_mib": round(peak_memory(self.parts.device) / 2**20),
            **({} if self.verdict is None else {"verdict": self.verdict.name}),
        }
