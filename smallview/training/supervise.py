"""One command, several processes: they are started together, signals are passed on, and after a death all start again.

No torch here. Several machines go by torchrun, whose own agent does this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

LIFELINE = "SMALLVIEW_LIFELINE"  # names the end of a pipe that closes when the process that started this one is gone
MOST_RESTARTS = 3
_POLL_S = 0.05
_SETTLE_S = 0.5  # a death makes the others fail: who was first is seen when all of these are in
_GRACE_S = 10.0
_GONE = 1


def supervise(tokens: Sequence[str], processes: int, say: Callable[[str], None]) -> int:
    """Run `smallview *tokens` as so many processes on this machine; -> the exit code of the run.

    A process that a signal ended takes the others with it, and all start again from the last checkpoint, up to three times.
    Any other failure, and a stop that was asked for, ends all with its own code.
    """
    restarts = 0
    with _Signals() as asked:
        while True:
            codes = _run_once(tokens, processes, asked)
            if asked.count > 1:
                return 130
            if not codes:
                say("stopped before any process had begun; the same command goes on")
                return 75
            dead = [(rank, -code) for rank, code in enumerate(codes) if code < 0]
            if not dead:
                return _told(codes)
            rank, number = dead[0]
            died = f"process {rank} died (signal {number})"
            if asked.count:
                say(f"{died} while all were to stop; the same command goes on from the last checkpoint")
                return 75
            if restarts == MOST_RESTARTS:
                say(f"{died}, after {restarts} restarts; the same command goes on from the last checkpoint")
                return 75
            restarts += 1
            say(f"{died}; all start again from the last checkpoint (restart {restarts} of {MOST_RESTARTS})")


def _told(codes: Sequence[int]) -> int:
    """The code that says most: one with a meaning of its own before the general one, which may only be its consequence."""
    return next((code for code in codes if code > _GONE), max(codes))


class _Signals:
    """Ctrl-C and SIGTERM go to every process once, wherever they came from."""

    def __init__(self) -> None:
        self.count = 0
        self.running: list[subprocess.Popen[bytes]] = []
        self._number: int | None = None

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._number = number
        for process in self.running:
            with contextlib.suppress(OSError):
                process.send_signal(number)

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """One more to pass them on to; it also hears of one that came before it was there."""
        self.running.append(process)
        if self._number is not None:
            process.send_signal(self._number)


def _run_once(tokens: Sequence[str], processes: int, asked: _Signals) -> list[int]:
    """Start all, wait for all; -> their codes, negative for a signal. What outlives a failure by ten seconds is killed."""
    with _started(tokens, processes, asked) as running:
        failed_at: float | None = None
        killed: set[int] = set()
        while True:
            codes = [process.poll() for process in running]
            if all(code is not None for code in codes):
                break
            if failed_at is None and any(code not in (None, 0) for code in codes):
                failed_at = time.monotonic()
            if failed_at is not None:
                waited = time.monotonic() - failed_at
                by_signal = any(code is not None and code < 0 for code in codes)
                if waited > (_SETTLE_S if by_signal else _GRACE_S) or asked.count > 1:
                    for rank, process in enumerate(running):
                        if process.poll() is None:
                            killed.add(rank)
                            process.kill()
            time.sleep(_POLL_S)
        # who was killed here died of another's death
        return [_GONE if rank in killed else int(code or 0) for rank, code in enumerate(codes)]


@contextlib.contextmanager
def _started(tokens: Sequence[str], processes: int, asked: _Signals) -> Iterator[list[subprocess.Popen[bytes]]]:
    # the reading end goes to every process; the other one closes when this process is gone, however it ended
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            LIFELINE: str(reading),
        }
        for rank in range(processes):
            if asked.count:  # a process that hears of it before Python is up dies of it with a trace
                break
            asked.add(
                subprocess.Popen(
                    [sys.executable, "-m", "smallview", *tokens],
                    env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    pass_fds=(reading,),
                    start_new_session=True,  # else a terminal's Ctrl-C would reach them twice
                )
            )
        yield asked.running
    finally:
        for process in asked.running:
            process.kill()
            process.wait()
        asked.running.clear()
        os.close(reading)
        os.close(writing)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
