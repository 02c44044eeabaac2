"""Mutated files of ten formats: pixels or a BadPicture, nothing else, in little time and memory."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("resource", reason="no peak of memory can be had here")
SCRIPT = Path(__file__).with_name("fuzzing.py")


def _run(files: int, seed: int) -> dict[str, Any]:
    # a process of its own: a crash would end this one, and its peak of memory is this one's
    done = subprocess.run([sys.executable, str(SCRIPT), str(files), str(seed)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _check(found: dict[str, Any]) -> None:
    assert len(found["formats"]) == 10
    for name, row in found["formats"].items():
        assert not row["other"], f"{name}: {row['other'][:5]}"
        assert row["worst_ms"] < 1000, f"{name}: file {row['worst']} took {row['worst_ms']} ms"
        assert row["pixels"] + row["bad"] == found["files"] // 10
        assert row["bad"] > 0.2 * found["files"] // 10 and row["pixels"] > 0  # some mutations bite, some leave a picture
    assert found["peak_mb"] < 500


def test_2000_files() -> None:
    _check(_run(2000, 20))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_10000_files(seed: int) -> None:
    _check(_run(10_000, seed))


def test_other_errors_and_wrong_pixels_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("fuzzing", SCRIPT)
    assert spec is not None and spec.loader is not None
    fuzzing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzing)
    real, calls = fuzzing.decode, 0
    wrong = (KeyError("x"), np.zeros((3, 3, 2), np.uint8), fuzzing.BadPicture("two\nlines"), np.zeros((3, 3, 3)))

    def decode(data: bytes, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if not arguments:  # the seeds
            return real(data)
        calls += 1
        outcome = wrong[calls % 4]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(fuzzing, "decode", decode)
    found = fuzzing.fuzz(40, 0)
    assert sum(len(row["other"]) for row in found["formats"].values()) == 40
