"""`smallview check` as one types it: the verdict on stdout, progress on stderr, one line for what cannot be meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallview.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(24):
            Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).save(root / label / f"{i}.png")
    return root


def code_of(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_a_verdict_in_a_few_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(folder), "--test", str(folder), "--threads", "1"])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(f"{folder}: 48 pictures; short side 24 px") and lines[0].endswith("; 2 classes")
    assert lines[1].startswith("ALARM: 48 of 48 test pictures") and "(48 to the last bit)" in lines[1]
    assert lines[2].startswith("  do: ") and lines[-1].startswith("fine: every picture can be read, no picture twice")
    assert err == ""


def test_json_has_all_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(1, 6):
        (folder / "a" / f"again{i}.png").write_bytes((folder / "a" / "0.png").read_bytes())
    main(["check", str(folder), "--json", "-q"])
    told = json.loads(capsys.readouterr().out)
    assert told["twins"]["equal"] == [["a/0.png", *(f"a/again{i}.png" for i in range(1, 6))]] and told["sheet"] is None
    assert {"level", "about", "text", "do"} == set(told["findings"][0]) and told["classes"] == {"a": 29, "b": 24}


@pytest.mark.skipif(os.name == "nt", reason="names there are never bytes")
def test_hostile_names_are_printed_on_one_line_without_control_signs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"\xff\xfe.jpg", b"\x1b[31mred\nline.jpg", "\N{RIGHT-TO-LEFT OVERRIDE}gpj.jpg".encode()]
    for name in names:
        (folder / "a" / os.fsdecode(name)).write_bytes(b"\xff\xd8\xff")
    main(["check", str(folder)])
    out, err = capsys.readouterr()
    told = next(line for line in out.splitlines() if "cannot be read" in line)
    assert (
        all(sign not in out + err for sign in ("\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}", "\udcff"))
        and r"\x1b[31mred\nline.jpg" in told
    )
    main(["check", str(folder), "--json"])
    assert {os.fsencode(each["name"]) for each in json.loads(capsys.readouterr().out)["broken"]} == {
        b"a/" + name for name in names
    }


def test_a_sheet_on_request(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "sheet.png"
    main(["check", str(folder), "--sheet", str(place), "--method", "byol", "-q"])
    assert capsys.readouterr().out.splitlines()[-1] == str(place)
    with Image.open(place) as sheet:
        assert sheet.width > 500


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("nowhere",), "there is no nowhere", 3),
        ((".",), "no pictures in", 3),
        (("{folder}", "--test", "nowhere"), "there is no nowhere", 3),
        (("{folder}", "--method", "simclar"), 'did you mean "simclr"', 2),
        (("{folder}", "--sheet", "sheet.doc"), "ending in .png", 2),
        (("{folder}", "--threads", "0"), "threads is 0", 2),
        (("{folder}", "--tst", "x"), "Did you mean --test", 2),
        ((), "DATA", 2),
    ],
)
def test_one_line_for_what_cannot_be_meant(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    told: str,
    code: int,
) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path / "bare")
    assert code_of("check", *(word.format(folder=folder) for word in words)) == code
    out, err = capsys.readouterr()
    assert out == "" and told in err and err.count("\n") == 1
