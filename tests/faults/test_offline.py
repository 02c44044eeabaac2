"""Nothing asks for a network: every verb on a machine where each attempt to reach another one is written down and fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# found by every Python that is started below, also by those that another one starts
GUARD = """
import os, sys

def guard(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if not isinstance(address, tuple):
            return  # a socket of this machine, or one that is connected
        host = str(address[0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = os.fsdecode(args[0] or b"localhost")
    else:
        return
    if host not in ("localhost", "127.0.0.1", "::1", os.uname().nodename):
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write(f"{event} {host}\\n")
        raise OSError(101, "Network is unreachable")

sys.addaudithook(guard)
"""
VERBS = """
import shlex, sys
from smallview.cli import main

for line in sys.argv[1:]:
    main(shlex.split(line))
"""
TINY = "--size 16 --batch-size 16 --threads 1 --epochs 1"
LINES = (
    f"pretrain array.npy {TINY} --out run --online labels.npz",
    f"pretrain array.npy {TINY} --out other --method byol --encoder resnet10t --quiet",
    "evaluate run --train labels.npz --test labels.npz --threads 1 --json",
    "embed run array.npy --out embedded --threads 1",
    "views array.npy --out sheet.png",
    "methods",
    "--version",
)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 255, (32, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "array.npy", images)
    np.savez(tmp_path / "labels.npz", images=images, labels=np.arange(32) % 2)
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    (tmp_path / "attempts").write_text("")
    return tmp_path


def run(desk: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(desk / "guard"), str(ROOT)]),
        "ATTEMPTS": str(desk / "attempts"),
        "SMALLVIEW_CACHE": str(desk / "cache"),
        "HOME": str(desk),  # nothing that was fetched before is there
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=desk, env=environment, capture_output=True, text=True, timeout=110, check=False
    )


def test_every_verb_works_without_a_network(desk: Path) -> None:
    done = run(desk, "-c", VERBS, *LINES)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (desk / "attempts").read_text() == ""
    for written in ("run/encoder", "embedded", "sheet.png"):
        assert (desk / written).exists()


@pytest.mark.slow
def test_the_demo_works_without_a_network(desk: Path) -> None:
    code = "from pathlib import Path; from smallview.demo import demo; demo(Path('demo'), epochs=1)"
    assert run(desk, "-c", code).returncode == 0
    assert (desk / "attempts").read_text() == "" and (desk / "demo" / "results.json").exists()


@pytest.mark.slow
def test_two_processes_speak_only_to_each_other(desk: Path) -> None:
    done = run(desk, "-m", "smallview", "pretrain", "array.npy", *TINY.split(), "--out", "run", "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert (desk / "attempts").read_text() == "" and (desk / "run" / "encoder").exists()


def test_an_attempt_would_be_seen(desk: Path) -> None:
    code = "import socket\ntry:\n socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError as error:\n print(error)"
    assert "Network is unreachable" in run(desk, "-c", code).stdout
    assert set((desk / "attempts").read_text().splitlines()) == {"socket.getaddrinfo 192.0.2.1"}
    code = "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=1)"
    assert run(desk, "-c", code).returncode != 0
    assert "example.org" in (desk / "attempts").read_text()
