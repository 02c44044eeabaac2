"""pretrain --exclude: what is listed is not seen, the run keeps its list, and goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smallview as sv
from smallview.errors import DataError, StoppedError, UsageError
from smallview.settings import load_toml

pytestmark = pytest.mark.usefixtures("apart")
SETTINGS: dict[str, Any] = {"encoder": "dense_small:8-16", "batch_size": 8, "threads": 1, "epochs": 2, "quiet": True}
LISTED = "# not these\n03\n07\n40\n"


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3), np.uint8)


def bits(run: sv.Run) -> bytes:
    return (run.path / "encoder" / "model.safetensors").read_bytes()


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "list.txt").write_text(LISTED)
    return tmp_path / "list.txt"


def test_the_run_is_that_of_the_other_pictures_and_says_so(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sv.pretrain(pictures(), out=tmp_path / "run", exclude=listed, **SETTINGS | {"quiet": False})
    said = capsys.readouterr().err
    assert "1 of 3 names in" in said and "(40)" in said and "2 of 24 pictures of arrays" in said
    assert bits(run) == bits(sv.pretrain(np.delete(pictures(), [3, 7], 0), out=tmp_path / "other", **SETTINGS))
    told = load_toml(run.path / "run.toml")
    assert told["exclude"] == str(listed) and told["recorded"]["pictures"] == 22
    assert (run.path / "excluded.txt").read_text().splitlines()[1:] == ["03", "07", "40"]


@pytest.mark.parametrize("after", ["kept", "gone", "changed"])
def test_a_stopped_run_goes_on_with_its_own_list(
    after: str,
    listed: Path,
    tmp_path: Path,
    stop_after: Callable[[pytest.MonkeyPatch, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = sv.pretrain(pictures(), out=tmp_path / "whole", exclude=listed, **SETTINGS)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 2)
        sv.pretrain(pictures(), out=tmp_path / "run", exclude=listed, **SETTINGS)
    if after == "gone":
        listed.unlink()
    elif after == "changed":
        listed.write_text("05\n")
        with pytest.raises(UsageError, match="is another list than the one that the run began with"):
            sv.pretrain(pictures(), out=tmp_path / "run", exclude=listed, **SETTINGS)
        return
    assert bits(sv.pretrain(pictures(), out=tmp_path / "run", exclude=listed, **SETTINGS)) == bits(whole)
    with pytest.raises(UsageError, match="exclude"):
        sv.pretrain(pictures(), out=tmp_path / "run", **SETTINGS)


def test_masks_and_subset_are_of_the_pictures_that_are_left(listed: Path, tmp_path: Path) -> None:
    masks = np.zeros((24, 8, 8), np.bool_)
    masks[:, 2:6, 2:6] = True
    given = {**SETTINGS, "method": "relic_v2", "subset": "50%"}
    run = sv.pretrain(pictures(), out=tmp_path / "run", exclude=listed, masks=masks, **given)
    rest = np.delete(np.arange(24), [3, 7])
    assert bits(run) == bits(sv.pretrain(pictures()[rest], out=tmp_path / "other", masks=masks[rest], **given))


@pytest.mark.parametrize(
    ("text", "error", "wanted"),
    [
        ("a/1.jpg\n", DataError, "has 1 name (a/1.jpg), and arrays has none of them"),
        ("".join(f"{i:02}\n" for i in range(23)), DataError, "leaves 1 of 24 pictures of arrays; wanted 2 or more"),
        (None, UsageError, "cannot be read (No such file or directory)"),
    ],
)
def test_a_list_that_cannot_be_meant_leaves_no_folder(
    text: str | None, error: type[Exception], wanted: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(error) as told:
        sv.pretrain(pictures(), out=tmp_path / "run", exclude=tmp_path / "list.txt", **SETTINGS)
    assert wanted in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_stages_and_a_run_from_another_ones_checkpoint_leave_the_same_out(listed: Path, tmp_path: Path) -> None:
    given = {name: value for name, value in SETTINGS.items() if name != "epochs"}
    run = sv.pretrain(pictures(), out=tmp_path / "run", exclude=listed, stages="8x1,8x1", **given)
    assert bits(run) == bits(sv.pretrain(np.delete(pictures(), [3, 7], 0), out=tmp_path / "other", stages="8x1,8x1", **given))
    whole = sv.pretrain(pictures(), out=tmp_path / "whole", exclude=listed, **SETTINGS)
    listed.unlink()
    further = sv.pretrain(pictures(), out=tmp_path / "on", resume_from=whole.path, **given)
    assert load_toml(further.path / "run.toml")["recorded"]["pictures"] == 22 and (further.path / "excluded.txt").is_file()
    assert sv.pretrain(pictures(), out=tmp_path / "on", resume_from=whole.path, **given).path == further.path
