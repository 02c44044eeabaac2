"""How a command is run: what it says on stderr, which errors become which exit code, and how a stopped one goes on."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, UnusedCliTokensError

from smallview import __version__
from smallview.errors import DivergedError, SmallviewError, StoppedError, UsageError
from smallview.settings.fitting import printable

_tokens: list[str] = []
# what a disk says that is full, over its quota, closed or broken
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def version() -> str:
    """This version, and those of the libraries that results depend on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    parts = [f"smallview {__version__}"]
    for name in ("torch", "timm"):
        try:
            parts.append(f"{name} {installed(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")
    return ", ".join(parts)


def say(message: str) -> None:
    """One line on stderr, whatever signs are in the names that it tells."""
    print(printable(message), file=sys.stderr, flush=True)


def go_on(folder: Path | None = None) -> str:
    """The command that goes on with the run in this folder: the one given, with what --fresh moved on to named."""
    given = list(_tokens)
    if "--fresh" not in given or folder is None:
        return "smallview " + shlex.join(given)
    kept: list[str] = []
    for i, token in enumerate(given):
        if token not in ("--fresh", "--out") and not token.startswith("--out=") and given[i - 1 : i] != ["--out"]:
            kept.append(token)
    return "smallview " + shlex.join([*kept, "--out", str(folder)])


def supervised(processes: int) -> bool:
    """Run the present command as so many processes and exit with its code; false in one of these processes.

    Raises:
        UsageError: a number that this machine does not allow, or --fresh, whose folder would be another at each restart.
    """
    from smallview.training.supervise import supervise

    if "RANK" in os.environ:
        return False
    if os.name == "nt":
        raise UsageError(
            "--devices needs Linux or macOS; on Windows, torchrun -m smallview pretrain ... starts several processes"
        )
    if not 1 <= processes <= 64:
        raise UsageError(f"--devices is {processes}; wanted 1 to 64 processes on this machine")
    if "--fresh" in _tokens:
        raise UsageError("--devices goes without --fresh: a restart would begin yet another folder; name a new one with --out")
    code = supervise(_tokens, processes, say)
    if code:
        sys.exit(code)
    return True


def run(app: App, arguments: Sequence[str], *, own_process: bool = False) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 usage, 3 data, 4 folder in use, 5 diverged, 75 stopped and saved, 130 broken off.

    own_process: nothing comes after this command, so that its way out may change the process.
    """
    debug = "--debug" in arguments
    _tokens[:] = [token for token in arguments if token != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"  # rich would still write bold
    try:
        app(list(_tokens), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        say(_misuse(error))
        sys.exit(2)
    except SmallviewError as error:
        if own_process and isinstance(error, StoppedError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is saved; an impatient second one has nothing left to stop
        if debug:
            traceback.print_exc()
        if not (isinstance(error, (StoppedError, DivergedError)) and follows()):  # process 0 says it for all
            say(f"smallview: {error}")
        _forget_interrupt()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("smallview: broken off")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        if "RANK" in os.environ and _lost(error):
            if not follows():
                say("smallview: another process of this run is gone; the same command goes on from the last checkpoint")
            sys.stderr.flush()
            os._exit(1)  # with half of its group gone, torch may wait or abort on the way out
        say(_disk(error) if isinstance(error, OSError) and error.errno in _DISK else _crash(error))
        sys.exit(1)


def _forget_interrupt() -> None:
    """Takes back Python's own note of a Ctrl-C that came while it ran code from a string, as imports of libraries do.

    With that note it ends a `python -m` by the signal instead of the exit code, however well the interrupt was caught (CPython's
    Py_RunMain); the next code from a string wipes it out.
    """
    exec("pass")


def follows() -> bool:
    """Whether this is one of several processes, and not the first."""
    return os.environ.get("RANK", "0") != "0"


def _lost(error: Exception) -> bool:
    from smallview.collectives import lost

    return lost(error)


def print_rows(rows: list[Any]) -> None:
    """Figures beside their floors as a table, one for each test part, then the protocol of each, on stdout."""
    from rich.console import Console
    from rich.table import Table

    from smallview.evaluation.metrics import told_once

    for part in dict.fromkeys(row.settings["test"] for row in rows):
        table = Table(title=f"judged on {part}; the 95 % interval is over test pictures or draws", title_justify="left")
        for column in ("metric", "raw pixels", "untrained encoder", "this encoder"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for row in rows:
            if row.settings["test"] == part:
                spread = "" if row.interval is None else f" ± {row.interval:.2f}"
                floors = ("-" if value is None else f"{value:.2f}" for value in (row.floor_pixels, row.floor_untrained))
                table.add_row(row.metric, *floors, f"{row.value:.2f}{spread}")
        Console().print(table)
    each, common = told_once([f"{row.protocol}; encoder seed {row.seed}" for row in rows])
    for row, protocol in zip(rows, each, strict=True):
        print(f"{row.metric}: {protocol}")
    if common:
        print(f"all of them: {common}")


def print_table(head: list[str], rows: list[list[str]], title: str, *, left: tuple[str, ...] = ("on",)) -> None:
    """A table of text on stdout; columns of figures to the right, the first one and those named `left` to the left."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(head):
        table.add_column(column, justify="left" if i == 0 or column in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _misuse(error: CycloptsError) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        text = f"{shlex.join(error.unused_tokens or [])}: more than this command takes; quote a name with spaces."
    return f"smallview: {text} See {' '.join(('smallview', *(error.command_chain or ())))} --help."


def _disk(error: OSError) -> str:
    place = f" {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
    return (
        f"smallview: cannot write{place}: {error.strerror}; make room or choose another disk, and run the same command again: "
        "a run goes on from its last checkpoint"
    )


def _crash(error: Exception) -> str:
    text = "".join(traceback.format_exception(error))
    place = Path("crash.txt")
    try:
        place.write_text(
            f"{version()}\n{shlex.join(['smallview', *_tokens])}\n\n{text}", encoding="utf-8", errors="backslashreplace"
        )
        told = f"details are in {place.resolve()}"
    except OSError:
        told = "run it again with --debug for details"
    first = str(error).splitlines()[0] if str(error) else "no message"
    return f"smallview: unexpected {type(error).__name__}: {first}; {told}; please report it"
