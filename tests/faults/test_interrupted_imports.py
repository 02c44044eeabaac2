"""Ctrl-C while a library runs code from a string (named tuples and dataclasses do, as they are imported): the exit code is still ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

COMMAND = """
import os, signal
from cyclopts import App
from smallview import shell
from smallview.training.launch import stopped_early

signal.signal(signal.SIGINT, signal.default_int_handler)
app = App()

@app.default
def work():
    with stopped_early(lambda: "the same command"):
        exec("os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(10**8): pass")

shell.run(app, [], own_process=True)
"""


def test_the_exit_code_is_75(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(COMMAND)
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, "nothing is lost" in done.stderr) == (75, True), done.stderr
