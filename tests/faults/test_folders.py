"""Folders that cannot be written are told in one line before any data is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# gives up its privileges, since the superuser may write anywhere; the data that is named is not there, so who looks for it says so
CODE = """
import io, os, sys, contextlib
sys.path.insert(0, sys.argv[1])
import smallview.run, smallview.use, smallview.demo
from smallview.cli import main
if os.geteuid() == 0:
    os.setuid(65534)
for line in sys.argv[2:]:
    told = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(told):
        try:
            main(line.split(" "))
        except SystemExit as stop:
            code = stop.code
    print(code, told.getvalue(), end="")
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
def test_a_folder_that_cannot_be_written_is_told_before_the_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way\n")
    (tmp_path / "closed").mkdir()
    (tmp_path / "hidden").mkdir()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / "closed").chmod(0o555)
    (tmp_path / "hidden").chmod(0o700 if os.geteuid() == 0 else 0o000)
    places = {
        "file": "a file is in its place",
        "file/deeper/run": "a file is in its place",
        "closed": "cannot write to the folder",
        "closed/missing/run": "cannot write to the folder",
        "hidden/run": "cannot write to the folder",
    }
    lines = [
        f"{verb} --out {tmp_path / place}"
        for place in places
        for verb in ("pretrain nothing", "pretrain nothing --fresh", "demo")
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT), *lines], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    for folder in ("closed", "hidden"):
        (tmp_path / folder).chmod(0o755)
    if not done.stdout and "smallview" in done.stderr:
        pytest.skip("an unprivileged user cannot read this checkout")
    told = done.stdout.splitlines()
    assert len(told) == len(lines), done.stdout + done.stderr
    for line, said in zip(lines, told, strict=True):
        words = next(words for place, words in places.items() if line.endswith(str(tmp_path / place)))
        assert said.startswith("1 smallview: ") and words in said and str(tmp_path) in said, (line, said)
        assert said.endswith("; choose another --out"), (line, said)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["closed", "file", "hidden"]
