"""Files of weights that mean harm: refused in one line that says what they hold; nothing is run, written or allocated for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("resource", reason="no peak of memory can be had here")
SCRIPT = Path(__file__).with_name("weight_fuzzing.py")
FORMS = {"bare", "older", "zip", "tar"}


def _run(folder: Path, files: int, seed: int) -> dict[str, Any]:
    # a process of its own: an audit hook stays for ever, and a crash would end this one
    given = [sys.executable, str(SCRIPT), str(folder), str(files), str(seed)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _check(found: dict[str, Any]) -> None:
    rows = found["hostile"]
    assert len(rows) == len(FORMS) * (7 * 6 + 10)
    for row in rows:
        assert row["outcome"] == "refused" and not row["happened"], row
        assert row["word"] in row["said"], row
        assert row["s"] < 2.0, row
    assert found["left"] == []
    for form, row in found["formats"].items():
        assert not row["other"] and not row["happened"], f"{form}: {row['other'][:5]} {row['happened'][:5]}"
        assert row["worst_ms"] < 1000, form
        # some mutations bite, some leave weights
        assert row["refused"] > 0.3 * found["files"] // 3 and row["tensors"] > 0
    assert found["peak_mb"] < found["before_mb"] + 100


def test_gadgets_and_a_hundred_files(tmp_path: Path) -> None:
    _check(_run(tmp_path, 102, 0))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_10000_files(tmp_path: Path) -> None:
    _check(_run(tmp_path, 10_000, 1))
