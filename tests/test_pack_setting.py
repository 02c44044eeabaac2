"""How pictures are kept is a setting like any other: settled before a run, told, and part of what a continuation must share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import smallview as sv
from smallview.config import mathematics
from smallview.data import pack_kind
from smallview.data.listing import PathTable
from smallview.data.sources import Source, open_source
from smallview.errors import UsageError
from smallview.pictures import decoded
from smallview.settings import load_toml
from smallview.settle import settle


@pytest.fixture
def source() -> Source:
    pictures = np.kron(np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8), np.ones((1, 40, 40, 1), np.uint8))
    return Source("blocks", PathTable.numbered(6), 3, lambda i, side: (pictures[i], None), fingerprint="ab" * 32)


def test_the_rule_is_settled_with_its_reason(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    config, reasons = settle(source, source, {"size": 64})
    assert config.pack == "raw" and reasons["pack"] == "pixels up to 96 px or 8 GiB, else JPEGs"
    monkeypatch.setattr(pack_kind, "RAW_BYTES", 10**5)
    assert settle(source, source, {"size": 64})[0].pack == "jpeg" and settle(source, source, {"size": 8})[0].pack == "raw"
    config, reasons = settle(source, source, {"size": 64}, sets={"pack": "raw"})
    assert config.pack == "raw" and reasons["pack"] == "--set"
    assert mathematics(config) != mathematics(replace(config, pack="jpeg"))
    with pytest.raises(UsageError, match="pack is 'png'; wanted auto, raw or jpeg"):
        settle(source, source, {}, sets={"pack": "png"})


@pytest.mark.usefixtures("apart")
def test_jpegs_are_told(source: Source, tmp_path: Path) -> None:
    said: list[str] = []
    for kind, wanted in (("raw", []), ("jpeg", ["6 pictures are kept as JPEGs of quality 90, their short side up to 144 px"])):
        config = settle(source, source, {"size": 64, "threads": 1}, sets={"pack": kind})[0]
        assert decoded(source, config, tmp_path, said.append).kind == kind
        assert [line.split("; ")[0] for line in said] == wanted


@pytest.mark.usefixtures("apart")
def test_a_wish_that_the_channels_do_not_allow_is_settled_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = np.zeros((4, 16, 16, 4), np.uint8)
    config, reasons = settle(data, open_source(data), {}, sets={"pack": "jpeg"})
    assert config.pack == "raw" and reasons["pack"] == "JPEGs hold 1 or 3 channels and these pictures have others"
    run = sv.pretrain(data, out=tmp_path / "run", epochs=1, threads=1, sets={"pack": "jpeg"})
    assert f"pack is raw, not jpeg: {reasons['pack']}\n" in capsys.readouterr().err
    assert load_toml(run.path / "run.toml")["pack"] == "raw"
