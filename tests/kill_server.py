"""Runs commands in forks of one process that has imported torch: a run that is to be killed starts in milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# One process imports torch once; every run is a fork of it, which a signal can end at any moment. A line in is a command and the
# file for what it says, and the process id comes out; the next line in asks to wait for its exit code (negative: the signal).
SERVER = """
import json, os, signal, sys
import numpy, torch
torch.set_num_threads(1)
from smallview import run
from smallview.cli import main
pictures = numpy.zeros((8, 16, 16, 3), numpy.uint8)
run.pretrain(pictures, out="warm", epochs=1, threads=1, quiet=True)  # what is compiled or loaded late is there before the forks
print("ready", flush=True)
for line in sys.stdin:
    tokens, said = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = 0
        try:
            main(tokens)
        except SystemExit as stop:
            code = stop.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()  # until then the ended child keeps its id, and a signal hits no other process
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs commands in forks of one process."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVER],
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
        child = self._ask(json.dumps([tokens, str(self.said)]))
        assert child > 1  # 0 would mean ourselves to os.kill
        return child

    def end(self) -> tuple[int, str]:
        return self._ask("wait"), self.said.read_text()

    def run(self, tokens: list[str]) -> tuple[int, str]:
        self.start(tokens)
        return self.end()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
