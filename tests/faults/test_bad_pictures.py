"""Pictures that cannot be read: few are named and left out, and nothing else changes; many stop the run before its first step."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smallview as sv
from smallview.cli import main
from smallview.errors import StoppedError
from smallview.parts import Parts

pytestmark = pytest.mark.usefixtures("apart")
StopAfter = Callable[[pytest.MonkeyPatch, int], None]
N = 200


def encoded(k: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def photos(folder: Path, bad: bool) -> set[str]:
    """A folder of pictures, every fifth a JPEG by the name of a PNG; among them, or not, one of each sort that cannot be read."""
    folder.mkdir()
    for k in range(N):
        (folder / f"{k:03}.png").write_bytes(encoded(k, "PNG" if k % 5 else "JPEG"))
    (folder / "050.jpg").mkdir()  # a folder, whatever it is called
    wrong = {
        "000 truncated.jpg": encoded(0, "JPEG")[:-200],
        "020 cut.png": encoded(0)[:300],
        "040 empty.png": b"",
        "060 zeros.jpg": bytes(5000),
        "080 page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "100 text.jpg": b"version https://git-lfs.github.com/spec/v1\n",
        "999 noise.webp": np.random.default_rng(0).bytes(900),
    }
    if not bad:
        return set()
    for name, data in wrong.items():
        (folder / name).write_bytes(data)
    (folder / "120 gone.png").symlink_to(folder / "nowhere.png")
    return set(wrong)


def settings(**more: Any) -> dict[str, Any]:
    return {"encoder": "dense_small:8-16", "size": 16, "batch_size": 16, "epochs": 2, "threads": 1, "quiet": True, **more}


def test_a_few_are_named_and_all_other_batches_are_as_without_them(
    tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable = photos(tmp_path / "bad", True)
    photos(tmp_path / "good", False)
    served: list[tuple[int, list[str]]] = []
    real = Parts.feed

    def watched(self: Parts, *span: Any) -> Any:
        for batch, views in real(self, *span):
            served.append((batch.step, [Path(self.pack.names[int(i)]).name for i in batch.index]))
            yield batch, views

    monkeypatch.setattr(Parts, "feed", watched)
    whole = sv.pretrain(tmp_path / "good", out=tmp_path / "whole", **settings())
    wanted, served = served, []  # what follows goes to a list of its own, by the name that it reads
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(StoppedError):
            sv.pretrain(tmp_path / "bad", out=tmp_path / "run", **settings(quiet=False))
    said = capsys.readouterr().err
    assert "Traceback" not in said and f"{len(unreadable)} unreadable pictures left out, e.g. 000 truncated.jpg (" in said
    run = sv.pretrain(tmp_path / "bad", out=tmp_path / "run", **settings())
    told = [json.loads(line) for line in (run.path / "bad_files.jsonl").read_text().splitlines()]
    assert {Path(line["path"]).name for line in told} == unreadable and all(line["error"] for line in told)
    assert dict(served) == dict(wanted) and len(wanted) == 24
    assert (run.path / "encoder" / "model.safetensors").read_bytes() == (
        whole.path / "encoder" / "model.safetensors"
    ).read_bytes()


def test_many_stop_it_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", False)
    for k in range(0, N, 5):
        (tmp_path / "photos" / f"{k:03}.png").write_bytes(b"<html>" if k % 2 else encoded(k)[:200])
        (tmp_path / "photos" / f"{k + 1:03}.png").write_bytes(np.random.default_rng(k).bytes(400))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "pretrain",
                str(tmp_path / "photos"),
                "--out",
                str(tmp_path / "run"),
                "--size=16",
                "--batch-size=16",
                "--threads=1",
            ]
        )
    said = capsys.readouterr().err
    assert ended.value.code == 3 and "Traceback" not in said
    assert f"80 of {N} pictures unreadable, e.g. 000.png (" in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()
