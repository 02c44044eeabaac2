"""A plain locale, and spaces, quotes and letters of other scripts in paths, change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import smallview as sv

pytestmark = pytest.mark.usefixtures("apart")
ROOT = Path(__file__).parents[2]
NAME = "my 'own' \"photos\" é 日本 $HOME; *"


def photos(folder: Path) -> Path:
    (folder / "日 本").mkdir(parents=True)
    for k in range(16):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "日 本" / f"{k:02} ü.png")
    return folder


def pretrain(desk: Path, data: str, **environment: str) -> tuple[str, bytes]:
    """What was said, and the encoder."""
    out = f"{data} run"
    words = "--encoder dense_small:8-16 --size 16 --batch-size 8 --epochs 1 --threads 1"
    bare = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SMALLVIEW_CACHE": str(desk / "cache é"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "smallview", "pretrain", data, "--out", out, *words.split()],
        cwd=desk,
        env={**bare, **environment},
        capture_output=True,
        timeout=100,
        check=False,
    )
    said = done.stderr.decode("utf-8", "backslashreplace")
    assert done.returncode == 0 and "Traceback" not in said, said
    return said, (desk / out / "encoder" / "model.safetensors").read_bytes()


# Python itself turns C into UTF-8 unless it is told not to; then names come as bytes that it cannot read
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow, id="C"),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="ASCII"),
    ],
)
def test_the_same_bytes_whatever_the_paths_and_the_locale(environment: dict[str, str], tmp_path: Path) -> None:
    photos(tmp_path / NAME)
    photos(tmp_path / "plain")
    said, odd = pretrain(tmp_path, NAME, **environment)
    assert "finished: 2 steps" in said
    small = {"encoder": "dense_small:8-16", "size": 16, "batch_size": 8, "epochs": 1, "threads": 1, "quiet": True}
    plain = sv.pretrain(tmp_path / "plain", out=tmp_path / "run", **small)
    assert odd == (plain.path / "encoder" / "model.safetensors").read_bytes()
