"""What a person sees while something runs: one redrawn line on a terminal, one plain line every ten seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from smallview.training.loop import StepReport

EVERY_SECONDS = 10.0


def clock(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> clock(7), clock(75), clock(4000)
        ('7 s', '1 min 15 s', '1 h 06 min')
    """
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


class Lines:
    """Lines on stderr, and on a terminal one that is drawn again and again."""

    def __init__(self, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream, self.quiet = stream or sys.stderr, quiet
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
        self.shown = time.monotonic()
        self.drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end_line()

    def _end_line(self) -> None:
        if self.drawn:
            self.stream.write("\n")
            self.stream.flush()
            self.drawn = False

    def say(self, message: str) -> None:
        """A message of its own line."""
        self._end_line()
        self.stream.write(message + "\n")
        self.stream.flush()

    def due(self, last: bool) -> bool:
        """Whether it is time to show how things stand; at the last of them it is."""
        now = time.monotonic()
        if self.quiet or not (last or now - self.shown >= (0.5 if self.live else EVERY_SECONDS)):
            return False
        self.shown = now
        return True

    def show(self, line: str) -> None:
        """How things stand: in the place of what was shown before, where that can be."""
        if not self.live:
            self.say(line)
            return
        width = os.get_terminal_size(self.stream.fileno()).columns if hasattr(self.stream, "fileno") else 120
        self.stream.write("\r\x1b[2K" + line[: max(20, width - 1)])
        self.drawn = True
        self.stream.flush()


class Counting(Lines):
    """Shows how many pictures are done of how many, how fast, and the time left; several things may be counted one after the other."""

    def __init__(self, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        super().__init__(stream=stream, quiet=quiet)
        self.doing = ""
        self.began = (0, 0.0)

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Take in that so many are done; show it when it is time."""
        now = time.monotonic()
        if doing != self.doing:
            self.doing, self.began = doing, (done, now)
        if not self.due(False):
            return
        speed = (done - self.began[0]) / max(now - self.began[1], 1e-9)
        left = f" · {clock((total - done) / speed)} left" if speed > 0.0 else ""
        self.show(f"{doing} {done:,}/{total:,} pictures · {speed:,.0f} pictures/s{left}")


class Progress(Lines):
    """Shows images per second, the share of time spent waiting for views, loss terms, verdict and time left; on stderr."""

    def __init__(self, total_steps: int, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        super().__init__(stream=stream, quiet=quiet)
        self.total = total_steps
        self.images = 0
        self.seconds = self.waited = 0.0
        self.verdict: str | None = None
        self.rate: float | None = None

    def line(self, report: StepReport) -> str:
        """One line about the run as it stands."""
        speed = self.images / max(self.seconds, 1e-9)
        left = (self.total - report.step) * (self.rate or 0.0)
        terms = " ".join(f"{name} {value:.3f}" for name, value in report.done.losses.items())
        verdict = "" if self.verdict is None else f" · {self.verdict}"
        waited = 100.0 * self.waited / max(self.seconds, 1e-9)
        return (
            f"step {report.step:,}/{self.total:,} · epoch {report.batch.epoch + 1} · {terms}{verdict} · {speed:,.0f} images/s · "
            f"waiting for data {waited:.0f} % · {clock(left)} left"
        )

    def update(self, report: StepReport, verdict: str | None = None) -> None:
        """Take in a step, and how the run does; show it when it is time."""
        self.images += len(report.batch.index)
        self.seconds += report.seconds
        self.waited += report.waited
        self.rate = report.seconds if self.rate is None else 0.95 * self.rate + 0.05 * report.seconds
        self.verdict = verdict
        if report.warning:
            self.say(report.warning)
        if not self.due(report.step >= self.total):
            return
        self.show(self.line(report))
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
