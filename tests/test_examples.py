"""The examples run as their readers run them, learn, and stay short."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kill_server import Server
from PIL import Image

ROOT = Path(__file__).parents[1]
PLAIN_LOOP = ROOT / "examples" / "plain_loop.py"
TINY = ("--size", "12", "--batch-size", "16")


def losses(server: Server, *arguments: object) -> list[float]:
    """The loss of each epoch of a plain loop in a process of its own, where a warning is an error."""
    code, said = server.run([str(PLAIN_LOOP), *TINY, *map(str, arguments)])
    assert code == 0 and not re.search(r"\w+(Warning|Error)\b", said), said
    return [float(loss) for loss in re.findall(r"^epoch \d+  loss (\S+)$", said, re.MULTILINE)]


def fall(found: list[float]) -> float:
    """By how much the mean of the last three epochs lies below the first; at a learning rate of 0 it is noise, under 0.1 on digits."""
    return found[0] - sum(found[-3:]) / 3


def test_the_loss_falls_on_digits(server: Server) -> None:
    found = losses(server, "--limit", 128, "--epochs", 6)
    assert len(found) == 6
    assert fall(found) > 0.2


def test_the_loss_falls_on_a_folder_of_pictures(server: Server, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 2, 2, 3), np.uint8)
    for i, four in enumerate(colours):
        place = tmp_path / str(i % 2) / f"{i}.{'png' if i % 2 else 'JPG'}"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(four.repeat(8, 0).repeat(8, 1)).save(place)
    (tmp_path / "notes.txt").write_text("no picture")
    found = losses(server, "--pictures", tmp_path, "--loss", "relic", "--epochs", 6)
    assert len(found) == 6
    assert fall(found) > 0.2


@pytest.mark.skipif(importlib.util.find_spec("lightly") is None, reason='lightly is not installed: pip install ".[bench]"')
def test_the_loss_falls_on_views_of_lightly(server: Server) -> None:
    found = losses(server, "--limit", 128, "--epochs", 10, "--views", "lightly")
    assert len(found) == 10
    assert fall(found) > 0.05  # harder views, and not of torch's seed


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the plain loop says when it stops at its arguments."""
    monkeypatch.setattr(sys, "argv", [str(PLAIN_LOOP), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(PLAIN_LOOP), run_name="__main__")
    return str(stopped.value.code)


def test_without_lightly_its_views_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightly", "lightly.data.multi_view_collate", "lightly.transforms"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install lightly" in refusal(monkeypatch, "--views", "lightly")


def test_too_few_pictures_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = refusal(monkeypatch, "--pictures", str(tmp_path))
    assert "0 pictures" in told and "--batch-size" in told


def test_the_plain_loop_stays_under_a_hundred_lines_and_uses_the_losses_alone() -> None:
    lines = PLAIN_LOOP.read_text().splitlines()
    assert len(lines) < 100
    used = [line for line in lines if re.search(r"\b(import|from)\b.*\bsmallview\b", line)]
    assert used and all(line.startswith("from smallview.objectives import ") for line in used)


def test_view_parameters_are_printed_and_replayed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["view_parameters.py"])
    runpy.run_path(str(ROOT / "examples" / "view_parameters.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "view 1 of picture 0, 16 px" in printed and "  box: [" in printed and "  noise_key: " in printed
    assert "replayed to the bit: True" in printed
    (apart,) = re.findall(r"within (\S+)$", printed.strip())
    assert float(apart) < 1e-4


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, example: str, *arguments: str) -> str:
    """What an example prints, run here, where a warning is an error too."""
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    return capsys.readouterr().out


def test_views_and_loss_learn_in_ten_steps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = printed(capsys, monkeypatch, "views_and_loss.py", "--steps", "10")
    first, last = (float(loss) for loss in re.findall(r"^step \d+  loss (\S+)$", told, re.MULTILINE))
    assert last < first - 0.1
    assert told.endswith("features (1797, 128)\n")


@pytest.mark.usefixtures("apart")
def test_few_labels_are_judged_beside_both_floors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--steps", "10", "--draws", "2", "--encoder", "dense_small:8-16")
    told = printed(capsys, monkeypatch, "classify_with_few_labels.py", *given)
    figures = re.findall(r"^(raw pixels|untrained encoder|pretrained encoder) +(\S+) ± \S+$", told, re.MULTILINE)
    assert len(figures) == 3 and all(float(figure) > 40 for _, figure in figures)


def test_a_lightning_module_learns_in_ten_steps() -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "lightning_module.py"), "--steps", "10"],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    found = [float(loss) for loss in re.findall(r"^step \d+  loss (\S+)$", done.stdout, re.MULTILINE)]
    assert found[-1] < found[0] - 0.1
