"""The exporting verb as one types it: what it prints, the card, and one line for what cannot be meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import smallview as sv
from smallview.cli import main
from smallview.errors import UsageError
from smallview.output import targets

CARD = "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = np.clip(random.normal(60 + 60 * y[:, None, None, None], 30, (60, 12, 12, 3)), 0, 255).astype(np.uint8)
    np.savez(root / "beans.npz", images=x, labels=y)
    settings = {"encoder": "dense_small:8-16", "size": 12, "batch_size": 16, "threads": 1, "quiet": True}
    data = str(root / "beans.npz")
    sv.pretrain(data, "simclr", epochs=1, out=root / "run", sets={"optimizer.lr": 0.01}, **settings)
    sv.evaluate(root / "run", data, data, "knn", threads=1, leaks=False)
    sv.pretrain(data, "byol", out=root / "staged", stages="8x1,12x1", **settings)
    return root


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_files_parity_and_card(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["export", str(folder / "run"), "--to", "hub", "--out", str(tmp_path / "out"), "--pictures", str(folder / "beans.npz")]
    )
    told = capsys.readouterr()
    assert [Path(line).name for line in told.out.split()] == [CARD, "config.json", "load.py", "model.safetensors"]
    assert "60 pictures (beans) in batches of 1 to 5" in told.err and "every nearest neighbour stays" in told.err
    card = (tmp_path / "out" / CARD).read_text()
    assert "- data: beans.npz, 60 pictures" in card and "- method: simclr, 1 epoch in batches of 16 pictures, seed 0" in card
    assert "`optimizer.lr: 0.002 -> 0.01`" in card and "The weights are yours" in card
    for row in map(json.loads, (folder / "run" / "rows.jsonl").read_text().splitlines()):
        assert f"| {row['metric']} | {row['floor_pixels']:.2f} | {row['floor_untrained']:.2f} | {row['value']:.2f}" in card
        assert all(part in card for part in row["protocol"].split("; "))
    for path in (tmp_path / "out").iterdir():
        assert str(folder).encode() not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()


def test_an_earlier_export_is_replaced_and_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(folder / "run" / "encoder"), "--out", str(tmp_path / "out"), "--json", "--to"]
    main([*words, "torch-export"])
    capsys.readouterr()
    main([*words, "hub"])
    told = json.loads(capsys.readouterr().out)
    assert told["to"] == "hub" and told["files"] == [CARD, "config.json", "load.py", "model.safetensors"]
    assert told["parity"]["pictures"] == 64 and told["parity"]["relative"] < 1e-5
    assert "Not recorded" in (tmp_path / "out" / CARD).read_text()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run(*words, "hub") == 2
    assert "is not empty and holds no earlier export alone" in capsys.readouterr().err
    assert (tmp_path / "out" / "notes.txt").exists()
    assert run("export", folder / "run", "--to", "hub", "--out", folder / "run" / "encoder") == 2
    assert (folder / "run" / "encoder" / "model.safetensors").exists()


def test_the_last_stage_is_what_counts(folder: Path, tmp_path: Path) -> None:
    run = sv.Run(folder / "staged")
    sv.export(run, to="hub", out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["size"] == 12 and "2 stages of 8, 12 px" in (tmp_path / "out" / CARD).read_text()


def test_a_run_with_a_module_of_ones_own_brings_it(folder: Path, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = str(folder / "beans.npz")
    made = sv.pretrain(data, "byol", net, tmp_path / "run", epochs=1, size=12, batch_size=16, threads=1, quiet=True)
    assert sv.export(made, "torch-export", tmp_path / "out").parity.holds
    with pytest.raises(UsageError, match="a module of your own"):
        sv.export(made.path, "torch-export", tmp_path / "out")


def without_summary(run: Path) -> None:
    (run / "summary.json").unlink()


def without_encoder(run: Path) -> None:
    shutil.rmtree(run / "encoder")


def damaged(run: Path) -> None:
    path = run / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def changed(run: Path) -> None:
    path = run / "encoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\0\0\0\x40"
    path.write_bytes(bytes(data))


def torn_rows(run: Path) -> None:
    (run / "rows.jsonl").write_text('{"metric": 1}\n')


@pytest.mark.parametrize(
    ("spoil", "code", "told"),
    [
        (without_summary, 2, "has not finished; run the same pretrain command to go on"),
        (without_encoder, 2, "has not finished"),
        (damaged, 1, "is damaged"),
        (changed, 3, "its weights were changed since the run ended"),
        (torn_rows, 1, "rows.jsonl in"),
        (shutil.rmtree, 2, "no run or encoder folder at"),
    ],
)
def test_a_run_that_cannot_be_handed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, code: int, told: str
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    spoil(tmp_path / "run")
    assert run("export", tmp_path / "run", "--to", "hub", "--out", tmp_path / "out") == code
    said = capsys.readouterr().err.splitlines()
    assert told in said[-1] and len(said) == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".export*"))


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--to", "tim"], 2, 'nothing is exported to "tim"; did you mean "timm"?'),
        (
            ["--to", "timm"],
            2,
            "--to timm cannot hold dense_small:8-16, this project's own encoder; these can: onnx, torch-export, hub",
        ),
        (["--to", "hub", "--input", "unit8"], 2, '--input is "unit8"; did you mean "uint8"?'),
        (["--to", "hub", "--input", "uint8"], 2, "--input uint8 goes with onnx, torch-export"),
        (["--to", "hub", "--pictures", "nowhere/"], 3, "nowhere"),
    ],
)
def test_what_cannot_be_meant(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    assert run("export", folder / "run", "--out", tmp_path / "out", *words) == code
    said = capsys.readouterr().err.splitlines()
    assert told in said[-1] and len(said) == 1 and not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    assert run("export", folder / "run", "--to", "onnx", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        "smallview: --to onnx needs onnx and onnxruntime and onnxscript, which this Python lacks; pip install 'smallview[onnx]'\n"
    )


def test_the_centre_is_that_of_the_pictures_it_was_trained_on(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    large = np.random.default_rng(0).integers(0, 256, (24, 40, 60, 3), np.uint8)
    made: dict[str, float] = {}
    for name, pictures, how in (
        ("small", small, {"size": 16, "epochs": 1}),
        ("large", large, {"size": 16, "epochs": 1}),
        ("small, in stages", small, {"stages": "8x1,16x1"}),
    ):
        run = sv.pretrain(pictures, encoder="dense_small:8-16", batch_size=8, threads=1, out=tmp_path / name, quiet=True, **how)
        sv.export(run.path, "hub", tmp_path / f"{name}-hub", threads=1)
        made[name] = json.loads((tmp_path / f"{name}-hub" / "config.json").read_text())["crop_pct"]
    assert made == {"small": 1.0, "large": 0.875, "small, in stages": 1.0}
