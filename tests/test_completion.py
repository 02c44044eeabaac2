"""Tab in a real bash: verbs, options, names of methods and encoders, lists, folders; and how the scripts are installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smallview.cli import app, main

ROOT = Path(__file__).parents[1]
# Calls the function that bash calls at Tab, with the words of a line of which the last is being typed.
PRESS = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_smallview
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def tab(tmp_path: Path) -> Callable[[str], list[str]]:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    (tmp_path / "script").write_text(app.generate_completion(shell="bash"))
    command = tmp_path / "bin" / "smallview"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m smallview "$@"\n')
    command.chmod(0o755)
    (tmp_path / "desk" / "my photos").mkdir(parents=True)
    (tmp_path / "desk" / "my words.txt").touch()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": path}

    def press(line: str) -> list[str]:
        words = shlex.split(line) + [""] * line.endswith(" ")
        done = subprocess.run(
            ["bash", "--norc", "-c", PRESS, "bash", str(tmp_path / "script"), *words],
            cwd=tmp_path / "desk",
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "error" not in done.stderr
        return [word for word in done.stdout.splitlines() if word]

    return press


def test_bash_completes_verbs_options_names_lists_and_folders(tab: Callable[[str], list[str]]) -> None:
    assert tab("smallview pre") == ["pretrain"]
    assert {"check", "evaluate", "pretrain"} <= set(tab("smallview "))
    assert tab("smallview pretrain photos/ --epo") == ["--epochs"]
    assert tab("smallview pretrain photos/ --method sim") == [
        *("simclr", "simo", "simsiam", "simclr_small_batch", "simclr_one_patch", "simclr_noise_only")
    ]
    assert tab("smallview pretrain photos/ --encoder mobilenetv3_s") == ["mobilenetv3_small_050", "mobilenetv3_small_100"]
    assert tab("smallview methods by") == ["byol"]
    assert [word.replace("\\", "") for word in tab("smallview evaluate a --protocols knn,lin")] == [
        "knn,linear",
        "knn,linear_sgd",
    ]
    assert tab("smallview pretrain my") == ["my photos", "my words.txt"]
    assert tab("smallview embed a my") == ["my photos", "my words.txt"]
    assert tab("smallview pretrain x --epochs ") == []
    assert [word.replace("\\", "") for word in tab("smallview pretrain x --masks m")] == ["my photos/"]
    assert tab("smallview pretrain x --masks no") == ["none"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_installed_for_each_shell_where_it_looks_for_them(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ZSH", "ZSH_CUSTOM", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["--install-completion", "--shell", shell])
    (written,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert str(written) in capsys.readouterr().out
    text = written.read_text()
    assert all(verb in text for verb in app if not verb.startswith("-"))
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(written)], check=True)
