"""`smallview report` as one types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import smallview
from smallview.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    np.save(root / "a.npy", np.random.default_rng(0).integers(0, 255, (32, 8, 8, 3), np.uint8))
    smallview.pretrain(
        str(root / "a.npy"), encoder="dense_small:8-16-32", epochs=1, batch_size=16, threads=1, out=root / "run", quiet=True
    )
    return root / "run"


def ended(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def test_one_file_where_it_is_wanted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(run), "-q"])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "32 pictures of a" in (run / "report.html").read_text(encoding="utf-8")
    main(["report", str(run), "--out", str(tmp_path / "r.html"), "--data", str(run.parent / "a.npy"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(tmp_path / "r.html"), "bytes": (tmp_path / "r.html").stat().st_size}


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        ((), "no run is named", 2),
        (("nowhere",), "there is no folder nowhere", 2),
        (("RUN", "--out", "report.pdf"), "wanted a file ending in .html", 2),
        (("RUN", "--data", "nowhere"), "nowhere", 3),
    ],
)
def test_wrong_input_is_one_line_and_its_code(
    run: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str, code: int
) -> None:
    assert ended("report", *(run if word == "RUN" else word for word in words)) == code
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
