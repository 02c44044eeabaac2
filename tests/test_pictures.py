"""A run whose pictures changed: refused with the difference, and gone on with where that is accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smallview as sv
from smallview.cli import main
from smallview.errors import DataError, StoppedError
from smallview.settings import load_toml

pytestmark = pytest.mark.usefixtures("apart")
Stop = Callable[[pytest.MonkeyPatch, int], None]


def _settings(**more: Any) -> dict[str, Any]:
    return {"size": 16, "batch_size": 8, "epochs": 2, "threads": 1, "quiet": True, **more}


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
    with pytest.raises(SystemExit) as code:
        main(line)
    said = capsys.readouterr().err
    assert code.value.code == 3 and told in said and "Traceback" not in said
    main([*line, "--accept-data-change"])
    assert load_toml(tmp_path / "run" / "run.toml")["recorded"]["data_changes"] == [f"step 3: {told}"]
