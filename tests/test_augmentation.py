"""Which views a run makes is a setting that reaches the maker, is written down, and is what a continuation must share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smallview as sv
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import StoppedError, UsageError
from smallview.parts import build
from smallview.settings import load_toml
from smallview.settle import settle
from smallview.views.making import ViewMaker

pytestmark = pytest.mark.usefixtures("apart")


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("mode", ["fast", "parity"])
def test_it_reaches_the_maker(mode: str) -> None:
    source = open_source(pictures())
    given = {"batch_size": 8, "threads": 1, "device": "cpu"}
    config = settle(pictures(), source, given, sets={"augmentation": mode})[0]
    assert build(config, open_pack(source, short_side=None), None, lambda message: None)[1].maker.mode == mode


def test_a_run_goes_on_with_the_views_that_it_began_with(
    stop_after: Callable[[pytest.MonkeyPatch, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"encoder": "dense_small:8-16-32", "batch_size": 16, "threads": 1, "quiet": True, "epochs": 2}
    parity = given | {"sets": {"augmentation": "parity"}}
    modes: set[str] = set()
    draw = ViewMaker.draw

    def watched(self: ViewMaker, *args: Any, **more: Any) -> Any:
        modes.add(self.mode)
        return draw(self, *args, **more)

    monkeypatch.setattr(ViewMaker, "draw", watched)
    whole, fast = (sv.pretrain(pictures(), out=tmp_path / name, **more) for name, more in (("whole", parity), ("fast", given)))
    assert modes == {"parity", "fast"} and load_toml(whole.path / "run.toml")["augmentation"] == "parity"
    modes.clear()
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            sv.pretrain(pictures(), out=out, **parity)
    with pytest.raises(UsageError, match='augmentation: "parity" -> "fast"'):
        sv.pretrain(pictures(), out=out, **given)
    sv.pretrain(pictures(), out=out, **parity)
    by_file = sv.pretrain(pictures(), out=tmp_path / "by_file", config=str(out / "run.toml"), quiet=True)
    assert modes == {"parity"}
    same, again, file, other = (
        (path / "encoder" / "model.safetensors").read_bytes() for path in (whole.path, out, by_file.path, fast.path)
    )
    assert same == again == file != other
