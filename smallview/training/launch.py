"""Who may write a run folder, and when to stop: the folder's marker and lock, and the two signals that end a run.

No torch here: a folder that cannot be used is told of before anything slow begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from smallview.errors import LockedError, SmallviewError, StoppedError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARKER = ".smallview-run"
LOCK = ".lock"
_NOT_CONTENT = {LOCK, ".DS_Store"}
_POLL_S = 0.1


def prepare_folder(path: str | Path) -> Path:
    """Makes a run folder, with parents and the marker that says it is ours, and shows that it can be written.

    UsageError for a folder with things in it that lacks the marker; SmallviewError when it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = set(os.listdir(path))
        # A start that was killed may have left the marker's temporary file alone here.
        if MARKER not in names and any(not n.startswith(MARKER) for n in names - _NOT_CONTENT):
            raise UsageError(f"{path} holds other files and is no run folder; choose an empty or a new folder with --out")
        # Written even where it is there already: permission bits do not tell everything, a write does.
        temporary = path / f"{MARKER}.tmp-{os.getpid()}"
        try:
            temporary.write_text("This folder belongs to smallview.\n", encoding="utf-8")
            os.replace(temporary, path / MARKER)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except (FileExistsError, NotADirectoryError):
        raise SmallviewError(f"cannot make the folder {path}: a file is in its place; choose another --out") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SmallviewError(f"cannot write to the folder {str(path)!r}: {reason}; choose another --out") from None
    return path


def withdraw_folder(made: Sequence[Path]) -> None:
    """Takes back the folders (innermost first) that were made for a run which never began, if nothing but our signs is inside."""
    with contextlib.suppress(OSError):
        if made and not set(os.listdir(made[0])) - {MARKER, LOCK}:
            for name in (MARKER, LOCK):
                (made[0] / name).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()


class FolderLock:
    """A held lock; `held` is false where the system has no locks."""

    def __init__(self, path: Path, handle: int | None) -> None:
        self.path = path
        self._handle = handle

    @property
    def held(self) -> bool:
        """Whether other processes are kept out."""
        return self._handle is not None

    def release(self) -> None:
        """Lets others in; the file stays, because removing it would race with a process that waits for it."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


@contextlib.contextmanager
def lock_folder(path: str | Path, *, wait_s: float = 10.0, warn: Callable[[str], None] = _warn) -> Iterator[FolderLock]:
    """Holds a run folder for this process; the system frees it when the process ends in whatever way.

    Waits up to `wait_s` seconds, since the children of a killed process hold its lock a little longer; then LockedError with
    the holder's name. Where the system or the file system has no locks, one line of warning and no lock.
    """
    path = Path(path)
    try:
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise SmallviewError(f"cannot write to the folder {path}: {error.strerror or error}; choose another --out") from None
    try:
        problem = _take(handle, path, wait_s)
    except BaseException:
        os.close(handle)
        raise
    if problem is None and os.fstat(handle).st_nlink == 0:
        os.close(handle)
        raise LockedError(f"{path} was just taken back by another process that failed; run the command again")
    if problem is None:
        _sign(handle)
        lock = FolderLock(path, handle)
    else:
        os.close(handle)
        warn(f"{path} is not locked ({problem}); start no second process on it")
        lock = FolderLock(path, None)
    try:
        yield lock
    finally:
        lock.release()


def _take(handle: int, path: Path, wait_s: float) -> str | None:
    """None once the lock is ours, or why there are no locks here; LockedError when the time is up."""
    if fcntl is None:
        return "this system has no file locks"
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            if time.monotonic() >= end:
                raise LockedError(
                    f"{path} is in use by {_holder(handle)}; wait for it, or choose another folder with --out"
                ) from None
        except OSError as error:
            return error.strerror or str(error)
        time.sleep(min(_POLL_S, max(end - time.monotonic(), 0.001)))


def _sign(handle: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().astimezone().isoformat("T", "seconds")}
    with contextlib.suppress(OSError):  # the name is a courtesy, the lock is what counts
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode() + b"\n", 0)


def _holder(handle: int) -> str:
    try:
        holder: dict[str, Any] = json.loads(os.pread(handle, 4096, 0))
        since = datetime.fromisoformat(str(holder["since"])).astimezone()
        today = since.date() == datetime.now().astimezone().date()
        when = since.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
        host = "".join(c for c in str(holder["host"])[:64] if c.isprintable())
        return f"pid {int(holder['pid'])} on host {host} since {when}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


_early: list[int] = []  # signals that came before the steps


@contextlib.contextmanager
def stopped_early(command: Callable[[], str]) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM outside the training steps (imports, decoding, building) a StoppedError too: nothing is half-done.

    A library may swallow the interrupt, or be left half-imported by it. So what fails after one is the stop as well, and where
    nothing fails, the StopRequest of the training finds the wish. A second Ctrl-C ends the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _early.append(number)
        raise KeyboardInterrupt

    def stopped() -> StoppedError:
        return StoppedError(f"stopped outside the training steps, and nothing is lost; go on with: {command()}")

    before: dict[int, Any] = {}
    listener = None
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(each) != signal.SIG_IGN:
                before[each] = signal.signal(each, stop)
        listener = _Listener.begin()
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, SmallviewError) or not (_early or isinstance(error, KeyboardInterrupt)):
            raise
        raise stopped() from None
    finally:
        _early.clear()
        if listener is not None:
            listener.end()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a wish to stop: the loop reads `requested` after each step, saves and leaves.

    A second Ctrl-C ends the process at once with status 130, also in the middle of a long call into a library. Handlers are in
    place between `with` and its end, in the main thread; elsewhere nothing is installed. `announce` is told once that a stop was
    asked for.
    """

    def __init__(self, announce: Callable[[str], None] | None = None) -> None:
        self.requested = False
        self.signal: int | None = None
        self._announce = announce
        self._interrupts = 0
        self._previous: dict[int, Any] = {}
        self._listener: _Listener | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
            self._listener = _Listener.begin()
            if _early:
                self._ask(_early[0])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._listener is not None:
            self._listener.end()
            self._listener = None
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(130)
        self._ask(number)

    def _ask(self, number: int) -> None:
        if not self.requested:
            self.requested, self.signal = True, number
            # The signal may have come in the middle of a print; a message is not worth an exception there.
            with contextlib.suppress(RuntimeError, OSError, ValueError):
                if self._announce is not None:
                    self._announce("stopping after this step")


class _Listener:
    """A thread that hears every Ctrl-C when it comes and ends the process at the second one.

    Python calls a handler only between two of its own instructions, and once for all signals that came in the meantime: two of
    them during one backward pass would count as one, and a call that hangs could not be left at all.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._thread = threading.Thread(target=self._listen, name="smallview-signals", daemon=True)
        self._thread.start()

    @staticmethod
    def begin() -> _Listener | None:
        """None where signals are already written to a file of somebody else's, such as an event loop."""
        if os.name == "nt":  # where only sockets will do
            return None
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        if before == -1:
            return _Listener(reading, writing)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
        return None

    def _listen(self) -> None:
        interrupts = 0
        while numbers := os.read(self._reading, 64):
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                os._exit(130)

    def end(self) -> None:
        """Hear no more."""
        now = signal.set_wakeup_fd(-1)
        if now not in (-1, self._writing):  # an event loop that began meanwhile
            signal.set_wakeup_fd(now)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)
