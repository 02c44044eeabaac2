"""Runs commands in forks of one process that has imported torch: a run that is to be killed starts in milliseconds.

`--devices N` forks too: what a supervisor starts is then a fork of the supervisor, which costs a twentieth of a start from nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

MOST_FILES = 1024
# A signal that strikes while a file is being opened leaves it half open, which only `-W error` tells, as an exception that is ignored.
HALF_OPEN = re.compile(
    r"Exception ignored in: <_io\.FileIO [^\n]*\nTraceback .*?\nResourceWarning: unclosed file [^\n]*\n", re.DOTALL
)
FEW_PATCHES = 4000, 50  # that a dictionary is found in, and pictures that even it out, in all tests


class Fork:
    """Stands for subprocess.Popen in a supervisor: the process it starts is a fork of this one, with torch in it."""

    def __init__(
        self, command: list[str], *, env: dict[str, str], stdout: int | None, pass_fds: tuple[int, ...], start_new_session: bool
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "smallview"] and start_new_session
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        os.setsid()
        if stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        edges = [2, *sorted(pass_fds), MOST_FILES]
        for below, above in itertools.pairwise(edges):  # as Popen does: else the lifeline's other end would stay open
            os.closerange(below + 1, above)
        os.environ.clear()
        os.environ.update(env)
        become(command[3:])

    def poll(self, how: int = os.WNOHANG) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, how)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int | None:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def become(tokens: list[str]) -> NoReturn:
    """In a fork: a command of smallview, or a script and its arguments, alone or as `--processes N`; then the end of the process."""
    from smallview import shell
    from smallview.cli import main
    from smallview.training.supervise import supervise

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code: Any = 0
    try:
        if tokens[0] == "--processes":
            code = supervise(tokens[2:], int(tokens[1]), shell.say)
        elif tokens[0].endswith(".py"):
            sys.argv = tokens
            sys.path.insert(0, str(Path(tokens[0]).parent))
            runpy.run_path(tokens[0], run_name="__main__")
        else:
            main(tokens)
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """A line in is a command and the file for what it says, and the process id comes out.

    The next line in asks to wait for its exit code (negative: the signal).
    """
    import numpy as np
    import torch

    from smallview import run
    from smallview.networks import patches
    from smallview.training import supervise

    patches.PATCHES, patches.EVENED = FEW_PATCHES
    torch.set_num_threads(1)
    supervise.subprocess = SimpleNamespace(Popen=Fork, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]
    # what is compiled or loaded late is there before the forks
    run.pretrain(np.zeros((8, 16, 16, 3), np.uint8), out="warm", epochs=1, threads=1, quiet=True)
    print("ready", flush=True)
    for line in sys.stdin:
        tokens, said = json.loads(line)
        child = os.fork()
        if child == 0:
            handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            become(tokens)
        print(child, flush=True)
        sys.stdin.readline()  # until then the ended child keeps its id, and a signal hits no other process
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Server:
    """Runs commands in forks of one process, one command at a time."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said.txt"
        self.child: int | None = None
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _ask(self, line: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def start(self, tokens: list[str]) -> int:
        self.clear()
        self.said.write_text("")  # what the one before has said is no sign of this one
        self.child = self._ask(json.dumps([tokens, str(self.said)]))
        assert self.child > 1  # 0 would mean ourselves to os.kill
        return self.child

    def end(self) -> tuple[int, str]:
        code = self._ask("wait")
        self.child = None
        return code, HALF_OPEN.sub("", self.said.read_text())

    def run(self, tokens: list[str]) -> tuple[int, str]:
        self.start(tokens)
        return self.end()

    def clear(self) -> None:
        """Ends what a test that failed has left running."""
        if self.child is not None:
            os.kill(self.child, signal.SIGKILL)
            self.end()

    def close(self) -> None:
        self.clear()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


if __name__ == "__main__":
    serve()
