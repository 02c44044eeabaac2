"""A run whose pictures changed: refused with the difference, and gone on with where that is accepted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smallview as sv
from smallview.cli import main
from smallview.errors import DataError, StoppedError, UsageError
from smallview.pictures import told_when_stuck
from smallview.settings import load_toml

pytestmark = pytest.mark.usefixtures("apart")
Stop = Callable[[pytest.MonkeyPatch, int], None]


def _settings(**more: Any) -> dict[str, Any]:
    return {"encoder": "dense_small:8-16-32", "size": 16, "batch_size": 8, "epochs": 2, "threads": 1, "quiet": True, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures of noise."""
    (tmp_path / "photos").mkdir()
    for k in range(40):
        _draw(tmp_path / "photos" / f"{k:02}.png", k)
    return tmp_path / "photos"


def _draw(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)


def _begin(data: Any, out: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(StoppedError):
            sv.pretrain(data, out=out, **_settings(**more))


def _change(folder: Path) -> str:
    for k in (3, 4, 5, 6):
        (folder / f"{k:02}.png").unlink()
    _draw(folder / "new.png", 99)
    _draw(folder / "07.png", 98)
    return "4 vanished (03.png, 04.png, 05.png, ...), 1 new (new.png), 1 changed (07.png)"


def test_a_change_is_refused_with_the_difference_and_then_accepted(
    folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    _begin(folder, out, stop_after, monkeypatch)
    told = _change(folder)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(DataError) as caught:
        sv.pretrain(folder, out=out, **_settings())
    assert told in str(caught.value) and "--accept-data-change" in str(caught.value) and caught.value.exit_code == 3
    assert {path: path.read_bytes() for path in before} == before
    sv.pretrain(folder, out=out, accept_data_change=True, **_settings(quiet=False))
    said = capsys.readouterr().err
    assert f"the pictures changed since {out} began: {told}; going on with them as they are now" in said
    assert "resuming at step 3 of 10" in said
    recorded = load_toml(out / "run.toml")["recorded"]
    assert recorded["pictures"] == 37 and recorded["data_changes"] == [f"step 3: {told}"]
    sv.pretrain(folder, out=out, **_settings())  # finished, and with the pictures on record
    assert load_toml(out / "run.toml")["recorded"] == recorded


def test_each_change_is_told_from_the_one_accepted_last(
    folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    _begin(folder, out, stop_after, monkeypatch)
    told = _change(folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            sv.pretrain(folder, out=out, accept_data_change=True, **_settings())
    (folder / "new.png").unlink()
    with pytest.raises(DataError, match=r"began: 1 vanished \(new\.png\); bring"):
        sv.pretrain(folder, out=out, **_settings())
    sv.pretrain(folder, out=out, accept_data_change=True, **_settings())
    assert load_toml(out / "run.toml")["recorded"]["data_changes"] == [f"step 3: {told}", "step 5: 1 vanished (new.png)"]


def test_the_time_of_a_file_alone_is_no_change(
    folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    _begin(folder, tmp_path / "run", stop_after, monkeypatch)
    record = (tmp_path / "run" / "run.toml").read_bytes()
    (folder / "00.png").write_bytes((folder / "00.png").read_bytes())  # another time, the same picture
    sv.pretrain(folder, out=tmp_path / "run", **_settings())
    assert (tmp_path / "run" / "run.toml").read_bytes() == record


def test_what_no_name_tells_is_still_refused(tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    _begin(array, tmp_path / "run", stop_after, monkeypatch)
    other = array.copy()
    other[7] ^= 255
    with pytest.raises(DataError, match=r"began: 1 changed \(07\); bring"):
        sv.pretrain(other, out=tmp_path / "run", **_settings())
    (tmp_path / "run" / "pictures.npz").unlink()
    with pytest.raises(DataError, match="began: 40 then, 40 now, with other content; bring"):
        sv.pretrain(other, out=tmp_path / "run", **_settings())
    sv.pretrain(other, out=tmp_path / "run", accept_data_change=True, **_settings())


def test_on_the_command_line(
    folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    _begin(str(folder), tmp_path / "run", stop_after, monkeypatch)
    told = _change(folder)
    line = ["pretrain", str(folder), "--out", out, "--size=16", "--batch-size=8", "--epochs=2", "--threads=1", "-q"]
    line += ["--encoder", "dense_small:8-16-32"]
    with pytest.raises(SystemExit) as code:
        main(line)
    said = capsys.readouterr().err
    assert code.value.code == 3 and told in said and "Traceback" not in said
    main([*line, "--accept-data-change"])
    assert load_toml(tmp_path / "run" / "run.toml")["recorded"]["data_changes"] == [f"step 3: {told}"]


def test_a_batch_that_was_asked_for_is_never_lowered(
    folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "11.png").write_bytes(b"broken")
    with pytest.raises(
        UsageError, match="batch_size is 40 and photos has 39 readable pictures; wanted at most that: --batch-size 39"
    ):
        sv.pretrain(folder, out=tmp_path / "run", **_settings(batch_size=40))
    assert not (tmp_path / "run" / "run.toml").exists()
    _begin(folder, tmp_path / "run", stop_after, monkeypatch, batch_size=None, epochs=4)
    run = sv.pretrain(folder, out=tmp_path / "run", **_settings(batch_size=None, epochs=4))  # 40 again, until it is looked up
    assert load_toml(run.path / "run.toml")["batch_size"] == 39


def test_a_run_whose_pictures_no_longer_fill_a_batch(
    folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    _begin(folder, tmp_path / "run", stop_after, monkeypatch, batch_size=40, epochs=4)
    _change(folder)
    record = (tmp_path / "run" / "run.toml").read_bytes()
    words = "readable pictures; the batch is a setting of the run: bring pictures back, or add --fresh with --batch-size 37"
    with pytest.raises(UsageError, match=f"batch_size is 40 and photos has 37 {words}"):
        sv.pretrain(folder, out=tmp_path / "run", accept_data_change=True, **_settings(batch_size=40, epochs=4))
    assert (tmp_path / "run" / "run.toml").read_bytes() == record


def test_a_harmless_touch_is_forgotten(folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    _begin(folder, tmp_path / "run", stop_after, monkeypatch)
    for path in folder.iterdir():
        os.utime(path, ns=(0, 10**18))
    _begin(folder, tmp_path / "run", stop_after, monkeypatch)
    _draw(folder / "07.png", 98)
    with pytest.raises(DataError, match=r"began: 1 changed \(07\.png\); bring"):
        sv.pretrain(folder, out=tmp_path / "run", **_settings())


def test_a_finished_run_stays_so_when_its_pictures_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sv.pretrain(folder, out=tmp_path / "run", **_settings(epochs=1))
    _change(folder)
    with monkeypatch.context() as patch:
        patch.setattr("smallview.single.decoded", lambda *_: pytest.fail("the pictures were opened"))
        sv.pretrain(folder, out=tmp_path / "run", **_settings(epochs=1, quiet=False))
    assert f"{tmp_path / 'run'} is finished; --fresh starts anew" in capsys.readouterr().err
    folder.rename(tmp_path / "others")
    with pytest.raises(DataError, match="the pictures changed since"):  # other data is no older state of these
        sv.pretrain(tmp_path / "others", out=tmp_path / "run", **_settings(epochs=1))


def test_the_pack_from_before_a_change_stays_until_that_is_accepted(
    folder: Path, tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packs() -> set[str]:
        return {path.parent.name for path in (tmp_path / "cache").glob("packs/*/*/meta.json")}

    _begin(folder, tmp_path / "run", stop_after, monkeypatch)
    before = packs()
    _change(folder)
    for _ in range(2):
        with pytest.raises(DataError):
            sv.pretrain(folder, out=tmp_path / "run", **_settings())
        assert len(before) == 1 and before < packs() and len(packs()) == 2
    sv.pretrain(folder, out=tmp_path / "run", accept_data_change=True, **_settings())
    assert len(packs()) == 1 and not packs() & before


def test_a_picture_that_does_not_come_is_named_and_waited_for() -> None:
    """A folder on a network disk that hangs."""
    told: list[str] = []
    counted: list[int] = []
    with told_when_stuck(lambda done, _: counted.append(done), told.append, "picture {}.jpg".format, patience=0.1) as note:
        note(3, 9)
        end = time.monotonic() + 30
        while len(told) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        note(9, 9)
    assert counted == [3, 9] and len(told) >= 2
    assert all("reading picture 3.jpg" in line and line.startswith("no picture for ") for line in told)
    with told_when_stuck(lambda done, _: None, told.append, str, patience=30) as note:
        note(1, 1)
    assert not any(thread.name == "smallview-patience" for thread in threading.enumerate())
