"""The judging verbs as one types them: what they print, what they write, and one line for what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import smallview
from smallview.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    random = np.random.default_rng(0)
    for name, n in (("train", 60), ("test", 30)):
        y = np.arange(n) % 3
        x = np.clip(random.normal(60 + 60 * y[:, None, None, None], 30, (n, 8, 8, 3)), 0, 255).astype(np.uint8)
        np.savez(root / f"{name}.npz", images=x, labels=y)
    for method in ("simclr", "byol"):
        smallview.pretrain(
            str(root / "train.npz"),
            method,
            "dense_small:8-16-32",
            epochs=1,
            size=8,
            batch_size=16,
            threads=1,
            out=root / method,
            quiet=True,
        )
    return root


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def quietly(*words: object) -> None:
    main([str(word) for word in words])


def test_judge_compare_and_sweep(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    parts = ("--train", folder / "train.npz", "--test", folder / "test.npz", "--threads", "1")
    for method in ("simclr", "byol"):
        quietly("evaluate", folder / method, *parts, "--protocols", "linear", "--json", "-q")
        told = json.loads(capsys.readouterr().out)
        assert told["rows"][0]["metric"] == "linear top-1 %" and told["rows"][0]["interval"] > 0
    quietly("evaluate", folder / "simclr", *parts, "--transfer", f"again={folder / 'train.npz'},{folder / 'test.npz'}", "-q")
    out = capsys.readouterr().out
    assert "judged on test" in out and "judged on again test" in out and "±" in out
    quietly("compare", folder / "simclr", folder / "byol", "--csv", tmp_path / "t.csv", "--markdown", tmp_path / "t.md")
    out = capsys.readouterr().out
    assert "byol against simclr" in out and (tmp_path / "t.csv").read_text().startswith("protocol,metric")
    assert (tmp_path / "t.md").read_text().startswith("| metric |")
    quietly("compare", folder / "simclr", folder / "byol", "--json")
    assert json.loads(capsys.readouterr().out)["groups"] == ["simclr", "byol"]
    settings = ("--over", "optimizer.lr=0.001,0.002", "--epochs", "1", "--size", "8", "--batch-size", "16", "--threads", "1")
    quietly("sweep", folder / "train.npz", *settings, "--out", tmp_path / "sweep", "-q")
    out = capsys.readouterr().out
    assert "linear top-1 %" in out and "smallview pretrain" in out
    quietly("sweep", folder / "train.npz", *settings, "--out", tmp_path / "sweep", "-q", "--json")
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 2


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("--protocols", "liner"), 'did you mean "linear"', 2),
        (("--set", "knn.kk=3"), 'unknown key "kk" in knn', 2),
        (("--transfer", "a"), "wanted NAME=DATA", 2),
        (("--transfer", "a=b"), "wanted TRAIN,TEST", 2),
        (("--shifted", "a=b", "--shifted", "a=c"), "names a twice", 2),
        (("--train-masks", "a"), "go together", 2),
        (("--weights", "none.pth"), "no encoder is called", 2),
        (("--protocols", "dense"), "--train-masks", 3),
        (("--protocols", "lowshot", "--set", "lowshot.per_class=(900,)"), "lowshot asks for 900", 3),
    ],
)
def test_one_line_for_what_cannot_be_meant(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str, code: int
) -> None:
    parts = ("--train", folder / "train.npz", "--test", folder / "test.npz", "--threads", "1", "-q")
    assert run("evaluate", folder / "simclr", *parts, *words) == code
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said and said.count("\n") == 1


def test_runs_that_cannot_be_compared(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, told in (((), "no run is named"), ((tmp_path,), "no finished run"), ((folder / "simclr",) * 2, "named twice")):
        assert run("compare", *words) == 2 and told in capsys.readouterr().err
    assert run("sweep", folder / "train.npz") == 2 and "nothing to go over" in capsys.readouterr().err
