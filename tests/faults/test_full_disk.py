"""A disk that takes no large file any more: the run goes on with what was saved, gives up at the third failure, and comes back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import smallview as sv
from smallview.cli import main
from smallview.errors import StoppedError
from smallview.training import checkpoint

resource = pytest.importorskip("resource", reason="no limit of file sizes can be had here")
pytestmark = pytest.mark.usefixtures("apart")
StopAfter = Callable[[pytest.MonkeyPatch, int], None]
ENCODER = "dense_small:16-32-64"  # written, it is larger than the largest limit
LIMIT = 100_000  # bytes, far below a checkpoint and above everything else


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_three_failed_saves_end_the_run_and_the_last_good_checkpoint_goes_on(
    tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "array.npy", pictures)
    words = f"pretrain {tmp_path / 'array.npy'} --out {tmp_path / 'run'} --batch-size 16 --epochs 4 --threads 1"
    line = [*words.split(), "--encoder", ENCODER, "--save-every", "1e-9"]
    checkpoints = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        stop_after(patch, 3)
        main(line)
    assert ended.value.code == 75
    before = {path: path.read_bytes() for path in sorted(checkpoints.rglob("*")) if path.is_file()}
    assert max(map(len, before.values())) > LIMIT
    capsys.readouterr()
    with files_up_to(LIMIT), pytest.raises(SystemExit) as ended:
        main(line)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" not in said
    assert said.count("cannot save step") == 3
    assert "cannot save step 4: File too large" in said and "training goes on with the checkpoint of step 3" in said
    assert said.splitlines()[-1].endswith("the third failure in a row, and training stops")
    # every earlier checkpoint is as it was, and no part of a later one can be seen
    assert {path: path.read_bytes() for path in sorted(checkpoints.rglob("*")) if path.is_file()} == before
    loaded = checkpoint.load_latest(checkpoints)
    assert loaded is not None and loaded[0] == 3 and loaded[3] == []
    main(line)
    assert "resuming at step 3 of 16" in capsys.readouterr().err
    whole = sv.pretrain(pictures, out=tmp_path / "whole", encoder=ENCODER, batch_size=16, epochs=4, threads=1, quiet=True)
    encoder = Path("encoder") / "model.safetensors"
    assert (tmp_path / "run" / encoder).read_bytes() == (whole.path / encoder).read_bytes()
    steps = [json.loads(record)["step"] for record in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 16


@pytest.mark.parametrize("size", [0, 1, 4096, 60_000])
def test_no_part_of_a_file_that_did_not_fit_is_left(size: int, tmp_path: Path) -> None:
    tensors = {"weight": torch.arange(30_000.0)}
    checkpoint.save(tmp_path, 1, tensors, {"note": "x" * 5000})
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with files_up_to(size), pytest.raises(sv.SmallviewError, match="cannot save step 2: File too large"):
        checkpoint.save(tmp_path, 2, tensors, {"note": "x" * 5000})
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001"]


def test_a_run_that_can_save_nothing_from_its_start_is_told(tmp_path: Path, stop_after: StopAfter) -> None:
    """Stopped where its last save failed: the message says so, and the folder is as good as new."""
    pictures = np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch, files_up_to(LIMIT):
        stop_after(patch, 2)
        with pytest.raises(StoppedError, match="stopped at step 2 of 8 and NOT saved"):
            sv.pretrain(pictures, out=tmp_path / "run", encoder=ENCODER, batch_size=16, epochs=2, threads=1, quiet=True)
    run = sv.pretrain(pictures, out=tmp_path / "run", encoder=ENCODER, batch_size=16, epochs=2, threads=1, quiet=True)
    assert (run.path / "summary.json").exists()


@pytest.mark.parametrize("limit", [0, 300, 600, 4000, 60_000])
def test_whatever_can_no_longer_be_written_is_one_line_and_the_same_command_goes_on(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The marker, the settings, the pictures' names, the metrics, the encoder: each limit lets through what is smaller."""
    monkeypatch.chdir(tmp_path)
    np.save("array.npy", np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8))
    line = [
        "pretrain",
        "array.npy",
        "--out",
        "run",
        "--encoder",
        ENCODER,
        "--batch-size",
        "16",
        "--epochs",
        "5",
        "--threads",
        "1",
    ]
    with files_up_to(limit), pytest.raises(SystemExit) as ended:
        main(line)
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert ended.value.code == 1 and "Traceback" not in said
    assert last.startswith("smallview: cannot") and "File too large" in last and "unexpected" not in said
    assert not Path("crash.txt").exists() and not [path for path in Path("run").glob("*") if ".tmp-" in path.name]
    main(line)
    assert "finished: 20 steps" in capsys.readouterr().err
